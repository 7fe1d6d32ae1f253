"""The book of who had what in hand: it tells a worker that begins a shard what became of those before it.

A worker that dies leaves no word. It is known to be dead when another begins what it had begun and not
finished, and what it had marked last is what it had in hand.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

__all__ = ["Attempts", "Key", "Record", "StageState"]

Key = tuple[int, int, int]  # item_index, channel (-1: the mix) and segment_index

# From so many shards on whose workers died without any fault of an item, workers die here anyway, and a
# piece must be alone in the hand of two that die, not one, before it is blamed.
_MANY_ACCIDENTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of a shard at a stage when a worker begins it."""

    begun: int = 0
    """Times it was begun, this one included."""
    deaths: int = 0
    """Workers that died with it since a piece was last blamed."""
    is_deadly: bool = False
    """Whether a worker ever died with it: what finished it may be lost, and it be begun again."""
    suspects: tuple[Key, ...] = ()
    """The pieces in hand when the last one died, where that is known; one of them may be to blame."""
    apart: tuple[Key, ...] = ()
    """Pieces that live when alone and die together."""
    culprits: tuple[Key, ...] = ()
    """Pieces that killed: not to be touched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageState:
    """What a stage was doing at one moment."""

    stage: str
    num_begun: int
    """Beginnings, repeated ones included."""
    num_done: int
    """Shards finished, each counted once."""
    num_marked: int
    """Batches and items taken in hand or put down."""
    in_hand: tuple[tuple[str, float], ...]
    """Shards begun and not finished, and the seconds since; a worker that died may have had one."""


@dataclass(slots=True)
class _Work:
    record: Record = field(default_factory=Record)
    is_open: bool = False
    is_done: bool = False
    began_at: float = 0.0
    in_hand: tuple[Key, ...] = ()
    is_alone: bool = False
    survived: set[Key] = field(default_factory=set)
    alone_deaths: Counter[Key] = field(default_factory=Counter)


class Attempts:
    """Keeps the book for all workers of a run; runs as a Ray actor beside the pipeline.

    Args:
        clock: Seconds from anywhere.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._work: dict[tuple[str, str], _Work] = {}
        self._done: Counter[str] = Counter()
        self._open: Counter[str] = Counter()  # begun and not finished yet, by anybody
        self._begun: Counter[str] = Counter()
        self._marked: Counter[str] = Counter()
        self._accidents = 0

    def begin(self, stage: str, shard: str) -> Record:
        """Notes that a worker begins a shard, and says what became of those before it."""
        work = self._work.setdefault((stage, shard), _Work())
        if work.is_open:
            self._note_death(work)
        elif not work.is_done:
            self._open[stage] += 1
        work.is_open, work.began_at, work.in_hand = True, self._clock(), ()
        work.record = replace(work.record, begun=work.record.begun + 1)
        self._begun[stage] += 1
        return work.record

    def mark(self, stage: str, shard: str, keys: Sequence[Key], *, alone: bool = False) -> None:
        """Notes what the worker takes in hand next; what it had before has survived.

        Args:
            stage: Where it is.
            shard: What it began.
            keys: The pieces; none: it only puts down what it had.
            alone: Whether the one piece is tried by itself, to find out whether it kills.
        """
        self._marked[stage] += 1
        work = self._work.setdefault((stage, shard), _Work())  # the book may be new, where its node was lost
        if work.is_alone:
            work.survived.update(work.in_hand)
        work.in_hand, work.is_alone = tuple(keys), alone and bool(keys)

    def finish(self, stage: str, shard: str) -> None:
        """Notes that the worker is done with the shard."""
        work = self._work.get((stage, shard))
        if work is None:  # the shard is published and forgotten, or the book is new
            self._done[stage] += 1
            return
        if work.record.deaths and not work.record.culprits:
            self._accidents += 1
        if not work.is_done:
            self._open[stage] -= work.is_open
            self._done[stage] += 1
        done = work.record
        # Culprits stay: what the worker made may be lost and made again, and Ray repeats what was done.
        self._work[stage, shard] = _Work(
            Record(begun=done.begun, is_deadly=done.is_deadly, culprits=done.culprits), is_done=True
        )

    def waiting(self, before: Mapping[str, str]) -> dict[str, int]:
        """How many shards wait for stages.

        Args:
            before: The stages, each with the one whose shards it takes.
        """
        # Words of workers overtake each other, and a book that is new has missed some.
        return {
            stage: max(0, self._done[source] - self._done[stage] - self._open[stage])
            for stage, source in before.items()
        }

    def forget(self, shards: Sequence[str]) -> None:
        """Drops what is known of published shards, which nobody begins again: a run may have millions."""
        for shard in shards:
            for stage in self._begun:
                work = self._work.pop((stage, shard), None)
                if work is not None:  # where it is open, the word that it is finished is still under way
                    self._open[stage] -= work.is_open

    def state(self) -> list[StageState]:
        """What every stage is doing, in the order in which they were first begun."""
        now = self._clock()
        return [
            StageState(
                stage=stage,
                num_begun=num_begun,
                num_done=self._done[stage],
                num_marked=self._marked[stage],
                in_hand=tuple(
                    (shard, now - work.began_at)
                    for (name, shard), work in self._work.items()
                    if name == stage and work.is_open
                ),
            )
            for stage, num_begun in self._begun.items()
        ]

    def _note_death(self, work: _Work) -> None:
        record = work.record
        deaths, suspects, apart, culprits = record.deaths + 1, record.suspects, record.apart, record.culprits
        if work.is_alone:
            (key,) = work.in_hand
            work.alone_deaths[key] += 1
            if work.alone_deaths[key] >= (1 if self._accidents < _MANY_ACCIDENTS else 2):
                deaths, culprits = 0, (*culprits, key)
                suspects = tuple(suspect for suspect in suspects if suspect != key)
        elif work.in_hand:
            if work.survived.issuperset(work.in_hand):
                apart = (*apart, *(key for key in work.in_hand if key not in apart))
            suspects = work.in_hand
        work.is_alone = False
        work.record = replace(
            record, deaths=deaths, is_deadly=True, suspects=suspects, apart=apart, culprits=culprits
        )
