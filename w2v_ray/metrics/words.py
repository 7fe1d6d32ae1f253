"""Word and character error rates, and how sure they are.

Texts are compared as they are: whoever wants case, punctuation or spelling ignored changes both before.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "WordErrors",
    "bootstrap_interval",
    "character_error_rate",
    "character_errors",
    "word_error_rate",
    "word_errors",
]


@dataclass(frozen=True, slots=True)
class WordErrors:
    """Counts of an alignment of what was recognised with what was said; they add up with ``+``."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    def __add__(self, other: WordErrors) -> WordErrors:
        return WordErrors(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )

    @property
    def num_errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def num_reference(self) -> int:
        """Words of the references."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors per word of the references; the count of errors where these are empty, as jiwer has it."""
        return self.num_errors / (self.num_reference or 1)


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Aligns the words of two texts, which white space parts, with the fewest errors.

    Of several such alignments it takes jiwer's. Memory: a byte for each pair of words that lie between
    the first and the last difference.
    """
    return _align(reference.split(), hypothesis.split())


def character_errors(reference: str, hypothesis: str) -> WordErrors:
    """Aligns the characters of two texts, spaces included, as ``word_errors`` does words."""
    return _align(reference, hypothesis)


def word_error_rate(pairs: Iterable[tuple[str, str]]) -> float:
    """Errors of all pairs of reference and hypothesis, per word of all references."""
    return sum((word_errors(*pair) for pair in pairs), WordErrors()).rate


def character_error_rate(pairs: Iterable[tuple[str, str]]) -> float:
    """Errors of all pairs of reference and hypothesis, per character of all references."""
    return sum((character_errors(*pair) for pair in pairs), WordErrors()).rate


def bootstrap_interval(
    groups: Iterable[WordErrors], *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of the error rate, from resampling whole groups.

    Errors of one speaker resemble each other, so with words or utterances resampled the interval would
    be too narrow: give one element for each speaker.

    Args:
        groups: The summed counts of each group; those without reference words only add insertions.
        level: Probability that the interval covers, between 0 and 1.
        num_resamples: How often to draw as many groups as there are, with replacement.
        seed: The same seed and groups give the same interval.

    Returns:
        The lower and the upper bound of the error rate.

    Raises:
        ValueError: There are fewer than two groups with words, which say nothing of how groups vary; or
            ``level`` or ``num_resamples`` is out of bounds.
    """
    if not 0 < level < 1 or num_resamples < 1:
        raise ValueError(
            f"level is {level} and num_resamples {num_resamples}, expected between 0 and 1, and from 1"
        )
    counts = np.array([(group.num_errors, group.num_reference) for group in groups], dtype=np.int64)
    spoken = sum(1 for _, words in counts if words)
    if spoken < 2:
        raise ValueError(
            f"{spoken} groups have reference words, expected at least 2; give the counts of each speaker"
        )
    draws = np.random.default_rng(seed).integers(len(counts), size=(num_resamples, len(counts)))
    errors, words = counts[draws].sum(axis=1).T
    drawn = words > 0  # a draw of groups without words alone has no rate
    tail = 50 * (1 - level)
    low, high = np.percentile(errors[drawn] / words[drawn], [tail, 100 - tail])
    return float(low), float(high)


def _align(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> WordErrors:
    first = 0
    while first < min(len(reference), len(hypothesis)) and reference[first] == hypothesis[first]:
        first += 1
    last = 0
    shorter = min(len(reference), len(hypothesis)) - first
    while last < shorter and reference[-1 - last] == hypothesis[-1 - last]:
        last += 1
    middle = slice(first, None if not last else -last)
    counts = _align_middle(reference[middle], hypothesis[middle])
    return counts + WordErrors(hits=first + last)


_DIAGONAL, _DELETE, _INSERT = range(3)


def _align_middle(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> WordErrors:
    number: dict[Hashable, int] = {}
    said = np.array([number.setdefault(word, len(number)) for word in reference], dtype=np.int64)
    heard = np.array([number.setdefault(word, len(number)) for word in hypothesis], dtype=np.int64)
    moves = np.empty((len(heard), len(said)), dtype=np.uint8)
    steps = np.arange(len(said) + 1)
    row = steps.copy()  # errors of the first j words said against no word heard
    for i, word in enumerate(heard):
        row, moves[i] = _next_row(row, said != word, steps)

    i, j = len(heard), len(said)
    counts = {"hits": 0, "substitutions": 0, "deletions": 0, "insertions": 0}
    while i and j:
        move = moves[i - 1, j - 1]
        if move == _DELETE:
            counts["deletions"] += 1
            j -= 1
        elif move == _INSERT:
            counts["insertions"] += 1
            i -= 1
        else:
            i, j = i - 1, j - 1
            counts["hits" if said[j] == heard[i] else "substitutions"] += 1
    counts["deletions"] += j
    counts["insertions"] += i
    return WordErrors(**counts)


def _next_row(
    above: NDArray[np.int64], differs: NDArray[np.bool_], steps: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    row = np.empty_like(above)
    row[0] = above[0] + 1
    row[1:] = np.minimum(above[:-1] + differs, above[1:] + 1)
    # A deletion comes from the cell on the left, which is being worked out: the least of all cells on the
    # left plus the distance to them is the same.
    row = np.minimum.accumulate(row - steps) + steps
    # Where alignments tie, this order of preference is that of jiwer (rapidfuzz), so that the split into
    # substitutions, deletions and insertions is too.
    moves = np.where(above[1:] == above[:-1] - 1, _INSERT, _DIAGONAL)
    moves[row[1:] == row[:-1] + 1] = _DELETE
    return row, moves.astype(np.uint8)
