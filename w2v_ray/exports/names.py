"""Names of files for recordings: made from their ids, and back again.

Ids are anything: paths, URLs, what a manifest says. The folders that all ids of an output are below are
left out, and the rest keeps its tree. What a file system, another one, or a store cannot hold is escaped with
percent signs, so that no name leaves its folder and no two of them meet where case does not count.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import quote, unquote_to_bytes

from w2v_ray import stores

__all__ = ["FileNames", "common_root", "recording_id_of"]

_MAX_PART_BYTES = 200  # names end at 255, and an unfinished file has a longer one
_MAX_BYTES = 900  # keys of object stores end at 1024
_CUT_MARK = "%~"  # no escape: it is followed by two hexadecimal digits
_EMPTY = "%"  # for the same reason

# The percent sign itself, controls, bytes that were not UTF-8, and what Windows or S3 clients stumble over.
_UNSAFE = re.compile(r'[%\x00-\x1f\x7f\x80-\x9f\ud800-\udfff\\:*?"<>|]')
_ONLY_DOTS = re.compile(r"\.+")
_LOOKS_LIKE_CHANNEL = re.compile(r"\.(?=ch\d+$)", re.IGNORECASE)
_DOUBTFUL = re.compile(r"[^a-z0-9._#,=@+~ -]")  # where another name differs in case or composition alone
_ESCAPE = re.compile(r"%[0-9A-F]{2}")


def common_root(recording_ids: Iterable[str]) -> str:
    """The folders that every id is below, with the slash at their end; empty where there are none."""
    root: str | None = None
    for recording_id in recording_ids:
        path = _path(recording_id)
        if root is None:
            root = path[: path.rfind("/") + 1]
        else:
            while not path.startswith(root):
                root = root[: root.rfind("/", 0, -1) + 1]
    return root or ""


class FileNames:
    """The name of each recording's file, below the folder that receives them.

    Args:
        recording_ids: All ids of an output, also those that get no file now: so names stay what they are.
        extension: Of the files, with its dot.
    """

    def __init__(self, recording_ids: Iterable[str], extension: str) -> None:
        recording_ids = list(recording_ids)
        self.root = common_root(recording_ids)
        self._extension = extension
        seen: set[str] = set()
        self._meeting: set[str] = set()  # as a file system sees them to which case is the same
        for recording_id in recording_ids:
            key = _folded(self._escaped(recording_id, _UNSAFE))
            if key in seen:
                self._meeting.add(key)
            seen.add(key)

    def name(self, recording_id: str, channel: int | None = None) -> str:
        """The path of the recording's file, or of the file of one of its channels, from 0."""
        name = self._escaped(recording_id, _UNSAFE)
        if _folded(name) in self._meeting:
            name = self._escaped(recording_id, _DOUBTFUL)
        parts = name.split("/")
        if len(name.encode()) > _MAX_BYTES or max(len(part.encode()) for part in parts) > _MAX_PART_BYTES:
            name = _cut(parts[-1]) + _CUT_MARK + hashlib.sha256(recording_id.encode()).hexdigest()[:32]
        return name + ("" if channel is None else f".ch{channel + 1}") + self._extension

    def _escaped(self, recording_id: str, unsafe: re.Pattern[str]) -> str:
        *folders, last = _path(recording_id).removeprefix(self.root).split("/")
        parts = [_part(folder, unsafe) for folder in folders]
        # A folder never has the name that a file may have.
        end = len(self._extension)
        for number, part in enumerate(parts):
            if part.lower().endswith(self._extension.lower()):
                parts[number] = f"{part[:-end]}%2E{part[-end + 1 :]}"
        return "/".join([*parts, _LOOKS_LIKE_CHANNEL.sub("%2E", _part(last, unsafe))])


def recording_id_of(name: str, root: str, extension: str) -> str | None:
    """The id that a file is named after; None where it was too long for a name.

    Args:
        name: The path of the file below the folder of the export.
        root: That of the export's summary.
        extension: Of the export's files, with its dot.
    """
    stem = re.sub(r"\.ch\d+$", "", name.removesuffix(extension))
    if _CUT_MARK in stem:
        return None
    parts = ["" if part == _EMPTY else part for part in stem.split("/")]
    path = root.encode("utf-8", "surrogateescape") + unquote_to_bytes("/".join(parts))
    try:
        return path.decode()
    except UnicodeDecodeError:
        return "file://" + quote(path)


def _path(recording_id: str) -> str:
    """The id; of a local file whose name is not UTF-8 its path, so that it is beside its neighbours."""
    if recording_id.startswith("file://"):
        path = os.fsdecode(unquote_to_bytes(recording_id[len("file://") :]))
        if stores.is_local(path) and stores.canonical(path) == recording_id:
            return path
    return recording_id


def _part(text: str, unsafe: re.Pattern[str]) -> str:
    """A name between two slashes."""
    if not text:
        return _EMPTY
    if _ONLY_DOTS.fullmatch(text):
        return "%2E" * len(text)
    return unsafe.sub(_percent, text)


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _cut(part: str) -> str:
    """The beginning of a name, never with half an escape or character at its end."""
    text = part.encode()[: _MAX_PART_BYTES // 2].decode(errors="ignore")
    head, percent, last = text.rpartition("%")
    return text if not percent or _ESCAPE.match(percent + last) else head
