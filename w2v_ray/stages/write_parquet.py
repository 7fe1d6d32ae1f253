"""Publishing a shard: its rejects, then what is kept of its log-probabilities, and last its rows, whose file
is the record that the shard is done.

A shard that is published already is left as it is. Rows have one order and one schema, whatever the order
and columns they come in.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from w2v_ray import stores
from w2v_ray.errors import ConfigError, OutputError
from w2v_ray.schema import LOG_PROBS, REJECT, SCHEMA_VERSION, TABLES

__all__ = ["WriteParquet", "WriteParquetConfig"]

_FIRST_ATTEMPT = 1
_NEEDED = ["item_index", "segment_id", "segment_index", "byte_size", "planned_s", "error"]
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
    keeps_log_probs: bool = False
    """Whether the tables have the columns of KEPT, which go to ``log_probs/``."""

    def __post_init__(self) -> None:
        if not self.output or not self.job_fingerprint:
            raise ConfigError(
                f"output is {self.output!r} and job_fingerprint {self.job_fingerprint!r}, expected text; "
                "take both from the plan"
            )
        if self.table not in TABLES:
            raise ConfigError(f"table is {self.table!r}, expected one of {', '.join(TABLES)}; choose one")


class WriteParquet:
    """Publishes all rows of one shard and returns one row that sums them up.

    It takes the columns of the table's schema and ``item_index``, ``segment_id``, ``segment_index``,
    ``byte_size``, ``planned_s`` and ``error``, and those of LOG_PROBS where these are kept; others are not
    written.

    Raises:
        OutputError: The store refuses, or the shard is published by another job.
    """

    def __init__(self, config: WriteParquetConfig) -> None:
        self._output = stores.canonical(config.output)  # workers have other working folders
        self._job_fingerprint = config.job_fingerprint
        self._table, self._schema = config.table, TABLES[config.table]
        self._keeps_log_probs = config.keeps_log_probs
        kept = LOG_PROBS.names if config.keeps_log_probs else []
        self._needed = list(dict.fromkeys([*self._schema.names, *_NEEDED, *kept]))

    def __call__(self, table: pa.Table) -> pa.Table:
        shard_ids = pc.unique(table.column("shard_id")).to_pylist()
        assert len(shard_ids) == 1, f"rows of {len(shard_ids)} shards in one call: {shard_ids[:3]}"
        name = f"part-{shard_ids[0]}.parquet"
        summary = self._published(name)
        if summary is None:
            order = [(name, "ascending") for name in ("item_index", "channel", "segment_index")]
            summary = self._publish(name, table.select(self._needed).sort_by(order))
        reasons = json.dumps(summary["rejects_by_reason"])
        return pa.Table.from_pylist([summary | {"rejects_by_reason": reasons}], schema=_SUMMARY)

    def _publish(self, name: str, table: pa.Table) -> dict[str, Any]:
        indices = pc.unique(table.column("item_index"))
        assert len(indices) == pc.max(indices).as_py() + 1, f"{name} lacks some of its items"
        is_row = pc.is_null(table.column("error"))
        rows = table.filter(is_row)
        rejects = _rejects(table.filter(pc.invert(is_row)))
        reasons = Counter(rejects.column("error_class").to_pylist())
        rejected = table.filter(pc.invert(is_row)).column("item_index")
        summary = {
            "shard_id": table.column("shard_id")[0].as_py(),
            "num_items": len(indices),
            "num_items_rejected": pc.count_distinct(rejected).as_py(),
            "num_rows": rows.num_rows,
            "num_rejects": rejects.num_rows,
            "audio_s": pc.sum(rows.column("duration_s")).as_py() or 0.0,
            "rejected_s": pc.sum(rejects.column("planned_s")).as_py() or 0.0,
            "rejects_by_reason": dict(sorted(reasons.items())),
        }
        path = stores.join(self._output, "rejects", name)
        if rejects.num_rows:
            data = self._file(rejects, summary)
            stores.publish(path, data, root=self._output)
            summary["rejects_sha256"] = hashlib.sha256(data).hexdigest()
        else:
            stores.remove(path)  # of an attempt that did not come to the end
        if self._keeps_log_probs:
            data = self._file(table.select(LOG_PROBS.names).cast(LOG_PROBS), summary)
            stores.publish(stores.join(self._output, "log_probs", name), data, root=self._output)
        data = self._file(rows.select(self._schema.names).cast(self._schema), summary)
        stores.publish(stores.join(self._output, self._table, name), data, root=self._output)
        return summary

    def _published(self, name: str) -> dict[str, Any] | None:
        """The summary of the shard as it is published; None where it is not."""
        path = stores.join(self._output, self._table, name)
        if not stores.exists(path):
            return None
        try:
            with stores.open_range(path, None, None, block_bytes=1 << 16) as file:
                footer = pq.read_metadata(file).metadata
            job_fingerprint = footer[b"w2v_ray.job_fingerprint"].decode()
            summary = json.loads(footer[b"w2v_ray.shard"])
        except Exception as error:  # each store has its own errors, and Arrow and JSON theirs
            message = f"{path!r} is no part of this output ({stores.explain(error)}); delete it and run again"
            raise OutputError(message) from error
        if job_fingerprint != self._job_fingerprint:
            raise OutputError(
                f"{path!r} is of job {job_fingerprint}, this is {self._job_fingerprint}; name a new output"
            )
        assert isinstance(summary, dict)
        return summary

    def _file(self, table: pa.Table, summary: Mapping[str, Any]) -> bytes:
        metadata = {
            "w2v_ray.schema_version": str(SCHEMA_VERSION),
            "w2v_ray.job_fingerprint": self._job_fingerprint,
            "w2v_ray.shard": json.dumps(summary),
        }
        sink = pa.BufferOutputStream()
        table = table.replace_schema_metadata(metadata)
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        return bytes(sink.getvalue())


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
    columns["attempt"] = pa.array([_FIRST_ATTEMPT] * failed.num_rows, pa.int32())
    return pa.table([columns[name] for name in REJECT.names], names=REJECT.names).cast(REJECT)
