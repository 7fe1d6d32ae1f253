"""What every stage of a flow is wrapped in: what makes it safe from its items, and what counts its work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ray import cloudpickle

from w2v_ray.item_process import Stage
from w2v_ray.metering import BatchMeter, MeteredStage
from w2v_ray.quarantine import Book, GuardedStage
from w2v_ray.telemetry import RemoteMeter

__all__ = ["Guard"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """What makes stages safe from their items, and counts what they do."""

    book: Book
    item_deadline_s: float
    meter: RemoteMeter | None
    """None: nothing is counted."""

    def stage(self, name: str, make: Callable[[], Stage]) -> Stage:
        """A stage that is both, over items or segments."""
        return self.metered(self.guarded(name, make), name)

    def guarded(self, name: str, make: Callable[[], Stage]) -> GuardedStage:
        """A stage over items or segments, safe from them."""
        return GuardedStage(
            make(),
            name=name,
            maker=cloudpickle.dumps(make),  # type: ignore[no-untyped-call]
            book=self.book,
            item_deadline_s=self.item_deadline_s,
        )

    def metered(self, stage: Stage, name: str, *, by_batch: BatchMeter | None = None) -> Stage:
        """Any stage, counted."""
        if self.meter is None:
            return stage
        return MeteredStage(stage, name=name, send=self.meter.add, by_batch=by_batch)

    def batch_meter(self, worker: str) -> BatchMeter | None:
        """What counts the batches of an encoder."""
        return None if self.meter is None else BatchMeter(worker=worker, send=self.meter.add)
