from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.made_outputs import plan, publish, write_archive
from tests.speaker_outputs import SIZE, embedded, embeddings_output, utterances
from w2v_ray import stores
from w2v_ray.crash_points import CRASH_POINTS, EXIT_CODE
from w2v_ray.errors import ConfigError, InputError, OutputError
from w2v_ray.output import audit, compact, current_rows
from w2v_ray.plan import Plan, status

NAMES = [f"{kind}{number}.wav" for number in range(8) for kind in "ab"]
PROCESSES = multiprocessing.get_context("forkserver")


def rows(output: str, table: str = "transcripts") -> list[dict[str, object]]:
    return [row for part in current_rows(output, table) for row in part.to_pylist()]


def make(folder: Path, output: Path | str, **changes: object) -> Plan:
    """Sixteen shards of a recording each."""
    manifest = write_archive(folder / "in", dict.fromkeys(NAMES, "x"), seconds=70)
    planned = plan(manifest, output, **changes)
    publish(planned, failing=NAMES[::5])
    return planned


def names(output: str) -> list[str]:
    return stores.list_names(f"{output}/transcripts")


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_files_are_merged_and_nothing_else_changes(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path) if kind == "local" else request.getfixturevalue("s3")
    output = make(tmp_path, f"{root}/out").output
    before = rows(output), rows(output, "rejects"), status(output), audit(output)
    done = compact(output, target_mb=100)
    assert (done.num_files_before, done.num_files) == (16, 1)
    assert done.bytes < done.bytes_before
    after = audit(output)
    assert after.is_complete
    assert (rows(output), rows(output, "rejects"), status(output)) == before[:3]
    assert (after.num_items_ok, after.num_rows) == (before[3].num_items_ok, before[3].num_rows)
    assert after.audio_s == pytest.approx(before[3].audio_s)  # a sum in another order
    again = compact(output, target_mb=100)
    assert (again.num_files_before, again.num_files, again.num_leftovers) == (1, 1, 0)
    assert plan(str(tmp_path / "in" / "manifest.jsonl"), output).num_pending == 0


def test_files_stay_below_the_target_and_are_plain_parquet(tmp_path: Path) -> None:
    output = make(tmp_path, tmp_path / "out").output
    size = max(path.stat().st_size for path in (tmp_path / "out" / "transcripts").iterdir())
    compact(output, target_mb=size * 4.5 / 1e6)
    assert len(names(output)) in (4, 5)
    assert all(path.stat().st_size <= size * 4.5 for path in (tmp_path / "out" / "transcripts").iterdir())
    table = pq.read_table(tmp_path / "out" / "transcripts")
    assert sorted(table["segment_id"].to_pylist()) == sorted(str(row["segment_id"]) for row in rows(output))
    assert audit(output).is_complete


def test_what_comes_later_is_merged_with_what_is_merged(tmp_path: Path) -> None:
    output = make(tmp_path, tmp_path / "out").output
    compact(output, target_mb=100)
    manifest = write_archive(tmp_path / "in", {"c.wav": "x"} | dict.fromkeys(NAMES, "x"), seconds=70)
    publish(plan(manifest, output))
    manifest = write_archive(tmp_path / "in", {"a1.wav": "xx"}, seconds=70)
    publish(plan(manifest, output, on_change="new"))
    before = rows(output)
    assert len(names(output)) == 3
    assert compact(output, target_mb=100).num_files == 1
    assert rows(output) == before
    found = audit(output)
    assert (found.is_complete, found.num_items, found.num_items_superseded) == (True, 17, 1)


def compact_in_child(output: str, crash_at: str) -> None:
    os.environ["W2V_RAY_CRASH_AT"] = crash_at
    compact(output, target_mb=100)


