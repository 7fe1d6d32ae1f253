"""The resampler is torchaudio's filter, whatever the blocks, the rate or the length."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.audio.resample import Resampler, mix_to_mono

COMMON = [8_000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000, 192_000, 384_000]
COPRIME = [15_999, 16_001, 44_101, 383_999]


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, n).astype(np.float32)


def resample(
    samples: np.ndarray, rate: int, target: int = 16_000, blocks: list[int] | None = None
) -> np.ndarray:
    resampler = Resampler(rate, target)
    parts, at = [], 0
    for size in blocks or []:
        parts.append(resampler.push(samples[at : at + size]))
        at += size
    parts += [resampler.push(samples[at:]), resampler.flush()]
    return np.concatenate(parts)


@pytest.mark.parametrize("rate", [1_000, *COMMON])
def test_it_equals_torchaudio(rate: int) -> None:
    samples = noise(rate * 3 + 17)
    # Its transform computes the kernel in float64; the function, in float32, is 1e-5 away from both.
    expected = torchaudio.transforms.Resample(rate, 16_000, dtype=torch.float64)(
        torch.from_numpy(samples).double()
    )
    np.testing.assert_allclose(resample(samples, rate), expected.numpy(), atol=2e-6)


@pytest.mark.parametrize("rate", COPRIME)
def test_rates_without_a_common_factor_keep_a_tone(rate: int) -> None:
    seconds = 2.3
    tone = np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate).astype(np.float32)
    output = resample(tone, rate)
    expected = np.sin(2 * np.pi * 440 * np.arange(len(output)) / 16_000)
    np.testing.assert_allclose(output[200:-200], expected[200:-200], atol=2e-3)


def test_what_16_khz_cannot_hold_is_filtered_out() -> None:
    for rate in (44_100, 44_101, 48_000):
        tone = np.sin(2 * np.pi * 11_000 * np.arange(rate) / rate).astype(np.float32)
        assert np.abs(resample(tone, rate)[200:-200]).max() < 0.01


@settings(max_examples=60, deadline=None)
@given(
    rate=st.sampled_from([16_000, *COMMON, *COPRIME]),
    n=st.integers(0, 200_000),
    blocks=st.lists(st.one_of(st.integers(0, 500), st.integers(0, 90_000)), max_size=12),
)
def test_the_output_does_not_depend_on_the_blocks(rate: int, n: int, blocks: list[int]) -> None:
    samples = noise(n)
    whole = resample(samples, rate)
    assert len(whole) == math.ceil(n * 16_000 / rate)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(resample(samples, rate, blocks=blocks), whole)


def test_16_khz_passes_unchanged() -> None:
    samples = noise(50_000)
    np.testing.assert_array_equal(resample(samples, 16_000, blocks=[1, 7, 30_000]), samples)


def test_other_targets_work_too() -> None:
    samples = noise(32_000)
    expected = torchaudio.transforms.Resample(16_000, 8_000, dtype=torch.float64)(
        torch.from_numpy(samples).double()
    )
    np.testing.assert_allclose(resample(samples, 16_000, 8_000), expected.numpy(), atol=2e-6)


def test_rates_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 Hz, got 0 and 16000"):
        Resampler(0)


@pytest.mark.parametrize("channels", [1, 2, 3, 8, 32])
def test_mono_is_the_mean_of_the_channels_however_the_block_is_cut(channels: int) -> None:
    block = noise(1000 * channels).reshape(1000, channels)
    mono = mix_to_mono(block)
    np.testing.assert_allclose(mono, block.mean(axis=1), atol=1e-6)
    np.testing.assert_array_equal(np.concatenate([mix_to_mono(block[:3]), mix_to_mono(block[3:])]), mono)
    mono[0] = 9
    assert block.max() <= 1  # the caller owns the result
