"""How far a run is, counted in seconds of audio: a meter that encoders report to, and what it reads."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Meter", "Progress"]

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


class Meter:
    """Adds up the seconds that encoders report; runs as a Ray actor beside the pipeline."""

    def __init__(self) -> None:
        self._total_s = 0.0

    def add(self, seconds: float) -> None:
        """Counts seconds of audio as encoded."""
        self._total_s += seconds

    def total(self) -> float:
        """Seconds counted so far."""
        return self._total_s
