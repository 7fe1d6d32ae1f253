from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.made_outputs import plan, publish, write_archive
from w2v_ray.errors import OutputError
from w2v_ray.output import current_rows, row_schema
from w2v_ray.plan import status
from w2v_ray.schema import REJECT, TRANSCRIPT

NAMES = [f"{kind}{number:02}.wav" for number in range(40) for kind in "ab"]


def rows(output: Path, table: str | None = None, **options: Any) -> list[dict[str, Any]]:
    return pa.Table.from_batches(
        [batch for found in current_rows(str(output), table, **options) for batch in found.to_batches()],
        row_schema(str(output), table),
    ).to_pylist()


def test_all_rows_come_recording_by_recording(tmp_path: Path) -> None:
    manifest = write_archive(tmp_path / "in", dict.fromkeys(NAMES, "x"), seconds=70)
    planned = plan(manifest, tmp_path / "out")
    assert planned.num_shards == 80
    publish(planned, failing={"a03.wav"})
    tables = list(current_rows(str(tmp_path / "out")))
    assert len(tables) == 3  # of some shards each
    found = pa.concat_tables(tables)
    assert found.schema.equals(TRANSCRIPT)
    names = [row["recording_id"] for row in found.to_pylist()]
    assert list(dict.fromkeys(names)) == [name for name in NAMES if name in set(names)]
    keys = [(NAMES.index(row["recording_id"]), row["start_s"]) for row in found.to_pylist()]
    assert keys == sorted(keys)
    assert found.num_rows == status(str(tmp_path / "out")).num_rows
    (reject,) = rows(tmp_path / "out", "rejects")
    assert (reject["recording_id"], reject["attempt"]) == ("a03.wav", 1)
    assert row_schema(str(tmp_path / "out"), "rejects") == REJECT


def test_a_recording_in_several_shards_comes_in_one_table(tmp_path: Path) -> None:
    manifest = write_archive(tmp_path / "in", dict.fromkeys(NAMES[:12], "x"), seconds=2000)
    planned = plan(manifest, tmp_path / "out")
    assert planned.num_shards == 12 * 20
    publish(planned)
    seen: set[str] = set()
    for table in current_rows(str(tmp_path / "out")):
        names = set(table["recording_id"].to_pylist())
        assert not names & seen
        seen |= names
        starts = [row["start_s"] for row in table.to_pylist() if row["recording_id"] == min(names)]
        assert starts == sorted(starts)
        assert len(starts) >= 20
    assert seen == set(NAMES[:12])


def test_a_later_generation_takes_over_when_it_is_published(tmp_path: Path) -> None:
    contents = dict.fromkeys(NAMES[:6], "x")
    publish(plan(write_archive(tmp_path / "in", contents), tmp_path / "out"))
    before = rows(tmp_path / "out")
    manifest = write_archive(tmp_path / "in", contents | {"b01.wav": "longer"})
    planned = plan(manifest, tmp_path / "out", on_change="new")
    assert (planned.num_new, planned.num_changed, planned.num_pending, planned.num_items) == (1, 1, 1, 6)
    assert rows(tmp_path / "out") == before
    found = status(str(tmp_path / "out"))
    assert (found.num_items, found.num_items_done, found.num_items_superseded) == (6, 5, 1)
    publish(planned)
    after = rows(tmp_path / "out")
    assert [row for row in after if row["recording_id"] != "b01.wav"] == [
        row for row in before if row["recording_id"] != "b01.wav"
    ]
    changed = [row for row in after if row["recording_id"] == "b01.wav"]
    assert {row["text"].split()[1] for row in changed} == {"30050"}
    assert list(dict.fromkeys(row["recording_id"] for row in after)) == NAMES[:6]
    everything = rows(tmp_path / "out", generation="all")
    assert len(everything) == len(before) + len(changed)
    found = status(str(tmp_path / "out"))
    assert (found.num_items_done, found.num_rows, found.done_s) == (6, len(after), pytest.approx(180))
    assert plan(manifest, tmp_path / "out", on_change="new").num_new == 0


