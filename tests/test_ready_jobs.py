"""The job files of ``pipelines/``: each loads, fits the schema and says what it would do."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.head_checkpoints import add_head
from tests.made_languages import make_checkpoint
from w2v_ray import demo
from w2v_ray.align_config import AlignConfig
from w2v_ray.cli import main
from w2v_ray.config import JobConfig, RedecodeConfig
from w2v_ray.errors import ConfigError
from w2v_ray.job_file import FILE_TASKS, config_class, load_job
from w2v_ray.job_schema import job_schema, schema_text

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "pipelines").glob("*.yaml"))
READY = ["align", "classify", "embed", "frames", "multilingual", "nightly", "transcribe", "transcribe_lm"]
VALIDATOR = jsonschema.Draft202012Validator(job_schema())


@pytest.fixture(scope="module")
def checkpoints(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stands for the checkpoints of the hub that some of the files name."""
    folder = tmp_path_factory.mktemp("checkpoints")
    heads = {task: add_head(tiny_checkpoint, folder / task, task) for task in ("classify", "embed", "frames")}
    return heads | {"multilingual": make_checkpoint(folder / "multilingual")}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """What the demo's manifest says, and a language of each recording."""
    lines = (demo.ARCHIVE / "manifest.jsonl").read_text().splitlines()
    path = tmp_path / "manifest.jsonl"
    entries = [json.loads(line) for line in lines]
    for number, entry in enumerate(entries):
        entry["audio_filepath"] = str(demo.ARCHIVE / entry["audio_filepath"])
        entry["language"] = ("eng", "fra")[number % 2]
    path.write_text("\n".join(map(json.dumps, entries)))
    return path


