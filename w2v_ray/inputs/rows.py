"""What the keys of a manifest's line, or the columns of a table, say about a recording."""

from __future__ import annotations

import math
from collections.abc import Mapping

from w2v_ray import stores
from w2v_ray.errors import InputError
from w2v_ray.inputs.entries import Entry, encodable, metadata_json
from w2v_ray.schema import DAMAGE_KEY

__all__ = ["PATH_KEYS", "make_entry", "path_of"]

PATH_KEYS = ("audio_filepath", "path", "file", "filename", "uri", "wav", "audio")
_ID_KEYS = ("id", "utt_id")


def path_of(where: str, values: Mapping[str, object], path_key: str | None = None) -> tuple[str, str]:
    """The key that names the file, and what it says.

    Args:
        where: The row in words, such as ``line 3 of 'calls.csv'``.
        values: The row.
        path_key: The key to take; None: the first of ``PATH_KEYS`` that is there.

    Raises:
        InputError: There is no such key, or no text under it.
    """
    if path_key is None:
        path_key = next((key for key in PATH_KEYS if values.get(key) is not None), PATH_KEYS[0])
    path = values.get(path_key)
    if not isinstance(path, str) or not path:
        raise InputError(
            f"{where} has no text under {path_key!r} (its keys: {', '.join(values) or 'none'}); name the "
            f"file there, or under another of {', '.join(PATH_KEYS)}"
        )
    return path_key, path


def make_entry(
    where: str, values: Mapping[str, object], path_key: str, file: stores.FileInfo, *, are_texts: bool = False
) -> Entry:
    """The entry of a row, whose further keys become metadata.

    A range is ``offset`` and ``duration``, or ``start`` and ``end``, or ``offset`` and ``end``; without any,
    ``duration`` is the length of the whole file.

    Args:
        where: The row in words.
        values: The row.
        path_key: The key that named the file.
        file: The file.
        are_texts: Whether numbers are written as text, and an empty text means none.

    Raises:
        InputError: A time, channel or id is not one.
    """
    row = _Row(where, values, are_texts)
    used = {path_key, DAMAGE_KEY, "channel"}
    start_key = "offset" if row.has("offset") or not (row.has("start") or row.has("end")) else "start"
    start_s = row.seconds(start_key)
    duration_s = row.seconds("duration") or None  # some write 0 for unknown
    end_s = row.seconds("end") if start_key == "start" or duration_s is None else None
    used |= {start_key, "offset", "duration"} if end_s is None else {start_key, "end"}
    if end_s is not None:
        if end_s <= (start_s or 0.0):
            raise InputError(f"{where} ends at {end_s:g} s, not after its start; give times in seconds")
        duration_s = round(end_s - (start_s or 0.0), 6)
    elif start_s is not None and duration_s is not None:
        end_s = round(start_s + duration_s, 6)
    channel = row.channel()
    parts = []
    if start_s is not None or end_s is not None:
        parts.append(f"t={_number(start_s)},{_number(end_s)}")
    if channel is not None:
        parts.append(f"channel={channel}")
    recording_id = file.uri + ("#" + "&".join(parts) if parts else "")
    for key in _ID_KEYS:
        if row.has(key):
            name = values[key]
            if isinstance(name, bool) or not isinstance(name, str | int):
                raise InputError(f"{where} has {name!r} as {key!r}; give text")
            recording_id = encodable(str(name))
            used.add(key)
            break
    return Entry(
        recording_id,
        file.uri,
        byte_size=file.size,
        version=file.version,
        start_s=start_s,
        end_s=end_s,
        channel=channel,
        duration_s=duration_s,
        metadata=metadata_json({key: value for key, value in values.items() if key not in used}),
    )


class _Row:
    """The numbers of a row."""

    def __init__(self, where: str, values: Mapping[str, object], are_texts: bool) -> None:
        self._where, self._values, self._are_texts = where, values, are_texts

    def has(self, key: str) -> bool:
        return self._values.get(key) not in (None, "")

    def seconds(self, key: str) -> float | None:
        value = self._values.get(key)
        if value is None or (self._are_texts and value == ""):
            return None
        seconds = self._number(value)
        if seconds is None or not 0 <= seconds < math.inf:
            raise InputError(f"{self._where} has {value!r} as {key!r}; give seconds, 0 or more")
        return seconds

    def channel(self) -> int | None:
        value = self._values.get("channel")
        if value is None or (self._are_texts and value == ""):
            return None
        number = self._number(value)
        if number is None or not (0 <= number < 1 << 16 and number == int(number)):
            raise InputError(f"{self._where} has {value!r} as 'channel'; give its number, counted from 0")
        return int(number)

    def _number(self, value: object) -> float | None:
        if self._are_texts and isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                return None
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _number(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.6f}".rstrip("0").rstrip(".")
