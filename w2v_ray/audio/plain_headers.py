"""Headers of WAV and FLAC files that leave nothing to interpret: their length without a decoder.

Planning looks at every header, and opening a decoder costs it ten times as much as these few bytes do. What
is here is only what libsndfile says as well; of any doubt the answer is None, and the decoders are asked.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from w2v_ray.audio.reader import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ, holds_frames

__all__ = ["PlainHeader", "read_plain_header"]

_HEAD_BYTES = 1024
_MAX_DATA_BYTES = 0x7FFF0000  # from there on sizes are those of writers to a pipe, which do not know theirs
_FORMAT = struct.Struct("<HHIIHH")
_CHUNK = struct.Struct("<4sI")
_WAV_CODECS = {
    (1, 8): "PCM_U8",
    (1, 16): "PCM_16",
    (1, 24): "PCM_24",
    (1, 32): "PCM_32",
    (3, 32): "FLOAT",
    (3, 64): "DOUBLE",
    (6, 8): "ALAW",
    (7, 8): "ULAW",
}
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")  # of subformats that are tags, after the tag
_FLAC_BITS = {8: "PCM_S8", 16: "PCM_16", 24: "PCM_24"}
_FLAC_BLOCKS = 128
_MAX_COMMENT_BYTES = 1 << 14
_STREAM_INFO, _PADDING, _SEEK_TABLE, _COMMENT = 0, 1, 3, 4
_SEEK_POINT_BYTES = 18


class PlainHeader(NamedTuple):
    """What such a header says."""

    num_frames: int
    """Samples per channel, all of which the file has room for."""
    sample_rate_hz: int
    """Samples per second and channel."""
    num_channels: int
    """Channels."""
    codec: str
    """Container/codec, as libsndfile names them."""


def read_plain_header(read_at: Callable[[int, int], bytes], size: int) -> PlainHeader | None:
    """The header of a WAV or FLAC file; None for any other, and for one that is unusual in any way.

    Args:
        read_at: Gives bytes from an offset, at most so many; fewer only at the end of the file.
        size: Bytes of the file.
    """
    head = read_at(0, _HEAD_BYTES)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        header = _wav_header(head, size)
    elif head[:4] == b"fLaC" and len(head) >= 42:
        header = _flac_header(head, read_at)
    else:
        return None
    if header is None or not holds_frames(header.num_frames, size):
        return None
    is_speech = MIN_RATE_HZ <= header.sample_rate_hz <= MAX_RATE_HZ and header.num_channels <= MAX_CHANNELS
    return header if is_speech else None


def _wav_header(head: bytes, size: int) -> PlainHeader | None:
    """Of a file that ends where its samples end, and has little before them."""
    offset = 12
    found: tuple[int, int, int, str] | None = None
    while offset + 8 <= len(head):
        name, length = _CHUNK.unpack_from(head, offset)
        offset += 8
        if name == b"data":
            if (
                found is None
                or length >= _MAX_DATA_BYTES
                or not offset + length <= size <= offset + length + 1
            ):
                return None
            rate, channels, width, codec = found
            return PlainHeader(length // width, rate, channels, codec)
        if name == b"fmt ":
            if found is not None or (found := _wav_format(head[offset : offset + length], length)) is None:
                return None
        elif name == b"LIST":
            if not _is_info(head[offset : offset + length], length):
                return None
        elif found is None or (name, length) not in ((b"fact", 4), (b"PEAK", 8 + 8 * found[1])):
            return None
        offset += length + length % 2
    return None


def _wav_format(data: bytes, length: int) -> tuple[int, int, int, str] | None:
    """Rate, channels, bytes of a frame and codec."""
    if length not in (16, 18, 40) or len(data) < length:
        return None
    tag, channels, rate, bytes_per_s, width, bits = _FORMAT.unpack_from(data)
    container = "WAV"
    if length == 40:
        valid_bits, tag_of_guid = struct.unpack_from("<H4xH", data, 18)
        if tag != 0xFFFE or data[16:18] != b"\x16\0" or valid_bits != bits or data[26:] != _GUID_TAIL:
            return None
        container, tag = "WAVEX", tag_of_guid
    codec = _WAV_CODECS.get((tag, bits))
    if codec is None or not channels or width != channels * bits // 8 or bytes_per_s != rate * width:
        return None
    return rate, channels, width, f"{container}/{codec}"


def _is_info(data: bytes, length: int) -> bool:
    """Whether a list holds one text: the name of the program, as FFmpeg writes it."""
    if len(data) < length or length < 12 or data[:8] != b"INFOISFT":
        return False
    text_bytes = int.from_bytes(data[8:12], "little")
    return 12 + text_bytes + text_bytes % 2 == length


def _flac_header(head: bytes, read_at: Callable[[int, int], bytes]) -> PlainHeader | None:
    """Of a file whose blocks of metadata lead to its first frame."""
    if head[4] & 0x7F != _STREAM_INFO or head[5:8] != b"\0\0\x22":
        return None
    offset, is_last = 42, head[4] >> 7
    for _ in range(_FLAC_BLOCKS):
        block = head[offset : offset + 4] if offset + 4 <= len(head) else read_at(offset, 4)
        if len(block) < 4:
            return None
        if is_last:
            break
        kind, length = block[0] & 0x7F, int.from_bytes(block[1:])
        offset += 4
        if kind == _COMMENT:
            text = head[offset : offset + length]
            if len(text) < length <= _MAX_COMMENT_BYTES:
                text = read_at(offset, length)
            if not _is_comment(text, length):
                return None
        elif kind != _PADDING and (kind != _SEEK_TABLE or length % _SEEK_POINT_BYTES):
            return None
        is_last = block[0] >> 7
        offset += length
    if not is_last or block[0] != 0xFF or block[1] & 0xFE != 0xF8:
        return None
    smallest, largest = struct.unpack_from(">HH", head, 8)
    packed = int.from_bytes(head[18:26])
    codec = _FLAC_BITS.get((packed >> 36 & 0x1F) + 1)
    if codec is None or not 16 <= smallest <= largest:
        return None
    return PlainHeader(packed & (1 << 36) - 1, packed >> 44, (packed >> 41 & 7) + 1, f"FLAC/{codec}")


def _is_comment(data: bytes, length: int) -> bool:
    """Whether the texts of a comment fill it: libFLAC gives up some files where they do not."""
    if len(data) < length or length < 8:
        return False
    offset = 4 + int.from_bytes(data[:4], "little")
    count = int.from_bytes(data[offset : offset + 4], "little")
    offset += 4
    for _ in range(min(count, length)):
        offset += 4 + int.from_bytes(data[offset : offset + 4], "little")
        if offset > length:
            return False
    return offset == length
