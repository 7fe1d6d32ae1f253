"""`w2v-ray doctor`: real checks on this machine, and real failures that each must be found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from w2v_ray import stores
from w2v_ray.cli import main
from w2v_ray.doctor import Finding, diagnose
from w2v_ray.doctor.codecs import check_codecs
from w2v_ray.doctor.devices import check_attention, check_cpu, check_gpus
from w2v_ray.doctor.finding import ok
from w2v_ray.doctor.packages import (
    check_beam_search,
    check_columns,
    check_kenlm,
    check_python,
    check_requirements,
    check_torch,
)
from w2v_ray.doctor.places import check_caches, check_place

ROOT = Path(__file__).resolve().parents[1]


def only(findings: Iterator[Finding], level: str) -> Finding:
    (found,) = [finding for finding in findings if finding.level == level]
    return found


# ---- what is installed


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (check_python, "CPython 3."),
        (check_requirements, "pyarrow "),
        (check_torch, "and torchaudio 2."),
        (check_columns, "write and read Parquet"),
        (check_beam_search, "works"),
        (check_kenlm, "0.3"),
        (check_cpu, "int8"),
        (check_attention, "auto takes sdpa"),
    ],
)
def test_what_the_tests_run_on_is_well(check: object, said: str) -> None:
    (found,) = check()  # type: ignore[operator]
    assert (found.level, found.fix) == ("ok", None)
    assert said in found.text


def test_every_codec_gives_back_the_tone() -> None:
    sndfile, ffmpeg = check_codecs()
    assert (sndfile.level, ffmpeg.level) == ("ok", "ok")
    assert "wav, flac, ogg, mp3 by soundfile" in sndfile.text
    assert "m4a, aac, webm by PyAV" in ffmpeg.text


def test_a_codec_that_swallows_the_tone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from w2v_ray.doctor import codecs

    monkeypatch.setitem(codecs._SNDFILE, "mp3", ("MP3", "PCM_16"))  # no such thing
    monkeypatch.setattr(codecs, "_HERTZ", 24_000.0)  # which no codec at 16 kHz can hold
    sndfile, ffmpeg = check_codecs()
    assert (sndfile.level, ffmpeg.level) == ("problem", "problem")
    assert "mp3: " in sndfile.text
    assert "of the tone is left" in ffmpeg.text
    assert ffmpeg.fix is not None
    assert "--force-reinstall av" in ffmpeg.fix


def in_a_process(code: str, folder: Path, **environment: str) -> str:
    path = os.pathsep.join([str(folder), str(ROOT)])
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in ran.stderr
    return ran.stdout


def test_packages_that_are_broken_are_problems(tmp_path: Path) -> None:
    for name in ("faiss", "torchaudio", "kenlm", "numpy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise OSError('undefined symbol: _ZN3c10')")
    code = """
from w2v_ray.doctor import Check, diagnose
from w2v_ray.doctor import packages as p
checks = {"faiss": lambda: p.check_extras([one for one in p.EXTRAS if one.module == "faiss"])}
checks |= {"kenlm": p.check_kenlm, "columns": p.check_columns, "beam search": p.check_beam_search}
for found in diagnose(checks):
    print(found.level, found.check, found.text, "| fix:", found.fix)
"""
    faiss, kenlm, columns, beam = in_a_process(code, tmp_path).splitlines()
    assert faiss.startswith(
        "problem extra search faiss-cpu is there but cannot be imported (OSError: undefined"
    )
    assert "w2v-ray nearest --index faiss" in faiss
    assert faiss.endswith("pip install --force-reinstall faiss-cpu, or remove it")
    assert kenlm.startswith("note kenlm")
    assert columns.startswith("problem columns NumPy and pyarrow do not work together")
    assert beam.startswith("problem beam search")


def test_an_extra_that_is_missing_names_who_needs_it() -> None:
    from w2v_ray.doctor.packages import Extra, check_extras

    (found,) = check_extras([Extra("w2v_ray_nothing", "nothing", "search", "w2v-ray nearest")])
    assert (found.level, found.fix) == ("note", "pip install 'w2v-ray[search]'")
    assert "for w2v-ray nearest" in found.text


def test_requirements_that_do_not_fit_are_problems(tmp_path: Path) -> None:
    info = tmp_path / "w2v_ray-9.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: w2v-ray", "Version: 9", "Requires-Python: >=3.99"]
    lines += [
        f"Requires-Dist: {one}" for one in ("numpy<1", "no-such-package>=2", "pyyaml", 'x; extra == "y"')
    ]
    (info / "METADATA").write_text("\n".join(lines))
    code = """
