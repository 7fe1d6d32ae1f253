"""Splits decoded items into segments that an encoder takes whole, one row each.

The segments of an item cover it without gap or overlap. No sample is copied: the rows share the
buffer that decode_audio filled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from w2v_ray.audio.silence import split_at_silences
from w2v_ray.errors import ConfigError, TooShortError
from w2v_ray.schema import DECODED, ERROR, SAMPLE_RATE_HZ, SEGMENT, error_value

__all__ = ["SegmentAudio", "SegmentAudioConfig"]

_SAMPLES = DECODED[0]
_REPLACED = ["start_s", "end_s", "duration_s", "error"]
_BYTES = 4  # of a float32 sample


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentAudioConfig:
    """How long a segment may be."""

    max_segment_seconds: float = 30.0
    """The longest segment; segments of longer items have at least a third of it."""
    min_samples: int = 400
    """What the encoder needs for one frame, in samples at 16 kHz; shorter items are rejected."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_segment_seconds <= 3600:
            raise ConfigError(
                f"max_segment_seconds is {self.max_segment_seconds}; give a number from 1 to 3600"
            )
        most = int(self.max_segment_seconds * SAMPLE_RATE_HZ / 4)  # no segment but a whole item is shorter
        if not 1 <= self.min_samples <= most:
            raise ConfigError(
                f"min_samples is {self.min_samples}; give a number from 1 to {most:,}, a quarter of a segment"
            )


class SegmentAudio:
    """The stage: one row per item becomes one row per segment; failed items pass as they are."""

    def __init__(self, config: SegmentAudioConfig) -> None:
        self._config = config

    def __call__(self, table: pa.Table) -> pa.Table:
        """Takes the columns of DECODED; adds those of SEGMENT.

        ``start_s``, ``end_s``, ``duration_s`` and ``samples`` become the segment's, other columns
        are repeated, and an item too short for the encoder gets a ``TooShortError`` row.
        """
        if table.num_rows == 0:
            return _with_columns(table, [], table.column(_SAMPLES.name).cast(_SAMPLES.type), [])
        chunks = table.column(_SAMPLES.name).chunks
        values = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
        begins, data = _layout(values)
        rows: list[dict[str, Any]] = []
        indices: list[int] = []
        offsets = [int(begins[0])]
        for index, item in enumerate(table.select(["recording_id", *_REPLACED]).to_pylist()):
            begin, end = int(begins[index]), int(begins[index + 1])
            for segment in self._segments(item, data[begin // _BYTES : end // _BYTES]):
                indices.append(index)
                offsets.append(begin + segment.pop("end") * _BYTES)
                rows.append(segment)
        present = pa.array([row["error"] is None for row in rows], pa.bool_())
        buffers = [present.buffers()[1], pa.py_buffer(np.array(offsets, np.int64)), values.buffers()[2]]
        samples = pa.Array.from_buffers(_SAMPLES.type, len(rows), buffers)
        return _with_columns(table, rows, samples, indices)

    def _segments(self, item: dict[str, Any], samples: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
        whole = {name: item[name] for name in _REPLACED} | {"end": len(samples)}
        if item["error"] is not None:
            return [whole]
        if len(samples) < self._config.min_samples:
            error = TooShortError(
                f"the item has {len(samples)} samples at 16 kHz where the encoder needs "
                f"{self._config.min_samples}; leave it out, or join it with what is around it"
            )
            return [whole | {"error": error_value("segment_audio", error)}]
        spans = split_at_silences(samples, self._config.max_segment_seconds)
        times = [item["start_s"] + start / SAMPLE_RATE_HZ for start, _ in spans] + [item["end_s"]]
        return [
            {
                "start_s": times[index],
                "end_s": times[index + 1],
                "duration_s": (end - start) / SAMPLE_RATE_HZ,
                "error": None,
                "end": end,
                # Segments have 25 ms at least, so rounded starts differ.
                "segment_id": f"{item['recording_id']}@{_ms(times[index]):08d}-{_ms(times[index + 1]):08d}",
                "segment_index": index,
            }
            for index, (start, end) in enumerate(spans)
        ]


def _layout(values: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Where each value begins in the data buffer, in bytes, and that buffer as samples."""
    _, offsets, data = values.buffers()
    begins = np.frombuffer(offsets, np.int64, len(values) + 1, values.offset * 8)
    samples = np.frombuffer(data, "<f4", int(begins[-1]) // _BYTES) if data else np.zeros(0, np.float32)
    return begins, samples


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _with_columns(
    table: pa.Table, rows: list[dict[str, Any]], samples: pa.Array, indices: list[int]
) -> pa.Table:
    kept = table.drop_columns([_SAMPLES.name]).take(pa.array(indices, pa.int64()))
    columns = {name: kept.column(name) for name in kept.column_names}
    for name in ("start_s", "end_s", "duration_s"):
        columns[name] = pa.array([row[name] for row in rows], pa.float64())
    columns["error"] = pa.array([row["error"] for row in rows], ERROR)
    for field in SEGMENT:
        columns[field.name] = pa.array([row.get(field.name) for row in rows], field.type)
    columns[_SAMPLES.name] = samples
    return pa.table(
        {name: columns[name] for name in [*table.column_names, *(field.name for field in SEGMENT)]}
    )
