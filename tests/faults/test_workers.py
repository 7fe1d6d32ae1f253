"""Poison, accidents and bad luck in the workers of a real Ray: the rest of the rows equals a clean run's."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.made_outputs import rows_of
from w2v_ray import CheckpointError, JobConfig, JobError, demo, pipeline, run
from w2v_ray.stages.decode_audio import DecodeAudio
from w2v_ray.stages.encode import Encode

CLIPS = sorted(demo.ARCHIVE.glob("*.flac"))


def apart_from_shards(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    places = ("shard_id", "item_index")
    return [{name: value for name, value in row.items() if name not in places} for row in rows]


def job_of(folder: Path, output: Path, model: Path, **settings: Any) -> JobConfig:
    return JobConfig(
        inputs=(str(folder),),
        output=str(output),
        model=str(model),
        **{"shard_seconds": 10.0, "encoder_threads": 1, **settings},
    )


def archive(folder: Path, *names: str) -> Path:
    """One clip of speech for each name."""
    folder.mkdir()
    for index, name in enumerate(names):
        shutil.copy(CLIPS[index % len(CLIPS)], folder / f"{name}.flac")
    return folder


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
    ray_session: None, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [f"good-{index}" for index in range(12)]
    folder = archive(tmp_path / "in", *good)
    run(job_of(folder, tmp_path / "clean", tiny_checkpoint))

    bad = ["crash-1-decode", "crash-2-decode", "hang-decode", "memory-decode", "exception-decode"]
    bad += ["crash-encode", "exception-encode", "crash-text"]
    for name in bad:
        shutil.copy(CLIPS[0], folder / f"{name}.flac")
    deaths = tmp_path / "deaths"
    deaths.mkdir()

    def misbehave(name: str) -> None:
        """What the word before the dash says."""
        what, in_worker = Path(name).name.partition("-")[0], "item_process" not in " ".join(sys.orig_argv)
        if what in ("crash", "hang") and in_worker:
            (deaths / f"{Path(name).stem}@{os.getpid()}").touch()
        if what == "crash":
            signal.raise_signal(signal.SIGSEGV)  # in this thread, as a fault in native code is
        if what == "hang":
            time.sleep(3600)
        if what == "memory":
            bytearray(1 << 46)
        if what == "exception":
            raise IndexError("list index out of range")

    monkeypatch.setattr(pipeline, "DecodeAudio", acting(DecodeAudio, "-decode", misbehave))
    monkeypatch.setattr(pipeline, "TextStage", acting(pipeline.TextStage, "-text", misbehave))
    monkeypatch.setattr(pipeline, "Encode", batchwise(misbehave))
    output = tmp_path / "out"
    summary = run(job_of(folder, output, tiny_checkpoint, item_deadline_seconds=4.0))

    rows, rejects = rows_of(output), rows_of(output, "rejects")
    assert summary.num_items == len(good) + len(bad)
    assert apart_from_shards(rows) == apart_from_shards(rows_of(tmp_path / "clean"))
    found = {Path(row["uri"]).stem: (row["stage"], row["error_class"], row["message"]) for row in rejects}
    assert found.keys() == set(bad)
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


def batchwise(act: Callable[[str], None]) -> type:
    """An encoder that acts when it comes to the batch with a recording that ends in -encode."""

    class Batchwise(Encode):
        def __init__(self, config: Any, *, before: Any, report: Any) -> None:
            def acting_before(rows: Any) -> None:
                before(rows)
                for row in rows:
                    name = self._names[row]
                    if Path(name).stem.endswith("-encode"):
                        act(name)

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
    ray_session: None, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = archive(tmp_path / "in", *(f"{index}-encode" for index in range(8)))
    run(job_of(folder, tmp_path / "clean", tiny_checkpoint))
    loads, kills = tmp_path / "loads", tmp_path / "kills"
    loads.mkdir()
    kills.mkdir()

    def kill_once(name: str) -> None:
        if "3-encode" in name and not any(kills.iterdir()):
            (kills / "one").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    class Late(failing(1, loads), batchwise(kill_once)):  # type: ignore[misc]
        pass

    monkeypatch.setattr(pipeline, "Encode", Late)
    run(job_of(folder, tmp_path / "out", tiny_checkpoint))
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "clean")
    assert len(rows_of(tmp_path / "out")) == 8
    assert rows_of(tmp_path / "out", "rejects") == []
    assert any(kills.iterdir())
    assert len(list(loads.iterdir())) == 3  # failed, loaded, and loaded again by the worker that came after


def test_what_can_never_go_on_ends_in_bounded_time_with_one_sentence(
    ray_session: None, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = archive(tmp_path / "in", "one", "two")
    loads = tmp_path / "loads"
    loads.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "Encode", failing(99, loads))
        with pytest.raises(CheckpointError, match=r"^model\.safetensors is not there; try again$"):
            run(job_of(folder, tmp_path / "never", tiny_checkpoint))
    assert len(list(loads.iterdir())) == 3

    class Stuck(pipeline.TextStage):
        def __init__(self, config: Any, keep: int | None) -> None:
            time.sleep(3600)

    monkeypatch.setattr(pipeline, "TextStage", Stuck)
    with pytest.raises(JobError, match=r"^nothing moved for \d+ s \(.+\); what is published stays"):
        run(job_of(folder, tmp_path / "stuck", tiny_checkpoint, stall_seconds=12.0))
