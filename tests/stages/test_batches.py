"""Batches by seconds of audio: what fits one, what is left after memory ended, and what a device is given."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.stages.batches import Budget, attention_seconds, choose_budget

SECONDS = st.lists(st.floats(0.02, 300.0), min_size=1, max_size=20)


@given(seconds=SECONDS, room=st.floats(0.01, 500.0), quadratic_s=st.floats(1.0, 200.0))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_batch_fits_and_no_more_would(seconds: list[float], room: float, quadratic_s: float) -> None:
    budget = Budget(room, quadratic_s=quadratic_s)
    count = budget.next_batch(seconds)
    assert 1 <= count <= len(seconds)
    if count > 1:
        assert sum(map(budget.cost, seconds[:count])) <= room * (1 + 1e-9)
    if count < len(seconds):
        assert sum(map(budget.cost, seconds[: count + 1])) >= room * (1 - 1e-9)


@given(seconds=SECONDS, room=st.floats(0.01, 500.0))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_halving_ends_at_single_items(seconds: list[float], room: float) -> None:
    """A batch that failed is never tried again as it was, whatever the budget was beside it."""
    budget = Budget(room, quadratic_s=50.0)
    count = len(seconds)  # as of the budget of another batch
    for _ in range(64):
        before = budget.seconds
        budget.halve(seconds[:count])
        assert budget.seconds <= before / 2
        fewer = budget.next_batch(seconds[:count])
        assert fewer < count or count == 1
        count = fewer
    assert count == 1


def test_a_long_item_counts_for_more_than_short_ones_of_its_length_together() -> None:
    budget = Budget(100.0, quadratic_s=10.0)
    assert budget.cost(10.0) == 20.0
    assert budget.next_batch([10.0] * 6) == 5
    assert budget.next_batch([50.0, 1.0]) == 1  # alone, although it costs 300
    assert budget.next_batch([]) == 0


def test_attention_of_the_published_sizes_costs_as_much_as_the_rest_after_minutes() -> None:
    base = attention_seconds(Wav2Vec2Config())
    # Per frame 4 + 8 products of the width's square against two of the frames: 2 L E = 12 E^2.
    assert base == pytest.approx(6 * 768 / 50)
    assert attention_seconds(Wav2Vec2BertConfig()) > base


class Device:
    """Faster with more at once up to a point; memory of its weights and of every second."""

    def __init__(self, *, best_s: float, weights: float = 1.0, per_second: float = 0.01) -> None:
        self.best_s, self.weights, self.per_second = best_s, weights, per_second
        self.measured: list[float] = []

    def __call__(self, seconds: float) -> tuple[float, float]:
        self.measured.append(seconds)
        return max(seconds, self.best_s) / 500, self.weights + self.per_second * seconds


@pytest.mark.parametrize(
    ("best_s", "expected"), [(1.0, 15), (15.0, 15), (60.0, 60), (100.0, 120), (1e9, 960)]
)
def test_a_device_is_given_what_makes_it_fast_and_no_more(best_s: float, expected: float) -> None:
    device = Device(best_s=best_s)
    assert choose_budget(device, most_bytes=1e9) == expected
    assert device.measured[-1] <= 2 * expected


@settings(max_examples=40, deadline=None, derandomize=True)
@given(most=st.floats(1.2, 40.0), weights=st.floats(0.0, 1.0))
def test_a_device_is_never_asked_for_more_than_its_memory(most: float, weights: float) -> None:
    device = Device(best_s=1e9, weights=weights)
    found = choose_budget(device, most_bytes=most)
    assert weights + 0.01 * found <= most
    assert max(weights + 0.01 * seconds for seconds in device.measured) <= most
    # Nor is it left idle: a quarter of what would fit is the least.
    assert found >= min(960, (most - weights) / 0.01) / 4 or 2 * (weights + 0.01 * found) > most


def test_a_device_whose_memory_is_full_is_given_the_least() -> None:
    assert choose_budget(lambda seconds: (1.0, 100.0), most_bytes=10.0) == 15
    assert choose_budget(lambda seconds: (float("inf"), float("inf")), most_bytes=10.0) == 15
