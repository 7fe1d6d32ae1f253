"""Numbers that pass by once: counted into bins, so that millions take the memory of thousands."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bin", "Distribution", "Tally"]

_FINE_BINS = 20_000
_NICE_STEPS = (1, 2, 5)
_LEAST_BINS, _MOST_BINS = 10, 30  # that a chart has


@dataclasses.dataclass(frozen=True, slots=True)
class Bin:
    """How many values are at least ``start`` and less than ``end``; of the last, None: any number."""

    start: float
    end: float | None
    count: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """What is known of many values. Quantiles are exact to ``resolution``, the rest is exact."""

    count: int
    mean: float
    min: float
    p10: float
    p50: float
    p90: float
    p99: float
    max: float
    resolution: float
    """The width of the bins that quantiles were read from."""
    bins: tuple[Bin, ...]


class Tally:
    """Counts values from 0 up, given in any number of parts.

    Bins become ten times as wide whenever a value lies beyond the last.

    Args:
        width: Of the first bins: what values are told apart by.
        limit: Values are at most this, and those that are this belong to the bin below it; None: no limit.
    """

    def __init__(self, *, width: float, limit: float | None = None) -> None:
        self._width, self._limit = width, limit
        self._counts = np.zeros(_FINE_BINS, np.int64)
        self._count, self._sum = 0, 0.0
        self._min, self._max = math.inf, -math.inf

    def add(self, values: NDArray[np.floating]) -> None:
        """Counts values; those that are no numbers are left out."""
        values = values[np.isfinite(values)].astype(np.float64)
        if not len(values):
            return
        self._count += len(values)
        self._sum += float(values.sum())
        self._min = min(self._min, float(values.min()))
        self._max = max(self._max, float(values.max()))
        while self._max >= self._width * _FINE_BINS:
            tenths = self._counts.reshape(-1, 10).sum(axis=1)
            self._counts = np.concatenate([tenths, np.zeros(_FINE_BINS - len(tenths), np.int64)])
            self._width *= 10
        # A value on an edge, such as 0.3 of a width of 0.1, is not to fall short of it by a rounding error.
        places = np.maximum(np.floor(values / self._width + 1e-9), 0).astype(np.int64)
        if self._limit is not None:
            places = np.minimum(places, round(self._limit / self._width) - 1)
        self._counts += np.bincount(np.minimum(places, _FINE_BINS - 1), minlength=_FINE_BINS)

    def distribution(self) -> Distribution | None:
        """What the values are like; None where there was none."""
        if not self._count:
            return None
        quantiles = {f"p{share}": self._quantile(share / 100) for share in (10, 50, 90, 99)}
        return Distribution(
            count=self._count,
            mean=self._sum / self._count,
            min=self._min,
            max=self._max,
            resolution=self._width,
            bins=self._bins(quantiles["p99"]),
            **quantiles,
        )

    def _quantile(self, share: float) -> float:
        place = int(np.searchsorted(np.cumsum(self._counts), share * self._count))
        return min(max((place + 0.5) * self._width, self._min), self._max)

    def _bins(self, most: float) -> tuple[Bin, ...]:
        """Bins with round edges, as many as tell something; a long tail is one without an end."""
        top = self._limit or (self._max if self._max <= 1.5 * most else most)
        number = min(max(math.ceil(2 * math.sqrt(self._count)), _LEAST_BINS), _MOST_BINS)
        is_narrow = self._min > top / 2 and top - self._min > top / 100  # else the bins would be too fine
        begin = self._min if is_narrow else 0.0
        step = self._step((top - begin) / number)
        first = math.floor(begin / (step * self._width) + 1e-9)
        last = max(math.ceil(top / (step * self._width) - 1e-9), first + 1)
        places = np.arange(first, last + 1) * step
        before = np.concatenate([[0], np.cumsum(self._counts)])
        counts = np.diff(before[np.minimum(places, _FINE_BINS)]).tolist()
        edges = [round(int(place) * self._width, 9) for place in places]
        found = [Bin(*span, count) for span, count in zip(pairwise(edges), counts, strict=True)]
        if rest := self._count - sum(counts):
            found.append(Bin(edges[-1], None, rest))
        return tuple(found)

    def _step(self, least: float) -> int:
        """The least round number of fine bins that is as wide as ``least``."""
        scale = 1
        while True:
            for nice in _NICE_STEPS:
                if nice * scale * self._width >= least * (1 - 1e-9):
                    return nice * scale
            scale *= 10
