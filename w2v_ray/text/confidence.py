"""How sure the words of a transcript are, from the emission alone and whoever found them.

All words of an emission go through one lattice: for each word a row of states, blanks around its tokens,
and a step a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from w2v_ray.text.transcript import Character, Word

__all__ = ["SpelledWord", "Token", "score_characters", "score_words", "text_confidence"]


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a word: what it spells, its column in the emission, and its frames."""

    text: str
    column: int
    start_frame: int
    end_frame: int


@dataclass(frozen=True, slots=True)
class SpelledWord:
    """A word, and the tokens that spell it, in order."""

    word: str
    tokens: tuple[Token, ...]

    @property
    def start_frame(self) -> int:
        """The first frame of its first token."""
        return self.tokens[0].start_frame

    @property
    def end_frame(self) -> int:
        """The frame after the last one of its last token."""
        return self.tokens[-1].end_frame


def score_words(
    log_probs: NDArray[np.floating[Any]], words: Sequence[SpelledWord], *, blank: int
) -> list[Word]:
    """Says of each word how sure it is.

    The confidence is the probability that the emission gives to the word in the frames that the word
    covers, the sum over all ways to spell its tokens there, per token: its n-th root for n tokens, so that
    long words are not less sure for being long. docs/decoding.md compares it with others.

    Args:
        log_probs: Natural log-probabilities, shape (frames, columns), without NaN.
        words: In order, each of at least one token.
        blank: The column of the blank.
    """
    if not words:
        return []
    confidences = np.exp(_log_likely(log_probs, words, blank) / [len(word.tokens) for word in words])
    return [
        Word(word=w.word, start_frame=w.start_frame, end_frame=w.end_frame, confidence=confidence)
        for w, confidence in zip(words, confidences.tolist(), strict=True)
    ]


def score_characters(log_probs: NDArray[np.floating[Any]], words: Sequence[SpelledWord]) -> list[Character]:
    """Says of each token of the words how sure it is: its highest probability in its frames.

    Args:
        log_probs: As of ``score_words``.
        words: As of ``score_words``.
    """
    return [
        Character(
            char=token.text,
            start_frame=token.start_frame,
            end_frame=token.end_frame,
            confidence=_peak(log_probs[token.start_frame : token.end_frame, token.column]),
        )
        for word in words
        for token in word.tokens
    ]


def text_confidence(words: Sequence[Word]) -> float | None:
    """The geometric mean over words; null where there are none."""
    if not words:
        return None
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log([word.confidence for word in words]).mean()))


def _peak(log_probs: NDArray[np.floating[Any]]) -> float:
    return float(np.exp(min(float(log_probs.max()), 0.0))) if len(log_probs) else 0.0


def _log_likely(
    log_probs: NDArray[np.floating[Any]], words: Sequence[SpelledWord], blank: int
) -> NDArray[np.float64]:
    """The natural logarithm of the probability of each word in its frames.

    Letters in array names: W words, T frames of the longest, S states of the longest; 0 and the even states
    are blanks, state 2 i + 1 is the token i.
    """
    frames_W = np.array([word.end_frame - word.start_frame for word in words])
    states_W = np.array([2 * len(word.tokens) + 1 for word in words])
    column_WS = np.full((len(words), int(states_W.max())), blank)
    for row, word in enumerate(words):
        column_WS[row, 1 : states_W[row] : 2] = [token.column for token in word.tokens]
    # A token may follow another at once unless both are the same, or else they would merge.
    skips_WS = np.zeros(column_WS.shape)
    skips_WS[:, 3::2] = column_WS[:, 3::2] != column_WS[:, 1:-2:2]
    exists_WS = np.arange(column_WS.shape[1]) < states_W[:, None]
    first_W = np.array([word.start_frame for word in words])
    frame_WT = np.minimum(first_W[:, None] + np.arange(max(1, int(frames_W.max()))), len(log_probs) - 1)
    likely = np.exp(np.minimum(log_probs.astype(np.float64), 0.0))
    likely_TWS = np.where(exists_WS, likely[frame_WT.T[:, :, None], column_WS], 0.0)

    a_WS = np.zeros(column_WS.shape)
    a_WS[:, :2] = likely_TWS[0, :, :2]
    log_scale_W = np.zeros(len(words))  # what a was divided by, as long words would underflow
    for t in range(1, len(likely_TWS)):
        next_WS = a_WS.copy()
        next_WS[:, 1:] += a_WS[:, :-1]
        next_WS[:, 2:] += skips_WS[:, 2:] * a_WS[:, :-2]
        next_WS *= likely_TWS[t]
        scale_W = next_WS.max(axis=1)
        scale_W[scale_W == 0] = 1
        is_on_W = t < frames_W
        a_WS[is_on_W] = next_WS[is_on_W] / scale_W[is_on_W, None]
        log_scale_W[is_on_W] += np.log(scale_W[is_on_W])
    rows_W = np.arange(len(words))
    total_W = a_WS[rows_W, states_W - 1] + a_WS[rows_W, states_W - 2]
    with np.errstate(divide="ignore"):  # no way at all: a word in fewer frames than it needs
        return np.where(frames_W > 0, np.minimum(np.log(total_W) + log_scale_W, 0.0), -np.inf)
