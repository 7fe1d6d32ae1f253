"""The bytes of many values of one file, each row group, record batch or gzip stream read once for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from w2v_ray import stores
from w2v_ray.containers.gzip_stream import GzipStream, StreamDamage
from w2v_ray.errors import ItemError, ReadError

__all__ = ["MAX_VALUE_BYTES", "Wanted", "read_values"]

MAX_VALUE_BYTES = 512 << 20  # a value is held whole, as no decoder can open it in place
_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 64
_PACKED_BLOCK_BYTES = 1 << 20


class Wanted(NamedTuple):
    """One value of a file."""

    item: int
    """The caller's own number for it."""
    byte_offset: int | None
    """In the unpacked stream of a gzip file."""
    byte_size: int | None
    """Size, where it is known."""
    row: int | None
    """Row in a Parquet or Arrow file."""


def read_values(
    uri: str, container: str, version: str | None, wanted: Sequence[Wanted]
) -> Iterator[tuple[int, bytes | ItemError]]:
    """Reads values of one file, in the order in which they lie in it.

    Args:
        uri: The file.
        container: ``gzip``, ``parquet:COLUMN`` or ``arrow:COLUMN``.
        version: What the file's version must still be, as rows and unpacked offsets do not show a change;
            None: any.
        wanted: The values.

    Yields:
        The index of each and its bytes, or why there are none.

    Raises:
        ReadError: The file cannot be read, or not any further.
    """
    kind, _, column = container.partition(":")
    if version is not None and kind == "arrow":  # which is mapped; others are checked as they are opened
        info = stores.info(uri)
        if info is not None and info.version != version:
            raise ReadError(f"{uri!r} has changed since it was planned; plan it again into a new output")
    small = []
    for one in wanted:
        if one.byte_size is not None and one.byte_size > MAX_VALUE_BYTES:
            yield one.item, _too_large(uri, one.byte_size)
        else:
            small.append(one)
    if kind == "gzip":
        yield from _gzip_members(uri, version, small)
    elif kind in ("parquet", "arrow"):
        rows = partial(_parquet_rows, version=version) if kind == "parquet" else _arrow_rows
        by_row = {cast(int, one.row): one.item for one in small}
        for row, value in rows(uri, column, sorted(by_row)):
            if value is None:
                yield by_row[row], ReadError(f"row {row} of {uri!r} has no audio in its column {column!r}")
            elif len(value) > MAX_VALUE_BYTES:
                yield by_row[row], _too_large(uri, len(value))
            else:
                yield by_row[row], value
    else:
        raise ReadError(f"{uri!r} is planned as {container!r}, which is not read here; plan it again")


def _too_large(uri: str, size: int) -> ReadError:
    return ReadError(
        f"a recording inside {uri!r} has {size} bytes where at most {MAX_VALUE_BYTES} are read; give it "
        "a file of its own"
    )


def _gzip_members(uri: str, version: str | None, wanted: Sequence[Wanted]) -> Iterator[tuple[int, bytes]]:
    with stores.open_range(uri, None, None, version=version, block_bytes=_PACKED_BLOCK_BYTES) as file:
        stream = GzipStream(file)
        try:
            for one in sorted(wanted, key=lambda one: cast(int, one.byte_offset)):
                offset, size = cast(int, one.byte_offset), cast(int, one.byte_size)
                stream.seek(offset)
                data = stream.read(size)
                if len(data) < size:
                    raise ReadError(
                        f"{uri!r} ends after {stream.tell()} unpacked bytes where {offset + size} were "
                        "planned: it has changed; plan it again into a new output"
                    )
                yield one.item, data
        except StreamDamage as damage:
            raise ReadError(f"{uri!r} {damage}; fetch or make it again") from damage


def _parquet_rows(
    uri: str, column: str, rows: Sequence[int], *, version: str | None
) -> Iterator[tuple[int, bytes | None]]:
    with stores.open_range(uri, None, None, version=version, block_bytes=_PACKED_BLOCK_BYTES) as source:
        # Pages are read as they are needed: a column of a row group may not fit in memory.
        file = pq.ParquetFile(source, buffer_size=_PACKED_BLOCK_BYTES, pre_buffer=False)
        if column not in file.schema_arrow.names:
            raise ReadError(f"{uri!r} has no column {column!r}; plan it again into a new output")
        leaf = f"{column}.bytes" if pa.types.is_struct(file.schema_arrow.field(column).type) else column
        begin = 0
        rest = list(reversed(rows))
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            end = begin + group.num_rows
            if rest and rest[-1] < end:
                batch_rows = _batch_rows(group, leaf)
                for batch in file.iter_batches(
                    batch_size=batch_rows, row_groups=[number], columns=[leaf], use_threads=False
                ):
                    yield from _taken(batch.column(0), begin, rest)
                    begin += batch.num_rows
                    if not rest or rest[-1] >= end:
                        break
            begin = end
    _check_all_found(uri, rest, begin)


def _batch_rows(group: Any, leaf: str) -> int:
    for index in range(group.num_columns):
        chunk = group.column(index)
        if chunk.path_in_schema == leaf and group.num_rows:
            value_bytes = max(1, chunk.total_uncompressed_size // group.num_rows)
            return int(max(1, min(_BATCH_ROWS, _BATCH_BYTES // value_bytes)))
    return _BATCH_ROWS


def _arrow_rows(uri: str, column: str, rows: Sequence[int]) -> Iterator[tuple[int, bytes | None]]:
    rest = list(reversed(rows))
    begin = 0
    try:
        with pa.memory_map(stores.local_path(uri)) as source, pa.ipc.open_stream(source) as reader:
            if column not in reader.schema.names:
                raise ReadError(f"{uri!r} has no column {column!r}; plan it again into a new output")
            for batch in reader:
                yield from _taken(batch.column(column), begin, rest)
                begin += batch.num_rows
                if not rest:
                    break
    except (OSError, pa.ArrowException) as error:
        reason = stores.explain(error)
        raise ReadError(
            f"{uri!r} cannot be read ({reason}); restore it, or save the dataset again"
        ) from error
    _check_all_found(uri, rest, begin)


def _taken(values: pa.Array, begin: int, rest: list[int]) -> Iterator[tuple[int, bytes | None]]:
    """Takes what an array that begins at a row has of the rows in ``rest``, whose next is its last."""
    if pa.types.is_struct(values.type):
        present, values = values.is_valid(), values.field("bytes")
    else:
        present = None
    while rest and rest[-1] < begin + len(values):
        row = rest.pop()
        value = values[row - begin]
        is_there = value.is_valid and (present is None or present[row - begin].as_py())
        yield row, value.as_py() if is_there else None


def _check_all_found(uri: str, rest: list[int], num_rows: int) -> None:
    if rest:
        raise ReadError(
            f"{uri!r} has {num_rows} rows where row {rest[-1]} was planned: it has changed; plan it again "
            "into a new output"
        )
