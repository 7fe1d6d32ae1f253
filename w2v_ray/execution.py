"""Running a flow on Ray: starting Ray, watching a run from beside it, and ending one that cannot go on."""

from __future__ import annotations

import gc
import logging
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, ClassVar, cast

import pyarrow as pa
import ray
from ray._private import worker
from ray.actor import ActorHandle
from ray.data import DataContext, Dataset
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.util.client import ray as client
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from w2v_ray.attempts import Attempts, Key, Record, StageState
from w2v_ray.errors import JobError
from w2v_ray.failures import expected_error, unexpected_error
from w2v_ray.plan import Plan
from w2v_ray.progress import Meter, Progress, StageTotals
from w2v_ray.ray_address import check_ray_address
from w2v_ray.ray_auth import warn_of_open_cluster
from w2v_ray.run_record import Published, RunRecord
from w2v_ray.telemetry import RayMetrics
from w2v_ray.termination import Ending, deferred_signals, kept_sigterm

__all__ = ["RemoteBook", "Run", "data_settings", "running_ray"]

# A shard must stay one block after the encoder, however many log-probabilities it has.
_MAX_BLOCK_BYTES = 8 * 2**30
_POLL_S = 0.5
_SAMPLE_S = 2.0  # between points of a run's record
_ANSWER_S = 10.0  # within which an actor that only counts has answered
_LAST_ANSWER_S = 2.0  # the same where a run does not end well, and Ray may be gone before it
_LAST_WORDS_S = 1.0  # in which what the last workers told has come to the meter
_LOG_LEVEL_LINE = b"Set ray log level from environment variable"


class RemoteBook:
    """The book of attempts, as a worker elsewhere uses it."""

    def __init__(self, attempts: ActorHandle[Attempts]) -> None:
        self._attempts = attempts

    def begin(self, stage: str, shard: str) -> Record:
        return cast(Record, ray.get(self._attempts.begin.remote(stage, shard)))

    def mark(self, stage: str, shard: str, keys: Sequence[Key], *, alone: bool = False) -> None:
        # Waited for: a mark that is still under way when the process dies is no mark.
        ray.get(self._attempts.mark.remote(stage, shard, keys, alone=alone))

    def finish(self, stage: str, shard: str) -> None:
        self._attempts.finish.remote(stage, shard)


