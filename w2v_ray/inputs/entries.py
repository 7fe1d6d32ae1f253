"""An entry: one recording, or a time range of one, as an input names it; and which names look like audio."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import NamedTuple, cast

from w2v_ray.stores import FileInfo

__all__ = ["AUDIO_EXTENSIONS", "Entry", "encodable", "escape", "extension", "file_entry", "metadata_json"]

# Names by which files in folders and tars are taken for audio; their bytes have the last word.
_NAMES = """
3g2 3gp 8svx aac ac3 aif aifc aiff al alaw amr ape asf au avi awb caf dts eac3 flac flv gsm iff ircam
m4a m4b m4v mka mkv mov mp1 mp2 mp3 mp4 mpc mpeg mpg mpga nist oga ogg ogv opus paf pcm ra raw rf64 rm
sd2 snd sph spx svx tta ul ulaw voc vox w64 wav wave weba webm wma wmv wv
"""
AUDIO_EXTENSIONS = frozenset(f".{name}" for name in _NAMES.split())

# The percent sign itself, controls, what UTF-8 cannot hold, a leading slash, and the folder above.
_UNSAFE = re.compile(r"%|[\x00-\x1f\x7f\ud800-\udfff]|^/|(?<![^/])\.\.(?![^/])")

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode  # made once, as all entries need it


class Entry(NamedTuple):
    """One recording, or a time range of one."""

    recording_id: str
    """Unique and stable: the uri, or what the manifest or tar calls it."""
    uri: str
    """The file."""
    byte_offset: int | None = None
    """First byte in the file; None: the whole file."""
    byte_size: int | None = None
    """Bytes of the file or member; None where there was no such file, or a value's size is not known."""
    container: str | None = None
    """``gzip``: offset and size count in the unpacked stream; ``parquet:COLUMN`` or ``arrow:COLUMN``."""
    row: int | None = None
    """Of the Parquet or Arrow file."""
    version: str | None = None
    """Of the file: modification time or etag."""
    start_s: float | None = None
    """Start of the range in seconds; None: the beginning."""
    end_s: float | None = None
    """End of the range in seconds; None: the end."""
    channel: int | None = None
    """The one channel to take, from 0; None: as the job says."""
    duration_s: float | None = None
    """Seconds of the recording or range as far as the input says."""
    metadata: str | None = None
    """A JSON object, or None where the input says nothing more."""


def extension(name: str) -> str:
    """The extension of a path or URL in lower case with its dot; empty where there is none."""
    stem, dot, last = name.rpartition("/")[2].rpartition(".")
    return f".{last.lower()}" if dot and stem else ""


def file_entry(file: FileInfo) -> Entry:
    """The entry of a whole file."""
    return Entry(file.uri, file.uri, byte_size=file.size, version=file.version)


def metadata_json(values: Mapping[str, object]) -> str | None:
    """The values as a JSON object that can be encoded as UTF-8; None where there are none.

    Numbers that JSON does not have, such as what 1e999 is read as, are null.
    """
    if not values:
        return None
    try:
        text = _encode(values)
    except ValueError:
        values = cast(Mapping[str, object], _finite(values))
        text = _encode(values)
    return text if encodable(text) is text else json.dumps(values)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def escape(name: str) -> str:
    """A name as part of an id: encodable, on one line, never above its folder; percent-decoding undoes it."""
    return _UNSAFE.sub(lambda match: _percent(match[0]), name)


def encodable(text: str) -> str:
    """The text itself, escaped only if UTF-8 cannot hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, or bytes that were not UTF-8
        return escape(text)
    return text


def _percent(text: str) -> str:
    try:
        data = text.encode("utf-8", "surrogateescape")  # what was a byte is a byte again
    except UnicodeEncodeError:
        data = text.encode("utf-8", "surrogatepass")
    return "".join(f"%{byte:02X}" for byte in data)
