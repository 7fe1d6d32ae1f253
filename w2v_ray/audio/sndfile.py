"""Decodes with libsndfile: PCM in any container, FLAC, Vorbis, Opus, ADPCM, sphere and others.

It leaves to FFmpeg what libsndfile cannot size, and what it would return only in part.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import soundfile

from w2v_ray.audio.headers import (
    DIGEST_DIFFERS,
    FlacDigest,
    data_shortage,
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
from w2v_ray.errors import DecodeError, ItemError, TruncatedError

__all__ = ["open_sndfile"]

# Seeking gives the very same samples for these. It does not for Vorbis and Opus: 4 and 34 of 60
# random seeks into a real recording differed, by up to 0.4 of full scale.
_EXACT_SEEK = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "ALAC_")
_OGG_PAGE = 65_307  # bytes of the largest page


def open_sndfile(source: GuardedFile) -> tuple[AudioReader | None, str]:
    """Opens a recording if libsndfile can decode all of it.

    Returns:
        The reader, or None and why not.

    Raises:
        AudioLimitError: The rate or the number of channels is out of bounds.
        ReadError: The bytes could not be read.
    """
    if _is_mpeg(source):
        # libsndfile loses what follows the first of joined MP3s, and its decoder prints to stderr.
        return None, ""
    try:
        sound = soundfile.SoundFile(source)
    except soundfile.LibsndfileError as error:
        source.check()
        return None, f"libsndfile says {_words(error)!r}"
    if not holds_frames(sound.frames, source.size) or _is_chained_ogg(source):
        sound.close()
        return None, f"libsndfile finds {sound.frames} frames"
    try:
        source.check()
        check_limits(sound.samplerate, sound.channels)
    except BaseException:
        sound.close()
        raise
    decoder = _Decoder(source, sound)
    reader = AudioReader(
        sample_rate_hz=sound.samplerate,
        num_channels=sound.channels,
        codec=f"{sound.format}/{sound.subtype}",
        num_frames=sound.frames,
        length_is_exact=True,
        seek_is_exact=sound.seekable() and sound.subtype.startswith(_EXACT_SEEK),
        decode=decoder.decode,
        close=decoder.close,
    )
    return reader, ""


class _Decoder:
    """An open file, and the comparison of what it gives with what it says."""

    def __init__(self, source: GuardedFile, sound: soundfile.SoundFile) -> None:
        self._source, self._sound = source, sound
        self._flac = read_flac_header(source)
        self._pages = OggPages(source)

    def close(self) -> None:
        self._sound.close()

    def decode(self, start: int) -> tuple[int, Iterator[Samples]]:
        start = min(start, self._sound.frames)
        if not (self._sound.seekable() and self._sound.subtype.startswith(_EXACT_SEEK)):
            start = 0
        if start:
            try:
                self._sound.seek(start)
            except soundfile.LibsndfileError:
                # A FLAC is not where its end would have to be, and the decoder is of no more use.
                self._source.check()
                self._sound.close()
                self._source.seek(0)
                self._sound = soundfile.SoundFile(self._source)
                start = 0
        return start, self._blocks(start)

    def _blocks(self, start: int) -> Iterator[Samples]:
        sound, position = self._sound, start
        digest = FlacDigest(self._flac) if self._flac is not None and start == 0 else None
        frames = max(1, BLOCK_SAMPLES // sound.channels)
        while True:
            # What it decodes before an error is there as well, and is what is no longer NaN.
            block = np.full((frames, sound.channels), np.nan if self._flac is not None else 0, np.float32)
            failure = None
            try:
                block = sound.read(out=block)
            except soundfile.LibsndfileError as error:
                failure = error
                block = block[: int(np.isnan(block[:, 0]).argmax()) if self._flac is not None else 0]
            self._source.check()
            self._pages.check_to(self._source.tell())
            position += len(block)
            if len(block):
                if digest is not None:
                    digest.add(block)
                yield block
            if failure is not None:
                raise self._failed(failure, position) from failure
            if not len(block):
                break
        self._check_end(position, digest)

    def _failed(self, error: soundfile.LibsndfileError, position: int) -> ItemError:
        sound = self._sound
        at_s = position / sound.samplerate
        if self._flac is not None and self._source.is_at_end:
            try:
                check_not_cut_off(at_s, sound.frames / sound.samplerate, EXACT_SLACK_S)
            except TruncatedError as truncation:
                return truncation
        return DecodeError(
            f"decoding {sound.format}/{sound.subtype} fails soon after {at_s:.2f} s, where libsndfile says "
            f"{_words(error)!r}: the file is damaged, so fetch it again"
        )

    def _check_end(self, position: int, digest: FlacDigest | None) -> None:
        sound, found_s = self._sound, position / self._sound.samplerate
        is_counted = sound.format == "OGG" or sound.subtype.startswith(_EXACT_SEEK)
        slack_s = EXACT_SLACK_S if is_counted else SLACK_S
        check_not_cut_off(found_s, sound.frames / sound.samplerate * data_shortage(self._source), slack_s)
        self._pages.check_end(found_s)
        if digest is not None and digest.is_wrong():
            raise DecodeError(DIGEST_DIFFERS)


def _words(error: soundfile.LibsndfileError) -> str:
    return str(error.error_string).removeprefix("Error : ").rstrip(". ").replace(". ", ": ")


def _is_mpeg(source: GuardedFile) -> bool:
    """MP3 or AAC: an ID3 tag, the eleven set bits of a frame header, or the same in a WAV."""
    head = source.read_at(0, 22)
    if head[:4] == b"RIFF" and head[12:16] == b"fmt ":
        return head[20:22] in (b"\x50\0", b"\x55\0")
    return head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] >= 0xE0)


def _is_chained_ogg(source: GuardedFile) -> bool:
    """Whether the last page of an Ogg file is of another stream than the first; libsndfile reads one."""
    if source.read_at(0, 4) != b"OggS":
        return False
    tail = source.read_at(max(0, source.size - _OGG_PAGE), _OGG_PAGE)
    last = tail.rfind(b"OggS")
    return last >= 0 and tail[last + 14 : last + 18] != source.read_at(14, 4)
