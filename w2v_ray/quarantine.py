"""Stages that a poisonous item cannot stop: it is found and rejected, and its neighbours are done.

A stage on CPUs takes a shard at once. Where an exception comes out of it, each item is tried alone; where a
worker died with the shard, each is tried alone in a process of its own. The encoder holds a device and is
too large to be started twice: it marks each batch in the book before it touches it, and where a worker died
of one, the next tries its segments one by one.
"""

from __future__ import annotations

import faulthandler
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray.attempts import Key, Record
from w2v_ray.errors import ItemError, JobError, StageError, W2vRayError, WorkerDeathError
from w2v_ray.failures import placed
from w2v_ray.item_process import ItemProcess, Stage
from w2v_ray.schema import ERROR, error_value

__all__ = ["Book", "GuardedEncoder", "GuardedStage", "TrackedStage", "loaded", "watch"]

logger = logging.getLogger(__name__)

# Workers that may die with a shard at a stage before the job counts as one that cannot go on. One death is
# enough to be careful and one more to find an item, so these are of other causes.
_MOST_DEATHS = 10
_MOST_BEGUN = 60  # the same, of workers that die after the stage, with what it made
_MOST_LOADING_DEATHS = 4
# More pieces of one shard than that are not poison: the device, or the machine, is broken.
_MOST_CULPRITS = 20
_KEY = ("item_index", "channel", "segment_index")
_LOADING_WAITS_S = (2.0, 10.0)  # before a model that could not be loaded is tried again


class Book(Protocol):
    """What stages need of ``Attempts``, wherever it runs."""

    def begin(self, stage: str, shard: str) -> Record: ...

    def mark(self, stage: str, shard: str, keys: Sequence[Key], *, alone: bool = False) -> None: ...

    def finish(self, stage: str, shard: str) -> None: ...


class TrackedStage:
    """A stage whose shards are in the book, and which ends the job where its workers die again and again."""

    def __init__(self, stage: Stage, *, name: str, book: Book) -> None:
        self._stage = stage
        self._name = name
        self._book = book
        self.__name__ = name  # what Ray shows

    def __call__(self, table: pa.Table) -> pa.Table:
        shard = _shard_of(table)
        _check(self._name, shard, self._book.begin(self._name, shard))
        with placed(self._name, shard):
            table = self._stage(table)
        self._book.finish(self._name, shard)
        return table


class GuardedStage:
    """A stage that takes and returns tables of items or segments, safe from what is in them.

    Args:
        stage: It passes rows with an ``error`` on, and what it makes of an item depends on no other.
        name: Of the stage.
        maker: The pickled function that makes the stage, for a process of its own.
        book: Where attempts are noted.
        item_deadline_s: A table may take so many seconds, and as many more as its audio has.
    """

    def __init__(self, stage: Stage, *, name: str, maker: bytes, book: Book, item_deadline_s: float) -> None:
        self._stage = stage
        self._maker = maker
        self._name = name
        self._book = book
        self._item_deadline_s = item_deadline_s
        self.__name__ = name

    def __call__(self, table: pa.Table) -> pa.Table:
        shard = _shard_of(table)
        record = self._book.begin(self._name, shard)
        _check(self._name, shard, record)
        with placed(self._name, shard):
            if record.is_deadly:
                with ItemProcess(self._maker) as process:
                    table = self._one_by_one(
                        table, lambda item: process.run(item, deadline_s=self._deadline_s(item))
                    )
            else:
                table = self._at_once(table)
        self._book.finish(self._name, shard)
        return table

    def _at_once(self, table: pa.Table) -> pa.Table:
        try:
            with watch(self._deadline_s(table)):
                return self._stage(table)
        except Exception as error:
            if _is_of_the_job(error):
                raise
            logger.exception("%s failed on a shard; each of its items is tried alone", self._name)

        def run(item: pa.Table) -> pa.Table:
            with watch(self._deadline_s(item)):
                return self._stage(item)

        return self._one_by_one(table, run)

    def _one_by_one(self, table: pa.Table, run: Stage) -> pa.Table:
        done: list[pa.Table] = []
        for index in pc.unique(table.column("item_index")):
            item = table.filter(pc.equal(table.column("item_index"), index))
            try:
                done.append(run(item))
            except Exception as error:
                if _is_of_the_job(error):
                    raise
                done.append(self._stage(_rejected(item, _item_error(error), self._name)))
            self._book.mark(self._name, _shard_of(item), ())  # it moves, however slowly
        return pa.concat_tables([part.select(done[0].column_names) for part in done])

    def _deadline_s(self, table: pa.Table) -> float:
        return self._item_deadline_s + _seconds_of(table)


