from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.made_outputs import JOB, plan, publish, silence, write_archive
from w2v_ray.config import JobConfig
from w2v_ray.errors import ConfigError, OutputError
from w2v_ray.job import prepare, prepare_retry, recorded_job
from w2v_ray.output import audit, current_rows, make_retry_plan
from w2v_ray.plan import Plan, make_redecode_plan, status

NAMES = [f"a{number}.wav" for number in range(9)]


def retry(output: str, **options: Any) -> Plan:
    return make_retry_plan(output, job=JOB, shard_seconds=100, **options)


def rows(output: str, table: str) -> list[dict[str, Any]]:
    return [row for part in current_rows(output, table) for row in part.to_pylist()]


@pytest.fixture
def out(tmp_path: Path) -> str:
    planned = plan(write_archive(tmp_path / "in", dict.fromkeys(NAMES, "x")), tmp_path / "out")
    publish(planned, failing={"a1.wav", "a2.wav", "a8.wav"})
    return planned.output


def test_rejected_items_are_planned_and_done_again(out: str) -> None:
    before = rows(out, "transcripts")
    planned = retry(out)
    assert (planned.num_new, planned.num_pending, planned.num_items) == (3, 1, 9)
    (items,) = planned.pending_tables()
    assert items["recording_id"].to_pylist() == ["a1.wav", "a2.wav", "a8.wav"]
    assert items["generation"].to_pylist() == [2, 2, 2]
    assert status(out).num_items_rejected == 0  # they are pending
    assert rows(out, "transcripts") == before
    publish(planned, failing={"a2.wav"})
    found = audit(out)
    assert (found.is_complete, found.num_items_ok, found.num_items_rejected) == (True, 8, 1)
    assert found.num_items_superseded == 3
    (reject,) = rows(out, "rejects")
    assert (reject["recording_id"], reject["attempt"]) == ("a2.wav", 2)
    assert [row for row in rows(out, "transcripts") if row["recording_id"] == "a8.wav"]
    assert status(out).num_items_rejected == 1
    publish(retry(out))
    assert (audit(out).num_items_ok, rows(out, "rejects")) == (9, [])
    assert retry(out).num_new == 0


def test_a_tar_that_was_empty_and_is_repaired_is_planned(tmp_path: Path) -> None:
    tar = tmp_path / "in" / "a.tar"
    tar.parent.mkdir()
    tar.write_bytes(b"")
    planned = plan(str(tar), tmp_path / "out")
    publish(planned, failing={str(tar)})
    with tarfile.open(tar, "w") as file:
        for name in ("a.wav", "b.wav"):
            member = tarfile.TarInfo(name)
            member.size = len(data := silence(30))
            file.addfile(member, io.BytesIO(data))
    publish(retry(planned.output), failing={str(tar)})  # what is wrong with a tar is found when it is planned
    again = plan(str(tar), tmp_path / "out")
    assert (again.num_new, again.num_pending) == (2, 1)


def test_a_retry_that_did_not_run_is_not_planned_twice(out: str) -> None:
    first = retry(out)
    again = retry(out)
    assert (again.num_new, again.pending) == (0, first.pending)
    manifest = str(Path(out).parent / "in" / "manifest.jsonl")
    resumed = plan(manifest, out)
    assert (resumed.num_new, resumed.pending) == (0, first.pending)
    publish(resumed)
    assert audit(out).num_items_ok == 9


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"reasons": ["EncodeError"]}, 3),
        ({"reasons": ["ReadError"]}, 0),
        ({"stages": ["encode"], "reasons": ["EncodeError", "ReadError"]}, 3),
        ({"stages": ["read_audio"]}, 0),
    ],
)
def test_items_are_chosen_by_reason_and_stage(out: str, options: dict[str, Any], count: int) -> None:
    assert retry(out, **options).num_new == count


def test_only_the_failed_ranges_of_a_recording_are_done_again(tmp_path: Path) -> None:
    planned = plan(write_archive(tmp_path / "in", {"long.wav": "x"}), tmp_path / "out")
    publish(planned, failing=lambda item: item["start_s"] == 100)
    before = {row["start_s"]: row for row in rows(planned.output, "transcripts")}
    again = retry(planned.output)
    assert (again.num_new, again.items["start_s"].to_pylist()[-1]) == (1, 100)
    publish(again)
    after = {row["start_s"]: row for row in rows(planned.output, "transcripts")}
    assert set(before) <= set(after)
    assert (audit(planned.output).num_items, audit(planned.output).num_items_ok) == (3, 3)


