"""Spans that SpecAugment masks: where they lie, and how many there are."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.models.masking import spec_augment_mask


def runs_of(row: torch.Tensor) -> list[int]:
    """The lengths of the runs of masked positions."""
    return [len(run) for run in "".join("x" if masked else " " for masked in row.tolist()).split()]


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 60),
    prob=st.floats(0, 1),
    span=st.integers(1, 12),
    min_spans=st.integers(0, 5),
    data=st.data(),
)
def test_spans_are_whole_and_inside_their_row(
    size: int, prob: float, span: int, min_spans: int, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(0, size), min_size=1, max_size=4))
    mask = spec_augment_mask(len(lengths), size, prob=prob, span=span, min_spans=min_spans, lengths=lengths)
    assert mask.shape == (len(lengths), size)
    assert mask.dtype == torch.bool
    for row, length in zip(mask, lengths, strict=True):
        assert not row[length:].any()
        assert all(run >= span for run in runs_of(row))
        if length < span:
            assert not row.any()
        elif min_spans:
            assert row.any()


def test_as_many_spans_as_asked_for() -> None:
    random.seed(0)
    # Spans of one position do not overlap, so positions are counted as spans.
    mask = spec_augment_mask(4_000, 50, prob=0.13, span=1)
    counts = mask.sum(1)
    assert set(counts.tolist()) == {6, 7}  # 6.5, rounded up or down by chance
    assert counts.float().mean().item() == pytest.approx(6.5, abs=0.05)
    longer = spec_augment_mask(2_000, 100, prob=0.5, span=10).float().mean().item()
    # Five spans of ten: each position escapes a span with a chance of about 0.9.
    assert longer == pytest.approx(1 - 0.9**5, abs=0.03)


def test_the_share_is_of_the_length_of_the_row() -> None:
    random.seed(0)
    mask = spec_augment_mask(2_000, 100, prob=0.2, span=1, lengths=[100, 20] * 1_000)
    assert mask[0::2].sum(1).float().mean().item() == pytest.approx(20, abs=0.1)
    assert mask[1::2].sum(1).float().mean().item() == pytest.approx(4, abs=0.1)


def test_starts_are_spread_evenly() -> None:
    random.seed(0)
    mask = spec_augment_mask(20_000, 10, prob=0.0, span=4, min_spans=1)
    starts = mask.float().argmax(1).bincount(minlength=10)
    assert starts[7:].sum() == 0
    assert starts[:7].min() > 20_000 / 7 * 0.9
    assert starts[:7].max() < 20_000 / 7 * 1.1


def test_min_spans_are_drawn_where_they_fit() -> None:
    assert spec_augment_mask(1, 100, prob=0.0, span=10, min_spans=2).sum() >= 11
    assert spec_augment_mask(1, 15, prob=0.0, span=10, min_spans=2).sum() == 10
    assert spec_augment_mask(3, 9, prob=1.0, span=10, min_spans=2).sum() == 0


def test_nothing_is_masked_at_zero_and_all_at_one() -> None:
    assert not spec_augment_mask(5, 30, prob=0.0, span=3).any()
    assert spec_augment_mask(5, 30, prob=1.0, span=1).all()


def test_a_seed_repeats_it() -> None:
    def drawn(seed: int) -> torch.Tensor:
        random.seed(seed)
        return spec_augment_mask(8, 60, prob=0.3, span=5)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