class GuardedEncoder:
    """The encoder, safe from its segments.

    Args:
        make: Makes the encoder; it is given a function to call with the row numbers of each batch before the
            batch is touched, and one to call with its seconds of audio afterwards.
        book: Where attempts are noted.
        item_deadline_s: A batch may take so many seconds, and as many more as its audio has.
        report: Called with the seconds of audio of each batch as it is done.
    """

    def __init__(
        self,
        make: Callable[[Callable[[Sequence[int]], None], Callable[[float], None]], Stage],
        *,
        book: Book,
        item_deadline_s: float,
        report: Callable[[float], None],
    ) -> None:
        self._name = "encode"
        self._book = book
        self._item_deadline_s = item_deadline_s
        self._report = report
        self._table: pa.Table | None = None
        self._shard = ""
        self._is_probe = False
        self._encode = make(self._before, self._after)

    def __call__(self, table: pa.Table) -> pa.Table:
        self._shard = _shard_of(table)
        record = self._book.begin(self._name, self._shard)
        _check(self._name, self._shard, record, table)
        row_of = {key: row for row, key in enumerate(_keys(table))}
        error = WorkerDeathError(
            "it ended a worker that encoded it with others, or took too long, and then one that encoded it "
            "alone; leave it out, or raise item_deadline_seconds"
        )
        table = _rejected(table, error, self._name, {row_of[key] for key in record.culprits})
        alone = [row_of[key] for key in record.apart if key not in record.culprits]
        together = [row for row in range(table.num_rows) if row not in alone]
        with placed(self._name, self._shard):
            for key in record.suspects:
                if key not in record.culprits:  # by itself first, so that a batch is what it always is
                    self._run(table.slice(row_of[key], 1), is_probe=True)
            parts = [self._run(table.take(pa.array(together, pa.int64())) if alone else table)]
            parts += [self._run(table.slice(row, 1)) for row in alone]
        self._book.finish(self._name, self._shard)
        return pa.concat_tables(parts)

    def _run(self, table: pa.Table, *, is_probe: bool = False) -> pa.Table:
        self._table, self._is_probe = table, is_probe
        try:
            done = self._watched(table)
        except Exception as error:
            if _is_of_the_job(error):
                raise
            if table.num_rows == 1:
                done = self._watched(_rejected(table, _item_error(error), self._name))
            else:
                logger.exception("encode failed on a shard; each of its segments is tried alone")
                done = pa.concat_tables([self._run(table.slice(row, 1)) for row in range(table.num_rows)])
        self._book.mark(self._name, self._shard, ())
        return done

    def _watched(self, table: pa.Table) -> pa.Table:
        try:
            return self._encode(table)
        finally:  # however it ends: a watch that is left behind ends the process later
            faulthandler.cancel_dump_traceback_later()

    def _before(self, rows: Sequence[int]) -> None:
        assert self._table is not None
        batch = self._table.select([*_KEY, "duration_s"]).take(pa.array(rows, pa.int64()))
        self._book.mark(self._name, self._shard, _keys(batch), alone=self._is_probe)
        seconds = pc.sum(batch.column("duration_s")).as_py() or 0.0
        faulthandler.dump_traceback_later(self._item_deadline_s + seconds, exit=True, file=2)

    def _after(self, seconds: float) -> None:
        if not self._is_probe:
            self._report(seconds)


