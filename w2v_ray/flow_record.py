"""What a job says of itself in the record of its run: its stages, its settings and its cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import ray

from w2v_ray import telemetry
from w2v_ray.config import JobConfig, RedecodeConfig
from w2v_ray.head_config import read_also
from w2v_ray.plan import Plan
from w2v_ray.pools import Pools
from w2v_ray.run_record import RunRecord, run_name
from w2v_ray.schema import TABLE_OF_TASK

__all__ = ["queues_of", "record_of", "stages_of"]

_RESULTS = {
    "transcribe": "decode_text",
    "align": "align_text",
    "classify": "choose_labels",
    "frames": "find_turns",
}
_AT_ONCE = ("read_audio", "decode_audio", "segment_audio")  # one after another in one task


def stages_of(job: JobConfig | RedecodeConfig) -> tuple[str, ...]:
    """The stages of a job's flow that are in the book of attempts, in order."""
    if isinstance(job, RedecodeConfig):
        return "read_log_probs", "decode_text", "write_parquet"
    tasks = [job.task, *(task for task, _ in map(read_also, job.also))]
    results = [_RESULTS[task] for task in tasks if task in _RESULTS]
    return *_AT_ONCE, "encode", *results[:1], "write_parquet"


def queues_of(stages: Sequence[str]) -> dict[str, str]:
    """The stages before which shards wait, each with the one whose shards it takes."""
    return {stage: source for source, stage in pairwise(stages) if stage not in _AT_ONCE}


def record_of(
    job: JobConfig | RedecodeConfig, plan: Plan, pools: Pools, *, command: str | None
) -> RunRecord | None:
    """The record of a run that is about to begin on Ray; None where nothing is to be measured."""
    if not telemetry.is_on():
        return None
    name = run_name(datetime.now(UTC))
    settings = asdict(job)
    attention = None
    if isinstance(job, RedecodeConfig):
        task, tables, inputs = "redecode", ["transcripts"], [job.source]
    else:
        task, inputs = job.task, list(job.inputs)
        also = [also for also, _ in map(read_also, job.also)]
        tables = [TABLE_OF_TASK[each] for each in (task, *also)]
        if job.attn_implementation != "auto":
            attention = {"name": job.attn_implementation, "reason": "the job's setting"}
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cluster: dict[str, Any] = {
        "nodes": sum(node["Alive"] for node in ray.nodes()),  # type: ignore[no-untyped-call]
        "cpus": resources.get("CPU", 0.0),
        "gpus": resources.get("GPU", 0.0),
        "pools": asdict(pools),
        "metrics": telemetry.scrape_addresses(),
    }
    return RunRecord(
        name,
        plan,
        command=command or task,
        task=task,
        settings={key: value for key, value in settings.items() if key not in ("inputs", "output", "source")},
        inputs=inputs,
        tables=tables,
        stages=stages_of(job),
        cluster=cluster,
        attention=attention,
    )
