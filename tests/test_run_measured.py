"""What is measured of runs on a real Ray: their records, and the metrics that a running job shows."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.made_outputs import rows_of, write_speech
from w2v_ray import JobConfig, demo, run, stores
from w2v_ray.execution import Run
from w2v_ray.metric_names import METRICS, SCRAPED_PREFIX
from w2v_ray.progress import Progress
from w2v_ray.run_record import newest_run
from w2v_ray.telemetry import scrape_addresses


def record_of(output: Path) -> dict[str, Any]:
    found = newest_run(str(output))
    assert found is not None
    return found


def test_the_record_of_a_run_agrees_with_what_it_wrote(demo_run: tuple[Path, list[Progress]]) -> None:
    output, seen = demo_run
    record, rows = record_of(output), rows_of(output)
    assert (record["state"], record["command"], record["task"]) == ("done", "transcribe", "transcribe")
    audio_s = sum(row["duration_s"] for row in rows)
    totals, stages = record["totals"], record["stages"]
    assert (totals["num_rows"], totals["num_rejects"], totals["num_items"]) == (24, 0, 24)
    assert totals["audio_s"] == pytest.approx(audio_s)
    files = [path for path in output.rglob("*.parquet") if path.parent.name != "_plan"]
    assert totals["bytes_written"] == sum(path.stat().st_size for path in files)
    assert totals["bytes_read"] == stages["read_audio"]["bytes"] > 0
    assert list(stages) == [
        "read_audio",
        "decode_audio",
        "segment_audio",
        "encode",
        "decode_text",
        "write_parquet",
    ]
    for name, stage in stages.items():
        assert stage["shards"] == record["progress"]["num_shards"], name
        assert stage["items"] == 24
        assert stage["audio_s"] == pytest.approx(audio_s, rel=0.01), name  # headers tell what is planned
        assert 0 < stage["busy_s"] < record["wall_s"]
        assert stage["errors"] == {}
    assert stages["encode"]["batches"] > 0
    assert stages["decode_text"]["frames"] == sum(row["num_frames"] for row in rows)
    assert stages["write_parquet"]["rows"] == 24
    assert record["timeline"][-1]["num_shards_done"] == record["progress"]["num_shards"]
    assert record["progress"]["done_s"] == pytest.approx(seen[-1].done_s)
    sure = [row["confidence"] for row in rows if row["confidence"] is not None]
    quality = record["quality"]
    assert quality["confidence"]["mean"] == pytest.approx(sum(sure) / len(sure), rel=1e-4)
    assert quality["confidence"]["p10"] <= quality["confidence"]["p50"] <= quality["confidence"]["p90"]
    words = sum(len(row["words"]) for row in rows)
    speech_s = sum(row["speech_ratio"] * row["duration_s"] for row in rows)
    assert quality["speech_rate_wps"] == pytest.approx(words / speech_s)
    assert [Path(each["name"]).name for each in record["outputs"]] == ["transcripts", "embeddings", "rejects"]
    assert record["cluster"]["cpus"] == 2.0
    assert record["cluster"]["pools"]["num_encoders"] == 1
    assert any(sum(progress.queue.values()) for progress in seen)  # shards wait for the encoder to load
    assert list(seen[-1].queue.items()) == [("encode", 0), ("decode_text", 0), ("write_parquet", 0)]


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_a_run_that_is_not_measured_nothing(
    ray_session: None, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_speech(tmp_path / "in", [f"r{number}" for number in range(10)])
    job = JobConfig(
        inputs=(manifest,), output=str(tmp_path / "out"), model=str(tiny_checkpoint), shard_seconds=10
    )

    def interrupt(self: Run, summaries: list[dict[str, Any]]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_take", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(job)
    record = record_of(tmp_path / "out")
    assert (record["state"], record["error"]) == ("interrupted", None)
    assert record["stages"]["read_audio"]["items"] > 0
    sorted((tmp_path / "out" / "transcripts").iterdir())[0].unlink()  # so that something is left to do
    monkeypatch.setenv("W2V_RAY_TELEMETRY", "off")
    seen: list[Progress] = []
    run(job, on_progress=seen.append)
    assert len(rows_of(tmp_path / "out")) == 10
    assert seen[-1].done_s == pytest.approx(seen[-1].planned_s - seen[-1].before_s)
    assert len(stores.list_names(str(tmp_path / "out" / "_runs"))) == 1


def test_a_running_job_shows_every_metric(ray_session: None, tmp_path: Path) -> None:
    addresses = scrape_addresses()
    if not addresses:
        pytest.skip("Ray exports no metrics here; pip install 'w2v-ray[metrics]'")
    manifests = (  # two lengths, so that some batch is padded
        write_speech(tmp_path / "a", [f"a{number}" for number in range(6)], broken=["broken"]),
        write_speech(tmp_path / "b", [f"b{number}" for number in range(6)], seconds=1.9),
    )
    job = JobConfig(
        inputs=manifests,
        output=str(tmp_path / "out"),
        model=str(demo.CHECKPOINT),
        shard_seconds=10,
        reference_batch=4,  # nothing else pads
    )
    known = {SCRAPED_PREFIX + metric.name for metric in METRICS}
    shown: dict[str, str] = {}

    def found_names() -> set[str]:
        return {name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name in shown}

    def is_complete() -> bool:
        of_this_run = f'run="{record_of(tmp_path / "out")["run"]}"'
        return found_names() == known and all(of_this_run in line for line in shown.values())

    def scrape() -> None:
        for address in addresses:
            with urllib.request.urlopen(address, timeout=5) as answer:
                for line in answer.read().decode().splitlines():
                    if line.startswith(f"{SCRAPED_PREFIX}w2v_ray_"):
                        shown[line.partition("{")[0]] = line

    def look(progress: Progress) -> None:
        scrape()
        if progress.num_shards_done == progress.num_shards:  # what was told last is yet to be exported
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and not is_complete():
                time.sleep(0.25)
                scrape()

    run(job, on_progress=look)
    record = record_of(tmp_path / "out")
    assert record["cluster"]["metrics"] == addresses
    assert found_names() == known
    for name, line in shown.items():
        assert f'run="{record["run"]}"' in line, name
    for metric in METRICS:
        if metric.kind != "histogram":
            assert all(f'{label}="' in shown[SCRAPED_PREFIX + metric.name] for label in metric.labels)
    assert 'reason="DecodeError"' in shown["ray_w2v_ray_errors_total"]
    assert 'stage="decode_audio"' in shown["ray_w2v_ray_errors_total"]
    assert ray.is_initialized()
