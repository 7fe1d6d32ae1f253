"""A run that dies at any step, and the same run again, leave together what an undisturbed run leaves."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.made_outputs import plan, publish, write_archive
from w2v_ray import stores
from w2v_ray.crash_points import CRASH_POINTS, EXIT_CODE
from w2v_ray.errors import OutputError
from w2v_ray.output import audit, remove_leftovers

NAMES = [f"a{number}.wav" for number in range(5)]
FAILING = ("a1.wav", "a4.wav")
ENVIRONMENT = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")

# Processes of their own that start in a few milliseconds: forked from one that has loaded what they need.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.made_outputs", "w2v_ray.output", "s3fs"])


def run_job(manifest: str, output: str, failing: Collection[str] = FAILING) -> None:
    """What a run does to its output, from the first step to the last."""
    stores.check_writable(output)
    stores.remove_unfinished(output)
    planned = plan(manifest, output, keep_log_probs=8, also=["classify=m"])
    summaries = publish(planned, failing=failing, also=("labels",), keeps_log_probs=True)
    remove_leftovers(planned.output, "transcripts", {s["shard_id"]: s for s in summaries})


def _run_in_child(environment: dict[str, str], manifest: str, output: str, failing: Collection[str]) -> None:
    os.environ.update(environment)
    run_job(manifest, output, failing)


def start(
    manifest: str, output: str, *, failing: Collection[str] = FAILING, crash_at: str = ""
) -> multiprocessing.process.BaseProcess:
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    environment |= {"W2V_RAY_CRASH_AT": crash_at} if crash_at else {}
    child = PROCESSES.Process(target=_run_in_child, args=(environment, manifest, output, failing))
    child.start()
    return child


def files(output: str) -> dict[str, str]:
    """Every file of an output by its name, as a hash; what is unfinished counts, too."""
    found = {}
    folders = ["_plan", "_tmp", "transcripts", "rejects", "log_probs", "labels"]
    for folder in folders:
        for name in stores.list_names(stores.join(output, folder)):
            if name != "writable":
                data = stores.read_bytes(stores.join(output, folder, name))
                found[f"{folder}/{name}"] = hashlib.sha256(data).hexdigest()
    return found


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_archive(tmp_path_factory.mktemp("archive"), dict.fromkeys(NAMES, "x"))


@pytest.fixture(scope="module")
def undisturbed(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    output = str(tmp_path_factory.mktemp("undisturbed") / "out")
    run_job(manifest, output)
    found = files(output)
    folders = {name.split("/")[0] for name in found}
    assert folders == {"_plan", "labels", "log_probs", "rejects", "transcripts"}
    return found


STEPS = [point for point in CRASH_POINTS if point.startswith(("write", "plan", "commit"))]


@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_dies_is_completed_by_the_next(
    step: str, manifest: str, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """At the first time a run comes to the step, at the second, and so on to the last."""
    for count in range(1, 5 if step == "write.half" else 100):  # half a file is as good as a whole one
        output = str(tmp_path / str(count))
        child = start(manifest, output, crash_at=f"{step}:{count}")
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == EXIT_CODE
        if stores.exists(f"{output}/_plan/job.json"):
            assert audit(output).is_clean
        run_job(manifest, output)
        assert files(output) == undisturbed
        assert audit(output).is_complete
    assert count > 1, "the run never came to that step"


@pytest.mark.parametrize("step", [step for step in STEPS if step != "write.half"])
def test_a_run_that_dies_is_completed_by_the_next_in_a_store(
    step: str, manifest: str, undisturbed: dict[str, str], s3: str
) -> None:
    for count in (1, 3) if step.startswith("write") else (1,):
        output = f"{s3}/out{count}"
        child = start(manifest, output, crash_at=f"{step}:{count}")
        child.join()
        assert child.exitcode == EXIT_CODE
        run_job(manifest, output)
        assert files(output) == undisturbed
        assert audit(output).is_complete


def test_rejects_of_a_try_that_died_do_not_stay(manifest: str, tmp_path: Path) -> None:
    """The second try fails elsewhere: a store that answers again, or a GPU with other rounding."""
    output = str(tmp_path / "out")
    child = start(manifest, output, failing=NAMES, crash_at="commit.kept:2")
    child.join()
    run_job(manifest, output, failing=["a4.wav"])
    found = audit(output)
    assert (found.is_complete, found.num_leftovers) == (True, 0)
    assert len(stores.list_names(f"{output}/log_probs")) == found.num_shards


def test_a_file_is_never_seen_half_written(tmp_path: Path) -> None:
    """Kills at random moments of writing files of some megabytes."""
    folder = tmp_path / "out" / "transcripts"
    for number in range(12):
        child = PROCESSES.Process(target=_write_for_ever, args=(str(folder), number))
        child.start()
        while not list((tmp_path / "out").glob(f"_tmp/{number}-*")):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.15))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    written = list(folder.iterdir())
    assert written, "no child came to the end of a file"
    for path in written:
        data = path.read_bytes()
        assert hashlib.sha256(data[64:]).hexdigest() == data[:64].decode(), path.name
    left = list((tmp_path / "out" / "_tmp").iterdir())
    assert left, "no child was killed while it wrote"
    assert stores.remove_unfinished(str(tmp_path / "out")) == len(left)
    assert not list((tmp_path / "out" / "_tmp").iterdir())


def _write_for_ever(folder: str, number: int) -> None:
    for count in range(1000):
        data = random.randbytes(4096) * 1500
        data = hashlib.sha256(data).hexdigest().encode() + data
        stores.publish(f"{folder}/{number}-{count}", data, root=os.path.dirname(folder))


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_two_runs_at_once_leave_one_output(
    kind: str, manifest: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Though they do not agree on what fails."""
    root = str(tmp_path) if kind == "local" else request.getfixturevalue("s3")
    for number in range(2):
        output = f"{root}/out{number}"
        children = [start(manifest, output, failing=names) for names in (["a1.wav"], ["a4.wav", "a2.wav"])]
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0, 0]
        found = audit(output)
        assert (found.is_complete, found.num_items) == (True, len(NAMES)), found.findings


