"""Publishing a shard: its rejects, then what is kept of its log-probabilities and its rows of other tables,
and last its rows of the job's own table, whose file is the record that the shard is done.

The first writer of that file wins, and it names the others by their content: whatever a slower writer, or
one that died, left of them counts for nothing. Rows have one order and one schema, whatever the order and
columns they come in.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray import stores
from w2v_ray.crash_points import crash_point
from w2v_ray.errors import ConfigError, OutputError
from w2v_ray.parts import content_sha256, part_name, partition_folder, read_footer, write_part
from w2v_ray.quality import describe
from w2v_ray.schema import LOG_PROBS, REJECT, TABLES, sized

__all__ = ["WriteParquet", "WriteParquetConfig"]

_NEEDED = ["segment_id", "segment_index", "byte_size", "planned_s", "generation", "error"]
_SUMMARY = pa.schema(
    {
        "shard_id": pa.string(),
        "num_items": pa.int64(),
        "num_items_rejected": pa.int64(),
        "num_rows": pa.int64(),
        "num_rejects": pa.int64(),
        "audio_s": pa.float64(),
        "rejected_s": pa.float64(),
        "rejects_by_reason": pa.string(),
        "quality": pa.string(),
        "num_bytes": pa.int64(),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteParquetConfig:
    """Where rows go, and whose they are."""

    output: str
    """Folder or URL that receives the table and ``rejects/``."""
    job_fingerprint: str
    """Of the plan: parts of another job are never taken for this one's."""
    table: str = "transcripts"
    """The table that receives the rows: a folder in the output."""
    also: tuple[str, ...] = ()
    """Tables of the same segments that are written beside it."""
    keeps_log_probs: bool = False
    """Whether the tables have the columns of KEPT, which go to ``log_probs/``."""
    partition_by: str | None = None
    """The key of the metadata by whose value the files of the table are put into folders."""

    def __post_init__(self) -> None:
        if not self.output or not self.job_fingerprint:
            raise ConfigError(
                f"output is {self.output!r} and job_fingerprint {self.job_fingerprint!r}, expected text; "
                "take both from the plan"
            )
        for name in (self.table, *self.also):
            if name not in TABLES:
                raise ConfigError(f"table is {name!r}, expected one of {', '.join(TABLES)}; choose one")


