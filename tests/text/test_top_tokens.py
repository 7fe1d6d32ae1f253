"""Kept log-probabilities: what is kept comes back as it was, and the rest stays below it and sums to one."""

from __future__ import annotations

import numpy as np
import pytest

from w2v_ray.errors import EncodeError
from w2v_ray.text.top_tokens import FLOOR, keep_top_tokens, restore_emission, spread_tokens


def noise(frames: int, columns: int, seed: int, scale: float = 3.0) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(size=(frames, columns)) * scale
    return (scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float16)


def there_and_back(emission: np.ndarray, count: int, blank: int) -> np.ndarray:
    ids, log_probs = keep_top_tokens(emission, count=count, blank=blank)
    frames, columns = emission.shape
    return restore_emission(ids, log_probs, num_frames=frames, num_columns=columns, blank=blank)


@pytest.mark.parametrize(("columns", "blank"), [(2, 0), (32, 0), (32, 31), (300, 7), (1, 0)])
@pytest.mark.parametrize("count", [2, 5, 8, 400])
def test_what_is_kept_comes_back(columns: int, blank: int, count: int) -> None:
    emission = noise(50, columns, seed=columns + count)
    back = there_and_back(emission, count, blank)
    assert (back.shape, back.dtype) == (emission.shape, np.float16)
    others = np.delete(emission.astype(np.float64), blank, axis=1)
    bar = np.sort(others, axis=1)[:, -min(count - 1, columns - 1) :].min(axis=1) if columns > 1 else 0
    kept = (emission >= np.maximum(bar, FLOOR).reshape(-1, 1)) | (np.arange(columns) == blank)
    assert (back[kept] == emission[kept]).all()
    assert (back.argmax(axis=1) == emission.argmax(axis=1)).all()  # greedy text never changes
    is_other = kept & (np.arange(columns) != blank)
    least = emission.astype(np.float32).min(axis=1, initial=0, where=is_other)
    assert (back <= np.maximum(least, FLOOR)[:, None] + 1e-2)[~kept].all()
    sums = np.exp(back.astype(np.float64)).sum(axis=1)
    assert (sums < 1.01).all()
    assert count < columns or sums == pytest.approx(1, abs=0.01)
    assert np.isfinite(back).all()


def test_unlikely_tokens_cost_nothing_but_the_blank_stays() -> None:
    emission = np.full((4, 5), -30.0, np.float16)
    emission[:, 2] = 0
    ids, log_probs = keep_top_tokens(emission, count=3, blank=0)
    assert np.frombuffer(ids, np.uint8).reshape(2, 4).tolist() == [[2] * 4, [0] * 4]
    back = restore_emission(ids, log_probs, num_frames=4, num_columns=5, blank=0)
    assert (back[:, 0] == -30).all()
    assert (back[:, 2] == 0).all()
    assert (back[:, [1, 3, 4]] <= FLOOR).all()


def test_no_frames() -> None:
    assert there_and_back(np.zeros((0, 5), np.float16), 3, 0).shape == (0, 5)
    assert there_and_back(np.zeros((0, 0), np.float16), 3, 0).shape == (0, 0)


def test_sizes_that_do_not_fit_are_refused() -> None:
    ids, log_probs = keep_top_tokens(noise(6, 5, seed=0), count=3, blank=0)
    for changes in ({"num_frames": 5}, {"num_frames": 7}, {"num_columns": 300}, {"num_columns": 2}):
        sizes = {"num_frames": 6, "num_columns": 5, "blank": 0} | changes
        with pytest.raises(EncodeError, match="what is kept of the emission"):
            restore_emission(ids, log_probs, **sizes)
    with pytest.raises(EncodeError, match="what is kept of the emission"):
        restore_emission(b"", b"", num_frames=6, num_columns=5, blank=0)


@pytest.mark.parametrize(("columns", "count"), [(1_024, 256), (300, 40), (5, 5), (70_000, 3)])
def test_the_likeliest_tokens_come_back(columns: int, count: int) -> None:
    emission = noise(20, columns, seed=columns, scale=2.0)
    ids = np.argsort(-emission.astype(np.float32), axis=1)[:, :count]
    ids = np.random.default_rng(0).permuted(ids, axis=1)
    back = spread_tokens(ids, np.take_along_axis(emission, ids, axis=1), num_columns=columns)
    assert (back.shape, back.dtype) == (emission.shape, np.float16)
    is_given = np.zeros(emission.shape, bool)
    np.put_along_axis(is_given, ids, True, axis=1)
    assert (back[is_given] == emission[is_given]).all()
    assert (back.argmax(axis=1) == emission.argmax(axis=1)).all()
    others = np.where(is_given, -np.inf, back)
    assert (others <= np.where(is_given, emission, np.inf).min(axis=1)[:, None]).all()
    assert np.exp(back.astype(np.float64)).sum(axis=1) == pytest.approx(1, abs=0.02)


def test_a_column_beyond_the_last_is_refused() -> None:
    with pytest.raises(EncodeError, match="names column 7 of 5; encode the segment again"):
        spread_tokens(np.array([[1, 7]], np.uint16), np.array([[-1, -2]], np.float16), num_columns=5)
    assert spread_tokens(np.zeros((0, 4)), np.zeros((0, 4), np.float16), num_columns=5).shape == (0, 5)
