from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.made_outputs import plan, publish, write_archive
from w2v_ray.cli import main
from w2v_ray.config import JobConfig
from w2v_ray.job import prepare

NAMES = [f"a{number}.wav" for number in range(9)]


def test_audit_says_what_is_proved_and_what_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = plan(write_archive(tmp_path / "in", dict.fromkeys(NAMES, "x")), tmp_path / "out")
    publish(planned, planned.pending[:2], failing={"a1.wav"})
    assert main(["audit", planned.output]) == 4
    assert "items are pending; run the job again" in capsys.readouterr().out
    publish(planned)
    assert main(["audit", planned.output]) == 0
    shown = capsys.readouterr().out
    assert "every item has one outcome; 4 files are as they were written" in shown
    assert [line.split()[:2] for line in shown.splitlines()[1:5]] == [
        ["planned", "9"],
        ["done", "8"],
        ["rejected", "1"],
        ["pending", "0"],
    ]
    part = next((tmp_path / "out" / "transcripts").iterdir())
    part.write_bytes(part.read_bytes()[:-1])
    assert main(["audit", planned.output]) == 4
    shown = capsys.readouterr().out
    assert f"damaged: transcripts/{part.name} cannot be read" in shown
    assert "1 thing is wrong" in shown
    (part.parent / "red\x1b[31m").write_text("a name that a terminal would obey")
    assert main(["audit", planned.output]) == 4
    shown = capsys.readouterr().out
    assert "foreign: transcripts/red\\x1b[31m has no name" in shown
    assert "2 things are wrong" in shown
    (part.parent / "red\x1b[31m").unlink()
    assert main(["audit", "--json", planned.output]) == 4
    assert json.loads(capsys.readouterr().out)["findings"][0]["kind"] == "damaged"
    assert main(["audit", str(tmp_path)]) == 2
    assert "is not the output of a job" in capsys.readouterr().err


def test_compact_says_what_became_of_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = plan(write_archive(tmp_path / "in", dict.fromkeys(NAMES, "x")), tmp_path / "out")
    publish(planned)
    assert main(["compact", planned.output]) == 0
    said = re.fullmatch(r"3 files of (\S+) kB are now 1 of (\S+) kB\n", capsys.readouterr().out)
    assert said
    assert float(said[1]) > float(said[2]) > 0
    assert main(["compact", planned.output, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_files_before"] == 1
    assert main(["compact", planned.output, "--target-mb", "-1"]) == 2
    assert "target_mb is -1.0, expected above 0; try 512" in capsys.readouterr().err


def test_retrying_and_since_last_say_what_they_plan(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = dict.fromkeys(NAMES, "x")
    manifest = write_archive(tmp_path / "in", contents)
    job = JobConfig(inputs=(manifest,), output=str(tmp_path / "out"), model=str(tiny_checkpoint))
    publish(prepare(job))
    assert main(["retry-errors", job.output, "--reason", "ReadError"]) == 0
    assert "planned 0 rejected items again" in capsys.readouterr().err
    arguments = ["transcribe", manifest, "--output", job.output, "--model", job.model]
    assert main([*arguments, "--since-last"]) == 0
    assert "since the last plan: 0 items new, 0 changed\n" in capsys.readouterr().err
    (tmp_path / "in" / "a8.wav").unlink()
    assert main([*arguments, "--on-change", "new"]) == 0
    told = "since the last plan: 0 items new, 0 changed, 1 recording gone, whose rows stay\n"
    assert told in capsys.readouterr().err
    write_archive(tmp_path / "in", contents | {"a3.wav": "xx"})
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert "a3.wav' has changed since it was planned" in shown
    assert "plan what changed anew with --on-change new" in shown