class WriteParquet:
    """Publishes all rows of one shard and returns one row that sums them up.

    It takes the columns of the schemas of its tables and ``segment_id``, ``segment_index``, ``byte_size``,
    ``planned_s``, ``generation`` and ``error``, and those of LOG_PROBS where these are kept; others are not
    written.

    Raises:
        OutputError: The store refuses, or the shard is published by another job.
    """

    def __init__(self, config: WriteParquetConfig) -> None:
        self._output = stores.canonical(config.output)  # workers have other working folders
        self._job_fingerprint = config.job_fingerprint
        self._table, self._also = config.table, config.also
        self._keeps_log_probs = config.keeps_log_probs
        self._partition_by = config.partition_by
        self._num_bytes = 0  # put for the shard in hand
        kept = LOG_PROBS.names if config.keeps_log_probs else []
        names = [name for table in (config.table, *config.also) for name in TABLES[table].names]
        self._needed = list(dict.fromkeys([*names, *_NEEDED, *kept]))

    def __call__(self, table: pa.Table) -> pa.Table:
        shard_ids = pc.unique(table.column("shard_id")).to_pylist()
        assert len(shard_ids) == 1, f"rows of {len(shard_ids)} shards in one call: {shard_ids[:3]}"
        path = stores.join(self._output, self._table, part_name(shard_ids[0], self._folder(table)))
        summary = self._published(path, shard_ids[0])
        self._num_bytes = 0
        if summary is None:
            order = [(name, "ascending") for name in ("item_index", "channel", "segment_index")]
            summary = self._publish(path, table.select(self._needed).sort_by(order))
        texts = {name: json.dumps(summary.get(name, {})) for name in ("rejects_by_reason", "quality")}
        row = {name: summary.get(name) for name in _SUMMARY.names} | texts | {"num_bytes": self._num_bytes}
        return pa.Table.from_pylist([row], schema=_SUMMARY)

    def _publish(self, path: str, table: pa.Table) -> dict[str, Any]:
        indices = pc.unique(table.column("item_index"))
        assert len(indices) == pc.max(indices).as_py() + 1, f"{path} lacks some of its items"
        crash_point("commit.ready")
        is_row = pc.is_null(table.column("error"))
        done = table.filter(is_row)
        rows = _of_table(done, self._table)
        rejects = _rejects(table.filter(pc.invert(is_row)))
        summary = {
            "shard_id": table.column("shard_id")[0].as_py(),
            "num_items": len(indices),
            "num_items_rejected": pc.count_distinct(rejects.column("item_index")).as_py(),
            "num_rows": rows.num_rows,
            "num_rejects": rejects.num_rows,
            "audio_s": pc.sum(rows.column("duration_s")).as_py() or 0.0,
            "rejected_s": pc.sum(rejects.column("planned_s")).as_py() or 0.0,
            "rejects_by_reason": dict(sorted(Counter(rejects.column("error_class").to_pylist()).items())),
            "quality": describe(rows),
        }
        beside: dict[str, Any] = {}
        if rejects.num_rows:
            beside |= self._put_beside("rejects", rejects, summary)
        crash_point("commit.rejects")
        if self._keeps_log_probs:
            beside |= self._put_beside("log_probs", table.select(LOG_PROBS.names).cast(LOG_PROBS), summary)
        for name in self._also:
            beside |= self._put_beside(name, _of_table(done, name), summary)
        crash_point("commit.kept")
        summary |= {"rows_sha256": content_sha256(rows)} | beside
        data = write_part(rows, self._job_fingerprint, summary)
        self._num_bytes += len(data)
        if stores.publish(path, data, root=self._output, exclusive=True):
            crash_point("commit.done")
            return summary
        winner = self._published(path, summary["shard_id"])  # of a faster writer
        assert winner is not None, path
        for folder in ("rejects", "log_probs", *self._also):
            name = f"{folder}_file"
            if name in beside and winner.get(name) != beside[name]:
                stores.remove(stores.join(self._output, beside[name]))
        return winner

    def _put_beside(self, folder: str, table: pa.Table, summary: dict[str, Any]) -> dict[str, Any]:
        """Publishes a table beside the rows, under a name of its content; what their footer says of it."""
        data = write_part(table, self._job_fingerprint, summary)
        self._num_bytes += len(data)
        sha256 = hashlib.sha256(data).hexdigest()
        name = f"{folder}/part-{summary['shard_id']}-{sha256[:12]}.parquet"
        stores.publish(stores.join(self._output, name), data, root=self._output)
        return {f"{folder}_file": name, f"{folder}_sha256": sha256}

    def _folder(self, table: pa.Table) -> str:
        if self._partition_by is None:
            return ""
        metadata = table.column("metadata")[0].as_py()
        value = json.loads(metadata).get(self._partition_by) if metadata else None
        return partition_folder(self._partition_by, value)

    def _published(self, path: str, shard_id: str) -> dict[str, Any] | None:
        """The summary of the shard as it is published; None where it is not."""
        if not stores.exists(path):
            return None
        footer = read_footer(path)
        if footer.job_fingerprint != self._job_fingerprint:
            raise OutputError(
                f"{path!r} is of job {footer.job_fingerprint}, this is {self._job_fingerprint}; "
                "name a new output"
            )
        return footer.shards[shard_id]


def _of_table(rows: pa.Table, name: str) -> pa.Table:
    """The columns of a table, in its schema."""
    schema = sized(TABLES[name], rows.schema)
    return rows.select(schema.names).cast(schema)


def _rejects(failed: pa.Table) -> pa.Table:
    """The failed rows in the schema REJECT."""
    error = pa.concat_arrays(failed.column("error").chunks) if failed.num_rows else None
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        name: failed.column(name) for name in REJECT.names if name in failed.column_names
    }
    for name in ("stage", "error_class", "message"):
        columns[name] = pa.array([], pa.string()) if error is None else pc.struct_field(error, name)
    # A failed segment is as long as it is; a failed item, as far as planning knew.
    is_segment = pc.is_valid(failed.column("segment_id"))
    lengths = pc.coalesce(failed.column("duration_s"), failed.column("planned_s"))
    columns["planned_s"] = pc.if_else(is_segment, lengths, failed.column("planned_s"))
    columns["attempt"] = failed.column("generation")
    return pa.table([columns[name] for name in REJECT.names], names=REJECT.names).cast(REJECT)
