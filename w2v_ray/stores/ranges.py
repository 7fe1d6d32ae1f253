"""Reading files, and parts of files, that must be as they were planned."""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from w2v_ray.errors import ReadError
from w2v_ray.stores.places import explain, filesystem, is_local, refusal, split, with_retries

__all__ = ["open_range", "read_bytes", "read_range"]


def open_range(
    uri: str, byte_offset: int | None, byte_size: int | None, *, block_bytes: int = 1 << 20
) -> BinaryIO:
    """Opens a file, or a part of one, for seeking and reading.

    Args:
        uri: The file.
        byte_offset: Where the part begins; None: the whole file.
        byte_size: Size of the part or file as planned; None: as it is.
        block_bytes: What a small read fetches at once.

    Raises:
        ReadError: Here or from any later read: the file is missing, unreadable or not of that size.
    """
    protocol, path = split(uri)
    with _read_errors(uri), contextlib.ExitStack() as on_error:
        if protocol == "file":
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not block
            on_error.callback(os.close, descriptor)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ReadError(f"{uri!r} is not a regular file; name files only")
            size = status.st_size

            def fetch(start: int, end: int) -> bytes:
                return os.pread(descriptor, end - start, start)
        else:
            store = filesystem(protocol)
            if byte_offset is None or byte_size is None:
                size = int(with_retries(lambda: store.info(path))["size"])
            else:  # of a part, the first read tells whether it is there
                size = byte_offset + byte_size

            def fetch(start: int, end: int) -> bytes:
                return bytes(with_retries(lambda: store.cat_file(path, start=start, end=end)))

        start = byte_offset or 0
        found = size - start
        if byte_size is not None and (found < byte_size or (byte_offset is None and found > byte_size)):
            raise ReadError(_changed(uri, start, found, byte_size))
        length = found if byte_size is None else byte_size
        part = _Part(uri, start, max(0, length), fetch, on_error.pop_all().close)
    return cast(BinaryIO, io.BufferedReader(part, block_bytes))


def read_range(uri: str, byte_offset: int | None, byte_size: int | None) -> bytes:
    """Reads a whole file, or a whole part of one; arguments and errors are those of `open_range`."""
    if is_local(uri) or not byte_size:
        with open_range(uri, byte_offset, byte_size, block_bytes=1) as reader:
            size = reader.seek(0, io.SEEK_END)
            reader.seek(0)
            return reader.read(size)  # in one piece, unlike read()
    protocol, path = split(uri)
    start = byte_offset or 0
    end = start + byte_size + (byte_offset is None)  # one more: so a file that grew shows in the same request
    with _read_errors(uri):
        data = bytes(with_retries(lambda: filesystem(protocol).cat_file(path, start=start, end=end)))
    if len(data) != byte_size:
        raise ReadError(_changed(uri, start, len(data), byte_size))
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
    return bytes(with_retries(lambda: filesystem(protocol).cat_file(path)))


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
    if (reason := refusal(uri)) is not None:
        raise ReadError(f"{uri!r} {reason}")
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


def _changed(uri: str, start: int, found: int, planned: int) -> str:
    return (
        f"{uri!r} has {found} bytes from byte {start} where {planned} were planned: it has changed; "
        "plan it again into a new output"
    )
