"""CTC forced alignment: where in an emission each token of a given sequence is, and how likely the whole is.

It knows columns of an emission and nothing of texts; `align_text` builds on it for words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from w2v_ray.errors import AlignError
from w2v_ray.text._beam import align as _align

__all__ = ["ForcedAlignment", "forced_align", "forced_align_batch"]


@dataclass(frozen=True, slots=True, eq=False)
class ForcedAlignment:
    """The best path of a token sequence through an emission."""

    path: NDArray[np.int32]
    """The column of each frame: a token or the blank."""
    scores: NDArray[np.float32]
    """The log-probability of that column in each frame."""
    starts: NDArray[np.int64]
    """The first frame of each token."""
    ends: NDArray[np.int64]
    """The last frame of each token, plus one; frames between two tokens are blank."""
    token_scores: NDArray[np.float64]
    """In [0, 1]: the geometric mean of the probabilities of each token's frames."""
    loss: float
    """The CTC loss: the negative logarithm of the probability of the tokens over all paths, in nats; NaN
    where it was not asked for."""


def forced_align(log_probs: NDArray[Any], targets: ArrayLike, *, blank: int = 0) -> ForcedAlignment:
    """Aligns one token sequence.

    Args:
        log_probs: Natural log-probabilities, shape (frames, columns), of any float type; computed in
            float32, the loss in float64.
        targets: The column of each token, shape (tokens,); none of them the blank. May be empty.
        blank: The column of the blank.

    Raises:
        AlignError: There are fewer frames than the tokens need (one each, and a blank between equal
            neighbours), or the emission holds NaN or infinity.
        ValueError: A target is no column, or is the blank; or the shapes are others.
    """
    (result,) = forced_align_batch([log_probs], [targets], blank=blank)
    if isinstance(result, AlignError):
        raise result
    return result


def forced_align_batch(
    log_probs: Sequence[NDArray[Any]],
    targets: Sequence[ArrayLike],
    *,
    blank: int = 0,
    with_loss: bool = True,
    num_threads: int = 1,
) -> list[ForcedAlignment | AlignError]:
    """Aligns a token sequence with each of many emissions, which may differ in length.

    The results do not depend on the batch or the number of threads.

    Args:
        log_probs: Of each item, as of ``forced_align``.
        targets: Of each item, as of ``forced_align``.
        blank: The column of the blank.
        with_loss: Whether to compute the loss, which takes most of the time.
        num_threads: Threads that share the items; the interpreter is free meanwhile.

    Returns:
        For each item its alignment, or why it has none.

    Raises:
        ValueError: As of ``forced_align``; or the numbers of items differ, or there is no thread.
    """
    if len(log_probs) != len(targets):
        raise ValueError(f"{len(log_probs)} emissions and {len(targets)} targets, expected as many of each")
    if num_threads < 1:
        raise ValueError(f"num_threads is {num_threads}, expected at least 1")
    items = [_Item.of(*item, blank) for item in zip(log_probs, targets, strict=True)]
    errors = [item.refusal() for item in items]
    sound = [item for item, error in zip(items, errors, strict=True) if error is None]
    states = [np.empty(len(item.emission), np.int32) for item in sound]
    losses = np.full(len(sound), np.nan)
    emissions, labels = [item.emission for item in sound], [item.labels for item in sound]
    _align(emissions, labels, 0, states, losses, with_loss, num_threads)
    made = (item.read(path, float(loss)) for item, path, loss in zip(sound, states, losses, strict=True))
    return [next(made) if error is None else error for error in errors]


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    """An emission without the columns that its tokens do not use; the blank is the first of the others."""

    emission: NDArray[np.float32]
    labels: NDArray[np.int32]
    columns: NDArray[np.int32]
    """Which columns of the whole emission these are."""

    @classmethod
    def of(cls, log_probs: NDArray[Any], targets: ArrayLike, blank: int) -> _Item:
        tokens = np.asarray(targets, dtype=np.int32)
        if log_probs.ndim != 2 or tokens.ndim != 1:
            raise ValueError(
                f"log_probs has shape {log_probs.shape} and targets {tokens.shape}, expected (frames, "
                "columns) and (tokens,)"
            )
        size = log_probs.shape[1]
        if not 0 <= blank < size:
            raise ValueError(f"blank is {blank}, expected a column from 0 to {size - 1}")
        wrong = tokens[(tokens < 0) | (tokens >= size) | (tokens == blank)]
        if len(wrong):
            raise ValueError(f"target {wrong[0]} is not one of the {size} columns, or is the blank {blank}")
        used, labels = np.unique(tokens, return_inverse=True)
        columns = np.concatenate([[blank], used]).astype(np.int32)
        emission = np.ascontiguousarray(log_probs[:, columns], dtype=np.float32)
        return cls(emission, labels.astype(np.int32) + 1, columns)

    def refusal(self) -> AlignError | None:
        repeats = int(np.count_nonzero(self.labels[1:] == self.labels[:-1]))
        needed = max(1, len(self.labels) + repeats)
        if len(self.emission) < needed:
            return AlignError(
                f"the emission has {len(self.emission)} frames and {len(self.labels)} tokens need {needed}; "
                "check that the text belongs to the recording"
            )
        if not self.emission.max() < np.inf:  # nor is NaN; minus infinity is a probability of zero
            return AlignError("the emission holds NaN or infinity; encode it again, in float32")
        return None

    def read(self, states: NDArray[np.int32], loss: float) -> ForcedAlignment:
        """What the states of a path say: an odd one is label ``state // 2``, an even one a blank."""
        of_label = states % 2 == 1
        indices = states[of_label] // 2
        path = np.zeros(len(states), np.int32)
        path[of_label] = self.labels[indices]
        scores = np.take_along_axis(self.emission, path[:, None], axis=1)[:, 0]
        frames = np.flatnonzero(of_label)
        edges = np.searchsorted(indices, np.arange(len(self.labels) + 1))
        starts, ends = frames[edges[:-1]], frames[edges[1:] - 1] + 1
        sums = np.bincount(indices, weights=scores[of_label], minlength=len(self.labels))
        # Rounding may bring a logarithm above zero.
        token_scores = np.exp(np.minimum(sums / (ends - starts), 0))
        return ForcedAlignment(self.columns[path], scores, starts, ends, token_scores, loss)
