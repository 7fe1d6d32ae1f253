"""Segments cover their item, keep their bounds and never get each other's name."""

from __future__ import annotations

import itertools
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

SCHEMA = pa.schema([*ITEM, pa.field("error", ERROR), *DECODED])
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
    assert rows[-1] == dict.fromkeys(SCHEMA.names) | failed() | {"segment_id": None, "segment_index": None}


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
