"""A real cluster of three machines and a head: one is lost on the way, others join, and no row shows it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import slow_driver
from tests.made_outputs import rows_of, without_places, write_speech
from w2v_ray import JobConfig, run
from w2v_ray.output import audit

NAMES = [f"recording-{index:02}" for index in range(60)]  # 12 shards


class Machines:
    """The program that has the cluster, and the environment of drivers that are to find it."""

    def __init__(self, folder: str, program: str, *arguments: str) -> None:
        self.environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.environment["RAY_TMPDIR"] = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.{program}", *arguments],
            cwd=Path(__file__).parents[1],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.environment["RAY_ADDRESS"] = self._answer()

    def tell(self, line: str) -> list[str]:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self._answer().split()

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the cluster ended with {self._process.wait()}"
        return line.strip()


@contextmanager
def cluster_of(program: str, *arguments: str) -> Iterator[Machines]:
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # sockets need a short name
    cluster = Machines(folder, program, *arguments)
    try:
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def machines() -> Iterator[Machines]:
    with cluster_of("three_machines") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def clean(ray_session: None, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest, and with ``out`` of a run on one machine that nothing disturbed."""
    folder = tmp_path_factory.mktemp("clean")
    job = JobConfig(
        inputs=(write_speech(folder / "in", NAMES),),
        output=str(folder / "out"),
        model=str(tiny_checkpoint),
        shard_seconds=slow_driver.SHARD_SECONDS,
        encoder_threads=1,
    )
    assert run(job).num_shards == 12
    return folder


def until(
    condition: Callable[[], object], process: subprocess.Popen[bytes] | None = None, *, seconds: float = 200
) -> None:
    """Waits for what is to become of the job, or of the cluster after it."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None:
            assert process.poll() is None, f"the job ended too early: {process.communicate()[1]!r}"
        assert time.monotonic() < deadline, "nothing came of it in time"
        time.sleep(0.1)


def start(
    machines: Machines, clean: Path, model: Path, output: Path, options: str = "", **environment: str
) -> subprocess.Popen[bytes]:
    """Its encoders do one shard each and go on when ``more`` is beside the output."""
    go = output.parent / "go"
    go.touch()
    command = [sys.executable, slow_driver.__file__, str(go), str(model)]
    return subprocess.Popen(
        [*command, str(clean / "in" / "manifest.jsonl"), str(output)],
        env=machines.environment
        | {"SLOW_UNTIL": str(output.parent / "more"), "SLOW_OPTIONS": options}
        | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def check_clean(driver: subprocess.Popen[bytes], output: Path, clean: Path) -> str:
    """The job ends well with the rows of the run that nothing disturbed; what it said is returned."""
    said = driver.communicate(timeout=240)[1].decode()
    assert driver.returncode == 0, said
    assert audit(str(output)).is_complete
    assert without_places(rows_of(output)) == without_places(rows_of(clean / "out"))
    assert rows_of(output, "rejects") == []
    return said


@pytest.mark.slow
def test_a_machine_is_lost_and_another_joins(
    machines: Machines, clean: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for name in ("first", "second", "third"):
        machines.tell(f"add {name} 1")
    output = tmp_path / "out"
    driver = start(machines, clean, tiny_checkpoint, output)
    until(lambda: rows_of(output), driver)
    there = {name: machines.tell(f"workers {name}") for name in ("first", "second", "third")}
    assert all(titles.count("EncodeShard") == 1 for titles in there.values()), there  # one on each
    lost = max(there, key=lambda name: len(there[name]))
    machines.tell(f"kill {lost}")
    machines.tell("add fourth 1")
    until(lambda: "EncodeShard" in machines.tell("workers fourth"), driver)
    (tmp_path / "more").touch()
    check_clean(driver, output, clean)


@pytest.mark.slow
def test_a_job_waits_for_the_first_machine_grows_with_the_next_and_outlives_one(
    machines: Machines, clean: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    hopeless = start(machines, clean, tiny_checkpoint, output, "--device cuda --stall-seconds 5")
    said = hopeless.communicate(timeout=120)[1].decode()
    assert hopeless.returncode == 1
    assert "no machine with a GPU joined the cluster at" in said

    options = "--device cuda --max-encoders 2"
    driver = start(machines, clean, tiny_checkpoint, output, options, SLOW_ON_CPU="1")
    time.sleep(10)  # there is nothing to be seen of a job that waits
    assert driver.poll() is None
    machines.tell("add first 2 L4")
    until(lambda: rows_of(output), driver)
    machines.tell("add second 2 L4")
    until(lambda: "EncodeShard" in machines.tell("workers second"), driver)
    machines.tell("kill second")
    (tmp_path / "more").touch()
    said = check_clean(driver, output, clean)
    assert "has no machine with a GPU yet; waiting up to 1800 s for one" in said


@pytest.mark.slow
def test_encoders_share_gpus_of_the_type_that_is_asked_for(
    machines: Machines, clean: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    machines.tell("add other 2 A10G")
    output = tmp_path / "out"
    options = "--accelerator-type L4 --gpus-per-encoder 0.5"
    driver = start(machines, clean, tiny_checkpoint, output, options, SLOW_ON_CPU="1")
    time.sleep(10)  # it waits for the right one
    machines.tell("add right 2 L4")
    until(lambda: rows_of(output), driver)
    assert machines.tell("workers right").count("EncodeShard") == 2
    assert "EncodeShard" not in machines.tell("workers other")
    (tmp_path / "more").touch()
    said = check_clean(driver, output, clean)
    assert "has no machine with a GPU of type L4 yet" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cluster", "options"),
    [(("2", "2", "L4"), "--device cuda --max-encoders 2"), (("3", "2"), "--device cpu --max-encoders 3")],
    ids=["gpus", "cpus"],
)
def test_an_autoscaler_adds_machines_for_a_job_and_takes_them_away(
    cluster: tuple[str, ...], options: str, clean: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Ray's own, with a head that runs no work and no machine at first; an encoder comes with each."""
    output = tmp_path / "out"
    with cluster_of("autoscaled_machines", *cluster) as machines:
        assert machines.tell("") == []
        driver = start(machines, clean, tiny_checkpoint, output, options, SLOW_ON_CPU="1")
        most = int(cluster[0])
        until(
            lambda: [one.count("EncodeShard") for one in machines.tell("")] == [1] * most, driver, seconds=400
        )
        (tmp_path / "more").touch()
        said = check_clean(driver, output, clean)
        assert f"has no machine with {'a GPU' if cluster[2:] else 'CPUs for work'} yet" in said
        until(lambda: machines.tell("") == [])