class Run:
    """One run over what is pending of a plan, with the actors that count what it does.

    Args:
        plan: Of the job.
        stall_s: Seconds in which nothing moves before the run counts as stalled.
        queues: The stages before which shards wait, each with the one whose shards it takes.
        on_progress: Called about twice a second with how far the run is.
        record: What is written of the run; None: nothing is measured, and progress is told by whole shards.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        stall_s: float,
        queues: Mapping[str, str],
        on_progress: Callable[[Progress], None] | None = None,
        record: RunRecord | None = None,
    ) -> None:
        # Beside the driver: a machine that comes and goes with the work must not take the counts with it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        counter: dict[str, Any] = {
            "num_cpus": 0,
            "max_restarts": -1,
            "max_task_retries": -1,
            "scheduling_strategy": here,
        }
        self.meter: ActorHandle[Meter] | None = None
        if record is not None:
            exporter = partial(RayMetrics, record.run)
            self.meter = cast("ActorHandle[Meter]", ray.remote(Meter).options(**counter).remote(exporter))
        self.attempts = cast("ActorHandle[Attempts]", ray.remote(Attempts).options(**counter).remote())
        self._plan = plan
        self._planned_s, self._pending_s = plan.planned_s, plan.pending_s
        self._stall_s = stall_s
        self._queues = dict(queues)
        self._on_progress = on_progress
        self._record = record
        self._summaries: list[dict[str, Any]] = []
        # Added up as they change: with a million shards, sums twice a second would take the driver's time.
        self._published = Published()
        self._num_forgotten = 0  # by the book, of the summaries
        self._encoded_s = 0.0
        self._queue = dict.fromkeys(queues, 0)
        self._began = self._moved_at = time.monotonic()
        self._moved: object = None
        self._first: tuple[float, float] = (0.0, 0.0)
        self._stalled: JobError | None = None

    def gather(self, ds: Dataset) -> list[dict[str, Any]]:
        """Runs the flow to its end and returns the summaries of the shards.

        Raises:
            KeyboardInterrupt: The process was told to end: `Terminated` where it was by SIGTERM.
            JobError: Nothing moved for too long, workers died again and again, or what nobody expected.
            W2vRayError: As a stage raised it.
        """
        ds.context.custom_execution_callback_classes = [_Executors]
        stop = threading.Event()
        with self._recorded(), deferred_signals() as ending:
            thread = threading.Thread(target=self._watch, args=(stop, ending), name="watch", daemon=True)
            thread.start()
            try:
                for batch in ds.iter_batches(batch_size=None, batch_format="pyarrow"):
                    self._take(cast(pa.Table, batch).to_pylist())
            except Exception as error:
                ours = ending.error or self._stalled or expected_error(error) or self._unexpected(error)
                # Workers end when nothing refers to them: an error that somebody keeps must not, with their
                # GPUs.
                traceback.clear_frames(error.__traceback__)
                del ds
                gc.collect()
                raise ours from error
            finally:
                stop.set()
                thread.join()
            if (told := ending.error or self._stalled) is not None:
                raise told  # its flow was ended, which looks like the end of it
            self._poll()
            progress = self._progress()
            self._sample(progress)
            if self._on_progress is not None:
                self._on_progress(progress)
        return self._summaries

    def _unexpected(self, error: Exception) -> JobError:
        node = worker._global_node  # there is no public way to ask
        assert node is not None, "it is one of Ray's processes"
        record = None if self._record is None else self._record.path
        return unexpected_error(error, record=record, logs=str(node.get_logs_dir_path()))

    def _take(self, summaries: Sequence[dict[str, Any]]) -> None:
        for summary in summaries:
            self._published.add(summary, planned_s=self._plan.shard_seconds[summary["shard_id"]])
            del summary["quality"]  # added up, and the longest part of what may be millions
            self._summaries.append(summary)

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        if self._record is not None:
            self._record.update(self._progress(), self._published, {}, {})
        try:
            yield
        except KeyboardInterrupt:
            self._end("interrupted")
            raise
        except BaseException as error:
            self._end("failed", error)
            raise
        self._end("done")

    def _watch(self, stop: threading.Event, ending: Ending) -> None:
        next_check = next_sample = time.monotonic()
        while not stop.wait(_POLL_S):
            told = self._stalled
            if ending.error is not None:
                told = JobError("it was told to end")
                if self._record is not None:  # before Ray is asked anything, which may be gone
                    self._record.end("interrupted")
            if told is not None and _Executors.running:
                for executor in list(_Executors.running):
                    executor.shutdown(force=True, exception=told)
                return
            try:
                published = [summary["shard_id"] for summary in self._summaries[self._num_forgotten :]]
                self._num_forgotten += len(published)
                self.attempts.forget.remote(published)
                self._poll()
                progress = self._progress()
                if self._on_progress is not None:
                    self._on_progress(progress)
                now = time.monotonic()
                if now >= next_sample:
                    next_sample = now + _SAMPLE_S
                    self._sample(progress)
                if now >= next_check:
                    next_check += min(10.0, self._stall_s / 4)
                    self._check_stall()
            except ray.exceptions.RayError as error:  # the next look may find them again
                logging.getLogger(__name__).warning("the actors that count do not answer: %s", error)

    def _poll(self, within_s: float = _ANSWER_S) -> None:
        """Asks the actors what can be seen of the run from one moment to the next."""
        asked: list[Any] = [self.attempts.waiting.remote(self._queues)]
        if self.meter is not None:
            asked.append(self.meter.encoded_s.remote())
        self._queue, *encoded = ray.get(asked, timeout=within_s)
        self._encoded_s = encoded[0] if encoded else 0.0

    def _sample(self, progress: Progress, *, within_s: float = _ANSWER_S, is_last: bool = False) -> None:
        if self.meter is None or self._record is None:
            return
        self.meter.show.remote(progress)
        asked = [self.meter.totals.remote(), self.meter.notes.remote()]
        totals, notes = ray.get(asked, timeout=within_s)
        self._record.update(progress, self._published, totals, notes, is_last=is_last)

    def _end(self, state: str, error: BaseException | None = None) -> None:
        """Completes the record, with what workers told before they ended."""
        if self.meter is None or self._record is None:
            return
        with suppress(ray.exceptions.RayError):  # then it has what was known before
            give_up = time.monotonic() + _LAST_WORDS_S
            while state == "done" and time.monotonic() < give_up:
                totals = cast(dict[str, StageTotals], ray.get(self.meter.totals.remote(), timeout=_ANSWER_S))
                if totals.get("write_parquet", StageTotals()).shards >= len(self._summaries):
                    break
                time.sleep(0.05)
            within_s = _ANSWER_S if state == "done" else _LAST_ANSWER_S
            self._poll(within_s)
            self._sample(self._progress(), within_s=within_s, is_last=True)
        self._record.end(state, error)

    def _check_stall(self) -> None:
        states = cast(list[StageState], ray.get(self.attempts.state.remote(), timeout=_ANSWER_S))
        moved = (
            len(self._summaries),
            self._encoded_s,
            [(state.num_begun, state.num_done, state.num_marked) for state in states],
        )
        now = time.monotonic()
        if moved != self._moved:
            self._moved, self._moved_at = moved, now
        elif now - self._moved_at >= self._stall_s:
            doing = []
            for state in states:
                hand = [f"shard {shard} in hand for {age_s:.0f} s" for shard, age_s in state.in_hand[:3]]
                more = [f"{len(state.in_hand) - 3} more in hand"] if len(state.in_hand) > 3 else []
                doing.append(", ".join([f"{state.stage} {state.num_done} done", *hand, *more]))
            self._stalled = JobError(
                f"nothing moved for {now - self._moved_at:.0f} s ({'; '.join(doing) or 'no worker began'}); "
                "what is published stays: run again, with a longer stall_seconds if work was going on"
            )

    def _progress(self) -> Progress:
        published = self._published
        done_s = min(self._pending_s, max(published.planned_s, self._encoded_s))
        elapsed_s = time.monotonic() - self._began
        if done_s > 0 and self._first == (0.0, 0.0):
            self._first = elapsed_s, done_s
        return Progress(
            planned_s=self._planned_s,
            before_s=self._planned_s - self._pending_s,
            done_s=done_s,
            num_shards=self._plan.num_shards,
            num_shards_done=self._plan.num_shards - self._plan.num_pending + published.num_shards,
            num_rejects=published.num_rejects,
            elapsed_s=elapsed_s,
            first_elapsed_s=self._first[0],
            first_done_s=self._first[1],
            queue=self._queue,
        )


class _Executors(ExecutionCallback):
    """The flows that run in this process: Ray Data has no other way to end one from beside it."""

    running: ClassVar[list[Any]] = []

    def before_execution_starts(self, executor: Any) -> None:
        self.running.append(executor)

    def after_execution_succeeds(self, executor: Any) -> None:
        self.running.remove(executor)

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        self.running.remove(executor)


@contextmanager
def running_ray() -> Iterator[None]:
    """Ray as it runs already, or the cluster that RAY_ADDRESS names, or a new one on this machine.

    Raises:
        ConfigError: It is reached through Ray Client.
    """
    if ray.is_initialized():
        if client.is_connected():  # type: ignore[no-untyped-call]
            check_ray_address("ray://")
        warn_of_open_cluster()
        yield
        return
    quiet = logging.getLogger().getEffectiveLevel() > logging.DEBUG
    shown = worker._worker_logs_enabled
    # Ray prints what becomes of each task whose worker ends to standard output, where summaries go, with
    # advice on retries that are bounded here; there is no public way to stop it.
    worker._worker_logs_enabled = not quiet
    try:
        with _without_log_level_line(), kept_sigterm():
            ray.init(
                log_to_driver=not quiet,
                logging_level=logging.ERROR if quiet else logging.INFO,
                include_dashboard=False,
            )
        warn_of_open_cluster()
        yield
    finally:
        ray.shutdown()
        worker._worker_logs_enabled = shown


@contextmanager
def _without_log_level_line() -> Iterator[None]:
    """Drops the one line in which Ray's native part tells that it is quiet, and shows all others."""
    if "RAY_BACKEND_LOG_LEVEL" not in os.environ:
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            for line in caught:
                if _LOG_LEVEL_LINE not in line:
                    os.write(2, line)


