"""`w2v-ray submit` and the job server of a real Ray: a job is there once, and its exit code comes back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.job_server import TOKEN, started_job_server
from tests.made_outputs import rows_of, write_speech
from tests.ports import free_port
from w2v_ray.cli import main
from w2v_ray.output import audit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def job_server() -> Iterator[str]:
    with started_job_server() as address:
        yield address


def test_a_job_is_submitted_once_followed_and_begun_again(
    job_server: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    sent, output = tmp_path / "sent", tmp_path / "out"
    sent.mkdir()
    names = [f"one-{index}" for index in range(6)]
    text = Path(write_speech(tmp_path / "archive", names)).read_text()
    lines = [line.replace('path": "one-', f'path": "{tmp_path}/archive/one-') for line in text.splitlines()]
    (sent / "list.jsonl").write_text("\n".join(lines[:5]))
    job = tmp_path / "nightly.yaml"
    job.write_text(f"inputs: [list.jsonl]\noutput: {output}\nmodel: {tiny_checkpoint}\nencoder_threads: 1\n")
    command = ["submit", str(job), "--address", job_server, "--working-dir", str(sent)]

    assert main([*command, "--no-wait"]) == 0
    first = capfd.readouterr().err.split()
    assert first[0] == "submitted"
    assert first[1].startswith("nightly-")
    assert main([*command, "--no-wait"]) == 0
    assert capfd.readouterr().err.split() == ["is", "running", "already:", first[1]]
    assert main(command) == 0
    printed = capfd.readouterr()
    assert first[1] in printed.err
    assert "5 of 5" in printed.out or "transcribed" in printed.out
    assert audit(str(output)).is_complete
    assert len(rows_of(output)) == 5

    (sent / "list.jsonl").write_text("\n".join(lines))  # the folder is sent again; one of six is new
    assert main(command) == 0
    assert capfd.readouterr().err.split() == ["submitted", f"{first[1]}-2"]
    assert len(rows_of(output)) == 6
    other = [*command[:2], "on_change=new", *command[2:]]  # another setting, and so another job
    assert main(other) == 0
    said = capfd.readouterr().err.split()
    assert said[1].startswith("nightly-")
    assert not said[1].startswith(first[1])
    assert len(rows_of(output)) == 6


def test_the_exit_code_is_the_jobs(
    job_server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    job = tmp_path / "bad.yaml"
    job.write_text(f"inputs: [{tmp_path}/gone]\noutput: {tmp_path}/out\nmodel: {tmp_path}/gone\n")
    assert main(["submit", str(job), "--address", job_server, "--id", "By Hand: 1"]) == 2
    printed = capfd.readouterr()
    assert printed.err.split() == ["submitted", "by-hand-1"]
    assert "gone" in printed.out


def test_a_folder_that_is_too_large_to_be_sent_is_named(
    job_server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    (tmp_path / "audio.raw").write_bytes(os.urandom(110 * 2**20))
    job = tmp_path / "job.yaml"
    job.write_text("inputs: [a]\noutput: b\nmodel: c\n")
    assert main(["submit", str(job), "--address", job_server, "--working-dir", str(tmp_path)]) == 2
    said = capfd.readouterr().err
    assert f"working_dir is '{tmp_path}', and a job server takes 100 MiB at most" in said


def test_a_job_server_that_asks_for_a_token_or_is_not_there_is_named(
    job_server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("inputs: [a]\noutput: b\nmodel: c\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    assert main(["submit", str(job), "--address", job_server]) == 2
    assert f"the job server at {job_server} asks for a token" in capfd.readouterr().err
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", job_server)  # what is named counts
    assert main(["submit", str(job), "--address", address]) == 2
    assert f"no job server answers at {address}" in capfd.readouterr().err
