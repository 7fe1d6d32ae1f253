"""How the item that kills is found: the book of attempts, the process of its own, and the encoder's marks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pytest
from ray import cloudpickle

from w2v_ray import CheckpointError, JobError, OutputError, StageError, WorkerDeathError
from w2v_ray.attempts import Attempts
from w2v_ray.item_process import ItemProcess
from w2v_ray.quarantine import GuardedEncoder, GuardedStage, TrackedStage, loaded
from w2v_ray.schema import ERROR


def items(*names: str) -> pa.Table:
    return pa.table(
        {
            "shard_id": ["s"] * len(names),
            "item_index": pa.array(range(len(names)), pa.int32()),
            "channel": pa.nulls(len(names), pa.int32()),
            "segment_index": pa.array([0] * len(names), pa.int32()),
            "recording_id": list(names),
            "duration_s": [1.0] * len(names),
            "error": pa.nulls(len(names), ERROR),
        }
    )


def make_stage() -> Callable[[pa.Table], pa.Table]:
    """A stage that does to the process what the names say, and counts the items it is given at once."""

    def stage(table: pa.Table) -> pa.Table:
        for name, error in zip(table["recording_id"].to_pylist(), table["error"].to_pylist(), strict=True):
            if error is not None:
                continue
            if name == "crash":
                signal.raise_signal(signal.SIGSEGV)
            if name == "hang":
                time.sleep(600)
            if name == "memory":
                bytearray(6 << 30)
            if name == "exception":
                raise KeyError("missing")
            if name == "job":
                raise OutputError("the store refuses")
        return table.append_column("at_once", pa.array([table.num_rows] * table.num_rows, pa.int32()))

    return stage


def guarded(book: Attempts, **settings: Any) -> GuardedStage:
    maker = cloudpickle.dumps(make_stage)
    return GuardedStage(
        make_stage(), name="decode", maker=maker, book=book, **{"item_deadline_s": 60.0, **settings}
    )


def errors_of(table: pa.Table) -> dict[str, str | None]:
    errors = [error and error["error_class"] for error in table["error"].to_pylist()]
    return dict(zip(table["recording_id"].to_pylist(), errors, strict=True))


def test_a_shard_without_trouble_is_done_at_once() -> None:
    done = guarded(Attempts())(items("a", "b"))
    assert done["at_once"].to_pylist() == [2, 2]
    assert errors_of(done) == {"a": None, "b": None}


def test_an_exception_costs_its_item_alone() -> None:
    done = guarded(Attempts())(items("a", "exception", "b"))
    assert errors_of(done) == {"a": None, "exception": "StageError", "b": None}
    (error,) = [error for error in done["error"].to_pylist() if error]
    assert error["stage"] == "decode"
    assert error["message"] == "the stage failed with KeyError: 'missing'; please report it"


def test_an_error_of_the_job_ends_the_job() -> None:
    with pytest.raises(OutputError, match="the store refuses"):
        guarded(Attempts())(items("a", "job"))
    book = Attempts()
    book.begin("decode", "s")
    with pytest.raises(OutputError, match="the store refuses"):  # from the process of its own, too
        guarded(book)(items("a", "job"))


def test_after_a_death_each_item_has_a_process_to_end() -> None:
    book = Attempts()
    book.begin("decode", "s")  # and never finished
    names = ["a", "crash", "b", "memory", "hang", "c", "exception"]
    began = time.monotonic()
    done = guarded(book, item_deadline_s=2.0)(items(*names))
    assert time.monotonic() - began < 300
    assert errors_of(done) == {
        **dict.fromkeys("abc"),
        "crash": "WorkerDeathError",
        "hang": "WorkerDeathError",
        "memory": "StageError",
        "exception": "StageError",
    }
    said = {
        name: error and error["message"] for name, error in zip(names, done["error"].to_pylist(), strict=True)
    }
    assert "signal SIGSEGV" in said["crash"]
    assert "MemoryError" in said["memory"]
    assert "was not done after 3 s" in said["hang"]
    assert set(done["at_once"].to_pylist()) == {1}
    assert book.begin("decode", "s").deaths == 0  # it came to its end


def test_the_process_lives_on_from_item_to_item_and_says_why_it_cannot_start() -> None:
    with ItemProcess(cloudpickle.dumps(lambda: _with_pid)) as process:
        pids = {process.run(items("a"), deadline_s=60)["pid"][0].as_py() for _ in range(2)}
    assert len(pids) == 1
    assert os.getpid() not in pids
    with ItemProcess(cloudpickle.dumps(_fail)) as process, pytest.raises(JobError, match="no such model"):
        process.run(items("a"), deadline_s=60)
    with ItemProcess(cloudpickle.dumps(make_stage)) as process:
        with pytest.raises(WorkerDeathError, match="SIGSEGV"):
            process.run(items("crash"), deadline_s=60)
        with pytest.raises(StageError, match="KeyError"):
            process.run(items("exception"), deadline_s=60)  # in a new one


def _with_pid(table: pa.Table) -> pa.Table:
    return table.append_column("pid", pa.array([os.getpid()] * table.num_rows))


def _fail() -> Callable[[pa.Table], pa.Table]:
    raise CheckpointError("no such model")


class Died(BaseException):
    """The end of a worker: what is not caught by anything."""


class Encoder:
    """Takes rows in batches of two; dies of some."""

    def __init__(self, kills: Callable[[list[str]], bool], before: Any, report: Any) -> None:
        self._kills, self._before, self._report = kills, before, report
        self.batches: list[list[str]] = []

    def __call__(self, table: pa.Table) -> pa.Table:
        errors = table["error"].to_pylist()
        rows = [row for row in range(table.num_rows) if errors[row] is None]
        names = table["recording_id"].to_pylist()
        for begin in range(0, len(rows), 2):
            batch = rows[begin : begin + 2]
            self._before(batch)
            self.batches.append([names[row] for row in batch])
            if self._kills(self.batches[-1]):
                raise Died
            self._report(1.0 * len(batch))
        return table


def encode_until_done(
    kills: Callable[[list[str]], bool], table: pa.Table, book: Attempts | None = None
) -> tuple[pa.Table, int, list[list[str]], float]:
    """The result, the workers that died, the batches of the last worker, and the seconds reported."""
    book, seconds, deaths = book or Attempts(), [], 0
    while True:
        made: list[Encoder] = []

        def make(before: Any, report: Any, made: list[Encoder] = made) -> Encoder:
            made.append(Encoder(kills, before, report))
            return made[-1]

        stage = GuardedEncoder(make, book=book, item_deadline_s=60.0, report=seconds.append)
        try:
            return stage(table), deaths, made[0].batches, sum(seconds)
        except Died:
            deaths += 1


def test_a_deadly_segment_costs_two_workers() -> None:
    table = items("a", "b", "c", "deadly", "e")
    done, deaths, batches, _ = encode_until_done(lambda batch: "deadly" in batch, table)
    assert deaths == 2
    assert errors_of(done) == {"a": None, "b": None, "c": None, "deadly": "WorkerDeathError", "e": None}
    # What is left is encoded as if the deadly one had never been there.
    assert batches[-2:] == [["a", "b"], ["c", "e"]]


def test_of_two_channels_of_an_item_only_the_deadly_one_is_blamed() -> None:
    table = items("left", "deadly")
    for name, values in (("item_index", [0, 0]), ("channel", [0, 1])):
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, pa.int32()))
    done, deaths, _, _ = encode_until_done(lambda batch: "deadly" in batch, table)
    assert deaths == 2
    assert errors_of(done) == {"left": None, "deadly": "WorkerDeathError"}


def test_two_deadly_segments_in_one_batch_cost_three() -> None:
    done, deaths, _, _ = encode_until_done(
        lambda batch: bool({"x", "y"} & set(batch)), items("a", "b", "x", "y")
    )
    assert deaths <= 4
    assert errors_of(done) == {"a": None, "b": None, "x": "WorkerDeathError", "y": "WorkerDeathError"}


def test_an_accident_costs_no_segment_and_counts_no_audio_twice() -> None:
    left = [True]
    done, deaths, batches, seconds = encode_until_done(
        lambda batch: batch == ["c", "d"] and bool(left) and left.pop(), items("a", "b", "c", "d")
    )
    assert deaths == 1
    assert set(errors_of(done).values()) == {None}
    assert batches == [["c"], ["d"], ["a", "b"], ["c", "d"]]
    assert seconds == 2 + 4  # of the worker that died, and of the other; none for the trial


def test_segments_that_kill_only_together_are_encoded_apart() -> None:
    done, deaths, batches, _ = encode_until_done(lambda batch: batch == ["c", "d"], items("a", "b", "c", "d"))
    assert deaths == 2
    assert set(errors_of(done).values()) == {None}
    assert batches[-2:] == [["c"], ["d"]]
    assert sorted(done["recording_id"].to_pylist()) == ["a", "b", "c", "d"]


def test_a_segment_is_blamed_more_slowly_where_workers_die_anyway() -> None:
    book = Attempts()
    for shard in ("p", "q", "r"):  # three accidents
        book.begin("encode", shard)
        book.begin("encode", shard)
        book.finish("encode", shard)
    _, deaths, _, _ = encode_until_done(lambda batch: "deadly" in batch, items("a", "deadly"), book)
    assert deaths == 3


def test_a_device_that_kills_with_everything_ends_the_job() -> None:
    with pytest.raises(JobError, match=r"21 segments of shard s each ended a worker at encode.*the device"):
        encode_until_done(lambda batch: True, items(*(f"n{index}" for index in range(30))))


def test_a_shard_that_kills_without_a_culprit_ends_the_job() -> None:
    def attempt(book: Attempts) -> None:
        def die(table: pa.Table) -> pa.Table:
            raise Died

        TrackedStage(die, name="write", book=book)(items("a"))

    book = Attempts()
    for _ in range(11):
        with pytest.raises(Died):
            attempt(book)
    with pytest.raises(JobError, match="11 workers ended at write with shard s, and no single item"):
        attempt(book)


def test_what_a_stage_makes_again_counts_as_no_death() -> None:
    book = Attempts()
    stage = TrackedStage(lambda table: table, name="write", book=book)
    for _ in range(3):
        stage(items("a"))
    record = book.begin("write", "s")
    assert (record.begun, record.deaths) == (4, 0)


def test_the_state_says_what_is_done_and_in_hand() -> None:
    now = [0.0]
    book = Attempts(clock=lambda: now[0])
    for shard in ("p", "q"):
        book.begin("decode", shard)
    book.finish("decode", "p")
    now[0] = 7.0
    (state,) = book.state()
    assert (state.stage, state.num_begun, state.num_done, state.in_hand) == ("decode", 2, 1, (("q", 7.0),))


def test_what_waits_is_done_before_and_not_begun_here() -> None:
    book = Attempts()
    queue = {"encode": "decode", "write": "encode"}
    for shard in ("p", "q", "r"):
        book.begin("decode", shard)
        book.finish("decode", shard)
    assert book.waiting(queue) == {"encode": 3, "write": 0}
    book.begin("encode", "p")
    book.begin("encode", "p")  # again, as its worker died
    assert book.waiting(queue) == {"encode": 2, "write": 0}
    book.finish("encode", "p")
    book.begin("decode", "p")  # again, as what was made of it is lost
    book.finish("decode", "p")
    book.begin("encode", "p")
    assert book.waiting(queue) == {"encode": 2, "write": 1}
    book.finish("write", "p")
    book.finish("write", "q")  # of a worker that began before the book's node was lost
    assert book.waiting(queue) == {"encode": 2, "write": 0}


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr("w2v_ray.quarantine.time.sleep", waits.append)
    return waits


def test_loading_is_tried_again_and_then_fails_with_its_own_error(no_waiting: list[float]) -> None:
    calls: list[int] = []

    def make(fails: int) -> Callable[[pa.Table], pa.Table]:
        calls.append(1)
        if len(calls) <= fails:
            raise CheckpointError("config.json is not there")
        return lambda table: table

    table = items("a")
    stage = loaded(partial(make, 1), name="encode", worker="w", book=Attempts())
    assert stage(table) is table
    assert no_waiting == [2.0]
    calls.clear()
    with pytest.raises(CheckpointError, match=r"config\.json is not there"):
        loaded(partial(make, 99), name="encode", worker="w", book=Attempts())(table)
    assert len(calls) == 3


def test_workers_that_end_while_they_load_end_the_job() -> None:
    book = Attempts()
    for _ in range(5):
        book.begin("encode: loading", "w")  # and never came to the end of it
    with pytest.raises(JobError, match="5 workers ended while they loaded what encode needs"):
        loaded(lambda: lambda table: table, name="encode", worker="w", book=book)(items("a"))


def test_a_book_that_is_new_takes_up_what_is_going_on() -> None:
    book = Attempts()
    keys: Sequence[tuple[int, int, int]] = [(0, -1, 0)]
    book.mark("encode", "s", keys)  # of a worker that began before the book's node was lost
    book.finish("encode", "s")
    assert book.begin("encode", "s").deaths == 0


def test_the_book_forgets_published_shards_and_keeps_the_others() -> None:
    book = Attempts()
    for shard in ("done", "other"):
        for stage in ("read", "write"):
            book.begin(stage, shard)
    book.finish("read", "done")
    book.forget(["done"])
    book.finish("write", "done")  # a message that was overtaken leaves no entry behind
    assert [state.num_done for state in book.state()] == [1, 1]
    assert [[shard for shard, _ in state.in_hand] for state in book.state()] == [["other"], ["other"]]
    assert book.begin("read", "done").begun == book.begin("write", "done").begun == 1
    again = book.begin("read", "other")
    assert (again.begun, again.deaths) == (2, 1)
