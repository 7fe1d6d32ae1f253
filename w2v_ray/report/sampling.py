"""A sample of rows that pass by once, each as likely as any other, and the same in every run."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["Extremes", "Sample"]


class Extremes:
    """Keeps the rows with the lowest keys, the first of those that are alike."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[float, int, dict[str, Any]]] = []  # the highest key on top, as its negative
        self._seen = 0

    def add(self, rows: pa.Table, keys: NDArray[np.floating]) -> None:
        """Looks at rows and the key of each; a key that is no number keeps its row out."""
        order = np.argsort(keys, kind="stable")[: self._size]
        for place in order.tolist():
            key = float(keys[place])
            if not np.isfinite(key) or (len(self._heap) == self._size and -key <= self._heap[0][0]):
                break
            entry = (-key, -(self._seen + place), rows.slice(place, 1).to_pylist()[0])
            (heapq.heappush if len(self._heap) < self._size else heapq.heappushpop)(self._heap, entry)
        self._seen += len(keys)

    def rows(self) -> list[dict[str, Any]]:
        """Those that were kept, the one with the lowest key first."""
        return [row for _, _, row in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1]))]

    def in_order(self) -> list[dict[str, Any]]:
        """Those that were kept, in the order in which they came."""
        return [row for _, _, row in sorted(self._heap, key=lambda entry: -entry[1])]


class Sample:
    """Keeps rows drawn at random, with a seed of its own."""

    def __init__(self, size: int, *, columns: Sequence[str], seed: int = 0) -> None:
        self._kept = Extremes(size)
        self._columns = list(columns)
        self._generator = np.random.default_rng(seed)

    def add(self, rows: pa.Table) -> None:
        """Looks at more rows."""
        self._kept.add(rows.select(self._columns), self._generator.random(rows.num_rows))

    def rows(self) -> list[dict[str, Any]]:
        """Those that were kept, in the order in which they came."""
        return self._kept.in_order()
