"""Poison, accidents and bad luck in the workers of a real Ray: the rest of the rows equals a clean run's."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.made_outputs import rows_of, without_places, write_speech
from w2v_ray import CheckpointError, JobConfig, JobError, pipeline, quarantine, run, stages
from w2v_ray.run_record import newest_run
from w2v_ray.stages.decode_audio import DecodeAudio
from w2v_ray.stages.encode import Encode


def job_of(folder: Path | str, output: Path | str, model: Path, **settings: Any) -> JobConfig:
    return JobConfig(
        inputs=(str(folder),),
        output=str(output),
        model=str(model),
        **{"shard_seconds": 10.0, "encoder_threads": 1, **settings},
    )


def acting(base: type, word: str, act: Callable[[str], None]) -> type:
    """A stage that acts before it does its work on a recording with the word in its name."""

    class Acting(base):  # type: ignore[misc]
        def __call__(self, table: pa.Table) -> pa.Table:
            names = table.column("recording_id").to_pylist()
            for name, error in zip(names, table.column("error").to_pylist(), strict=True):
                if error is None and word in name:
                    act(name)
            return super().__call__(table)

    return Acting


def test_poison_is_rejected_and_takes_no_neighbour_with_it(
    s3: str, clean: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive lies in a store."""
    shards = [
        ["crash-encode", "good-00", "exception-encode", "good-01", "good-02"],
        ["crash-1-decode", "good-03", "crash-2-decode", "good-04", "exception-decode"],
        ["crash-text", "good-05", "memory-decode", "good-06", "good-07"],
        ["hang-decode", "good-08"],
    ]
    names = [name for shard in shards for name in shard]
    bad = {name for name in names if not name.startswith("good")}
    manifest = write_speech(f"{s3}/in", names)
    deaths = tmp_path / "deaths"
    deaths.mkdir()

    def misbehave(name: str) -> None:
        """What the word before the dash says."""
        what, in_worker = name.partition("-")[0], "item_process" not in " ".join(sys.orig_argv)
        if what in ("crash", "hang") and in_worker:
            (deaths / f"{name}@{os.getpid()}").touch()
        if what == "crash":
            signal.raise_signal(signal.SIGSEGV)  # in this thread, as a fault in native code is
        if what == "hang":
            time.sleep(3600)
        if what == "memory":
            bytearray(1 << 46)
        if what == "exception":
            raise IndexError("list index out of range")

    monkeypatch.setattr(pipeline, "DecodeAudio", acting(DecodeAudio, "-decode", misbehave))
    monkeypatch.setattr(pipeline, "ResultStage", acting(pipeline.ResultStage, "-text", misbehave))
    monkeypatch.setattr(stages, "Encode", batchwise("-encode", misbehave))
    output = tmp_path / "out"
    summary = run(job_of(manifest, output, tiny_checkpoint, item_deadline_seconds=3.0))

    rows, rejects = rows_of(output), rows_of(output, "rejects")
    assert (summary.num_items, summary.num_shards) == (len(names), len(shards))
    expected = [row for row in rows_of(clean / "out") if row["recording_id"] in names]
    assert without_places(rows) == without_places(expected)
    assert len(rows) == len(names) - len(bad)
    found = {row["recording_id"]: (row["stage"], row["error_class"], row["message"]) for row in rejects}
    assert found.keys() == bad
    assert len(rejects) == len(bad)
    for name, (stage, error_class, _) in found.items():
        kind, place = name.partition("-")[0], name.rpartition("-")[2]
        assert stage == {"decode": "decode_audio", "encode": "encode", "text": "decode_text"}[place]
        assert error_class == ("WorkerDeathError" if kind in ("crash", "hang") else "StageError")
    died = Counter(path.name.partition("@")[0] for path in deaths.iterdir())
    # One of the two in one shard is found by the process that the other's death called for.
    assert died["hang-decode"] == 1
    assert died["crash-text"] == 1
    assert died["crash-encode"] == 2
    assert died["crash-1-decode"] + died["crash-2-decode"] <= 2
    assert "SIGSEGV" in found["crash-1-decode"][2]
    assert "was not done after" in found["hang-decode"][2]
    assert "MemoryError" in found["memory-decode"][2]
    assert "IndexError: list index out of range" in found["exception-decode"][2]


def batchwise(word: str, act: Callable[[str], None]) -> type:
    """An encoder that acts when it comes to the batch with a recording that has the word in its name."""

    class Batchwise(Encode):
        def __init__(self, config: Any, *, before: Any, report: Any) -> None:
            def acting_before(rows: Any) -> None:
                before(rows)
                for row in rows:
                    if word in self._names[row]:
                        act(self._names[row])

            super().__init__(config, before=acting_before, report=report)

        def __call__(self, table: pa.Table) -> pa.Table:
            self._names = table.column("recording_id").to_pylist()
            return super().__call__(table)

    return Batchwise


def failing(times: int, folder: Path) -> type:
    """An encoder that cannot be loaded so many times."""

    class Failing(Encode):
        def __init__(self, config: Any, *, before: Any, report: Any) -> None:
            (folder / f"{time.monotonic_ns()}").touch()
            if len(list(folder.iterdir())) <= times:
                raise CheckpointError("model.safetensors is not there; try again")
            super().__init__(config, before=before, report=report)

    return Failing


def test_a_worker_killed_and_a_model_that_comes_late_change_nothing(
    s3: str, clean: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output lies in a store."""
    loads, kills = tmp_path / "loads", tmp_path / "kills"
    loads.mkdir()
    kills.mkdir()

    def kill_once(name: str) -> None:
        if not any(kills.iterdir()):
            (kills / "one").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    class Late(failing(1, loads), batchwise("good-03", kill_once)):  # type: ignore[misc]
        pass

    monkeypatch.setattr(stages, "Encode", Late)
    output = f"{s3}/out"
    run(job_of(clean / "in" / "manifest.jsonl", output, tiny_checkpoint))
    assert rows_of(output) == rows_of(clean / "out")
    assert rows_of(output, "rejects") == []
    assert any(kills.iterdir())
    assert len(list(loads.iterdir())) == 3  # failed, loaded, and loaded again by the worker that came after


@pytest.mark.slow
def test_what_can_never_go_on_ends_in_bounded_time_with_one_sentence(
    clean: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, loads = clean / "in" / "manifest.jsonl", tmp_path / "loads"
    loads.mkdir()

    class Hurried(pipeline.EncodeShard):
        """It waits less between its tries; the test before waits as long as is usual."""

        def __init__(self, **options: Any) -> None:
            quarantine._LOADING_WAITS_S = (0.1, 0.1)  # of the worker's process
            super().__init__(**options)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "Encode", failing(99, loads))
        patch.setattr(pipeline, "EncodeShard", Hurried)
        with pytest.raises(CheckpointError, match=r"^model\.safetensors is not there; try again$"):
            run(job_of(manifest, tmp_path / "never", tiny_checkpoint))
    record = newest_run(str(tmp_path / "never"))
    assert record is not None
    assert (record["state"], record["error"]) == ("failed", "model.safetensors is not there; try again")
    assert len(list(loads.iterdir())) == 3

    class Stuck(pipeline.ResultStage):
        def __init__(self, config: Any, keep: int | None) -> None:
            time.sleep(3600)

    monkeypatch.setattr(pipeline, "ResultStage", Stuck)
    with pytest.raises(JobError, match=r"^nothing moved for \d+ s \(.+\); what is published stays"):
        run(job_of(manifest, tmp_path / "stuck", tiny_checkpoint, stall_seconds=6.0))
