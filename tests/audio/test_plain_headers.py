"""What is read from a header without a decoder is what the decoders say, of sound files and damaged ones."""

from __future__ import annotations

import io
import random
import struct

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.audio.codecs import open_audio, probe
from w2v_ray.audio.plain_headers import PlainHeader, read_plain_header
from w2v_ray.audio.reader import GuardedFile
from w2v_ray.errors import ItemError

PLAIN = [
    ("WAV", "PCM_U8"),
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "PCM_32"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAV", "ULAW"),
    ("WAV", "ALAW"),
    ("WAVEX", "PCM_24"),
    ("WAVEX", "FLOAT"),
    ("FLAC", "PCM_S8"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
]
LEFT = [("WAV", "IMA_ADPCM"), ("WAV", "GSM610"), ("RF64", "PCM_16"), ("OGG", "VORBIS"), ("AIFF", "PCM_16")]
INSERTS = [
    b"LIST\x0e\0\0\0INFOISFT\2\0\0\0ab",
    b"LIST\x0e\0\0\0INFOISFT\3\0\0\0ab",
    b"fact\4\0\0\0\1\0\0\0",
    b"JUNK\2\0\0\0ab",
    b"PEAK\x10\0\0\0" + bytes(16),
    b"\x01\0\0\x04abcd",  # padding of a FLAC
    b"\x03\0\0\x12" + bytes(18),  # its seek table
    b"\0",
]


def encoded(
    container: str, subtype: str, *, frames: int = 1601, rate: int = 16_000, channels: int = 1
) -> bytes:
    file = io.BytesIO()
    sound = np.random.default_rng(frames).uniform(-0.5, 0.5, (frames, channels))
    soundfile.write(file, sound, rate, format=container, subtype=subtype)
    return file.getvalue()


def encoded_by_ffmpeg(codec: str, container: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=16_000, layout="mono")
        sound = np.random.default_rng(0).integers(-9999, 9999, (1, 3200)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(sound, format="s16", layout="mono")
        frame.rate = 16_000
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=16_000)
        for part in resampler.resample(frame):
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()


SOUNDS = [encoded(*kind, frames=frames) for kind in PLAIN for frames in (1, 1601)]
SOUNDS += [encoded(*kind, channels=2, rate=44_100) for kind in PLAIN]
SOUNDS += [encoded_by_ffmpeg("pcm_s16le", "wav"), encoded_by_ffmpeg("flac", "flac")]


def plain(data: bytes) -> PlainHeader | None:
    source = GuardedFile(io.BytesIO(data))
    return read_plain_header(source.read_at, source.size)


def decoded(data: bytes) -> PlainHeader:
    with open_audio(io.BytesIO(data)) as reader:
        assert reader.length_is_exact
        assert reader.num_frames is not None
        return PlainHeader(reader.num_frames, reader.sample_rate_hz, reader.num_channels, reader.codec)


@pytest.mark.parametrize("number", range(len(SOUNDS)))
def test_a_plain_header_says_what_the_decoder_says(number: int) -> None:
    found = plain(SOUNDS[number])
    assert found is not None
    assert found == decoded(SOUNDS[number])
    info = probe(io.BytesIO(SOUNDS[number]))
    assert (info.sample_rate_hz, info.num_channels, info.codec) == found[1:]
    assert info.duration_is_exact
    assert info.duration_s == found.num_frames / found.sample_rate_hz


@pytest.mark.parametrize(("container", "subtype"), LEFT)
def test_other_files_are_left_to_the_decoders(container: str, subtype: str) -> None:
    data = encoded(container, subtype)
    assert plain(data) is None
    assert probe(io.BytesIO(data)).codec.endswith(subtype)


def test_a_flac_is_followed_over_its_padding_to_its_first_frame() -> None:
    data = encoded("FLAC", "PCM_16")
    info, comment_and_frames = data[:42], data[42:]
    padded = info + b"\x01\0\x20\0" + bytes(8192) + comment_and_frames
    assert plain(padded) == decoded(padded) == plain(data)
    assert plain(padded[:5000]) is None


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (24, struct.pack("<I", 500)),  # Hz
        (22, struct.pack("<H", 33)),  # channels
        (40, struct.pack("<I", 0)),  # bytes of samples
        (40, struct.pack("<I", 0xFFFFFFFF)),
        (40, struct.pack("<I", 3204)),  # two more than there are
        (20, struct.pack("<H", 0x55)),  # MP3
    ],
)
def test_a_doubtful_wav_is_left_to_the_decoders(place: int, value: bytes) -> None:
    data = bytearray(encoded("WAV", "PCM_16"))
    assert plain(bytes(data)) is not None
    data[place : place + len(value)] = value
    assert plain(bytes(data)) is None


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(SOUNDS), st.randoms(use_true_random=False))
def test_whatever_is_wrong_with_a_header_the_answer_is_that_of_the_decoders(
    data: bytes, chance: random.Random
) -> None:
    damaged = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 3])):
        at = chance.randrange(max(1, min(len(damaged), chance.choice([12, 44, 90, 300]))))
        match chance.randrange(5):
            case 0:
                damaged[at : at + 1] = chance.randbytes(1)
            case 1:
                damaged[at : at + 1] = bytes([chance.choice([0, 1, 2, 16, 18, 40, 0x84, 0xFF])])
            case 2:
                del damaged[chance.randrange(len(damaged) + 1) :]
            case 3:
                damaged += chance.randbytes(chance.randrange(1, 9))
            case 4:
                at = chance.choice([at, 12, 36, 42])
                damaged[at:at] = chance.choice(INSERTS)
    found = plain(bytes(damaged))
    if found is None:
        return
    try:
        expected = decoded(bytes(damaged))
    except ItemError as error:
        pytest.fail(f"{found} of a file that no decoder takes: {error}")
    assert found[:3] == expected[:3]  # FFmpeg has its own names for codecs