def test_a_recording_that_changes_back_is_a_generation_of_its_own(tmp_path: Path) -> None:
    import os

    manifest = write_archive(tmp_path / "in", {"a.wav": "x", "b.wav": "y"}, seconds=250)
    first = os.stat(tmp_path / "in" / "a.wav").st_mtime_ns
    publish(plan(manifest, tmp_path / "out"))
    for time_ns in (1_700_000_000_000_000_000, first):
        os.utime(tmp_path / "in" / "a.wav", ns=(time_ns, time_ns))
        publish(plan(manifest, tmp_path / "out", on_change="new"))
        texts = {row["text"] for row in rows(tmp_path / "out") if row["recording_id"] == "a.wav"}
        assert texts == {f"a.wav 250045 mtime:{time_ns}"}
    planned = plan(manifest, tmp_path / "out")
    assert (planned.num_new, planned.num_pending) == (0, 0)
    assert sorted(set(planned.items["generation"].to_pylist())) == [1, 2, 3]


def test_an_edition_takes_over_as_a_whole(tmp_path: Path) -> None:
    manifest = write_archive(tmp_path / "in", {"a.wav": "x"}, seconds=250)
    publish(plan(manifest, tmp_path / "out"))
    before = rows(tmp_path / "out")
    planned = plan(
        write_archive(tmp_path / "in", {"a.wav": "xy"}, seconds=250), tmp_path / "out", on_change="new"
    )
    assert planned.num_pending == 3
    publish(planned, planned.pending[:2])
    assert rows(tmp_path / "out") == before
    publish(planned, planned.pending[2:])
    assert {row["text"].split()[1] for row in rows(tmp_path / "out")} == {"250046"}


def test_what_is_replaced_before_it_ran_is_not_run(tmp_path: Path) -> None:
    plan(write_archive(tmp_path / "in", {"a.wav": "x", "b.wav": "y"}, seconds=90), tmp_path / "out")
    planned = plan(
        write_archive(tmp_path / "in", {"a.wav": "xx", "b.wav": "y"}, seconds=90),
        tmp_path / "out",
        on_change="new",
    )
    assert (planned.num_shards, planned.num_pending, planned.num_items) == (2, 2, 2)
    publish(planned)
    assert next(row["text"].split()[1] for row in rows(tmp_path / "out")) == "90046"
    assert status(str(tmp_path / "out")).num_shards_pending == 0


def test_a_part_with_the_name_of_another_shard_is_named_by_whoever_reads_it(tmp_path: Path) -> None:
    planned = plan(write_archive(tmp_path / "in", dict.fromkeys(NAMES[:8], "x")), tmp_path / "out")
    first, other = planned.pending[:2]
    publish(planned, [first])
    folder = tmp_path / "out" / "transcripts"
    copy = folder / f"part-{other}.parquet"
    copy.write_bytes((folder / f"part-{first}.parquet").read_bytes())
    for read in (
        lambda: status(str(tmp_path / "out")),
        lambda: rows(tmp_path / "out"),
        lambda: rows(tmp_path / "out", "rejects"),
        lambda: publish(planned, [other]),
    ):
        with pytest.raises(
            OutputError, match=f"part-{other}.parquet' holds another shard than its name says"
        ):
            read()
    assert copy.exists()


def test_what_is_no_table_is_named(tmp_path: Path) -> None:
    publish(plan(write_archive(tmp_path / "in", {"a.wav": "x"}), tmp_path / "out"))
    for options, complaint in [
        ({"table": "alignments"}, "has no table 'alignments'; name one of transcripts, rejects"),
        ({"generation": "oldest"}, "generation is 'oldest'"),
    ]:
        with pytest.raises(OutputError, match=complaint):
            list(current_rows(str(tmp_path / "out"), **options))
    with pytest.raises(OutputError, match="is not the output of a job"):
        list(current_rows(str(tmp_path / "in")))
