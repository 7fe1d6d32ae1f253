"""How sure the words of a transcript are, and where in each its characters lie, from the emission alone.

All words of an emission go through one lattice: for each word a row of states, blanks around its labels,
and a step a frame. It knows what was recognised and not how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from w2v_ray.text.transcript import Character, Word

__all__ = ["SpelledWord", "place_characters", "score_words", "text_confidence"]

_NEVER = -1e30  # a log-probability that no path recovers from, with which one can still reckon


@dataclass(frozen=True, slots=True)
class SpelledWord:
    """A word, the columns that spell it, their texts, and its frames."""

    word: str
    labels: tuple[int, ...]
    texts: tuple[str, ...]
    start_frame: int
    end_frame: int


def score_words(
    log_probs: NDArray[np.floating[Any]], words: Sequence[SpelledWord], *, blank: int
) -> list[Word]:
    """Says of each word how sure it is.

    The confidence is the probability that the emission gives to the word in the frames that the word
    covers, the sum over all ways to spell its labels there, per label: its n-th root for n labels, so that
    long words are not less sure for being long. docs/decoding.md compares it with others.

    Args:
        log_probs: Natural log-probabilities, shape (frames, columns), without NaN.
        words: In order.
        blank: The column of the blank.
    """
    if not words:
        return []
    log_likely = _Lattice(log_probs, words, blank).forward()
    confidences = np.exp(log_likely / [len(word.labels) for word in words]).tolist()
    return [
        Word(word=w.word, start_frame=w.start_frame, end_frame=w.end_frame, confidence=confidence)
        for w, confidence in zip(words, confidences, strict=True)
    ]


def place_characters(
    log_probs: NDArray[np.floating[Any]], words: Sequence[SpelledWord], *, blank: int
) -> list[Character]:
    """Finds the frames of each character: those of the likeliest way to spell the words in their frames.

    The confidence is the highest probability that a character has in its frames. The characters of a word
    that has fewer frames than it needs share these evenly, and have the confidence 0.

    Args:
        log_probs: As of ``score_words``.
        words: As of ``score_words``.
        blank: As of ``score_words``.
    """
    if not words:
        return []
    found = []
    paths = _Lattice(log_probs, words, blank).best_paths()
    for word, path in zip(words, paths, strict=True):
        if path is None:
            edges = np.linspace(word.start_frame, word.end_frame, len(word.labels) + 1).astype(int).tolist()
            found += [
                Character(char=text, start_frame=start, end_frame=end, confidence=0.0)
                for text, start, end in zip(word.texts, edges[:-1], edges[1:], strict=True)
            ]
            continue
        for index, (text, label) in enumerate(zip(word.texts, word.labels, strict=True)):
            frames = np.flatnonzero(path == 2 * index + 1) + word.start_frame
            peak = log_probs[frames, label].max()
            found.append(
                Character(
                    char=text,
                    start_frame=int(frames[0]),
                    end_frame=int(frames[-1]) + 1,
                    confidence=float(np.exp(min(float(peak), 0.0))),
                )
            )
    return found


def text_confidence(words: Sequence[Word]) -> float | None:
    """The geometric mean over words; null where there are none."""
    if not words:
        return None
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log([word.confidence for word in words]).mean()))


class _Lattice:
    """States of words side by side: 0 and the even ones are blanks, state 2 i + 1 is the label i.

    Letters in array names: W words, T frames of the longest, S states of the longest.
    """

    def __init__(
        self, log_probs: NDArray[np.floating[Any]], words: Sequence[SpelledWord], blank: int
    ) -> None:
        self._frames = np.array([word.end_frame - word.start_frame for word in words])
        self._states = np.array([2 * len(word.labels) + 1 for word in words])
        label_WS = np.full((len(words), int(self._states.max())), blank)
        for row, word in enumerate(words):
            label_WS[row, 1 : self._states[row] : 2] = word.labels
        # A label may follow another at once unless both are the same, or else they would merge.
        self._skips_WS = np.zeros(label_WS.shape, bool)
        self._skips_WS[:, 3::2] = label_WS[:, 3::2] != label_WS[:, 1:-2:2]
        exists_WS = np.arange(label_WS.shape[1]) < self._states[:, None]
        first = np.array([word.start_frame for word in words])
        frame_WT = np.minimum(first[:, None] + np.arange(max(1, int(self._frames.max()))), len(log_probs) - 1)
        scores = np.clip(log_probs.astype(np.float64), _NEVER, 0)
        self._score_TWS = np.where(exists_WS, scores[frame_WT.T[:, :, None], label_WS], _NEVER)

    def forward(self) -> NDArray[np.float64]:
        """The natural logarithm of the probability of each word: all paths through its states."""
        score_TWS = np.exp(self._score_TWS)
        a_WS = np.zeros(score_TWS.shape[1:])
        a_WS[:, :2] = score_TWS[0, :, :2]
        log_scale_W = np.zeros(len(a_WS))
        skips_WS = self._skips_WS[:, 2:].astype(np.float64)
        for t in range(1, len(score_TWS)):
            next_WS = a_WS.copy()
            next_WS[:, 1:] += a_WS[:, :-1]
            next_WS[:, 2:] += skips_WS * a_WS[:, :-2]
            next_WS *= score_TWS[t]
            scale_W = next_WS.max(axis=1)
            is_on = (t < self._frames) & (scale_W > 0)
            dead = (t < self._frames) & (scale_W == 0)
            a_WS[is_on] = next_WS[is_on] / scale_W[is_on, None]
            a_WS[dead] = 0
            log_scale_W[is_on] += np.log(scale_W[is_on])
        rows, last = np.arange(len(a_WS)), self._states - 1
        total_W = a_WS[rows, last] + a_WS[rows, last - 1]
        with np.errstate(divide="ignore"):  # no path: a word in fewer frames than it needs
            return np.where(self._frames > 0, np.minimum(np.log(total_W) + log_scale_W, 0.0), -np.inf)

    def best_paths(self) -> list[NDArray[np.intp] | None]:
        """The state of each frame on the likeliest path of each word; None where it has no path."""
        length, num_words, num_states = self._score_TWS.shape
        a_WS = np.full((num_words, num_states), _NEVER)
        a_WS[:, :2] = self._score_TWS[0, :, :2]
        steps_TWS = np.zeros((length, num_words, num_states), np.int8)
        never = np.full((num_words, 2), _NEVER)
        for t in range(1, length):
            one = np.concatenate([never[:, :1], a_WS[:, :-1]], axis=1)
            two = np.where(self._skips_WS, np.concatenate([never, a_WS[:, :-2]], axis=1), _NEVER)
            choices = np.stack([a_WS, one, two])
            steps_TWS[t] = choices.argmax(axis=0)
            is_on = t < self._frames
            a_WS[is_on] = (choices.max(axis=0) + self._score_TWS[t])[is_on]
        paths: list[NDArray[np.intp] | None] = []
        for word, (frames, states) in enumerate(zip(self._frames, self._states, strict=True)):
            state = states - 1 if a_WS[word, states - 1] > a_WS[word, states - 2] else states - 2
            if frames < 1 or a_WS[word, state] <= _NEVER / 2:
                paths.append(None)
                continue
            path = np.empty(frames, np.intp)
            for t in range(frames - 1, -1, -1):
                path[t] = state
                state -= steps_TWS[t, word, state]
            paths.append(path)
        return paths
