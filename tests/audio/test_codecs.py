"""Files of many kinds and states decode to what they hold, or are refused for the reason they have."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.audio.codecs import measure_duration, open_audio, probe
from w2v_ray.audio.reader import BLOCK_SAMPLES
from w2v_ray.errors import (
    AudioLimitError,
    DecodeError,
    EmptyAudioError,
    ItemError,
    ReadError,
    TruncatedError,
)

RATE = 16_000

EXACT = [
    ("WAV", "PCM_U8"),
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "PCM_32"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAV", "ULAW"),
    ("WAV", "ALAW"),
    ("WAV", "IMA_ADPCM"),
    ("WAV", "MS_ADPCM"),
    ("WAVEX", "PCM_16"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("CAF", "ALAC_16"),
    ("NIST", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
]
NOT_EXACT = [
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("WAV", "GSM610"),
    ("AU", "G721_32"),
]


def speech_like(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Noise that swells and fades like syllables: no two places are alike, and codecs have work."""
    rng = np.random.default_rng(seed)
    n = int(seconds * rate)
    loud = np.abs(np.sin(np.arange(n) / rate * 9)) * (np.sin(np.arange(n) / rate * 1.7) > -0.6)
    return (0.3 * loud * rng.standard_normal(n).clip(-3, 3)).astype(np.float32)


def encode(samples: np.ndarray, container: str, subtype: str, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(file, "w", rate, channels, subtype, format=container) as sound:
        for first in range(0, len(samples), rate):  # libsndfile's Vorbis encoder overflows on long writes
            sound.write(samples[first : first + rate])
    return file.getvalue()


def decode(data: bytes, start_frame: int = 0) -> np.ndarray:
    with open_audio(io.BytesIO(data)) as reader:
        whole = np.concatenate([np.zeros((0, reader.num_channels), np.float32), *reader.blocks(start_frame)])
        if reader.truncation is not None:
            raise reader.truncation
        return whole


# --- real files


def test_every_real_file_decodes_to_its_length_or_is_refused(shared_data: Path) -> None:
    folder = shared_data / "misc"
    rows = [
        row
        for row in csv.DictReader((folder / "manifest.csv").read_text().splitlines())
        if row["path"].startswith(("audio/", "derived/", "ami/")) and row["format"] != "RTTM"
    ]
    assert len(rows) > 70
    for row in rows:
        path = folder / row["path"]
        with path.open("rb") as file:
            if path.suffix in (".rttm", ".uem"):
                continue
            if path.suffix == ".raw":
                with pytest.raises(DecodeError, match=r"no audio was recognised.*a file with a header"):
                    open_audio(file)
                continue
            info = probe(file)
            with open_audio(file) as reader:
                frames = sum(map(len, reader.blocks()))
                assert reader.end_frame == frames
                assert reader.truncation is None, row["path"]
            assert not file.closed
            assert (info.sample_rate_hz, info.num_channels) == (
                reader.sample_rate_hz,
                int(row["channels"]),
            ), row["path"]
            assert frames / reader.sample_rate_hz == pytest.approx(float(row["duration_s"]), abs=0.01), row[
                "path"
            ]
            assert info.duration_s == pytest.approx(float(row["duration_s"]), abs=0.05), row["path"]
            assert measure_duration(file) == pytest.approx(float(row["duration_s"]), abs=0.06), row["path"]


def test_the_encodings_of_one_utterance_have_one_length(shared_data: Path) -> None:
    seconds = {}
    for path in sorted((shared_data / "misc" / "derived").iterdir()):
        with path.open("rb") as file, open_audio(file) as reader:
            seconds[path.name] = sum(map(len, reader.blocks())) / reader.sample_rate_hz
    assert len(seconds) == 21
    assert max(seconds.values()) - min(seconds.values()) < 0.1, seconds


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("awful.wav", AudioLimitError, "1,092,676 Hz"),
        ("bad.wav", DecodeError, "No 'data' chunk"),
        ("evil.wav", DecodeError, "No 'data' chunk"),
        ("null.wav", EmptyAudioError, "no samples"),
    ],
)
def test_broken_files_are_refused_with_their_reason(
    shared_data: Path, name: str, error: type[ItemError], words: str
) -> None:
    with pytest.raises(error, match=words):
        decode((shared_data / "misc" / "broken" / name).read_bytes())


