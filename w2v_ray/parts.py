"""The published files of an output: their names, whose rows they hold, and the record in each one's footer.

A shard is done when a file holds its rows: ``part-SHARD.parquet``, in the folder of its table or in a
``KEY=VALUE`` folder there, or a ``compacted-*.parquet`` of many shards, which counts before any part.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from w2v_ray import stores
from w2v_ray.errors import OutputError
from w2v_ray.schema import REJECT, SCHEMA_VERSION, TABLES, sized

__all__ = [
    "Footer",
    "Parts",
    "compacted_name",
    "content_sha256",
    "list_parts",
    "log_probs_files",
    "parquet_table",
    "part_name",
    "partition_folder",
    "read_beside",
    "read_footer",
    "read_shards",
    "write_part",
]

_PART = re.compile(r"part-([0-9a-f]+)\.parquet")
_COMPACTED = re.compile(r"compacted-[0-9a-f]+\.parquet")
_PARTITION = re.compile(r"[^=/]+=[^/]*")
_FOOTER_BYTES = 1 << 16
_READ_BYTES = 1 << 22
_THREADS = 16
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # what readers of partitioned folders take for null


@dataclass(frozen=True, slots=True)
class Footer:
    """What a published file says of itself."""

    job_fingerprint: str
    schema_version: int
    shards: Mapping[str, dict[str, Any]]
    """The summary of each shard whose rows the file holds, in their order."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The files of a table. Names are relative to its folder."""

    files: Mapping[str, str]
    """By shard, the one file that counts."""
    spare: Mapping[str, tuple[str, ...]]
    """By shard, files that hold it as well and do not count."""
    strangers: tuple[str, ...]
    """Names that no job here gives to a file."""


def part_name(shard_id: str, folder: str = "") -> str:
    """The name of a shard's own file, relative to its table's folder."""
    return f"{folder}/part-{shard_id}.parquet" if folder else f"part-{shard_id}.parquet"


def compacted_name(shard_ids: list[str], folder: str = "") -> str:
    """The name of a file of many shards, relative to its table's folder: another for other shards."""
    name = f"compacted-{hashlib.sha256(' '.join(shard_ids).encode()).hexdigest()[:20]}.parquet"
    return f"{folder}/{name}" if folder else name


def partition_folder(key: str, value: object) -> str:
    """The folder of a partition, as Hive names it; None is a value that is missing."""
    if value is None:
        text = _NO_VALUE
    else:
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        text = quote(text, safe=" ,", errors="replace")  # half a surrogate pair, which no reader takes
    return f"{quote(key, safe='')}={text or _NO_VALUE}"


def list_parts(output: str, table: str) -> Parts:
    """Lists the files of a table and says which of them counts for each shard.

    Raises:
        OutputError: A compacted file cannot be read.
        OSError: A folder cannot be listed.
    """
    folder = stores.join(output, table)
    names = [name for name in stores.list_names(folder) if not name.startswith((".", "_"))]
    partitions = [name for name in names if _PARTITION.fullmatch(name)]
    with ThreadPoolExecutor(_THREADS) as pool:
        inner = pool.map(lambda name: stores.list_names(stores.join(folder, name)), partitions)
        names = [name for name in names if name not in set(partitions)]
        for partition, found in zip(partitions, inner, strict=True):
            names += [f"{partition}/{name}" for name in found if not name.startswith((".", "_"))]
        compacted = [name for name in names if _COMPACTED.fullmatch(name.rpartition("/")[2])]
        footers = list(pool.map(lambda name: read_footer(stores.join(folder, name)), compacted))
    files: dict[str, str] = {}
    spare: dict[str, list[str]] = {}
    strangers = []
    holders = [
        (shard_id, name)
        for name, footer in zip(compacted, footers, strict=True)
        for shard_id in footer.shards
    ]
    for name in names:
        match = _PART.fullmatch(name.rpartition("/")[2])
        if match:
            holders.append((match[1], name))
        elif name not in set(compacted):
            strangers.append(name)
    for shard_id, name in holders:
        if shard_id in files:
            spare.setdefault(shard_id, []).append(name)
        else:
            files[shard_id] = name
    return Parts(files, {shard_id: tuple(found) for shard_id, found in spare.items()}, tuple(strangers))


def read_footer(path: str, *, is_checked: bool = True) -> Footer:
    """The record of a published file.

    Args:
        path: The file.
        is_checked: Whether a part must hold the shard in its name.

    Raises:
        OutputError: There is none, the file cannot be read, or it holds another shard.
    """
    try:
        with stores.open_range(path, None, None, block_bytes=_FOOTER_BYTES) as file:
            found = pq.read_metadata(file).metadata
        if b"w2v_ray.shards" in found:
            summaries = json.loads(found[b"w2v_ray.shards"])
        else:
            summaries = [json.loads(found[b"w2v_ray.shard"])]
        footer = Footer(
            found[b"w2v_ray.job_fingerprint"].decode(),
            int(found[b"w2v_ray.schema_version"]),
            {str(summary["shard_id"]): summary for summary in summaries},
        )
    except Exception as error:  # each store has its own errors, and Arrow and JSON theirs
        message = f"{path!r} is no part of this output ({stores.explain(error)}); delete it and run again"
        raise OutputError(message) from error
    named = _PART.fullmatch(path.rpartition("/")[2])
    if is_checked and named and named[1] not in footer.shards:
        raise OutputError(f"{path!r} holds another shard than its name says; delete it and run again")
    return footer


