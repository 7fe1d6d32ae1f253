"""Counting what stages do: around each of them, once for a shard, and for the encoder by batches."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray.item_process import Stage
from w2v_ray.progress import Tally

__all__ = ["BatchMeter", "MeteredStage"]

Send = Callable[[Tally], None]

_SEND_EVERY_S = 0.5


class MeteredStage:
    """A stage that tells what it did after each shard.

    Args:
        stage: Any stage over the rows of a shard.
        name: Of the stage.
        send: Takes the tally; it must not wait.
        by_batch: Of the encoder: what has counted its time and audio already.
    """

    def __init__(self, stage: Stage, *, name: str, send: Send, by_batch: BatchMeter | None = None) -> None:
        self._stage = stage
        self._name = name
        self._send = send
        self._by_batch = by_batch
        self.__name__ = name  # what Ray shows

    def __call__(self, table: pa.Table) -> pa.Table:
        began = time.monotonic()
        if self._by_batch is not None:
            self._by_batch.begin()
        done = self._stage(table)
        counts: dict[str, Any] = {"shards": 1, "items": table.num_rows, "errors": _new_errors(table, done)}
        if self._by_batch is not None:
            self._by_batch.end()
        else:
            counts |= {"busy_s": time.monotonic() - began} | _measured(done)
        self._send(Tally(stage=self._name, worker=self._by_batch.worker if self._by_batch else "", **counts))
        return done


class BatchMeter:
    """Counts the batches of an encoder, and tells of them twice a second and at the end of a shard.

    Args:
        worker: The encoder's name among others.
        send: Takes tallies; it must not wait.
        clock: Seconds from anywhere.
    """

    def __init__(self, *, worker: str, send: Send, clock: Callable[[], float] = time.monotonic) -> None:
        self.worker = worker
        self._send = send
        self._clock = clock
        self._encoder: object = None
        self._audio_s = 0.0
        self._batches = 0
        self._since = 0.0
        self._fills: list[float] = []
        self._seen = self._told = _Stats()

    def watch(self, encoder: object) -> None:
        """Names the encoder, whose ``stats`` are read from now on, where it has any."""
        self._encoder = encoder
        self._seen = self._told = _stats_of(self._encoder)

    def begin(self) -> None:
        """A shard is begun: the clock runs."""
        self._since = self._clock()

    def batch(self, seconds: float) -> None:
        """A batch of so many seconds of audio is done."""
        self._audio_s += seconds
        self._batches += 1
        stats = _stats_of(self._encoder)
        if stats.computed_s > self._seen.computed_s:
            self._fills.append(
                min(1.0, (stats.audio_s - self._seen.audio_s) / (stats.computed_s - self._seen.computed_s))
            )
        self._seen = stats
        if self._clock() - self._since >= _SEND_EVERY_S:
            self.end()

    def end(self) -> None:
        """Tells what was not told yet."""
        now, stats, told = self._clock(), _stats_of(self._encoder), self._told
        padding_s = None
        if stats.is_known:
            padding_s = (stats.computed_s - told.computed_s) - (stats.audio_s - told.audio_s)
        self._send(
            Tally(
                stage="encode",
                worker=self.worker,
                busy_s=now - self._since,
                audio_s=self._audio_s,
                batches=self._batches,
                padding_s=padding_s,
                fills=tuple(self._fills),
            )
        )
        self._audio_s, self._batches, self._fills = 0.0, 0, []
        self._since, self._told = now, stats


class _Stats(NamedTuple):
    """What an encoder says it has done since it was loaded."""

    computed_s: float = 0.0
    audio_s: float = 0.0
    is_known: bool = False


def _stats_of(encoder: object) -> _Stats:
    found = getattr(encoder, "stats", None)
    if found is None:
        return _Stats()
    return _Stats(float(found["padded_s"]) + float(found["audio_s"]), float(found["audio_s"]), True)


def _measured(table: pa.Table) -> dict[str, Any]:
    """What the columns of a table say of the work in it."""
    names = table.column_names
    if "num_bytes" in names:  # the summary that write_parquet returns
        (summary,) = table.to_pylist()
        return {
            "audio_s": summary["audio_s"] + summary["rejected_s"],
            "rows": summary["num_rows"],
            "rejects": summary["num_rejects"],
            "num_bytes": summary["num_bytes"],
        }
    seconds = table.column("duration_s" if "duration_s" in names else "planned_s")
    measured: dict[str, Any] = {"audio_s": pc.sum(seconds).as_py() or 0.0}
    if "audio_bytes" in names:
        measured["num_bytes"] = pc.sum(pc.binary_length(table.column("audio_bytes"))).as_py() or 0
    if "num_frames" in names:
        measured["frames"] = pc.sum(table.column("num_frames")).as_py() or 0
    return measured


def _new_errors(before: pa.Table, after: pa.Table) -> dict[tuple[str, str], int]:
    """Errors of rows, by stage and class, that were not there before: a stage passes on those that were."""
    return dict(_errors(after) - _errors(before))


def _errors(table: pa.Table) -> Counter[tuple[str, str]]:
    if "error" not in table.column_names:
        return Counter()
    column = table.column("error")
    if column.null_count == len(column):
        return Counter()
    return Counter((error["stage"], error["error_class"]) for error in column.drop_null().to_pylist())
