"""The arithmetic from measured rates to a cluster: how many machines, how long, how much storage, what cost.

Neither torch nor Ray is needed, nor the audio.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from w2v_ray import stores
from w2v_ray.decoder_config import check_range
from w2v_ray.errors import ConfigError, InputError

__all__ = ["Prices", "Rates", "Sizing", "read_duration", "read_rates", "size_cluster", "with_gpu_rate"]

_VERSION = 1  # of the record that `w2v-ray bench` writes
_UNITS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_DURATION = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in _UNITS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one worker does in a second: a GPU with the cores that feed it, or a machine without a GPU."""

    rate: float
    """Seconds of audio that a GPU encodes in a second, or with all its stages a machine without one."""
    limit: str = "encode"
    """The stage that limits it."""
    on_gpu: bool = True
    """Whether the encoder runs on a GPU; else all stages share the cores."""
    num_cores: int = 1
    """Of a machine without a GPU."""
    costs: Mapping[str, float] = field(default_factory=dict)
    """By stage the seconds of a core for a second of audio; empty: not known."""
    read_bytes_per_audio_s: float | None = None
    written_bytes_per_audio_s: float | None = None
    worker_name: str = ""
    """What the GPU, or the CPU, is called."""
    source: str = ""
    """Where these numbers are from, in words."""
    whole_share: float | None = None
    """What the pipeline on Ray reached of what the stages promise; None: not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Of an hour, in any currency."""

    gpu: float = 2.5
    core: float = 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """A cluster for a job. Workers are GPUs, or machines without one."""

    hours: float
    """Of audio."""
    deadline_s: float
    efficiency: float
    on_gpu: bool
    worker_name: str
    num_workers: int
    worker_rate: float
    """Seconds of audio in a second that one of them does while it is busy, whatever limits it."""
    num_cores: int | None
    """In all; None: not known."""
    cores_by_stage: dict[str, float]
    """What of them each stage keeps busy while all workers are."""
    wall_s: float
    """Expected, and within the deadline."""
    num_shards: int
    shard_seconds: float
    read_bytes: float | None
    written_bytes: float | None
    read_bytes_per_s: float | None
    """What the store must give."""
    gpu_cost: float
    core_cost: float | None
    """None: the number of cores is not known."""
    cost: float
    bottleneck: str
    """The stage that limits the rate."""
    advice: str
    """What would change that."""
    assumptions: tuple[str, ...]

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


def read_duration(text: str) -> float:
    """Seconds, from ``24h``, ``90m``, ``2d``, ``45s`` or several of these in that order, as ``1d12h``.

    Raises:
        ConfigError: It is something else, or nothing.
    """
    found = _DURATION.fullmatch(text.strip().lower())
    parts = found.groups() if found else ()
    seconds = sum(float(part) * unit for part, unit in zip(parts, _UNITS.values(), strict=False) if part)
    if seconds <= 0:
        raise ConfigError(f"{text!r} is no length of time, expected one such as 24h, 90m, 2d or 1d12h")
    return seconds


def read_rates(path: str) -> Rates:
    """The rates that `w2v-ray bench` wrote to a file.

    Raises:
        InputError: There is no such file, or it is none of these.
    """
    try:
        found: dict[str, Any] = json.loads(stores.read_bytes(stores.canonical(path)))
        version = found["version"]
        if version == _VERSION:
            return _rates(found)
    except FileNotFoundError as error:
        raise InputError(
            f"{path!r} does not exist; measure first with `w2v-ray bench`, or give a rate with --rate"
        ) from error
    except Exception as error:  # each store has its own errors, and JSON has others
        reason = f"it lacks {error}" if isinstance(error, KeyError) else stores.explain(error)
        raise InputError(
            f"{path!r} is no file that `w2v-ray bench` wrote ({reason}); write one with its --output"
        ) from error
    raise InputError(f"{path!r} is of version {version}, this reads {_VERSION}; run `w2v-ray bench` again")


