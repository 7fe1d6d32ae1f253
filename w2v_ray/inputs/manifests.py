"""Lists and JSON manifests: one recording, or a time range of one, per line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain

from w2v_ray import stores
from w2v_ray.errors import InputError
from w2v_ray.inputs.entries import Entry, file_entry
from w2v_ray.inputs.lhotse import is_cut, named_cut
from w2v_ray.inputs.named_files import Named, look_up, place_of, read_lines
from w2v_ray.inputs.rows import make_entry, path_of

__all__ = ["read_list", "read_manifest", "read_objects"]

_JSON = json.JSONDecoder(parse_constant=lambda name: None)  # NaN, which JSON does not have, is null


def read_list(uri: str) -> Iterator[stores.FileInfo]:
    """The files that a list names, one path or URL per line; relative ones are relative to the list.

    Raises:
        InputError: The list cannot be read, or names something that is no file.
    """
    named: Iterator[Named] = (
        (place_of(uri, f"line {number} of {uri!r}", line), file_entry) for number, line in read_lines(uri)
    )
    for entry in look_up(uri, named):
        yield stores.FileInfo(entry.uri, "file", entry.byte_size, entry.version)


def read_manifest(uri: str, *, path_key: str | None = None) -> Iterator[Entry]:
    """The entries of a manifest: JSON objects, one per line or all in one array, or Lhotse's cuts.

    The file is named by ``path_key``, or else by the first of `rows.PATH_KEYS` that an object has. With an
    ``offset`` the entry is a time range, ``duration`` long, and so it is with ``start`` and ``end``; without,
    ``duration`` is the length of the whole file. ``id`` or ``utt_id`` names the recording, ``channel`` takes
    one of its channels. All other keys become metadata.

    Raises:
        InputError: The manifest cannot be read, or a line lacks or garbles one of these keys.
    """
    yield from look_up(uri, _named(uri, path_key))


def _named(uri: str, path_key: str | None) -> Iterator[Named]:
    for number, values in read_objects(uri):
        where = f"line {number} of {uri!r}"
        if is_cut(values):
            path, make = named_cut(where, values)
            yield place_of(uri, where, path), make
            continue
        key, path = path_of(where, values, path_key)
        yield place_of(uri, where, path), partial(make_entry, where, values, key)


def read_objects(uri: str) -> Iterator[tuple[int, dict[str, object]]]:
    """The objects, each with its line; in an array with its position, from 1.

    Raises:
        InputError: The file cannot be read, or a line is no object.
    """
    lines = read_lines(uri)
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
