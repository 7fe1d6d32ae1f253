"""Speaker verification: how well scores of pairs tell those of one speaker from those of two.

A pair is accepted where its score is at or above a threshold. Scores that are equal are accepted together,
so each different score is one point of the curve of misses and false alarms.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["DetectionCost", "EqualError", "equal_error_rate", "min_detection_cost"]


class EqualError(NamedTuple):
    """The equal error rate, and the threshold that comes closest to it."""

    rate: float
    """From 0 to 1: what misses and false alarms both are."""
    threshold: float
    """The score for which the two rates differ least where pairs at or above it are accepted."""


class DetectionCost(NamedTuple):
    """The least cost of any threshold, and that threshold."""

    cost: float
    """In units of the better of accepting all and rejecting all pairs: at most 1."""
    threshold: float
    """Pairs at or above it are accepted; infinity: none is."""


class _Curve(NamedTuple):
    """The points of all thresholds, from rejecting every pair to accepting every pair."""

    misses: NDArray[np.float64]
    """Share of the target pairs that are rejected."""
    false_alarms: NDArray[np.float64]
    """Share of the other pairs that are accepted."""
    thresholds: NDArray[np.float64]


def equal_error_rate(scores: ArrayLike, targets: ArrayLike) -> EqualError:
    """The rate at which misses and false alarms are equally frequent.

    Between the two thresholds where the rates cross, both are taken to change linearly: the point where the
    plain ROC curve, not its convex hull, crosses the diagonal.

    Args:
        scores: Of the pairs, higher for the same speaker.
        targets: Of each pair, whether it is of one speaker.

    Raises:
        ValueError: There are no pairs of one of the two kinds, a score is no number, or the lengths differ.
    """
    curve = _curve(scores, targets)
    gap = curve.misses - curve.false_alarms  # from 1 to -1, falling with every point
    after = int(np.argmax(gap <= 0))
    before = after - 1
    share = gap[before] / (gap[before] - gap[after])
    rate = curve.misses[before] + share * (curve.misses[after] - curve.misses[before])
    # The first point has no score: where it is the closer one, so is rejecting everything.
    nearest = after if before == 0 or -gap[after] <= gap[before] else before
    return EqualError(float(rate), float(curve.thresholds[nearest]))


def min_detection_cost(
    scores: ArrayLike, targets: ArrayLike, *, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0
) -> DetectionCost:
    """The detection cost of the best threshold, as NIST's evaluations define it (minDCF).

    Args:
        scores: Of the pairs, higher for the same speaker.
        targets: Of each pair, whether it is of one speaker.
        p_target: How likely a pair is of one speaker where the system will be used.
        c_miss: What it costs to reject such a pair.
        c_fa: What it costs to accept another.

    Raises:
        ValueError: As of `equal_error_rate`; or ``p_target`` is not between 0 and 1, or a cost not above 0.
    """
    if not 0 < p_target < 1 or not min(c_miss, c_fa) > 0:
        raise ValueError(
            f"p_target is {p_target}, c_miss {c_miss} and c_fa {c_fa}, expected between 0 and 1, and above 0"
        )
    curve = _curve(scores, targets)
    costs = c_miss * p_target * curve.misses + c_fa * (1 - p_target) * curve.false_alarms
    best = int(np.argmin(costs))
    least = float(costs[best]) / min(c_miss * p_target, c_fa * (1 - p_target))
    return DetectionCost(least, float(curve.thresholds[best]))


def _curve(scores: ArrayLike, targets: ArrayLike) -> _Curve:
    values = np.asarray(scores, dtype=np.float64)
    is_target = np.asarray(targets).astype(bool)
    if values.ndim != 1 or values.shape != is_target.shape:
        raise ValueError(
            f"scores have shape {values.shape} and targets {is_target.shape}, expected one list of each, "
            "equally long"
        )
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} scores are not a number; leave their pairs out")
    num_targets = int(is_target.sum())
    num_others = len(values) - num_targets
    if not num_targets or not num_others:
        raise ValueError(
            f"there are {num_targets} target and {num_others} non-target pairs, expected some of each"
        )
    order = np.argsort(-values, kind="stable")
    values, is_target = values[order], is_target[order]
    ends = np.flatnonzero(np.append(values[:-1] != values[1:], True))  # of each run of equal scores
    accepted = np.cumsum(is_target)[ends]
    misses = 1 - accepted / num_targets
    false_alarms = (ends + 1 - accepted) / num_others
    return _Curve(
        np.concatenate([[1.0], misses]),
        np.concatenate([[0.0], false_alarms]),
        np.concatenate([[np.inf], values[ends]]),
    )