def _rates(found: Mapping[str, Any]) -> Rates:
    on_gpu = str(found["device"]).startswith("cuda")
    stages = {stage["name"]: stage for stage in found["stages"]}
    whole = found["whole"]
    text = "" if found["decoder"] == "none" else f", {found['decoder']}"
    return Rates(
        rate=float(stages["encode"]["rate"] if on_gpu else found["expected_rate"]),
        limit="encode" if on_gpu else str(found["limit"]),
        on_gpu=on_gpu,
        num_cores=int(found["num_cores"]),
        costs={name: float(stage["cpu_s"]) / float(stage["audio_s"]) for name, stage in stages.items()},
        read_bytes_per_audio_s=float(found["read_bytes_per_audio_s"]),
        written_bytes_per_audio_s=float(found["written_bytes_per_audio_s"]),
        worker_name=str(found["device_name"]),
        source=f"{found['model']} ({found['task']}{text}) in {found['dtype']} on {found['device_name']}, "
        f"measured {found['made_at'][:10]} on {found['audio_s']:.0f} s of audio",
        whole_share=None if whole is None else float(whole["rate"]) / float(found["expected_rate"]),
    )


def with_gpu_rate(rates: Rates | None, rate: float) -> Rates:
    """Rates of a GPU that encodes so fast, with the other stages as they were measured, if they were.

    Raises:
        ConfigError: The rate is not above 0.
    """
    if not 0 < rate < math.inf:
        raise ConfigError(f"rate is {rate:g}, expected a number above 0: seconds of audio in a second")
    given = f"{rate:g} x real time for each GPU, as given"
    if rates is None:
        return Rates(rate=rate, source=given)
    return replace(
        rates,
        rate=rate,
        limit="encode",
        on_gpu=True,
        costs={**rates.costs, "encode": 1 / rate},  # a core that feeds the GPU
        worker_name="",
        source=f"{given}; the rest of {rates.source}",
        whole_share=None,
    )


def size_cluster(
    rates: Rates,
    *,
    hours: float,
    deadline_s: float,
    efficiency: float = 0.85,
    prices: Prices | None = None,
    cores_per_gpu: int | None = None,
    shard_seconds: float = 1200.0,
) -> Sizing:
    """The least number of workers that do so many hours of audio within a deadline.

    Args:
        rates: Of one worker.
        hours: Of audio.
        deadline_s: Of the clock, in seconds.
        efficiency: What of the rates a long job reaches, 0.1 to 1.
        prices: Of an hour.
        cores_per_gpu: That come with a GPU and are in its price; None: as many as are needed, at the price
            of cores.
        shard_seconds: Of audio in a shard: a worker has one at a time.

    Raises:
        ConfigError: A value is out of bounds, or there are fewer shards than workers are needed.
    """
    prices = prices or Prices()
    check_range("hours", hours, 0.001, 1e9)
    check_range("efficiency", efficiency, 0.1, 1)
    check_range("gpu_price", prices.gpu, 0, 1e6)
    check_range("cpu_price", prices.core, 0, 1e6)
    check_range("shard_seconds", shard_seconds, 10, 7200)
    if cores_per_gpu is not None:
        check_range("cpus_per_gpu", cores_per_gpu, 1, 10_000)
        if not rates.on_gpu:
            raise ConfigError(
                f"cpus_per_gpu is {cores_per_gpu} and the rates are of a machine without a GPU; leave it "
                "out, or say with --rate how fast a GPU is"
            )
        if not rates.costs:
            raise ConfigError(
                f"cpus_per_gpu is {cores_per_gpu}, and what the stages ask of a core is not known; give a "
                "measurement with --from as well"
            )
    audio_s = hours * 3600
    core_s = sum(rates.costs.values())
    rate, bottleneck, advice = _limit(rates, core_s, cores_per_gpu)
    num_workers = max(1, math.ceil(round(audio_s / (deadline_s * rate * efficiency), 9)))
    num_shards = math.ceil(audio_s / shard_seconds)
    if num_workers > num_shards:
        raise ConfigError(
            f"hours is {hours:g}, which is {num_shards} shards of {shard_seconds:g} s, and {num_workers} "
            f"{'GPUs' if rates.on_gpu else 'machines'} would be needed by then; lower --shard-seconds, or "
            "give a longer deadline"
        )
    wall_s = audio_s / (num_workers * rate * efficiency)
    wall_h = wall_s / 3600
    by_stage = {name: cost * num_workers * rate for name, cost in rates.costs.items()}
    num_cores: int | None = None
    if not rates.on_gpu:
        num_cores = num_workers * rates.num_cores
    elif cores_per_gpu is not None:
        num_cores = num_workers * cores_per_gpu
    elif rates.costs:
        num_cores = num_workers * math.ceil(rate * core_s)
    gpu_cost = num_workers * wall_h * prices.gpu if rates.on_gpu else 0.0
    core_cost = None if num_cores is None else num_cores * wall_h * prices.core
    if cores_per_gpu is not None:
        core_cost = 0.0
    read = rates.read_bytes_per_audio_s
    written = rates.written_bytes_per_audio_s
    return Sizing(
        hours=hours,
        deadline_s=deadline_s,
        efficiency=efficiency,
        on_gpu=rates.on_gpu,
        worker_name=rates.worker_name,
        num_workers=num_workers,
        worker_rate=rate,
        num_cores=num_cores,
        cores_by_stage=by_stage,
        wall_s=wall_s,
        num_shards=num_shards,
        shard_seconds=shard_seconds,
        read_bytes=None if read is None else read * audio_s,
        written_bytes=None if written is None else written * audio_s,
        read_bytes_per_s=None if read is None else read * num_workers * rate,
        gpu_cost=gpu_cost,
        core_cost=core_cost,
        cost=gpu_cost + (core_cost or 0.0),
        bottleneck=bottleneck,
        advice=advice,
        assumptions=tuple(_assumptions(rates, efficiency, prices, cores_per_gpu)),
    )


