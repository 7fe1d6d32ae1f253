"""The command line: exit codes, one-sentence errors that come fast, help that can be read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from w2v_ray import JobConfig, demo
from w2v_ray.cli import main
from w2v_ray.job import prepare

# Where no model has to load, an error must come within five seconds on an idle machine.
SECONDS_FOR_AN_ERROR = 5.0


def command(*args: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "w2v_ray.cli", *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def transcribe(source: Path | str, output: Path | str, *more: str) -> list[str]:
    return ["transcribe", str(source), "--output", str(output), "--model", str(demo.CHECKPOINT), *more]


def audio_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for file in sorted(demo.ARCHIVE.glob("*.flac")):
        shutil.copy(file, folder)
    return folder


def test_a_job_whose_output_fails_in_the_middle_has_failed_in_one_sentence(
    tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    shutil.copy(min(demo.ARCHIVE.glob("*.flac")), source)
    job = transcribe(source, tmp_path / "out")
    prepare(JobConfig(inputs=(str(source),), output=str(tmp_path / "out"), model=str(demo.CHECKPOINT)))
    (tmp_path / "out" / "transcripts").write_text("a disk that is full looks the same from here")
    assert main(job) == 1
    said = capsys.readouterr().err
    assert "cannot be written (Not a directory)" in said
    assert "Traceback" not in said


def bad_arguments(tmp_path: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Name -> arguments, and what the error must name."""
    full = audio_folder(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "notes.md").write_text("no audio here")
    blocked = tmp_path / "a_file"
    blocked.write_text("")
    no_weights = tmp_path / "no_weights"
    shutil.copytree(demo.CHECKPOINT, no_weights, ignore=shutil.ignore_patterns("*.safetensors"))
    job = tmp_path / "job.yaml"
    job.write_text("inputs: [in]\noutput: out\nmodel: checkpoint\nshard_second: 60\n")
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    (strangers / "thesis.txt").write_text("mine")
    out = tmp_path / "out"
    shouted = demo.LANGUAGE_MODEL.read_text()
    (tmp_path / "lower.arpa").write_text(shouted.lower())
    (tmp_path / "words.txt").write_text("Ñandú\naño\n")
    lm = str(demo.LANGUAGE_MODEL)
    return {
        "no such language model": (transcribe(full, out, "--lm", "gone.arpa"), ["gone.arpa", "exist"]),
        "language model in lower case": (
            transcribe(full, out, "--lm", str(tmp_path / "lower.arpa")),
            ["lower.arpa", "write it in upper case"],
        ),
        "unigrams of another script": (
            transcribe(full, out, "--lm", lm, "--unigrams", str(tmp_path / "words.txt")),
            ["words.txt", "lacks"],
        ),
        "hotwords that cannot be spelled": (
            transcribe(full, out, "--hotwords", "STOP,sand"),
            ["'sand'", "write it in upper case"],
        ),
        "hotwords that no file holds": (
            transcribe(full, out, "--hotwords", "names.txt"),
            ["'names.txt'", "lacks", "name a file of them that exists"],
        ),
        "checkpoint without a language model": (
            transcribe(full, out, "--lm", "checkpoint"),
            ["language_model", "name the file"],
        ),
        "alpha without a language model": (transcribe(full, out, "--alpha", "1"), ["alpha", "name lm"]),
        "a language of a checkpoint with one": (
            transcribe(full, out, "--language", "fra"),
            ["config.json", "adapter_attn_dim", "leave the language settings out"],
        ),
        "languages of no output": (
            transcribe(full, out, "--languages-from", str(empty), "--lm", lm),
            [lm, "languages_from tells of several"],
        ),
        "decode again what was not kept": (
            ["redecode", str(empty), "--output", str(out), "--beam-width", "10"],
            [str(empty), "--keep-log-probs"],
        ),
        "empty folder": (transcribe(empty, out), [str(empty)]),
        "folder without audio": (transcribe(texts, out), [str(texts)]),
        "no such input": (transcribe(tmp_path / "absent", out), [str(tmp_path / "absent")]),
        "no such model": (
            [*transcribe(full, out)[:-1], str(tmp_path / "no_model")],
            ["no_model", "config.json"],
        ),
        "model without weights": (
            [*transcribe(full, out)[:-1], str(no_weights)],
            [str(no_weights), "safetensors"],
        ),
        "output below a file": (transcribe(full, blocked / "out"), [str(blocked)]),
        "output of somebody else": (transcribe(full, strangers), [str(strangers)]),
        "misspelt key": (["run", str(job)], ["'shard_second'", "'shard_seconds'"]),
        "no such job file": (["run", str(tmp_path / "no.yaml")], ["no.yaml"]),
        "nothing to resume": (["run", "--resume", str(tmp_path / "no.yaml")], ["no.yaml"]),
        "shard too short": (transcribe(full, out, "--shard-seconds", "1"), ["shard_seconds", "10"]),
        "status of nothing": (["status", str(tmp_path / "nothing")], ["nothing"]),
    }


# Runs lists of arguments one after another in a process where nothing is loaded yet, and tells of each. What
# makes an error slow is importing torch and starting Ray; neither may happen for one.
SEVERAL = """
import contextlib, io, json, sys, time
from w2v_ray.cli import main
for arguments in json.load(sys.stdin):
    began = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
    loaded = ["torch"] if "torch" in sys.modules else []
    loaded += ["ray"] if "ray" in sys.modules and sys.modules["ray"].is_initialized() else []
    told = [code, out.getvalue(), err.getvalue(), loaded, time.monotonic() - began]
    print(json.dumps(told), flush=True)
"""


