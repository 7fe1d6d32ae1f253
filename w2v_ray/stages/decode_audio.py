"""Decodes each item to samples of one channel at 16 kHz, and settles where a time range begins and ends.

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

from w2v_ray.audio.channels import choose_channels, take_channels
from w2v_ray.audio.codecs import open_audio
from w2v_ray.audio.condition import Condition
from w2v_ray.audio.reader import SLACK_S, AudioReader, Samples
from w2v_ray.audio.resample import Resampler, mix_to_mono
from w2v_ray.audio.silence import find_cut
from w2v_ray.audio_config import ON_TRUNCATED, check_channel
from w2v_ray.decoder_config import check_choice
from w2v_ray.errors import (
    AudioLimitError,
    ConfigError,
    DecodeError,
    EmptyAudioError,
    ItemError,
    TruncatedError,
)
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
    "channel",
    "error",
]
_SAMPLES = DECODED[0]
_ROUNDING_S = 0.5  # of headers and of ranges, beside the longest item


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeAudioConfig:
    """How far a border may move, how long an item may be, and what is taken of it."""

    border_seconds: float = 15.0
    """Seconds before and after a planned border in which its cut is looked for."""
    max_item_seconds: float = 7200.0
    """The longest item, all its channels together; two hours of samples take 460 MB of memory."""
    channel: str | int = "mix"
    """mix, left, right, split or a number from 0; an item's own ``channel`` comes first."""
    on_truncated: str = "mark"
    """What to do with an item that is shorter than its header or plan says: mark or reject."""

    def __post_init__(self) -> None:
        if not 1 <= self.border_seconds <= 60:
            raise ConfigError(f"border_seconds is {self.border_seconds}; give a number from 1 to 60")
        if not 1 <= self.max_item_seconds <= 86_400:
            raise ConfigError(f"max_item_seconds is {self.max_item_seconds}; give a number from 1 to 86,400")
        object.__setattr__(self, "channel", check_channel(self.channel))
        check_choice("on_truncated", self.on_truncated, ON_TRUNCATED)


