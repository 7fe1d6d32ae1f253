"""The embeddings of an output as one table, by recording or by segment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from w2v_ray.errors import ConfigError, InputError, OutputError
from w2v_ray.output import current_rows
from w2v_ray.recording_names import match_names

__all__ = ["PER", "embedding_matrix", "embedding_names", "match_rows", "named_rows", "read_embeddings"]

PER = ("recording", "segment")

_OF_RECORDING = ["recording_id", "channel", "duration_s"]
_OF_SEGMENT = ["recording_id", "channel", "segment_id", "start_s", "end_s", "duration_s"]


def read_embeddings(output: str, *, per: str = "recording") -> pa.Table:
    """The embeddings of an output, in the order in which recordings were planned.

    The embedding of a recording is the mean of those of its segments, each weighted by its length, scaled to
    unit length again. Channels that were embedded apart stay apart. Segments without an embedding, such as
    those too short for the model, are left out. Beside the result, the rows of some tens of shards are in
    memory.

    Args:
        output: Folder or URL of a job's output that has the table ``embeddings``.
        per: ``recording`` or ``segment``: what has a row.

    Returns:
        Columns ``recording_id``; ``channel``, from 0, or null for the mix; of segments ``segment_id``,
        ``start_s`` and ``end_s``; ``duration_s``, the seconds that the embedding is of; and ``embedding``,
        a fixed-size list of float32 of unit length.

    Raises:
        ConfigError: ``per`` is neither.
        OutputError: It is no output, has no such table or no embeddings, or a file cannot be read.
    """
    if per not in PER:
        raise ConfigError(f"per is {per!r}, expected recording or segment; choose one")
    parts = []
    for rows in current_rows(output, "embeddings"):
        if (rows := rows.filter(pc.is_valid(rows.column("embedding")))).num_rows:
            parts.append(_by_recording(rows) if per == "recording" else _by_segment(rows))
    if not parts:
        raise OutputError(f"output {output!r} holds no embeddings yet; run its job first")
    return pa.concat_tables(parts)


def embedding_matrix(table: pa.Table) -> NDArray[np.float32]:
    """The column ``embedding`` as a matrix with a row of unit length for each of the table's.

    Raises:
        InputError: There is no such column, its lists differ in length, or a value is missing or not finite.
    """
    if "embedding" not in table.column_names:
        raise InputError(
            f"the table has no column 'embedding', only {', '.join(table.column_names)}; "
            "give one that read_embeddings returns"
        )
    column = table.column("embedding")
    if not pa.types.is_fixed_size_list(column.type) or column.null_count:
        raise InputError(
            f"the column 'embedding' is {column.type} with {column.null_count} nulls, expected fixed-size "
            "lists and none; give a table that read_embeddings returns"
        )
    matrix = np.empty((len(column), column.type.list_size), np.float32)
    begin = 0
    for chunk in column.chunks:
        values = chunk.flatten().to_numpy(zero_copy_only=False)
        matrix[begin : begin + len(chunk)] = values.reshape(len(chunk), -1)
        begin += len(chunk)
    if not np.isfinite(matrix).all():
        row = int(np.flatnonzero(~np.isfinite(matrix).all(axis=1))[0])
        raise InputError(f"the embedding in row {row} of the table is not finite; leave it out")
    return _unit(matrix)


def embedding_names(table: pa.Table) -> list[str]:
    """What each row is called: its segment's id, or its recording's, with ``#cN`` for a channel of it."""
    if "segment_id" in table.column_names:
        return list(table.column("segment_id").to_pylist())
    ids = table.column("recording_id").to_pylist()
    if "channel" not in table.column_names:
        return list(ids)
    channels = table.column("channel").to_pylist()
    return [name if c is None else f"{name}#c{c}" for name, c in zip(ids, channels, strict=True)]


def named_rows(table: pa.Table) -> Iterator[tuple[str, int]]:
    """Every name of each row, and the row's number: a recording without its channel, too."""
    for row, name in enumerate(embedding_names(table)):
        yield name, row
    if "segment_id" not in table.column_names:
        yield from zip(table.column("recording_id").to_pylist(), range(table.num_rows), strict=True)


def match_rows(names: Sequence[str], table: pa.Table) -> list[int]:
    """The number of the row that each name means: an id, or the end of one.

    Raises:
        InputError: A name means no row, or may mean several.
    """
    found = match_names(names, named_rows(table), source="the query")
    for name in names:
        if name not in found:
            raise InputError(
                f"no row of the table is called {name!r}; give an id as the table has it, such as "
                f"{embedding_names(table)[0]!r}, or the end of one"
            )
    return [found[name] for name in names]


def _by_segment(rows: pa.Table) -> pa.Table:
    return rows.select(_OF_SEGMENT).append_column("embedding", _lists(embedding_matrix(rows)))


def _by_recording(rows: pa.Table) -> pa.Table:
    codes = rows.column("recording_id").combine_chunks().dictionary_encode().indices.to_numpy()
    channels = pc.fill_null(rows.column("channel"), -1).to_numpy()
    _, firsts, groups = np.unique(np.stack([codes, channels]), axis=1, return_index=True, return_inverse=True)
    groups = groups.reshape(-1)
    seconds = rows.column("duration_s").to_numpy()
    weighted = embedding_matrix(rows) * seconds[:, None]
    sums = np.zeros((len(firsts), weighted.shape[1]))
    np.add.at(sums, groups, weighted)
    found = rows.take(firsts).select(_OF_RECORDING[:-1])
    found = found.append_column("duration_s", pa.array(np.bincount(groups, seconds)))
    return found.append_column("embedding", _lists(_unit(sums).astype(np.float32)))


def _unit(matrix: NDArray[np.floating]) -> NDArray[np.floating]:
    """Rows scaled to unit length; those of zeros stay so."""
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix / np.where(lengths > 0, lengths, 1)


def _lists(matrix: NDArray[np.floating]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
