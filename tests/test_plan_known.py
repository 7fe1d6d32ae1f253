"""A second run over the same inputs: what is planned is told from what is new while listing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from w2v_ray.errors import InputError
from w2v_ray.plan import make_plan
from w2v_ray.plan.known import Known
from w2v_ray.schema import ITEM


def plan(output: Path, *inputs: Path) -> Any:
    return make_plan([str(path) for path in inputs], str(output), shard_seconds=100, job={})


def manifest(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"1")
    return tmp_path


def test_duplicates_are_counted_as_the_first_time(audio: Path) -> None:
    a, b = ({"path": f"{name}.wav", "duration": 3} for name in "ab")
    first = manifest(audio / "1.jsonl", a, a, b)
    second = manifest(audio / "2.jsonl", a, b, b, a)
    assert (plan(audio / "out", first).num_new, plan(audio / "out", first).num_new) == (2, 0)
    for inputs, expected in [((first,), 1), ((first, second), 5), ((second,), 2)]:
        assert plan(audio / "out", *inputs).num_duplicates == expected
        assert plan(audio / f"new-{expected}", *inputs).num_duplicates == expected


def test_a_new_recording_called_like_a_planned_one_is_refused(audio: Path) -> None:
    first = manifest(audio / "1.jsonl", {"path": "a.wav", "id": "x", "duration": 3})
    second = manifest(audio / "2.jsonl", {"path": "b.wav", "id": "x", "duration": 3})
    plan(audio / "out", first)
    complaint = "two recordings are called 'x': one of '.*a.wav', which is planned, and one of '.*b.wav'"
    for inputs in [(first, second), (second, first)]:
        with pytest.raises(InputError, match=complaint):
            plan(audio / "out", *inputs)


def test_ranges_of_a_long_recording_are_known_as_one() -> None:
    prints = [f"{'a' * 24}@1/2", f"{'a' * 24}@2/2", "b" * 24]
    items = pa.table(
        {name: prints if name == "fingerprint" else [None] * 3 for name in ITEM.names}, schema=ITEM
    )
    known = Known(items)
    entries = pa.table({"fingerprint": ["a" * 24, "c" * 24, "b" * 24, "0" * 24, "a" * 24], "n": range(5)})
    assert known.unplanned(entries)["n"].to_pylist() == [1, 3]
    assert known.num_again == 1
    assert known.unplanned(entries.slice(0, 2))["n"].to_pylist() == [1]
    assert known.num_again == 2
    assert Known(ITEM.empty_table()).unplanned(entries) is entries