# --- blocks and starts


@pytest.mark.parametrize(("container", "subtype"), EXACT + NOT_EXACT)
def test_a_late_start_gives_the_end_of_the_whole(container: str, subtype: str) -> None:
    data = encode(speech_like(40), container, subtype)
    whole = decode(data)
    with open_audio(io.BytesIO(data)) as reader:
        assert reader.seek_is_exact == ((container, subtype) in EXACT)
        assert reader.num_frames == len(whole)
    rng = np.random.default_rng(1)
    for start in [1, len(whole) - 1, len(whole), len(whole) + 5, *rng.integers(0, len(whole), 6)]:
        np.testing.assert_array_equal(decode(data, int(start)), whole[start:])


def test_blocks_are_bounded_and_only_what_is_asked_for_is_read() -> None:
    data = encode(np.repeat(speech_like(60)[:, None], 8, axis=1), "WAV", "PCM_16")
    file = io.BytesIO(data)
    with open_audio(file) as reader:
        blocks = reader.blocks()
        assert next(blocks).shape == (BLOCK_SAMPLES // 8, 8)
        assert file.tell() < len(data) / 10
        assert all(block.size <= BLOCK_SAMPLES for block in blocks)


def test_sample_values_have_one_scale_in_every_codec() -> None:
    samples = speech_like(3)
    for container, subtype in [*EXACT, ("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS")]:
        whole = decode(encode(samples, container, subtype))[: len(samples), 0]
        assert np.linalg.norm(whole) == pytest.approx(np.linalg.norm(samples), rel=0.15), (container, subtype)
    np.testing.assert_array_equal(decode(encode(samples, "WAV", "FLOAT"))[:, 0], samples)


def test_the_content_counts_and_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "speech.mp3"
    path.write_bytes(encode(speech_like(1), "FLAC", "PCM_16"))
    with path.open("rb") as file, open_audio(file) as reader:
        assert reader.codec == "FLAC/PCM_16"


# --- lengths


def streaming_flac(data: bytes, total: int) -> bytes:
    """Sets the 36 bits of a FLAC header that count its samples."""
    out = bytearray(data)
    out[21] = (out[21] & 0xF0) | (total >> 32)
    out[22:26] = struct.pack(">I", total & 0xFFFFFFFF)
    return bytes(out)


def wav_with_data_size(data: bytes, size: int) -> bytes:
    return data[:40] + struct.pack("<I", size) + data[44:]


def test_headers_without_a_length_decode_whole() -> None:
    flac, wav = encode(speech_like(5), "FLAC", "PCM_16"), encode(speech_like(5), "WAV", "PCM_16")
    for data in [
        streaming_flac(flac, 0),
        wav_with_data_size(wav, 0),
        wav_with_data_size(wav, 0xFFFFFFFF),
        wav_with_data_size(wav, 0x7FFFFFFF),
    ]:
        assert len(decode(data)) == 5 * RATE
        assert measure_duration(io.BytesIO(data)) == 5.0
    endless = streaming_flac(flac, 2**36 - 1)
    assert probe(io.BytesIO(endless)).duration_s is None
    assert measure_duration(io.BytesIO(endless)) == 5.0
    with pytest.raises(TruncatedError, match=r"ends at 5\.00 s where its header says 4,294,967\.30 s"):
        decode(endless)


def test_joined_mp3s_decode_whole() -> None:
    one = encode(speech_like(5), "MP3", "MPEG_LAYER_III")
    two = encode(np.stack([speech_like(4)] * 2, 1), "MP3", "MPEG_LAYER_III")
    assert len(decode(one)) == 5 * RATE
    for joined in (one + two, two + one):
        whole = decode(joined)
        assert len(whole) / RATE == pytest.approx(9, abs=0.2)
        tail = np.sqrt(np.mean(whole[-3 * RATE :] ** 2))
        assert tail == pytest.approx(np.sqrt(np.mean(speech_like(5) ** 2)), rel=0.3)
        assert measure_duration(io.BytesIO(joined)) == pytest.approx(9, abs=0.3)
        assert not probe(io.BytesIO(joined)).duration_is_exact


def test_chained_ogg_decodes_whole() -> None:
    streams = [encode(speech_like(5, seed=seed), "OGG", "VORBIS") for seed in range(2)]
    assert len(decode(b"".join(streams))) / RATE == pytest.approx(10, abs=0.1)


@pytest.mark.parametrize(
    ("container", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III")]
)
def test_what_is_cut_off_is_said_to_be_and_measured_as_it_is(container: str, subtype: str) -> None:
    data = encode(speech_like(60), container, subtype)
    cut = data[: len(data) // 2]
    with pytest.raises(TruncatedError, match="cut off"):
        decode(cut)
    assert measure_duration(io.BytesIO(cut)) == pytest.approx(30, abs=2)
    with open_audio(io.BytesIO(cut)) as reader:  # ranges that end before can still be had
        first = next(reader.blocks())
    np.testing.assert_array_equal(first, decode(data)[: len(first)])


def test_damage_inside_a_file_is_not_passed_over() -> None:
    for container, subtype in [("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS")]:
        data = bytearray(encode(speech_like(20), container, subtype))
        data[len(data) // 2 : len(data) // 2 + 8000] = bytes(8000)
        with pytest.raises(TruncatedError if container == "MP3" else DecodeError, match="damaged"):
            decode(bytes(data))
        if container == "FLAC":  # of unknown length, which FFmpeg decodes without a word
            with pytest.raises(DecodeError, match="inside the FLAC cannot be decoded"):
                decode(streaming_flac(bytes(data), 0))


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_checksum_of_a_flac_is_compared_where_all_of_it_is_decoded(subtype: str, channels: int) -> None:
    samples = np.stack([speech_like(20, seed=seed) for seed in range(channels)], 1)
    data = encode(samples, "FLAC", subtype)
    whole = decode(data)
    assert len(whole) == 20 * RATE
    wrong = bytearray(data)
    wrong[30] ^= 1
    for total in (20 * RATE, 0):  # the second is decoded by FFmpeg
        np.testing.assert_array_equal(decode(streaming_flac(data, total)), whole)
        with pytest.raises(DecodeError, match="not those of the checksum"):
            decode(streaming_flac(bytes(wrong), total))
    assert len(decode(bytes(wrong), 5)) == 20 * RATE - 5
    unset = data[:26] + bytes(16) + data[42:]
    np.testing.assert_array_equal(decode(unset), whole)


@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_containers_of_pcm_say_how_much_is_missing(container: str, subtype: str) -> None:
    data = encode(speech_like(5), container, subtype)
    assert len(decode(data)) == 5 * RATE
    assert len(decode(data[:-40])) > 4.99 * RATE  # a header that counts itself
    for share in (0.5, 0.95):
        cut = data[: round(len(data) * share)]
        with pytest.raises(TruncatedError, match=r"where its header says 5\.00 s: the file is cut off"):
            decode(cut)
        with open_audio(io.BytesIO(cut)) as reader:
            found = np.concatenate(list(reader.blocks()))
        assert len(found) == pytest.approx(share * 5 * RATE, abs=2500)
        np.testing.assert_array_equal(found, decode(data)[: len(found)])


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_without_its_last_page_is_cut_off(subtype: str) -> None:
    data = encode(speech_like(20), "OGG", subtype)
    first_page_of_sound = 8000
    for size in (first_page_of_sound, len(data) // 2, len(data) - 1):
        with pytest.raises(TruncatedError, match="cut off"):
            decode(data[:size])
    assert len(decode(data + b"junk after the end")) == 20 * RATE
    joined = data + encode(speech_like(5), "OGG", subtype)
    with pytest.raises(TruncatedError, match="last page"):
        decode(joined[:-1000])


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_page_of_an_ogg_that_is_lost_is_said_and_what_comes_before_it_can_be_had(subtype: str) -> None:
    data = encode(speech_like(60), "OGG", subtype)
    pages = [match.start() for match in re.finditer(b"OggS", data)]
    middle = pages[len(pages) // 2]
    after = pages[len(pages) // 2 + 1]
    flipped = bytearray(data)
    flipped[middle + 300] ^= 1
    damaged = [bytes(flipped), data[:middle] + data[after:], data[:middle] + b"X" * 99 + data[middle + 99 :]]
    joined = bytes(flipped) + encode(speech_like(1), "OGG", subtype)  # which FFmpeg decodes
    for file in [*damaged, joined]:
        with pytest.raises(DecodeError, match=r"page of the Ogg stream is damaged or missing at byte"):
            decode(file)
    with open_audio(io.BytesIO(damaged[0])) as reader:
        first = next(reader.blocks())
    np.testing.assert_array_equal(first, decode(data)[: len(first)])


def test_ranges_of_a_cut_flac_are_found_where_seeking_fails() -> None:
    data = encode(speech_like(20), "FLAC", "PCM_16")
    cut = data[: len(data) * 2 // 3]
    whole = decode(data)
    for start in (0, RATE, 9 * RATE, 12 * RATE):
        with open_audio(io.BytesIO(cut)) as reader:
            found = np.concatenate(list(reader.blocks(start)))
            assert reader.truncation is not None
            assert reader.end_frame == start + len(found) > 12 * RATE
        np.testing.assert_array_equal(found, whole[start : start + len(found)])
    with open_audio(io.BytesIO(cut)) as reader:
        assert list(reader.blocks(19 * RATE)) == []
        assert reader.end_frame is not None
        assert 12 * RATE < reader.end_frame < 14 * RATE


def test_tags_and_a_torn_last_frame_are_harmless() -> None:
    mp3 = encode(speech_like(20), "MP3", "MPEG_LAYER_III")
    tag = b"ID3\x03\x00\x00\x00\x00\x0f\x00" + bytes(0x780)
    assert len(decode(tag + mp3)) == 20 * RATE
    assert len(decode(mp3 + b"TAG" + bytes(125))) == 20 * RATE
    assert probe(io.BytesIO(tag + mp3)).duration_is_exact
    assert len(decode(mp3[:-30])) / RATE == pytest.approx(20, abs=0.1)


# --- containers that only FFmpeg reads


def encode_ffmpeg(path: Path, codec: str, seconds: float, rate: int, **options: str) -> bytes:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        samples = speech_like(seconds, rate)
        for first in range(0, len(samples), 960):
            block = np.ascontiguousarray(np.tile(samples[first : first + 960], (2, 1)))
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate, first
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "codec", "rate", "label"),
    [
        ("a.m4a", "aac", 44_100, "mov,mp4,m4a,3gp,3g2,mj2/aac"),
        ("a.webm", "libopus", 48_000, "matroska,webm/opus"),
        ("a.aac", "aac", 44_100, "aac/aac"),
        ("a.ts", "aac", 44_100, "mpegts/aac"),
    ],
)
def test_other_containers_decode_from_anywhere(
    tmp_path: Path, name: str, codec: str, rate: int, label: str
) -> None:
    data = encode_ffmpeg(tmp_path / name, codec, 20, rate, movflags="faststart")
    whole = decode(data)
    assert whole.shape[1] == 2
    assert len(whole) / rate == pytest.approx(20, abs=0.1)
    for start in (1, 5 * rate + 7, len(whole) - 1):
        np.testing.assert_array_equal(decode(data, start), whole[start:])
    info = probe(io.BytesIO(data))
    assert (info.sample_rate_hz, info.num_channels, info.codec) == (rate, 2, label)
    assert info.duration_is_exact == (name in ("a.m4a", "a.webm"))
    assert measure_duration(io.BytesIO(data)) == pytest.approx(20, abs=0.1)
    cut = data[: len(data) // 2]
    assert measure_duration(io.BytesIO(cut)) == pytest.approx(10, abs=1)
    if info.duration_is_exact:
        with pytest.raises(TruncatedError, match="cut off"):
            decode(cut)


def test_a_video_without_sound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "silent.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, width=32, height=32)
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DecodeError, match="no audio stream"):
        open_audio(io.BytesIO(path.read_bytes()))


# --- limits


def test_rates_and_channels_outside_the_limits_are_refused() -> None:
    wav = encode(speech_like(1), "WAV", "PCM_16")

    def with_rate(rate: int) -> bytes:
        return wav[:24] + struct.pack("<I", rate) + wav[28:]

    for rate in (1_000, 384_000):
        assert len(decode(with_rate(rate))) == RATE
    for rate in (1, 999, 384_001, 2**31 - 1):
        with pytest.raises(AudioLimitError, match=f"{rate:,} Hz where 1,000 to 384,000 Hz"):
            probe(io.BytesIO(with_rate(rate)))
    assert decode(encode(np.zeros((100, 32), np.float32), "WAV", "PCM_16")).shape == (100, 32)
    with pytest.raises(AudioLimitError, match="33 channels"):
        decode(encode(np.zeros((100, 33), np.float32), "WAV", "PCM_16"))


def test_float_files_in_the_scale_of_integers_pass() -> None:
    samples = speech_like(1) * 32768
    np.testing.assert_array_equal(decode(encode(samples, "WAV", "FLOAT"))[:, 0], samples)


# --- what is no audio


@pytest.mark.parametrize(
    "data",
    [
        b"R",
        b"<html>not found</html>" * 20,
        "hello world ".encode("utf-16") * 200,
        bytes(5000),
        b"\x89PNG\r\n\x1a\n" * 9,
    ],
    ids=["one byte", "html", "utf-16", "zeros", "png"],
)
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError, match="no audio was recognised"):
        open_audio(io.BytesIO(data))


def test_an_empty_file_is_named_so() -> None:
    with pytest.raises(DecodeError, match=r"empty \(0 bytes\)"):
        open_audio(io.BytesIO(b""))


def test_a_header_without_samples_is_empty_audio() -> None:
    with pytest.raises(EmptyAudioError):
        decode(encode(np.zeros(0, np.float32), "WAV", "PCM_16"))


@pytest.mark.parametrize(
    "playlist",
    [
        b"ffconcat version 1.0\nfile secret.wav\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:5,\nsecret.wav\n#EXT-X-ENDLIST\n",
    ],
    ids=["ffconcat", "hls"],
)
def test_a_playlist_opens_no_other_file(
    playlist: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.wav").write_bytes(encode(speech_like(5), "WAV", "PCM_16"))
    (tmp_path / "list.m3u8").write_bytes(playlist)
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "list.m3u8").open("rb") as file, pytest.raises(DecodeError):
        open_audio(file)


# --- reading


class FailingFile(io.BytesIO):
    """A store that breaks off after so many bytes."""

    def __init__(self, data: bytes, good: int, error: Exception) -> None:
        super().__init__(data)
        self.good, self.error = good, error

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= self.good:
            raise self.error
        return super().read(size)


@pytest.mark.parametrize(
    ("container", "subtype"),
    [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")],
)
def test_a_failed_read_is_a_read_error_and_never_the_end_of_the_audio(
    container: str, subtype: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = encode(speech_like(60), container, subtype)
    for good in (0, len(data) // 2):
        file = FailingFile(data, good, OSError("connection reset"))
        with pytest.raises(ReadError, match="OSError: connection reset"):
            sum(map(len, open_audio(file).blocks()))
    with pytest.raises(ReadError, match=r"^gone$"):
        sum(map(len, open_audio(FailingFile(data, len(data) // 2, ReadError("gone"))).blocks()))
    assert capfd.readouterr().err == ""  # no traceback from a C callback


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_mutated_files_decode_or_raise_an_item_error(data: st.DataObject) -> None:
    container, subtype = data.draw(
        st.sampled_from([("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
    )
    file = bytearray(encode(speech_like(1), container, subtype))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(file) - 1))
        file[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    with contextlib.suppress(ItemError):  # any other error fails the test
        assert 0 < len(decode(bytes(file))) < 100 * RATE


def test_decoders_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(encode(speech_like(5), "MP3", "MPEG_LAYER_III"))
    data[5000:5400] = bytes(400)
    for file in (bytes(data), bytes(data[:9000]), bytes(data[700:])):
        with contextlib.suppress(ItemError):
            decode(file)
    assert capfd.readouterr() == ("", "")
