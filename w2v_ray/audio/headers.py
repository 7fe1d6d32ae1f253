"""What the headers of files say about their length, where the decoders do not tell it.

libsndfile counts what is there and keeps to itself what was declared; neither decoder compares the checksum
of a FLAC. Nothing here is trusted with memory.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass

import numpy as np

from w2v_ray.audio.reader import GuardedFile, Samples

__all__ = [
    "DIGEST_DIFFERS",
    "FlacDigest",
    "FlacHeader",
    "data_shortage",
    "mp3_counted_s",
    "read_flac_header",
]

DIGEST_DIFFERS = (
    "the samples are not those of the checksum in the FLAC header: the file is damaged, so fetch it again"
)

_PIPED = 0x7FFF0000  # writers to a pipe do not know the length: they put 0, or about 2 or 4 GiB
_MAX_CHUNKS = 1000  # a file of empty chunks would be walked for minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class FlacHeader:
    """What the first block of a FLAC says."""

    num_frames: int
    """Samples per channel; 0: not known when it was written."""
    bits: int
    """Bits of a sample."""
    md5: bytes
    """Of all samples as little-endian integers; zeros: not known when it was written."""


def read_flac_header(source: GuardedFile) -> FlacHeader | None:
    """The header of a FLAC file; None for any other, FLAC in Ogg and behind a tag included."""
    head = source.read_at(0, 42)
    if len(head) < 42 or head[:4] != b"fLaC" or head[4] & 0x7F:
        return None
    (packed,) = struct.unpack(">Q", head[18:26])
    return FlacHeader(
        num_frames=packed & (1 << 36) - 1, bits=(packed >> 36 & 0x1F) + 1, md5=bytes(head[26:42])
    )


class FlacDigest:
    """The checksum of all samples of a FLAC, taken from the float32 blocks that it decodes to."""

    def __init__(self, header: FlacHeader) -> None:
        self._header = header
        self._md5 = hashlib.md5(usedforsecurity=False)

    def add(self, block: Samples) -> None:
        """Takes the next samples, shape (frames, channels)."""
        # Up to 24 bits a float32 holds every sample exactly, so the integers come back as they were.
        integers = np.rint(block * np.float32(2 ** (self._header.bits - 1))).astype("<i4")
        width = (self._header.bits + 7) // 8
        if width == 4:
            self._md5.update(integers.tobytes())
        else:
            self._md5.update(integers.view(np.uint8).reshape(-1, 4)[:, :width].tobytes())

    def is_wrong(self) -> bool:
        """Whether the samples differ from those that were encoded."""
        known = self._header.bits <= 24 and any(self._header.md5)
        return known and self._md5.digest() != self._header.md5


def data_shortage(source: GuardedFile) -> float:
    """How many times more data the header of a PCM container declares than the file has.

    Returns:
        1 where all is there, or the format declares nothing; infinity where none is there.
    """
    declared, there = _data_bytes(source)
    if declared <= 0:
        return 1.0
    return max(1.0, declared / there) if there > 0 else math.inf


def mp3_counted_s(source: GuardedFile) -> float | None:
    """The length by the frame count that encoders put into the first frame of an MP3 (Xing, Info, VBRI)."""
    head = source.read_at(0, 10)
    offset = 0
    if head[:3] == b"ID3" and len(head) == 10:  # each byte of a tag's size has seven bits
        offset = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    frame = source.read_at(offset, 200)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if at >= 4 and len(frame) >= at + 12 and frame[at + 7] & 1:
        (count,) = struct.unpack(">I", frame[at + 8 : at + 12])
    elif frame[36:40] == b"VBRI" and len(frame) >= 54:
        (count,) = struct.unpack(">I", frame[50:54])
    else:
        return None
    version = frame[1] >> 3 & 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    rate = (44_100, 48_000, 32_000, 0)[frame[2] >> 2 & 3] >> {3: 0, 2: 1}.get(version, 2)
    return float(count * (1152 if version == 3 else 576) / rate) if rate else None


def _data_bytes(source: GuardedFile) -> tuple[int, int]:
    """Bytes of samples by the header, and how many bytes follow it; zeros where no header is known."""
    head = source.read_at(0, 40)
    kind = head[:4]
    if len(head) < 40:
        return 0, 0
    if kind in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return _chunk(source, b"data", "<I" if kind != b"RIFX" else ">I", 12, ds64=kind[2:] == b"64")
    if kind == b"FORM":
        declared, there = _chunk(source, b"SSND", ">I", 12)
        return declared - 8, there - 8  # an offset and a block size come before the samples
    if kind == b"caff":
        declared, there = _chunk(source, b"data", ">q", 8, is_padded=False)
        return declared - 4, there - 4  # a count of edits comes before the samples
    if kind in (b".snd", b"dns."):
        offset, declared = struct.unpack(">II" if kind == b".snd" else "<II", head[4:12])
        return (0 if declared >= _PIPED else declared), source.size - offset
    if kind == b"riff" and head[24:28] == b"wave":
        return _wave64(source)
    if head[:7] == b"NIST_1A":
        return _sphere(source)
    return 0, 0


def _chunk(
    source: GuardedFile,
    name: bytes,
    size_format: str,
    offset: int,
    *,
    ds64: bool = False,
    is_padded: bool = True,
) -> tuple[int, int]:
    """Size of the chunk ``name`` by its header, and how many bytes the file has from there on."""
    width = 4 + struct.calcsize(size_format)
    data_bytes = 0
    for _ in range(_MAX_CHUNKS):
        header = source.read_at(offset, width)
        if len(header) < width:
            break
        (size,) = struct.unpack(size_format, header[4:])
        offset += width
        if ds64 and header[:4] == b"ds64":
            (data_bytes,) = struct.unpack("<Q", source.read_at(offset, 16)[8:].ljust(8, b"\0"))
        if header[:4] == name:
            if width == 8 and size >= _PIPED:
                size = data_bytes
            return size, source.size - offset
        if size < 0:
            break
        offset += size + (size % 2 if is_padded else 0)
    return 0, 0


def _wave64(source: GuardedFile) -> tuple[int, int]:
    offset = 40  # chunks are named by 16 bytes, of which the first four are as in a WAV
    for _ in range(_MAX_CHUNKS):
        header = source.read_at(offset, 24)
        if len(header) < 24:
            break
        (size,) = struct.unpack("<Q", header[16:])
        if header[:4] == b"data":
            return size - 24, source.size - offset - 24
        if size < 24:
            break
        offset += (size + 7) // 8 * 8
    return 0, 0


def _sphere(source: GuardedFile) -> tuple[int, int]:
    lines = source.read_at(0, 1024).split(b"\n")
    values = {words[0]: words[2] for line in lines[2:] if len(words := line.split(None, 2)) == 3}
    if b"," in values.get(b"sample_coding", b""):  # such as "pcm,embedded-shorten-v2.00": compressed
        return 0, 0
    try:
        begin = int(lines[1])
        counts = (b"sample_count", b"channel_count", b"sample_n_bytes")
        return math.prod(int(values[name]) for name in counts), source.size - begin
    except (KeyError, ValueError, IndexError):
        return 0, 0
