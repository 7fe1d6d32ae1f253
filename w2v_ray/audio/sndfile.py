"""Decodes with libsndfile: PCM in any container, FLAC, Vorbis, Opus, ADPCM, sphere and others.

It leaves to FFmpeg what libsndfile cannot size, and what it would return only in part.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import soundfile

from w2v_ray.audio.reader import (
    BLOCK_SAMPLES,
    AudioReader,
    GuardedFile,
    Samples,
    check_limits,
    check_not_cut_off,
    holds_frames,
)
from w2v_ray.errors import DecodeError

__all__ = ["open_sndfile"]

# Seeking gives the very same samples for these. It does not for Vorbis and Opus: 4 and 34 of 60
# random seeks into a real recording differed, by up to 0.4 of full scale.
_EXACT_SEEK = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "ALAC_")
_PIPED_WAV = 0x7FFF0000  # writers to a pipe do not know the length: they put 0, or about 2 or 4 GiB
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
    declared_s = sound.frames / sound.samplerate * _wav_shortage(source) if sound.samplerate else 0.0
    try:
        source.check()
        check_limits(sound.samplerate, sound.channels)
    except BaseException:
        sound.close()
        raise

    def decode(start: int) -> Iterator[Samples]:
        rate, frames = sound.samplerate, max(1, BLOCK_SAMPLES // sound.channels)
        position = min(start, sound.frames)
        try:
            if position:
                sound.seek(position)
            while len(block := sound.read(frames, dtype="float32", always_2d=True)):
                source.check()
                position += len(block)
                yield block
        except soundfile.LibsndfileError as error:
            source.check()
            raise DecodeError(
                f"decoding {sound.format}/{sound.subtype} fails soon after {position / rate:.2f} s, where "
                f"libsndfile says {_words(error)!r}: the file is damaged or cut off, so fetch it again"
            ) from error
        source.check()
        check_not_cut_off(position / rate, declared_s)

    reader = AudioReader(
        sample_rate_hz=sound.samplerate,
        num_channels=sound.channels,
        codec=f"{sound.format}/{sound.subtype}",
        num_frames=sound.frames,
        length_is_exact=True,
        seek_is_exact=sound.seekable() and sound.subtype.startswith(_EXACT_SEEK),
        decode=decode,
        close=sound.close,
    )
    return reader, ""


def _words(error: soundfile.LibsndfileError) -> str:
    return str(error.error_string).removeprefix("Error : ").rstrip(". ")


def _is_mpeg(source: GuardedFile) -> bool:
    """MP3 or AAC without a container: an ID3 tag, or the eleven set bits of a frame header."""
    head = source.read_at(0, 3)
    return head == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] >= 0xE0)


def _is_chained_ogg(source: GuardedFile) -> bool:
    """Whether the last page of an Ogg file is of another stream than the first; libsndfile reads one."""
    if source.read_at(0, 4) != b"OggS":
        return False
    tail = source.read_at(max(0, source.size - _OGG_PAGE), _OGG_PAGE)
    last = tail.rfind(b"OggS")
    return last >= 0 and tail[last + 14 : last + 18] != source.read_at(14, 4)


def _wav_shortage(source: GuardedFile) -> float:
    """How many times more data a WAV's header declares than the file has; libsndfile does not tell."""
    if source.read_at(0, 4) != b"RIFF":
        return 1.0
    offset = 12
    while len(header := source.read_at(offset, 8)) == 8:
        (size,) = struct.unpack("<I", header[4:])
        offset += 8
        if header[:4] == b"data":
            there = source.size - offset
            return size / there if 0 < there < size < _PIPED_WAV else 1.0
        offset += size + size % 2
    return 1.0
