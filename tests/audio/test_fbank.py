"""The filter bank, against torchaudio's port of Kaldi."""

from __future__ import annotations

import pytest
import torch
from torchaudio.compliance import kaldi

from w2v_ray.audio.fbank import log_mel, num_frames


def noise(num_samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_samples, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize(("num_mel_bins", "sampling_rate"), [(80, 16_000), (40, 16_000), (23, 8000)])
def test_bins_equal_the_oracles(num_mel_bins: int, sampling_rate: int) -> None:
    waveforms = [noise(n, seed=n) for n in (400, 559, 560, 5000)]
    found = log_mel(waveforms, num_mel_bins=num_mel_bins, sampling_rate=sampling_rate)
    for waveform, bins in zip(waveforms, found, strict=True):
        expected = kaldi.fbank(
            waveform[None].double() * 2**15,
            num_mel_bins=num_mel_bins,
            sample_frequency=sampling_rate,
            # Of as many samples at any rate.
            frame_length=400 / sampling_rate * 1000,
            frame_shift=160 / sampling_rate * 1000,
        )
        assert bins.dtype == torch.float64
        assert bins.shape == (num_frames(len(waveform)), num_mel_bins)
        # Its window and filters are float32, whatever the waveform is.
        torch.testing.assert_close(bins, expected.double(), rtol=0, atol=2e-4)


def test_no_frame_depends_on_another() -> None:
    waveforms = [noise(n, seed=n) for n in (400, 100_000, 8000)]  # more than one chunk of frames
    together = log_mel(waveforms, num_mel_bins=80, sampling_rate=16_000)
    for waveform, bins in zip(waveforms, together, strict=True):
        (alone,) = log_mel([waveform], num_mel_bins=80, sampling_rate=16_000)
        torch.testing.assert_close(bins, alone, rtol=1e-12, atol=1e-12)
    first = log_mel([waveforms[1][1600:2000]], num_mel_bins=80, sampling_rate=16_000)[0]
    torch.testing.assert_close(together[1][10:11], first, rtol=1e-12, atol=1e-12)


def test_silence_and_a_constant_are_at_the_floor() -> None:
    floor = torch.tensor(torch.finfo(torch.float32).eps, dtype=torch.float64).log()
    for waveform in (torch.zeros(1000), torch.full((1000,), 0.25)):
        (bins,) = log_mel([waveform], num_mel_bins=80, sampling_rate=16_000)
        assert (bins == floor).all()


def test_frames_fit_wholly() -> None:
    assert [num_frames(n) for n in (0, 399, 400, 559, 560, 16_000)] == [0, 0, 1, 1, 2, 98]