from w2v_ray.doctor import packages as p
for found in [*p.check_python(), *p.check_requirements()]:
    print(found.level, found.text, "| fix:", found.fix)
"""
    python, numpy, missing, fits = in_a_process(code, tmp_path).splitlines()
    assert python.startswith("problem CPython 3.")
    assert python.endswith("where >=3.99 is asked for | fix: install w2v-ray into a Python >=3.99")
    assert numpy.endswith("where <1 is asked for | fix: pip install 'numpy<1'")
    assert missing == "problem no-such-package is not installed | fix: pip install 'no-such-package>=2'"
    assert fits.startswith("ok 1 of 3 as required: pyyaml")


# ---- GPUs and models


def nvidia_smi(folder: Path, script: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


def test_no_gpu_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    monkeypatch.setenv("PATH", str(tmp_path))  # without nvidia-smi
    (found,) = check_gpus()
    assert found.level == "ok"
    nvidia_smi(tmp_path, 'echo "NVIDIA-SMI has failed: no driver"; exit 9')
    (found,) = check_gpus()
    assert (found.level, found.text) == ("problem", "nvidia-smi fails: NVIDIA-SMI has failed: no driver")
    nvidia_smi(tmp_path, 'echo "Driver Version: 470.82 CUDA Version: 11.4"; echo "GPU 0: A (UUID: GPU-1)"')
    (found,) = check_gpus()
    assert found.level == "problem"
    assert "driver 470.82 for CUDA up to 11.4" in found.text
    assert torch.version.cuda in (found.fix or "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (found,) = check_gpus()
    assert (found.level, found.fix) == ("note", "unset it to use them")


def test_the_kernel_is_that_of_the_model(tiny_bert_checkpoint: Path, tmp_path: Path) -> None:
    model, attention = check_attention(str(tiny_bert_checkpoint))
    assert "wav2vec2-bert" in model.text
    assert "the position type adds a bias" in attention.text
    (found,) = check_attention(str(tmp_path))
    assert found.level == "problem"
    assert "has no config.json" in found.text


# ---- places


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_is_read_and_written_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.wav").write_bytes(b"RIFF")
    (found,) = check_place(str(tmp_path))
    assert (found.level, found.text) == ("ok", f"{tmp_path}: listed (1 names) and read x.wav (4 bytes)")
    assert [one.level for one in check_place(str(tmp_path), write=True)] == ["ok", "ok"]
    new = tmp_path / "new" / "out"
    there, written = check_place(str(new), write=True)
    assert (there.text, written.text) == (
        f"{new}: nothing is there yet",
        f"{new}: written and removed",
    )
    assert tree(tmp_path) == ["a", "a/x.wav"]
    assert only(check_place(str(new)), "problem").text == f"{new}: nothing is there"


def test_a_place_that_is_refused_or_a_file_is_a_problem(tmp_path: Path) -> None:
    assert "has a protocol that is not read" in only(check_place("ftp://host/x"), "problem").text
    (tmp_path / "file").write_bytes(b"x")
    found = only(check_place(str(tmp_path / "file"), write=True), "problem")
    assert "cannot be written" in found.text
    assert "is a file" in found.text


def test_a_folder_that_is_closed_is_a_problem(tmp_path: Path) -> None:
    """Of a user who is not root, to whom no folder is closed."""
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "x.wav").write_bytes(b"RIFF")
    closed.chmod(0)
    code = f"""
import os
from w2v_ray.doctor.places import check_place
os.setuid(65534) if os.getuid() == 0 else None
for found in [*check_place({str(closed)!r}, write=True)]:
    print(found.level, found.text, "| fix:", found.fix)
