"""Opens audio by its content, whatever its name: libsndfile first, FFmpeg for the rest.

Everything is decoded in bounded blocks of float32. What is damaged, endless or outside the limits is refused
with the reason, and what is cut off is marked: nothing is ever returned shorter without a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from w2v_ray.audio.ffmpeg import open_ffmpeg, walk_packets
from w2v_ray.audio.plain_headers import read_plain_header
from w2v_ray.audio.reader import SLACK_S, AudioReader, GuardedFile
from w2v_ray.audio.sndfile import open_sndfile
from w2v_ray.errors import DecodeError

__all__ = ["AudioInfo", "AudioReader", "measure_duration", "open_audio", "probe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioInfo:
    """What the header of a file says."""

    duration_s: float | None
    """Length in seconds; None where the header gives none, or one the file cannot hold."""
    duration_is_exact: bool
    """False where the length is FFmpeg's estimate from the bit rate, as for MP3 without a frame count."""
    sample_rate_hz: int
    """Samples per second and channel."""
    num_channels: int
    """Channels."""
    codec: str
    """Container/codec, as the decoder names them."""


def open_audio(file: BinaryIO) -> AudioReader:
    """Opens a recording by what its bytes are; no extension is looked at.

    Args:
        file: A seekable binary file, local, in memory or remote; it must stay open while read.

    Raises:
        DecodeError: No decoder knows the content.
        EmptyAudioError: The header is fine, but no samples follow.
        AudioLimitError: The rate is not in 1,000 to 384,000 Hz, or there are more than 32 channels.
        ReadError: The bytes could not be read.
    """
    return _open(GuardedFile(file))


def _open(source: GuardedFile) -> AudioReader:
    if source.size == 0:
        raise DecodeError("the file is empty (0 bytes) where audio was expected; fetch or record it again")
    reasons = []
    for opener in (open_sndfile, open_ffmpeg):
        reader, reason = opener(source)
        if reader is not None:
            return reader
        reasons.append(reason)
    raise DecodeError(
        f"no audio was recognised: {', '.join(filter(None, reasons))}; give a file with a header, "
        "such as FLAC, WAV or MP3"
    )


def probe(file: BinaryIO) -> AudioInfo:
    """What the header says, for planning: cheap, and not to be trusted with memory.

    Raises:
        ItemError: As ``open_audio``.
    """
    source = GuardedFile(file)
    plain = read_plain_header(source.read_at, source.size)
    if plain is not None:
        return AudioInfo(
            duration_s=plain.num_frames / plain.sample_rate_hz,
            duration_is_exact=True,
            sample_rate_hz=plain.sample_rate_hz,
            num_channels=plain.num_channels,
            codec=plain.codec,
        )
    with _open(source) as reader:
        frames = reader.num_frames
        return AudioInfo(
            duration_s=None if frames is None else frames / reader.sample_rate_hz,
            duration_is_exact=frames is not None and reader.length_is_exact,
            sample_rate_hz=reader.sample_rate_hz,
            num_channels=reader.num_channels,
            codec=reader.codec,
        )


def measure_duration(file: BinaryIO) -> float:
    """The length in seconds: the header's where it holds to the last frame, else of all packets.

    Walking the packets reads the whole file and takes a fifth of a second per hour of MP3.

    Raises:
        ItemError: As ``open_audio`` and ``AudioReader.blocks``.
    """
    with open_audio(file) as reader:
        header_s = 0.0 if reader.num_frames is None else reader.num_frames / reader.sample_rate_hz
        if reader.codec.startswith("OGG/"):
            return header_s  # libsndfile took it from the last page of the file
        if reader.seek_is_exact and reader.num_frames is not None:
            try:
                next(reader.blocks(reader.num_frames - 1))
            except (DecodeError, StopIteration):
                if reader.end_frame is not None:
                    return reader.end_frame / reader.sample_rate_hz  # it promises more than there is
                header_s = 0.0
            else:
                return header_s
        is_exact = reader.length_is_exact
    walked_s = walk_packets(GuardedFile(file))
    if walked_s is None:
        with open_audio(file) as reader:
            return sum(map(len, reader.blocks())) / reader.sample_rate_hz
    # Packets hold the encoder's delay and padding too, which a header's count leaves out.
    return header_s if is_exact and abs(walked_s - header_s) < SLACK_S else walked_s
