"""Where in an emission the words and characters of a given text are, and how well the text fits.

What the vocabulary cannot spell gets a place between its neighbours, so that every word has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from w2v_ray.errors import AlignError
from w2v_ray.text.align import ForcedAlignment, forced_align_batch
from w2v_ray.text.spelling import Spelling

__all__ = ["AlignedSpan", "TextAlignment", "align_texts", "frame_times"]

Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AlignedSpan:
    """A word or a character of a given text, and its place."""

    text: str
    start_s: float
    end_s: float
    score: float | None
    """In [0, 1]; null where no part of it is in the vocabulary."""
    aligned: bool
    """False where its start or end was not found but set between its neighbours."""


@dataclass(frozen=True, slots=True)
class TextAlignment:
    """A text in its place."""

    words: list[AlignedSpan]
    """What white space parts, as it was written, in order."""
    characters: list[AlignedSpan]
    """The characters of the words in order; a token of several characters is one."""
    score: float | None
    """In [0, 1]: the geometric mean over the words that have a score."""
    ctc_loss: float
    """The negative logarithm of the probability of the text over all paths, in nats."""
    num_labels: int
    """Tokens that were aligned, delimiters between words included."""

    @property
    def loss_per_label(self) -> float | None:
        """The loss by which texts of different lengths compare; null where nothing was aligned."""
        return self.ctc_loss / self.num_labels if self.num_labels else None


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    word: int
    """Position of its word in the text."""
    labels: slice
    """Its tokens among those of the text; empty where the vocabulary has it not."""

    @property
    def is_aligned(self) -> bool:
        return bool(self.labels.stop > self.labels.start)


def frame_times(num_frames: int, seconds_per_frame: float) -> Times:
    """Start and end of each frame in seconds, shape (frames, 2)."""
    edges = np.arange(num_frames + 1) * seconds_per_frame
    return np.stack([edges[:-1], edges[1:]], axis=1)


def align_texts(
    log_probs: Sequence[NDArray[Any]],
    texts: Sequence[str],
    times: Sequence[Times],
    *,
    spelling: Spelling,
    num_threads: int = 1,
) -> list[TextAlignment | AlignError]:
    """Aligns a text with each of many emissions.

    The score of a character is the geometric mean of the probabilities of its frames along the best path,
    that of a word the geometric mean over its characters. Words are what white space parts. A character that
    the vocabulary does not have lies between the aligned ones around it: letters and digits, and whatever
    stands inside a word, share that time evenly; other marks have no length unless they are a word by
    themselves and nothing else is there to take the time.

    Args:
        log_probs: Natural log-probabilities of each item, shape (frames, columns).
        texts: Of each item; may be empty.
        times: Start and end of each frame of each item in seconds, shape (frames, 2), none before the end of
            the frame before it.
        spelling: Of the columns.
        num_threads: Threads that share the items.

    Returns:
        For each item its alignment, or why it has none: too few frames, or numbers that are not finite.
    """
    spelled = [_spell(text, spelling) for text in texts]
    targets = [labels for _, labels in spelled]
    aligned = forced_align_batch(log_probs, targets, blank=spelling.blank, num_threads=num_threads)
    results: list[TextAlignment | AlignError] = []
    for text, (pieces, labels), frames, result in zip(texts, spelled, times, aligned, strict=True):
        results.append(
            result if isinstance(result, AlignError) else _read(text, pieces, len(labels), frames, result)
        )
    return results


def _spell(text: str, spelling: Spelling) -> tuple[list[_Piece], list[int]]:
    """The pieces of a text, and the tokens to align: one delimiter between words that have some."""
    pieces, labels = [], list[int]()
    for index, word in enumerate(text.split()):
        is_first = True
        for piece, columns in spelling.spell(word):
            if columns and is_first and labels and spelling.delimiter is not None:
                labels.append(spelling.delimiter)
            is_first = is_first and not columns
            pieces.append(_Piece(piece, index, slice(len(labels), len(labels) + len(columns))))
            labels += columns
    return pieces, labels


def _read(
    text: str, pieces: list[_Piece], num_labels: int, times: Times, result: ForcedAlignment
) -> TextAlignment:
    spans = np.zeros((len(pieces), 2))
    for index, piece in enumerate(pieces):
        if piece.is_aligned:
            spans[index, 0] = times[result.starts[piece.labels.start], 0]
            spans[index, 1] = times[result.ends[piece.labels.stop - 1] - 1, 1]
    has_length = _interpolate(pieces, spans, float(times[0, 0]), float(times[-1, 1]))
    with np.errstate(divide="ignore"):
        logs = np.log(result.token_scores)
    characters = [
        AlignedSpan(p.text, float(start), float(end), _score(logs[p.labels]), p.is_aligned)
        for p, (start, end) in zip(pieces, spans, strict=True)
    ]
    words, word_logs = [], []
    begin = 0
    for index, word in enumerate(text.split()):
        end = begin
        while end < len(pieces) and pieces[end].word == index:
            end += 1
        spoken = [i for i in range(begin, end) if has_length[i]] or list(range(begin, end))
        logs_of_word = [logs[pieces[i].labels].mean() for i in spoken if pieces[i].is_aligned]
        word_logs += [np.mean(logs_of_word)] if logs_of_word else []
        words.append(
            AlignedSpan(
                word,
                characters[spoken[0]].start_s,
                characters[spoken[-1]].end_s,
                _score(np.array(logs_of_word)),
                pieces[spoken[0]].is_aligned and pieces[spoken[-1]].is_aligned,
            )
        )
        begin = end
    return TextAlignment(words, characters, _score(np.array(word_logs)), result.loss, num_labels)


def _score(logs: NDArray[np.float64]) -> float | None:
    return float(np.exp(logs.mean())) if len(logs) else None


def _interpolate(pieces: list[_Piece], spans: Times, start_s: float, end_s: float) -> list[bool]:
    """Fills the spans of pieces that are not aligned; returns which pieces take time."""
    has_length = [piece.is_aligned for piece in pieces]
    aligned_words = {piece.word for piece in pieces if piece.is_aligned}
    begin = 0
    while begin < len(pieces):
        if pieces[begin].is_aligned:
            begin += 1
            continue
        end = begin
        while end < len(pieces) and not pieces[end].is_aligned:
            end += 1
        before = pieces[begin - 1].word if begin else None
        after = pieces[end].word if end < len(pieces) else None
        low = spans[begin - 1, 1] if begin else start_s
        high = spans[end, 0] if end < len(pieces) else end_s
        run = pieces[begin:end]
        shares = [any(map(str.isalnum, p.text)) or before == p.word == after for p in run]
        if not any(shares):
            shares = [p.word not in aligned_words for p in run]
        if any(shares):
            edges = np.minimum(low + (high - low) * np.cumsum([0, *shares]) / sum(shares), high)
            spans[begin:end] = np.stack([edges[:-1], edges[1:]], axis=1)
        else:  # marks that end a word, then marks that begin one
            spans[begin:end] = [[high if p.word == after else low] * 2 for p in run]
        has_length[begin:end] = shares
        begin = end
    return has_length
