from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.made_outputs import plan, publish, write_archive
from w2v_ray.errors import OutputError
from w2v_ray.output import Audit, audit
from w2v_ray.parts import content_sha256, write_part
from w2v_ray.plan import records, status

NAMES = [f"a{number}.wav" for number in range(12)]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Four shards of three recordings, one of which failed in part."""
    planned = plan(write_archive(tmp_path / "in", dict.fromkeys(NAMES, "x")), tmp_path / "out")
    publish(planned, failing={"a4.wav"})
    return tmp_path / "out"


def parts(out: Path) -> list[Path]:
    return sorted((out / "transcripts").iterdir())


def kinds(out: Path | str) -> set[str]:
    return {finding.kind for finding in audit(str(out)).findings}


def with_footer(
    path: Path, change: Callable[[dict[str, object]], object], *, fingerprint: str | None = None
) -> None:
    """Writes a part again with another footer."""
    table = pq.read_table(path)
    footer = pq.read_metadata(path).metadata
    summary = json.loads(footer[b"w2v_ray.shard"])
    change(summary)
    job = fingerprint or footer[b"w2v_ray.job_fingerprint"].decode()
    path.write_bytes(write_part(table, job, summary))


def test_a_finished_output_is_proved(out: Path) -> None:
    found = audit(str(out))
    assert found.findings == ()
    assert found.is_complete
    assert (found.num_items, found.num_items_ok, found.num_items_rejected) == (12, 11, 1)
    assert found.num_items == found.num_items_ok + found.num_items_rejected + found.num_items_pending
    counted = status(str(out))
    assert (found.num_rows, found.num_rejects) == (counted.num_rows, counted.num_rejects)
    assert found.audio_s == pytest.approx(counted.done_s)
    assert found.audio_s + found.rejected_s == pytest.approx(360)
    assert found.num_files == found.num_shards + 1 == 5
    assert json.loads(found.to_json())["is_complete"] is True
    assert found.num_items_partly == len(found.partly)


def test_what_is_pending_is_no_finding(tmp_path: Path) -> None:
    planned = plan(write_archive(tmp_path / "in", dict.fromkeys(NAMES, "x")), tmp_path / "out")
    publish(planned, planned.pending[:1])
    found = audit(planned.output)
    assert (found.is_clean, found.is_complete, found.num_items_pending) == (True, False, 9)


def test_an_item_that_failed_in_part_is_listed_with_both(tmp_path: Path) -> None:
    names = {f"{number}.wav": "x" for number in range(9)}
    publish(plan(write_archive(tmp_path / "in", names), tmp_path / "out"), failing=names)
    found = audit(str(tmp_path / "out"))
    assert found.num_items_rejected == 9
    assert 0 < found.num_items_partly < 9  # of a single segment nothing is left
    assert all(name.split()[0] in names for name in found.partly)
    assert len(found.partly) == found.num_items_partly
    assert found.is_complete


def test_later_generations_are_counted_once(tmp_path: Path) -> None:
    contents = dict.fromkeys(NAMES, "x")
    publish(plan(write_archive(tmp_path / "in", contents), tmp_path / "out"))
    manifest = write_archive(tmp_path / "in", contents | {"a1.wav": "xx", "a7.wav": "xx"})
    planned = plan(manifest, tmp_path / "out", on_change="new")
    assert audit(planned.output).num_items_pending == 2
    publish(planned)
    found = audit(planned.output)
    assert found.is_complete
    assert (found.num_items, found.num_items_ok, found.num_items_superseded) == (12, 12, 2)
    counted = status(planned.output)
    assert (found.num_rows, found.audio_s) == (counted.num_rows, pytest.approx(360))


def test_outputs_in_stores_are_audited(s3: str, tmp_path: Path) -> None:
    planned = plan(write_archive(tmp_path / "in", dict.fromkeys(NAMES, "x")), f"{s3}/out")
    publish(planned, failing={"a1.wav"})
    found = audit(planned.output)
    assert (found.is_complete, found.num_items_ok, found.num_files) == (True, 11, 5)


def flip_rows(out: Path) -> None:
    data = bytearray(parts(out)[0].read_bytes())
    column = pq.read_metadata(parts(out)[0]).row_group(0).column(3)
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    parts(out)[0].write_bytes(data)


def cut(out: Path) -> None:
    parts(out)[0].write_bytes(parts(out)[0].read_bytes()[:-9])


def flip_rejects(out: Path) -> None:
    (path,) = (out / "rejects").iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def drop_a_row(out: Path) -> None:
    """Rows of one item fewer, in a file that agrees with itself."""
    path = parts(out)[0]
    table = pq.read_table(path)
    footer = pq.read_metadata(path).metadata
    summary = json.loads(footer[b"w2v_ray.shard"])
    rejected = (
        pq.read_table(out / summary["rejects_file"])["item_index"].to_pylist()
        if summary["num_rejects"]
        else []
    )
    item = next(index for index in table["item_index"].to_pylist() if index not in rejected)
    table = table.filter(pa.compute.not_equal(table["item_index"], item))
    summary |= {
        "num_rows": table.num_rows,
        "audio_s": pa.compute.sum(table["duration_s"]).as_py(),
        "rows_sha256": content_sha256(table),
    }
    path.write_bytes(write_part(table, footer[b"w2v_ray.job_fingerprint"].decode(), summary))


def edit_a_text(out: Path) -> None:
    path = parts(out)[0]
    table, footer = pq.read_table(path), pq.read_metadata(path).metadata
    texts = pa.array(["edited"] * table.num_rows)
    table = table.set_column(table.column_names.index("text"), "text", texts)
    path.write_bytes(
        write_part(table, footer[b"w2v_ray.job_fingerprint"].decode(), json.loads(footer[b"w2v_ray.shard"]))
    )


def double_a_segment(out: Path) -> None:
    path = parts(out)[0]
    table, footer = pq.read_table(path), pq.read_metadata(path).metadata
    table = pa.concat_tables([table, table.slice(0, 1)])
    path.write_bytes(
        write_part(table, footer[b"w2v_ray.job_fingerprint"].decode(), json.loads(footer[b"w2v_ray.shard"]))
    )


def copy_into_a_partition(out: Path) -> None:
    path = parts(out)[0]
    (out / "transcripts" / "kind=a").mkdir()
    shutil.copy(path, out / "transcripts" / "kind=a")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (flip_rows, {"damaged"}),
        (cut, {"damaged"}),
        (flip_rejects, {"damaged"}),
        (edit_a_text, {"damaged"}),
        (drop_a_row, {"lost"}),
        (double_a_segment, {"damaged", "doubled"}),
        (copy_into_a_partition, {"doubled"}),
        (lambda out: next((out / "rejects").iterdir()).unlink(), {"missing"}),
        (lambda out: with_footer(parts(out)[0], lambda s: s.update(num_rows=99)), {"damaged"}),
        (lambda out: with_footer(parts(out)[0], lambda s: s.update(audio_s=1.0)), {"damaged"}),
        (lambda out: with_footer(parts(out)[0], lambda s: s.update(num_items=1)), {"damaged"}),
        (lambda out: with_footer(parts(out)[0], lambda s: s, fingerprint="other"), {"foreign"}),
        (lambda out: with_footer(parts(out)[0], lambda s: s.update(shard_id="abc")), {"foreign"}),
        (lambda out: shutil.copy(parts(out)[0], out / "transcripts" / "part-abc.parquet"), {"foreign"}),
        (lambda out: (out / "transcripts" / "data_0.parquet").write_bytes(b""), {"foreign"}),
        (lambda out: (out / "rejects" / "mine.parquet").write_bytes(b""), {"foreign"}),
        (lambda out: (out / "alignments").mkdir(), {"foreign"}),
        (lambda out: shutil.copy(parts(out)[0], parts(out)[1]), {"foreign"}),
    ],
)
def test_each_fault_is_found(out: Path, damage: Callable[[Path], object], expected: set[str]) -> None:
    damage(out)
    found: Audit = audit(str(out))
    assert {finding.kind for finding in found.findings} == expected
    assert not found.is_clean


def test_a_plan_that_plans_an_item_twice_is_found(out: Path) -> None:
    table = pq.read_table(out / "_plan" / "plan-00001.parquet")
    shutil.copy(out / "_plan" / "plan-00001.parquet", out / "_plan" / "plan-00002.parquet")
    assert table.num_rows == 12
    assert "doubled" in kinds(out)


def test_a_segment_in_two_shards_is_found(tmp_path: Path) -> None:
    planned = plan(write_archive(tmp_path / "in", {"a.wav": "x"}, seconds=400), tmp_path / "out")
    assert planned.num_shards == 4
    publish(planned)
    assert audit(planned.output).is_complete
    one, other = parts(tmp_path / "out")[:2]
    first = pq.read_table(one)["segment_id"][0]
    table, footer = pq.read_table(other), pq.read_metadata(other).metadata
    ids = pa.array([first.as_py(), *table["segment_id"].to_pylist()[1:]])
    table = table.set_column(table.column_names.index("segment_id"), "segment_id", ids)
    summary = json.loads(footer[b"w2v_ray.shard"]) | {"rows_sha256": content_sha256(table)}
    other.write_bytes(write_part(table, footer[b"w2v_ray.job_fingerprint"].decode(), summary))
    (finding,) = audit(planned.output).findings
    assert (finding.kind, finding.name) == ("doubled", "a.wav")


def test_files_of_writers_that_lost_count_for_nothing(out: Path) -> None:
    (path,) = (out / "rejects").iterdir()
    shutil.copy(path, path.with_name(path.name.replace(path.name[-20:-8], "0" * 12)))
    found = audit(str(out))
    assert (found.is_complete, found.num_leftovers) == (True, 1)


def test_what_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is not the output of a job"):
        audit(str(tmp_path))


def test_an_output_without_a_plan_is_not_called_whole(tmp_path: Path) -> None:
    records.claim_output(str(tmp_path / "out"), {"model": "m"})
    found = audit(str(tmp_path / "out"))
    assert (found.is_clean, found.is_complete) == (True, False)
