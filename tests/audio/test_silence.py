"""Cuts lie in silence, are found again by whoever looks at the same samples, and lose nothing."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.audio.silence import find_cut, split_at_silences

RATE = 16_000


def talk(*parts: tuple[float, float], rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Noise in parts of (seconds, loudness)."""
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [loud * rng.uniform(-1, 1, round(seconds * rate)) for seconds, loud in parts]
    ).astype(np.float32)


# --- find_cut


@pytest.mark.parametrize("rate", [1_000, 8_000, 16_000, 44_100, 384_000])
@pytest.mark.parametrize("floor", [0.0, 1e-4, 0.02])
def test_the_cut_is_in_the_middle_of_the_pause(rate: int, floor: float) -> None:
    window = talk((4, 0.5), (0.4, floor), (3, 0.5), rate=rate)
    assert find_cut(window, rate) / rate == pytest.approx(4.2, abs=0.03)


def test_a_long_pause_wins_over_a_quieter_short_one() -> None:
    window = talk((3, 0.5), (0.1, 0.0), (3, 0.5), (0.6, 0.001), (8, 0.5))
    assert find_cut(window, RATE) / RATE == pytest.approx(6.4, abs=0.03)


def test_of_equal_pauses_the_one_nearest_the_middle_wins_then_the_earlier() -> None:
    window = talk((2, 0.5), (0.3, 0), (4, 0.5), (0.3, 0), (4, 0.5), (0.3, 0), (3, 0.5))
    assert find_cut(window, RATE) / RATE == pytest.approx(6.45, abs=0.03)
    window = talk((2, 0.5), (0.3, 0), (4, 0.5), (0.3, 0), (2, 0.5))
    assert find_cut(window, RATE) / RATE == pytest.approx(2.15, abs=0.03)


def test_pauses_of_a_second_and_more_are_equally_good() -> None:
    window = talk((1, 0.5), (3, 0), (5, 0.5), (1.2, 0), (6, 0.5))
    assert find_cut(window, RATE) / RATE == pytest.approx(9.6, abs=0.03)


def test_where_nothing_differs_the_cut_is_in_the_middle() -> None:
    for window in (np.zeros(RATE, np.float32), np.full(RATE, 0.25, np.float32)):
        assert find_cut(window, RATE) == pytest.approx(RATE / 2, abs=200)
    for n in range(200):
        assert 0 <= find_cut(talk((0, 1))[:0] if n == 0 else np.ones(n, np.float32), RATE) <= n


@settings(max_examples=50, deadline=None)
@given(
    parts=st.lists(st.tuples(st.floats(0, 3), st.sampled_from([0, 1e-5, 0.01, 0.3, 1])), max_size=9),
    rate=st.sampled_from([8_000, 11_025, 44_100]),
    power=st.integers(-60, 20),
)
def test_the_cut_is_inside_and_loudness_does_not_matter(
    parts: list[tuple[float, float]], rate: int, power: int
) -> None:
    window = talk((0.05, 0.1), *parts, rate=rate)
    cut = find_cut(window, rate)
    assert 0 <= cut < len(window)
    assert find_cut(window.copy(), rate) == cut
    assert find_cut(window * np.float32(2.0**power), rate) == cut


# --- split_at_silences


def check_cover(spans: list[tuple[int, int]], total: int, longest: int) -> None:
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])][: len(spans)]
    assert (spans[-1][1] if spans else 0) == total
    assert all(0 < end - start <= longest for start, end in spans)


@settings(max_examples=80, deadline=None)
@given(
    parts=st.lists(st.tuples(st.floats(0, 40), st.sampled_from([0, 1e-4, 0.05, 1])), max_size=6),
    max_seconds=st.floats(1, 35),
)
def test_segments_cover_the_signal_and_keep_their_bounds(
    parts: list[tuple[float, float]], max_seconds: float
) -> None:
    samples = talk((0, 0), *parts)
    spans = split_at_silences(samples, max_seconds)
    check_cover(spans, len(samples), int(max_seconds * RATE))
    if len(spans) > 1:
        assert min(end - start for start, end in spans) >= max_seconds * RATE / 3 - 2 * 160
    assert split_at_silences(samples.copy(), max_seconds) == spans
    assert split_at_silences(samples * np.float32(0.125), max_seconds) == spans


def test_up_to_the_maximum_nothing_is_split() -> None:
    assert split_at_silences(np.zeros(0, np.float32)) == []
    assert split_at_silences(np.zeros(1, np.float32)) == [(0, 1)]
    samples = talk((15, 0.5), (2, 0), (13, 0.5))
    assert split_at_silences(samples) == [(0, 30 * RATE)]
    assert len(split_at_silences(talk((15, 0.5), (2, 0), (13.01, 0.5)))) == 2


def test_the_cut_is_in_the_clear_pause_even_an_early_one() -> None:
    spans = split_at_silences(talk((12, 0.5), (1, 0.001), (27, 0.5)))
    assert [end / RATE for _, end in spans] == [pytest.approx(12.5, abs=0.05), 40]


def test_of_equal_pauses_the_last_one_makes_the_longest_segment() -> None:
    spans = split_at_silences(talk((12, 0.5), (1, 0.001), (10, 0.5), (1, 0.001), (30, 0.5)))
    assert spans[0][1] / RATE == pytest.approx(23.5, abs=0.05)


def test_a_short_pause_is_taken_only_in_the_last_part() -> None:
    spans = split_at_silences(talk((12, 0.5), (0.2, 0.0), (13, 0.5), (0.2, 0.05), (20, 0.5)))
    assert spans[0][1] / RATE == pytest.approx(25.3, abs=0.05)


def test_speech_that_never_pauses_is_cut_near_the_maximum() -> None:
    spans = split_at_silences(np.full(100 * RATE, 0.3, np.float32))
    assert all(end - start > 25 * RATE for start, end in spans[:2])


def test_real_speech_is_cut_where_nobody_speaks(shared_data: Path) -> None:
    clips = [
        soundfile.read(path, dtype="float32")[0]
        for path in sorted(shared_data.glob("libri/librispeech/*.flac"))[:12]
    ]
    samples = np.concatenate(clips)
    spans = split_at_silences(samples)
    check_cover(spans, len(samples), 30 * RATE)
    loud = np.sqrt(np.mean(samples**2))
    for _, cut in spans[:-1]:
        assert np.sqrt(np.mean(samples[cut - 800 : cut + 800] ** 2)) < loud / 5
    for (start, _), (_, end) in itertools.pairwise(spans):
        assert end - start > 20 * RATE


def test_a_maximum_below_a_second_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_seconds is 0\.5"):
        split_at_silences(np.zeros(10, np.float32), 0.5)
