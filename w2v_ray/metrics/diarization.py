"""Diarization error rate: how much of who speaks when is missed, made up or taken for somebody else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from w2v_ray.errors import MissingExtraError

__all__ = ["DiarizationErrors", "diarization_error_rate", "diarization_errors"]

Span = tuple[str, float, float]
"""A label, and where it holds: start and end in seconds."""


@dataclass(frozen=True, slots=True)
class DiarizationErrors:
    """Seconds of speech, those of two who speak at once counted twice; they add up with ``+``."""

    correct_s: float = 0.0
    missed_s: float = 0.0
    """Speech of the reference that the hypothesis does not have."""
    false_alarm_s: float = 0.0
    """Speech that only the hypothesis has."""
    confusion_s: float = 0.0
    """Speech of both, of another speaker."""

    def __add__(self, other: DiarizationErrors) -> DiarizationErrors:
        return DiarizationErrors(
            self.correct_s + other.correct_s,
            self.missed_s + other.missed_s,
            self.false_alarm_s + other.false_alarm_s,
            self.confusion_s + other.confusion_s,
        )

    @property
    def total_s(self) -> float:
        """Speech of the reference."""
        return self.correct_s + self.missed_s + self.confusion_s

    @property
    def rate(self) -> float:
        """Errors per second of speech; without speech 1 where there are any, as pyannote.metrics has it."""
        errors_s = self.missed_s + self.false_alarm_s + self.confusion_s
        if not self.total_s:
            return float(errors_s > 0)
        return errors_s / self.total_s


def diarization_error_rate(
    reference: Sequence[Span], hypothesis: Sequence[Span], *, collar: float = 0.0, skip_overlap: bool = False
) -> float:
    """The diarization error rate of one recording; see `diarization_errors`."""
    return diarization_errors(reference, hypothesis, collar=collar, skip_overlap=skip_overlap).rate


def diarization_errors(
    reference: Sequence[Span],
    hypothesis: Sequence[Span],
    *,
    collar: float = 0.0,
    skip_overlap: bool = False,
    regions: Sequence[tuple[float, float]] | None = None,
) -> DiarizationErrors:
    """Compares who speaks when in one recording, as pyannote.metrics does.

    Labels of the two need not be the same: each label of the hypothesis stands for the one label of the
    reference, and each for another, so that as much as possible is correct. Two turns of one label that
    overlap count twice there.

    Args:
        reference: Label, start and end, in seconds, of what is right.
        hypothesis: The same of what was found.
        collar: Seconds around each start and end of the reference that do not count, half of them before
            and half after: 0.5 is what md-eval calls a collar of 0.25.
        skip_overlap: Whether what several turns of the reference overlap in does not count.
        regions: Start and end of what counts; None: everything.

    Raises:
        ValueError: ``collar`` is negative, or a turn ends before it starts.
        MissingExtraError: The package scipy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingExtraError(
            "the diarization error rate needs the package scipy; pip install 'w2v-ray[speakers]'"
        ) from error
    if not collar >= 0:
        raise ValueError(f"collar is {collar}, expected seconds from 0")
    for label, start_s, end_s in (*reference, *hypothesis):
        if not start_s <= end_s:
            raise ValueError(f"a turn of {label!r} ends at {end_s}, before it starts at {start_s}")
    reference, hypothesis = (
        [span for span in spans if span[1] < span[2]] for spans in (reference, hypothesis)
    )
    collars = [
        ("", edge - collar / 2, edge + collar / 2) for _, *edges in reference for edge in edges if collar
    ]
    kept = [("", start_s, end_s) for start_s, end_s in regions or []]
    grid = np.unique([edge for _, *edges in (*reference, *hypothesis, *collars, *kept) for edge in edges])
    if len(grid) < 2:
        return DiarizationErrors()
    said, heard = _activity(reference, grid), _activity(hypothesis, grid)
    num_said, num_heard = said.sum(axis=0), heard.sum(axis=0)
    seconds = np.diff(grid)
    if collars:
        seconds[_activity(collars, grid)[0] > 0] = 0
    if skip_overlap:
        seconds[num_said > 1] = 0
    if regions is not None:
        seconds[_activity(kept, grid).sum(axis=0) == 0] = 0

    together_s = (said * seconds) @ heard.T
    pairs = zip(*linear_sum_assignment(together_s, maximize=True), strict=True)
    matched = np.zeros(len(seconds), np.int64)
    for of_reference, of_hypothesis in pairs:
        matched += np.minimum(said[of_reference], heard[of_hypothesis])
    return DiarizationErrors(
        correct_s=float(matched @ seconds),
        missed_s=float(np.maximum(num_said - num_heard, 0) @ seconds),
        false_alarm_s=float(np.maximum(num_heard - num_said, 0) @ seconds),
        confusion_s=float((np.minimum(num_said, num_heard) - matched) @ seconds),
    )


def _activity(spans: Iterable[Span], grid: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many spans of each label cover each interval between points of the grid that all spans lie on."""
    spans = list(spans)
    rows = {label: row for row, label in enumerate(dict.fromkeys(label for label, _, _ in spans))}
    changes = np.zeros((len(rows), len(grid)), np.int64)
    labels = np.array([rows[label] for label, _, _ in spans], np.int64)
    for column, change in ((1, 1), (2, -1)):
        places = np.searchsorted(grid, np.array([span[column] for span in spans], np.float64))
        np.add.at(changes, (labels, places), change)
    return np.cumsum(changes, axis=1)[:, :-1]
