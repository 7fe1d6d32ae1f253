"""Error rates, against jiwer, and the interval, against what it must do."""

from __future__ import annotations

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.metrics import (
    WordErrors,
    bootstrap_interval,
    character_error_rate,
    character_errors,
    word_error_rate,
    word_errors,
)

# Few different words, so that many alignments tie.
TEXTS = st.lists(st.sampled_from(["a", "b", "no", "yes"]), max_size=12).map(" ".join)
PAIRS = st.tuples(TEXTS, TEXTS)


def counts(theirs: jiwer.WordOutput | jiwer.CharacterOutput) -> WordErrors:
    return WordErrors(theirs.hits, theirs.substitutions, theirs.deletions, theirs.insertions)


@settings(max_examples=1000, deadline=None)
@given(PAIRS)
def test_words_equal_jiwer(pair: tuple[str, str]) -> None:
    assert word_errors(*pair) == counts(jiwer.process_words(*pair))


@settings(max_examples=300, deadline=None)
@given(PAIRS)
def test_characters_equal_jiwer(pair: tuple[str, str]) -> None:
    assert character_errors(*pair) == counts(jiwer.process_characters(*pair))


@settings(max_examples=200, deadline=None)
@given(st.lists(PAIRS, min_size=1, max_size=5))
def test_rates_equal_jiwer(pairs: list[tuple[str, str]]) -> None:
    said, heard = (list(texts) for texts in zip(*pairs, strict=True))
    assert word_error_rate(pairs) == pytest.approx(jiwer.wer(said, heard))
    assert character_error_rate(pairs) == pytest.approx(jiwer.cer(said, heard))
    total = sum((word_errors(*pair) for pair in pairs), WordErrors())
    assert total == counts(jiwer.process_words(said, heard))
    assert total.num_reference == sum(len(text.split()) for text in said)
    assert total.hits + total.substitutions + total.insertions == sum(len(text.split()) for text in heard)


def test_long_texts_equal_jiwer() -> None:
    generator = np.random.default_rng(0)
    words = [f"w{i}" for i in range(300)]
    said = generator.choice(words, 700)
    heard = np.where(generator.random(700) < 0.3, generator.choice(words, 700), said)
    heard = heard[generator.random(700) > 0.1]
    pair = " ".join(said), " ".join(heard)
    assert word_errors(*pair) == counts(jiwer.process_words(*pair))


@pytest.mark.parametrize(
    ("said", "heard", "rate"),
    [
        ("", "", 0),
        ("", "a b", 2),  # as jiwer: errors, for want of words to divide by
        ("a b", "", 1),
        ("a  b\n", " a b", 0),
        ("A b.", "a b", 1),  # nothing is normalised here
    ],
)
def test_edges(said: str, heard: str, rate: float) -> None:
    assert word_errors(said, heard).rate == rate
    assert word_error_rate([(said, heard)]) == rate


def test_no_pairs_have_no_errors() -> None:
    assert word_error_rate([]) == character_error_rate([]) == 0


def test_the_interval_is_reproducible_and_holds_the_rate() -> None:
    groups = [WordErrors(90 - i, i, 5, 5) for i in range(30)]
    total = sum(groups, WordErrors())
    low, high = bootstrap_interval(groups)
    assert low < total.rate < high
    assert bootstrap_interval(groups) == (low, high)
    assert bootstrap_interval(groups, seed=1) != (low, high)
    narrower = bootstrap_interval(groups, level=0.5)
    assert low < narrower[0] < narrower[1] < high


def test_the_interval_covers_as_often_as_it_says() -> None:
    # Speakers differ; of 100 tests with 40 speakers each, about 95 intervals must hold the true rate.
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        errors = generator.binomial(50, generator.beta(4, 16, size=40))  # a rate of 0.2 in all speakers
        low, high = bootstrap_interval((WordErrors(50 - e, e) for e in errors.tolist()), num_resamples=500)
        covered += low <= 0.2 <= high
    assert 88 <= covered <= 99


def test_groups_without_words_only_add_insertions() -> None:
    groups = [WordErrors(insertions=3), *(WordErrors(9, 1) for _ in range(3))]
    low, high = bootstrap_interval(groups)
    assert np.isfinite([low, high]).all()
    assert low == pytest.approx(0.1)
    assert high > 0.1


def test_too_few_groups_or_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="0 groups have reference words"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="1 groups have reference words, expected at least 2"):
        bootstrap_interval([WordErrors(5), WordErrors(insertions=1)])
    for settings_ in ({"level": 1.0}, {"level": 0.0}, {"num_resamples": 0}):
        with pytest.raises(ValueError, match=r"level is .* and num_resamples"):
            bootstrap_interval([WordErrors(5), WordErrors(5)], **settings_)
