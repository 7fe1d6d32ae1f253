"""Interpolated modified Kneser-Ney models (Chen and Goodman 1998), estimated from counts, written as ARPA."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from w2v_ray.errors import LanguageModelError
from w2v_ray.text.ngram_counts import BOS, UNK, NgramTable, TextCounts

__all__ = ["FALLBACK_DISCOUNTS", "KneserNeyModel", "check_settings", "estimate", "write_arpa"]

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
_ROWS_AT_ONCE = 200_000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class KneserNeyModel:
    """Probabilities and backoffs of the n-grams of `TextCounts`, row for row."""

    counts: TextCounts
    probs: list[Floats]
    """Of the last word after the others, by order; of a pruned n-gram what the model backs off to."""
    backoffs: list[Floats]
    """The weight of the order below where an n-gram is a context; 1 where it is none."""
    kept: list[npt.NDArray[np.bool_]]
    """Which n-grams were not pruned."""
    discounts: list[tuple[float, float, float]]
    """Of counts 1, 2, and 3 or more, by order."""

    @property
    def num_ngrams(self) -> list[int]:
        """How many n-grams of each order are not pruned."""
        return [int(np.count_nonzero(kept)) for kept in self.kept]

    @property
    def perplexity(self) -> float:
        """Of the text that was counted, ``</s>`` included, ``<s>`` not."""
        total = 0.0
        for n, (table, probs, begins) in enumerate(
            zip(self.counts.tables, self.probs, _begins(self.counts), strict=True), 1
        ):
            # Each word is scored once: with the highest order, or with all there is since <s>.
            scored = (begins | (n == len(self.probs))) & (table.count > 0)
            if n == 1:
                scored[BOS] = False
            total += float(np.sum(table.count[scored] * np.log(probs[scored])))
        return float(np.exp(-total / (self.counts.num_words + self.counts.num_sentences)))


def check_settings(order: int, prune: Sequence[int], discount_fallback: Sequence[float] | None) -> None:
    """Refuses settings that `estimate` cannot use, before anything is counted.

    Raises:
        LanguageModelError: One of them cannot be used; see `estimate`.
    """
    rises = all(earlier <= later for earlier, later in itertools.pairwise(prune))
    if not 1 <= len(prune) <= order or prune[0] != 0 or not rises:
        raise LanguageModelError(
            f"prune {' '.join(map(str, prune))} is not 1 to {order} thresholds that begin with 0 and never "
            "fall; 0 0 1 drops the n-grams of order 3 and more that occur once"
        )
    if discount_fallback is not None and (
        len(discount_fallback) != 3 or any(not 0 <= d <= k for k, d in enumerate(discount_fallback, 1))
    ):
        raise LanguageModelError(
            f"discount fallback {' '.join(map(str, discount_fallback))} is not three numbers, from 0 to 1, 2 "
            f"and 3; use {' '.join(f'{d:g}' for d in FALLBACK_DISCOUNTS)}"
        )


def estimate(
    counts: TextCounts,
    *,
    prune: Sequence[int] = (0,),
    discount_fallback: Sequence[float] | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> KneserNeyModel:
    """Estimates a model as Chen and Goodman describe it and lmplz does.

    The highest order, and n-grams that begin with ``<s>``, use their counts in the text; the others use the
    number of different words before them. ``<unk>`` takes the share that a word without counts has.

    Args:
        counts: Of the text.
        prune: An n-gram of order ``n`` that occurs no more than ``prune[n - 1]`` times is left out; the last
            value stands for higher orders too. The first must be 0, and none below the one before it.
        discount_fallback: The discounts of counts 1, 2, and 3 or more for an order where they cannot be
            estimated; None: that is an error.
        on_progress: Called with what is being done.

    Raises:
        LanguageModelError: ``prune`` or ``discount_fallback`` cannot be used, or the text is too small or too
            regular for discounts.
    """
    check_settings(len(counts.tables), prune, discount_fallback)
    thresholds = [*prune, *[prune[-1]] * (len(counts.tables) - len(prune))]
    probs: list[Floats] = []
    backoffs: list[Floats] = []
    kept: list[npt.NDArray[np.bool_]] = []
    discounts: list[tuple[float, float, float]] = []
    begins = _begins(counts)
    vocabulary = len(counts.words) - 1  # <unk> included, <s> not
    for n, table in enumerate(counts.tables, 1):
        on_progress(f"estimating {len(table):,} {n}-grams")
        adjusted = _adjusted(counts, n, begins)
        discounts.append(_discounts(adjusted, n, discount_fallback))
        keep = table.count > thresholds[n - 1]
        if n == 1:
            keep[:] = True
        num_contexts = len(counts.tables[n - 2]) if n > 1 else 1
        # What each count gives up, and all that a pruned n-gram had, goes to the order below.
        given = np.array([0.0, *discounts[-1]])[np.minimum(adjusted, 3)]
        given[~keep] = adjusted[~keep]
        total = np.bincount(table.context, adjusted, num_contexts)
        weight = np.bincount(table.context, given, num_contexts)
        is_context = total > 0
        weight = np.where(is_context, weight / np.where(is_context, total, 1), 1.0)
        lower = probs[-1][table.suffix] if n > 1 else 1.0 / vocabulary
        probs.append((adjusted - given) / total[table.context] + weight[table.context] * lower)
        kept.append(keep)
        if n == 1:
            probs[0][BOS] = 1.0  # as lmplz writes it; nothing ever predicts <s>
        else:
            backoffs.append(weight)
    backoffs.append(np.ones(len(counts.tables[-1])))
    return KneserNeyModel(counts, probs, backoffs, kept, discounts)


def _begins(counts: TextCounts) -> list[npt.NDArray[np.bool_]]:
    """Which n-grams begin with ``<s>``, by order."""
    return [table.first == BOS for table in counts.tables]


def _adjusted(counts: TextCounts, n: int, begins: list[npt.NDArray[np.bool_]]) -> npt.NDArray[np.int64]:
    table = counts.tables[n - 1]
    if n == len(counts.tables):
        adjusted = table.count.copy()
    else:
        different = np.bincount(counts.tables[n].suffix, minlength=len(table))
        adjusted = np.where(begins[n - 1], table.count, different)
    if n == 1:
        adjusted[[UNK, BOS]] = 0
    return adjusted


def _discounts(
    adjusted: npt.NDArray[np.int64], n: int, fallback: Sequence[float] | None
) -> tuple[float, float, float]:
    """Equation 26 of Chen and Goodman."""
    ones, twos, threes, fours = (int(np.count_nonzero(adjusted == k)) for k in (1, 2, 3, 4))
    if ones and twos and threes:
        share = ones / (ones + 2 * twos)
        found = (1 - 2 * share * twos / ones, 2 - 3 * share * threes / twos, 3 - 4 * share * fours / threes)
        if all(0 <= d <= k + 1 for k, d in enumerate(found)):
            return found
    if fallback is None:
        raise LanguageModelError(
            f"the discounts of the {n}-grams cannot be estimated: {ones} of them count once, {twos} twice, "
            f"{threes} three and {fours} four times, which no natural text of some size gives; give "
            "more text without repeated lines, lower --order, or use --discount-fallback"
        )
    return fallback[0], fallback[1], fallback[2]


def write_arpa(
    model: KneserNeyModel, path: str | Path, *, on_progress: Callable[[str], None] = lambda _: None
) -> None:
    """Writes a model as an ARPA file, which others see whole or not at all.

    Raises:
        OSError: The file cannot be written.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            _write_sections(model, file, on_progress)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _write_sections(model: KneserNeyModel, file: BinaryIO, on_progress: Callable[[str], None]) -> None:
    file.write(b"\\data\\\n")
    for n, number in enumerate(model.num_ngrams, 1):
        file.write(b"ngram %d=%d\n" % (n, number))
    for n in range(1, len(model.probs) + 1):
        on_progress(f"writing {model.num_ngrams[n - 1]:,} {n}-grams")
        file.write(b"\n\\%d-grams:\n" % n)
        for lines in _lines(model, n):
            file.write(lines)
    file.write(b"\n\\end\\\n")


def _lines(model: KneserNeyModel, n: int) -> Iterator[bytes]:
    tables, words = model.counts.tables, model.counts.words
    # N-grams of one context stand together, so that a reader looks each context up once.
    rows = np.argsort(tables[n - 1].context, kind="stable")
    rows = rows[model.kept[n - 1][rows]]
    is_longest = n == len(tables)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[start : start + _ROWS_AT_ONCE]
        columns = [np.log10(model.probs[n - 1][some]).clip(max=0).tolist()]
        suffix = some
        for lower in range(n, 0, -1):
            table: NgramTable = tables[lower - 1]
            columns.append([words[word] for word in table.first[suffix].tolist()])
            suffix = table.suffix[suffix]
        form = b"%.7g\t" + b" ".join([b"%b"] * n)
        if not is_longest:
            columns.append(np.log10(model.backoffs[n - 1][some]).tolist())
            form += b"\t%.7g"
        form += b"\n"
        yield b"".join([form % row for row in zip(*columns, strict=True)])
