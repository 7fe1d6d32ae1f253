"""A driver that is killed, and one that is not alone: the output is that of a clean run, each row once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.made_outputs import rows_of
from w2v_ray import JobConfig, demo, run
from w2v_ray.cli import main

MODEL = str(demo.CHECKPOINT)


def start(folder: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "w2v_ray.cli", "transcribe", str(folder), "--output", str(output)]
    # One thread in all runs: how sums are split between threads shows in the last digits of a confidence.
    command += ["--model", MODEL, "--shard-seconds", "20", "--encoder-threads", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_runs_that_are_killed_and_runs_at_once_make_one_clean_output(
    ray_session: None, tmp_path: Path
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    clips = sorted(demo.ARCHIVE.glob("*.flac"))
    for index in range(60):
        shutil.copy(clips[index % len(clips)], folder / f"{index:02}.flac")
    (folder / "broken.wav").write_bytes(b"nothing that decodes")
    job = JobConfig(
        inputs=(str(folder),), output=str(output), model=MODEL, shard_seconds=20.0, encoder_threads=1
    )
    clean = run(
        JobConfig(
            inputs=(str(folder),),
            output=str(tmp_path / "clean"),
            model=MODEL,
            shard_seconds=20.0,
            encoder_threads=1,
        )
    )
    assert clean.num_rejects == 1

    process = start(folder, output)
    deadline = time.monotonic() + 240
    while not list((output / "transcripts").glob("*.parquet")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no shard was published in four minutes"
        time.sleep(0.01)
    time.sleep(random.uniform(0, 1.0))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    published = {file.name for file in (output / "transcripts").iterdir()}
    assert published

    other = start(folder, output)  # at once with the run here, on two CPUs, each with a Ray of its own
    summary = run(job)
    _, said = other.communicate(timeout=300)
    assert other.returncode == 0, said.decode()
    assert summary.num_shards_before >= len(published)
    for table in ("transcripts", "rejects"):
        assert rows_of(output, table) == rows_of(tmp_path / "clean", table)
    ids = [row["segment_id"] for row in rows_of(output)]
    assert len(set(ids)) == len(ids) == 60

    times = {file: file.stat().st_mtime_ns for file in output.rglob("*.parquet")}
    again = run(job)
    assert (again.num_rows, again.num_shards_before) == (0, again.num_shards)
    assert {file: file.stat().st_mtime_ns for file in output.rglob("*.parquet")} == times


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
