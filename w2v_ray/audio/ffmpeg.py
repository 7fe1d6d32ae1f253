"""Decodes with FFmpeg, through PyAV: MP3, AAC, M4A, WebM, MP4 and what libsndfile leaves.

It opens no playlist and no second file. It says where a file yields less than its header counts and refuses
one whose packets are damaged, where FFmpeg itself would go on without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import av
import av.container
import numpy as np
import numpy.typing as npt

from w2v_ray.audio.headers import (
    DIGEST_DIFFERS,
    FlacDigest,
    data_shortage,
    mp3_counted_s,
    read_flac_header,
)
from w2v_ray.audio.ogg import OggPages
from w2v_ray.audio.reader import (
    BLOCK_SAMPLES,
    EXACT_SLACK_S,
    SLACK_S,
    AudioReader,
    GuardedFile,
    Samples,
    check_limits,
    check_not_cut_off,
    holds_frames,
)
from w2v_ray.errors import DecodeError, EmptyAudioError, TruncatedError

__all__ = ["open_ffmpeg", "walk_packets"]

# A closed list: hls, concat, dash, sdp and the like would make FFmpeg open other files by name.
_FORMATS = (
    "aac,ac3,eac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,flac,flv,loas,matroska,webm,mov,mp4,m4a,"
    "3gp,mp3,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nut,ogg,oma,qcp,rm,shn,tak,truehd,tta,voc,w64,wav,wv"
)

_MP3_SLACK_S = 0.1  # two frames and a bit: a torn last frame is common and harmless


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
            OggPages(source).check_end(0.0)
            if data_shortage(source) > 1:
                raise TruncatedError(
                    f"the file ({codec}) is cut off before its first samples; fetch it again"
                )
            raise EmptyAudioError(f"the file ({codec}) has no samples; leave it out or record it again")
        rate, channels = first.sample_rate, first.layout.nb_channels
        check_limits(rate, channels)
    except BaseException:
        container.close()
        raise
    declared_s, is_exact = _duration(source, container, stream)
    flac = read_flac_header(source)
    if flac is not None and flac.num_frames:
        declared_s, is_exact = flac.num_frames / rate, True
    num_frames = None if declared_s is None else round(declared_s * rate)
    if num_frames is not None and not holds_frames(num_frames, source.size):
        num_frames = None

    def blocks() -> Iterator[Samples]:
        end = _End(source, container.format.name, declared_s if is_exact else None, rate)
        digest = None if flac is None else FlacDigest(flac)
        parts: list[Samples] = []
        held = 0
        for frame in chain([first], frames):
            if frame.sample_rate != rate:
                raise DecodeError(
                    f"the sample rate changes from {rate:,} to {frame.sample_rate:,} Hz at "
                    f"{end.total / rate:.2f} s; encode the file again at one rate"
                )
            parts.append(_samples(frame, channels))
            held += frame.samples
            end.add(frame)
            if digest is not None:
                digest.add(parts[-1])
            if held * channels >= BLOCK_SAMPLES:
                yield np.concatenate(parts)
                parts, held = [], 0
        if parts:
            yield np.concatenate(parts)
        end.check()
        if digest is not None and digest.is_wrong():
            raise DecodeError(DIGEST_DIFFERS)

    reader = AudioReader(
        sample_rate_hz=rate,
        num_channels=channels,
        codec=codec,
        num_frames=num_frames,
        length_is_exact=is_exact,
        seek_is_exact=False,
        decode=lambda _: (0, blocks()),
        close=container.close,
    )
    return reader, ""


class _End:
    """Compares where the audio ended with where it was to end."""

    def __init__(self, source: GuardedFile, name: str, declared_s: float | None, rate: int) -> None:
        self._source, self._name, self._declared_s, self._rate = source, name, declared_s, rate
        self._pages = OggPages(source)
        self._end_s = 0.0  # by timestamps
        self.total = 0

    def add(self, frame: av.AudioFrame) -> None:
        self._pages.check_to(self._source.tell())
        self.total += frame.samples
        if self._name != "mp3" and frame.pts is not None and frame.time_base is not None:
            end_s = float(frame.pts * frame.time_base) + frame.samples / self._rate
            self._end_s = max(self._end_s, end_s)

    def check(self) -> None:
        found_s = self.total / self._rate
        if self._name == "flac" and found_s < self._end_s - EXACT_SLACK_S:
            raise DecodeError(
                f"{self._end_s - found_s:.2f} s inside the FLAC cannot be decoded: the file is damaged, so "
                "fetch it again"
            )
        if self._declared_s is not None:
            # MP4 and WebM leave out packets of pauses; in MP3 a missing packet is damage.
            slack_s = {"mp3": _MP3_SLACK_S, "flac": EXACT_SLACK_S}.get(self._name, SLACK_S)
            check_not_cut_off(max(found_s, self._end_s), self._declared_s, slack_s)
        check_not_cut_off(found_s, found_s * data_shortage(self._source), EXACT_SLACK_S)
        self._pages.check_end(found_s)


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
    except av.FFmpegError as error:  # the container itself is damaged from here on, or at its end
        source.check()
        if decoded and source.is_at_end:
            raise TruncatedError(
                f"the file ({container.format.name}) ends inside a packet, where FFmpeg says "
                f"{error.strerror!r}: it is cut off, so fetch it again"
            ) from error
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
        counted_s = mp3_counted_s(source)
        # Where the file is longer than its count, FFmpeg drops the count and estimates.
        return duration, counted_s is not None and abs(duration - counted_s) < SLACK_S
    return duration, name.startswith("mov,") or (name.startswith("matroska") and len(container.streams) == 1)