def test_the_ready_files_are_these() -> None:
    assert [path.stem for path in FILES] == READY
    for path in FILES:
        assert path.read_text().startswith("# yaml-language-server: $schema=job.schema.json\n")
        assert f"w2v-ray run pipelines/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_fits_the_schema_and_dry_runs(
    path: Path,
    checkpoints: dict[str, Path],
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    VALIDATOR.validate(yaml.safe_load(path.read_text()))
    monkeypatch.chdir(ROOT)  # as from a clean clone
    output = tmp_path / "out"
    monkeypatch.setenv("W2V_RAY_OUTPUT", str(output))
    if path.stem in checkpoints:
        monkeypatch.setenv("W2V_RAY_MODEL", str(checkpoints[path.stem]))
    if path.stem == "multilingual":
        monkeypatch.setenv("W2V_RAY_INPUTS", str(manifest))
    before = sorted(tmp_path.rglob("*"))
    assert main(["run", str(path), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["task"] == {
        "multilingual": "transcribe",
        "nightly": "transcribe",
        "transcribe_lm": "transcribe",
    }.get(path.stem, path.stem)
    assert (
        found["num_new"]
        == found["num_items"]
        == {"align": 16, "classify": 30, "multilingual": 16}.get(path.stem, 24)
    )
    assert found["num_pending_shards"] == found["num_shards"] >= 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_schema_of_the_project_is_that_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    VALIDATOR.check_schema(job_schema())
    committed = (ROOT / "pipelines" / "job.schema.json").read_text(encoding="utf-8")
    assert committed == schema_text(), "run `w2v-ray schema > pipelines/job.schema.json`"
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == committed
    assert main(["schema", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == job_schema()


def test_the_schema_knows_and_describes_every_key() -> None:
    properties = job_schema()["properties"]
    names = {field.name for kind in (JobConfig, AlignConfig, RedecodeConfig) for field in fields(kind)}
    assert properties.keys() == names
    for name, made in properties.items():
        assert re.fullmatch(r"[A-Z].*\.", made["description"]), name
        assert "As of" not in made["description"]
    for field in fields(JobConfig):
        default = properties[field.name].get("default", MISSING)
        assert default == (list(field.default) if isinstance(field.default, tuple) else field.default)


NEEDED: dict[str, Any] = {"inputs": ["a"], "output": "out", "model": "m"}
AGAIN: dict[str, Any] = {"task": "redecode", "source": "a", "output": "b"}
VALUES: list[tuple[dict[str, Any], bool]] = [
    (NEEDED, True),
    (NEEDED | {"task": "embed"}, True),
    (NEEDED | {"task": "align", "text_key": "sentence"}, True),
    (NEEDED | {"text_key": "sentence"}, False),
    (NEEDED | {"task": "sing"}, False),
    (NEEDED | {"source": "a"}, False),
    (NEEDED | {"inputs": []}, False),
    (NEEDED | {"inputs": "a"}, False),
    (NEEDED | {"inputs": ["a", 1]}, False),
    (NEEDED | {"output": ""}, False),
    (NEEDED | {"shard_second": 60}, False),
    (NEEDED | {"shard_seconds": 60}, True),
    (NEEDED | {"shard_seconds": 60.5}, True),
    (NEEDED | {"shard_seconds": 9}, False),
    (NEEDED | {"shard_seconds": 7201}, False),
    (NEEDED | {"shard_seconds": "60"}, False),
    (NEEDED | {"shard_seconds": True}, False),
    (NEEDED | {"num_encoders": 0}, False),
    (NEEDED | {"num_encoders": 2}, True),
    (NEEDED | {"num_encoders": None}, True),
    (NEEDED | {"num_encoders": 1.5}, False),
    (NEEDED | {"lm": "a.arpa", "alpha": 0.5, "beam_width": 10}, True),
    (NEEDED | {"lm": ["a.arpa"]}, False),
    (NEEDED | {"lm": None}, True),
    (NEEDED | {"output": None}, False),
    (NEEDED | {"output": " "}, False),
    (NEEDED | {"device": "cuda:1"}, True),
    (NEEDED | {"device": "gpu"}, False),
    (NEEDED | {"also": ["embed", "frames=${NUMBER}"]}, True),
    (NEEDED | {"also": ["turns=x"]}, False),
    (NEEDED | {"dtype": "float16"}, True),
    (NEEDED | {"dtype": "int4"}, False),
    (NEEDED | {"dtype": "int8"}, True),
    (NEEDED | {"characters": "true"}, False),
    (NEEDED | {"channel": "left"}, True),
    (NEEDED | {"channel": 3}, True),
    (NEEDED | {"channel": "3"}, True),
    (NEEDED | {"channel": 32}, False),
    (NEEDED | {"channel": "centre"}, False),
    (NEEDED | {"stores": {"s3": {"attempts": 3, "profile": "lab"}}}, True),
    (NEEDED | {"stores": {"s3": {"attempts": 0}}}, False),
    (NEEDED | {"stores": {"s3": {"max_connections": 3}}}, False),
    (NEEDED | {"stores": {"s4": {}}}, False),
    (NEEDED | {"stores": {"gs": {"token": "anon", "deadline_s": 1.5}}}, True),
    (
        NEEDED
        | {"num_encoders": "${NUMBER}", "shard_seconds": "${SECONDS:-60}", "dtype": "${DTYPE:-float32}"},
        True,
    ),
    (NEEDED | {"num_encoders": "$NUMBER"}, False),
    (AGAIN, True),
    (AGAIN | {"lm": "a.arpa", "num_decoders": 2}, True),
    (AGAIN | {"model": "m"}, False),
    ({"task": "redecode", "output": "b"}, False),
    ({"inputs": ["a"], "output": "b"}, False),
]


@pytest.mark.parametrize(("values", "is_valid"), VALUES, ids=lambda value: str(value)[:60])
def test_the_schema_and_the_loader_agree(
    values: dict[str, Any], is_valid: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBER", "2")
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    assert VALIDATOR.is_valid(values) == is_valid
    try:
        load_job(path)
    except ConfigError:
        assert not is_valid
    else:
        assert is_valid


def test_every_task_of_a_file_is_in_the_schema() -> None:
    for task in FILE_TASKS:
        own = {"inputs": ["a"], "model": "m"} if config_class(task) is not RedecodeConfig else {"source": "a"}
        VALIDATOR.validate({"task": task, "output": "out"} | own)