class DecodeAudio:
    """The stage: items with bytes, or with a place to read them from, become items with samples.

    Where channels are split, an item becomes a row for each of its channels.
    """

    def __init__(self, config: DecodeAudioConfig) -> None:
        self._config = config

    def __call__(self, table: pa.Table) -> pa.Table:
        """Takes the columns of ITEM and READ; drops ``audio_bytes`` and adds those of DECODED.

        ``start_s``, ``end_s`` and ``channel`` become the true ones. An item that fails keeps its own, has
        null samples and says why in ``error``.
        """
        encoded = table.column("audio_bytes")
        samples, offsets = bytearray(), [0]  # of all items in one buffer, which becomes the column
        rows: list[dict[str, Any]] = []
        indices: list[int] = []
        for index, row in enumerate(table.select(_READS).to_pylist()):
            decoded = [row]
            if row["error"] is None:
                try:
                    decoded = self.decode_item(row, encoded[index].as_py(), samples)
                except Exception as error:
                    del samples[offsets[-1] :]
                    row["error"] = error_value("decode_audio", _item_error(error))
            for found in decoded:
                indices.append(index)
                rows.append(row | found)
                offsets.append(offsets[-1] + found.get("num_samples", 0) * 4)
        kept = table.drop_columns(["audio_bytes"])
        if len(rows) != table.num_rows:
            kept = kept.take(pa.array(indices, pa.int64()))
        columns = {name: kept.column(name) for name in kept.column_names}
        columns["error"] = pa.array([row["error"] for row in rows], ERROR)
        for name in ("start_s", "end_s"):
            columns[name] = pa.array([row[name] for row in rows], pa.float64())
        present = pa.array([row["error"] is None for row in rows], pa.bool_())
        buffers = [present.buffers()[1], pa.py_buffer(np.array(offsets, np.int64)), pa.py_buffer(samples)]
        columns[_SAMPLES.name] = pa.Array.from_buffers(_SAMPLES.type, len(rows), buffers)
        for field in DECODED[1:]:
            columns[field.name] = pa.array([row.get(field.name) for row in rows], field.type)
        return pa.table(columns)

    def decode_item(
        self, row: dict[str, Any], encoded: bytes | None, samples: bytearray
    ) -> list[dict[str, Any]]:
        """Decodes one item.

        Args:
            row: Its columns of ITEM.
            encoded: Its bytes; None: they are where the columns say.
            samples: Receives its samples, little-endian float32, channel after channel.

        Returns:
            For each channel its columns of DECODED, the true ``start_s`` and ``end_s``, and ``num_samples``.

        Raises:
            ItemError: It cannot be decoded; ``samples`` may hold a part of it.
        """
        file: BinaryIO
        if encoded is not None:
            file = io.BytesIO(encoded)
        else:
            file = open_range(row["uri"], row["byte_offset"], row["byte_size"], version=row["version"])
        with closing(file), open_audio(file) as reader:
            rate = reader.sample_rate_hz
            channel = self._config.channel if row["channel"] is None else row["channel"]
            wanted = choose_channels(channel, reader.num_channels)
            self._check_length(reader, row, len(wanted))
            first, blocks = self._range(reader, row, wanted)
            most = self._config.max_item_seconds * rate / len(wanted)
            # The first channel goes to its place at once, as most items have no other.
            parts = [samples, *(bytearray() for _ in wanted[1:])]
            before, num_frames = len(samples), 0
            conditions = [Condition() for _ in wanted]
            resamplers = [Resampler(rate, SAMPLE_RATE_HZ) for _ in wanted]
            for block in blocks:
                num_frames += len(block)
                if num_frames > most and row["end_s"] is None:
                    raise self._too_long(len(wanted))
                for index, part in enumerate(parts):
                    sound = conditions[index].take(block[:, index])
                    part += resamplers[index].push(sound).astype("<f4", copy=False).tobytes()
            for resampler, part in zip(resamplers, parts, strict=True):
                part += resampler.flush().astype("<f4", copy=False).tobytes()
            if num_frames == 0:
                raise _past_the_end(first, reader)
            for condition in conditions:
                condition.check()
            truncation = self._truncation(reader, row, first + num_frames)
            if truncation is not None and self._config.on_truncated == "reject":
                raise truncation
            num_samples = (len(samples) - before) // 4
            for part in parts[1:]:
                samples += part
            return [
                {
                    "start_s": first / rate,
                    "end_s": (first + num_frames) / rate,
                    "duration_s": num_samples / SAMPLE_RATE_HZ,
                    "sample_rate_hz": rate,
                    "num_channels": reader.num_channels,
                    "codec": reader.codec,
                    "channel": index,
                    "decode_status": "ok" if truncation is None else "truncated",
                    "audio_notes": condition.notes(),
                    "num_samples": num_samples,
                }
                for index, condition in zip(wanted, conditions, strict=True)
            ]

    def _range(
        self, reader: AudioReader, row: dict[str, Any], wanted: list[int | None]
    ) -> tuple[int, Iterator[Samples]]:
        """The first frame of an item and its blocks from there on, at the rate of the source.

        Blocks have a column for each channel that is wanted.
        """
        rate = reader.sample_rate_hz
        border = round(self._config.border_seconds * rate)
        start = 0 if row["start_s"] is None else round(row["start_s"] * rate)
        end = None if row["end_s"] is None else round(row["end_s"] * rate)
        start_is_cut = bool(row["start_s"] is not None and row["start_is_cut"])
        end_is_cut = bool(end is not None and row["end_is_cut"])
        if end is not None:
            self._check_range(start, end, border * (start_is_cut + end_is_cut), rate)
        first = max(0, start - border) if start_is_cut else start
        blocks: Iterator[Samples] = (take_channels(block, wanted) for block in reader.blocks(first))
        if start_is_cut:
            first, blocks = _begin_at_cut(reader, blocks, first, start, border, len(wanted))
        if end is not None and end_is_cut:
            blocks = _end_at_cut(blocks, first, end, border, rate, len(wanted))
        elif end is not None:
            blocks = _end_at(blocks, end - first)
        return first, blocks

    def _check_length(self, reader: AudioReader, row: dict[str, Any], num_wanted: int) -> None:
        """Refuses what is too long before it is decoded, where that is known."""
        seconds = (row["end_s"] or 0.0) - (row["start_s"] or 0.0)
        if row["end_s"] is None and reader.length_is_exact and reader.num_frames is not None:
            seconds += reader.num_frames / reader.sample_rate_hz
        if seconds * num_wanted <= self._config.max_item_seconds + _ROUNDING_S:
            return
        if row["end_s"] is None or num_wanted > 1:
            raise self._too_long(num_wanted)

    def _too_long(self, num_wanted: int) -> AudioLimitError:
        seconds = f"{self._config.max_item_seconds / num_wanted:g} s"
        if num_wanted > 1:
            return AudioLimitError(
                f"the recording goes on after {seconds}, the most that an item of {num_wanted} channels may "
                "hold; lower shard_seconds, or choose one channel"
            )
        return AudioLimitError(
            f"the recording goes on after {seconds}, the most that one item may hold; name time ranges of "
            "it in a manifest, or split the file"
        )

    def _truncation(self, reader: AudioReader, row: dict[str, Any], end: int) -> TruncatedError | None:
        """What is missing of an item that ends at frame ``end``; None where nothing is."""
        if reader.truncation is not None and end == reader.end_frame:
            return reader.truncation
        if row["end_s"] is None:
            return None
        end_s = end / reader.sample_rate_hz
        slack_s = SLACK_S + (self._config.border_seconds if row["end_is_cut"] else 0.0)
        if end_s >= row["end_s"] - slack_s:
            return None
        return TruncatedError(
            f"the recording ends at {end_s:.2f} s where the plan has a range to {row['end_s']:.2f} s; check "
            "the file, or plan it again"
        )

    def _check_range(self, start: int, end: int, borders: int, rate: int) -> None:
        times = f"the range from {start / rate:g} to {end / rate:g} s"
        if end <= start:
            raise EmptyAudioError(f"{times} holds nothing; give an end after the start")
        if end - start > self._config.max_item_seconds * rate:
            raise AudioLimitError(
                f"{times} is longer than {self._config.max_item_seconds:g} s, the most that one item may "
                "hold; name shorter ranges"
            )
        # The windows of its two borders must not overlap, or the cuts could change places.
        if end - start < borders:
            raise AudioLimitError(
                f"{times} is shorter than the {borders / rate:g} s in which its borders may move; "
                "plan longer ranges"
            )


