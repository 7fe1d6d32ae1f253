"""A gzip file as the bytes that it unpacks to, read forward, within limits that no honest file reaches."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any, BinaryIO

__all__ = ["GzipStream", "StreamDamage"]

_MAX_RATIO = 100  # digital silence in a WAV passes this, speech never comes near it
_FREE_BYTES = 64 << 20  # may come of any file, however small
_MAX_BYTES = 1 << 40
_DISCARD_BYTES = 1 << 18


class StreamDamage(Exception):
    """What is wrong with a file, as the end of a sentence that begins with its name."""


class GzipStream(io.RawIOBase):
    """Reads forward only: ``seek`` skips, and returns the place that it came to.

    Args:
        file: The packed file, which stays open.

    Raises:
        StreamDamage: From any read: the file is cut off or broken, or unpacks to more than 100 times its
            size, or to more than a TiB.
        ReadError: The store does not give the file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._packed = file
        self._unpacked = gzip.GzipFile(fileobj=file, mode="rb")
        self._position = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._unpacked.read(len(buffer))
        except EOFError as error:
            raise StreamDamage(
                f"is cut off: its gzip stream ends within, after {self._position} unpacked bytes"
            ) from error
        except (zlib.error, gzip.BadGzipFile) as error:
            raise StreamDamage(f"is no whole gzip stream after {self._position} unpacked bytes") from error
        self._position += len(data)
        packed = max(1, self._packed.tell())
        if self._position > _FREE_BYTES + _MAX_RATIO * packed or self._position > _MAX_BYTES:
            raise StreamDamage(
                f"unpacks to more than {_MAX_RATIO} times its size ({self._position} bytes from {packed} so "
                "far), where reading stops"
            )
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Exactly ``size`` bytes, fewer only at the end; all that is left where it is negative."""
        pieces = []
        while size:
            piece = super().read(_DISCARD_BYTES if size < 0 else min(size, _DISCARD_BYTES))
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece) if size > 0 else 0
        return b"".join(pieces)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET, whence
        assert offset >= self._position, "a stream cannot go back"
        while self._position < offset:
            if not super().read(min(offset - self._position, _DISCARD_BYTES)):
                break
        return self._position
