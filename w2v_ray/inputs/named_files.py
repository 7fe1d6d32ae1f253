"""What lists, manifests and tables have in common: lines of text, and the files that they name.

A line that does not say what it has to stops planning, with its number. A file that does not exist does
not: it is planned, and rejected when it is read.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TextIO

from w2v_ray import stores
from w2v_ray.containers import GzipStream, StreamDamage
from w2v_ray.errors import InputError, ReadError
from w2v_ray.inputs.entries import Entry

__all__ = ["Named", "look_up", "open_text", "place_of", "read_lines"]

_CHUNK = 4096  # lines looked up together
_REMOTE_THREADS = 32

Named = tuple[str, Callable[[stores.FileInfo], Entry]]
"""A file, and what makes an entry of what the stores say about it."""


@contextlib.contextmanager
def open_text(uri: str) -> Iterator[TextIO]:
    """Opens a text file, which may be gzipped, with its line ends as they are.

    Raises:
        InputError: Here or from any later read: the file cannot be read.
    """
    try:
        with stores.open_range(uri, None, None) as file:
            raw = io.BufferedReader(GzipStream(file)) if uri.lower().endswith(".gz") else file
            with io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
                yield lines
    except ReadError as error:
        raise InputError(str(error)) from error
    except StreamDamage as damage:
        raise InputError(f"{uri!r} {damage}; fetch or make it again") from damage


def read_lines(uri: str) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, without their ends, each with its number; errors as `open_text`."""
    with open_text(uri) as lines:
        for number, line in enumerate(lines, 1):
            if text := line.strip():
                yield number, text


def place_of(uri: str, where: str, path: str) -> str:
    """What ``path`` means at ``where`` in the list or manifest ``uri``.

    Raises:
        InputError: The list may not name it.
    """
    try:
        return stores.place_named_in(uri, path)
    except ValueError as error:
        raise InputError(f"{where} names {path!r}, which {error}") from error


def look_up(uri: str, named: Iterable[Named]) -> Iterator[Entry]:
    """Asks the stores about each file that ``uri`` names, and sees that there is at least one.

    Raises:
        InputError: A folder is named, no file exists, or a store does not answer.
    """
    named = iter(named)
    num_files = num_found = 0
    first = ""
    with ThreadPoolExecutor(_REMOTE_THREADS) as pool:
        while chunk := list(islice(named, _CHUNK)):
            places = list(dict.fromkeys(place for place, _ in chunk))  # many ranges may be of one file
            in_threads = not all(stores.is_local(place) for place in places)
            infos = dict(zip(places, (pool.map if in_threads else map)(_info, places), strict=True))
            for place, entry in chunk:
                file = infos[place]
                if file.kind == "folder":
                    raise InputError(
                        f"{uri!r} names the folder {place!r}; name files, or give it as an input"
                    )
                first = first or place
                num_files += 1
                num_found += file.size is not None
                yield entry(file)
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
