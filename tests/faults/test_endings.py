"""How the command ends when it is told to, or when what should not breaks: in processes of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from w2v_ray import demo
from w2v_ray.output import audit
from w2v_ray.run_record import newest_run

BROKEN = """
import sys
from w2v_ray import pipeline
from w2v_ray.cli import main

class Broken(pipeline.WriteParquet):
    def __call__(self, table):
        try:
            {}["the key"]
        except KeyError as error:
            raise RuntimeError("the writer is broken\\nin two lines") from error

pipeline.WriteParquet = Broken
sys.exit(main(sys.argv[1:]))
"""


class Command:
    """A command with a Ray of its own, whose processes are known by a variable that they inherit."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._mark = uuid.uuid4().hex
        self._said = folder / "stderr"
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                env=environment | {"W2V_RAY_TEST_MARK": self._mark},
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )

    def said(self) -> list[str]:
        return self._said.read_text().splitlines()

    def wait_until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not happened():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def processes(self) -> list[str]:
        """What of the command runs, the raylet and its workers included."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_text().replace("\0", " "))
            except OSError:  # it has ended, or is somebody else's
                continue
        return found

    def check_gone(self) -> None:
        deadline = time.monotonic() + 90  # agents of a Ray whose start was broken off take some time
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.processes() == []


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts commands, and leaves none behind, however a test ends."""
    started: list[Command] = []

    def begin(*arguments: str) -> Command:
        started.append(Command(tmp_path, *arguments))
        return started[-1]

    yield begin
    for command in started:
        with suppress(ProcessLookupError):
            os.killpg(command.process.pid, signal.SIGKILL)
        command.process.wait()


def long_job(tmp_path: Path) -> list[str]:
    """Some minutes of work."""
    folder = tmp_path / "in"
    folder.mkdir()
    for clip in demo.ARCHIVE.glob("*.flac"):
        for number in range(20):
            shutil.copy(clip, folder / f"{clip.stem}-{number}.flac")
    rest = ["--output", str(tmp_path / "out"), "--model", str(demo.CHECKPOINT), "--shard-seconds", "10"]
    return ["transcribe", str(folder), *rest]


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True], ids=["to-the-command", "to-all-its-processes"])
def test_sigterm_ends_a_run_as_ctrl_c_does(
    to_all: bool, start: Callable[..., Command], tmp_path: Path
) -> None:
    """To the command, as by `kill`; to its workers as well, as by `timeout` and most service managers."""
    command = start("-m", "w2v_ray.cli", *long_job(tmp_path))
    table = tmp_path / "out" / "transcripts"
    command.wait_until(lambda: table.is_dir() and len(list(table.iterdir())) > 1)
    began = time.monotonic()
    if to_all:
        os.killpg(command.process.pid, signal.SIGTERM)
    else:
        command.process.send_signal(signal.SIGTERM)
    assert command.process.wait(60) == 143, command.said()
    assert time.monotonic() - began < 25, "schedulers wait for half a minute before they kill"
    lines = [line for line in command.said() if "  |  " not in line]
    assert len(lines) == 2, lines
    assert "starting workers" in lines[0]
    assert lines[1] == "ended by SIGTERM; what is published stays: run the same command again to go on"
    command.check_gone()
    record = newest_run(str(tmp_path / "out"))
    assert record is not None
    assert (record["state"], record["error"]) == ("interrupted", None)
    found = audit(str(tmp_path / "out"))
    assert (found.is_clean, found.num_files > 1, found.num_items_pending > 0) == (True, True, True)


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [1.0, 4.0])
def test_sigterm_while_ray_starts_ends_it_too(
    after_s: float, start: Callable[..., Command], tmp_path: Path
) -> None:
    command = start("-m", "w2v_ray.cli", *long_job(tmp_path))
    command.wait_until(lambda: any("starting workers" in line for line in command.said()))
    time.sleep(after_s)
    command.process.send_signal(signal.SIGTERM)
    assert command.process.wait(60) == 143, command.said()
    lines = [line for line in command.said() if "  |  " not in line]  # an idle machine has begun by then
    assert lines[1:] == ["ended by SIGTERM; what is published stays: run the same command again to go on"]
    command.check_gone()


def test_sigterm_ends_a_command_without_ray(tmp_path: Path) -> None:
    now = datetime.now(UTC).isoformat()
    progress = {"before_s": 0.0, "done_s": 1.0, "planned_s": 2.0, "rate_x": 1.0, "left_s": 1.0}
    record = {"run": "r", "state": "running", "updated_at": now, "error": None}
    record |= {"progress": progress | {"num_rejects": 0, "queue": {}}}
    (tmp_path / "_runs").mkdir()
    (tmp_path / "_runs" / "20261122T010000Z-aaaaaa.json").write_text(json.dumps(record))
    process = subprocess.Popen(
        [sys.executable, "-m", "w2v_ray.cli", "status", "--follow", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "1.0 of 2.0 s" in process.stdout.readline()  # it waits for the next look
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 143
    assert said == "ended by SIGTERM; what is published stays: run the same command again to go on\n"


@pytest.mark.slow
def test_an_error_that_nobody_expected_ends_in_one_sentence(
    start: Callable[..., Command], tmp_path: Path
) -> None:
    job = ["transcribe", str(min(demo.ARCHIVE.glob("*.flac"))), "--output", str(tmp_path / "out")]
    job += ["--model", str(demo.CHECKPOINT)]
    command = start("-c", BROKEN, *job)
    assert command.process.wait(240) == 1, command.said()
    *_, last = lines = command.said()
    assert len([line for line in lines if "  |  " not in line]) == 2, lines
    assert last.startswith("w2v-ray: the job failed at write_parquet with shard ")
    assert " (RuntimeError: the writer is broken in two lines); what is published stays: see " in last
    assert last.endswith(", mend what is wrong, and run the same command again")
    record = newest_run(str(tmp_path / "out"))
    assert record is not None
    assert record["state"] == "failed"
    assert f"w2v-ray: {record['error']}" == last
    assert f"{tmp_path}/out/_runs/{record['run']}.json" in last
    logs = Path(last.partition("the logs of workers in ")[2].partition(" ")[0])
    told = "".join(path.read_text(errors="replace") for path in logs.glob("worker-*.err"))
    assert "KeyError: 'the key'" in told  # where it began
    command.check_gone()
