"""Labels against those that are right: accuracy, precision, recall and F1, as scikit-learn defines them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ClassificationReport",
    "LabelScores",
    "classification_accuracy",
    "classification_report",
    "top_k_accuracy",
]


class LabelScores(NamedTuple):
    """How one label fares; what cannot be divided is 0."""

    precision: float
    """Share of those called so that are."""
    recall: float
    """Share of those that are so that are called so."""
    f1: float
    """Harmonic mean of the two."""
    support: int
    """How many are so."""


@dataclass(frozen=True, slots=True)
class ClassificationReport:
    """What became of each label."""

    num: int
    """Labels compared."""
    accuracy: float
    labels: dict[str, LabelScores]
    """All labels that are right or were given, by name."""
    confusions: list[tuple[str, str | None, int]]
    """The right label, the one given instead, and how often; the most frequent first."""

    @property
    def macro_f1(self) -> float:
        """The mean F1 of all labels, each counted alike."""
        return float(np.mean([scores.f1 for scores in self.labels.values()]))

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the labels that are right somewhere, each counted alike."""
        return float(np.mean([scores.recall for scores in self.labels.values() if scores.support]))


def classification_accuracy(references: Sequence[str], predictions: Sequence[str | None]) -> float:
    """The share of predictions that equal their reference; None equals none.

    Raises:
        ValueError: There are no references, or another number of predictions.
    """
    _check(references, predictions)
    hits = sum(right == given for right, given in zip(references, predictions, strict=True))
    return hits / len(references)


def classification_report(
    references: Sequence[str], predictions: Sequence[str | None]
) -> ClassificationReport:
    """Counts what was given for what is right.

    Args:
        references: The right labels.
        predictions: Those given; None where none was.

    Raises:
        ValueError: There are no references, or another number of predictions.
    """
    _check(references, predictions)
    names = sorted({*references, *(label for label in predictions if label is not None)})
    code = {name: number for number, name in enumerate(names)}
    size = len(names) + 1  # the last column: no label was given
    right = np.array([code[label] for label in references], np.int64)
    given = np.array([size - 1 if label is None else code[label] for label in predictions], np.int64)
    matrix = np.bincount(right * size + given, minlength=len(names) * size).reshape(len(names), size)
    hits, support, called = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)[:-1]
    precision, recall = _ratio(hits, called), _ratio(hits, support)
    f1 = _ratio(2 * hits, called + support)
    labels = {
        name: LabelScores(float(p), float(r), float(f), int(n))
        for name, p, r, f, n in zip(names, precision, recall, f1, support, strict=True)
    }
    wrong = [
        (names[i], None if j == size - 1 else names[j], int(matrix[i, j]))
        for i, j in np.argwhere(matrix)
        if i != j
    ]
    wrong.sort(key=lambda entry: -entry[2])  # and by name where as frequent
    return ClassificationReport(len(references), int(hits.sum()) / len(references), labels, wrong)


def top_k_accuracy(references: Sequence[str], rankings: Sequence[Sequence[str]], *, k: int) -> float:
    """The share of references that are among the first ``k`` labels of their ranking, likeliest first.

    Raises:
        ValueError: There are no references, another number of rankings, or ``k`` is below 1.
    """
    _check(references, rankings)
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    hits = sum(right in ranking[:k] for right, ranking in zip(references, rankings, strict=True))
    return hits / len(references)


def _check(references: Sequence[str], others: Sequence[object]) -> None:
    if not references or len(references) != len(others):
        raise ValueError(
            f"there are {len(references)} references and {len(others)} predictions, "
            "expected as many, and at least one"
        )


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