@pytest.mark.parametrize(
    ("step", "counts"),
    [("write.half", [1]), ("write.whole", [1]), ("write.done", [1])]
    + [(point, [1]) for point in CRASH_POINTS if point in ("compact.ready", "compact.written")]
    + [("compact.removing", [1, 7, 16])],
)
def test_rows_count_once_wherever_it_dies(step: str, counts: list[int], tmp_path: Path) -> None:
    made = make(tmp_path, tmp_path / "made").output
    before, before_status = rows(made), status(made)
    for count in counts:
        output = str(tmp_path / f"out{count}")
        shutil.copytree(made, output)
        child = PROCESSES.Process(target=compact_in_child, args=(output, f"{step}:{count}"))
        child.start()
        child.join()
        assert child.exitcode == EXIT_CODE
        found = audit(output)
        assert found.is_complete
        assert rows(output) == before
        assert status(output) == before_status
        assert compact(output, target_mb=100).num_files == 1
        assert names(output) == [name for name in names(output) if name.startswith("compacted-")]
        assert rows(output) == before
        assert audit(output).num_leftovers == 0


def test_a_merge_of_merged_files_may_die_and_be_done_again(tmp_path: Path) -> None:
    for trial in range(4):  # which file counts depends on names
        two = dict.fromkeys([f"a{trial}.wav", f"b{trial}.wav"], "x")
        output = str(tmp_path / f"out{trial}")
        publish(plan(write_archive(tmp_path / f"in{trial}", two, seconds=70), output))
        compact(output, target_mb=100)
        three = write_archive(tmp_path / f"in{trial}", two | {f"c{trial}.wav": "x"}, seconds=70)
        publish(plan(three, output))
        before = rows(output)
        child = PROCESSES.Process(target=compact_in_child, args=(output, "compact.written"))
        child.start()
        child.join()
        assert child.exitcode == EXIT_CODE
        compact(output, target_mb=100)
        assert rows(output) == before
        assert audit(output).is_complete


def test_a_late_writer_of_a_merged_shard_counts_for_nothing(tmp_path: Path) -> None:
    planned = make(tmp_path, tmp_path / "out")
    before = rows(planned.output)
    compact(planned.output, target_mb=100)
    publish(planned, planned.pending[:2], failing=NAMES)
    assert len(names(planned.output)) == 3
    assert rows(planned.output) == before
    found = audit(planned.output)
    assert found.is_complete
    assert found.num_leftovers >= 3
    assert compact(planned.output, target_mb=100).num_leftovers == found.num_leftovers
    assert audit(planned.output).num_leftovers == 0


def test_damage_is_not_merged(tmp_path: Path) -> None:
    output = make(tmp_path, tmp_path / "out").output
    paths = (tmp_path / "out" / "transcripts").iterdir()
    path = next(path for path in paths if pq.read_metadata(path).num_rows)  # not one of the rejected
    table = pq.read_table(path)
    texts = pa.array(["edited"] * table.num_rows)
    edited = table.set_column(table.column_names.index("text"), "text", texts)
    pq.write_table(edited.replace_schema_metadata(pq.read_metadata(path).metadata), path)
    with pytest.raises(OutputError, match="has other rows than were written; restore the file"):
        compact(output)
    assert len(names(output)) == 16
    with pytest.raises(ConfigError, match="target_mb is 0, expected above 0"):
        compact(output, target_mb=0)


# ---- partitions


def test_partitions_are_folders_that_every_reader_knows(tmp_path: Path) -> None:
    planned = make(tmp_path, tmp_path / "out", partition_by="kind")
    assert planned.num_shards == 16
    output = planned.output
    assert names(output) == ["kind=a", "kind=b"]
    found = pa.dataset.dataset(f"{output}/transcripts", partitioning="hive").to_table()
    assert set(
        zip(found["kind"].to_pylist(), (n[0] for n in found["recording_id"].to_pylist()), strict=True)
    ) == {
        ("a", "a"),
        ("b", "b"),
    }
    before = rows(output)
    flat = make(tmp_path, tmp_path / "flat")
    assert sorted(str(row["segment_id"]) for row in rows(flat.output)) == sorted(
        str(row["segment_id"]) for row in before
    )
    assert audit(output).is_complete
    assert status(output).num_shards_done == 16
    assert plan(str(tmp_path / "in" / "manifest.jsonl"), output, partition_by="kind").num_pending == 0
    assert compact(output, target_mb=100).num_files == 2
    assert (rows(output), names(output), audit(output).is_complete) == (before, ["kind=a", "kind=b"], True)
    with pytest.raises(OutputError, match="partition_by 'kind' -> None"):
        plan(str(tmp_path / "in" / "manifest.jsonl"), output)


