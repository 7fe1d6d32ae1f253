"""What rows are like, in a few counts for each shard that add up: how sure, how long, how much was said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["CONFIDENCE_EDGES", "SECONDS_EDGES", "Quality", "describe"]

# How sure rows are: the upper ends of 20 bins, the last one closed. Lengths: half a second apart at first,
# and what is longer than the last is in one bin more.
CONFIDENCE_EDGES = tuple(round(0.05 * step, 2) for step in range(1, 21))
SECONDS_EDGES = (0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 40, 60, 120, 300)
_CONFIDENCE = ("confidence", "score")  # of transcripts; of labels and alignments


def describe(rows: pa.Table) -> dict[str, Any]:
    """The counts of a shard's rows, for its footer.

    Args:
        rows: Of the table of any task.

    Returns:
        ``segment_s`` and ``confidence``, numbers of rows by bin, ``confidence_sum``, ``num_words`` and
        ``speech_s``, the seconds that are not silent; what the table has no column for is left out.
    """
    names = rows.column_names
    found: dict[str, Any] = {"segment_s": _binned(rows.column("duration_s"), SECONDS_EDGES)}
    name = next((name for name in _CONFIDENCE if name in names), None)
    if name is not None:
        values = rows.column(name).drop_null()
        found["confidence"] = _binned(values, CONFIDENCE_EDGES)[:-1]
        found["confidence_sum"] = float(pc.sum(values.cast(pa.float64())).as_py() or 0.0)
    if "words" in names:
        found["num_words"] = pc.sum(pc.list_value_length(rows.column("words"))).as_py() or 0
        if "speech_ratio" in names:
            ratios = pc.fill_null(rows.column("speech_ratio"), 1.0).cast(pa.float64())
            found["speech_s"] = pc.sum(pc.multiply(ratios, rows.column("duration_s"))).as_py() or 0.0
    return found


class Quality:
    """What many shards are like together: shards are added, and what they add up to is told."""

    def __init__(self) -> None:
        self._seconds = np.zeros(len(SECONDS_EDGES) + 1, np.int64)
        self._confidence = np.zeros(len(CONFIDENCE_EDGES), np.int64)
        self._confidence_sum = self._speech_s = 0.0
        self._num_words = 0

    def add(self, shard: Mapping[str, Any]) -> None:
        """Adds what `describe` found of a shard; {} of one that an earlier version wrote."""
        if "segment_s" in shard:
            self._seconds += shard["segment_s"]
        if "confidence" in shard:
            self._confidence += shard["confidence"]
            self._confidence_sum += shard["confidence_sum"]
        if "speech_s" in shard:
            self._num_words += shard["num_words"]
            self._speech_s += shard["speech_s"]

    def to_dict(self) -> dict[str, Any]:
        """What the shards are like.

        Returns:
            ``confidence`` (``mean``, ``p10``, ``p50``, ``p90``), ``segment_s`` (``p50``, ``p90``) and
            ``speech_rate_wps``, words in a second that is not silent; None where no shard tells.
            Percentiles are read off the bins.
        """
        sure, lengths = None, None
        if num_sure := int(self._confidence.sum()):
            points = {f"p{p}": _percentile(self._confidence, CONFIDENCE_EDGES, p) for p in (10, 50, 90)}
            sure = {"mean": self._confidence_sum / num_sure, **points}
        if self._seconds.sum():
            lengths = {f"p{p}": _percentile(self._seconds, SECONDS_EDGES, p) for p in (50, 90)}
        return {
            "confidence": sure,
            "speech_rate_wps": self._num_words / self._speech_s if self._speech_s > 0 else None,
            "segment_s": lengths,
        }


def _binned(values: pa.ChunkedArray, edges: tuple[float, ...]) -> list[int]:
    """How many values are at most each edge and above the one before; beyond the last, one count more."""
    places = np.searchsorted(edges, values.to_numpy(), side="left")
    return [int(count) for count in np.bincount(places, minlength=len(edges) + 1)]


def _percentile(counts: np.ndarray, edges: tuple[float, ...], percent: float) -> float:
    """The value that so many percent of all are below, taken as spread evenly in its bin."""
    wanted = counts.sum() * percent / 100
    place = int(np.searchsorted(np.cumsum(counts), wanted))
    below = int(counts[:place].sum())
    if place >= len(edges):
        return float(edges[-1])
    low = float(edges[place - 1]) if place else 0.0
    return low + (float(edges[place]) - low) * float(wanted - below) / max(1, int(counts[place]))
