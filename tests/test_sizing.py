"""From rates to a cluster: exact arithmetic, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from w2v_ray.errors import ConfigError, InputError
from w2v_ray.sizing import Prices, Rates, Sizing, read_duration, read_rates, size_cluster, with_gpu_rate

GPU = Rates(
    rate=2000.0,
    costs={"read_audio": 0.0001, "decode_audio": 0.003, "encode": 0.0005, "decode_text": 0.001},
    read_bytes_per_audio_s=10_000.0,
    written_bytes_per_audio_s=200.0,
    worker_name="H100",
    source="a measurement",
)
MACHINE = Rates(
    rate=50.0, on_gpu=False, num_cores=4, costs={"decode_audio": 0.01, "encode": 0.07}, source="another"
)
DAY = 86_400.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24h", DAY), ("90m", 5400), ("2d", 2 * DAY), ("1d12h", 1.5 * DAY), ("45s", 45), (" 1.5H ", 5400)],
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert read_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "soon", "h", "-3h", "3h1d", "0h", "1h 30m", "infh"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(ConfigError, match="expected one such as 24h"):
        read_duration(text)


def test_gpus_with_as_many_cores_as_they_need() -> None:
    sizing = size_cluster(GPU, hours=100_000, deadline_s=DAY, efficiency=0.5, prices=Prices(gpu=2, core=0.1))
    # 360 million seconds of audio; a GPU does 1000 in a second.
    assert sizing.num_workers == 5  # 4.17 of them
    assert sizing.wall_s == 72_000
    assert sizing.worker_rate == 2000
    assert sizing.cores_by_stage == pytest.approx(
        {"read_audio": 1, "decode_audio": 30, "encode": 5, "decode_text": 10}
    )
    assert sizing.num_cores == 50  # 9.2 for each GPU, whole ones
    assert sizing.num_shards == 300_000
    assert sizing.read_bytes == 3.6e12
    assert sizing.written_bytes == 7.2e10
    assert sizing.read_bytes_per_s == 1e8
    assert sizing.gpu_cost == 5 * 20 * 2
    assert sizing.core_cost == pytest.approx(50 * 20 * 0.1)
    assert sizing.cost == pytest.approx(300)
    assert sizing.bottleneck == "encode"
    assert sizing.advice == "below 9.2 cores for each GPU it would be decode_audio"
    assert json.loads(sizing.to_json())["num_workers"] == 5


def test_gpus_whose_cores_are_too_few_are_as_fast_as_the_cores() -> None:
    sizing = size_cluster(GPU, hours=100_000, deadline_s=DAY, efficiency=0.5, cores_per_gpu=5)
    assert sizing.worker_rate == pytest.approx(5 / 0.0046)
    assert sizing.num_workers == 8  # 7.67 of them
    assert sizing.num_cores == 40
    assert sum(sizing.cores_by_stage.values()) == pytest.approx(40)
    assert sizing.core_cost == 0  # in the price of the GPUs
    assert sizing.cost == pytest.approx(8 * sizing.wall_s / 3600 * 2.5)
    assert sizing.bottleneck == "decode_audio"
    assert sizing.advice == "5 cores keep a GPU busy for 54% of the time, 10 for all"
    enough = size_cluster(GPU, hours=100_000, deadline_s=DAY, efficiency=0.5, cores_per_gpu=10)
    assert (enough.num_workers, enough.bottleneck) == (5, "encode")


def test_machines_without_a_gpu() -> None:
    sizing = size_cluster(MACHINE, hours=1000, deadline_s=DAY, efficiency=1, prices=Prices(core=0.5))
    assert (sizing.num_workers, sizing.num_cores, sizing.wall_s) == (1, 4, 72_000)
    assert (sizing.gpu_cost, sizing.core_cost, sizing.cost) == (0, 40, 40)
    assert sizing.bottleneck == "encode"
    assert sizing.advice.startswith("it takes 88% of the work of the cores")
    assert sizing.read_bytes is None
    by_text = size_cluster(replace(MACHINE, limit="decode_audio"), hours=1, deadline_s=DAY)
    assert (by_text.bottleneck, by_text.advice) == ("decode_audio", "it takes 12% of the work of the cores")


def test_exactly_as_much_as_fits_needs_no_further_worker() -> None:
    assert size_cluster(replace(GPU, rate=1 / 0.3), hours=7.2, deadline_s=7776, efficiency=1).num_workers == 1
    for hours, workers in ((48_000, 1), (48_001, 2), (96_000, 2)):
        sizing = size_cluster(GPU, hours=hours, deadline_s=DAY, efficiency=1)
        assert (sizing.num_workers, sizing.wall_s <= DAY) == (workers, True)


def test_a_rate_alone_knows_nothing_of_cores() -> None:
    sizing = size_cluster(with_gpu_rate(None, 3000), hours=100_000, deadline_s=DAY)
    assert sizing.num_workers == 2
    assert (sizing.num_cores, sizing.core_cost, sizing.read_bytes) == (None, None, None)
    assert sizing.cost == sizing.gpu_cost == pytest.approx(100_000 / (3000 * 0.85) * 2.5)
    assert "not known" in sizing.advice


def test_a_rate_takes_the_place_of_the_encoder_that_was_measured() -> None:
    rates = with_gpu_rate(MACHINE, 400)
    assert (rates.rate, rates.on_gpu, rates.costs) == (400, True, {"decode_audio": 0.01, "encode": 1 / 400})
    assert size_cluster(rates, hours=1, deadline_s=DAY).num_cores == 5
    assert rates.source == "400 x real time for each GPU, as given; the rest of another"


def test_what_it_rests_on_is_said() -> None:
    def said(rates: Rates, **options: Any) -> str:
        return "\n".join(size_cluster(rates, hours=100, deadline_s=DAY, **options).assumptions)

    assert "the rates are a measurement; other audio" in said(GPU)
    assert "an hour of a GPU costs 2.5 (--gpu-price), an hour of a core costs 0.04" in said(GPU)
    assert "its 8 cores included" in said(GPU, cores_per_gpu=8)
    assert "GPU" not in said(MACHINE)
    assert "Ray reached 90%" in said(replace(GPU, whole_share=0.9))
    assert "take less" not in said(replace(GPU, whole_share=0.9))
    assert "Ray reached 70%, so take less" in said(replace(GPU, whole_share=0.7))


@pytest.mark.parametrize(
    ("rates", "options", "said"),
    [
        (GPU, {"hours": 0}, "hours is 0"),
        (GPU, {"hours": float("nan")}, "hours is nan"),
        (GPU, {"efficiency": 1.2}, "efficiency is 1.2"),
        (GPU, {"prices": Prices(gpu=-1)}, "gpu_price is -1"),
        (GPU, {"prices": Prices(core=-1)}, "cpu_price is -1"),
        (GPU, {"cores_per_gpu": 0}, "cpus_per_gpu is 0"),
        (GPU, {"shard_seconds": 1}, "shard_seconds is 1"),
        (GPU, {"hours": 10, "deadline_s": 0.5, "efficiency": 1}, "30 shards of 1200 s, and 36 GPUs"),
        (MACHINE, {"hours": 10, "deadline_s": 10.0}, "85 machines would be needed"),
        (MACHINE, {"cores_per_gpu": 8}, "machine without a GPU"),
        (Rates(rate=3000), {"cores_per_gpu": 8}, "give a measurement with --from"),
    ],
)
def test_what_cannot_be_sized(rates: Rates, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as failure:
        size_cluster(rates, **{"hours": 100, "deadline_s": DAY} | options)
    assert said in str(failure.value)


@pytest.mark.parametrize("rate", [0, -5, float("nan"), float("inf")])
def test_rates_that_are_none(rate: float) -> None:
    with pytest.raises(ConfigError, match="expected a number above 0"):
        with_gpu_rate(None, rate)


def record(**changes: Any) -> dict[str, Any]:
    """The parts of a measurement that count here."""
    stages = [
        {"name": "decode_audio", "rate": 400.0, "cpu_s": 0.5, "audio_s": 100.0},
        {"name": "encode", "rate": 2000.0, "cpu_s": 0.6, "audio_s": 1200.0},
    ]
    return {
        "version": 1,
        "made_at": "2026-11-22T01:31:23+00:00",
        "model": "facebook/wav2vec2-base-960h",
        "task": "transcribe",
        "decoder": "greedy",
        "dtype": "float16",
        "device": "cuda",
        "device_name": "H100",
        "num_cores": 16,
        "audio_s": 120.4,
        "read_bytes_per_audio_s": 9000.0,
        "written_bytes_per_audio_s": 150.0,
        "expected_rate": 1900.0,
        "limit": "decode_audio",
        "stages": stages,
        "whole": {"rate": 1710.0},
    } | changes


def written(folder: Path, content: object) -> str:
    path = folder / "bench.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_a_measurement_is_read(tmp_path: Path) -> None:
    rates = read_rates(written(tmp_path, record()))
    assert (rates.rate, rates.limit, rates.on_gpu, rates.worker_name) == (2000, "encode", True, "H100")
    assert rates.costs == {"decode_audio": 0.005, "encode": 0.0005}
    assert (rates.read_bytes_per_audio_s, rates.written_bytes_per_audio_s) == (9000, 150)
    assert rates.whole_share == 0.9
    assert rates.source == (
        "facebook/wav2vec2-base-960h (transcribe, greedy) in float16 on H100, measured 2026-11-22 on 120 s "
        "of audio"
    )
    machine = read_rates(written(tmp_path, record(device="cpu", whole=None)))
    assert (machine.rate, machine.limit, machine.on_gpu) == (1900, "decode_audio", False)
    assert (machine.num_cores, machine.whole_share) == (16, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "is no file that `w2v-ray bench` wrote"),
        ({"version": 1}, "is no file that `w2v-ray bench` wrote (it lacks 'device')"),
        (record(version=2), "is of version 2, this reads 1"),
        (record(stages=[]), "is no file that `w2v-ray bench` wrote"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, said: str) -> None:
    with pytest.raises(InputError) as failure:
        read_rates(written(tmp_path, content))
    assert said in str(failure.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.json' does not exist; measure first"):
        read_rates(str(tmp_path / "gone.json"))


def test_a_sizing_is_a_value() -> None:
    assert size_cluster(GPU, hours=10, deadline_s=DAY) == size_cluster(GPU, hours=10, deadline_s=DAY)
    assert isinstance(size_cluster(GPU, hours=10, deadline_s=DAY), Sizing)
