"""Outputs of made-up speakers: embeddings whose every cosine a test can work out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.export_outputs import Row, item, made_output

SIZE = 16


def voices(number: int, *, seed: int = 0, size: int = SIZE) -> np.ndarray:
    """Speakers that are at right angles to each other, as far as there is room."""
    if number <= size:
        return np.eye(size)[:number]
    found = np.random.default_rng(seed).normal(size=(number, size))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def utterances(
    speakers: Sequence[int], *, noise: float = 0.05, seed: int = 0, size: int = SIZE
) -> np.ndarray:
    """An embedding of unit length of each of some speakers, near to the speaker's voice."""
    generator = np.random.default_rng(seed)
    found = voices(max(speakers) + 1, size=size)[list(speakers)]
    found = found + generator.normal(size=found.shape) * noise
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def table_of(
    vectors: np.ndarray, names: Sequence[str] | None = None, **columns: Sequence[object]
) -> pa.Table:
    """A table as read_embeddings returns, by recording."""
    lists = pa.FixedSizeListArray.from_arrays(
        pa.array(np.asarray(vectors, np.float32).reshape(-1)), vectors.shape[1]
    )
    ids = list(names) if names is not None else [f"/archive/{n:04}.wav" for n in range(len(vectors))]
    found = {
        "recording_id": pa.array(ids),
        "channel": pa.nulls(len(ids), pa.int32()),
        "duration_s": pa.array(np.ones(len(ids))),
        "embedding": lists,
    }
    return pa.table(found)


def embedded(start_s: float, end_s: float, vector: np.ndarray | None, **values: object) -> Row:
    """A row of embeddings/."""
    row = {"start_s": start_s, "end_s": end_s, "duration_s": end_s - start_s, "embedding": None}
    return row | ({} if vector is None else {"embedding": vector.tolist()}) | values


def embeddings_output(
    output: Path,
    recordings: Mapping[str, Sequence[Row]],
    *,
    dtype: pa.DataType | None = None,
    size: int = SIZE,
) -> str:
    """An output with a shard for every three recordings."""
    entries = [item(name, rows) for name, rows in recordings.items()]
    shards = [entries[begin : begin + 3] for begin in range(0, len(entries), 3)]
    types = {"embedding": pa.list_(dtype or pa.float32(), SIZE)}
    return made_output(output, shards, table="embeddings", types=types)