def _limit(rates: Rates, core_s: float, cores_per_gpu: int | None) -> tuple[float, str, str]:
    """The rate of a busy worker, the stage that limits it, and what would change that."""
    if not rates.on_gpu:
        advice = f"it takes {rates.costs[rates.limit] / core_s:.0%} of the work of the cores"
        if rates.limit == "encode":
            advice += ", which a GPU would take from them"
        return rates.rate, rates.limit, advice
    others = {name: cost for name, cost in rates.costs.items() if name != "encode"}
    if not others:
        return rates.rate, "encode", "whether the cores keep up is not known without a measurement"
    costliest = max(others, key=others.__getitem__)
    needed = rates.rate * core_s
    if cores_per_gpu is None or cores_per_gpu >= needed:
        return rates.rate, "encode", f"below {needed:.1f} cores for each GPU it would be {costliest}"
    share = cores_per_gpu / needed
    advice = f"{cores_per_gpu} cores keep a GPU busy for {share:.0%} of the time, {math.ceil(needed)} for all"
    return rates.rate * share, costliest, advice


def _assumptions(rates: Rates, efficiency: float, prices: Prices, cores_per_gpu: int | None) -> list[str]:
    """What the numbers rest on, each in a sentence."""
    said = [f"the rates are {rates.source}; other audio, segments or settings have others"]
    long = f"a long job reaches {efficiency:.0%} of them (--efficiency): start-up, the last shards, workers "
    long += "that die"
    if rates.whole_share is not None:
        long += f"; in the measurement the whole on Ray reached {rates.whole_share:.0%}"
        if rates.whole_share < efficiency:
            long += ", so take less"
    said.append(long)
    core = f"an hour of a core costs {prices.core:g} (--cpu-price)"
    if cores_per_gpu is not None:
        core = f"its {cores_per_gpu} cores included"
    gpu = f"an hour of a GPU costs {prices.gpu:g} (--gpu-price), "
    said.append(f"{gpu if rates.on_gpu else ''}{core}, in any currency; storage and traffic are not counted")
    if rates.read_bytes_per_audio_s is not None:
        said.append("the store gives what is asked of it")
    return said
