"""Reading files, and parts of files, that must be as they were planned."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, cast

from w2v_ray.errors import ReadError
from w2v_ray.stores.answers import Answer, fetch
from w2v_ray.stores.listing import info
from w2v_ray.stores.places import is_local, refusal, split
from w2v_ray.stores.requests import explain

__all__ = ["local_head", "open_range", "read_bytes", "read_range"]

_PIECE_BYTES = 16 << 20  # what is larger comes in several requests at once
_PIECE_THREADS = 8

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def open_range(
    uri: str,
    byte_offset: int | None,
    byte_size: int | None,
    *,
    version: str | None = None,
    block_bytes: int = 1 << 20,
) -> BinaryIO:
    """Opens a file, or a part of one, for seeking and reading.

    Args:
        uri: The file.
        byte_offset: Where the part begins; None: the whole file.
        byte_size: Size of the part or file as planned; None: as it is.
        version: Of the file as planned, as in `FileInfo`; None: any, but one for all reads.
        block_bytes: What a small read fetches at once.

    Raises:
        ReadError: Here or from any later read: the file is missing, unreadable, or not of that size or
            version.
    """
    protocol, path = _split(uri)
    planned = _Planned(uri, byte_offset, byte_size, version)
    with _read_errors(uri), contextlib.ExitStack() as on_error:
        if protocol == "file":
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not block
            on_error.callback(os.close, descriptor)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ReadError(f"{uri!r} is not a regular file; name files only")
            size = status.st_size
            planned.check(Answer(size, f"mtime:{status.st_mtime_ns}"))

            def read(start: int, end: int) -> bytes:
                return os.pread(descriptor, end - start, start)
        else:
            if byte_size:  # the first read tells whether it is there, and of that size and version
                size = (byte_offset or 0) + byte_size
            else:
                found = info(uri)
                if found is None:
                    raise FileNotFoundError(uri)
                if found.kind != "file" or found.size is None:
                    raise ReadError(f"{uri!r} is not a file of a known size; name files only")
                size = found.size
                planned.check(Answer(size, found.version))

            def read(start: int, end: int) -> bytes:
                return fetch(protocol, path, start, end, check=planned.check)

        start = byte_offset or 0
        length = size - start if byte_size is None else byte_size
        part = _Part(uri, start, max(0, length), read, on_error.pop_all().close)
    return cast(BinaryIO, io.BufferedReader(part, block_bytes))


def read_range(
    uri: str, byte_offset: int | None, byte_size: int | None, *, version: str | None = None
) -> bytes:
    """Reads a whole file, or a whole part of one; arguments and errors are those of `open_range`."""
    if is_local(uri) or not byte_size:
        with open_range(uri, byte_offset, byte_size, version=version, block_bytes=1) as reader:
            size = reader.seek(0, io.SEEK_END)
            reader.seek(0)
            return reader.read(size)  # in one piece, unlike read()
    protocol, path = _split(uri)
    planned = _Planned(uri, byte_offset, byte_size, version)
    with _read_errors(uri):
        if byte_size > _PIECE_BYTES:
            return _in_pieces(protocol, path, planned, byte_offset or 0, byte_size)
        if byte_offset is None and protocol in ("s3", "http"):
            data = fetch(protocol, path, None, None, check=planned.check)
        else:  # one byte more, so that a file that grew shows where the answer says no size
            start = byte_offset or 0
            end = start + byte_size + (byte_offset is None)
            data = fetch(protocol, path, start, end, check=planned.check)
    if len(data) != byte_size:
        raise ReadError(planned.changed_size(len(data)))
    return data


def read_bytes(uri: str) -> bytes:
    """Reads a small file.

    Raises:
        OSError: It is missing or unreadable.
    """
    protocol, path = split(uri)
    if protocol == "file":
        with open(path, "rb") as file:
            return file.read()
    return fetch(protocol, path, None, None, check=lambda answer: None)


def local_head(uri: str, byte_offset: int | None, num_bytes: int) -> tuple[bytes, int] | None:
    """The first bytes of a local file, or from an offset on, and how many it has from there.

    Returns:
        None where ``uri`` is in a store, or is no file that can be read.
    """
    # What begins with a slash is a path already; planning asks this a million times.
    if not uri.startswith("/") and not is_local(uri):
        return None
    try:
        path = uri if uri.startswith("/") else split(uri)[1]
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not block
        try:
            status, start = os.fstat(descriptor), byte_offset or 0
            if not stat.S_ISREG(status.st_mode):
                return None
            return os.pread(descriptor, num_bytes, start), max(0, status.st_size - start)
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return None


def _split(uri: str) -> tuple[str, str]:
    if (reason := refusal(uri)) is not None:
        raise ReadError(f"{uri!r} {reason}")
    return split(uri)


def _in_pieces(protocol: str, path: str, planned: _Planned, offset: int, size: int) -> bytes:
    """A large part, by several requests at once; each is tried again by itself."""
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(_PIECE_THREADS, thread_name_prefix="pieces")
    data = bytearray(size)

    def read(begin: int) -> None:
        end = min(begin + _PIECE_BYTES, size)
        piece = fetch(protocol, path, offset + begin, offset + end, check=planned.check)
        if len(piece) != end - begin:
            raise ReadError(planned.changed_size(begin + len(piece)))
        data[begin:end] = piece

    futures = [_pool.submit(read, begin) for begin in range(0, size, _PIECE_BYTES)]
    try:
        for future in futures:
            future.result()
    finally:
        for future in futures:
            future.cancel()
    return bytes(data)


class _Planned:
    """What a file was planned as; the first answer about it settles what was left open."""

    def __init__(self, uri: str, offset: int | None, size: int | None, version: str | None) -> None:
        self._uri, self._offset, self._size, self._version = uri, offset, size, version

    def check(self, answer: Answer) -> None:
        """Compares what a store says; ReadError where it is another size or version."""
        if answer.version is not None:
            if self._version is None:
                self._version = answer.version
            if _kind(answer.version) == _kind(self._version) and answer.version != self._version:
                raise ReadError(
                    f"{self._uri!r} has changed since it was planned ({self._version} -> {answer.version}); "
                    "plan it again into a new output"
                )
        if answer.size is None:
            return
        found = answer.size - (self._offset or 0)
        if self._size is None and self._offset is None:
            self._size = answer.size
        if self._size is not None and (found < self._size or (self._offset is None and found > self._size)):
            raise ReadError(self.changed_size(max(0, found)))

    def changed_size(self, found: int) -> str:
        """The message where there are ``found`` bytes."""
        return _changed(self._uri, self._offset or 0, found, self._size or 0)


class _Part(io.RawIOBase):
    """The bytes ``[offset, offset + size)`` of a file as a file of their own."""

    def __init__(
        self, uri: str, offset: int, size: int, fetch: Callable[[int, int], bytes], close: Callable[[], None]
    ) -> None:
        self._uri, self._offset, self._size, self._fetch, self._close = uri, offset, size, fetch, close
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        start = self._offset + self._position
        with _read_errors(self._uri):
            data = self._fetch(start, start + wanted)
        if not data:
            raise ReadError(_changed(self._uri, self._offset, self._position, self._size))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._close()
        super().close()


@contextlib.contextmanager
def _read_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except ReadError:
        raise
    except FileNotFoundError as error:
        raise ReadError(f"{uri!r} does not exist; restore it, or leave it out") from error
    except PermissionError as error:
        raise ReadError(f"{uri!r} may not be read ({explain(error)}); grant the permission") from error
    except Exception as error:  # each store has its own errors
        raise ReadError(
            f"{uri!r} cannot be read ({explain(error)}); check the store, then try again"
        ) from error


def _kind(version: str) -> str:
    return version.partition(":")[0]


def _changed(uri: str, start: int, found: int, planned: int) -> str:
    return (
        f"{uri!r} has {found} bytes from byte {start} where {planned} were planned: it has changed; "
        "plan it again into a new output"
    )