"""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
        if folder.name.startswith("pytest-of"):
            break
    try:
        lines = in_a_process(code, tmp_path).splitlines()
    finally:
        closed.chmod(0o755)
    assert len(lines) == 2
    assert lines[0].startswith(
        f"problem {closed} cannot be read (Permission denied) | fix: let this user read it"
    )
    assert lines[1].startswith(f"problem {closed} cannot be written")
    assert tree(tmp_path) == ["closed", "closed/x.wav"]


def test_a_bucket_is_read_and_written_without_a_trace(s3: str) -> None:
    stores.publish(f"{s3}/in/deep/x.wav", b"RIFF")
    found = list(check_place(f"{s3}/in", write=True))
    assert [(one.check, one.level) for one in found] == [
        ("credentials", "ok"),
        ("clock", "ok"),
        ("place", "ok"),
        ("place", "ok"),
    ]
    assert found[0].text.startswith("for S3 from env, for http://127.0.0.1:")
    assert "testing" not in found[0].text
    assert found[2].text == f"{s3}/in: listed (1 files) and read x.wav (4 bytes)"
    assert [one.uri for one in stores.list_files(s3)] == [f"{s3}/in/deep/x.wav"]
    assert only(check_place(f"{s3}-not"), "problem").fix is not None


@pytest.fixture
def read_only(s3: str) -> Iterator[str]:
    """A bucket whose server checks signatures and rights, and a user who may only read there."""
    import boto3
    from moto import settings

    stores.publish(f"{s3}/x.wav", b"RIFF")
    iam = boto3.client("iam")
    user = s3.removeprefix("s3://")
    iam.create_user(UserName=user)
    rights = {"Effect": "Allow", "Action": ["s3:List*", "s3:Get*", "s3:Head*"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [rights]})
    iam.put_user_policy(UserName=user, PolicyName="read", PolicyDocument=policy)
    key = iam.create_access_key(UserName=user)["AccessKey"]
    class_of_s3 = fsspec.get_filesystem_class("s3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        class_of_s3.clear_instance_cache()
        patch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
        yield s3
    class_of_s3.clear_instance_cache()


def test_a_bucket_that_may_only_be_read_is_a_problem_to_write(read_only: str) -> None:
    found = list(check_place(read_only, write=True))
    assert [one.level for one in found] == ["ok", "ok", "ok", "problem"]
    assert found[-1].text.startswith(f"{read_only} cannot be written (")
    assert "s3:PutObject" in (found[-1].fix or "")


def test_wrong_credentials_are_a_problem(read_only: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-secret")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    found = list(check_place(read_only))
    assert [one.level for one in found] == ["ok", "problem"]
    assert "cannot be read (" in found[1].text
    assert not any("wrong-and-secret" in f"{one.text} {one.fix}" for one in found)


def test_a_server_that_is_not_there_is_a_problem_soon(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    before = stores.in_use()
    found = only(check_place(s3), "problem")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert "the endpoint http://127.0.0.1:1 cannot be reached" in found.text
    assert "AWS_ENDPOINT_URL" in (found.fix or "")
    assert stores.in_use() == before


def test_caches_that_cannot_be_written_name_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("W2V_RAY_CACHE", str(tmp_path / "file"))
    found = only(check_caches(), "problem")
    assert found.text.startswith(f"language models in {tmp_path}/file")
    assert found.fix == "set W2V_RAY_CACHE to a folder with room that can be written"


# ---- the command


def test_a_check_that_fails_is_a_finding_and_the_others_go_on() -> None:
    def broken() -> Iterator[Finding]:
        yield ok("first", "half")
        raise ZeroDivisionError("division\nby zero")

    found = list(diagnose({"first": broken, "second": lambda: [ok("second", "whole")]}))
    assert [(one.check, one.level) for one in found] == [
        ("first", "ok"),
        ("first", "problem"),
        ("second", "ok"),
    ]
    assert found[1].text == "the check failed (ZeroDivisionError: by zero)"


def test_write_without_a_place_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--write"]) == 2
    assert "name the folder or URL" in capsys.readouterr().err


def test_the_command_exits_by_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from w2v_ray.doctor import packages

    monkeypatch.setattr(packages, "EXTRAS", ())
    monkeypatch.setattr(packages.check_extras, "__defaults__", ((),))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    missing = tmp_path / "missing"
    assert main(["doctor", str(missing), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    levels = [one["level"] for one in said["findings"]]
    assert said["num_problems"] == levels.count("problem") >= 1
    assert said["num_notes"] == levels.count("note")
    assert {"python", "torch", "gpu", "memory", "ray", "place"} <= {one["check"] for one in said["findings"]}
    assert said["findings"][-1] == {
        "check": "place",
        "level": "problem",
        "text": f"{missing}: nothing is there",
        "fix": "correct the name; with --write it is taken as an output to be",
    }
