"""What decoders have in common: the open recording they return, the file they read from, the limits.

It decodes nothing itself; ``sndfile`` and ``ffmpeg`` do, and ``codecs`` chooses between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from w2v_ray.errors import AudioLimitError, EmptyAudioError, ItemError, ReadError, TruncatedError

__all__ = [
    "BLOCK_SAMPLES",
    "EXACT_SLACK_S",
    "MAX_CHANNELS",
    "MAX_RATE_HZ",
    "MIN_RATE_HZ",
    "SLACK_S",
    "AudioReader",
    "GuardedFile",
    "Samples",
    "check_limits",
    "check_not_cut_off",
    "holds_frames",
]

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 384_000
MAX_CHANNELS = 32
BLOCK_SAMPLES = 1 << 18  # 1 MiB of float32, all channels together
SLACK_S = 0.5  # encoder delay, padding and rounded header times: less missing is not a cut-off file
EXACT_SLACK_S = 0.01  # where samples are counted; headers that count themselves as samples are common
_MAX_FRAMES_PER_BYTE = 5_000  # the densest real case, FLAC of digital silence, stays below

Samples = npt.NDArray[np.float32]


@dataclass(slots=True, kw_only=True)
class AudioReader:
    """An open recording; close it, or use it as a context manager. Its file stays open."""

    sample_rate_hz: int
    """Samples per second and channel."""
    num_channels: int
    """Channels."""
    codec: str
    """Container/codec, such as ``WAV/PCM_16`` or ``mp3/mp3``."""
    num_frames: int | None
    """Frames by the header; None where it gives none, or a number the file cannot hold."""
    length_is_exact: bool
    """Whether ``num_frames`` is a count and not an estimate."""
    seek_is_exact: bool
    """Whether a late start costs nothing; otherwise all frames before it are decoded and dropped."""
    end_frame: int | None = None
    """The true number of frames, once ``blocks`` has come to the end."""
    truncation: TruncatedError | None = None
    """Set by ``blocks`` at the end where the file has less than its header says: what is missing."""
    decode: Callable[[int], tuple[int, Iterator[Samples]]]
    """The decoder's own: where it begins, at most at the frame that is asked for, and what comes from
    there on; callers use ``blocks``."""
    close: Callable[[], None]
    """Frees the decoder."""

    def blocks(self, start_frame: int = 0) -> Iterator[Samples]:
        """Decodes from ``start_frame`` to the end; may be called once.

        A file that ends before its header says comes to an end like any other, and says so in
        ``truncation``.

        Yields:
            Float32 arrays of shape (frames, channels), about a MiB each, full scale being 1. Samples may be
            infinite or no numbers.

        Raises:
            EmptyAudioError: The file holds no samples.
            TruncatedError: It holds none, and its header says that there are some.
            DecodeError: The file is damaged.
            ReadError: Its bytes could not be read.
        """
        position, blocks = self.decode(start_frame)
        try:
            for block in blocks:
                skipped = max(0, start_frame - position)
                position += len(block)
                if skipped < len(block):
                    yield block[skipped:]
        except TruncatedError as error:
            if position == 0:
                raise
            self.truncation = error
        if position == 0:
            raise EmptyAudioError(f"the file ({self.codec}) has no samples; leave it out or record it again")
        self.end_frame = position

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class GuardedFile:
    """What decoders read from: an exception inside their callbacks would look like the end of the file.

    It has no name, so no decoder can judge by an extension.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._position = 0
        self._error: Exception | None = None
        file.seek(0, 2)
        self.size = file.tell()

    def read(self, size: int = -1) -> bytes:
        """The next bytes; none at the end and after a failure, which ``check`` raises."""
        if self._error is not None or self._position >= self.size:
            return b""
        try:
            self._file.seek(self._position)
            data = self._file.read(size)
        except Exception as error:
            self._error = error
            return b""
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves to any place: damaged headers send decoders anywhere, and only a read touches the file."""
        self._position = max(0, offset + (0, self._position, self.size)[whence])
        return self._position

    def tell(self) -> int:
        """The position in bytes."""
        return self._position

    def read_at(self, offset: int, size: int) -> bytes:
        """Bytes from anywhere; the position stays."""
        before, self._position = self._position, offset
        data = self.read(size)
        self._position = before
        return data

    @property
    def is_at_end(self) -> bool:
        """Whether all bytes were asked for."""
        return self._position >= self.size

    def check(self) -> None:
        """Raises the error that a read ran into, as a ``ReadError`` unless it is an ``ItemError``."""
        if isinstance(self._error, ItemError):
            raise self._error
        if self._error is not None:
            raise ReadError(
                f"reading at byte {self._position} of {self.size} failed with "
                f"{type(self._error).__name__}: {self._error}; try again when the store answers"
            ) from self._error


def check_limits(sample_rate_hz: int, num_channels: int) -> None:
    """Raises ``AudioLimitError`` for a rate or channel count that no recording of speech has."""
    if not MIN_RATE_HZ <= sample_rate_hz <= MAX_RATE_HZ:
        raise AudioLimitError(
            f"the sample rate is {sample_rate_hz:,} Hz where {MIN_RATE_HZ:,} to {MAX_RATE_HZ:,} Hz "
            "is accepted; correct the header or resample the file"
        )
    if not 1 <= num_channels <= MAX_CHANNELS:
        raise AudioLimitError(
            f"there are {num_channels} channels where 1 to {MAX_CHANNELS} are accepted; "
            "split the file by channels"
        )


def check_not_cut_off(found_s: float, declared_s: float, slack_s: float = SLACK_S) -> None:
    """Raises ``TruncatedError`` where a file ends earlier than its header says."""
    if found_s < declared_s - slack_s:
        raise TruncatedError(
            f"the audio ends at {found_s:.2f} s where its header says {declared_s:,.2f} s: the file is cut "
            "off or damaged, so fetch it again, or encode what is left of it again"
        )


def holds_frames(num_frames: int, size: int) -> bool:
    """Whether a file of ``size`` bytes can hold that many frames; headers may say anything."""
    return 0 < num_frames <= size * _MAX_FRAMES_PER_BYTE