@contextmanager
def data_settings(store_bytes: int) -> Iterator[None]:
    """Ray Data's settings for the time of the run, which may hold that much between its stages."""
    # Ray Data logs a line for each execution, and one for the bars that are off; progress is shown here. It
    # logs the traceback of what ends the flow, twice, and raises it as well.
    log = logging.getLogger("ray.data")
    level = log.level
    if logging.getLogger().getEffectiveLevel() > logging.DEBUG:
        log.setLevel(logging.CRITICAL)
    context = DataContext.get_current()
    names = (
        "target_max_block_size",
        "enable_progress_bars",
        "print_on_execution_start",
        "raise_original_map_exception",  # a wrapped one loses its cause on the way to the driver
        "execution_no_progress_timeout_s",  # Ray's own guard, which knows nothing of batches and deadlines
    )
    before = {name: getattr(context, name) for name in names if hasattr(context, name)}
    limits = context.execution_options.resource_limits
    for name, value in zip(names, (_MAX_BLOCK_BYTES, False, False, True, -1), strict=True):
        if name in before:
            setattr(context, name, value)
    context.execution_options.resource_limits = limits.copy(object_store_memory=store_bytes)
    try:
        yield
    finally:
        context.execution_options.resource_limits = limits
        for name, value in before.items():
            setattr(context, name, value)
        log.setLevel(level)
