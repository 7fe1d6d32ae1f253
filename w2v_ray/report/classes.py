"""The numbers of ``labels/`` and ``frames/``, in one pass over their rows."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray.report.distributions import Distribution, Tally
from w2v_ray.report.speech import most_common, numbers

__all__ = ["Labels", "LabelsReading", "Turns", "TurnsReading"]

_SCORE_WIDTH = 1e-4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What rows were named."""

    num_unnamed: int
    """Rows without a label."""
    score: Distribution | None
    by_label: dict[str, int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """Where classes are active. A turn ends with its row."""

    num_turns: int
    turn_s: Distribution | None
    by_class: dict[str, int]
    """Turns of each class."""
    seconds_by_class: dict[str, float]


class LabelsReading:
    """Adds up labels."""

    def __init__(self) -> None:
        self._num_unnamed = 0
        self._score = Tally(width=_SCORE_WIDTH, limit=1.0)
        self._labels: Counter[str] = Counter()

    def add(self, rows: pa.Table) -> None:
        """Takes in a table of rows."""
        labels = rows.column("label")
        self._num_unnamed += labels.null_count
        self._score.add(numbers(rows.column("score").filter(pc.is_valid(labels))))
        for entry in pc.value_counts(labels.drop_null()).to_pylist():
            self._labels[entry["values"]] += entry["counts"]

    def labels(self) -> Labels:
        """What was taken in."""
        return Labels(
            num_unnamed=self._num_unnamed,
            score=self._score.distribution(),
            by_label=most_common(self._labels),
        )


class TurnsReading:
    """Adds up turns."""

    def __init__(self) -> None:
        self._seconds = Tally(width=1e-3)
        self._turns: Counter[str] = Counter()
        self._of_class: dict[str, float] = {}

    def add(self, rows: pa.Table) -> None:
        """Takes in a table of rows."""
        turns = pc.list_flatten(rows.column("turns"))
        names = pc.struct_field(turns, "label")
        seconds = numbers(pc.subtract(pc.struct_field(turns, "end_s"), pc.struct_field(turns, "start_s")))
        self._seconds.add(seconds)
        codes = pa.chunked_array([names]) if isinstance(names, pa.Array) else names
        found = codes.combine_chunks().dictionary_encode()
        places = found.indices.to_numpy(zero_copy_only=False)
        size = len(found.dictionary)
        counts, sums = np.bincount(places, minlength=size), np.bincount(places, seconds, minlength=size)
        for name, count, total in zip(
            found.dictionary.to_pylist(), counts.tolist(), sums.tolist(), strict=True
        ):
            self._turns[name] += count
            self._of_class[name] = self._of_class.get(name, 0.0) + total

    def turns(self) -> Turns:
        """What was taken in."""
        by_class = most_common(self._turns)
        seconds = {name: self._of_class[name] for name in by_class if name in self._of_class}
        return Turns(
            num_turns=self._turns.total(),
            turn_s=self._seconds.distribution(),
            by_class=by_class,
            seconds_by_class=seconds,
        )