def test_a_file_that_was_mended_is_planned_as_it_is_now(tmp_path: Path) -> None:
    manifest = write_archive(tmp_path / "in", {"a.wav": "x", "long.wav": "x"})
    planned = plan(manifest, tmp_path / "out")
    publish(planned, failing=lambda item: item["recording_id"] == "a.wav" or item["start_s"] == 100)
    (tmp_path / "in" / "a.wav").write_bytes(silence(20))
    (tmp_path / "in" / "long.wav").write_bytes(silence(130, b"mended"))
    again = retry(planned.output)
    new = [row for row in again.items.to_pylist() if row["generation"] == 2]
    assert [(row["recording_id"], row["start_s"], row["byte_size"]) for row in new] == [
        ("a.wav", None, 20044),
        ("long.wav", None, 130050),
    ]
    assert new[1]["planned_s"] == 130
    publish(again)
    found = audit(planned.output)
    assert (found.is_complete, found.num_items, found.num_items_ok) == (True, 2, 2)
    assert plan(manifest, planned.output).num_new == 0


def test_a_half_published_generation_is_not_decoded_again(tmp_path: Path) -> None:
    options = {"keep_log_probs": 8, "shard_seconds": 60}
    planned = plan(write_archive(tmp_path / "in", {"long.wav": "x"}), tmp_path / "kept", **options)
    publish(planned, keeps_log_probs=True)
    seconds = sum(row["duration_s"] for row in rows(planned.output, "transcripts"))
    changed = write_archive(tmp_path / "in", {"long.wav": "changed"})
    newer = plan(changed, planned.output, on_change="new", **options)
    assert newer.num_pending > 1
    publish(newer, newer.pending[:1], keeps_log_probs=True)
    again = make_redecode_plan(planned.output, str(tmp_path / "again"), job={"alpha": 1})
    publish(again)
    assert sum(row["duration_s"] for row in rows(again.output, "transcripts")) == pytest.approx(seconds)
    publish(newer, newer.pending[1:], keeps_log_probs=True)
    last = make_redecode_plan(planned.output, str(tmp_path / "again"), job={"alpha": 1})
    publish(last)
    assert {row["byte_size"] for row in plan_rows(last)} == {250_044 + 7}


def plan_rows(planned: Plan) -> list[dict[str, Any]]:
    return [row for table in planned.shard_tables(planned.pending) for row in table.to_pylist()]


def test_what_cannot_be_retried_says_so(out: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reason is 'NoSuch', expected one of AlignError, .*ReadError"):
        retry(out, reasons=["NoSuch"])
    with pytest.raises(ConfigError, match="stage is 'encoding', expected one of take_language"):
        retry(out, stages=["encode", "encoding"])
    with pytest.raises(OutputError, match=r"settings \(model 'm' -> 'other'\)"):
        make_retry_plan(out, job=JOB | {"model": "other"}, shard_seconds=100)
    with pytest.raises(OutputError, match="is not the output of a job"):
        retry(str(tmp_path))
    kept = plan(str(tmp_path / "in" / "manifest.jsonl"), tmp_path / "kept", keep_log_probs=8)
    publish(kept, keeps_log_probs=True)
    again = make_redecode_plan(kept.output, str(tmp_path / "again"), job={"alpha": 1})
    with pytest.raises(OutputError, match="retry in that one, then redecode again"):
        make_retry_plan(again.output, job=JOB, shard_seconds=100)
    with pytest.raises(OutputError, match=r"job\.json' keeps no settings of its job"):
        recorded_job(out)


def test_the_job_is_taken_from_its_output(tmp_path: Path, tiny_checkpoint: Path) -> None:
    manifest = write_archive(tmp_path / "in", dict.fromkeys(NAMES, "x"))
    job = JobConfig(
        inputs=(manifest,),
        output=str(tmp_path / "out"),
        model=str(tiny_checkpoint),
        shard_seconds=90,
        hotwords=("ONE",),
        device="cpu",
    )
    planned = prepare(job)
    publish(planned, failing=NAMES[:2])
    assert "inputs" not in json.loads((tmp_path / "out/_plan/job.json").read_text())["settings"]
    found = recorded_job(job.output, ["device=auto", "num_encoders=2"])
    assert (found.hotwords, found.shard_seconds, found.device, found.num_encoders) == (
        ("ONE",),
        90,
        "auto",
        2,
    )
    assert found.fingerprint_fields() == job.fingerprint_fields()
    assert prepare_retry(found, reasons=["EncodeError"]).num_new == 2
    with pytest.raises(OutputError, match="beam_width None -> 7"):
        prepare_retry(recorded_job(job.output, ["beam_width=7"]))
    with pytest.raises(ConfigError, match="unknown key 'devise'; the nearest valid key is 'device'"):
        recorded_job(job.output, ["devise=cpu"])
