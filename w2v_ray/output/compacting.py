"""Merging the files of a table into larger ones, with every row counting once at every moment."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from w2v_ray import stores
from w2v_ray.crash_points import crash_point
from w2v_ray.errors import ConfigError, OutputError
from w2v_ray.output.leftovers import remove_leftovers
from w2v_ray.parts import Footer, Parts, compacted_name, content_sha256, list_parts, read_footer, read_shards
from w2v_ray.plan.records import read_job, read_plans, table_of
from w2v_ray.plan.shards import shard_bounds
from w2v_ray.schema import SCHEMA_VERSION

__all__ = ["Compaction", "compact"]

_THREADS = 16
_ROWS_PER_GROUP = 16_384
_BIG_ENOUGH = 0.5  # of the target: a compacted file of that size is left as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Compaction:
    """What `compact` did to the files of a table."""

    output: str
    num_files_before: int
    num_files: int
    bytes_before: int
    bytes: int
    num_leftovers: int
    """Files removed that counted for nothing."""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


def compact(output: str, *, target_mb: float = 512.0) -> Compaction:
    """Merges the published files of a job's table into files of about a size; rejects stay as they are.

    A merged file is there before the first of its parts goes, and counts before they do. Shards keep their
    summaries, so that everything that reads an output reads it as before. It may be run beside its job, and
    again after it was killed; who reads meanwhile may miss a file that was listed, and must start over.

    Args:
        output: Folder or URL of a job's output.
        target_mb: Size of a file in MB; about as much memory is needed. Files of partitions stay apart.

    Raises:
        ConfigError: The target is not above 0.
        OutputError: It is no output, or a file is damaged or of another job; `audit` says which all are.
    """
    if not target_mb > 0:
        raise ConfigError(f"target_mb is {target_mb}, expected above 0; try 512")
    output = stores.canonical(output)
    job_fingerprint, job = read_job(output)
    table = table_of(job)
    parts = list_parts(output, table)
    order = _order(output)
    before = _sizes(output, table, parts)
    footers = _footers(output, table, sorted({*parts.files.values()}), job_fingerprint, order)
    num_leftovers = _remove_spare(output, table, parts)
    summaries = {shard_id: footers[name].shards[shard_id] for shard_id, name in parts.files.items()}
    num_leftovers += remove_leftovers(output, table, summaries)
    for names in _groups(parts, before, order, target_mb * 1e6):
        shards = {name: [s for s in footers[name].shards if parts.files.get(s) == name] for name in names}
        _merge(output, table, job_fingerprint, shards, footers)
    after = _sizes(output, table, list_parts(output, table))
    return Compaction(
        output=output,
        num_files_before=len(before),
        num_files=len(after),
        bytes_before=sum(before.values()),
        bytes=sum(after.values()),
        num_leftovers=num_leftovers,
    )


def _order(output: str) -> dict[str, int]:
    items, _ = read_plans(output, ["shard_id"])
    return {shard_id: place for place, (shard_id, _, _) in enumerate(shard_bounds(items))}


def _sizes(output: str, table: str, parts: Parts) -> dict[str, int]:
    """Bytes of the files that count."""
    folder = stores.join(output, table)
    found = {file.uri.removeprefix(folder + "/"): file.size or 0 for file in stores.list_files(folder)}
    return {name: found[name] for name in dict.fromkeys(parts.files.values()) if name in found}


def _footers(
    output: str, table: str, names: list[str], job_fingerprint: str, planned: Mapping[str, int]
) -> dict[str, Footer]:
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(
            zip(
                names,
                pool.map(lambda name: read_footer(stores.join(output, table, name)), names),
                strict=True,
            )
        )
    for name, footer in found.items():
        if footer.job_fingerprint != job_fingerprint or not footer.shards.keys() <= planned.keys():
            raise OutputError(f"{stores.join(output, table, name)!r} is of another job; move it elsewhere")
    return found


def _remove_spare(output: str, table: str, parts: Parts) -> int:
    """Removes files all of whose shards are in a compacted one: of a compaction or a writer that was late."""
    used = set(parts.files.values())
    spare: set[str] = set()
    for shard_id, names in parts.spare.items():
        if parts.files[shard_id].rpartition("/")[2].startswith("compacted-"):
            spare.update(name for name in names if name not in used)
    for name in sorted(spare):
        stores.remove(stores.join(output, table, name))
        crash_point("compact.removing")
    return len(spare)


def _groups(
    parts: Parts, sizes: Mapping[str, int], order: Mapping[str, int], target: float
) -> Iterator[list[str]]:
    """Files to merge into one: of one partition, in the order of the plan, up to the target together."""
    first: dict[str, int] = {}
    for shard_id, name in parts.files.items():
        first[name] = min(order[shard_id], first.get(name, order[shard_id]))
    group: list[str] = []
    total, folder = 0, ""
    for name in sorted(sizes, key=lambda name: (name.rpartition("/")[0], first[name])):
        is_compacted = name.rpartition("/")[2].startswith("compacted-")
        if sizes[name] >= target * (_BIG_ENOUGH if is_compacted else 1):
            continue
        if name.rpartition("/")[0] != folder or total + sizes[name] > target:
            if len(group) > 1:
                yield group
            group, total, folder = [], 0, name.rpartition("/")[0]
        group.append(name)
        total += sizes[name]
    if len(group) > 1:
        yield group


def _merge(
    output: str,
    table: str,
    job_fingerprint: str,
    shards: Mapping[str, list[str]],
    footers: Mapping[str, Footer],
) -> None:
    sink = pa.BufferOutputStream()
    summaries: list[dict[str, Any]] = []
    with ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for rows in _row_groups(output, table, shards, footers, summaries):
            if writer is None:  # lists are as long as the rows have them: that is for the model to say
                writer = stack.enter_context(
                    pq.ParquetWriter(sink, rows.schema, compression="zstd", write_page_checksum=True)
                )
            writer.write_table(rows, row_group_size=max(1, rows.num_rows))
        assert writer is not None, f"nothing to merge of {table}"
        writer.add_key_value_metadata(
            {
                "w2v_ray.schema_version": str(SCHEMA_VERSION),
                "w2v_ray.job_fingerprint": job_fingerprint,
                "w2v_ray.shards": json.dumps(summaries),
            }
        )
    crash_point("compact.ready")
    folder = next(iter(shards)).rpartition("/")[0]
    path = stores.join(output, table, compacted_name([summary["shard_id"] for summary in summaries], folder))
    stores.publish(path, sink.getvalue().to_pybytes(), root=output, exclusive=True)
    if list(read_footer(path).shards) != [summary["shard_id"] for summary in summaries]:
        raise OutputError(f"{path!r} does not hold what was written to it; check the store")
    crash_point("compact.written")
    for name in shards:
        if stores.join(output, table, name) != path:  # where a compaction that was killed is done again
            stores.remove(stores.join(output, table, name))
        crash_point("compact.removing")


def _row_groups(
    output: str,
    table: str,
    shards: Mapping[str, list[str]],
    footers: Mapping[str, Footer],
    summaries: list[dict[str, Any]],
) -> Iterator[pa.Table]:
    """The rows of the shards, some at a time; ``summaries`` receives theirs, and where their rows are."""
    group: list[pa.Table] = []
    num_rows, num_groups = 0, 0
    for name, shard_ids in shards.items():
        found = [footers[name].shards[shard_id] for shard_id in shard_ids]
        for summary, rows in zip(found, read_shards(output, table, name, found), strict=True):
            if content_sha256(rows) != summary["rows_sha256"]:
                path = stores.join(output, table, name)
                raise OutputError(f"{path!r} has other rows than were written; restore the file")
            if num_rows and num_rows + rows.num_rows > _ROWS_PER_GROUP:
                yield pa.concat_tables(group).replace_schema_metadata()
                group, num_rows, num_groups = [], 0, num_groups + 1
            summaries.append(summary | {"row_group": num_groups, "row_offset": num_rows})
            group.append(rows)
            num_rows += rows.num_rows
    yield pa.concat_tables(group).replace_schema_metadata()
