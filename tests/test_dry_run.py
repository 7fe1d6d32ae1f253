"""What a job would do: told as it would be done, and with nothing written anywhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.made_languages import make_checkpoint
from tests.made_outputs import publish
from w2v_ray import AlignConfig, JobConfig, RedecodeConfig, demo, stores
from w2v_ray.cli import main
from w2v_ray.console_forecast import show_forecast
from w2v_ray.errors import ConfigError, InputError, MissingExtraError, OutputError
from w2v_ray.forecast import Forecast, forecast, read_cluster
from w2v_ray.job import prepare, recorded_job
from w2v_ray.output import retrying
from w2v_ray.pools import Machines, Pools
from w2v_ray.stages.make_results import RESULT_STAGES

MANIFEST = str(demo.ARCHIVE / "manifest.jsonl")
MODEL = str(demo.CHECKPOINT)


def job_of(output: Path | str, **settings: Any) -> JobConfig:
    return JobConfig(**({"inputs": (MANIFEST,), "output": str(output), "model": MODEL} | settings))


def files(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, with its bytes."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def seen(found: Forecast, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(found, name) for name in names}


def test_nothing_is_written_and_what_is_planned_is_told(tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = job_of(output, shard_seconds=20, keep_log_probs=4, also=(f"embed={demo.speaker_checkpoint()}",))
    told = forecast(job)
    assert not output.exists()
    planned = prepare(job)
    assert told.num_new == told.num_items == planned.num_new == 16
    assert told.num_new_shards == told.num_pending_shards == told.num_shards == planned.num_shards
    assert told.pending_s == told.planned_s == planned.planned_s
    assert told.num_bytes == sum(path.stat().st_size for path in demo.ARCHIVE.glob("[01]*_*"))

    publish(planned, planned.pending[:1], keeps_log_probs=True)
    (output / "_tmp").mkdir(exist_ok=True)
    (output / "_tmp" / "unfinished").write_bytes(b"of a writer that died")
    before = files(tmp_path)
    again = forecast(job)
    assert files(tmp_path) == before
    assert seen(again, ["num_new", "num_new_shards", "num_items", "num_published_shards"]) == {
        "num_new": 0,
        "num_new_shards": 0,
        "num_items": 16,
        "num_published_shards": 1,
    }
    assert again.pending_s == pytest.approx(planned.pending_s - planned.shard_seconds[planned.pending[0]])
    assert again.num_pending_bytes is not None
    assert told.num_bytes is not None
    assert 0 < again.num_pending_bytes < told.num_bytes


def test_nothing_is_written_to_a_store(s3: str) -> None:
    job = job_of(f"{s3}/out")
    assert forecast(job).num_new == 16
    assert stores.list_names(s3) == []
    prepare(job)
    before = {file.uri for file in stores.list_files(s3)}
    assert forecast(job).num_new == 0
    assert {file.uri for file in stores.list_files(s3)} == before


def test_nothing_is_written_of_languages_and_texts(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "mms")
    job = job_of(tmp_path / "out", model=str(checkpoint), language="fra", language_key="speaker")
    aligned = AlignConfig(inputs=(MANIFEST,), output=str(tmp_path / "aligned"), model=MODEL)
    before = files(tmp_path)
    assert forecast(job).num_new == forecast(aligned).num_new == 16
    assert files(tmp_path) == before
    assert [stage.names[-1] for stage in forecast(aligned).stages][2] == "align_text"


def test_decoding_again_is_told_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = job_of(tmp_path / "out", shard_seconds=20, keep_log_probs=4)
    publish(prepare(source), keeps_log_probs=True)
    job = RedecodeConfig(source=source.output, output=str(tmp_path / "again"), lm=str(demo.LANGUAGE_MODEL))
    before = files(tmp_path)
    found = forecast(job, rate=100.0)
    assert (found.task, found.num_new, found.num_bytes, found.attention) == ("redecode", 16, None, None)
    assert [stage.names[0] for stage in found.stages] == ["read_log_probs", "decode_text", "write_parquet"]
    assert found.expected_s == pytest.approx(found.planned_s / 100)
    lm = ["--lm", str(demo.LANGUAGE_MODEL)]
    assert (
        main(["redecode", job.source, "--output", job.output, *lm, "--dry-run", "--rate", "100", "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out) == json.loads(found.to_json())
    file = tmp_path / "job.yaml"
    file.write_text(f"task: redecode\nsource: {job.source}\noutput: {job.output}\nlm: {job.lm}\n")
    before = files(tmp_path)
    assert main(["run", str(file), "--dry-run", "--rate", "100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(found.to_json())
    assert files(tmp_path) == before
    assert main(["run", str(file), "--since-last"]) == 2
    assert "since-last is of recordings, which redecode does not list" in capsys.readouterr().err


def test_what_running_would_refuse_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out"
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(demo.ARCHIVE / "00_0b57a6ed.flac", folder / "a.flac")
    job = job_of(output, inputs=(str(folder),))
    prepare(job)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    refusals: list[tuple[JobConfig, type[Exception], str]] = [
        (replace(job, max_segment_seconds=10), OutputError, "belongs to a job with other settings"),
        (replace(job, output=str(tmp_path / "foreign")), OutputError, "holds 'notes.txt' and no plan"),
        (replace(job, output=str(tmp_path / "file")), OutputError, "is a file; name a folder"),
        (replace(job, output=str(tmp_path / "file" / "out")), OutputError, "lies below the file"),
        (replace(job, output="memory://out"), OutputError, "is memory"),
        (replace(job, output="https://host/out", allow_http=True), OutputError, "is a web address"),
        (replace(job, inputs=(str(tmp_path / "none"),)), InputError, "does not exist"),
        (replace(job, device="cuda", num_encoders=99), ConfigError, "GPU"),
        (replace(job, num_encoders=10_000), ConfigError, "num_encoders is 10000"),
    ]
    before = files(tmp_path)
    for refused, kind, words in refusals:
        with pytest.raises(kind, match=words):
            forecast(refused)
    assert files(tmp_path) == before
    shutil.copy(demo.ARCHIVE / "05_37dca74f.flac", folder / "a.flac")
    with pytest.raises(OutputError, match="has changed since it was planned"):
        forecast(job)
    found = forecast(replace(job, on_change="new"))
    assert (found.num_new, found.num_changed, found.num_gone) == (0, 1, 0)


def test_a_plan_of_another_job_that_got_nowhere_is_no_obstacle(tmp_path: Path) -> None:
    job = job_of(tmp_path / "out")
    prepare(job)
    (tmp_path / "out" / "_plan" / "plan-00001.parquet").unlink()
    before = files(tmp_path)
    assert forecast(replace(job, max_segment_seconds=10)).num_new == 16
    assert files(tmp_path) == before


def test_what_is_gone_from_the_inputs_is_counted(tmp_path: Path) -> None:
    """Members of a tar that is known are not looked into again, and so not taken for gone."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("00_0b57a6ed.flac", "05_37dca74f.flac", "more.tar"):
        shutil.copy(demo.ARCHIVE / name, folder)
    listed = folder / "list.jsonl"
    listed.write_text(
        "".join(
            json.dumps({"audio_filepath": name}) + "\n" for name in ("00_0b57a6ed.flac", "05_37dca74f.flac")
        )
    )
    job = job_of(tmp_path / "out", inputs=(str(listed), str(folder / "more.tar")), on_change="new")
    assert prepare(job).num_gone == 0
    assert prepare(job).num_gone == 0
    (folder / "05_37dca74f.flac").unlink()  # the manifest still names it
    assert prepare(job).num_gone == 1
    assert prepare(replace(job, inputs=(str(listed),))).num_gone == 1 + 8
    assert prepare(replace(job, inputs=(str(folder / "more.tar"),))).num_gone == 2


