"""The nearest embeddings to some, and pairs that are nearly the same, in blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from w2v_ray.embeddings.reading import embedding_matrix, embedding_names
from w2v_ray.errors import ConfigError, InputError, MissingExtraError

__all__ = ["INDEXES", "near_duplicates", "nearest"]

INDEXES = ("exact", "faiss")

_QUERIES = 256
_ROWS = 1 << 14  # a block of cosines has 16 MB with as many queries
_LINKS = 32  # of a node of the graph
_EFFORT = 64  # nodes that a search keeps, at least


def nearest(
    embeddings: pa.Table, queries: pa.Table | NDArray[np.floating], *, top: int = 10, index: str = "exact"
) -> pa.Table:
    """The rows of a table that are nearest to each query, by cosine.

    A row is not its own neighbour: where a query is called as the row is, that row is left out.

    Args:
        embeddings: A table as `read_embeddings` returns.
        queries: Another such table, or some of its rows; or vectors (number, size), of any length.
        top: How many to find for each, where there are so many.
        index: ``exact`` compares every query with every row. ``faiss`` builds a graph (HNSW) first, which
            pays where there are tens of thousands of queries, and may miss some neighbours.

    Returns:
        For each query, the nearest first: ``query``, its name, or its number where it has none; ``rank`` from
        1; the columns of ``embeddings`` other than the embedding; and ``score``, the cosine.

    Raises:
        ConfigError: ``top`` is below 1, or ``index`` is neither.
        InputError: Queries have another size than the embeddings, or are no numbers.
        MissingExtraError: ``index`` is ``faiss`` and the package faiss-cpu is not installed.
    """
    if top < 1:
        raise ConfigError(f"top is {top}, expected at least 1")
    if index not in INDEXES:
        raise ConfigError(f"index is {index!r}, expected exact or faiss; choose one")
    matrix = embedding_matrix(embeddings)
    names: pa.Array = pa.array(embedding_names(embeddings), pa.string())
    if isinstance(queries, pa.Table):
        wanted, called = embedding_matrix(queries), pa.array(embedding_names(queries), pa.string())
        own = _places(called, names)
    else:
        wanted = embedding_matrix(pa.table({"embedding": _lists(queries)}))
        called, own = pa.array(np.arange(len(wanted))), np.full(len(wanted), -1)
    if wanted.shape[1] != matrix.shape[1]:
        raise InputError(
            f"queries have {wanted.shape[1]} numbers each and the embeddings {matrix.shape[1]}; "
            "make both with the same model and pooling"
        )
    count = min(top + bool((own >= 0).any()), len(matrix))
    search = _search_exactly if index == "exact" else _search_by_faiss
    rows, scores = search(matrix, wanted, count)
    is_kept = (rows >= 0) & (rows != own[:, None])
    is_kept &= np.cumsum(is_kept, axis=1) <= top
    ranks = np.cumsum(is_kept, axis=1)[is_kept]
    of_query = np.repeat(np.arange(len(wanted)), is_kept.sum(axis=1))
    found = embeddings.drop_columns(["embedding"]).take(pa.array(rows[is_kept]))
    columns = {"query": called.take(pa.array(of_query)), "rank": pa.array(ranks, pa.int32())}
    columns |= {name: found.column(name) for name in found.column_names}
    return pa.table(columns | {"score": pa.array(scores[is_kept], pa.float32())})


def near_duplicates(embeddings: pa.Table, threshold: float) -> Iterator[pa.Table]:
    """Pairs of rows whose cosine is at least a threshold, each once, in blocks as they are found.

    Args:
        embeddings: A table as `read_embeddings` returns.
        threshold: The least cosine, above 0 and at most 1.

    Yields:
        Columns ``row`` and ``other_row``, numbers of rows of which the first is the lower; ``name`` and
        ``other_name``, as `embedding_names` has them; and ``score``. Pairs are in order of ``row`` within a
        block of rows, and of ``other_row`` within a row.

    Raises:
        ConfigError: The threshold is out of bounds.
        InputError: The table has no embeddings.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold is {threshold}, expected a cosine above 0 and at most 1, such as 0.95")
    matrix = embedding_matrix(embeddings)
    names: pa.Array = pa.array(embedding_names(embeddings), pa.string())
    least = np.float32(threshold) - np.float32(1e-6)  # so that a vector equals itself
    for begin in range(0, len(matrix), _QUERIES):
        some = matrix[begin : begin + _QUERIES]
        parts = []
        for start in range(begin, len(matrix), _ROWS):
            cosines = some @ matrix[start : start + _ROWS].T
            row, other = np.nonzero(cosines >= least)
            is_later = other + start > row + begin
            row, other = row[is_later], other[is_later]
            parts.append((row + begin, other + start, np.minimum(cosines[row, other], 1)))
        found = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
        if len(found[0]):
            order = np.lexsort((found[1], found[0]))
            rows, others, scores = (pa.array(column[order]) for column in found)
            yield pa.table(
                {
                    "row": rows,
                    "other_row": others,
                    "name": names.take(rows),
                    "other_name": names.take(others),
                    "score": scores,
                }
            )


def _search_exactly(
    matrix: NDArray[np.float32], wanted: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    rows = np.empty((len(wanted), count), np.int64)
    scores = np.empty((len(wanted), count), np.float32)
    for begin in range(0, len(wanted), _QUERIES):
        some = slice(begin, begin + _QUERIES)
        best = np.empty((len(wanted[some]), 0), np.float32)
        best_rows = np.empty(best.shape, np.int64)
        for start in range(0, len(matrix), _ROWS):
            cosines = wanted[some] @ matrix[start : start + _ROWS].T
            numbers = np.broadcast_to(np.arange(start, start + cosines.shape[1]), cosines.shape)
            best = np.concatenate([best, cosines], axis=1)
            best_rows = np.concatenate([best_rows, numbers], axis=1)
            if best.shape[1] > count:
                places = np.argpartition(-best, count - 1, axis=1)[:, :count]
                best = np.take_along_axis(best, places, axis=1)
                best_rows = np.take_along_axis(best_rows, places, axis=1)
        order = np.lexsort((best_rows, -best), axis=1)
        rows[some] = np.take_along_axis(best_rows, order, axis=1)
        scores[some] = np.take_along_axis(best, order, axis=1)
    return rows, scores


def _search_by_faiss(
    matrix: NDArray[np.float32], wanted: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows are -1 where the graph finds fewer."""
    faiss = _faiss()
    graph = faiss.IndexHNSWFlat(matrix.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efSearch = max(_EFFORT, 2 * count)
    graph.add(matrix)
    scores, rows = graph.search(wanted, count)
    return rows, scores


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError(
            "index faiss needs the package faiss-cpu; pip install 'w2v-ray[search]'"
        ) from error
    return faiss


def _places(called: pa.Array, names: pa.Array) -> NDArray[np.int64]:
    """Where each of some names is among others; -1: nowhere."""
    found = pc.fill_null(pc.index_in(called, value_set=names), -1)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)


def _lists(vectors: NDArray[np.floating]) -> pa.FixedSizeListArray:
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or not vectors.shape[1]:
        raise InputError(f"queries have shape {vectors.shape}, expected (number, size of an embedding)")
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
