"""The blocks of the documentation that need a Ray or a minute, executed as they stand: by bash and by Python.

The blocks of a page are executed one after another in a folder where the names that the page uses stand for
small checkpoints, clips, and a bucket of a server on this machine. Each job joins the Ray of the tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.job_server import TOKEN, started_job_server
from tests.made_outputs import rows_of
from tests.snippet_places import given, place_everything, stored_bucket
from tests.snippets import CODE, JOBS, ROOT, Snippet, is_ours, name_of
from w2v_ray import demo, stores
from w2v_ray.run_record import newest_run

pytestmark = pytest.mark.slow

FOLLOWED = "docs/monitoring.md"
PAGES = sorted({s.page for s in CODE if s.language != "python" and s.is_executed("slow")} - {FOLLOWED})
PYTHON = [s for s in CODE if s.language == "python" and s.how() == "slow"]
BIN = Path(sys.executable).parent
# What may be amiss with the machine that runs the tests, and is told of as a problem.
OF_THE_MACHINE = {"open files", "shared memory", "ray folder", "memory", "gpu"}
BROKEN = "broken.wav"
HEAD = "http://head:8265"
FORWARDED = "http://localhost:8265"  # to it, by `ray dashboard`


@pytest.fixture(scope="module")
def job_server(s3_server: None) -> Iterator[str]:
    with started_job_server() as address:
        yield address


@pytest.fixture(scope="module")
def places(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    place_everything(folder, tiny_checkpoint)
    return folder


@pytest.fixture
def folder(
    ray_session: None, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder with what the pages name, of which programs find the Ray of the tests, and a new bucket."""
    import ray

    for place in places.iterdir():
        if place.is_dir():
            (tmp_path / place.name).symlink_to(place)
        else:
            shutil.copy(place, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("W2V_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")  # for a detector that is a module there
    with stored_bucket():
        yield tmp_path


def place_own(page: str, folder: Path) -> None:
    """What the jobs of a page are given."""
    if page in ("README.md", "docs/quickstart.md"):  # a clone in which `make setup` is done
        for name in ("Makefile", "pyproject.toml", "constraints.txt", "cmake"):
            (folder / name).symlink_to(ROOT / name)
        (folder / ".venv").mkdir()
        (folder / ".venv" / "bin").symlink_to(BIN)
        (folder / ".venv" / ".installed").touch()
    if page in ("README.md", "docs/clusters.md"):
        stored = f"inputs: [s3://bucket/archive]\noutput: s3://bucket/out\nmodel: {demo.CHECKPOINT}\n"
        for name in ("job.yaml", "nightly.yaml"):
            (folder / name).write_text(stored, encoding="utf-8")
        (folder / "dags").mkdir()
        if page == "docs/clusters.md":  # what is sent to a cluster is small
            for place in [place for place in folder.iterdir() if place.is_symlink()]:
                place.unlink()
    elif page == "docs/speakers.md":
        names = ["84-121123-0000", "84-121123-0001", "1272-128104-0000"]
        fill(folder / "recordings", {f"{name}.flac": name for name in names})
        (folder / "trials.txt").write_text(f"1 {names[0]} {names[1]}\n0 {names[0]} {names[2]}\n")
    elif page == "docs/frames.md":
        from w2v_ray.rttm import Turn, rttm_line

        for name in ("recordings", "meetings"):
            fill(folder / name, {"a.flac": "a", "b.flac": "b"})
        (folder / "labels.csv").write_text("id,label\na,bell\nb,rain\n")
        lines = [rttm_line(name, Turn("x", 0.5, 1.5)) for name in "ab"]
        (folder / "reference.rttm").write_text("".join(lines))
    elif page == "docs/operations.md":
        stores.publish(f"s3://bucket/archive/{BROKEN}", b"nothing that decodes")
        (folder / "OUT").symlink_to("out")


def fill(folder: Path, names: dict[str, str]) -> None:
    """A folder of clips under these names, each another one."""
    folder.unlink()
    folder.mkdir()
    clips = sorted(demo.ARCHIVE.glob("*.flac"))
    for number, name in enumerate(names):
        shutil.copy(clips[number % len(clips)], folder / name)


def outputs_of(commands: list[list[str]]) -> list[str]:
    """What the jobs among these commands write."""
    return [
        words[words.index("--output") + 1]
        for words in commands
        if is_ours(words) and name_of(words) in (*JOBS, "redecode")
        if "--output" in words and "--dry-run" not in words
    ]


def begin_anew(snippet: Snippet) -> None:
    """Removes outputs of blocks before that jobs of this one will write: each is to do all its work."""
    for output in outputs_of(snippet.commands):
        remove(output)


def remove(output: str) -> None:
    system, path = fsspec.url_to_fs(output)
    if system.exists(path):
        system.rm(path, recursive=True)


def problems_of(printed: str) -> set[str]:
    """What `w2v-ray doctor` found to be amiss, but with the machine of the tests."""
    found = {re.split(" {2,}", line)[1] for line in printed.splitlines() if line.startswith("problem ")}
    return found - OF_THE_MACHINE


def shell(line: str) -> list[str]:
    return ["bash", "-eu", "-o", "pipefail", "-c", line]


def execute(snippet: Snippet, names: dict[str, str]) -> None:
    for line, commands in snippet.lines:
        if "never" in [snippet.how(words) for words in commands]:
            continue
        for name, stands_for in names.items():
            line = line.replace(name, stands_for)
        environment = dict(os.environ)
        if " submit " in line:
            environment |= {"RAY_AUTH_TOKEN": TOKEN}  # the Ray of the tests has another
            remove("s3://bucket/out")  # that of a job with other settings
        if "device=cuda max_encoders" in line:
            wait_for_gpus(line, environment | {"RAY_API_SERVER_ADDRESS": names[HEAD]})
            continue
        done = subprocess.run(
            shell(line), env=environment, capture_output=True, text=True, timeout=550, check=False
        )
        said = f"{snippet}: {line}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        if "w2v-ray doctor" in line:
            assert re.search(r"(?m)^(no|\d+) problems?, \d+ notes?$", done.stdout), said
            assert problems_of(done.stdout) == set(), said
        else:
            assert done.returncode == 0, said
        for output in outputs_of(commands):
            rejects = [row for row in rows_of(output, "rejects") if not row["uri"].endswith(BROKEN)]
            assert rejects == [], said


def wait_for_gpus(line: str, environment: dict[str, str]) -> None:
    """Submits a job for GPUs, of which the cluster has none, until it says that it waits for the first."""
    command = subprocess.Popen(
        ["timeout", "300", *shell(line)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert command.stdout is not None
    told: list[str] = []
    while not told or "has no machine with a GPU yet; waiting up to" not in told[-1]:
        told.append(command.stdout.readline())
        assert told[-1], told
    command.terminate()
    command.communicate(timeout=60)
    (job,) = re.findall("(?m)^submitted (\\S+)$", "".join(told))  # it outlives the command
    stop = shell(f"ray job stop {job}")
    subprocess.run(stop, env=environment | {"RAY_AUTH_MODE": "token"}, check=True, timeout=120)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs_in_a_shell(page: str, folder: Path, request: pytest.FixtureRequest) -> None:
    place_own(page, folder)
    names: dict[str, str] = {}
    if any(HEAD in s.text for s in CODE if s.page == page):
        names[HEAD] = names[FORWARDED] = request.getfixturevalue("job_server")
    variables = given(Path(page).name) | {"__name__": "__main__"}
    for snippet in CODE:
        if snippet.page != page:
            continue
        if snippet.language == "python":
            if snippet.how() == "test":  # with the outputs that commands have made
                exec(compile(snippet.text, str(snippet), "exec"), variables)
        elif snippet.is_executed("test", "slow"):
            begin_anew(snippet)
            execute(snippet, names)


@pytest.mark.parametrize("snippet", PYTHON, ids=str)
def test_python_that_needs_ray_runs(snippet: Snippet, folder: Path) -> None:
    import ray

    import w2v_ray

    text = snippet.text
    for name in (
        "a.flac",
        "my_archive/",
        "out",
    ):  # the workers' folder is that in which their Ray was started
        text = text.replace(f'"{name}"', repr(str(folder / name)))
    variables: dict[str, Any] = {"__name__": "__main__", "w2v_ray": w2v_ray}
    if re.search(r"\(ds\b", text) and "ds = ray.data" not in text:
        lines = (folder / "manifest.jsonl").read_text().splitlines()[:2]
        kept = "text" if "align" in text and "transcribe" not in text else "language"
        rows = [{"uri": entry["audio_filepath"], kept: entry[kept]} for entry in map(json.loads, lines)]
        variables["ds"] = ray.data.from_items(rows)
    exec(compile(text, str(snippet), "exec"), variables)
    if "ds" in variables:
        found = variables["ds"].take_all()
        assert len(found) == 2
        errors = [row[name] for row in found for name in row if name.endswith("error")]
        assert errors
        assert errors == [None] * len(errors)
    else:
        assert variables["summary"].num_rows == 24


def test_a_run_is_followed_while_it_runs(folder: Path) -> None:
    first, *others = [s for s in CODE if s.page == FOLLOWED and s.language != "python"]
    (follow,) = [s for s in others if s.is_executed("slow")]
    (folder / "archive").unlink()
    (folder / "archive").mkdir()
    for number in range(40):  # so that it is still under way when the others begin
        for clip in demo.ARCHIVE.glob("*.flac"):
            (folder / "archive" / f"{number}-{clip.name}").symlink_to(clip)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    job = subprocess.Popen(shell(first.text.splitlines()[0].removeprefix("$ ")), **pipes)
    while newest_run("s3://bucket/out") is None:
        assert job.poll() is None, job.communicate()
        time.sleep(0.2)
    followers = [subprocess.Popen(shell(line), **pipes) for line in follow.text.splitlines()]
    said, error = job.communicate(timeout=300)
    assert job.returncode == 0, error
    assert re.search(r"(?m)^[\d.]+ of [\d.]+ \w+ ", said + error), said + error  # a line as the page shows it
    shown = []
    for follower in followers:
        told, error = follower.communicate(timeout=120)
        assert follower.returncode == 0, error
        shown.append(told)
    states = [json.loads(line)["state"] for line in shown[1].splitlines()]
    assert (states[0], states[-1]) == ("running", "done")
    assert " of " in shown[0]
