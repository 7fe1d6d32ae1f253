"""What is in a store: one name, a folder with all below it, or what matches a pattern."""

from __future__ import annotations

import glob
import os
import stat
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal

from w2v_ray.stores.answers import web_info
from w2v_ray.stores.places import local_uri, split
from w2v_ray.stores.requests import call, run

__all__ = ["FileInfo", "exists", "info", "list_files", "list_glob", "list_names"]

_FOLDERS_AT_ONCE = 16  # of a store
_LEVELS = 3  # of folders that are listed one by one, until there are enough to list at once


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One name in a store."""

    uri: str
    """Its canonical path or URL."""
    kind: Literal["file", "folder", "hidden", "hidden folder", "special"]
    """``hidden`` names begin with a dot or an underscore; ``special`` is neither a file nor a folder."""
    size: int | None = None
    """Bytes of a file; None where it cannot be told."""
    version: str | None = None
    """``mtime:<nanoseconds>`` or ``etag:<etag>`` of a file: another value means other content."""


def info(uri: str) -> FileInfo | None:
    """What is at ``uri``; None where nothing is.

    Raises:
        OSError: The store does not answer or refuses.
    """
    protocol, path = split(uri)
    try:
        if protocol == "file":
            return _local_info(path, os.stat(path))
        if protocol == "http":
            answer = run(protocol, lambda store: web_info(store, path))
            return FileInfo(path, "file", answer.size, answer.version)
        return _remote_info(protocol, call(protocol, "info", path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def exists(uri: str) -> bool:
    """Whether anything is at ``uri``; errors as `info`."""
    return info(uri) is not None


def list_files(folder: str) -> Iterator[FileInfo]:
    """Everything below ``folder`` in the order of its paths; nothing where there is no such folder.

    Hidden names are yielded as such and not looked into; links are followed, but never in a circle.

    Raises:
        OSError: Some folder cannot be listed.
    """
    protocol, path = split(folder)
    if protocol == "file":
        yield from _walk(path, ())
        return
    yield from _walk_store(protocol, path.rstrip("/"))


def list_names(folder: str) -> list[str]:
    """The names right below ``folder``, sorted; none where there is no such folder.

    Raises:
        OSError: The folder cannot be listed.
    """
    protocol, path = split(folder)
    try:
        if protocol == "file":
            return sorted(os.listdir(path))
        found = _listable(protocol, "ls", path, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(
        {name.rstrip("/").rpartition("/")[2] for name in found if name.strip("/") != path.strip("/")}
    )


def list_glob(pattern: str) -> list[FileInfo]:
    """What matches a shell pattern (``**`` spans folders), in the order of the paths.

    Raises:
        OSError: The store does not answer or refuses.
    """
    protocol, path = split(pattern)
    if protocol == "file":
        paths = glob.glob(path, recursive=True)
        return [found for match in sorted(set(paths)) if (found := info(local_uri(match))) is not None]
    remote = _listable(protocol, "glob", path, detail=True)
    return [_remote_info(protocol, remote[name]) for name in sorted(remote)]


def _walk_store(protocol: str, folder: str) -> Iterator[FileInfo]:
    """What is below a folder of a store: upper folders level by level, the rest in one piece for each folder.

    A piece takes a request for a thousand objects. Several are fetched at once, and few are held.
    """
    found: list[tuple[str, dict[str, Any] | None]] = []
    folders = [folder]
    whole: list[str] = []
    with ThreadPoolExecutor(_FOLDERS_AT_ONCE) as pool:
        for _ in range(_LEVELS):
            if len(folders) >= _FOLDERS_AT_ONCE:
                break
            upper, folders = folders, []
            for above, inside in zip(upper, pool.map(partial(_entries, protocol), upper), strict=True):
                own = [one for one in inside if one["name"].strip("/") == above.strip("/")]
                if any(one["type"] == "directory" for one in own):  # a//b, of which a// is no folder
                    whole.append(above)
                    continue
                for one in inside:
                    if one in own:  # an empty object that stands for the folder
                        continue
                    name = one["name"].strip("/")
                    if one["type"] == "directory" and not _is_hidden(name, above):
                        folders.append(name)
                    else:
                        found.append((name, one))
        found += [(name + "/", None) for name in (*folders, *whole)]
        found.sort(key=lambda one: one[0])  # as the paths below would be sorted
        waiting: deque[Future[dict[str, Any]]] = deque()
        left = iter([name[:-1] for name, entry in found if entry is None])
        for name in islice(left, _FOLDERS_AT_ONCE):
            waiting.append(pool.submit(_all_below, protocol, name))
        for name, entry in found:
            if entry is not None:
                yield _listed(protocol, name, entry, folder)
                continue
            below = waiting.popleft().result()
            for other in islice(left, 1):
                waiting.append(pool.submit(_all_below, protocol, other))
            for path in sorted(below):
                if not path.endswith("/"):
                    yield _listed(protocol, path.strip("/"), below[path], folder)


def _entries(protocol: str, folder: str) -> list[dict[str, Any]]:
    try:
        return list(_listable(protocol, "ls", folder, detail=True))
    except FileNotFoundError:
        return []


def _all_below(protocol: str, folder: str) -> dict[str, Any]:
    try:
        return dict(_listable(protocol, "find", folder, detail=True))
    except FileNotFoundError:  # removed meanwhile
        return {}


def _is_hidden(path: str, folder: str) -> bool:
    parts = path.removeprefix(folder.strip("/") + "/").split("/")
    return any(part.startswith((".", "_")) for part in parts)


def _listed(protocol: str, path: str, entry: dict[str, Any], folder: str) -> FileInfo:
    return (
        FileInfo(f"{protocol}://{path}", "hidden folder" if entry["type"] == "directory" else "hidden")
        if _is_hidden(path, folder)
        else _remote_info(protocol, entry)
    )


def _listable(protocol: str, method: str, path: str, **options: Any) -> Any:
    if protocol == "http":
        raise OSError("the web has no folders; name files, or give a list of them")
    return call(protocol, method, path, **options)


def _local_info(path: str, status: os.stat_result) -> FileInfo:
    if stat.S_ISREG(status.st_mode):
        return FileInfo(local_uri(path), "file", status.st_size, f"mtime:{status.st_mtime_ns}")
    return FileInfo(local_uri(path), "folder" if stat.S_ISDIR(status.st_mode) else "special")


def _remote_info(protocol: str, found: dict[str, Any]) -> FileInfo:
    uri = f"{protocol}://{found['name'].removeprefix('/')}"
    if found["type"] == "directory":
        return FileInfo(uri, "folder")
    etag = found.get("ETag") or found.get("etag")
    changed = found.get("LastModified") or found.get("last_modified") or found.get("created")
    version = "etag:" + etag.strip('"') if etag else f"mtime:{changed}" if changed else None
    return FileInfo(uri, "file", int(found["size"]), version)


def _walk(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[FileInfo]:
    try:
        status = os.stat(folder)
        with os.scandir(folder) as scan:
            entries = [(entry.name + "/" * entry.is_dir(), entry) for entry in scan]
    except (FileNotFoundError, NotADirectoryError):
        return
    here = (status.st_dev, status.st_ino)
    for name, entry in sorted(entries, key=lambda pair: pair[0]):  # with the slash: the order of whole paths
        if name.startswith((".", "_")):
            yield FileInfo(local_uri(entry.path), "hidden folder" if name.endswith("/") else "hidden")
        elif not name.endswith("/"):
            try:
                yield _local_info(entry.path, entry.stat())
            except OSError:  # a link to nothing, or a file deleted meanwhile: reading it will say so
                yield FileInfo(local_uri(entry.path), "file")
        elif (found := entry.stat()) and (found.st_dev, found.st_ino) in (*above, here):
            yield FileInfo(local_uri(entry.path), "special")  # a link to a folder that holds it
        else:
            yield from _walk(entry.path, (*above, here))