def test_pools_are_those_that_a_cluster_gives(tmp_path: Path) -> None:
    also = (f"embed={demo.speaker_checkpoint()}", f"classify={demo.keyword_checkpoint()}")
    job = job_of(tmp_path / "out", also=also, attn_implementation="auto", dtype="float16")
    found = forecast(job, cluster=(64, 8))
    pools = Pools.for_cluster(job, Machines(num_nodes=1, cpus=64, node_cpus=64, gpus=8))
    assert [stage.names for stage in found.stages] == [
        ("read_audio", "decode_audio", "segment_audio"),
        ("encode",),
        ("decode_text", "choose_labels"),
        ("write_parquet",),
    ]
    read, encode, decode, write = found.stages
    assert (read.num_workers, read.cpus) == (pools.num_readers, pools.task_cpus)
    assert (encode.num_workers, encode.cpus, encode.gpus) == (8, pools.encoder_cpus, 1.0)
    assert (decode.num_workers, decode.cpus) == (pools.num_decoders, pools.decoder_cpus)
    assert (write.num_workers, write.cpus) == (pools.num_writers, pools.task_cpus)
    assert (found.cluster, found.cpus, found.gpus) == ("--cluster", 64, 8)
    assert found.attention is not None
    assert found.attention.name in ("sdpa", "flash_attention_2")
    assert "cpu" not in found.attention.reason


