"""Items become samples; ranges of a recording meet at cuts that both sides find, and nothing is lost."""

from __future__ import annotations

import io
import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.audio.codecs import open_audio
from w2v_ray.audio.condition import Condition
from w2v_ray.audio.resample import Resampler, mix_to_mono
from w2v_ray.errors import ConfigError, ReadError
from w2v_ray.schema import DECODED, ERROR, ITEM, READ, SAMPLE_RATE_HZ
from w2v_ray.stages import decode_audio
from w2v_ray.stages.decode_audio import DecodeAudio, DecodeAudioConfig

SCHEMA = pa.schema([*ITEM, *READ])
BORDER = 1.0  # seconds, so that short recordings have several ranges


def talk(seconds: float, rate: int, seed: int, channels: int = 1) -> np.ndarray:
    """Bursts of noise of random length and loudness with pauses between them."""
    rng = np.random.default_rng(seed)
    n = int(seconds * rate)
    envelope = np.zeros(n)
    at = 0
    while at < n:
        burst, pause = (int(s * rate) for s in rng.uniform([0.1, 0.02], [1.5, 0.5]))
        envelope[at : at + burst] = rng.uniform(0.05, 0.6)
        at += burst + pause
    samples = envelope * rng.standard_normal(n).clip(-1.5, 1.5) + 1e-4 * rng.standard_normal(n)
    return np.stack([samples * 0.9**channel for channel in range(channels)], 1).astype(np.float32)


