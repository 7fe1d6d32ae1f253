"""Measuring a machine: the numbers are of the stages that ran, and what a person reads of them is true."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from w2v_ray import JobConfig, console_bench, demo
from w2v_ray.benchmark import BenchReport, EncoderReport, StageReport, WholeReport, run_bench
from w2v_ray.benchmark.bench import _written_per_s, limit_of
from w2v_ray.cli import main
from w2v_ray.plan import take_sample

STAGES = ["read_audio", "decode_audio", "segment_audio", "encode", "decode_text", "write_parquet"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command wrote for a few seconds of the demo's archive and the demo's checkpoint."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    options = ["--seconds", "6", "--no-whole", "--encoder-threads", "1", "--device", "cpu", "--json"]
    assert main(["bench", *options, "--output", str(path)]) == 0
    return path


@pytest.fixture
def report(measured: Path) -> BenchReport:
    found = json.loads(measured.read_text())
    found["stages"] = tuple(StageReport(**stage) for stage in found["stages"])
    return BenchReport(**found | {"encoder": EncoderReport(**found["encoder"])})


def test_the_file_has_every_field_and_ends_in_a_line_end(measured: Path, report: BenchReport) -> None:
    assert measured.read_text() == report.to_json() + "\n"
    assert report.version == 1
    assert (report.task, report.decoder, report.device, report.dtype) == (
        "transcribe",
        "greedy",
        "cpu",
        "float32",
    )
    assert report.whole is None
    assert report.device_bytes is None
    assert sorted(path.name for path in measured.parent.iterdir()) == ["bench.json"]


def test_every_stage_is_timed_over_all_the_audio(report: BenchReport) -> None:
    assert [stage.name for stage in report.stages] == STAGES
    assert 5 < report.audio_s < 8  # what headers say is rounded
    assert report.encoded_s == report.audio_s
    assert report.num_failed == 0
    for stage in report.stages:
        assert stage.audio_s == report.audio_s
        assert stage.rate == pytest.approx(stage.audio_s / stage.busy_s)
        assert stage.cpu_s >= 0
        assert stage.num_passes >= 1
    assert sum(stage.share for stage in report.stages) == pytest.approx(1)
    assert max(report.stages, key=lambda stage: stage.cpu_s).name == "encode"


def test_the_encoders_arithmetic_is_less_than_the_device_can_do(report: BenchReport) -> None:
    encode = next(stage for stage in report.stages if stage.name == "encode")
    encoder = report.encoder
    assert encoder.achieved_flops == pytest.approx(encoder.flop_per_audio_s * encode.rate)
    assert encoder.flop_per_audio_s == pytest.approx(0.4e9, rel=0.1)  # of the demo's checkpoint
    assert 1e9 < encoder.peak_flops < 1e13
    assert encoder.peak_share == encoder.achieved_flops / encoder.peak_flops
    assert 0 <= encoder.padding_share <= 0.1
    assert 1 <= encoder.num_batches <= report.num_segments


def test_storage_and_memory_are_those_of_the_sample(report: BenchReport) -> None:
    taken = take_sample(demo.INPUTS, seconds=6)
    read = sum(taken.column("share_bytes").to_pylist())
    assert report.num_recordings == taken.num_rows
    assert report.read_bytes_per_audio_s == pytest.approx(read / report.audio_s)
    assert 0 < report.written_bytes_per_audio_s < report.read_bytes_per_audio_s
    assert 2e8 < report.process_bytes < 1e10


def test_bytes_that_each_file_has_count_once_a_shard() -> None:
    # 5000 of them, and 100 for a second.
    assert _written_per_s([6000, 17_000], [10, 120], 1200) == (5000 + 1200 * 100) / 1200
    assert _written_per_s([6000, 17_000], [10, 120], 100) == 17_000 / 120
    assert _written_per_s([17_000, 17_000], [120, 120], 1200) == 17_000 / 120


def test_as_many_decoders_as_keep_an_encoder_busy(report: BenchReport) -> None:
    paces = {stage.name: 1 / stage.rate for stage in report.stages}
    needed = sum(paces[name] for name in STAGES[:3]) / paces["encode"]
    assert report.audio_decoders - 1 < needed <= report.audio_decoders
    assert report.text_decoders - 1 < paces["decode_text"] / paces["encode"] <= report.text_decoders


def stage(name: str, rate: float, cores: float) -> StageReport:
    return StageReport(
        name=name, audio_s=100, num_passes=1, busy_s=100 / rate, cpu_s=cores * 100 / rate, rate=rate, share=0
    )


@pytest.mark.parametrize(
    ("num_cores", "num_encoders", "rate", "limit"),
    [
        (16, 1, 1000, "encode"),  # 4.5 cores of 16 keep it busy
        (8, 2, 8 / 0.0045, "decode_audio"),  # 9 would
        (16, 2, 2000, "encode"),
    ],
)
def test_what_limits_a_machine(num_cores: int, num_encoders: int, rate: float, limit: str) -> None:
    # Of a core it takes 1, 3 and 0.5 ms for a second of audio.
    stages = [stage("encode", 1000, 1), stage("decode_audio", 300, 0.9), stage("decode_text", 2000, 1)]
    found = limit_of(stages, num_cores=num_cores, num_encoders=num_encoders)
    assert found == (pytest.approx(rate), limit)


def test_a_search_and_embeddings_are_measured_as_well(
    tmp_path: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("w2v_ray.benchmark.bench._LEAST_TIMED_S", 0.0)
    monkeypatch.setattr("w2v_ray.benchmark.peak._LARGEST", 256)
    common = ["--seconds", "3", "--no-whole", "--encoder-threads", "1", "--device", "cpu", "--json"]
    common += ["--output", str(tmp_path / "found.json"), "--model", str(tiny_checkpoint)]
    clips = [path.read_bytes() for path in sorted(demo.ARCHIVE.glob("*.flac"))[:2]]
    pq.write_table(pa.table({"audio": clips}), tmp_path / "clips.parquet")
    assert main(["bench", *common, "--lm", str(demo.LANGUAGE_MODEL), "--beam-width", "20"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["decoder"] == f"beam search of 20 with {demo.LANGUAGE_MODEL}"
    assert main(["bench", str(tmp_path / "clips.parquet"), *common, "--task", "embed"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["read_bytes_per_audio_s"] > 5000
    assert [stage["name"] for stage in found["stages"]] == [n for n in STAGES if n != "decode_text"]
    assert (found["decoder"], found["text_decoders"]) == ("none", 0)


@pytest.mark.parametrize(("options", "share"), [({}, 0.0), ({"reference_batch": 2}, 2 / 6)])
def test_padding_is_what_the_encoder_counts(
    options: dict[str, Any], share: float, tiny_checkpoint: Path
) -> None:
    from w2v_ray.benchmark.encoder import EncoderBench
    from w2v_ray.heads import find_heads

    model = str(tiny_checkpoint)
    job = JobConfig(inputs=("a",), output="b", model=model, device="cpu", encoder_threads=1, **options)
    with EncoderBench(job, find_heads(job, job.model)) as bench:
        waves = [np.zeros(seconds * 16_000, np.float32).tobytes() for seconds in (1, 3)]
        table = pa.table({"samples": pa.array(waves, pa.large_binary()), "error": pa.nulls(2)})
        for _ in range(2):
            bench(table)
        assert (bench._num_batches, bench._padding_share) == (1, pytest.approx(share))


def tones(folder: Path, lengths: dict[str, float]) -> Path:
    folder.mkdir()
    for name, seconds in lengths.items():
        samples = 0.1 * np.sin(np.arange(int(8000 * seconds)) / 5)
        soundfile.write(folder / f"{name}.wav", samples, 8000)
    return folder


def test_a_sample_is_as_long_as_asked_and_of_several_recordings(tmp_path: Path) -> None:
    folder = tones(tmp_path / "in", {f"t{number:02}": 50.0 for number in range(12)})
    sample = take_sample([str(folder)], seconds=100)
    assert sum(sample.column("duration_s").to_pylist()) == 100
    assert sample.column("duration_s").to_pylist().count(30.0) == 3
    assert sample.column("end_s").to_pylist() == sample.column("duration_s").to_pylist()
    names = sample.column("recording_id").to_pylist()
    assert names == sorted(names)
    assert names != sorted(str(path) for path in folder.iterdir())[:4]  # from all over
    assert sample.equals(take_sample([str(folder)], seconds=100))
    sizes = [(tmp_path / "in" / "t00.wav").stat().st_size * seconds / 50 for seconds in (30.0, 10.0)]
    assert set(sample.column("share_bytes").to_pylist()) == {round(size) for size in sizes}


def test_a_sample_of_less_audio_than_asked_is_all_of_it(tmp_path: Path) -> None:
    folder = tones(tmp_path / "in", {"a": 2.0, "b": 3.0})
    sample = take_sample([str(folder)], seconds=100)
    assert sample.column("duration_s").to_pylist() == [2.0, 3.0]
    assert sample.column("end_s").to_pylist() == [None, None]


def test_a_sample_is_planned_in_part_or_in_rounds(tmp_path: Path, tiny_checkpoint: Path) -> None:
    from w2v_ray.job import prepare_sample

    folder = tones(tmp_path / "in", {"a": 2.0, "b": 3.0})
    sample = take_sample([str(folder)], seconds=100)

    def planned(name: str, seconds: float) -> Any:
        job = JobConfig(
            inputs=("x",), output=str(tmp_path / name), model=str(tiny_checkpoint), shard_seconds=10
        )
        return prepare_sample(job, sample, seconds=seconds)

    assert planned("part", 1).items.column("planned_s").to_pylist() == [2.0]
    rounds = planned("rounds", 21)
    assert rounds.planned_s == rounds.pending_s == 22
    assert rounds.num_shards == rounds.num_pending == 3
    ids = [name.rpartition("/")[2] for name in rounds.items.column("recording_id").to_pylist()]
    assert ids == ["a.wav", "b.wav", *(f"{n}.wav#{i}" for i in range(1, 4) for n in "ab"), "a.wav#4"]


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_a_person_reads_where_the_time_goes_and_what_to_do(
    report: BenchReport, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    encode = report.stages[3]
    quiet = dataclasses.replace(encode, cpu_s=encode.busy_s)
    stages = (*report.stages[:3], quiet, *report.stages[4:])
    whole = WholeReport(audio_s=900, num_shards=6, wall_s=40, startup_s=12.4, rate=90)
    changed = dataclasses.replace(
        report, stages=stages, whole=whole, expected_rate=100.0, audio_decoders=1, text_decoders=2
    )
    console_bench.show_bench(changed, path="found.json", is_kept=False)
    text = shown(capsys)
    assert "encoder on cpu, 1 thread, float32, sdpa" in text
    assert all(name in text for name in STAGES)
    assert "to keep it busy 1 worker that reads, decodes and segments, 2 threads that decode text" in text
    assert "the whole on Ray 90 x real time, 90% of that, over 15.0 min of audio; 12 s to start" in text
    assert "limited by" in text
    assert "name yours with --model" in text
    assert "other programs" not in text
    assert "`w2v-ray plan --from found.json --hours N --deadline 24h`" in text


def test_a_person_is_told_what_makes_the_numbers_worthless(
    report: BenchReport, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    encode = report.stages[3]
    busy = dataclasses.replace(encode, cpu_s=encode.busy_s / 2)
    stages = (*report.stages[:3], busy, *report.stages[4:])
    console_bench.show_bench(
        dataclasses.replace(report, stages=stages, num_failed=2), path="bench.json", is_kept=True
    )
    text = shown(capsys)
    assert "2 segments failed and are not counted" in text
    assert "the encoder had 50% of its 1 core while it was timed: other programs run here" in text
    assert "`w2v-ray plan --hours N --deadline 24h`" in text


def test_a_plan_is_made_of_it(
    measured: Path, report: BenchReport, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    order = ["plan", "--hours", "100000", "--deadline", "24h", "--from", str(measured)]
    assert main([*order, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    machines = 100_000 / 24 / (report.expected_rate * 0.85)
    assert found["num_workers"] - 1 < machines <= found["num_workers"]
    assert main(order) == 0
    text = shown(capsys)
    assert f"machines {found['num_workers']:,} (" in text
    assert "shards 300,000 of 1200 s" in text
    assert "assumed: - the rates are" in text
    assert main([*order, "--rate", "3000", "--gpu-price", "3"]) == 0
    text = shown(capsys)
    assert "GPUs 2, each 3,000 x real time" in text
    assert "wall clock 19 h 36 min" in text
    assert f"GPUs {2 * 100_000 / (2 * 3000 * 0.85) * 3:,.2f}" in text


def test_the_plan_in_the_docs_is_the_plan_that_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    page = (Path(__file__).resolve().parents[1] / "docs" / "sizing.md").read_text(encoding="utf-8")
    ((order, expected),) = re.findall(r"(?ms)^\$ w2v-ray (.+?)$\n(.+?)^```", page)
    assert main(order.split()) == 0
    said = capsys.readouterr().out.partition("\nassumed:")[0]
    assert [line.rstrip() for line in said.splitlines()] == expected.splitlines()


def test_large_numbers_of_a_plan_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--hours", "1e8", "--deadline", "1h", "--rate", "1"]) == 0
    said = capsys.readouterr().out
    assert "100,000,000 h of audio within 60 min" in said
    assert "2,941 for 1,000 h of audio" in said


def test_what_was_measured_last_is_taken_where_no_file_is_named(
    measured: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("W2V_RAY_CACHE", str(tmp_path / "cache"))
    order = ["plan", "--hours", "100", "--deadline", "1d"]
    assert main(order) == 2
    assert "nothing was measured on this machine yet; run `w2v-ray bench` first" in capsys.readouterr().err
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "bench.json").write_text(measured.read_text())
    assert main(order) == 0
    assert "100 h of audio within 24 h" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["bench", "gone"], "input 'gone' does not exist"),
        (["bench", "--model", "./gone"], "gone"),
        (["bench", "--seconds", "0"], "seconds is 0, expected 1 to 3600"),
        (["bench", "--device", "tpu"], "device is 'tpu', expected auto, cpu, cuda or cuda:N"),
        (["bench", "--device", "cuda:63", "--seconds", "1"], "device is 'cuda:63' and this machine has"),
        (["bench", "--lm", "gone.arpa"], "gone.arpa"),
        (["bench", "--task", "embed", "--beam-width", "9"], "beam_width is 9"),
        (["bench", "--output", "gone/bench.json"], "make it first"),
        (["plan", "--hours", "10", "--deadline", "soon"], "'soon' is no length of time"),
        (["plan", "--hours", "10", "--deadline", "1h", "--rate", "0"], "rate is 0"),
        (["plan", "--hours", "-1", "--deadline", "1h", "--rate", "9"], "hours is -1"),
        (["plan", "--hours", "1", "--deadline", "1h", "--from", "gone.json"], "'gone.json' does not exist"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    args: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("W2V_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    if args == ["plan", "--hours", "10", "--deadline", "soon"]:
        args = [*args, "--rate", "9"]
    assert main([*args, "--json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_gpu_that_is_not_there_is_told_before_anything_is_timed() -> None:
    from w2v_ray.errors import ConfigError

    steps: list[str] = []
    job = JobConfig(inputs=demo.INPUTS, output="x", model=str(demo.CHECKPOINT), device="cuda:63")
    with pytest.raises(ConfigError, match="device is 'cuda:63' and this machine has"):
        run_bench(job, on_step=steps.append)
    assert steps == []


def test_audio_that_cannot_be_used_is_told_with_the_reason(tmp_path: Path, tiny_checkpoint: Path) -> None:
    from w2v_ray.errors import InputError

    (tmp_path / "noise.wav").write_bytes(b"no audio at all" * 5000)
    job = JobConfig(inputs=(str(tmp_path),), output="x", model=str(tiny_checkpoint), device="cpu")
    with pytest.raises(InputError, match="no recording of the sample can be used, the first because "):
        run_bench(job, whole=False)


def test_a_plan_loads_neither_torch_nor_ray(measured: Path) -> None:
    code = (
        "import sys; from w2v_ray.cli import main; code = main(sys.argv[1:]);"
        "print({'torch', 'ray'} & set(sys.modules)); sys.exit(code)"
    )
    order = ["plan", "--hours", "1", "--deadline", "1h", "--from", str(measured)]
    done = subprocess.run(
        [sys.executable, "-c", code, *order], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.slow
def test_the_whole_is_measured_on_ray(
    ray_session: None, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from w2v_ray.benchmark import whole

    monkeypatch.setattr(whole, "_WORK_S", 1.0)
    job = JobConfig(inputs=demo.INPUTS, output="x", model=str(tiny_checkpoint), device="cpu")
    report = run_bench(job, seconds=20)
    found = report.whole
    assert found is not None
    assert found.audio_s >= 0.9 * report.expected_rate  # as much as should take so long, in whole recordings
    assert found.num_shards >= 2
    assert 0 < found.startup_s < found.wall_s
    assert found.rate > 0
