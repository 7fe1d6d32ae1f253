"""The index of a tar: where each audio member lies, and what small files of the same name say about it.

Headers are read and data is skipped; nothing is extracted and no link is followed. A tar must end as tars
end: what is cut off, broken or hidden behind its end becomes an entry that reading will reject. A gzipped tar
is unpacked once to find its members, whose places are those in the unpacked stream.
"""

from __future__ import annotations

import json
import math
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, cast

from w2v_ray import stores
from w2v_ray.audio.plain_headers import read_plain_header
from w2v_ray.containers import GzipStream, StreamDamage
from w2v_ray.errors import InputError, ReadError
from w2v_ray.inputs.entries import AUDIO_EXTENSIONS, Entry, escape, extension, metadata_json
from w2v_ray.schema import DAMAGE_KEY

__all__ = ["index_tar", "is_tar"]

_BLOCK = tarfile.BLOCKSIZE
_LOCAL_BLOCK_BYTES = 1 << 13
_REMOTE_BLOCK_BYTES = 1 << 22  # small members follow each other: fewer requests than one per header
_MAX_SIDECAR_BYTES = 1 << 16
_MAX_EXTENSION_BYTES = 1 << 20

_GZIPPED = (".tar.gz", ".tgz")
_PLAIN = {".wav", ".flac"}
_SIDECARS = {".json", ".txt", ".cls"}
_LINKS = {tarfile.LNKTYPE, tarfile.SYMTYPE}
_WITHOUT_DATA = _LINKS | {tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE}
_PAX = {tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE}
_EXTENSIONS = _PAX | {tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}


class _Member(NamedTuple):
    name: str
    offset: int
    size: int
    data: bytes = b""
    """Of a small file that says something about others; else empty."""
    duration_s: float | None = None
    """Of audio whose header, which lies where this reads anyway, tells it at a glance."""


class _Damage(StreamDamage):
    """What is wrong with a tar, as the end of a sentence."""


def is_tar(name: str) -> bool:
    """Whether a path or URL is that of a tar, perhaps gzipped, by its end."""
    return name.lower().endswith((".tar", *_GZIPPED))


def index_tar(tar: stores.FileInfo) -> tuple[list[Entry], Counter[str]]:
    """Lists the audio in a tar.

    Returns:
        An entry per audio member, in order, and one for the tar itself if it is damaged; and how many
        members were not taken, by reason.

    Raises:
        InputError: The store does not give the file.
    """
    index = _Index()
    damage = None
    is_gzipped = tar.uri.lower().endswith(_GZIPPED)
    block_bytes = _REMOTE_BLOCK_BYTES if is_gzipped or not stores.is_local(tar.uri) else _LOCAL_BLOCK_BYTES
    try:
        with stores.open_range(tar.uri, None, None, block_bytes=block_bytes) as file:
            try:
                for member in _members(file, is_gzipped, index.skipped):
                    index.add(member)
            except StreamDamage as error:
                damage = str(error)
    except ReadError as error:
        raise InputError(f"{error} (planning has to look into every tar)") from error
    entries = index.entries(tar, "gzip" if is_gzipped else None)
    if damage is not None:
        text = (
            f"{tar.uri!r} {damage}; repair it, as only the {len(entries)} recordings before that are planned"
        )
        metadata = metadata_json({DAMAGE_KEY: text})
        entries.append(
            Entry(
                tar.uri, tar.uri, byte_size=tar.size, version=tar.version, duration_s=0.0, metadata=metadata
            )
        )
    return entries, index.skipped


class _Index:
    """The members of a tar, sorted into audio, what is said about it, and the rest."""

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self._audio: list[_Member] = []
        self._sidecars: dict[str, dict[str, bytes]] = {}

    def add(self, member: _Member) -> None:
        kind = extension(member.name)
        if member.name.rpartition("/")[2].startswith("."):
            self.skipped["hidden members of tars"] += 1
        elif kind in AUDIO_EXTENSIONS:
            self._audio.append(member)
        elif _is_sidecar(member.name, member.size):
            self._sidecars.setdefault(member.name[: -len(kind)], {})[kind] = member.data
        else:
            self.skipped[f"{kind} members of tars" if kind else "members of tars without an extension"] += 1

    def entries(self, tar: stores.FileInfo, container: str | None) -> list[Entry]:
        entries = []
        times: Counter[str] = Counter()
        for name, offset, size, _, duration_s in self._audio:
            times[name] += 1
            nth = (
                f"#{times[name]}" if times[name] > 1 else ""
            )  # a tar may hold a name twice, and both are there
            sidecars = self._sidecars.get(name[: -len(extension(name))], {})
            entries.append(
                Entry(
                    recording_id=f"{tar.uri}#{escape(name)}{nth}",
                    uri=tar.uri,
                    byte_offset=offset,
                    byte_size=size,
                    container=container,
                    version=tar.version,
                    duration_s=duration_s,
                    metadata=metadata_json(_metadata(sidecars)) if sidecars else None,
                )
            )
        keys = {member.name[: -len(extension(member.name))] for member in self._audio}
        for key, sidecars in self._sidecars.items():
            if key not in keys:
                self.skipped.update(f"{kind} members of tars" for kind in sidecars)
        return entries


def _is_sidecar(name: str, size: int) -> bool:
    return extension(name) in _SIDECARS and size <= _MAX_SIDECAR_BYTES


