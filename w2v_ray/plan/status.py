"""What of a plan is done, pending and rejected, counted from the footers of what is published."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray import stores
from w2v_ray.errors import OutputError, W2vRayError
from w2v_ray.parts import list_parts, read_beside, read_footer, read_shards
from w2v_ray.plan.generations import newest_items
from w2v_ray.plan.records import job_of, read_plans, table_of
from w2v_ray.plan.shards import shard_bounds

__all__ = ["Status", "status"]

_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What of an output is done. Seconds are of audio; those of what is done or rejected are exact."""

    num_items: int
    """Planned recordings, or time ranges of one."""
    num_items_done: int
    """Of these, the ones in published shards."""
    num_items_rejected: int
    """Of those, the ones rejected in whole or in part."""
    num_items_superseded: int
    """Planned items that count no more, as a later generation has taken their place."""
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
    output = stores.canonical(output)
    try:
        columns = ["shard_id", "item_index", "recording_id", "planned_s", "fingerprint", "generation"]
        plan, _ = read_plans(output, columns)
        table = table_of(job_of(output))
        files = list_parts(output, table).files
    except W2vRayError:
        raise
    except Exception as error:  # each store has its own errors
        message = f"output {output!r} cannot be listed ({stores.explain(error)}); check name and permissions"
        raise OutputError(message) from error
    if not plan.num_rows:
        raise OutputError(f"output {output!r} holds no plan; name the output of a job that has started")
    newest = plan.filter(newest_items(plan))
    shards = newest.group_by("shard_id").aggregate([("planned_s", "sum"), ("shard_id", "count")]).to_pylist()
    done = [shard for shard in shards if shard["shard_id"] in files]
    pending = [shard for shard in shards if shard["shard_id"] not in files]
    footers: dict[str, dict[str, Any]] = {}
    paths = sorted({files[shard["shard_id"]] for shard in done})
    with ThreadPoolExecutor(_THREADS) as pool:
        read = pool.map(lambda name: read_footer(stores.join(output, table, name)), paths)
        for footer in read:
            footers.update(footer.shards)
        summaries = [footers[shard["shard_id"]] for shard in done]
        if newest.num_rows < plan.num_rows:  # some shards hold items that count no more
            sizes = dict(zip((s["shard_id"] for s in done), (s["shard_id_count"] for s in done), strict=True))
            kept = {
                shard_id: part.column("item_index").to_pylist()
                for shard_id, part in _by_shard(
                    newest, [s for s in sizes if footers[s]["num_items"] != sizes[s]]
                )
            }
            summaries = list(
                pool.map(
                    lambda found: _counted(output, table, files, found, kept.get(found["shard_id"])),
                    summaries,
                )
            )
    reasons: Counter[str] = Counter()
    for summary in summaries:
        reasons.update(summary["rejects_by_reason"])
    return Status(
        num_items=newest.num_rows,
        num_items_done=newest.num_rows - sum(shard["shard_id_count"] for shard in pending),
        num_items_rejected=sum(summary["num_items_rejected"] for summary in summaries),
        num_items_superseded=plan.num_rows - newest.num_rows,
        num_shards=len(shards),
        num_shards_done=len(done),
        num_shards_pending=len(pending),
        planned_s=pc.sum(newest.column("planned_s")).as_py(),
        done_s=math.fsum(summary["audio_s"] for summary in summaries),  # in whatever order files hold them
        pending_s=math.fsum(shard["planned_s_sum"] for shard in pending),
        rejected_s=math.fsum(summary["rejected_s"] for summary in summaries),
        num_rows=sum(summary["num_rows"] for summary in summaries),
        num_rejects=sum(summary["num_rejects"] for summary in summaries),
        rejects_by_reason=dict(sorted(reasons.items())),
    )


def _by_shard(items: pa.Table, shard_ids: list[str]) -> Iterator[tuple[str, pa.Table]]:
    wanted = items.filter(pc.is_in(items.column("shard_id"), value_set=pa.array(shard_ids, pa.string())))
    for shard_id, begin, size in shard_bounds(wanted):
        yield shard_id, wanted.slice(begin, size)


def _counted(
    output: str, table: str, files: Mapping[str, str], summary: dict[str, Any], kept: list[int] | None
) -> dict[str, Any]:
    """The summary of a shard, counted again for the items that are kept; None: all are."""
    if kept is None:
        return summary
    items = pa.array(kept, pa.int32())
    columns = ["item_index", "duration_s"]
    (rows,) = read_shards(output, table, files[summary["shard_id"]], [summary], columns)
    rejects = read_beside(output, "rejects", summary)
    rows, rejects = (
        found.filter(pc.is_in(found.column("item_index"), value_set=items)) for found in (rows, rejects)
    )
    return {
        "audio_s": pc.sum(rows.column("duration_s")).as_py() or 0.0,
        "rejected_s": pc.sum(rejects.column("planned_s")).as_py() or 0.0,
        "num_rows": rows.num_rows,
        "num_rejects": rejects.num_rows,
        "num_items_rejected": pc.count_distinct(rejects.column("item_index")).as_py(),
        "rejects_by_reason": Counter(rejects.column("error_class").to_pylist()),
    }