def read_shards(
    output: str,
    table: str,
    name: str,
    summaries: Iterable[Mapping[str, Any]],
    columns: list[str] | None = None,
) -> Iterator[pa.Table]:
    """The rows of shards as one file has them, checked page by page, in the schema of their table.

    Args:
        output: Folder or URL.
        table: The name of the table.
        name: The file, relative to the table's folder.
        summaries: Of the shards, from the footer of the file and in its order.
        columns: Those to read; None: all.

    Raises:
        OutputError: The file cannot be read, or its pages are not as they were written.
    """
    path, names = stores.join(output, table, name), columns or TABLES[table].names
    last: tuple[int | None, pa.Table] | None = None
    try:
        with stores.open_range(path, None, None, block_bytes=_READ_BYTES) as source:
            file = pq.ParquetFile(source, page_checksum_verification=True)
            schema = sized(TABLES[table], file.schema_arrow)
            schema = pa.schema([schema.field(name) for name in names], metadata=schema.metadata)
            for summary in summaries:
                group = summary.get("row_group")  # of a compacted file: where the shard is in it
                if last is None or last[0] != group:
                    rows = file.read(columns) if group is None else file.read_row_group(group, columns)
                    last = group, rows.cast(schema)
                rows = last[1]
                yield rows if group is None else rows.slice(summary["row_offset"], summary["num_rows"])
    except Exception as error:  # each store has its own errors, and Arrow its own
        raise OutputError(f"{path!r} cannot be read ({stores.explain(error)}); restore the file") from error


def parquet_table(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a Parquet file in memory, its pages compared with their checksums."""
    # Arrow lets go of the bytes in a thread, perhaps when Python is no longer there: it gets a copy.
    buffer = pa.allocate_buffer(len(data))
    np.frombuffer(buffer, np.uint8)[:] = np.frombuffer(data, np.uint8)
    file = pq.ParquetFile(pa.BufferReader(buffer), page_checksum_verification=True)
    return file.read(columns=None if columns is None else list(columns), use_threads=False)


def read_beside(output: str, table: str, summary: Mapping[str, Any]) -> pa.Table:
    """The rejects of a shard, or its rows of a table beside the job's own; errors as of `read_shards`."""
    if table == "rejects" and not summary["num_rejects"]:
        return REJECT.empty_table()
    path = stores.join(output, summary[f"{table}_file"])
    try:
        rows = parquet_table(stores.read_bytes(path))
        return rows.cast(REJECT if table == "rejects" else sized(TABLES[table], rows.schema))
    except Exception as error:  # each store has its own errors, and Arrow its own
        raise OutputError(f"{path!r} cannot be read ({stores.explain(error)}); restore the file") from error


def log_probs_files(output: str, shard_ids: Sequence[str]) -> list[str]:
    """The files, relative to the output, that hold what published shards kept of their log-probabilities.

    Raises:
        OutputError: A shard is not published, or kept none.
    """
    files = list_parts(output, "transcripts").files
    lost = [shard_id for shard_id in shard_ids if shard_id not in files]
    if lost:
        raise OutputError(f"{output!r} has no shard {lost[0]!r} any more; run the job that made it again")
    names = sorted({files[shard_id] for shard_id in shard_ids})
    with ThreadPoolExecutor(_THREADS) as pool:
        footers = pool.map(lambda name: read_footer(stores.join(output, "transcripts", name)), names)
        found = {shard_id: summary for footer in footers for shard_id, summary in footer.shards.items()}
    for shard_id in shard_ids:
        if "log_probs_file" not in found[shard_id]:
            raise OutputError(f"{output!r} kept no log-probabilities of shard {shard_id!r}; transcribe anew")
    return [str(found[shard_id]["log_probs_file"]) for shard_id in shard_ids]


def write_part(table: pa.Table, job_fingerprint: str, summary: Mapping[str, Any]) -> bytes:
    """The rows of a shard as the bytes of a file that says whose they are."""
    metadata = {
        "w2v_ray.schema_version": str(SCHEMA_VERSION),
        "w2v_ray.job_fingerprint": job_fingerprint,
        "w2v_ray.shard": json.dumps(summary),
    }
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata(metadata)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def content_sha256(table: pa.Table) -> str:
    """A hash of the names and values of a table, however its arrays are cut, buffered or stored."""
    digest = hashlib.sha256()
    for field, column in zip(table.schema, table.columns, strict=True):
        digest.update(f"{field.name}:{len(column)};".encode())
        _add(digest, pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], field.type))
    return digest.hexdigest()


def _add(digest: Any, array: pa.Array) -> None:
    """Feeds values in a form that does not depend on what lies under nulls or before an offset."""
    type_ = array.type
    if array.null_count:
        digest.update(pc.is_valid(array).cast(pa.uint8()).to_numpy(zero_copy_only=False).tobytes())
    if pa.types.is_struct(type_):
        for child in array.flatten():
            _add(digest, child)
    elif pa.types.is_fixed_size_list(type_):
        _add(digest, array.flatten())
    elif pa.types.is_list(type_):
        digest.update(_numbers(pc.list_value_length(array).cast(pa.int64())))
        _add(digest, array.flatten())  # without what lies under nulls
    elif pa.types.is_string(type_) or pa.types.is_large_binary(type_):
        digest.update(_numbers(pc.binary_length(array).cast(pa.int64())))
        values = array.drop_null()
        if len(values):
            _, offsets, data = values.buffers()
            width = np.int32 if pa.types.is_string(type_) else np.int64
            ends = np.frombuffer(offsets, width)[values.offset : values.offset + len(values) + 1]
            if data is not None:
                digest.update(memoryview(data)[int(ends[0]) : int(ends[-1])])
    elif pa.types.is_boolean(type_):
        digest.update(_numbers(array.cast(pa.uint8())))
    else:
        digest.update(_numbers(array))


def _numbers(array: pa.Array) -> bytes:
    if array.null_count:
        array = array.fill_null(0)
    return bytes(array.to_numpy(zero_copy_only=False).tobytes())
