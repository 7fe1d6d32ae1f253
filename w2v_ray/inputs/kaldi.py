"""Kaldi data folders: ``wav.scp``, and beside it ``segments``, ``text`` and ``utt2spk``.

Nothing is executed: a line of ``wav.scp`` that is a command is refused.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from functools import partial

from w2v_ray import stores
from w2v_ray.errors import InputError, ReadError
from w2v_ray.inputs.entries import Entry, encodable, metadata_json
from w2v_ray.inputs.named_files import Named, look_up, place_of, read_lines

__all__ = ["is_kaldi", "read_scp"]

_IN_ARCHIVE = re.compile(r"(.+\.ark):(\d+)")


def is_kaldi(folder: str) -> bool:
    """Whether a folder is a Kaldi data folder with audio."""
    return stores.exists(stores.join(folder, "wav.scp"))


def read_scp(uri: str) -> Iterator[Entry]:
    """The entries of a ``.scp`` file, or of the ``segments`` beside it where it is a ``wav.scp``.

    Utterances are called by their ids; ``text`` and ``utt2spk`` give ``text`` and ``speaker``.

    Raises:
        InputError: A line is a command, or lacks or garbles what it needs.
    """
    texts: dict[str, str] = {}
    speakers: dict[str, str] = {}
    segments = None
    folder, _, name = uri.rpartition("/")
    if name == "wav.scp":
        texts, speakers = _values(folder, "text"), _values(folder, "utt2spk")
        segments = stores.join(folder, "segments")

    def metadata(utterance: str) -> str | None:
        said = {"text": texts.get(utterance), "speaker": speakers.get(utterance)}
        return metadata_json({key: value for key, value in said.items() if value is not None})

    if segments is not None and stores.exists(segments):
        recordings = {name: (place, offset) for _, name, place, offset in _recordings(uri)}
        named: Iterator[Named] = (
            (
                recordings[recording][0],
                partial(
                    _make_segment, where, utterance, recordings[recording][1], times, metadata(utterance)
                ),
            )
            for where, utterance, recording, times in _segments(stores.canonical(segments), recordings)
        )
    else:
        named = (
            (place, partial(_make_segment, where, name, offset, (None, None, None), metadata(name)))
            for where, name, place, offset in _recordings(uri)
        )
    yield from look_up(uri, named)


def _recordings(uri: str) -> Iterator[tuple[str, str, str, int | None]]:
    """Of each line of a ``.scp``: where it is, its id, its file and the offset in it."""
    for number, line in read_lines(uri):
        where = f"line {number} of {uri!r}"
        name, *rest = line.split(maxsplit=1)
        if not rest:
            raise InputError(f"{where} has an id and no file; write both")
        (path,) = rest
        if path.endswith("|") or path.startswith("|"):
            raise InputError(f"{where} is a command, which is never run here; write its output to a file")
        offset = None
        if match := _IN_ARCHIVE.fullmatch(path):
            path, offset = match[1], int(match[2])
        yield where, name, place_of(uri, where, path), offset


def _segments(
    uri: str, recordings: dict[str, tuple[str, int | None]]
) -> Iterator[tuple[str, str, str, tuple[float | None, float | None, int | None]]]:
    for number, line in read_lines(uri):
        where = f"line {number} of {uri!r}"
        try:
            utterance, recording, start, end, *channel = line.split()
            start_s, end_s = float(start), float(end)
            number_of_channel = int(channel[0]) if channel else None
        except ValueError as error:
            raise InputError(
                f"{where} is not 'utterance recording start end' with times in seconds; write these"
            ) from error
        if recording not in recordings:
            raise InputError(f"{where} names the recording {recording!r}, which wav.scp lacks; add it there")
        if not (0 <= start_s < math.inf and (end_s == -1 or start_s < end_s < math.inf)) or (
            number_of_channel is not None and number_of_channel < 0
        ):
            raise InputError(f"{where} is the range from {start} to {end}; give a start before an end")
        yield where, utterance, recording, (start_s, None if end_s == -1 else end_s, number_of_channel)


def _make_segment(
    where: str,
    name: str,
    offset: int | None,
    times: tuple[float | None, float | None, int | None],
    metadata: str | None,
    file: stores.FileInfo,
) -> Entry:
    start_s, end_s, channel = times
    return Entry(
        encodable(name),
        file.uri,
        byte_offset=offset,
        byte_size=file.size if offset is None else _size_in_archive(where, file, offset),
        version=file.version,
        start_s=start_s,
        end_s=end_s,
        channel=channel,
        duration_s=None if end_s is None else round(end_s - (start_s or 0.0), 6),
        metadata=metadata,
    )


def _size_in_archive(where: str, file: stores.FileInfo, offset: int) -> int | None:
    """The size of the WAV at an offset, which its header says."""
    if file.size is None:
        return None
    try:
        head = stores.read_range(file.uri, offset, 8)
    except ReadError as error:
        raise InputError(f"{where} points behind the end of {file.uri!r}; write the archive again") from error
    if head[:4] != b"RIFF":
        raise InputError(f"{where} points to no WAV at byte {offset} of {file.uri!r}; write audio as files")
    (size,) = struct.unpack("<I", head[4:])
    return min(int(size) + 8, file.size - offset)


def _values(folder: str, name: str) -> dict[str, str]:
    """The second column of a file of a data folder by its first; nothing where there is no such file."""
    uri = stores.join(folder, name)
    if not stores.exists(uri):
        return {}
    rows = (line.split(maxsplit=1) for _, line in read_lines(stores.canonical(uri)))
    return {row[0]: row[1] if len(row) > 1 else "" for row in rows}
