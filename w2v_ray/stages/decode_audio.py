"""Decodes each item to mono samples at 16 kHz, and settles where a time range begins and ends.

A border that two ranges share lies at the cut which both of them find for themselves, in the same
seconds around the planned time. Nothing is held but those seconds and the item's own samples.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from w2v_ray.audio.codecs import open_audio
from w2v_ray.audio.reader import AudioReader, Samples
from w2v_ray.audio.resample import Resampler, mix_to_mono
from w2v_ray.audio.silence import find_cut
from w2v_ray.errors import AudioLimitError, ConfigError, DecodeError, EmptyAudioError, ItemError
from w2v_ray.schema import DECODED, ERROR, SAMPLE_RATE_HZ, error_value
from w2v_ray.stores import open_range

__all__ = ["DecodeAudio", "DecodeAudioConfig"]

_READS = [
    "uri",
    "byte_offset",
    "byte_size",
    "version",
    "start_s",
    "end_s",
    "start_is_cut",
    "end_is_cut",
    "error",
]
_SAMPLES = DECODED[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeAudioConfig:
    """How far a border may move, and how long an item may be."""

    border_seconds: float = 15.0
    """Seconds before and after a planned border in which its cut is looked for."""
    max_item_seconds: float = 7200.0
    """The longest item; two hours of samples take 460 MB of memory."""

    def __post_init__(self) -> None:
        if not 1 <= self.border_seconds <= 60:
            raise ConfigError(f"border_seconds is {self.border_seconds}; give a number from 1 to 60")
        if not 1 <= self.max_item_seconds <= 86_400:
            raise ConfigError(f"max_item_seconds is {self.max_item_seconds}; give a number from 1 to 86,400")


class DecodeAudio:
    """The stage: items with bytes, or with a place to read them from, become items with samples."""

    def __init__(self, config: DecodeAudioConfig) -> None:
        self._config = config

    def __call__(self, table: pa.Table) -> pa.Table:
        """Takes the columns of ITEM and READ; drops ``audio_bytes`` and adds those of DECODED.

        ``start_s`` and ``end_s`` become the true ones. An item that fails keeps its own, has null
        samples and says why in ``error``.
        """
        encoded = table.column("audio_bytes")
        samples, offsets = bytearray(), [0]  # of all items in one buffer, which becomes the column
        rows: list[dict[str, Any]] = []
        for index, row in enumerate(table.select(_READS).to_pylist()):
            if row["error"] is None:
                try:
                    row |= self._decode(row, encoded[index], samples)
                except Exception as error:
                    del samples[offsets[-1] :]
                    row["error"] = error_value("decode_audio", _item_error(error))
            offsets.append(len(samples))
            rows.append(row)
        columns = {name: table.column(name) for name in table.column_names if name != "audio_bytes"}
        columns["error"] = pa.array([row["error"] for row in rows], ERROR)
        for name in ("start_s", "end_s"):
            columns[name] = pa.array([row[name] for row in rows], pa.float64())
        present = pa.array([row["error"] is None for row in rows], pa.bool_())
        buffers = [present.buffers()[1], pa.py_buffer(np.array(offsets, np.int64)), pa.py_buffer(samples)]
        columns[_SAMPLES.name] = pa.Array.from_buffers(_SAMPLES.type, len(rows), buffers)
        for field in DECODED[1:]:
            columns[field.name] = pa.array([row.get(field.name) for row in rows], field.type)
        return pa.table(columns)

    def _decode(self, row: dict[str, Any], encoded: pa.Scalar, samples: bytearray) -> dict[str, Any]:
        """Appends the samples of one item, as little-endian float32, and returns its new columns."""
        file: BinaryIO
        if encoded.is_valid:
            file = io.BytesIO(encoded.as_py())
        else:
            file = open_range(row["uri"], row["byte_offset"], row["byte_size"], version=row["version"])
        with closing(file), open_audio(file) as reader:
            rate = reader.sample_rate_hz
            first, blocks = self._range(reader, row)
            resampler = Resampler(rate, SAMPLE_RATE_HZ)
            before, num_frames = len(samples), 0
            for block in blocks:
                num_frames += len(block)
                if num_frames > self._config.max_item_seconds * rate and row["end_s"] is None:
                    raise AudioLimitError(
                        f"the recording goes on after {self._config.max_item_seconds:g} s, the most that one "
                        "item may hold; plan it as time ranges, or raise max_item_seconds"
                    )
                samples += resampler.push(block).astype("<f4", copy=False).tobytes()
            samples += resampler.flush().astype("<f4", copy=False).tobytes()
            if num_frames == 0:
                raise _past_the_end(first, reader)
            return {
                "start_s": first / rate,
                "end_s": (first + num_frames) / rate,
                "duration_s": (len(samples) - before) / 4 / SAMPLE_RATE_HZ,
                "sample_rate_hz": rate,
                "num_channels": reader.num_channels,
                "codec": reader.codec,
            }

    def _range(self, reader: AudioReader, row: dict[str, Any]) -> tuple[int, Iterator[Samples]]:
        """The first frame of an item and its mono blocks from there on, at the rate of the source."""
        rate = reader.sample_rate_hz
        border = round(self._config.border_seconds * rate)
        start = 0 if row["start_s"] is None else round(row["start_s"] * rate)
        end = None if row["end_s"] is None else round(row["end_s"] * rate)
        start_is_cut = bool(row["start_s"] is not None and row["start_is_cut"])
        end_is_cut = bool(end is not None and row["end_is_cut"])
        if end is not None:
            self._check_range(start, end, border * (start_is_cut + end_is_cut), rate)
        first = max(0, start - border) if start_is_cut else start
        blocks: Iterator[Samples] = map(mix_to_mono, reader.blocks(first))
        if start_is_cut:
            first, blocks = _begin_at_cut(reader, blocks, first, start, border)
        if end is not None and end_is_cut:
            blocks = _end_at_cut(blocks, first, end, border, rate)
        elif end is not None:
            blocks = _end_at(blocks, end - first)
        return first, blocks

    def _check_range(self, start: int, end: int, borders: int, rate: int) -> None:
        times = f"the range from {start / rate:g} to {end / rate:g} s"
        if end <= start:
            raise EmptyAudioError(f"{times} holds nothing; give an end after the start")
        if end - start > self._config.max_item_seconds * rate:
            raise AudioLimitError(
                f"{times} is longer than {self._config.max_item_seconds:g} s, the most that one item may "
                "hold; plan shorter ranges, or raise max_item_seconds"
            )
        # The windows of its two borders must not overlap, or the cuts could change places.
        if end - start < borders:
            raise AudioLimitError(
                f"{times} is shorter than the {borders / rate:g} s in which its borders may move; "
                "plan longer ranges, or lower border_seconds"
            )


def _begin_at_cut(
    reader: AudioReader, blocks: Iterator[Samples], first: int, start: int, border: int
) -> tuple[int, Iterator[Samples]]:
    """Moves the start of ``blocks``, which begin at frame ``first``, to the cut near ``start``."""
    window, rest = np.empty(start + border - first, np.float32), None
    filled = 0
    for block in blocks:
        taken = block[: len(window) - filled]
        window[filled : filled + len(taken)] = taken
        filled += len(taken)
        if filled == len(window):
            rest = block[len(taken) :]
            break
    if first + filled <= start:
        raise _past_the_end(start, reader)
    window = window[:filled]
    cut = find_cut(window, reader.sample_rate_hz)
    return first + cut, chain([window[cut:]], [] if rest is None else [rest], blocks)


def _end_at_cut(
    blocks: Iterator[Samples], position: int, end: int, border: int, rate: int
) -> Iterator[Samples]:
    """Ends ``blocks``, which begin at frame ``position``, at the cut near ``end``."""
    low = max(0, end - border)
    window = np.empty(end + border - low, np.float32)
    filled = 0
    for block in blocks:
        outside = block[: max(0, low - position)]
        position += len(block)
        yield outside
        taken = block[len(outside) :][: len(window) - filled]
        window[filled : filled + len(taken)] = taken
        filled += len(taken)
        if filled == len(window):
            break
    window = window[:filled]
    # Where the recording ends before the border, the range after it finds nothing: keep all.
    yield window if low + filled <= end else window[: find_cut(window, rate)]


def _end_at(blocks: Iterator[Samples], num_frames: int) -> Iterator[Samples]:
    for block in blocks:
        yield block[:num_frames]
        num_frames -= len(block)
        if num_frames <= 0:
            break


def _past_the_end(start: int, reader: AudioReader) -> DecodeError:
    assert reader.end_frame is not None  # nothing came, so the end was reached
    return DecodeError(
        f"the recording ends at {reader.end_frame / reader.sample_rate_hz:.2f} s, before this range at "
        f"{start / reader.sample_rate_hz:.2f} s (it is shorter than its header or manifest says); check the "
        "file, or plan it again"
    )


def _item_error(error: Exception) -> ItemError:
    if isinstance(error, ItemError):
        return error
    return DecodeError(
        f"decoding failed with {type(error).__name__}: {error}; please report it with the file"
    )
