"""The pages of an Ogg file, checked as far as they are read: neither decoder says that one is lost.

Both leave out a damaged page. What follows is then too early, and with libsndfile, which later returns to
where it should be, a part of it comes twice.
"""

from __future__ import annotations

import struct
import zlib

from w2v_ray.audio.reader import GuardedFile
from w2v_ray.errors import DecodeError, TruncatedError

__all__ = ["OggPages"]

_HEADER = 27  # bytes before the table of segments
_LARGEST = _HEADER + 255 + 255 * 255
_LAST = 4  # the flag of a stream's last page
# Ogg's checksum is the CRC-32 of zip files with the bits of each byte the other way round.
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class OggPages:
    """Reads the pages of a file beside its decoder; of a file that is no Ogg, there are none."""

    def __init__(self, source: GuardedFile) -> None:
        self._source = source
        self._is_ogg = source.read_at(0, 4) == b"OggS"
        self._offset = 0
        self._is_ended = False
        self._streams: dict[int, tuple[int, int]] = {}  # serial -> number and position of its last page

    def check_to(self, offset: int) -> None:
        """Checks the pages that begin before ``offset``.

        Raises:
            DecodeError: One is damaged or missing, and others follow.
        """
        while self._is_ogg and self._offset < min(offset, self._source.size):
            page = self._page(self._offset)
            if page is None:
                if self._has_page_after(self._offset):
                    raise self._damage()
                self._offset = self._source.size  # the last one is torn, or something else follows it
                break
            flags, position, serial, number = struct.unpack("<xxxxxBqII", page[:22])
            before, reached = self._streams.get(serial, (number - 1, 0))
            if number != before + 1 and reached > 0:  # recordings of a running stream begin with any number
                raise self._damage()
            self._streams[serial] = number, max(position, reached)
            self._is_ended = bool(flags & _LAST)
            self._offset += len(page)

    def check_end(self, found_s: float) -> None:
        """Checks what is left, after ``found_s`` seconds of audio.

        Raises:
            DecodeError: As of ``check_to``.
            TruncatedError: The last page of the last stream is not there.
        """
        self.check_to(self._source.size)
        if self._is_ogg and not self._is_ended:
            raise TruncatedError(
                f"the audio ends at {found_s:.2f} s without the last page of its Ogg stream: the file is cut "
                "off, so fetch it again, or encode what is left of it again"
            )

    def _page(self, offset: int) -> bytes | None:
        """The page at ``offset``; None where there is none, or not a whole one."""
        head = self._source.read_at(offset, _HEADER + 255)
        if head[:4] != b"OggS" or len(head) < _HEADER:
            return None
        table = head[_HEADER : _HEADER + head[26]]
        page = self._source.read_at(offset, _HEADER + head[26] + sum(table))
        if len(table) < head[26] or len(page) < _HEADER + head[26] + sum(table):
            return None
        blank = page[:22] + bytes(4) + page[26:]  # the checksum is of the page without it
        value = zlib.crc32(blank.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
        return page if value.to_bytes(4, "big").translate(_REVERSED) == page[22:26] else None

    def _has_page_after(self, offset: int) -> bool:
        at = offset + 1
        while at < self._source.size:
            block = self._source.read_at(at, 4 * _LARGEST)
            if len(block) < 4:
                break
            found = block.find(b"OggS")
            if found >= 0 and self._page(at + found) is not None:
                return True
            at += found + 1 if found >= 0 else len(block) - 3
        return False

    def _damage(self) -> DecodeError:
        return DecodeError(
            f"a page of the Ogg stream is damaged or missing at byte {self._offset:,} of "
            f"{self._source.size:,}: fetch the file again"
        )
