"""The records that runs of a job leave in ``_runs/``: what each did, how fast, and how its rows differ."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np

from w2v_ray import stores
from w2v_ray.errors import OutputError
from w2v_ray.run_record import state_of

__all__ = ["Drift", "DriftPoint", "Run", "Stage", "Throughput", "drift", "read_runs"]

_MOST_INTERVALS = 48
_LEAST_EARLIER = 3  # runs before the last one that say what is usual
_THREADS = 8
# In the order of the flow; others that a record names come after these.
_STAGES = ("read_audio", "decode_audio", "segment_audio", "encode", "decode_text", "write_parquet")


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """What a stage did in a run. What is not known is None."""

    name: str
    busy_s: float | None
    """Seconds in which some worker was busy, summed over workers."""
    audio_s: float | None
    items: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """How fast the stages of a run were, interval after interval."""

    interval_s: float
    rates: dict[str, tuple[float, ...]]
    """By stage, seconds of audio per second."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One invocation that had work. What is not known is None."""

    run: str
    state: str
    """``running``, ``done``, ``failed``, ``interrupted``, or ``lost``: it said nothing for a minute."""
    command: str
    started_at: str
    wall_s: float | None
    error: str | None
    version: str | None
    audio_s: float | None
    num_rows: int | None
    num_rejects: int | None
    rate: float | None
    """Seconds of audio per second."""
    reject_rate: float | None
    speech_rate_wps: float | None
    confidence: Mapping[str, float] | None
    """Mean, p10, p50 and p90."""
    segment_s: Mapping[str, float] | None
    """Mean, p50 and p90."""
    stages: tuple[Stage, ...]
    throughput: Throughput | None


@dataclasses.dataclass(frozen=True, slots=True)
class DriftPoint:
    """A number of one run, and what most of its rows lie between, where that is known."""

    run: str
    started_at: str
    value: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A number over the runs of an output, the oldest first."""

    name: str
    unit: str
    points: tuple[DriftPoint, ...]
    earlier: tuple[float, float, float] | None
    """Least, median and greatest value before the last run; None: fewer than three runs."""
    is_outside: bool
    """Whether the last value lies outside what was there before."""


def read_runs(output: str) -> tuple[list[Run], int]:
    """The runs of an output, the oldest first, and how many records could not be read.

    Raises:
        OutputError: The store refuses to list them.
    """
    folder = stores.join(output, "_runs")
    try:
        names = [name for name in stores.list_names(folder) if name.endswith(".json") and name[0] != "."]
    except Exception as error:  # each store has its own errors
        raise OutputError(
            f"{folder!r} cannot be listed ({stores.explain(error)}); check permissions"
        ) from error

    def read(name: str) -> Run | None:
        try:
            return _run(json.loads(stores.read_bytes(stores.join(folder, name))))
        except Exception:  # counted: a record is no reason to show nothing of the rows
            return None

    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(read, names))
    runs = sorted((run for run in found if run is not None), key=lambda run: (run.started_at, run.run))
    return runs, len(found) - len(runs)


def drift(runs: Sequence[Run]) -> tuple[Drift, ...]:
    """What the last run's numbers are beside those of the runs before it, for numbers that several have."""
    ended = [run for run in runs if run.state != "running" and run.num_rows]
    found = [
        _drift("confidence", "", ended, lambda run: _of(run.confidence, "p50", "p10", "p90")),
        _drift("speech rate", "words/s", ended, lambda run: (run.speech_rate_wps, None, None)),
        _drift("share of rejects", "", ended, lambda run: (run.reject_rate, None, None)),
        _drift("length of a segment", "s", ended, lambda run: _of(run.segment_s, "p50", None, "p90")),
        _drift("throughput", "x real time", ended, lambda run: (run.rate, None, None)),
    ]
    return tuple(entry for entry in found if len(entry.points) > 1)


def _drift(name: str, unit: str, runs: Sequence[Run], values: Any) -> Drift:
    points = tuple(
        DriftPoint(run.run, run.started_at, value, low, high)
        for run in runs
        for value, low, high in [values(run)]
        if value is not None
    )
    earlier = [point.value for point in points[:-1]]
    known = (
        (min(earlier), statistics.median(earlier), max(earlier)) if len(earlier) >= _LEAST_EARLIER else None
    )
    is_outside = known is not None and not known[0] <= points[-1].value <= known[2]
    return Drift(name=name, unit=unit, points=points, earlier=known, is_outside=is_outside)


def _of(found: Mapping[str, float] | None, *names: str | None) -> tuple[float | None, ...]:
    return tuple(None if found is None or name is None else found.get(name) for name in names)


def _run(record: Mapping[str, Any]) -> Run:
    totals, quality = record.get("totals") or {}, record.get("quality") or {}
    wall_s, audio_s = _number(record.get("wall_s")), _number(totals.get("audio_s"))
    stages = record.get("stages") or {}
    names = [*(name for name in _STAGES if name in stages), *sorted(stages.keys() - set(_STAGES))]
    return Run(
        run=str(record["run"]),
        state=state_of(record, datetime.now(UTC)),
        command=str(record.get("command") or record.get("task") or "run"),
        started_at=str(record["started_at"]),
        wall_s=wall_s,
        error=None if record.get("error") is None else str(record["error"]),
        version=(record.get("versions") or {}).get("w2v_ray"),
        audio_s=audio_s,
        num_rows=_count(totals.get("num_rows")),
        num_rejects=_count(totals.get("num_rejects")),
        rate=audio_s / wall_s if audio_s is not None and wall_s else None,
        reject_rate=_number(quality.get("reject_rate")),
        speech_rate_wps=_number(quality.get("speech_rate_wps")),
        confidence=_numbers(quality.get("confidence")),
        segment_s=_numbers(quality.get("segment_s")),
        stages=tuple(
            Stage(
                name,
                _number(stages[name].get("busy_s")),
                _number(stages[name].get("audio_s")),
                _count(stages[name].get("items", stages[name].get("rows"))),
            )
            for name in names
        ),
        throughput=_throughput(record.get("timeline") or []),
    )


def _throughput(timeline: Sequence[Mapping[str, Any]]) -> Throughput | None:
    """Rates over equal intervals, from what was done until each of some times."""
    times = np.array([float(point["t_s"]) for point in timeline])
    if len(times) < 2 or (np.diff(times) < 0).any() or times[-1] <= 0:
        return None
    names = {name for point in timeline for name in point["audio_s"] or {}}
    ordered = [*(name for name in _STAGES if name in names), *sorted(names - set(_STAGES))]
    edges = np.linspace(0.0, times[-1], min(len(times), _MOST_INTERVALS) + 1)
    rates = {}
    for name in ordered:
        done = np.array([float((point["audio_s"] or {}).get(name) or 0.0) for point in timeline])
        if times[0] > 0:
            at_edges = np.interp(edges, [0.0, *times], [0.0, *done])
        else:
            at_edges = np.interp(edges, times, done)
        rates[name] = tuple(np.maximum(np.diff(at_edges) / np.diff(edges), 0.0).tolist())
    return Throughput(interval_s=float(edges[1]), rates=rates)


def _number(value: object) -> float | None:
    """A number that is one; None for what is not known."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None  # type: ignore[arg-type]


def _count(value: object) -> int | None:
    return None if (number := _number(value)) is None else int(number)


def _numbers(values: Mapping[str, Any] | None) -> dict[str, float] | None:
    if not values:
        return None
    return {name: number for name in values if (number := _number(values[name])) is not None}
