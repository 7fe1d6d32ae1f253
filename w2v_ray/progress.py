"""How far a run is and what its stages do, counted in seconds of audio: a meter that workers report to."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

__all__ = ["Exporter", "Meter", "Progress", "StageTotals", "Tally"]

_MEANINGFUL_S = 15.0  # of work that a guess at the rest can be made from


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is at one moment. Seconds are of audio unless the name says otherwise."""

    planned_s: float
    """All audio of the plan, as far as headers tell."""
    before_s: float
    """What earlier runs had published already."""
    done_s: float
    """What this run has encoded or published, at most what was pending."""
    num_shards: int
    """Shards of the plan."""
    num_shards_done: int
    """Shards that are published, by this run or earlier ones."""
    num_rejects: int
    """Rows of ``rejects/`` that this run has published."""
    elapsed_s: float
    """Wall-clock time since the first shard was started."""
    first_elapsed_s: float = 0.0
    """The same when the first audio was seen to be done: workers had to start before."""
    first_done_s: float = 0.0
    """What was done then."""
    queue: Mapping[str, int] = field(default_factory=dict)
    """By stage in the order of the flow, the shards that wait for it."""

    @property
    def rate(self) -> float:
        """Times real time: seconds of audio done for each second of the clock."""
        return self.done_s / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Wall-clock seconds to the end at the rate since the workers are up; None before that is known."""
        working_s, worked_s = self.elapsed_s - self.first_elapsed_s, self.done_s - self.first_done_s
        if working_s < _MEANINGFUL_S or worked_s <= 0:
            return None
        return max(0.0, self.planned_s - self.before_s - self.done_s) * working_s / worked_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What a worker did since it last told the meter; a few of these go there for each shard."""

    stage: str
    worker: str = ""
    """Which of the stage's actors; empty where the stage has none."""
    shards: int = 0
    items: int = 0
    busy_s: float = 0.0
    """Of the clock."""
    audio_s: float = 0.0
    num_bytes: int = 0
    rows: int = 0
    rejects: int = 0
    frames: int = 0
    batches: int = 0
    padding_s: float | None = None
    """None: the encoder does not say."""
    fills: tuple[float, ...] = ()
    """Of each batch, the share that is audio."""
    errors: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """By the stage that failed and the class of its error."""


@dataclass(slots=True, kw_only=True)
class StageTotals:
    """What a stage has done in a run."""

    shards: int = 0
    items: int = 0
    busy_s: float = 0.0
    audio_s: float = 0.0
    num_bytes: int = 0
    rows: int = 0
    frames: int = 0
    batches: int = 0
    padding_s: float | None = None
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, tally: Tally) -> None:
        """Counts what a worker told."""
        for name in ("shards", "items", "busy_s", "audio_s", "num_bytes", "rows", "frames", "batches"):
            setattr(self, name, getattr(self, name) + getattr(tally, name))
        if tally.padding_s is not None:
            self.padding_s = (self.padding_s or 0.0) + tally.padding_s
        self.errors.update(tally.errors)


class Exporter(Protocol):
    """Where the meter shows what it counts."""

    def count(self, tally: Tally) -> None: ...

    def show(self, gauges: Mapping[str, float], queue: Mapping[str, int]) -> None: ...


class Meter:
    """Adds up what workers report; runs as a Ray actor beside the pipeline.

    Args:
        exporter: Makes what shows the numbers elsewhere, in the process of the meter; None: nothing does.
        clock: Seconds from anywhere.
    """

    def __init__(
        self,
        exporter: Callable[[], Exporter] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exporter = exporter() if exporter is not None else None
        self._clock = clock
        self._stages: dict[str, StageTotals] = {}
        self._encoders: set[str] = set()
        self._notes: dict[str, Mapping[str, str]] = {}
        self._looked = clock(), 0.0  # when, and how long encoders had been busy by then

    def add(self, tally: Tally) -> None:
        """Counts what a worker did."""
        self._stages.setdefault(tally.stage, StageTotals()).add(tally)
        if tally.stage == "encode":
            self._encoders.add(tally.worker)
        if self._exporter is not None:
            self._exporter.count(tally)

    def note(self, name: str, value: Mapping[str, str]) -> None:
        """Keeps what workers found when they loaded; they all find the same."""
        self._notes[name] = value

    def notes(self) -> dict[str, Mapping[str, str]]:
        """What was noted."""
        return dict(self._notes)

    def encoded_s(self) -> float:
        """Seconds of audio that encoders have done."""
        return self._stages["encode"].audio_s if "encode" in self._stages else 0.0

    def totals(self) -> dict[str, StageTotals]:
        """What every stage has done so far."""
        return {name: replace(totals, errors=Counter(totals.errors)) for name, totals in self._stages.items()}

    def show(self, progress: Progress) -> None:
        """Shows what has no sum: how far the run is, what waits, and how busy encoders have been since."""
        if self._exporter is None:
            return
        gauges = {
            "w2v_ray_planned_audio_seconds": progress.planned_s,
            "w2v_ray_done_audio_seconds": progress.before_s + progress.done_s,
            "w2v_ray_elapsed_seconds": progress.elapsed_s,
        }
        if (busy := self._busy_ratio()) is not None:
            gauges["w2v_ray_device_busy_ratio"] = busy
        self._exporter.show(gauges, progress.queue)

    def _busy_ratio(self) -> float | None:
        now = self._clock()
        busy_s = self._stages["encode"].busy_s if self._encoders else 0.0
        (before, was_busy_s), self._looked = self._looked, (now, busy_s)
        if not self._encoders or now <= before:
            return None
        # Encoders tell when a batch is done, which may have begun before the last look.
        return min(1.0, (busy_s - was_busy_s) / (now - before) / len(self._encoders))
