"""Telling what a run does: workers to its meter, the meter to whoever scrapes Ray's metrics."""

from __future__ import annotations

import os
from collections.abc import Mapping

import ray
from ray.actor import ActorHandle
from ray.util.metrics import Counter, Gauge, Histogram

from w2v_ray.errors import ConfigError
from w2v_ray.metric_names import METRICS
from w2v_ray.progress import Meter, Tally

__all__ = ["RayMetrics", "RemoteMeter", "is_on", "scrape_addresses"]

_SWITCH = "W2V_RAY_TELEMETRY"


def is_on() -> bool:
    """Whether runs are measured: always, unless W2V_RAY_TELEMETRY is ``off``.

    Raises:
        ConfigError: The variable says something else.
    """
    value = os.environ.get(_SWITCH, "on")
    if value not in ("on", "off"):
        raise ConfigError(f"{_SWITCH} is {value!r}, expected on or off; unset it")
    return value == "on"


class RemoteMeter:
    """The meter of a run, as a worker elsewhere tells it something: without waiting."""

    def __init__(self, meter: ActorHandle[Meter]) -> None:
        self._meter = meter

    def add(self, tally: Tally) -> None:
        self._meter.add.remote(tally)

    def note(self, name: str, value: Mapping[str, str]) -> None:
        self._meter.note.remote(name, value)


class RayMetrics:
    """Shows what a meter counts as metrics of Ray.

    Args:
        run: The name of the run, which becomes a label.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for metric in METRICS:
            name, meaning, labels = metric.name, metric.meaning, ("run", *metric.labels)
            if metric.kind == "counter":
                self._counters[name] = Counter(name, meaning, labels)
            elif metric.kind == "gauge":
                self._gauges[name] = Gauge(name, meaning, labels)
            else:
                self._histograms[name] = Histogram(name, meaning, list(metric.bounds), labels)

    def count(self, tally: Tally) -> None:
        """Adds what a worker told."""
        stage = {"stage": tally.stage}
        self._count("w2v_ray_audio_seconds_total", tally.audio_s, stage)
        self._count("w2v_ray_busy_seconds_total", tally.busy_s, stage)
        self._count("w2v_ray_items_total", tally.items, stage)
        self._count("w2v_ray_shards_total", tally.shards, stage)
        self._count("w2v_ray_bytes_total", tally.num_bytes, stage)
        self._count("w2v_ray_frames_total", tally.frames, stage)
        self._count("w2v_ray_rows_total", tally.rows)
        self._count("w2v_ray_rejects_total", tally.rejects)
        self._count("w2v_ray_batches_total", tally.batches)
        self._count("w2v_ray_padding_seconds_total", tally.padding_s or 0.0)
        for (failed, reason), number in tally.errors.items():
            self._count("w2v_ray_errors_total", number, {"stage": failed, "reason": reason})
        for fill in tally.fills:
            self._histograms["w2v_ray_batch_fill_ratio"].observe(fill, tags={"run": self._run})

    def show(self, gauges: Mapping[str, float], queue: Mapping[str, int]) -> None:
        """Sets what has no sum."""
        for name, value in gauges.items():
            self._gauges[name].set(value, tags={"run": self._run})
        for stage, waiting in queue.items():
            self._gauges["w2v_ray_queue_shards"].set(waiting, tags={"run": self._run, "stage": stage})

    def _count(self, name: str, value: float, labels: Mapping[str, str] | None = None) -> None:
        if value > 0:  # Ray refuses to add nothing
            self._counters[name].inc(value, tags={"run": self._run, **(labels or {})})


def scrape_addresses() -> list[str]:
    """Where each node of the cluster answers scrapes; none where Ray is installed without its metrics."""
    found = [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"] and node.get("MetricsExportPort", -1) > 0
    ]
    return sorted(found)
