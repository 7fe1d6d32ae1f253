"""Splits decoded items into segments that an encoder takes whole, one row each.

The segments of an item cover it without gap or overlap, and no sample is copied: the rows share the buffer
that decode_audio filled. Only where what a detector does not call speech is dropped, the rest is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from w2v_ray.audio.silence import find_sound, split_at_silences
from w2v_ray.audio.speech import (
    SpeechDetector,
    find_speech,
    load_detector,
    pauses_between,
    speech_regions,
)
from w2v_ray.audio_config import check_vad
from w2v_ray.errors import ConfigError, ItemError, TooShortError
from w2v_ray.schema import DECODED, ERROR, SAMPLE_RATE_HZ, SEGMENT, error_value

__all__ = ["SegmentAudio", "SegmentAudioConfig"]

_SAMPLES = DECODED[0]
_REPLACED = ["start_s", "end_s", "duration_s", "error"]
_BYTES = 4  # of a float32 sample
_HOP = SAMPLE_RATE_HZ // 100  # of find_sound


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentAudioConfig:
    """How long a segment may be, and who says where speech is."""

    max_segment_seconds: float = 30.0
    """The longest segment; segments of longer items have at least a third of it."""
    min_samples: int = 400
    """What the encoder needs for one frame, in samples at 16 kHz; shorter items are rejected."""
    vad: str | None = None
    """A voice activity detector as MODULE:FUNCTION, whose pauses are cut at first; None: silences are."""
    keep_non_speech: bool = True
    """Whether segments hold what the detector does not call speech as well."""

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
        check_vad(self.vad, keep_non_speech=self.keep_non_speech)


class SegmentAudio:
    """The stage: one row per item becomes one row per segment; failed items pass as they are.

    Raises:
        ConfigError: The detector cannot be imported, which shows at the first table.
    """

    def __init__(self, config: SegmentAudioConfig | None = None) -> None:
        self._config = config or SegmentAudioConfig()
        self._detector: SpeechDetector | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """Takes the columns of DECODED; adds those of SEGMENT.

        ``start_s``, ``end_s``, ``duration_s`` and ``samples`` become the segment's, other columns
        are repeated, and an item too short for the encoder gets a ``TooShortError`` row. An item in which
        nobody speaks, where only speech is kept, gets a segment of all of it with no samples.
        """
        if self._config.vad is not None and self._detector is None:
            self._detector = load_detector(self._config.vad)  # in the worker, where it is needed
        if table.num_rows == 0:
            return _with_columns(table, [], table.column(_SAMPLES.name).cast(_SAMPLES.type), [])
        chunks = table.column(_SAMPLES.name).chunks
        values = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
        begins, data = _layout(values)
        rows: list[dict[str, Any]] = []
        indices: list[int] = []
        pieces: list[tuple[int, int]] = []
        for index, item in enumerate(table.select(["recording_id", "channel", *_REPLACED]).to_pylist()):
            begin, end = int(begins[index]) // _BYTES, int(begins[index + 1]) // _BYTES
            for segment in self._segments(item, data[begin:end]):
                indices.append(index)
                start, stop = segment.pop("piece")
                pieces.append((begin + start, begin + stop))
                rows.append(segment)
        present = pa.array([row["error"] is None for row in rows], pa.bool_())
        buffers = [present.buffers()[1], *_cut_out(values, data, pieces)]
        samples = pa.Array.from_buffers(_SAMPLES.type, len(rows), buffers)
        return _with_columns(table, rows, samples, indices)

    def _segments(self, item: dict[str, Any], samples: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
        whole = {name: item[name] for name in _REPLACED} | {"piece": (0, len(samples))}
        if item["error"] is not None:
            return [whole]
        try:
            if len(samples) < self._config.min_samples:
                raise TooShortError(
                    f"the item has {len(samples)} samples at 16 kHz where the encoder needs "
                    f"{self._config.min_samples}; leave it out, or join it with what is around it"
                )
            pieces, ratios = self._pieces(samples)
        except ItemError as error:
            return [whole | {"error": error_value("segment_audio", error)}]
        if not pieces:
            times = item["start_s"], item["end_s"]
            nothing = {"piece": (0, 0), "duration_s": 0.0, "speech_ratio": 0.0}
            return [whole | nothing | _named(item, 0, *times)]
        rows = []
        for index, (start, end) in enumerate(pieces):
            # The end of an item is the source's own, which is no multiple of a sample at 16 kHz.
            times = (
                item["start_s"] + start / SAMPLE_RATE_HZ,
                item["end_s"] if end == len(samples) else item["start_s"] + end / SAMPLE_RATE_HZ,
            )
            row = _named(item, index, *times) | {"duration_s": (end - start) / SAMPLE_RATE_HZ}
            rows.append(row | {"error": None, "piece": (start, end), "speech_ratio": ratios[index]})
        return rows

    def _pieces(self, samples: npt.NDArray[np.float32]) -> tuple[list[tuple[int, int]], list[float]]:
        """The segments of an item, and the share of speech in each; none where only speech is kept."""
        longest = self._config.max_segment_seconds
        if self._detector is None:
            sounds = find_sound(samples)
            pieces = split_at_silences(samples, longest)
            return pieces, [_share(sounds[start // _HOP : end // _HOP]) for start, end in pieces]
        speech = find_speech(self._detector, samples)
        pauses = pauses_between(speech, len(samples))
        regions = [(0, len(samples))]
        if not self._config.keep_non_speech:
            regions = speech_regions(speech, len(samples), self._config.min_samples)
        pieces = []
        for begin, stop in regions:
            inside = [(start - begin, end - begin) for start, end in pauses]
            found = split_at_silences(samples[begin:stop], longest, pauses=inside)
            pieces += [(begin + start, begin + end) for start, end in found]
        is_speech = np.zeros(len(samples), np.bool_)
        for start, end in speech:
            is_speech[start:end] = True
        return pieces, [_share(is_speech[start:end]) for start, end in pieces]


def _named(item: dict[str, Any], index: int, start_s: float, end_s: float) -> dict[str, Any]:
    channel = "" if item["channel"] is None else f"#c{item['channel']}"
    return {
        "start_s": start_s,
        "end_s": end_s,
        # Segments have 25 ms at least, so rounded starts differ.
        "segment_id": f"{item['recording_id']}{channel}@{_ms(start_s):08d}-{_ms(end_s):08d}",
        "segment_index": index,
    }


def _share(values: npt.NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else 0.0


def _cut_out(
    values: pa.Array, data: npt.NDArray[np.float32], pieces: list[tuple[int, int]]
) -> tuple[pa.Buffer, pa.Buffer]:
    """Offsets and data of pieces of the samples; the data is not copied where nothing is left out."""
    if all(left[1] == right[0] for left, right in pairwise(pieces)):
        edges = [pieces[0][0], *(end for _, end in pieces)]
        return pa.py_buffer(np.array(edges, np.int64) * _BYTES), values.buffers()[2]
    offsets = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum([(end - start) * _BYTES for start, end in pieces], out=offsets[1:])
    return pa.py_buffer(offsets), pa.py_buffer(np.concatenate([data[start:end] for start, end in pieces]))


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
