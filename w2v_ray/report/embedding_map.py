"""Where embeddings lie: a sample of them on the two directions in which they differ most."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from w2v_ray import stores
from w2v_ray.errors import InputError
from w2v_ray.report.accuracy import metadata_value
from w2v_ray.report.sampling import Sample

__all__ = ["EmbeddingMap", "Embeddings", "EmbeddingsReading", "Point", "read_clusters"]

_MOST_POINTS = 2000
_LEAST_POINTS = 3
_MOST_GROUPS = 8
_BATCH = 8192

Clusters = dict[tuple[str, int | None], str]


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """An embedding on the map. Both coordinates have one scale, on which the farthest lie at -1 or 1."""

    x: float
    y: float
    group: int | None
    """The place of its group in the map's; None: it has none, or one of those that are not named."""
    name: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingMap:
    """A sample of embeddings in two dimensions: their principal components."""

    explained: tuple[float, float]
    """The share of the variance of the sample that each dimension has."""
    coloured_by: str | None
    """What the groups are, as the end of a sentence; None: there are none."""
    groups: tuple[tuple[str, int], ...]
    """The largest groups, and how many points of the sample each has."""
    num_other_groups: int
    num_in_others: int
    """Points of groups that are not named."""
    num_ungrouped: int
    points: tuple[Point, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """What ``embeddings/`` holds."""

    num_embeddings: int
    num_without: int
    """Rows whose audio is too short, or has no speech."""
    dimension: int
    map: EmbeddingMap | None
    """None: there are too few."""


class EmbeddingsReading:
    """Counts embeddings, and keeps a sample of them.

    Args:
        speaker_key: The key of the metadata that says who speaks.
        clusters: The path of a table that `w2v-ray cluster` wrote; it counts before the key.
    """

    def __init__(self, *, speaker_key: str | None, clusters: str | None) -> None:
        self._speaker_key, self._clusters = speaker_key, clusters
        columns = ["recording_id", "channel", "segment_id", "metadata", "embedding"]
        self._sample = Sample(_MOST_POINTS, columns=columns)
        self._num, self._num_without, self._dimension = 0, 0, 0

    def add(self, rows: pa.Table) -> None:
        """Takes in a table of rows."""
        column = rows.column("embedding")
        self._dimension = column.type.list_size
        self._num_without += column.null_count
        found = rows.filter(pc.is_valid(column))
        self._num += found.num_rows
        self._sample.add(found)

    def embeddings(self) -> Embeddings:
        """What was taken in."""
        rows = self._sample.rows()
        found = _map(rows, *self._grouped(rows)) if len(rows) >= _LEAST_POINTS else None
        return Embeddings(
            num_embeddings=self._num,
            num_without=self._num_without,
            dimension=self._dimension,
            map=found,
        )

    def _grouped(self, rows: list[dict[str, Any]]) -> tuple[list[str | None], str | None]:
        """The group of each row, and what groups are."""
        if self._clusters is not None:
            segments, recordings = read_clusters(self._clusters, rows)
            return [
                segments.get(row["segment_id"]) or recordings.get((row["recording_id"], row["channel"]))
                for row in rows
            ], f"the speakers of {self._clusters}"
        if self._speaker_key is not None:
            found = [metadata_value(row["metadata"], self._speaker_key) for row in rows]
            return found, f"{self._speaker_key!r} of the manifest"
        return [None] * len(rows), None


def read_clusters(path: str, rows: Iterable[dict[str, Any]]) -> tuple[dict[str, str], Clusters]:
    """The speakers that a table names for some rows: by segment, and by recording and channel.

    Raises:
        InputError: It cannot be read, or is no table that `w2v-ray cluster` writes.
    """
    rows = list(rows)
    wanted = pa.array({row["recording_id"] for row in rows}, pa.string())
    segments: dict[str, str] = {}
    recordings: Clusters = {}
    try:
        with stores.open_range(path, None, None) as source:
            file = pq.ParquetFile(source)
            names = file.schema_arrow.names
            if not {"recording_id", "channel", "speaker"} <= set(names):
                raise ValueError("it has no columns recording_id, channel and speaker")
            columns = [name for name in ("recording_id", "channel", "segment_id", "speaker") if name in names]
            for batch in file.iter_batches(_BATCH, columns=columns):
                found = batch.filter(pc.is_in(batch.column("recording_id"), value_set=wanted))
                for row in found.to_pylist():
                    if row["speaker"] is not None and "segment_id" in row:
                        segments[row["segment_id"]] = row["speaker"]
                    elif row["speaker"] is not None:
                        recordings[row["recording_id"], row["channel"]] = row["speaker"]
    except Exception as error:  # each store has its own errors, and Arrow its own
        raise InputError(
            f"{path!r} cannot be read as a table of speakers ({stores.explain(error)}); "
            "name what w2v-ray cluster wrote"
        ) from error
    return segments, recordings


def _map(rows: list[dict[str, Any]], groups: list[str | None], coloured_by: str | None) -> EmbeddingMap:
    matrix = np.array([row["embedding"] for row in rows], np.float64)
    matrix[~np.isfinite(matrix)] = 0.0
    places, explained = _components(matrix)
    counts = Counter(group for group in groups if group is not None)
    largest = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:_MOST_GROUPS]
    number = {name: place for place, (name, _) in enumerate(largest)}
    points = tuple(
        Point(round(x, 4), round(y, 4), None if group is None else number.get(group), _name(row))
        for (x, y), group, row in zip(places.tolist(), groups, rows, strict=True)
    )
    num_named = sum(count for _, count in largest)
    return EmbeddingMap(
        explained=explained,
        coloured_by=coloured_by,
        groups=tuple(largest),
        num_other_groups=len(counts) - len(largest),
        num_in_others=counts.total() - num_named,
        num_ungrouped=len(rows) - counts.total(),
        points=points,
    )


def _components(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Rows on their first two principal components, scaled by one number, and the variance these have."""
    centred = matrix - matrix.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    order = np.argsort(variances)[::-1][:2]
    found = np.zeros((len(matrix), 2))
    chosen = axes[:, order]
    chosen = chosen * np.where(chosen[np.abs(chosen).argmax(axis=0), range(chosen.shape[1])] < 0, -1, 1)
    found[:, : chosen.shape[1]] = centred @ chosen
    total = float(np.maximum(variances, 0).sum())
    shares = [float(max(variances[place], 0)) / total if total else 0.0 for place in order]
    scale = float(np.abs(found).max()) or 1.0
    return found / scale, (shares[0], shares[1] if len(shares) > 1 else 0.0)


def _name(row: dict[str, Any]) -> str:
    return str(row["segment_id"] or row["recording_id"])
