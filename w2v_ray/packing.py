"""A shard as one row: every column of its table becomes one list, and back.

Ray may split a block between rows but never a row, so a packed shard stays whole, and a stage that
needs a batch size, as Ray demands of stages on a GPU, takes it with ``batch_size=1``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

__all__ = ["PackedStage", "PackedTables", "pack", "unpack"]


class PackedStage:
    """A stage that takes and returns tables, made to take and return packed ones."""

    def __init__(self, stage: Callable[[pa.Table], pa.Table]) -> None:
        self._stage = stage
        self.__name__ = getattr(stage, "__name__", type(stage).__name__)  # what Ray shows

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pack(self._stage(unpack(batch)))


class PackedTables:
    """The packed tables of what a function gives, made anew each time they are gone through.

    A packed table of few items takes 33 KB of memory, so that a list of a million would take 33 GB.
    """

    def __init__(self, tables: Callable[[], Iterable[pa.Table]]) -> None:
        self._tables = tables

    def __iter__(self) -> Iterator[pa.Table]:
        return map(pack, self._tables())


def pack(table: pa.Table) -> pa.Table:
    """Turns a table of any length into a table of one row, each column a large_list of its values."""
    columns = {}
    for name in table.column_names:
        values = _concatenate(table.column(name))
        columns[name] = pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)
    return pa.table(columns)


def unpack(table: pa.Table) -> pa.Table:
    """Turns the one row that ``pack`` made back into the table.

    Raises:
        ValueError: The table has another number of rows.
    """
    if table.num_rows != 1:
        raise ValueError(
            f"a packed table has one row, this one has {table.num_rows}; pass rows one at a time"
        )
    # flatten() honours offsets, so a slice of a larger block unpacks to its own values only
    return pa.table({name: _concatenate(table.column(name)).flatten() for name in table.column_names})


def _concatenate(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)  # combine_chunks would copy it
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):  # of several chunks where one array cannot hold them
        return pa.concat_arrays(combined.chunks)
    return combined