def test_bytes_on_a_gpu_leave_what_attention_computes_with_in_bfloat16(tmp_path: Path) -> None:
    found = {
        dtype: forecast(
            job_of(tmp_path / "out", dtype=dtype, attn_implementation="auto"), cluster=(8, 1)
        ).attention
        for dtype in ("int8", "bfloat16", "float32")
    }
    assert found["int8"] == found["bfloat16"] != found["float32"]


def test_stages_have_the_names_that_rejects_have() -> None:
    results = {name for name, _ in RESULT_STAGES.values()}
    assert results == {"decode_text", "align_text", "choose_labels", "find_turns"}
    assert results | {"read_audio", "decode_audio", "segment_audio", "encode"} <= set(retrying._STAGES)


def test_an_embedding_has_no_stage_of_results(tmp_path: Path) -> None:
    job = job_of(tmp_path / "out", task="embed", model=str(demo.speaker_checkpoint()), device="cpu")
    found = forecast(job)
    assert [stage.names[0] for stage in found.stages] == ["read_audio", "encode", "write_parquet"]
    assert found.cluster == "this machine"
    assert found.attention is not None
    assert found.attention.reason == "sdpa was asked for"


def test_a_cluster_elsewhere_decides_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    found = forecast(job_of(tmp_path / "out", attn_implementation="auto"))
    assert found.cluster == "the cluster at RAY_ADDRESS (head:6379)"
    assert (found.cpus, found.gpus, found.stages[1].num_workers) == (None, None, None)
    assert found.attention is not None
    assert found.attention.name == "auto"
    assert forecast(job_of(tmp_path / "out"), cluster=(4, 0)).cpus == 4
    monkeypatch.setattr("w2v_ray.models.attention.find_spec", lambda name: None)
    flash = job_of(tmp_path / "out", attn_implementation="flash_attention_2")
    told = forecast(flash).attention
    assert told is not None
    assert told.reason.endswith("flash-attn has to be there where encoders run")
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(MissingExtraError, match="flash-attn"):
        forecast(replace(flash, device="cpu"))


@pytest.mark.parametrize("text", ["", "x", "0,1", "4,-1", "4,1,1", "nan,1", "inf", "4;1"])
def test_a_cluster_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(
        ConfigError, match=re.escape(f"cluster is {text!r}, expected CPUS,GPUS; write it as 64,8")
    ):
        read_cluster(text)
    assert read_cluster("64,8") == (64.0, 8.0)
    assert read_cluster("4") == (4.0, 0.0)


def test_the_time_comes_from_the_last_run_that_did_something(tmp_path: Path) -> None:
    job = job_of(tmp_path / "out")
    prepare(job)
    assert forecast(job).expected_s is None
    assert "give --rate X" in forecast(job).rate_source
    runs = tmp_path / "out" / "_runs"
    runs.mkdir()
    cluster = {"nodes": 1, "cpus": 4.0, "gpus": 1.0}
    records: dict[str, Any] = {
        "20261120T010000Z-aaaaaa": {"progress": {"rate_x": 7.0}, "cluster": cluster},
        "20261121T010000Z-bbbbbb": {"progress": {"rate_x": 20.0}, "cluster": cluster},
        "20261122T010000Z-cccccc": {"progress": {"rate_x": None}, "cluster": cluster},
        "20261122T020000Z-dddddd": {"progress": {"rate_x": 0.0}, "cluster": cluster},
        "20261122T030000Z-eeeeee": {},
        "20261122T040000Z-ffffff": [],
    }
    for name, record in records.items():
        (runs / f"{name}.json").write_text(json.dumps(record))
    (runs / "20261122T050000Z-000000.json").write_text("{")
    found = forecast(job)
    assert found.rate_x == 20.0
    assert found.rate_source == "run 20261121T010000Z-bbbbbb of this output, on 4 CPUs, 1 GPUs"
    assert found.expected_s == pytest.approx(found.pending_s / 20)
    assert (forecast(job, rate=5).rate_x, forecast(job, rate=5).rate_source) == (5, "--rate")
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="expected more than 0; give seconds of audio"):
            forecast(job, rate=rate)