def test_a_writer_that_comes_back_after_its_shard_was_taken_over_changes_nothing(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "out")
    planned = plan(manifest, output, keep_log_probs=8, also=["classify=m"])
    real, taken_over = stores.publish, []

    def publish_late(path: str, data: bytes, **options: object) -> bool:
        if "transcripts" in path and not taken_over:
            taken_over.append(path)
            run_job(manifest, output, failing=["a0.wav"])
        return real(path, data, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(stores, "publish", publish_late)
    publish(planned, planned.pending[:1], failing=["a1.wav"], also=("labels",), keeps_log_probs=True)
    monkeypatch.undo()
    after = files(output)
    run_job(manifest, f"{tmp_path}/other", failing=["a0.wav"])
    assert after == files(f"{tmp_path}/other")


def test_a_writer_of_another_job_is_refused(manifest: str, tmp_path: Path) -> None:
    old = plan(manifest, tmp_path / "out")
    for name in ("plan-00001.parquet", "job.json"):
        (tmp_path / "out" / "_plan" / name).unlink()
    new = plan(manifest, tmp_path / "out", model="another")
    publish(new)
    before = files(new.output)
    with pytest.raises(OutputError, match=f"is of job {new.job_fingerprint}, this is {old.job_fingerprint}"):
        publish(old)
    assert files(new.output) == before


def test_only_unfinished_files_of_the_dead_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "_tmp"
    folder.mkdir()
    child = PROCESSES.Process(target=int)
    child.start()
    child.join()
    stores.publish(str(tmp_path / "file"), b"x")
    from w2v_ray.stores.unfinished import unfinished_name

    mine = unfinished_name("part-1.parquet")
    machine = mine.split(".")[2]
    dead = mine.replace(f".{os.getpid()}.", f".{child.pid}.")
    elsewhere = dead.replace(machine, "0" * 12)
    for name in (mine, dead, elsewhere, "old", "writable"):
        (folder / name).write_bytes(b"x")
    long_ago = time.time() - 25 * 3600
    os.utime(folder / "old", (long_ago, long_ago))
    assert stores.remove_unfinished(str(tmp_path)) == 2
    assert sorted(path.name for path in folder.iterdir()) == sorted([mine, elsewhere, "writable"])
    assert stores.remove_unfinished(str(tmp_path / "nowhere")) == 0


def test_an_unknown_point_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    from w2v_ray.crash_points import crash_point

    crash_point("nowhere")
    monkeypatch.setenv("W2V_RAY_CRASH_AT", "commit.done")
    with pytest.raises(AssertionError, match="nowhere"):
        crash_point("nowhere")
