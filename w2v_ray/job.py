"""A job before and after its data flow: the checks, the plan, and the summary at the end.

Neither torch nor Ray is loaded here, so that a mistake in what was asked for is told at once.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from w2v_ray import stores
from w2v_ray.align_config import AlignConfig
from w2v_ray.config import JobConfig
from w2v_ray.errors import CheckpointError
from w2v_ray.hub import checkpoint_fingerprint
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.plan import Plan, make_plan, status
from w2v_ray.processors import AutoFeatureExtractor, AutoTokenizer
from w2v_ray.schema import SAMPLE_RATE_HZ

__all__ = ["RunSummary", "prepare", "seconds_per_frame", "summarize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run did. Seconds are of audio, except ``wall_s``."""

    output: str
    num_items: int
    """Items of the plan: recordings or time ranges of one."""
    num_shards: int
    num_shards_before: int
    """Shards that earlier runs had published."""
    num_rows: int
    """Rows this run wrote to ``transcripts/``, or ``alignments/``."""
    num_rejects: int
    """Rows this run wrote to ``rejects/``."""
    reject_rate: float
    """Items of the whole output that were rejected in full or in part, as a share of all."""
    audio_s: float
    rejected_s: float
    wall_s: float
    rejects_by_reason: dict[str, int]
    skipped: dict[str, int]
    """Files of the inputs that were not planned, by reason."""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


def prepare(job: JobConfig) -> Plan:
    """Checks what a job names and plans it, or takes up the plan that its output holds.

    Raises:
        W2vRayError: The output, the model or the inputs cannot be used.
    """
    stores.check_writable(job.output)
    seconds_per_frame(job)
    # Of the model its content counts, not its name: a folder may be moved, and a branch may move on.
    model = {"model": checkpoint_fingerprint(job.model, job.revision), "revision": None}
    return make_plan(
        job.inputs,
        job.output,
        shard_seconds=job.shard_seconds,
        job=job.fingerprint_fields() | model,
        cut_long=not isinstance(job, AlignConfig),  # a text belongs to the whole of its recording
    )


def seconds_per_frame(job: JobConfig) -> float:
    """The seconds from one frame of the job's model to the next, from the small files of its checkpoint.

    Raises:
        CheckpointError: A file is missing or malformed, or the model is of another kind or rate.
    """
    config = Wav2Vec2Config.from_pretrained(job.model, revision=job.revision)
    AutoTokenizer.from_pretrained(job.model, revision=job.revision)  # or the first worker would refuse it
    rate = AutoFeatureExtractor.from_pretrained(job.model, revision=job.revision).sampling_rate
    if rate != SAMPLE_RATE_HZ:
        raise CheckpointError(
            f"model {job.model!r} takes audio at {rate} Hz, expected {SAMPLE_RATE_HZ}; use another"
        )
    return config.hop_samples / SAMPLE_RATE_HZ


def summarize(job: JobConfig, plan: Plan, summaries: list[dict[str, Any]], wall_s: float) -> RunSummary:
    """Adds up the summaries of the shards that a run published, in ``wall_s`` seconds of the clock."""
    whole = status(job.output)
    reasons: Counter[str] = Counter()
    for summary in summaries:
        reasons.update(json.loads(summary["rejects_by_reason"]))
    return RunSummary(
        output=job.output,
        num_items=plan.num_items,
        num_shards=plan.num_shards,
        num_shards_before=plan.num_shards - len(plan.pending),
        num_rows=sum(summary["num_rows"] for summary in summaries),
        num_rejects=sum(summary["num_rejects"] for summary in summaries),
        reject_rate=whole.num_items_rejected / max(1, whole.num_items),
        audio_s=sum(summary["audio_s"] for summary in summaries),
        rejected_s=sum(summary["rejected_s"] for summary in summaries),
        wall_s=wall_s,
        rejects_by_reason=dict(reasons),
        skipped=dict(plan.skipped),
    )