def _members(packed: BinaryIO, is_gzipped: bool, skipped: Counter[str]) -> Iterator[_Member]:
    """Walks the headers forward to the end; raises StreamDamage where they cease to make sense."""
    file: BinaryIO
    if is_gzipped:
        file, end = cast(BinaryIO, GzipStream(packed)), math.inf
    else:
        file, end = packed, packed.seek(0, os.SEEK_END)
    position = 0
    name: str | None = None  # and a size: from headers that extend the next one
    size: int | None = None
    while True:
        file.seek(position)
        block = file.read(_BLOCK)
        if len(block) == _BLOCK and not block.strip(b"\0"):
            return _check_end(file, position + _BLOCK)
        header = _header(block, position)
        data_at = position + _BLOCK
        if header.type in _EXTENSIONS:
            data = file.read(min(header.size, _MAX_EXTENSION_BYTES))
            if len(data) != header.size:
                raise _Damage(f"has a broken header at byte {position}")
            if header.type == tarfile.GNUTYPE_LONGNAME:
                name = data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
            elif header.type in _PAX:
                path, size = _pax(data, position)
                name = path or name
            position = data_at + _padded(header.size)
            continue
        member = _Member(name or header.name, data_at, header.size if size is None else size)
        name = size = None
        position = data_at
        if header.type in _LINKS:
            skipped["links in tars"] += 1
        if header.type not in _WITHOUT_DATA:
            data_end = data_at + member.size
            if data_end <= end and _is_sidecar(member.name, member.size):
                member = member._replace(data=file.read(member.size))
            elif data_end <= end and not is_gzipped and extension(member.name) in _PLAIN:
                member = member._replace(duration_s=_duration_s(file, data_at, member.size))
            there = file.seek(data_end) if is_gzipped else end  # of a stream the end shows only there
            if there < data_end:
                raise _Damage(f"is cut off inside its member {member.name!r}, at byte {there}")
            position += _padded(member.size)
            yield member


class _Header(NamedTuple):
    """What of a header block says where data lies; tarfile parses the rest as well, in twice the time."""

    name: str
    size: int
    type: bytes


def _header(block: bytes, position: int) -> _Header:
    if not block:
        raise _Damage(f"ends without its end mark, at byte {position}" if position else "is empty (0 bytes)")
    if len(block) < _BLOCK:
        raise _Damage(f"is cut off inside a header, at byte {position + len(block)}")
    try:
        checksum, size = _number(block[148:156]), _number(block[124:136])
    except ValueError as error:
        raise _Damage(f"has a broken header at byte {position}") from error
    rest = block[:148] + b" " * 8 + block[156:]
    # Half of Adler-32 is the sum of the bytes and one, below a prime that no 256 bytes can reach.
    expected = (zlib.adler32(rest[:256]) & 0xFFFF) + (zlib.adler32(rest[256:]) & 0xFFFF) - 2
    if checksum != expected:  # some old writers took the bytes for signed numbers
        expected -= 256 * sum(byte > 127 for byte in rest)
    if checksum != expected or size < 0:
        raise _Damage(f"has a broken header at byte {position}")
    name, type_ = _text(block[:100]), block[156:157]
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    if type_ == tarfile.AREGTYPE and name.endswith("/"):
        type_ = tarfile.DIRTYPE
    header = _Header(name, size, type_)
    if header.type == tarfile.GNUTYPE_SPARSE:
        raise _Damage(f"stores {header.name!r} as a sparse file, which is not read")
    return header


def _number(field: bytes) -> int:
    """A number in octal digits, or in binary with the first bit set, as GNU tar writes large ones."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:]) - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _pax(data: bytes, position: int) -> tuple[str | None, int | None]:
    """The path and size that an extended header gives the next member."""
    path = size = None
    while data.strip(b"\0"):
        digits = data.partition(b" ")[0]
        length = int(digits) if digits.isdigit() and len(digits) < 9 else 0
        if not len(digits) + 1 < length <= len(data):
            raise _Damage(f"has a broken extended header at byte {position}")
        key, _, value = data[len(digits) + 1 : length - 1].partition(b"=")
        data = data[length:]
        if key == b"path":
            path = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            if not (value.isdigit() and len(value) < 20):
                raise _Damage(f"has a broken extended header at byte {position}")
            size = int(value)
        elif key.startswith(b"GNU.sparse."):
            raise _Damage(f"stores the member at byte {position} as a sparse file, which is not read")
    return path, size


def _duration_s(file: BinaryIO, begin: int, size: int) -> float | None:
    """The length of a member, where its header tells it at a glance."""

    def read_at(offset: int, count: int) -> bytes:
        file.seek(begin + offset)
        return file.read(max(0, min(count, size - offset)))

    header = read_plain_header(read_at, size)
    return None if header is None else header.num_frames / header.sample_rate_hz


def _check_end(file: BinaryIO, position: int) -> None:
    """After the zeros that end a tar nothing may follow: readers that stop there would lose it."""
    file.seek(position)
    while data := file.read(1 << 20):
        if rest := data.lstrip(b"\0"):
            at = position + len(data) - len(rest)
            raise _Damage(f"goes on at byte {at}, after its end mark (are these joined tars?)")
        position += len(data)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _metadata(sidecars: dict[str, bytes]) -> dict[str, object]:
    """The keys of the JSON object beside a recording, and its text and class."""
    values: dict[str, object] = {}
    for kind, data in sorted(sidecars.items()):
        text = data.decode("utf-8", "surrogateescape")
        if kind == ".json":
            try:
                parsed = json.loads(text, parse_constant=lambda name: None)
            except ValueError:
                parsed = text
            values |= parsed if isinstance(parsed, dict) else {"json": parsed}
        else:
            values["text" if kind == ".txt" else "cls"] = text.strip()
    values.pop(DAMAGE_KEY, None)
    return values
