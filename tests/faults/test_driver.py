"""A driver that is killed, and one that is not alone: the output is that of a clean run, each row once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults import slow_driver
from tests.made_outputs import rows_of, without_places, write_speech
from w2v_ray import JobConfig, demo, run, stages, stores
from w2v_ray.cli import main
from w2v_ray.output import audit

MODEL = str(demo.CHECKPOINT)


def start(go: Path, model: Path, *places: str) -> subprocess.Popen[bytes]:
    """A driver with a Ray of its own, which begins when ``go`` is there."""
    command = [sys.executable, slow_driver.__file__, str(go), str(model), *places]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill_on_its_way(process: subprocess.Popen[bytes], output: str) -> set[str]:
    """Kills a driver at some time after its first shard, and says what was published by then."""
    deadline = time.monotonic() + 240
    while not stores.list_names(stores.join(output, "transcripts")):
        assert process.poll() is None, (
            f"the run ended before it could be killed: {process.communicate()[1]!r}"
        )
        assert time.monotonic() < deadline, "no shard was published in four minutes"
        time.sleep(0.05)
    time.sleep(random.uniform(0, 1.5))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return set(stores.list_names(stores.join(output, "transcripts")))


def versions(output: str) -> dict[str, str | None]:
    """Every published file with its time or etag."""
    found = {}
    for folder in ("_plan", "transcripts", "rejects"):
        for name in stores.list_names(stores.join(output, folder)):
            file = stores.info(stores.join(output, folder, name))
            assert file is not None
            found[file.uri] = file.version
    return found


def job_of(source: str, output: str, model: Path) -> JobConfig:
    return JobConfig(
        inputs=(source,),
        output=output,
        model=str(model),
        shard_seconds=slow_driver.SHARD_SECONDS,
        encoder_threads=1,
    )


def check_clean(job: JobConfig, clean: Path) -> None:
    """The output is that of a run that nothing disturbed, and stays as it is when run again."""
    output = job.output
    assert without_places(rows_of(output)) == without_places(rows_of(clean / "out"))
    (reject,) = rows_of(output, "rejects")
    assert (reject["recording_id"], reject["error_class"]) == ("broken", "DecodeError")
    ids = [row["segment_id"] for row in rows_of(output)]
    assert len(set(ids)) == len(ids) == len(rows_of(clean / "out"))
    assert audit(output).is_complete
    before = versions(output)
    again = run(job)
    assert (again.num_rows, again.num_shards_before) == (0, again.num_shards)
    assert versions(output) == before


def test_a_run_that_was_killed_is_completed_by_two_at_once(
    clean: Path, s3: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a store to a folder."""
    names = [row["recording_id"] for row in rows_of(clean / "out")]
    source, output = write_speech(f"{s3}/in", names, broken=["broken"]), str(tmp_path / "out")
    now, later = tmp_path / "now", tmp_path / "later"
    now.touch()
    doomed = start(now, tiny_checkpoint, source, output)
    other = start(later, tiny_checkpoint, source, output)
    published = kill_on_its_way(doomed, output)
    assert published

    monkeypatch.setattr(stages, "Encode", slow_driver.slow(stages.Encode))
    job = job_of(source, output, tiny_checkpoint)
    later.touch()
    summary = run(job)  # at once with the other, which does the same
    assert summary.num_shards_before >= len(published)
    _, errors = other.communicate(timeout=240)
    assert (tmp_path / "later.0.done").exists(), errors.decode()
    check_clean(job, clean)


@pytest.mark.slow
def test_a_run_goes_on_where_another_at_once_is_killed(
    clean: Path, s3: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder to a store."""
    names = [row["recording_id"] for row in rows_of(clean / "out")]
    source, output = write_speech(str(tmp_path / "in"), names, broken=["broken"]), f"{s3}/out"
    now = tmp_path / "now"
    other = start(now, tiny_checkpoint, source, output)
    monkeypatch.setattr(stages, "Encode", slow_driver.slow(stages.Encode))
    now.touch()
    with ThreadPoolExecutor() as pool:
        killed = pool.submit(kill_on_its_way, other, output)
        run(job_of(source, output, tiny_checkpoint))
        assert killed.result()
    check_clean(job_of(source, output, tiny_checkpoint), clean)


@pytest.mark.slow
def test_a_job_that_rejected_everything_says_so_whatever_the_limit(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "broken.wav").write_bytes(b"nothing that decodes")
    arguments = ["transcribe", str(folder), "--output", str(output), "--model", MODEL]
    assert main(arguments) == 3
    assert "w2v-ray: every item was rejected; see rejects/ in" in capsys.readouterr().err
    assert main(arguments) == 3  # nothing is left to do, and it is as it was
    shutil.copy(next(demo.ARCHIVE.glob("*.flac")), folder)
    assert main(arguments) == 0
