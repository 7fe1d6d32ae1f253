"""The record of a run: what it holds at every moment, who may read it, and following it from elsewhere."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.made_outputs import plan, publish, write_archive
from w2v_ray import audit, cli, stores
from w2v_ray.errors import OutputError
from w2v_ray.plan import Plan
from w2v_ray.progress import Progress, StageTotals
from w2v_ray.run_record import Published, RunRecord, newest_run, run_name, state_of

STAGES = ("read_audio", "decode_audio", "segment_audio", "encode", "decode_text", "write_parquet")
KEYS = {
    "schema_version",
    "run",
    "state",
    "command",
    "task",
    "output",
    "started_at",
    "updated_at",
    "ended_at",
    "wall_s",
    "error",
    "versions",
    "job",
    "job_fingerprint",
    "cluster",
    "attention",
    "progress",
    "totals",
    "stages",
    "timeline",
    "quality",
    "inputs",
    "outputs",
}


def progress(planned: Plan, **changes: Any) -> Progress:
    values: dict[str, Any] = {
        "planned_s": planned.planned_s,
        "before_s": 0.0,
        "done_s": 0.0,
        "num_shards": planned.num_shards,
        "num_shards_done": 0,
        "num_rejects": 0,
        "elapsed_s": 0.0,
    }
    return Progress(**values | changes)


def record_of(planned: Plan, *, name: str | None = None, settings: Any = None) -> RunRecord:
    return RunRecord(
        name or run_name(datetime.now(UTC)),
        planned,
        command="transcribe",
        task="transcribe",
        settings=settings or {"model": "m"},
        inputs=["/data/a", "s3://bucket/b"],
        tables=["transcripts"],
        stages=STAGES,
        cluster={"nodes": 1, "cpus": 2.0, "gpus": 0.0, "pools": {}, "metrics": []},
    )


@pytest.fixture
def planned(tmp_path: Path) -> Plan:
    archive = write_archive(tmp_path / "archive", {f"{name}.wav": name for name in "abcdef"})
    return plan(archive, tmp_path / "out")


def written(planned: Plan) -> dict[str, Any]:
    found = newest_run(planned.output)
    assert found is not None
    return found


def test_a_record_says_all_of_a_run(planned: Plan) -> None:
    record, published = record_of(planned), Published()
    record.update(progress(planned), published, {}, {})
    summaries = publish(planned, failing=["a.wav"])
    for summary in summaries:
        published.add(summary, planned_s=planned.shard_seconds[summary["shard_id"]])
    totals = {
        "read_audio": StageTotals(busy_s=1.0, items=6, num_bytes=1234, audio_s=180.0),
        "encode": StageTotals(busy_s=2.0, items=9, audio_s=60.0, padding_s=20.0, batches=4),
    }
    totals["encode"].errors["encode", "EncodeError"] = 1
    done = progress(
        planned, done_s=180.0, elapsed_s=20.0, num_rejects=1, num_shards_done=2, queue={"encode": 1}
    )
    notes = {"attention": {"name": "sdpa", "reason": "no flash_attn here"}}
    record.update(done, published, totals, notes, is_last=True)
    record.end("done")
    found = written(planned)
    assert found.keys() == KEYS
    assert found["run"] == record.run
    assert (found["state"], found["error"]) == ("done", None)
    assert found["ended_at"] == found["updated_at"] >= found["started_at"]
    assert found["job_fingerprint"] == planned.job_fingerprint
    assert found["versions"].keys() == {"w2v_ray", "ray", "torch", "python"}
    assert found["attention"] == notes["attention"]
    assert found["progress"]["rate_x"] == 9.0
    assert found["progress"]["queue"] == {"encode": 1}
    assert found["totals"] == {
        "audio_s": pytest.approx(sum(s["audio_s"] for s in summaries)),
        "rejected_s": pytest.approx(sum(s["rejected_s"] for s in summaries)),
        "num_rows": sum(s["num_rows"] for s in summaries),
        "num_rejects": 1,
        "num_items": 6,
        "num_shards": len(summaries),
        "rejects_by_reason": {"EncodeError": 1},
        "skipped": {},
        "bytes_read": 1234,
        "bytes_written": sum(s["num_bytes"] for s in summaries),
    }
    assert tuple(found["stages"]) == STAGES  # also those that have done nothing yet
    assert found["stages"]["encode"] == {
        "busy_s": 2.0,
        "items": 9,
        "shards": 0,
        "errors": {"EncodeError": 1},
        "audio_s": 60.0,
        "padding_s": 20.0,
        "batches": 4,
        "batch_fill": 0.75,
    }
    assert found["stages"]["write_parquet"]["rows"] == 0
    assert found["quality"]["reject_rate"] == pytest.approx(1 / 6)
    assert found["quality"]["segment_s"]["mean"] == pytest.approx(
        found["totals"]["audio_s"] / found["totals"]["num_rows"]
    )
    assert [point["t_s"] for point in found["timeline"]] == [0.0, 20.0]
    assert found["timeline"][1]["audio_s"]["encode"] == 60.0
    assert found["inputs"] == [
        {"namespace": "file", "name": "/data/a"},
        {"namespace": "s3://bucket", "name": "b"},
    ]
    assert [output["name"] for output in found["outputs"]] == [
        f"{planned.output}/transcripts",
        f"{planned.output}/rejects",
    ]


def test_records_are_no_strangers_to_an_output(planned: Plan) -> None:
    record = record_of(planned)
    record.update(progress(planned), Published(), {}, {})
    publish(planned)
    record.end("done")
    assert audit(planned.output).is_complete
    assert not plan(f"{Path(planned.output).parent}/archive/manifest.jsonl", planned.output).num_pending


def test_the_last_run_is_the_one_that_began_last(planned: Plan) -> None:
    assert newest_run(planned.output) is None
    began = datetime(2026, 1, 2, tzinfo=UTC)
    names = [run_name(began + timedelta(seconds=second)) for second in (0, 9, 100)]
    assert names == sorted(names)
    assert names[0].startswith("20260102T000000Z-")
    for name in reversed(names):
        record = record_of(planned, name=name)
        record.update(progress(planned), Published(), {}, {})
        record.end("done")
    stores.publish(stores.join(planned.output, "_runs", "zzz.json"), b"something of a person")
    assert written(planned)["run"] == names[2]
    stores.publish(stores.join(planned.output, "_runs", f"{names[2]}.json"), b"{")
    with pytest.raises(OutputError, match=r"the records of runs in .+ cannot be read"):
        newest_run(planned.output)


def test_a_run_that_says_nothing_for_a_minute_is_lost() -> None:
    now = datetime(2026, 1, 2, 12, tzinfo=UTC)
    record = {"state": "running", "updated_at": (now - timedelta(seconds=59)).isoformat()}
    assert state_of(record, now) == "running"
    assert state_of(record, now + timedelta(seconds=2)) == "lost"
    assert state_of(record | {"state": "done"}, now + timedelta(days=2)) == "done"


def test_points_of_a_long_run_grow_apart(planned: Plan) -> None:
    record, published = record_of(planned), Published()
    for step in range(2000):
        record.update(progress(planned, elapsed_s=float(step)), published, {}, {})
    record.update(progress(planned, elapsed_s=2000.0), published, {}, {}, is_last=True)
    record.end("done")
    times = [point["t_s"] for point in written(planned)["timeline"]]
    assert 200 <= len(times) <= 400
    assert times == sorted(times)
    assert (times[0], times[-1]) == (0.0, 2000.0)
    assert max(after - before for before, after in pairwise(times)) <= 8.0


def test_a_store_that_refuses_is_told_of_once_and_ends_nothing(
    planned: Plan, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OutputError("'_runs' cannot be written (no space)")

    monkeypatch.setattr("w2v_ray.run_record.stores.publish", refuse)
    monkeypatch.setattr("w2v_ray.run_record._WRITE_EVERY_S", 0.01)
    record = record_of(planned)
    with caplog.at_level(logging.WARNING):
        record.update(progress(planned), Published(), {}, {})
        time.sleep(0.1)
        record.end("done")
    assert [line.getMessage() for line in caplog.records] == [
        "the record of the run cannot be written: '_runs' cannot be written (no space)"
    ]


def test_the_last_word_is_never_overwritten(planned: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    real, begun, states = stores.publish, threading.Event(), []

    def slow(path: str, data: bytes, **options: Any) -> bool:
        state = json.loads(data)["state"]
        begun.set()
        if state == "running":
            time.sleep(0.2)
        states.append(state)
        return real(path, data, **options)

    monkeypatch.setattr("w2v_ray.run_record.stores.publish", slow)
    record = record_of(planned)
    record.update(progress(planned), Published(), {}, {})
    assert begun.wait(5)
    record.end("failed", OutputError("the disk\nis full"))
    assert states == ["running", "failed"]
    assert written(planned)["error"] == "the disk is full"


def follow(output: str, *options: str) -> int:
    return cli.main(["status", "--follow", output, "--interval", "0.1", *options])


@pytest.mark.parametrize(
    ("state", "code", "said"),
    [
        ("done", 0, ""),
        ("failed", 1, "failed: no memory"),
        ("interrupted", 1, "was interrupted; run the same command again"),
    ],
)
def test_following_ends_with_the_run(
    planned: Plan, state: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = record_of(planned)
    record.update(progress(planned), Published(), {}, {})
    deadline = time.monotonic() + 5
    while newest_run(planned.output) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)

    def go_on() -> None:
        time.sleep(0.3)
        done = progress(planned, done_s=90.0, elapsed_s=3.0, queue={"encode": 2})
        record.update(done, Published(), {}, {})
        record.end(state, OutputError("no memory") if state == "failed" else None)

    thread = threading.Thread(target=go_on)
    thread.start()
    assert follow(planned.output) == code
    thread.join()
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "0.0 of 3.0 min  |  0 rejects",
        f"{state}  |  1.5 of 3.0 min  |  30x real time  |  0 rejects",
    ]
    assert said in shown.err


def test_sigterm_is_an_interruption(planned: Plan) -> None:
    record = record_of(planned)
    record.update(progress(planned), Published(), {}, {})
    order = [sys.executable, "-m", "w2v_ray.cli", "status", "--follow", planned.output, "--json"]
    with subprocess.Popen(order, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        following.stdout.readline()
        following.terminate()
        _, said = following.communicate(timeout=60)
    record.end("done")
    assert (following.returncode, said) == (
        143,
        "ended by SIGTERM; what is published stays: run the same command again to go on\n",
    )


def test_a_lost_run_is_not_followed_for_ever(planned: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    record = record_of(planned)
    record.update(progress(planned), Published(), {}, {})
    record.end("done")
    found = written(planned) | {"state": "running", "updated_at": "2026-01-02T00:00:00+00:00"}
    stores.publish(stores.join(planned.output, "_runs", f"{found['run']}.json"), json.dumps(found).encode())
    assert follow(planned.output, "--json") == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["state"] == "lost"
    assert "has said nothing since 2026-01-02T00:00:00+00:00, so it is lost" in shown.err


def test_a_run_is_followed_in_a_store(s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = write_archive(tmp_path / "archive", {"a.wav": "a"})
    planned = plan(archive, f"{s3}/out")
    record = record_of(planned)
    record.update(progress(planned), Published(), {}, {})
    record.end("done")
    assert follow(f"{s3}/out", "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["planned_s"] == 30.0
    assert written(planned)["outputs"][0]["namespace"] == s3


def test_where_nothing_ran_nothing_is_followed(
    planned: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert follow(planned.output) == 2
    assert "has no run to follow; start its job first" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["status", "--follow", "out", "--interval", "0"])
    assert "0 is not from 0.1 to 3600 seconds" in capsys.readouterr().err
