"""Planning rejected items again, as a later generation whose outcome takes the place of the earlier one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray import errors, stores
from w2v_ray.errors import ConfigError, ItemError, OutputError
from w2v_ray.output.rows import current_rows
from w2v_ray.plan import Plan, newest_items, plan_entries, plan_of, records
from w2v_ray.schema import DAMAGE_KEY

__all__ = ["make_retry_plan"]

_THREADS = 32
_REASONS = [name for name in errors.__all__ if issubclass(getattr(errors, name), ItemError)]
_STAGES = (
    "take_language",
    "read_audio",
    "decode_audio",
    "segment_audio",
    "encode",
    "decode_text",
    "align_text",
    "choose_labels",
    "find_turns",
)


def make_retry_plan(
    output: str,
    *,
    job: Mapping[str, records.Json],
    reasons: Collection[str] = (),
    stages: Collection[str] = (),
    shard_seconds: float,
    cut_long: bool = True,
    record: bool = True,
) -> Plan:
    """Plans the items of an output again that were rejected in whole or in part.

    An item whose file has changed since is planned as the file is now, with the rest of its recording. What
    is planned again already and not published yet is not planned once more.

    Args:
        output: Folder or URL of a job's output.
        job: The settings that decide what the rows are: those of the output.
        reasons: Classes of errors; empty: all.
        stages: Stages that failed; empty: all.
        shard_seconds: Seconds of audio in a shard.
        cut_long: As of `make_plan`.
        record: As of `make_plan`.

    Raises:
        ConfigError: There is no such class or stage.
        OutputError: It is no output, belongs to another job, or cannot be written.
    """
    _check(reasons, _REASONS, "reason")
    _check(stages, _STAGES, "stage")
    output = stores.canonical(output)
    if "redecodes" in records.read_job(output)[1]:
        raise OutputError(f"{output!r} decodes another output again; retry in that one, then redecode again")
    if record:
        records.claim_output(output, job)
    else:
        records.check_claim(output, job)
    while True:
        planned, num_plans = records.read_plans(output)
        rejected, by_reason = _rejected(output, planned, set(reasons), set(stages))
        if not rejected.num_rows:
            items = planned.slice(0, 0)
            break
        same, changed = _looked_up(rejected)
        items = plan_entries(planned, same, changed, job=job, shard_seconds=shard_seconds, cut_long=cut_long)
        if not record or records.publish_plan(output, items, num_plans + 1):
            break
    everything = pa.concat_tables([planned, items])
    plan = plan_of(output, job, everything, num_new=items.num_rows, num_changed=items.num_rows)
    return replace(plan, retried=by_reason)


def _check(given: Collection[str], known: Collection[str], what: str) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"{what} is {name!r}, expected one of {', '.join(known)}; name one of them")


def _rejected(
    output: str, planned: pa.Table, reasons: set[str], stages: set[str]
) -> tuple[pa.Table, dict[str, int]]:
    """The planned items of whose newest try something is rejected for one of the reasons, and how many."""
    found: dict[tuple[str, int], set[str]] = {}
    for table in current_rows(output, "rejects"):
        columns = ("shard_id", "item_index", "error_class", "stage")
        for shard_id, index, reason, stage in zip(
            *(table.column(name).to_pylist() for name in columns), strict=True
        ):
            if (not reasons or reason in reasons) and (not stages or stage in stages):
                found.setdefault((shard_id, index), set()).add(reason)
    pairs = zip(planned.column("shard_id").to_pylist(), planned.column("item_index").to_pylist(), strict=True)
    mask = pa.array([pair in found for pair in pairs], pa.bool_())
    items = planned.filter(pc.and_(mask, newest_items(planned)))
    pairs = zip(items.column("shard_id").to_pylist(), items.column("item_index").to_pylist(), strict=True)
    return items, dict(sorted(Counter(reason for pair in pairs for reason in found[pair]).items()))


def _looked_up(items: pa.Table) -> tuple[pa.Table, dict[str, tuple[int | None, str | None]]]:
    """The items whose file is as it was planned, and the size and version now of recordings that changed."""

    def look(row: dict[str, Any]) -> tuple[int | None, str | None] | None:
        is_inside = row["byte_offset"] is not None or row["container"] is not None
        if is_inside or DAMAGE_KEY in (row["metadata"] or ""):
            return None  # what lies in a file, and where, planning alone can find
        try:
            file = stores.info(row["uri"])
        except Exception:  # whatever it is: reading the item meets it again, and says so
            return None
        if file is None or (file.size, file.version) == (row["byte_size"], row["version"]):
            return None
        return file.size, file.version

    names = ["recording_id", "uri", "byte_offset", "byte_size", "container", "version", "metadata"]
    rows = items.select(names).to_pylist()
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(look, rows))
    changed = {row["recording_id"]: now for row, now in zip(rows, found, strict=True) if now is not None}
    is_same = pa.array([row["recording_id"] not in changed for row in rows], pa.bool_())
    return items.filter(is_same), changed
