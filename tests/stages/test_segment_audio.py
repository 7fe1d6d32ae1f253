"""Segments cover their item, keep their bounds and never get each other's name."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.errors import ConfigError
from w2v_ray.packing import pack, unpack
from w2v_ray.schema import DECODED, ERROR, ITEM, SEGMENT
from w2v_ray.stages.segment_audio import SegmentAudio, SegmentAudioConfig

SCHEMA = pa.schema([*(f for f in ITEM if f.name != "channel"), pa.field("error", ERROR), *DECODED])
RATE = 16_000


def item(num_samples: int, start_s: float = 0.0, seed: int = 0, **values: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    loud = np.repeat(rng.choice([0, 0.01, 0.5], num_samples // 4000 + 1), 4000)[:num_samples]
    samples = (loud * rng.uniform(-1, 1, num_samples)).astype("<f4")
    seconds = num_samples / RATE
    return {
        "recording_id": "r",
        "samples": samples.tobytes(),
        "start_s": start_s,
        "end_s": start_s + seconds,
        "duration_s": seconds,
        "sample_rate_hz": 44_100,
        **values,
    }


def failed(**values: Any) -> dict[str, Any]:
    error = {"stage": "decode_audio", "error_class": "DecodeError", "message": "no"}
    return {"recording_id": "bad", "error": error, "start_s": 3.0, "samples": None, **values}


def table(*items: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([dict.fromkeys(SCHEMA.names) | values for values in items], SCHEMA)


def run(made: pa.Table, **config: Any) -> list[dict[str, Any]]:
    output = SegmentAudio(SegmentAudioConfig(**config))(made)
    output.validate(full=True)
    assert output.schema.names == [*made.schema.names, *(field.name for field in SEGMENT)]
    for field in SEGMENT:
        assert output.schema.field(field.name).type == field.type
    assert output.schema.field("samples").type == pa.large_binary()
    return output.to_pylist()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12 * RATE), max_size=5),
    max_segment_seconds=st.floats(1, 5),
    start_s=st.floats(0, 1e5),
    seed=st.integers(0, 9),
)
def test_segments_follow_each_other_and_cover_their_item(
    lengths: list[int], max_segment_seconds: float, start_s: float, seed: int
) -> None:
    items = [item(n, start_s, seed + i, recording_id=f"r{i}") for i, n in enumerate(lengths)]
    rows = run(table(*items, failed()), max_segment_seconds=max_segment_seconds)
    assert len({row["segment_id"] for row in rows if row["segment_id"]}) == sum(
        row["error"] is None for row in rows
    )
    for whole in items:
        mine = [row for row in rows if row["recording_id"] == whole["recording_id"]]
        if len(whole["samples"]) < 4 * 400:
            (row,) = mine
            assert row["error"]["error_class"] == "TooShortError"
            assert (row["samples"], row["segment_id"], row["segment_index"]) == (None, None, None)
            assert (row["start_s"], row["end_s"]) == (whole["start_s"], whole["end_s"])
            continue
        assert b"".join(row["samples"] for row in mine) == whole["samples"]
        assert [row["segment_index"] for row in mine] == list(range(len(mine)))
        assert mine[0]["start_s"] == whole["start_s"]
        assert mine[-1]["end_s"] == whole["end_s"]
        for left, right in itertools.pairwise(mine):
            assert left["end_s"] == right["start_s"]
        for row in mine:
            assert row["duration_s"] == len(row["samples"]) / 4 / RATE <= max_segment_seconds
            assert row["end_s"] - row["start_s"] == pytest.approx(row["duration_s"], abs=1e-6)
            assert len(row["samples"]) >= 4 * 400
            assert row["sample_rate_hz"] == 44_100
    assert rows[-1] == dict.fromkeys(SCHEMA.names) | failed() | dict.fromkeys(f.name for f in SEGMENT)


def test_ids_name_the_recording_and_its_milliseconds() -> None:
    (row,) = run(table(item(RATE * 2, start_s=3601.25, recording_id="talks/day 1.wav")))
    assert row["segment_id"] == "talks/day 1.wav@03601250-03603250"


def test_two_hours_of_short_segments_have_different_ids() -> None:
    rows = run(table(item(RATE * 600, start_s=6600.0003)), max_segment_seconds=1)
    assert len({row["segment_id"] for row in rows}) == len(rows) > 600


def test_no_sample_is_copied() -> None:
    made = table(item(RATE * 40), item(RATE * 2, recording_id="b"))
    output = SegmentAudio(SegmentAudioConfig())(made)
    data = [made.column("samples").chunk(0).buffers()[2], output.column("samples").chunk(0).buffers()[2]]
    assert data[0].address == data[1].address


def test_slices_and_unpacked_tables_give_the_same_segments() -> None:
    items = [item(RATE * 3, seed=1, recording_id="a"), item(RATE * 35, seed=2, recording_id="b"), failed()]
    made = table(*items)
    expected = run(made)
    sliced = table(*items, *items).slice(3)
    assert run(sliced) == expected
    assert run(unpack(pack(made))) == expected
    assert run(pa.concat_tables([made.slice(0, 1), made.slice(1)])) == expected
    assert run(made.slice(0, 0)) == []


def test_the_shortest_item_that_fits_is_kept() -> None:
    kept, rejected = run(table(item(400), item(399, recording_id="b")), min_samples=400)
    assert kept["error"] is None
    assert rejected["error"] == {
        "stage": "segment_audio",
        "error_class": "TooShortError",
        "message": "the item has 399 samples at 16 kHz where the encoder needs 400; "
        "leave it out, or join it with what is around it",
    }


def test_settings_out_of_bounds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_segment_seconds is 0\.9; give a number from 1 to 3600"):
        SegmentAudioConfig(max_segment_seconds=0.9)
    with pytest.raises(ConfigError, match="min_samples is 4001; give a number from 1 to 4,000"):
        SegmentAudioConfig(max_segment_seconds=1, min_samples=4001)


def test_a_channel_is_part_of_the_id() -> None:
    rows = run(table(item(RATE, channel=0), item(RATE, channel=1), item(RATE)))
    assert [row["segment_id"] for row in rows] == [
        "r#c0@00000000-00001000",
        "r#c1@00000000-00001000",
        "r@00000000-00001000",
    ]


# --- speech


def sound(*parts: tuple[float, float]) -> bytes:
    """Noise in parts of (seconds, loudness)."""
    rng = np.random.default_rng(0)
    pieces = [loud * rng.uniform(-1, 1, round(seconds * RATE)) for seconds, loud in parts]
    return np.concatenate(pieces).astype("<f4").tobytes()


@pytest.mark.parametrize(
    ("parts", "ratio"),
    [
        ([(3, 0.5), (1, 0.001)], 0.75),
        ([(3, 0.01), (3, 0.0001)], 0.5),
        ([(2, 0.5)], 1.0),  # nothing to tell apart
        ([(2, 0.0)], 0.0),
        ([(1, 0.0009), (1, 0)], 0.0),  # below what can be heard
    ],
)
def test_the_share_of_a_segment_that_is_not_silent(parts: list[tuple[float, float]], ratio: float) -> None:
    samples = sound(*parts)
    (row,) = run(table(item(len(samples) // 4) | {"samples": samples}))
    assert row["speech_ratio"] == pytest.approx(ratio, abs=0.02)


def test_each_segment_has_its_own_share_by_the_measure_of_the_item() -> None:
    samples = sound((10, 0.5), (10, 0.001), (5, 0.5), (5, 0.001))
    rows = run(table(item(len(samples) // 4) | {"samples": samples}), max_segment_seconds=10)
    total = sum(row["speech_ratio"] * row["duration_s"] for row in rows)
    assert total == pytest.approx(15, abs=0.2)
    assert min(row["speech_ratio"] for row in rows) < 0.3 < max(row["speech_ratio"] for row in rows)


def spans_from_name(samples: np.ndarray, rate: int) -> list[tuple[float, float]]:
    """Speech is where the samples are exactly 0.25."""
    assert rate == RATE
    edges = np.flatnonzero(np.diff(np.concatenate([[0], samples == 0.25, [0]]).astype(int)))
    samples[:] = 0  # it is a copy
    return [(a / rate, b / rate) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def marked(*parts: tuple[float, bool]) -> np.ndarray:
    """Parts of (seconds, whether somebody speaks), louder where nobody does."""
    return np.concatenate([np.full(round(s * RATE), 0.25 if yes else 0.9, "<f4") for s, yes in parts])


def item_of(samples: np.ndarray, **values: Any) -> dict[str, Any]:
    return item(len(samples)) | {"samples": samples.tobytes()} | values


VAD = f"{__name__}:spans_from_name"


def test_a_detector_says_where_to_cut() -> None:
    samples = marked((4, True), (0.3, False), (3, True), (2, False), (4, True))
    rows = run(table(item_of(samples)), vad=VAD, max_segment_seconds=10)
    assert [row["end_s"] for row in rows] == [pytest.approx(8.3, abs=0.02), 13.3]
    assert b"".join(row["samples"] for row in rows) == samples.tobytes()
    assert [row["speech_ratio"] for row in rows] == [
        pytest.approx(7 / 8.3, abs=0.01),
        pytest.approx(4 / 5, abs=0.01),
    ]
    (whole,) = run(table(item_of(samples)), vad=VAD, max_segment_seconds=14)
    assert whole["samples"] == samples.tobytes()


def test_what_is_no_speech_can_be_dropped_and_no_item_with_it() -> None:
    talk = marked((3, False), (2, True), (0.5, False), (1, True), (4, False), (1, True), (0.1, False))
    silence = marked((5, False))
    made = table(
        item_of(talk), failed(), item_of(silence, recording_id="quiet"), item_of(talk, recording_id="b")
    )
    rows = run(made, vad=VAD, keep_non_speech=False)
    assert [(row["recording_id"], row["start_s"], row["end_s"]) for row in rows] == [
        ("r", 2.8, 6.7),
        ("r", 10.3, 11.6),
        ("bad", 3.0, None),
        ("quiet", 0.0, 5.0),
        ("b", 2.8, 6.7),
        ("b", 10.3, 11.6),
    ]
    for row in rows:
        if row["recording_id"] in ("r", "b"):
            part = talk[round(row["start_s"] * RATE) : round(row["end_s"] * RATE)]
            assert row["samples"] == part.tobytes()
            assert row["duration_s"] == len(part) / RATE
            assert row["speech_ratio"] == pytest.approx((part == 0.25).mean())
    quiet = rows[3]
    assert (quiet["samples"], quiet["speech_ratio"], quiet["segment_index"]) == (b"", 0.0, 0)
    assert quiet["duration_s"] == 0.0
    assert (quiet["segment_id"], quiet["error"]) == ("quiet@00000000-00005000", None)


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.tuples(st.floats(0, 6), st.booleans()), min_size=1, max_size=12),
    max_segment_seconds=st.floats(1, 5),
    keep_non_speech=st.booleans(),
)
def test_speech_is_in_one_segment_each(
    parts: list[tuple[float, bool]], max_segment_seconds: float, keep_non_speech: bool
) -> None:
    samples = marked(*parts)
    if len(samples) < 400:
        return
    rows = run(
        table(item_of(samples)),
        vad=VAD,
        max_segment_seconds=max_segment_seconds,
        keep_non_speech=keep_non_speech,
    )
    covered = np.zeros(len(samples), int)
    for row in rows:
        if row["samples"]:
            start = round(row["start_s"] * RATE)
            assert 400 <= len(row["samples"]) // 4 <= max_segment_seconds * RATE
            covered[start : start + len(row["samples"]) // 4] += 1
    assert covered.max() <= 1
    assert (covered[samples == 0.25] == 1).all()
    if keep_non_speech:
        assert covered.all()
    assert len({row["segment_id"] for row in rows}) == len(rows) > 0


def broken_detector(samples: np.ndarray, rate: int) -> list[tuple[float, float]]:
    if samples[0] == 0.25:
        raise RuntimeError("no model\nhere")
    return [(1.0, 2.0), (1.5, 1.8)]


def test_a_detector_that_fails_costs_its_item() -> None:
    made = table(item_of(marked((1, True))), item_of(marked((3, False)), recording_id="b"), item(10))
    rows = run(made, vad=f"{__name__}:broken_detector")
    assert [row["error"]["error_class"] for row in rows] == ["SegmentError", "SegmentError", "TooShortError"]
    assert "detector failed with RuntimeError: no model here; correct it" in rows[0]["error"]["message"]
    assert "found speech from 1.5 to 1.8 s after 2 s" in rows[1]["error"]["message"]
    for row in rows:
        assert (row["samples"], row["segment_id"], row["speech_ratio"]) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no.such:find", "vad 'no.such:find' cannot be imported"),
        (f"{__name__}:absent", "cannot be imported"),
        (f"{__name__}:VAD", "is str, expected a function"),
    ],
)
def test_a_detector_that_is_not_there_is_no_error_of_an_item(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SegmentAudio(SegmentAudioConfig(vad=name))(table(item(RATE)))


def test_the_detector_of_the_page_on_audio_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "audio.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"(?ms)^```python\n# energy_vad.py\n(.*?)^```", page)
    (tmp_path / "energy_vad.py").write_text(example, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    samples = sound((3, 0.001), (2, 0.5), (4, 0.001))
    made = table(item(len(samples) // 4) | {"samples": samples})
    (row,) = run(made, vad="energy_vad:find_speech", keep_non_speech=False)
    assert (row["start_s"], row["end_s"]) == (pytest.approx(2.8, abs=0.03), pytest.approx(5.2, abs=0.03))
    assert row["speech_ratio"] == pytest.approx(2 / 2.4, abs=0.03)
