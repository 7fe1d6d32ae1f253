"""Confidences are sums over every way to spell a word in its frames."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from w2v_ray.text.confidence import SpelledWord, Token, score_characters, score_words, text_confidence
from w2v_ray.text.transcript import Word


def noise(frames: int, columns: int, seed: int, scale: float = 2.0) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(size=(frames, columns)) * scale
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def spelled(labels: str, start: int, end: int) -> SpelledWord:
    """A word whose tokens share its frames evenly."""
    edges = np.linspace(start, end, len(labels) + 1).astype(int).tolist()
    tokens = zip(labels, map("_ABC".index, labels), edges[:-1], edges[1:], strict=True)
    return SpelledWord(labels, tuple(Token(*token) for token in tokens))


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label)


def paths_of(log_probs: np.ndarray, word: SpelledWord) -> dict[tuple[int, ...], float]:
    """Every path through a word's frames that spells it, and its probability."""
    frames = range(word.start_frame, word.end_frame)
    labels = tuple(token.column for token in word.tokens)
    return {
        path: float(np.exp(sum(log_probs[t, label] for t, label in zip(frames, path, strict=True))))
        for path in itertools.product(range(log_probs.shape[1]), repeat=len(frames))
        if collapsed(path) == labels
    }


WORDS = [("A", 0, 1), ("AB", 1, 5), ("AA", 2, 5), ("ABA", 4, 7), ("B", 3, 7), ("CC", 7, 10), ("CAB", 10, 13)]


def test_confidence_is_the_sum_over_all_paths_per_label() -> None:
    log_probs = noise(13, 4, seed=3)
    words = [spelled(*word) for word in WORDS]
    for word, scored in zip(words, score_words(log_probs, words, blank=0), strict=True):
        expected = sum(paths_of(log_probs, word).values()) ** (1 / len(word.tokens))
        assert scored.confidence == pytest.approx(expected, rel=1e-9), word
        assert (scored.word, scored.start_frame, scored.end_frame) == (
            word.word,
            word.start_frame,
            word.end_frame,
        )


def test_the_confidence_of_a_character_is_its_peak() -> None:
    log_probs = noise(13, 4, seed=4)
    found = score_characters(log_probs, [spelled(*word) for word in WORDS])
    assert "".join(c.char for c in found) == "".join(word for word, _, _ in WORDS)
    for character in found:
        frames = log_probs[character.start_frame : character.end_frame, "_ABC".index(character.char)]
        assert character.confidence == pytest.approx(float(np.exp(frames.max())))


def test_words_do_not_depend_on_their_neighbours() -> None:
    log_probs = noise(200, 4, seed=5)
    words = [spelled("ABC" * 9, 0, 150), spelled("A", 150, 151), spelled("CAB", 160, 200)]
    together = score_words(log_probs, words, blank=0)
    assert together == [score_words(log_probs, [word], blank=0)[0] for word in words]


def test_sure_and_unsure_and_impossible() -> None:
    log_probs = np.log(np.full((6, 4), 1e-9))
    for frame, label in enumerate((1, 0, 2, 2, 3, 3)):
        log_probs[frame, label] = 0.0
    (sure,) = score_words(log_probs, [spelled("ABC", 0, 6)], blank=0)
    (wrong,) = score_words(log_probs, [spelled("CAB", 0, 6)], blank=0)
    assert sure.confidence == pytest.approx(1)
    assert sure.confidence <= 1
    assert wrong.confidence < 0.01
    for word in (
        spelled("AAA", 0, 4),
        spelled("AB", 3, 4),
        spelled("A", 2, 2),
    ):  # in fewer frames than it needs
        assert score_words(log_probs, [word], blank=0)[0].confidence == 0
    assert score_characters(log_probs, [spelled("A", 2, 2)])[0].confidence == 0


def test_long_words_of_small_probabilities_do_not_vanish() -> None:
    log_probs = noise(3000, 4, seed=6, scale=0.1)
    (word,) = score_words(log_probs, [spelled("ABC" * 300, 0, 3000)], blank=0)
    assert 0 < word.confidence < 1


def test_nothing_has_no_confidence() -> None:
    assert score_words(noise(3, 4, seed=0), [], blank=0) == []
    assert score_characters(noise(3, 4, seed=0), []) == []
    assert text_confidence([]) is None
    words = [Word(word="A", start_frame=0, end_frame=1, confidence=c) for c in (0.5, 0.0)]
    assert text_confidence(words) == 0
    assert text_confidence(words[:1]) == pytest.approx(0.5)