class Told(NamedTuple):
    """How a command ended in a process with others, and what it had loaded by then."""

    code: int | None
    stdout: str
    stderr: str
    loaded: list[str]
    seconds: float


def several(commands: list[list[str]]) -> list[Told]:
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL],
        input=json.dumps(commands),
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    told = [Told(*json.loads(line)) for line in done.stdout.splitlines()]
    assert len(told) == len(commands), done.stderr
    return told


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Told], dict[str, list[str]], Path]:
    """What is told of all bad arguments, what each must name, and the output that none may begin."""
    folder = tmp_path_factory.mktemp("bad")
    cases = bad_arguments(folder)
    told = several([arguments for arguments, _ in cases.values()])
    named = {name: texts for name, (_, texts) in cases.items()}
    return dict(zip(cases, told, strict=True)), named, folder / "out"


@pytest.mark.parametrize(
    "case",
    [
        "empty folder",
        "folder without audio",
        "no such input",
        "no such model",
        "model without weights",
        "output below a file",
        "output of somebody else",
        "misspelt key",
        "no such job file",
        "shard too short",
        "status of nothing",
        "no such language model",
        "language model in lower case",
        "unigrams of another script",
        "hotwords that cannot be spelled",
        "hotwords that no file holds",
        "checkpoint without a language model",
        "alpha without a language model",
        "decode again what was not kept",
    ],
)
def test_bad_arguments_give_one_clear_sentence(
    case: str, errors: tuple[dict[str, Told], dict[str, list[str]], Path]
) -> None:
    told, named, output = errors
    assert told[case].code == 2, told[case].stderr
    lines = told[case].stderr.strip().splitlines()
    assert len(lines) == 1, told[case].stderr
    assert lines[0].startswith("w2v-ray: ")
    for text in named[case]:
        assert text in lines[0]
    assert not (output / "transcripts").exists()


def test_errors_come_before_torch_and_ray_are_loaded(
    errors: tuple[dict[str, Told], dict[str, list[str]], Path],
) -> None:
    for name, told in errors[0].items():
        assert (told.code, told.loaded) == (2, []), f"{name}: {told.stdout} {told.stderr}"
        assert told.seconds < 4 * SECONDS_FOR_AN_ERROR, name  # far above: machines are shared


def test_unknown_options_and_no_command_are_bad_arguments() -> None:
    wrong = [[], ["transcribe"], ["transcribe", "a", "--output", "b", "--model", "c", "--dtype", "int3"]]
    assert [told.code for told in several(wrong)] == [2, 2, 2]
    assert command("transcribe").returncode == 2


def test_an_option_where_a_job_file_has_settings_is_told_how(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run", "job.yaml", "--dtype", "int8"])
    assert "--dtype int8; settings of the job are given as key=value" in capsys.readouterr().err


def test_whoever_reads_only_the_beginning_of_the_output_is_not_shown_an_error() -> None:
    told = subprocess.run(
        ["bash", "-c", f'{sys.executable} -m w2v_ray.cli schema | true; echo "${{PIPESTATUS[0]}}"'],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (told.stdout, told.stderr) == ("141\n", "")


def test_help_and_version_are_quick_and_complete() -> None:
    arguments = (
        ["--help"],
        ["transcribe", "--help"],
        ["demo", "--help"],
        ["status", "--help"],
        ["redecode", "--help"],
        ["run", "--help"],
        ["audit", "--help"],
        ["compact", "--help"],
        ["retry-errors", "--help"],
        ["schema", "--help"],
    )
    told = several([*arguments, ["--version"]])
    assert [(one.code, one.loaded) for one in told] == [(0, [])] * len(told)
    *helps, version = [one.stdout for one in told]
    assert max(len(line) for text in helps for line in text.splitlines()) <= 120
    assert "--max-reject-rate" in helps[1]
    assert version.startswith("w2v-ray ")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    absent = transcribe(tmp_path / "absent", tmp_path / "out")
    told = command(*absent)
    assert (told.returncode, len(told.stderr.splitlines())) == (2, 1)
    assert "Traceback" in command(*absent, "--debug").stderr


def test_json_is_one_line_and_rejects_set_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = audio_folder(tmp_path)
    (folder / "broken.wav").write_bytes(b"RIFF not really")
    arguments = transcribe(folder, tmp_path / "out", "--json", "--max-reject-rate", "0.1")
    result = command(*arguments)
    assert result.returncode == 3, result.stderr
    summary = json.loads(result.stdout)
    assert summary["num_rejects"] == 1
    assert summary["rejects_by_reason"] == {"DecodeError": 1}
    assert "--max-reject-rate" in result.stderr

    assert main(arguments) == 3  # nothing is left to do, and the share is as high as before
    assert json.loads(capsys.readouterr().out)["num_rows"] == 0

    assert main(["status", str(tmp_path / "out"), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["num_rejects"] == 1
    assert status["pending_s"] == 0
    assert main(["status", str(tmp_path / "out")]) == 0
    assert "1 x DecodeError" in capsys.readouterr().out
