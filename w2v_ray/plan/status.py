"""What of a plan is done, pending and rejected, counted from the footers of what is published."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from w2v_ray import stores
from w2v_ray.errors import OutputError, W2vRayError
from w2v_ray.plan.records import job_of, published_shards, read_plans, table_of

__all__ = ["Status", "status"]

_THREADS = 16
_FOOTER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What of an output is done. Seconds are of audio; those of what is done or rejected are exact."""

    num_items: int
    """Planned recordings, or time ranges of one."""
    num_items_done: int
    """Of these, the ones in published shards."""
    num_items_rejected: int
    """Of those, the ones rejected in whole or in part."""
    num_shards: int
    num_shards_done: int
    num_shards_pending: int
    planned_s: float
    done_s: float
    pending_s: float
    rejected_s: float
    num_rows: int
    """Rows in ``transcripts/``, or ``alignments/``."""
    num_rejects: int
    """Rows in ``rejects/``."""
    rejects_by_reason: dict[str, int]

    @property
    def reject_rate(self) -> float:
        """Share of the items done that were rejected in whole or in part."""
        return self.num_items_rejected / self.num_items_done if self.num_items_done else 0.0

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


def status(output: str) -> Status:
    """Counts what is planned and what is published.

    Raises:
        OutputError: There is no plan, or some file of the output cannot be read.
    """
    if (reason := stores.refusal(output)) is not None:
        raise OutputError(f"output {output!r} {reason}")
    try:
        plan, _ = read_plans(output, ["shard_id", "planned_s"])
        table = table_of(job_of(output))
        published = published_shards(output, table)
    except W2vRayError:
        raise
    except Exception as error:  # each store has its own errors
        message = f"output {output!r} cannot be listed ({stores.explain(error)}); check name and permissions"
        raise OutputError(message) from error
    if not plan.num_rows:
        raise OutputError(f"output {output!r} holds no plan; name the output of a job that has started")
    shards = plan.group_by("shard_id").aggregate([("planned_s", "sum"), ("shard_id", "count")]).to_pylist()
    done = [shard["shard_id"] for shard in shards if shard["shard_id"] in published]
    with ThreadPoolExecutor(_THREADS) as pool:
        summaries = list(pool.map(lambda shard_id: _summary(output, table, shard_id), done))
    reasons: Counter[str] = Counter()
    for summary in summaries:
        reasons.update(summary["rejects_by_reason"])
    pending = [shard for shard in shards if shard["shard_id"] not in published]
    return Status(
        num_items=plan.num_rows,
        num_items_done=plan.num_rows - sum(shard["shard_id_count"] for shard in pending),
        num_items_rejected=sum(summary["num_items_rejected"] for summary in summaries),
        num_shards=len(shards),
        num_shards_done=len(done),
        num_shards_pending=len(pending),
        planned_s=pc.sum(plan.column("planned_s")).as_py(),
        done_s=float(sum(summary["audio_s"] for summary in summaries)),
        pending_s=float(sum(shard["planned_s_sum"] for shard in pending)),
        rejected_s=float(sum(summary["rejected_s"] for summary in summaries)),
        num_rows=sum(summary["num_rows"] for summary in summaries),
        num_rejects=sum(summary["num_rejects"] for summary in summaries),
        rejects_by_reason=dict(sorted(reasons.items())),
    )


def _summary(output: str, table: str, shard_id: str) -> dict[str, Any]:
    path = stores.join(output, table, f"part-{shard_id}.parquet")
    try:
        with stores.open_range(path, None, None, block_bytes=_FOOTER_BYTES) as file:
            summary = json.loads(pq.read_metadata(file).metadata[b"w2v_ray.shard"])
    except Exception as error:  # each store has its own errors, and Arrow and JSON theirs
        message = f"{path!r} is no part of this output ({stores.explain(error)}); delete it and run again"
        raise OutputError(message) from error
    assert isinstance(summary, dict)
    return summary