def test_shards_hold_one_value_of_the_partition(tmp_path: Path) -> None:
    manifest = write_archive(tmp_path / "in", dict.fromkeys(NAMES, "x"), seconds=30)
    planned = plan(manifest, tmp_path / "out", partition_by="kind")
    for items in planned.shard_tables():
        assert len({json.loads(text)["kind"] for text in items["metadata"].to_pylist()}) == 1
        assert items["item_index"].to_pylist() == list(range(items.num_rows))
    assert planned.num_shards == 6
    assert planned.num_items == 16


def test_odd_values_of_partitions_are_written_as_hive_does(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    manifest = Path(write_archive(folder, dict.fromkeys(NAMES[:5], "x")))
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    values = ["a/b=c", "", 7, "half \ud800"]
    for line, value in zip(lines, values, strict=False):
        line["kind"] = value
    del lines[4]["kind"]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    planned = plan(str(manifest), tmp_path / "out", partition_by="kind")
    publish(planned)
    folders = ["kind=7", "kind=__HIVE_DEFAULT_PARTITION__", "kind=a%2Fb%3Dc", "kind=half %3F"]
    assert names(planned.output) == folders
    found = pa.dataset.dataset(f"{planned.output}/transcripts", partitioning="hive").to_table()
    assert set(found["kind"].to_pylist()) == {"a/b=c", None, "7", "half ?"}
    assert audit(planned.output).is_complete
    shutil.move(f"{planned.output}/transcripts/kind=7", f"{planned.output}/transcripts/kind=8")
    (finding,) = audit(planned.output).findings
    assert (finding.kind, finding.detail) == ("damaged", "belongs into kind=7")


def test_a_value_too_long_for_a_folder_is_refused_before_anything_runs(tmp_path: Path) -> None:
    manifest = Path(write_archive(tmp_path / "in", {"a.wav": "x", "b.wav": "x"}))
    manifest.write_text(manifest.read_text().replace('"kind": "b"', '"kind": "' + "ü" * 50 + '"'))
    with pytest.raises(InputError, match="has a value of 'kind' that makes a folder name of 305 bytes"):
        plan(str(manifest), tmp_path / "out", partition_by="kind")
    manifest.write_text(manifest.read_text().replace("ü" * 50, "ü" * 41))
    assert len(publish(plan(str(manifest), tmp_path / "out", partition_by="kind"))) == 2


def test_a_key_that_no_entry_has_is_refused(tmp_path: Path) -> None:
    manifest = write_archive(tmp_path / "in", {"a.wav": "x"})
    with pytest.raises(InputError, match=r"partition_by is 'lang', which no entry .* \(their keys: kind\)"):
        plan(manifest, tmp_path / "out", partition_by="lang")
    with pytest.raises(InputError, match=r"\(their keys: none\); name one of a manifest, or leave"):
        plan(str(tmp_path / "in" / "a.wav"), tmp_path / "out", partition_by="lang")
    assert plan(manifest, tmp_path / "out", partition_by="kind").num_new == 1
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.wav").write_bytes((tmp_path / "in" / "a.wav").read_bytes())
    assert plan(str(tmp_path / "more"), tmp_path / "out", partition_by="kind").num_new == 1
    (tmp_path / "x.tar").write_bytes(b"")
    assert plan(str(tmp_path / "x.tar"), tmp_path / "damaged", partition_by="lang").num_new == 1


def test_embeddings_are_merged_as_well(tmp_path: Path) -> None:
    vectors = utterances(range(9))
    recordings = {f"/archive/{n}.wav": [embedded(0.0, 1.0, vector)] for n, vector in enumerate(vectors)}
    output = embeddings_output(tmp_path / "out", recordings)
    before = rows(output, "embeddings")
    done = compact(output, target_mb=100)
    assert (done.num_files_before, done.num_files) == (3, 1)
    assert audit(output).is_complete
    assert rows(output, "embeddings") == before
    assert len(before[0]["embedding"]) == SIZE
