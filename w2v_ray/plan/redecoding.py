"""Planning to decode again: the shards that another output has published, planned in this one as well."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray import stores
from w2v_ray.errors import OutputError
from w2v_ray.parts import list_parts
from w2v_ray.plan import records
from w2v_ray.plan.generations import current_items, newest_items
from w2v_ray.plan.planning import Plan, partition_key, plan_of

__all__ = ["make_redecode_plan"]


def make_redecode_plan(
    source: str, output: str, *, job: Mapping[str, records.Json], record: bool = True
) -> Plan:
    """Plans the shards of a source that no plan of the output holds yet.

    Args:
        source: The output of a job that kept log-probabilities; what it has not published is left out.
        output: Folder or URL of one; it must be new, empty, or the output of the same job.
        job: The settings that decide what the rows are.
        record: Whether the output is claimed and the plan written into it; else nothing is written.

    Raises:
        OutputError: The source kept none, or the output cannot be written or belongs to another job.
    """
    source, output = stores.canonical(source), stores.canonical(output)
    if source == output:
        raise OutputError(f"output {output!r} is the source itself; name another")
    source_fingerprint, source_job = records.read_job(source)
    if source_job.get("keep_log_probs") is None:
        raise OutputError(
            f"{source!r} holds no log-probabilities; transcribe into a new output with --keep-log-probs"
        )
    items, _ = records.read_plans(source)
    ready = list_parts(source, "transcripts").files
    # A new generation of which some is missing does not count yet, and would here, where only some is known.
    early = pc.and_(newest_items(items), pc.invert(current_items(items, ready)))
    waiting = set(items.filter(early).column("shard_id").to_pylist())
    ready = {shard_id: name for shard_id, name in ready.items() if shard_id not in waiting}
    items = items.filter(pc.is_in(items.column("shard_id"), value_set=pa.array(sorted(ready), pa.string())))
    if not items.num_rows:
        raise OutputError(f"{source!r} has no published shards yet; wait for its job, or run it again")
    job = dict(job) | {"redecodes": source_fingerprint}
    if (key := partition_key(source_job)) is not None:
        job["partition_by"] = key
    if record:
        records.claim_output(output, job)
    else:
        records.check_claim(output, job)
    planned, num_plans = records.read_plans(output)
    new = _unplanned(items, planned)
    while record and new.num_rows and not records.publish_plan(output, new, num_plans + 1):
        planned, num_plans = records.read_plans(output)  # a faster run took that number
        new = _unplanned(items, planned)
    return plan_of(output, job, pa.concat_tables([planned, new]), num_new=new.num_rows)


def _unplanned(items: pa.Table, planned: pa.Table) -> pa.Table:
    known = pc.is_in(items.column("shard_id"), value_set=planned.column("shard_id").combine_chunks())
    return items.filter(pc.invert(known))