def encode(samples: np.ndarray, rate: int, container: str = "WAV", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(file, "w", rate, channels, subtype, format=container) as sound:
        for first in range(0, len(samples), rate):
            sound.write(samples[first : first + rate])
    return file.getvalue()


def table(*items: dict[str, Any], **extra: list[Any]) -> pa.Table:
    rows = [
        dict.fromkeys(SCHEMA.names) | {"shard_id": "s", "recording_id": f"r{i}"} | item
        for i, item in enumerate(items)
    ]
    made = pa.Table.from_pylist(rows, SCHEMA)
    for name, values in extra.items():
        made = made.append_column(name, pa.array(values))
    return made


def run(made: pa.Table, **config: float) -> list[dict[str, Any]]:
    rows = DecodeAudio(DecodeAudioConfig(**config))(made).to_pylist()
    for row in rows:
        if row["samples"] is not None:
            row["samples"] = np.frombuffer(row["samples"], "<f4")
    return rows


def ranges(data: bytes, borders: list[float], border_seconds: float = BORDER) -> list[dict[str, Any]]:
    edges: list[float | None] = [None, *borders, None]
    items = [
        {
            "audio_bytes": data,
            "start_s": start,
            "end_s": end,
            "start_is_cut": start is not None,
            "end_is_cut": end is not None,
        }
        for start, end in itertools.pairwise(edges)
    ]
    return run(table(*items), border_seconds=border_seconds)


def whole_mono(data: bytes) -> np.ndarray:
    with open_audio(io.BytesIO(data)) as reader:
        return np.concatenate([mix_to_mono(block) for block in reader.blocks()])


def at_16k(mono: np.ndarray, rate: int) -> np.ndarray:
    resampler = Resampler(rate)
    return np.concatenate([resampler.push(mono), resampler.flush()])


# --- one item


def test_an_item_becomes_its_samples_and_columns() -> None:
    samples = talk(3, 44_100, 0, channels=2)
    row_in = {"audio_bytes": encode(samples, 44_100), "planned_s": 2.9, "metadata": '{"a": 1}'}
    made = DecodeAudio(DecodeAudioConfig())(table(row_in, note=["kept"]))
    assert made.schema.names == [n for n in SCHEMA.names if n != "audio_bytes"] + ["note"] + [
        f.name for f in DECODED if f.name != "channel"
    ]
    for field in DECODED:
        assert made.schema.field(field.name).type == field.type
    (row,) = made.to_pylist()
    expected = at_16k(whole_mono(row_in["audio_bytes"]), 44_100)
    np.testing.assert_array_equal(np.frombuffer(row["samples"], "<f4"), expected)
    assert len(expected) == 3 * SAMPLE_RATE_HZ
    assert (row["start_s"], row["end_s"], row["duration_s"]) == (0.0, 3.0, 3.0)
    assert (row["sample_rate_hz"], row["num_channels"], row["codec"]) == (44_100, 2, "WAV/PCM_16")
    assert (row["channel"], row["decode_status"], row["audio_notes"]) == (None, "ok", [])
    assert (row["planned_s"], row["metadata"], row["note"], row["error"]) == (2.9, '{"a": 1}', "kept", None)


def test_an_empty_table_keeps_its_columns() -> None:
    made = DecodeAudio(DecodeAudioConfig())(table({"audio_bytes": b"x"}).slice(0, 0))
    assert made.num_rows == 0
    assert made.schema.field("samples").type == pa.large_binary()


def test_a_file_is_opened_in_place_where_no_bytes_came(tmp_path: Path) -> None:
    data = encode(talk(2, 16_000, 1), 16_000, "FLAC")
    (tmp_path / "a.bin").write_bytes(b"before" + data + b"after")
    whole, member = run(
        table(
            {"audio_bytes": data},
            {"uri": str(tmp_path / "a.bin"), "byte_offset": 6, "byte_size": len(data)},
        )
    )
    np.testing.assert_array_equal(member["samples"], whole["samples"])


def test_every_failure_is_a_row_and_its_neighbours_are_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = encode(talk(1, 16_000, 2), 16_000)
    with_nan = np.full(16_000, np.nan, np.float32)
    with_nan[15_000:] = 0

    def broken_store(
        uri: str, byte_offset: int | None, byte_size: int | None, *, version: str | None
    ) -> io.BytesIO:
        if uri == "gone":
            raise ReadError("gone is gone")
        raise RuntimeError("a bug")

    monkeypatch.setattr(decode_audio, "open_range", broken_store)
    before = {"stage": "read_audio", "error_class": "ReadError", "message": "503"}
    rows = run(
        table(
            {"audio_bytes": good},
            {"audio_bytes": b"not audio", "start_s": 1.5, "end_s": 2.5},
            {"audio_bytes": good},
            {"audio_bytes": encode(with_nan, 16_000, subtype="FLOAT")},
            {"audio_bytes": encode(np.zeros(0), 16_000)},
            {"error": before, "end_s": 7.0},
            {"uri": "gone"},
            {"uri": "bug"},
            {"audio_bytes": good},
        )
    )
    classes = [row["error"] and row["error"]["error_class"] for row in rows]
    assert classes == [
        None,
        "DecodeError",
        None,
        "AudioLimitError",
        "EmptyAudioError",
        "ReadError",
        "ReadError",
        "DecodeError",
        None,
    ]
    assert (rows[1]["start_s"], rows[1]["end_s"]) == (1.5, 2.5)
    assert rows[5]["error"] == before
    assert rows[5]["end_s"] == 7.0
    assert rows[6]["error"] == {
        "stage": "decode_audio",
        "error_class": "ReadError",
        "message": "gone is gone",
    }
    assert "RuntimeError: a bug" in rows[7]["error"]["message"]
    for row in rows:
        assert (row["samples"] is None) == (row["duration_s"] is None) == (row["error"] is not None)
    for index in (2, 8):
        np.testing.assert_array_equal(rows[index]["samples"], rows[0]["samples"])


def test_an_exact_range_is_a_slice() -> None:
    data = encode(talk(6, 22_050, 3), 22_050)
    mono = whole_mono(data)
    first, last, late = run(
        table(
            {"audio_bytes": data, "start_s": 1.25, "end_s": 3.5},
            {"audio_bytes": data, "start_s": 5.0, "end_s": 9.0, "start_is_cut": False, "end_is_cut": False},
            {"audio_bytes": data, "start_s": 6.0, "end_s": 9.0},
        )
    )
    start, end = round(1.25 * 22_050), round(3.5 * 22_050)
    np.testing.assert_array_equal(first["samples"], at_16k(mono[start:end], 22_050))
    assert (first["start_s"], first["end_s"]) == (start / 22_050, end / 22_050)
    assert (last["start_s"], last["end_s"], last["duration_s"]) == (5.0, 6.0, 1.0)
    assert (first["decode_status"], last["decode_status"]) == ("ok", "truncated")
    assert late["error"]["error_class"] == "TruncatedError"
    assert "ends at 6.00 s, before this range at 6.00 s" in late["error"]["message"]


def test_what_is_longer_than_an_item_may_be_is_refused() -> None:
    data = encode(talk(4, 8_000, 4), 8_000)
    unplanned, planned, short = run(
        table(
            {"audio_bytes": data},
            {"audio_bytes": data, "start_s": 0.5, "end_s": 3.6},
            {"audio_bytes": data, "start_s": 1.5},
        ),
        max_item_seconds=3,
    )
    assert "goes on after 3 s" in unplanned["error"]["message"]
    assert "longer than 3 s" in planned["error"]["message"]
    assert {unplanned["error"]["error_class"], planned["error"]["error_class"]} == {"AudioLimitError"}
    assert short["duration_s"] == 2.5


def test_ranges_whose_borders_could_cross_are_refused() -> None:
    data = encode(talk(8, 8_000, 4), 8_000)
    narrow = {"audio_bytes": data, "start_s": 2.0, "end_s": 3.9, "start_is_cut": True, "end_is_cut": True}
    empty = {"audio_bytes": data, "start_s": 2.0, "end_s": 2.0}
    rows = run(table(narrow, narrow | {"end_s": 4.0}, empty), border_seconds=1)
    assert [row["error"] and row["error"]["error_class"] for row in rows] == [
        "AudioLimitError",
        None,
        "EmptyAudioError",
    ]


def test_settings_out_of_bounds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"border_seconds is 0\.5; give a number from 1 to 60"):
        DecodeAudioConfig(border_seconds=0.5)
    with pytest.raises(ConfigError, match="max_item_seconds is 0"):
        DecodeAudioConfig(max_item_seconds=0)


