"""Containers that were damaged when they were planned, and are whole now: their rejects count no more."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.made_outputs import plan, publish, silence
from w2v_ray.errors import OutputError
from w2v_ray.output import audit, current_rows
from w2v_ray.plan import status


def tar_of(names: list[str]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in names:
            member = tarfile.TarInfo(f"{name}.wav")
            member.size = len(data := silence(30))
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def parquet_of(names: list[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"id": names, "audio": [silence(30) for _ in names]}), file)
    return file.getvalue()


def rejects(output: str) -> list[dict[str, Any]]:
    return [row for part in current_rows(output, "rejects") for row in part.to_pylist()]


WHOLE = {"tar": tar_of(["a", "b", "c"]), "parquet": parquet_of(["a", "b", "c"])}


@pytest.mark.parametrize("kind", WHOLE)
def test_the_damage_of_a_file_that_was_mended_counts_no_more(kind: str, tmp_path: Path) -> None:
    """Nothing of it could be planned before, so nothing has changed and a plain run does it."""
    file = tmp_path / f"x.{kind}"
    file.write_bytes(WHOLE[kind][:100])
    planned = plan(str(file), tmp_path / "out")
    publish(planned, failing={str(file)})
    output = planned.output
    assert (audit(output).num_items_rejected, status(output).num_items_rejected) == (1, 1)
    assert plan(str(file), output).num_new == 0

    file.write_bytes(WHOLE[kind][:200])  # another try at it, of no avail
    with pytest.raises(OutputError, match="has changed since it was planned"):
        plan(str(file), output)
    publish(plan(str(file), output, on_change="new"), failing={str(file)})
    assert [row["attempt"] for row in rejects(output)] == [2]

    file.write_bytes(WHOLE[kind])
    mended = plan(str(file), output)
    assert (mended.num_new, mended.num_items, mended.num_pending) == (3, 3, 1)
    assert [row["recording_id"] for row in rejects(output)] == [str(file)]  # until the rest is done
    assert status(output).num_items_rejected == 0
    publish(mended)
    assert rejects(output) == []
    found, counted = audit(output), status(output)
    assert (found.is_complete, found.num_items, found.num_items_ok) == (True, 3, 3), found.findings
    assert (found.num_items_rejected, found.num_items_superseded) == (0, 2)
    assert (counted.num_items, counted.num_items_done, counted.num_items_rejected) == (3, 3, 0)
    again = plan(str(file), output)
    assert (again.num_new, again.num_pending) == (0, 0)


def test_a_tar_that_was_cut_off_and_is_whole_again_is_a_new_generation(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    tar.write_bytes(WHOLE["tar"][:40_000])  # in its second member
    planned = plan(str(tar), tmp_path / "out")
    assert planned.num_items == 2
    publish(planned, failing={str(tar)})
    output = planned.output

    tar.write_bytes(WHOLE["tar"])
    with pytest.raises(OutputError, match="has changed since it was planned"):
        plan(str(tar), output)
    mended = plan(str(tar), output, on_change="new")
    assert (mended.num_new, mended.num_changed, mended.num_items) == (3, 1, 3)
    publish(mended)
    found = audit(output)
    assert (found.is_complete, found.num_items_ok, found.num_items_rejected) == (True, 3, 0), found.findings
    assert rejects(output) == []
    names = sorted(row["recording_id"] for part in current_rows(output) for row in part.to_pylist())
    assert sorted(set(names)) == [f"{tar}#{name}.wav" for name in "abc"]

    tar.write_bytes(WHOLE["tar"][:40_000])  # and damaged once more, in the same way
    worse = plan(str(tar), output, on_change="new")
    publish(worse, failing={str(tar)})
    assert [row["recording_id"] for row in rejects(output)] == [str(tar)]
    assert audit(output).is_complete