def test_a_person_reads_it_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    job = job_of(output, inputs=demo.INPUTS, hotwords=("[bold]",), characters=True, num_encoders=2)
    show_forecast(forecast(job_of(output, inputs=demo.INPUTS), cluster=(64, 8), rate=10.0))
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        f"transcribe {MODEL}",
        "24 items, 2.1 min, 1.4 MB: 24 new",
        "1 to do (1 new): 2.1 min, 1.4 MB",
        "64 CPUs, 8 GPUs (--cluster)",
        "encode: 8 workers, 1 CPU and 1 GPU each",
        "read_audio, decode_audio, segment_audio: as many as fit, 1 CPU each",
        "sdpa was asked for",
        "about 12 s at 10.0 x real time (--rate)",
        "nothing was written",
    ):
        assert text in shown, shown
    publish(prepare(job_of(output, inputs=demo.INPUTS)))
    show_forecast(forecast(job_of(output, inputs=(MANIFEST,))))
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "24 planned before",
        "8 recordings gone from the inputs",
        "1, all published: nothing to do",
        "time none",
    ):
        assert text in shown, shown
    found = replace(
        forecast(job_of(tmp_path / "other", inputs=demo.INPUTS)), settings={"hotwords": ["[bold]", True]}
    )
    show_forecast(replace(found, cpus=None, gpus=None, num_duplicates=1, skipped={"links or devices": 2}))
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "hotwords: [[bold], true]",
        "decided on this machine",
        "1 recording named more than once",
        "2 links or devices",
        "unknown: no run",
    ):
        assert text in shown, shown
    assert job.num_encoders == 2


def test_every_command_that_runs_a_job_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rest = [MANIFEST, "--output", str(tmp_path / "out"), "--model", MODEL]
    assert main(["transcribe", *rest, "--dry-run", "--json", "--since-last"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"] == {"on_change": "new"}
    assert main(["align", *rest, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "align"
    assert main(["embed", *rest, "--pooling", "mean", "--dry-run", "--json", "--cluster", "8,1"]) == 0
    assert json.loads(capsys.readouterr().out)["gpus"] == 1
    assert main(["transcribe", *rest, "--rate", "3"]) == 2
    assert "rate is 3.0, which has no effect by itself; give --dry-run too" in capsys.readouterr().err
    assert main(["transcribe", *rest, "--dry-run", "--cluster", "many"]) == 2
    assert not (tmp_path / "out").exists()


def test_settings_may_follow_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(f"inputs: [{MANIFEST}]\noutput: {tmp_path / 'out'}\nmodel: {MODEL}\n")
    assert main(["run", str(file), "dtype=float16", "--dry-run", "num_encoders=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"] == {"dtype": "float16", "num_encoders": 1}
    for wrong in (["--dry", "x=1", "--no-such"], ["--no-such=1"]):
        with pytest.raises(SystemExit, match="2"):
            main(["run", str(file), *wrong])
    with pytest.raises(SystemExit, match="2"):
        main(["status", str(tmp_path), "x=1"])


def test_ray_is_neither_started_nor_loaded(tmp_path: Path) -> None:
    script = "import sys; from w2v_ray.cli import main; print(main(sys.argv[1:]), 'ray' in sys.modules)"
    rest = ["transcribe", MANIFEST, "--output", str(tmp_path / "out"), "--model", MODEL, "--dry-run"]
    result = subprocess.run(
        [sys.executable, "-c", script, *rest], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.splitlines()[-1] == "0 False"
    assert not (tmp_path / "out").exists()


def test_records_of_a_job_hold_the_names_of_variables_of_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "https://canary.lab:9000")
    options = {
        "s3": {"endpoint_url": "${PLACE}", "client_kwargs": {"region_name": "${PLACE}"}, "attempts": 2}
    }
    job = job_of(tmp_path / "out", stores=options)
    assert job.store_config.options["s3"]["endpoint_url"] == "https://canary.lab:9000"
    monkeypatch.setattr(stores, "use", lambda config: config)  # which other tests of this process would go by
    prepare(job)
    assert not [name for name, data in files(tmp_path).items() if data is not None and b"canary" in data]
    again = recorded_job(job.output)
    assert again.stores == options
    assert again.store_config == job.store_config
    assert "canary" not in forecast(job).to_json()
    monkeypatch.delenv("PLACE")
    with pytest.raises(
        ConfigError, match=r"stores\.s3\.endpoint_url takes the variable PLACE, which is not set"
    ):
        recorded_job(job.output)