def loaded(make: Callable[[], Stage], *, name: str, worker: str, book: Book) -> Stage:
    """Makes the stage of an actor. Where that fails again and again, the stage raises the error when called.

    An actor whose constructor raises tells the driver of it in a text alone, so it does not raise.
    """
    work = f"{name}: loading"
    record = book.begin(work, worker)
    if record.deaths > _MOST_LOADING_DEATHS:
        return _failing(
            JobError(
                f"{record.deaths} workers ended while they loaded what {name} needs; see that the machine "
                "has the memory for it"
            ),
            name,
        )
    for wait_s in (*_LOADING_WAITS_S, None):
        try:
            stage = make()
            break
        except Exception as error:
            logger.exception("%s cannot load", name)
            if wait_s is None:
                stage = _failing(error, name)
                break
            time.sleep(wait_s)
    book.finish(work, worker)
    return stage


@contextmanager
def watch(deadline_s: float) -> Iterator[None]:
    """Ends this process where the block takes longer: a hang in native code knows no other way out."""
    faulthandler.dump_traceback_later(deadline_s, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _failing(error: Exception, name: str) -> Stage:
    def fail(table: pa.Table) -> pa.Table:
        with placed(name):
            raise error

    return fail


def _check(name: str, shard: str, record: Record, table: pa.Table | None = None) -> None:
    """Refuses to go on where workers died of a shard too often."""
    what = ""
    if record.suspects and table is not None:
        recordings = table.filter(pc.equal(table.column("item_index"), record.suspects[0][0]))
        what = f", the last with {recordings.column('recording_id')[0].as_py()!r} in hand"
    if record.deaths > _MOST_DEATHS or record.begun > _MOST_BEGUN:
        raise JobError(
            f"{record.begun - 1} workers ended at {name} with shard {shard}{what}, and no single item is to "
            "blame; look for what ends them, lower shard_seconds if it is memory, and run again"
        )
    if len(record.culprits) > _MOST_CULPRITS:
        raise JobError(
            f"{len(record.culprits)} segments of shard {shard} each ended a worker at {name}{what}, which is "
            "more likely the device than they; mend it and run again"
        )


def _is_of_the_job(error: Exception) -> bool:
    return isinstance(error, W2vRayError) and not isinstance(error, ItemError)


def _item_error(error: Exception) -> ItemError:
    if isinstance(error, ItemError):
        return error
    return StageError(f"the stage failed with {type(error).__name__}: {error}; please report it")


def _rejected(table: pa.Table, error: ItemError, stage: str, rows: Collection[int] | None = None) -> pa.Table:
    """The table with the error in these rows, or in all."""
    if rows is not None and not rows:
        return table
    has_errors = "error" in table.column_names
    errors = table.column("error").to_pylist() if has_errors else [None] * table.num_rows
    for row in range(table.num_rows) if rows is None else rows:
        errors[row] = errors[row] or error_value(stage, error)
    column = pa.array(errors, ERROR)
    if not has_errors:
        return table.append_column(pa.field("error", ERROR), column)
    return table.set_column(table.column_names.index("error"), pa.field("error", ERROR), column)


def _keys(table: pa.Table) -> list[Key]:
    channels = pc.fill_null(table.column("channel"), -1).to_pylist()
    segments = pc.fill_null(table.column("segment_index"), 0).to_pylist()
    return list(zip(table.column("item_index").to_pylist(), channels, segments, strict=True))


def _shard_of(table: pa.Table) -> str:
    return str(table.column("shard_id")[0].as_py())


def _seconds_of(table: pa.Table) -> float:
    name = "duration_s" if "duration_s" in table.column_names else "planned_s"
    return float(pc.sum(table.column(name)).as_py() or 0.0) if name in table.column_names else 0.0