def _begin_at_cut(
    reader: AudioReader, blocks: Iterator[Samples], first: int, start: int, border: int, num_wanted: int
) -> tuple[int, Iterator[Samples]]:
    """Moves the start of ``blocks``, which begin at frame ``first``, to the cut near ``start``."""
    window, rest = np.empty((start + border - first, num_wanted), np.float32), None
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
    cut = _cut_of(window, reader.sample_rate_hz)
    return first + cut, chain([window[cut:]], [] if rest is None else [rest], blocks)


def _end_at_cut(
    blocks: Iterator[Samples], position: int, end: int, border: int, rate: int, num_wanted: int
) -> Iterator[Samples]:
    """Ends ``blocks``, which begin at frame ``position``, at the cut near ``end``."""
    low = max(0, end - border)
    window = np.empty((end + border - low, num_wanted), np.float32)
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
    yield window if low + filled <= end else window[: _cut_of(window, rate)]


def _cut_of(window: Samples, rate: int) -> int:
    """The frame at which all channels of a window are cut; what is no sound is silent."""
    mono = mix_to_mono(window)
    return find_cut(np.where(np.isnan(mono), np.float32(0), mono), rate)


def _end_at(blocks: Iterator[Samples], num_frames: int) -> Iterator[Samples]:
    for block in blocks:
        yield block[:num_frames]
        num_frames -= len(block)
        if num_frames <= 0:
            break


def _past_the_end(start: int, reader: AudioReader) -> TruncatedError:
    assert reader.end_frame is not None  # nothing came, so the end was reached
    return TruncatedError(
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
