"""The pipeline as a job runs it, on this machine alone, over a sample that keeps it busy for a while."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pyarrow as pa

from w2v_ray.benchmark.report import WholeReport
from w2v_ray.config import JobConfig
from w2v_ray.job import prepare_sample
from w2v_ray.pipeline import run_plan
from w2v_ray.progress import Progress

__all__ = ["run_whole"]

_WORK_S = 15.0  # of the clock, once the workers are up
_SHARDS_EACH = 6  # of an encoder: while it has one in hand, others are read and written
_SHORTEST_S, _LONGEST_S = 10.0, 1200.0  # of a shard
_MEANINGFUL_S = 2.0


def run_whole(job: JobConfig, sample: pa.Table, *, rate: float, num_encoders: int) -> WholeReport:
    """Runs a job over a sample, or a part or several rounds of it.

    Args:
        job: Its output is new.
        sample: Of `w2v_ray.plan.take_sample`.
        rate: That is expected, which says how much audio is enough.
        num_encoders: That run at once.

    Raises:
        W2vRayError: As of `w2v_ray.run`.
    """
    audio_s = rate * _WORK_S
    shard_s = audio_s / (_SHARDS_EACH * num_encoders)
    job = replace(job, shard_seconds=min(_LONGEST_S, max(_SHORTEST_S, shard_s)))
    plan = prepare_sample(job, sample, seconds=audio_s)
    startup_s, last = 0.0, None
    began = time.monotonic()

    def watch(progress: Progress) -> None:
        nonlocal startup_s, last
        if progress.done_s > 0 and not startup_s:
            startup_s = time.monotonic() - began
        last = progress

    with _this_machine_alone():
        summary = run_plan(job, plan, on_progress=watch)
    wall_s = time.monotonic() - began
    assert last is not None, "the end of a run is told"
    worked_s, done_s = last.elapsed_s - last.first_elapsed_s, last.done_s - last.first_done_s
    if worked_s < _MEANINGFUL_S:  # all was done before it was first looked at
        worked_s, done_s = last.elapsed_s, last.done_s
    return WholeReport(
        audio_s=summary.audio_s,
        num_shards=summary.num_shards,
        wall_s=wall_s,
        startup_s=startup_s,
        rate=done_s / worked_s,
    )


@contextmanager
def _this_machine_alone() -> Iterator[None]:
    """Lets Ray start here although the environment may name a cluster."""
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = "local"
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_ADDRESS"]
        else:
            os.environ["RAY_ADDRESS"] = before
