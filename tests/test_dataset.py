from __future__ import annotations

from pathlib import Path

import pytest

import w2v_ray
from tests.made_outputs import plan, publish, write_archive
from w2v_ray.output import current_rows


def test_an_output_is_a_dataset_of_the_rows_that_count(tmp_path: Path, ray_session: None) -> None:
    contents = {f"a{number:02}.wav": "x" for number in range(40)}
    publish(plan(write_archive(tmp_path / "in", contents, seconds=70), tmp_path / "out"))
    planned = plan(
        write_archive(tmp_path / "in", contents | {"a07.wav": "xx"}, seconds=70),
        tmp_path / "out",
        on_change="new",
    )
    publish(planned, failing={"a07.wav"})
    output = planned.output
    ds = w2v_ray.read_output(output)
    expected = [row for part in current_rows(output) for row in part.to_pylist()]
    found = ds.take_all()
    assert sorted(row["segment_id"] for row in found) == sorted(row["segment_id"] for row in expected)
    by_id = {row["segment_id"]: row for row in found}
    assert by_id[expected[0]["segment_id"]]["text"] == expected[0]["text"]
    (reject,) = w2v_ray.read_output(output, "rejects").take_all()
    assert reject["attempt"] == 2
    assert w2v_ray.read_output(output, generation="all").count() > len(found)
    with pytest.raises(w2v_ray.OutputError, match="has no table 'alignments'"):
        w2v_ray.read_output(output, "alignments")
