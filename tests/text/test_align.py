"""Forced alignment: paths and scores are torchaudio's, losses are torch's, and what cannot be is told."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.errors import AlignError
from w2v_ray.text import ForcedAlignment, forced_align, forced_align_batch


def emission(rng: np.random.Generator, frames: int, columns: int, spread: float = 3.0) -> np.ndarray:
    logits = spread * rng.standard_normal((frames, columns)).astype(np.float32)
    return torch.log_softmax(torch.from_numpy(logits), -1).numpy()


def tokens(rng: np.random.Generator, length: int, columns: int, blank: int) -> np.ndarray:
    drawn = rng.integers(0, columns - 1, length).astype(np.int32)
    return drawn + (drawn >= blank)


def needed(targets: np.ndarray) -> int:
    return len(targets) + int((targets[1:] == targets[:-1]).sum())


def expected_path(log_probs: np.ndarray, targets: np.ndarray, blank: int) -> tuple[np.ndarray, np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will move to another package
        path, scores = torchaudio.functional.forced_align(
            torch.from_numpy(log_probs)[None], torch.from_numpy(targets)[None], blank=blank
        )
    return path[0].numpy(), scores[0].numpy()


def expected_loss(log_probs: np.ndarray, targets: np.ndarray, blank: int) -> float:
    return float(
        torch.nn.functional.ctc_loss(
            torch.from_numpy(log_probs.astype(np.float64))[:, None],
            torch.from_numpy(targets)[None],
            torch.tensor([len(log_probs)]),
            torch.tensor([len(targets)]),
            blank=blank,
            reduction="sum",
        )
    )


def collapsed(path: np.ndarray, blank: int) -> list[int]:
    firsts = np.flatnonzero(np.diff(path, prepend=-1))
    return [int(token) for token in path[firsts] if token != blank]


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    columns=st.integers(2, 40),
    length=st.integers(1, 60),
    more=st.one_of(st.just(0), st.integers(0, 200)),
    spread=st.sampled_from([0.3, 3.0, 12.0]),
)
def test_paths_are_torchaudios_and_losses_torchs(
    seed: int, columns: int, length: int, more: int, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    blank = int(rng.integers(columns))
    targets = tokens(rng, length, columns, blank)
    log_probs = emission(rng, needed(targets) + more, columns, spread)
    found = forced_align(log_probs, targets, blank=blank)
    path, scores = expected_path(log_probs, targets, blank)
    np.testing.assert_array_equal(found.path, path)
    np.testing.assert_array_equal(found.scores, scores)
    assert found.loss == pytest.approx(expected_loss(log_probs, targets, blank), abs=1e-6, rel=1e-9)
    check_spans(found, targets)


def check_spans(found: ForcedAlignment, targets: np.ndarray) -> None:
    """The spans are the runs of the path, one for each token, in order and apart."""
    assert len(found.starts) == len(found.ends) == len(found.token_scores) == len(targets)
    assert (found.starts < found.ends).all()
    assert (found.ends[:-1] <= found.starts[1:]).all()
    covered = np.zeros(len(found.path), bool)
    for token, start, end, score in zip(targets, found.starts, found.ends, found.token_scores, strict=True):
        assert (found.path[start:end] == token).all()
        assert score == pytest.approx(np.exp(found.scores[start:end].astype(np.float64).mean()), rel=1e-6)
        assert 0 <= score <= 1
        covered[start:end] = True
    assert not np.isin(found.path[~covered], targets).any()


@pytest.mark.parametrize(("frames", "length"), [(1500, 300), (2000, 1999), (700, 500), (5000, 3)])
def test_long_items_are_those_of_torchaudio(frames: int, length: int) -> None:
    """Long enough for scores to be computed again from those of some frames alone."""
    rng = np.random.default_rng(length)
    targets = (np.arange(length) % 30 + 1).astype(np.int32)  # no repeats: the shortest emission is the text
    log_probs = emission(rng, frames, 32)
    found = forced_align(log_probs, targets)
    path, scores = expected_path(log_probs, targets, 0)
    np.testing.assert_array_equal(found.path, path)
    np.testing.assert_array_equal(found.scores, scores)
    assert found.loss == pytest.approx(expected_loss(log_probs, targets, 0), rel=1e-9)
    check_spans(found, targets)


def test_half_precision_is_computed_in_single() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        targets = tokens(rng, 12, 9, 4)
        log_probs = emission(rng, 60, 9).astype(np.float16)
        found = forced_align(log_probs, targets, blank=4)
        path, scores = expected_path(log_probs.astype(np.float32), targets, 4)
        # Rounded scores tie; where they do, torchaudio may take a path that is less likely.
        if not np.array_equal(found.path, path):
            assert found.scores.sum(dtype=np.float64) >= scores.sum(dtype=np.float64) - 1e-4
        assert found.loss == pytest.approx(expected_loss(log_probs, targets, 4), abs=1e-6)
        check_spans(found, targets)
    double = emission(rng, 60, 9).astype(np.float64)
    assert forced_align(double, [1, 2]).loss == pytest.approx(
        forced_align(double.astype(np.float32), [1, 2]).loss
    )


def test_a_batch_gives_what_its_items_give_alone_on_any_number_of_threads() -> None:
    rng = np.random.default_rng(2)
    targets = [tokens(rng, int(rng.integers(0, 40)), 32, 0) for _ in range(40)]
    log_probs = [emission(rng, needed(t) + int(rng.integers(1, 90)), 32) for t in targets]
    alone = [forced_align(e, t) for e, t in zip(log_probs, targets, strict=True)]
    for num_threads in (1, 2, 7, 100):
        together = forced_align_batch(log_probs, targets, num_threads=num_threads)
        for one, other in zip(together, alone, strict=True):
            assert isinstance(one, ForcedAlignment)
            np.testing.assert_array_equal(one.path, other.path)
            assert one.loss == other.loss
        paths = forced_align_batch(log_probs, targets, with_loss=False, num_threads=num_threads)
        for one, other in zip(paths, alone, strict=True):
            assert isinstance(one, ForcedAlignment)
            np.testing.assert_array_equal(one.path, other.path)
            assert np.isnan(one.loss)
    assert forced_align_batch([], []) == []


def test_views_and_read_only_emissions() -> None:
    rng = np.random.default_rng(3)
    whole = emission(rng, 40, 8)
    expected = forced_align(whole, [1, 2, 2])
    transposed = np.asfortranarray(whole)
    transposed.flags.writeable = False
    np.testing.assert_array_equal(forced_align(transposed, (1, 2, 2)).path, expected.path)
    doubled = np.repeat(whole, 2, axis=0)
    np.testing.assert_array_equal(forced_align(doubled[::2], [1, 2, 2]).path, expected.path)


def test_no_tokens_are_blanks_alone() -> None:
    log_probs = emission(np.random.default_rng(4), 7, 5)
    found = forced_align(log_probs, [], blank=2)
    assert (found.path == 2).all()
    assert found.loss == pytest.approx(-log_probs[:, 2].sum(), rel=1e-6)
    assert len(found.starts) == len(found.token_scores) == 0


def test_ties_give_a_path_of_the_tokens() -> None:
    for frames, targets in ((20, [1, 1, 2, 1]), (5, [1, 1, 2, 1]), (300, [2] * 100)):
        flat = np.full((frames, 3), np.log(1 / 3), np.float32)
        found = forced_align(flat, targets)
        assert collapsed(found.path, 0) == targets
        assert found.loss == pytest.approx(expected_loss(flat, np.array(targets, np.int32), 0), rel=1e-9)


def test_a_probability_of_zero_is_passed_only_where_it_must_be() -> None:
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]], np.float32))
    found = forced_align(log_probs, [1, 2])
    assert found.path.tolist() == [1, 0, 2]
    assert found.loss == pytest.approx(0, abs=1e-6)
    impossible = forced_align(log_probs, [2, 1])
    assert collapsed(impossible.path, 0) == [2, 1]
    assert impossible.loss == np.inf
    assert impossible.token_scores.tolist() == [0, 0]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(0, 40),
    more=st.integers(0, 60),
    power=st.integers(-3, 5),
)
def test_whatever_the_numbers_are_the_path_spells_the_tokens(
    seed: int, length: int, more: int, power: int
) -> None:
    rng = np.random.default_rng(seed)
    targets = tokens(rng, length, 6, 2)
    numbers = -np.abs(rng.standard_normal((max(1, needed(targets)) + more, 6))) * 10.0**power
    numbers[rng.random(numbers.shape) < 0.3] = -np.inf
    found = forced_align(numbers, targets, blank=2)
    assert collapsed(found.path, 2) == targets.tolist()
    assert not np.isnan(found.loss)
    check_spans(found, targets)


def test_what_cannot_be_aligned_is_told_by_item() -> None:
    good = emission(np.random.default_rng(5), 4, 4)
    bad = good.copy()
    bad[1, 2] = np.nan
    cases: list[tuple[Any, list[int], str]] = [
        (good, [1, 1, 1], "4 frames and 3 tokens need 5"),
        (good[:0], [], "0 frames and 0 tokens need 1"),
        (bad, [2], "NaN"),
        (np.where(np.isnan(bad), np.inf, bad), [2], "infinity"),
    ]
    for log_probs, targets, reason in cases:
        with pytest.raises(AlignError, match=reason):
            forced_align(log_probs, targets)
    results = forced_align_batch(
        [good, *(case[0] for case in cases), good], [[1], *(case[1] for case in cases), [3]]
    )
    assert [isinstance(result, AlignError) for result in results] == [False, True, True, True, True, False]
    np.testing.assert_array_equal(results[-1].path, forced_align(good, [3]).path)  # type: ignore[union-attr]
    assert forced_align(good, [1, 2, 3, 1]).path.tolist() == [1, 2, 3, 1]
    assert forced_align(good, [1, 1, 2]).path.tolist() == [1, 0, 1, 2]


@pytest.mark.parametrize(
    ("targets", "options", "reason"),
    [
        ([0], {}, "target 0 "),
        ([4], {}, "target 4 "),
        ([-1], {}, "target -1 "),
        ([1], {"blank": 4}, "blank is 4"),
        ([1], {"blank": -1}, "blank is -1"),
        ([[1]], {}, r"\(1, 1\)"),
    ],
)
def test_mistakes_are_value_errors(targets: Any, options: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        forced_align(np.zeros((3, 4), np.float32), targets, **options)


def test_batches_of_two_lengths_and_no_threads_are_value_errors() -> None:
    log_probs = np.zeros((3, 4), np.float32)
    with pytest.raises(ValueError, match="1 emissions and 2 targets"):
        forced_align_batch([log_probs], [[1], [2]])
    with pytest.raises(ValueError, match="num_threads is 0"):
        forced_align_batch([log_probs], [[1]], num_threads=0)
