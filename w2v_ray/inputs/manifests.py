"""Lists and manifests: one recording, or a time range of one, per line.

A line that does not say what it has to stops planning, with its number. A file that does not exist does
not: it is planned, and rejected when it is read.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

from w2v_ray import stores
from w2v_ray.errors import InputError, ReadError
from w2v_ray.inputs.entries import Entry, encodable, metadata_json
from w2v_ray.schema import DAMAGE_KEY

__all__ = ["read_list", "read_manifest"]

_CHUNK = 4096  # lines looked up together
_REMOTE_THREADS = 32
_KNOWN_KEYS = {"audio_filepath", "offset", "duration", DAMAGE_KEY}

_JSON = json.JSONDecoder(parse_constant=lambda name: None)  # NaN, which JSON does not have, is null

_T = TypeVar("_T")


def read_list(uri: str) -> Iterator[stores.FileInfo]:
    """The files that a list names, one path or URL per line; relative ones are relative to the list.

    Raises:
        InputError: The list cannot be read, or names something that is no file.
    """
    named = ((_place(uri, number, line), None) for number, line in _lines(uri))
    for file, _ in _with_infos(uri, named):
        yield file


def read_manifest(uri: str) -> Iterator[Entry]:
    """The entries of a manifest: JSON objects, one per line or all in one array.

    ``audio_filepath`` is needed. With an ``offset`` the entry is a time range, ``duration`` long; without,
    ``duration`` is the length of the whole file. ``id`` or ``utt_id`` names the recording. All other keys
    become metadata.

    Raises:
        InputError: The manifest cannot be read, or a line lacks or garbles one of these keys.
    """
    named = ((_place(uri, line[0], _path(uri, *line)), line) for line in _objects(uri))
    for file, (number, values) in _with_infos(uri, named):
        yield _entry(uri, number, values, file)


def _lines(uri: str) -> Iterator[tuple[int, str]]:
    try:
        with (
            stores.open_range(uri, None, None) as file,
            io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape") as lines,
        ):
            for number, line in enumerate(lines, 1):
                if text := line.strip():
                    yield number, text
    except ReadError as error:
        raise InputError(str(error)) from error


def _objects(uri: str) -> Iterator[tuple[int, dict[str, object]]]:
    """The objects, each with its line; in an array with its position, from 1."""
    lines = _lines(uri)
    number, line = next(lines, (1, ""))
    if not line:
        return
    values: Iterable[tuple[int, object]]
    if line.startswith("["):
        array = _parse(uri, number, "\n".join(chain([line], (more for _, more in lines))))
        values = enumerate(array if isinstance(array, list) else [array], 1)
    else:
        values = ((number, _parse(uri, number, line)) for number, line in chain([(number, line)], lines))
    for number, value in values:
        if not isinstance(value, dict):
            raise InputError(f"line {number} of {uri!r} is {value!r:.60}; write one JSON object per line")
        yield number, value


def _parse(uri: str, number: int, text: str) -> object:
    try:
        return _JSON.decode(text)
    except ValueError as error:
        message = f"line {number} of {uri!r} is not JSON ({error}); write one object per line"
        raise InputError(message) from error


def _path(uri: str, number: int, values: dict[str, object]) -> str:
    path = values.get("audio_filepath")
    if not isinstance(path, str) or not path:
        raise InputError(
            f"line {number} of {uri!r} has no text under 'audio_filepath' "
            f"(its keys: {', '.join(values) or 'none'}); name the file there"
        )
    return path


def _place(uri: str, number: int, path: str) -> str:
    """What ``path`` means in the list or manifest ``uri``."""
    try:
        return stores.place_named_in(uri, path)
    except ValueError as error:
        raise InputError(f"line {number} of {uri!r} names {path!r}, which {error}") from error


def _with_infos(uri: str, named: Iterable[tuple[str, _T]]) -> Iterator[tuple[stores.FileInfo, _T]]:
    """Adds what the stores say about each file, and sees that there is at least one."""
    named = iter(named)
    num_files = num_found = 0
    first = ""
    with ThreadPoolExecutor(_REMOTE_THREADS) as pool:
        while chunk := list(islice(named, _CHUNK)):
            places = list(dict.fromkeys(place for place, _ in chunk))  # many ranges may be of one file
            in_threads = not all(stores.is_local(place) for place in places)
            infos = dict(zip(places, (pool.map if in_threads else map)(_info, places), strict=True))
            for place, rest in chunk:
                file = infos[place]
                if file.kind == "folder":
                    raise InputError(
                        f"{uri!r} names the folder {place!r}; name files, or give it as an input"
                    )
                first = first or place
                num_files += 1
                num_found += file.size is not None
                yield file, rest
    if num_files and not num_found:
        raise InputError(
            f"none of the {num_files} files that {uri!r} names exists (the first: {first!r}); correct the "
            "paths, which are relative to its folder"
        )


def _info(place: str) -> stores.FileInfo:
    try:
        return stores.info(place) or stores.FileInfo(place, "file")
    except PermissionError:
        return stores.FileInfo(place, "file")  # reading it will say so
    except Exception as error:  # each store has its own errors
        message = f"{place!r} cannot be looked up ({stores.explain(error)}); check the store"
        raise InputError(message) from error


def _entry(uri: str, number: int, values: dict[str, object], file: stores.FileInfo) -> Entry:
    start_s = _seconds(uri, number, values, "offset")
    duration_s = _seconds(uri, number, values, "duration") or None  # some write 0 for unknown
    end_s = None
    recording_id = file.uri
    if start_s is not None:
        end_s = None if duration_s is None else round(start_s + duration_s, 6)
        recording_id += f"#t={_number(start_s)},{'' if end_s is None else _number(end_s)}"
    used = set(_KNOWN_KEYS)
    for key in ("id", "utt_id"):
        name = values.get(key)
        if name is None or name == "":
            continue
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise InputError(f"line {number} of {uri!r} has {name!r} as {key!r}; give text")
        recording_id = encodable(str(name))
        used.add(key)
        break
    metadata = metadata_json({key: value for key, value in values.items() if key not in used})
    return Entry(recording_id, file.uri, None, file.size, file.version, start_s, end_s, duration_s, metadata)


def _seconds(uri: str, number: int, values: dict[str, object], key: str) -> float | None:
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise InputError(f"line {number} of {uri!r} has {value!r} as {key!r}; give seconds, 0 or more")
    return float(value)


def _number(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".")
