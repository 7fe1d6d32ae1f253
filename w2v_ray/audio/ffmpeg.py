"""Decodes with FFmpeg, through PyAV: MP3, AAC, M4A, WebM, MP4 and what libsndfile leaves.

It opens no playlist and no second file, and it refuses a file that yields less than its header
counts or whose packets are damaged, where FFmpeg itself would go on without a word.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import chain
from typing import Any

import av
import av.container
import numpy as np
import numpy.typing as npt

from w2v_ray.audio.reader import (
    BLOCK_SAMPLES,
    SLACK_S,
    AudioReader,
    GuardedFile,
    Samples,
    check_limits,
    check_not_cut_off,
    holds_frames,
)
from w2v_ray.errors import DecodeError, EmptyAudioError

__all__ = ["open_ffmpeg", "walk_packets"]

# A closed list: hls, concat, dash, sdp and the like would make FFmpeg open other files by name.
_FORMATS = (
    "aac,ac3,eac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,flac,flv,loas,matroska,webm,mov,mp4,m4a,"
    "3gp,mp3,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nut,ogg,oma,qcp,rm,shn,tak,truehd,tta,voc,w64,wav,wv"
)


def open_ffmpeg(source: GuardedFile) -> tuple[AudioReader | None, str]:
    """Opens a recording if FFmpeg can decode it.

    Returns:
        The reader, or None and why not.

    Raises:
        AudioLimitError: The rate or the number of channels is out of bounds.
        DecodeError: There is no audio stream, or it cannot be decoded.
        EmptyAudioError: It has no samples.
        ReadError: The bytes could not be read.
    """
    try:
        container, stream = _open(source)
    except av.FFmpegError as error:
        source.check()
        return None, f"FFmpeg says {error.strerror!r}"
    codec = f"{container.format.name}/{stream.codec_context.codec.canonical_name}"
    if codec == "mp3/mp1":  # a layer nobody uses, whose frame header is the byte order mark of UTF-16
        container.close()
        return None, "FFmpeg sees nothing but MPEG layer I"
    try:
        frames = _frames(source, container, stream)
        # The header of an AAC stream may give half its rate: believe the first frame.
        first = next(frames, None)
        if first is None:
            raise EmptyAudioError(f"the file ({codec}) has no samples; leave it out or record it again")
        rate, channels = first.sample_rate, first.layout.nb_channels
        check_limits(rate, channels)
    except BaseException:
        container.close()
        raise
    # MP4 and WebM leave out packets of pauses; in MP3 a missing packet is damage.
    may_have_gaps = container.format.name != "mp3"
    declared_s, is_exact = _duration(source, container, stream)
    num_frames = None if declared_s is None else round(declared_s * rate)
    if num_frames is not None and not holds_frames(num_frames, source.size):
        num_frames = None

    def decode(start: int) -> Iterator[Samples]:
        assert start == 0
        parts: list[Samples] = []
        held = total = 0
        end_s = 0.0  # by timestamps
        for frame in chain([first], frames):
            if frame.sample_rate != rate:
                raise DecodeError(
                    f"the sample rate changes from {rate:,} to {frame.sample_rate:,} Hz at "
                    f"{total / rate:.2f} s; encode the file again at one rate"
                )
            parts.append(_samples(frame, channels))
            held += frame.samples
            total += frame.samples
            if may_have_gaps and frame.pts is not None and frame.time_base is not None:
                end_s = max(end_s, float(frame.pts * frame.time_base) + frame.samples / rate)
            if held * channels >= BLOCK_SAMPLES:
                yield np.concatenate(parts)
                parts, held = [], 0
        if parts:
            yield np.concatenate(parts)
        if is_exact and num_frames is not None:
            check_not_cut_off(max(total / rate, end_s), num_frames / rate)

    reader = AudioReader(
        sample_rate_hz=rate,
        num_channels=channels,
        codec=codec,
        num_frames=num_frames,
        length_is_exact=is_exact,
        seek_is_exact=False,
        decode=decode,
        close=container.close,
    )
    return reader, ""


def walk_packets(source: GuardedFile) -> float | None:
    """Seconds of audio by the durations of all packets; None where FFmpeg cannot tell.

    Raises:
        DecodeError: The container is damaged.
        ReadError: The bytes could not be read.
    """
    try:
        container, stream = _open(source)
    except av.FFmpegError:
        source.check()
        return None
    ticks = 0
    with container:
        try:
            for packet in container.demux(stream):
                if packet.size and not packet.duration:
                    return None
                ticks += packet.duration or 0
        except av.FFmpegError as error:
            source.check()
            raise DecodeError(
                f"FFmpeg says {error.strerror!r}: the file is damaged; fetch it again"
            ) from error
        source.check()
        return float(ticks * stream.time_base) if stream.time_base is not None else None


def _open(source: GuardedFile) -> tuple[av.container.InputContainer, av.AudioStream]:
    source.seek(0)
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
    container = av.open(source, mode="r", metadata_errors="ignore", options=options)
    stream = container.streams.best("audio")
    if not isinstance(stream, av.AudioStream):
        container.close()
        raise DecodeError(f"the file ({container.format.name}) has no audio stream; leave it out")
    if stream.codec_context is None:
        container.close()
        raise DecodeError(
            f"FFmpeg cannot decode the audio in the file ({container.format.name}); encode it as FLAC or MP3"
        )
    stream.codec_context.thread_count = 1  # one core per worker
    return container, stream


def _frames(
    source: GuardedFile, container: av.container.InputContainer, stream: av.AudioStream
) -> Iterator[av.AudioFrame]:
    packets = damaged = decoded = 0
    words: str | None = None
    try:
        for packet in container.demux(stream):
            packets += 1
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                frames, words = [], error.strerror
                damaged += 1
            source.check()
            for frame in frames:
                if isinstance(frame, av.AudioFrame) and frame.samples:
                    decoded += 1
                    yield frame
    except av.FFmpegError as error:  # the container itself is damaged from here on
        packets, words = packets + 1, error.strerror
        damaged = packets
    source.check()
    # Tags and torn frames at either end are common and harmless; more than that is lost speech.
    if damaged > max(2, packets // 50) or (damaged and not decoded):
        raise DecodeError(
            f"{damaged} of {packets} packets ({container.format.name}) cannot be decoded, where FFmpeg says "
            f"{words!r}: the file is damaged, so fetch or encode it again"
        )


def _samples(frame: av.AudioFrame, num_channels: int) -> Samples:
    data: npt.NDArray[Any] = frame.to_ndarray()
    count = frame.layout.nb_channels
    samples = data.T if frame.format.is_planar else data.reshape(-1, count)
    if samples.dtype.kind == "u":
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float32) * np.float32(0.5 ** (8 * samples.dtype.itemsize - 1))
    samples = samples.astype(np.float32, copy=False)
    if count != num_channels:  # MP3 may switch between mono and stereo; what counts is the mean
        samples = np.repeat(samples.mean(axis=1, keepdims=True), num_channels, axis=1)
    return samples


def _duration(
    source: GuardedFile, container: av.container.InputContainer, stream: av.AudioStream
) -> tuple[float | None, bool]:
    """The length in seconds that the container gives, and whether it is more than an estimate."""
    duration: float | None = None
    if stream.duration is not None and stream.time_base is not None:
        duration = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration = container.duration / av.time_base
    if duration is None:
        return None, False
    name = container.format.name
    if name == "mp3":
        counted_s = _mp3_counted_s(source)
        # Where the file is longer than its count, FFmpeg drops the count and estimates.
        return duration, counted_s is not None and abs(duration - counted_s) < SLACK_S
    return duration, name.startswith("mov,") or (name.startswith("matroska") and len(container.streams) == 1)


def _mp3_counted_s(source: GuardedFile) -> float | None:
    """The length by the frame count that encoders put into the first frame of an MP3 (Xing, Info)."""
    head = source.read_at(0, 10)
    offset = 0
    if head[:3] == b"ID3" and len(head) == 10:  # each byte of a tag's size has seven bits
        offset = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    frame = source.read_at(offset, 200)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if at < 4 or len(frame) < at + 12 or not frame[at + 7] & 1:
        return None
    (count,) = struct.unpack(">I", frame[at + 8 : at + 12])
    version = frame[1] >> 3 & 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    rate = (44_100, 48_000, 32_000, 0)[frame[2] >> 2 & 3] >> {3: 0, 2: 1}.get(version, 2)
    return float(count * (1152 if version == 3 else 576) / rate) if rate else None