# --- ranges that share borders


@settings(max_examples=40, deadline=None)
@given(
    codec=st.sampled_from(
        [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS")]
    ),
    rate=st.sampled_from([8_000, 16_000, 24_000, 48_000]),
    channels=st.integers(1, 2),
    seconds=st.floats(3, 25),
    steps=st.lists(st.floats(2, 8), max_size=4),
    seed=st.integers(0, 1000),
)
def test_neighbours_agree_and_cover_the_recording(
    codec: tuple[str, str], rate: int, channels: int, seconds: float, steps: list[float], seed: int
) -> None:
    data = encode(talk(seconds, rate, seed, channels), rate, *codec)
    mono = whole_mono(data)
    borders = [float(b) for b in np.cumsum([2.0, *steps])]
    rows = ranges(data, borders)
    good = [row for row in rows if row["error"] is None]
    assert rows[: len(good)] == good  # a range past the end has none after it
    for row in rows[len(good) :]:
        assert row["error"]["error_class"] == "TruncatedError"
        assert f"ends at {len(mono) / rate:.2f} s, before this range" in row["error"]["message"]
        assert row["start_s"] >= len(mono) / rate - 1e-9
    edges = [round(row["start_s"] * rate) for row in good] + [round(good[-1]["end_s"] * rate)]
    assert edges[0] == 0
    assert edges[-1] == len(mono)
    for row, border, (start, end) in zip(good, [*borders, 0], itertools.pairwise(edges), strict=False):
        assert round(row["end_s"] * rate) == end
        if end != len(mono):
            assert abs(end / rate - border) <= BORDER
        np.testing.assert_array_equal(row["samples"], at_16k(mono[start:end], rate))


def test_a_range_is_bit_identical_to_its_own_file() -> None:
    rate = 44_100
    data = encode(talk(60, rate, 5), rate)
    _, middle, _ = ranges(data, [20.0, 41.0], border_seconds=10)
    cut = slice(round(middle["start_s"] * rate), round(middle["end_s"] * rate))
    own = encode(soundfile.read(io.BytesIO(data), dtype="int16")[0][cut], rate)
    (alone,) = run(table({"audio_bytes": own}))
    np.testing.assert_array_equal(middle["samples"], alone["samples"])


def test_borders_move_into_pauses() -> None:
    rate = 16_000
    samples = talk(30, rate, 6)
    samples[round(8.6 * rate) : round(9.4 * rate)] *= 1e-3
    left, right = ranges(encode(samples, rate, subtype="FLOAT"), [10.0], border_seconds=3)
    assert left["end_s"] == right["start_s"] == pytest.approx(9.0, abs=0.2)


def test_a_recording_shorter_than_planned_is_covered_and_the_rest_is_said() -> None:
    rate = 16_000
    for seconds in (9.5, 10.0, 10.5):
        rows = ranges(encode(talk(seconds, rate, 7), rate), [5.0, 10.0, 15.0])
        good = [row for row in rows if row["error"] is None]
        assert sum(row["end_s"] - row["start_s"] for row in good) == pytest.approx(seconds)
        assert len(good) == (2 if seconds <= 10 else 3)
        assert all("check the file, or plan it again" in row["error"]["message"] for row in rows[len(good) :])


def test_a_late_range_of_a_long_wide_recording_stays_small(tmp_path: Path) -> None:
    rate, seconds = 96_000, 150
    path = tmp_path / "long.wav"
    block = (talk(5, rate, 8, channels=8) * 32767).astype(np.int16)
    with soundfile.SoundFile(path, "w", rate, 8, "PCM_16") as sound:
        for _ in range(seconds // 5):
            sound.write(block)
    item = {"uri": str(path), "start_s": 60.0, "end_s": 100.0, "start_is_cut": True, "end_is_cut": True}
    made = table(item)
    stage = DecodeAudio(DecodeAudioConfig(border_seconds=5))
    tracemalloc.start()  # numpy reports its buffers to it
    row = stage(made).to_pylist()[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert row["error"] is None
    assert row["duration_s"] == pytest.approx(40, abs=10)
    # The recording is 230 MB and the range 60; samples, a window of 10 s and blocks are all it needs.
    assert peak < 30e6


def test_real_files_in_ranges_equal_their_slices(shared_data: Path) -> None:
    names = [
        "audio/silero_test.wav",
        "audio/nasa_13013.mp4.audio_44100.mp3",
        "audio/librispeech_198-209-0000.hq.ogg",
    ]
    names += [
        "audio/chan3.sph",
        "derived/1688-142285-0003.44k1_aac.m4a",
        "derived/1688-142285-0003.48k_opus.webm",
    ]
    for name in names:
        data = (shared_data / "misc" / name).read_bytes()
        mono = whole_mono(data)
        rows = ranges(data, [2.0, 4.0])
        rate = rows[0]["sample_rate_hz"]
        edges = [round(row["start_s"] * rate) for row in rows] + [len(mono)]
        assert round(rows[-1]["end_s"] * rate) == len(mono)
        for row, (start, end) in zip(rows, itertools.pairwise(edges), strict=True):
            np.testing.assert_array_equal(row["samples"], at_16k(mono[start:end], rate))


def test_the_error_column_has_its_type_even_where_all_is_well() -> None:
    made = DecodeAudio(DecodeAudioConfig())(table({"audio_bytes": encode(talk(1, 8_000, 1), 8_000)}))
    assert made.schema.field("error").type == ERROR
    made.validate(full=True)


# --- what is missing of an item


def test_a_cut_off_file_is_marked_or_rejected() -> None:
    data = encode(talk(6, 16_000, 1), 16_000)
    cut = data[: len(data) // 2]
    (marked,) = run(table({"audio_bytes": cut}))
    assert (marked["decode_status"], marked["error"]) == ("truncated", None)
    assert marked["end_s"] == pytest.approx(3, abs=0.01)
    (rejected,) = run(table({"audio_bytes": cut}), on_truncated="reject")
    assert rejected["error"]["error_class"] == "TruncatedError"
    assert "ends at 3.00 s where its header says 6.00 s" in rejected["error"]["message"]
    assert rejected["samples"] is None
    (whole,) = run(table({"audio_bytes": data}), on_truncated="reject")
    assert (whole["decode_status"], whole["error"]) == ("ok", None)


def test_of_a_cut_off_recording_the_range_at_its_end_is_marked_and_no_other() -> None:
    data = encode(talk(20, 16_000, 2), 16_000, "FLAC")
    cut = data[: len(data) * 6 // 10]
    for borders in ([4.0, 8.0, 16.0], [4.0, 8.0, 11.5]):
        rows = ranges(cut, borders)
        ends = [row["end_s"] for row in rows if row["error"] is None]
        assert ends == sorted(ends)
        statuses = [row["decode_status"] for row in rows if row["error"] is None]
        assert statuses == ["ok"] * (len(statuses) - 1) + ["truncated"]
        assert {row["error"]["error_class"] for row in rows if row["error"]} <= {"TruncatedError"}


# --- channels


def channel_rows(data: bytes, job: str | int, **item: Any) -> list[dict[str, Any]]:
    return run(table({"audio_bytes": data, **item}), channel=job)


def test_a_channel_is_taken_as_the_job_or_the_item_says() -> None:
    samples = np.stack([talk(2, 16_000, seed)[:, 0] for seed in range(3)], 1)
    data = encode(samples, 16_000, subtype="FLOAT")
    for channel, index in [("left", 0), ("right", 1), (2, 2), ("0", 0)]:
        (row,) = channel_rows(data, channel)
        np.testing.assert_array_equal(row["samples"], samples[:, index])
        assert (row["channel"], row["num_channels"]) == (index, 3)
    for job in ("mix", "split", "left"):
        (row,) = channel_rows(data, job, channel=1)
        np.testing.assert_array_equal(row["samples"], samples[:, 1])
    (mixed,) = channel_rows(data, "mix")
    np.testing.assert_array_equal(mixed["samples"], mix_to_mono(samples))
    assert mixed["channel"] is None


def test_split_makes_a_row_of_each_channel() -> None:
    three = np.stack([talk(2, 16_000, seed)[:, 0] for seed in range(3)], 1)
    data, mono = encode(three, 16_000, subtype="FLOAT"), encode(talk(1, 16_000, 9), 16_000)
    made = table({"audio_bytes": data}, {"audio_bytes": b"no"}, {"audio_bytes": mono}, note=["a", "b", "c"])
    rows = run(made, channel="split")
    assert [(row["note"], row["channel"]) for row in rows] == [
        ("a", 0),
        ("a", 1),
        ("a", 2),
        ("b", None),
        ("c", 0),
    ]
    for row, expected in zip(rows, three.T, strict=False):
        np.testing.assert_array_equal(row["samples"], expected)
    assert [row["error"] is None for row in rows] == [True, True, True, False, True]
    assert len(rows[4]["samples"]) == 16_000


def test_the_channels_of_a_split_range_share_their_cuts() -> None:
    rate = 16_000
    samples = np.stack([talk(20, rate, seed)[:, 0] for seed in range(2)], 1)
    data = encode(samples, rate, subtype="FLOAT")
    edges: list[float | None] = [None, 6.0, 13.0, None]
    items = [
        {"audio_bytes": data, "start_s": a, "end_s": b, "start_is_cut": bool(a), "end_is_cut": bool(b)}
        for a, b in itertools.pairwise(edges)
    ]
    rows = run(table(*items), channel="split", border_seconds=2.0)
    assert len(rows) == 6
    for channel in (0, 1):
        mine = [row for row in rows if row["channel"] == channel]
        assert [row["end_s"] for row in mine[:-1]] == [row["start_s"] for row in mine[1:]]
        np.testing.assert_array_equal(np.concatenate([r["samples"] for r in mine]), samples[:, channel])
    assert rows[0]["end_s"] == rows[1]["end_s"]


def test_a_channel_that_is_not_there_is_one_sentence() -> None:
    mono, stereo = (encode(talk(1, 16_000, 1, n), 16_000) for n in (1, 2))
    (right,) = channel_rows(mono, "right")
    assert right["error"] == {
        "stage": "decode_audio",
        "error_class": "AudioLimitError",
        "message": "the right channel was asked for and the recording has one channel; "
        "choose another, or mix",
    }
    (third,) = channel_rows(stereo, 2)
    assert "channel 2 was asked for and the recording has 2 channels, 0 to 1;" in third["error"]["message"]
    assert channel_rows(mono, "left")[0]["error"] is None
    assert channel_rows(mono, 0, channel=1)[0]["error"]["error_class"] == "AudioLimitError"


def test_the_length_limit_counts_all_channels() -> None:
    data = encode(talk(4, 8_000, 4, channels=2), 8_000)
    made = table({"audio_bytes": data}, {"audio_bytes": data, "start_s": 0.0, "end_s": 3.9})
    rows = run(made, channel="split", max_item_seconds=6)
    assert [row["error"]["error_class"] for row in rows] == ["AudioLimitError"] * 2
    assert "goes on after 3 s, the most that an item of 2 channels may hold" in rows[0]["error"]["message"]
    assert len(run(made, channel="split", max_item_seconds=8)) == 4
    with pytest.raises(
        ConfigError, match="channel is 'middle', expected mix, left, right, split or a number"
    ):
        DecodeAudioConfig(channel="middle")
    for bad in (-1, 32, True, "1.5", "", None):
        with pytest.raises(ConfigError, match="channel is "):
            DecodeAudioConfig(channel=bad)
    with pytest.raises(ConfigError, match="on_truncated is 'keep', expected one of mark, reject"):
        DecodeAudioConfig(on_truncated="keep")


# --- the condition of samples


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e12])
def test_samples_that_are_no_sound_are_silenced_and_noted(value: float) -> None:
    samples = talk(4, 16_000, 3)
    samples[1000:1500] = value
    (row,) = run(table({"audio_bytes": encode(samples, 16_000, subtype="FLOAT")}))
    samples[1000:1500] = 0
    np.testing.assert_array_equal(row["samples"], samples[:, 0])
    assert (row["audio_notes"], row["decode_status"]) == (["non_finite"], "ok")


def test_only_what_is_taken_of_a_recording_is_judged() -> None:
    samples = talk(20, 16_000, 3, channels=2)
    samples[:, 1] = np.nan
    samples[1000, 0] = np.inf
    data = encode(samples, 16_000, subtype="FLOAT")
    assert "of 320,000 samples are infinite, no numbers" in channel_rows(data, "mix")[0]["error"]["message"]
    assert channel_rows(data, "right")[0]["error"]["error_class"] == "AudioLimitError"
    assert channel_rows(data, "left")[0]["audio_notes"] == ["non_finite"]
    late = channel_rows(data, "left", start_s=8.0, start_is_cut=True)
    assert (late[0]["error"], late[0]["audio_notes"]) == (None, [])


def test_clipping_and_silence_are_noted() -> None:
    rate = 16_000
    loud = 3 * talk(4, rate, 5).clip(-1, 1)
    peak = np.zeros((rate, 1), np.float32)
    peak[100:103] = 1
    cases = [
        (loud.clip(-1, 1), ["clipped"]),
        (loud * 1000, []),  # in another scale
        (peak, []),  # of three samples
        (np.zeros((rate, 1), np.float32), ["silent"]),
        (9e-4 * peak, ["silent"]),
        (2e-3 * peak, []),
    ]
    for samples, notes in cases:
        (row,) = run(table({"audio_bytes": encode(samples, rate, subtype="FLOAT")}))
        assert row["audio_notes"] == notes


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 0.5, 0.9995, 1.0, -1.0, float("nan")]), max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=8),
)
def test_the_condition_does_not_depend_on_blocks(values: list[float], cuts: list[int]) -> None:
    samples = np.array(values, np.float32)
    whole, parts = Condition(), Condition()
    expected = whole.take(samples)
    edges = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    taken = [parts.take(samples[a:b]) for a, b in itertools.pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(taken), expected)
    assert whole.notes() == parts.notes()
    runs = "".join("x" if abs(value) >= 0.999 else "." for value in values)
    is_clipped = any(len(run) >= 3 for run in runs.split("."))
    assert ("clipped" in whole.notes()) == is_clipped
