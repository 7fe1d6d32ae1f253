"""Kaldi's log-mel filter bank in torch: the frames of any number of waveforms at once, on any device.

The arithmetic is in float64, as a quiet mel bin of a loud frame is lost in the rounding of a float32
transform. It is a few million operations for a second of audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["FRAME_LENGTH", "FRAME_SHIFT", "log_mel", "num_frames"]

FRAME_LENGTH = 400  # samples: 25 ms at 16 kHz
FRAME_SHIFT = 160
_FFT_LENGTH = 512
_LOWEST_HZ = 20
_PREEMPHASIS = 0.97
_POVEY_POWER = 0.85
_INT16_SCALE = 2**15  # Kaldi reads 16-bit samples as they are
_FLOOR = torch.finfo(torch.float32).eps
# Frames transformed together: what the cache of a core holds, and what keeps a GPU busy in 400 MB.
_CHUNK_ON_CPU, _CHUNK_ELSEWHERE = 512, 32_768


def num_frames(num_samples: int) -> int:
    """Frames that fit wholly into a waveform: the end of it that fills none is left out."""
    return max(0, 1 + (num_samples - FRAME_LENGTH) // FRAME_SHIFT)


@torch.no_grad()
def log_mel(waveforms: Sequence[Tensor], *, num_mel_bins: int, sampling_rate: int) -> list[Tensor]:
    """The natural logarithm of the power in mel bins, without dither, from the whole band above 20 Hz.

    Args:
        waveforms: Each of shape (samples,), at least ``FRAME_LENGTH`` of them, full scale being 1; all on
            one device.
        num_mel_bins: Triangles, equally wide in mel.
        sampling_rate: In Hz.

    Returns:
        For each waveform float64 of shape (frames, num_mel_bins), on its device.
    """
    window, filters = _tables(num_mel_bins, sampling_rate, waveforms[0].device)
    views = [waveform.unfold(0, FRAME_LENGTH, FRAME_SHIFT) for waveform in waveforms]
    # Frames overlap: joined, they are 2.5 times the audio, which a long recording alone is spared.
    frames = torch.cat(views) if len(views) > 1 else views[0]
    chunks = torch.split(frames, _CHUNK_ELSEWHERE if frames.device.type != "cpu" else _CHUNK_ON_CPU)
    bins = torch.cat([_transform(chunk.double(), window, filters) for chunk in chunks])
    return list(torch.split(bins, [num_frames(len(waveform)) for waveform in waveforms]))


def _transform(frames: Tensor, window: Tensor, filters: Tensor) -> Tensor:
    frames = frames * _INT16_SCALE
    frames = frames - frames.mean(dim=1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)  # the first sample is its own predecessor
    spectrum = torch.fft.rfft((frames - _PREEMPHASIS * before) * window, n=_FFT_LENGTH)
    power: Tensor = spectrum.real.square() + spectrum.imag.square()
    return (power @ filters).clamp_min(_FLOOR).log()


@lru_cache(maxsize=8)
def _tables(num_mel_bins: int, sampling_rate: int, device: torch.device) -> tuple[Tensor, Tensor]:
    window = torch.hann_window(FRAME_LENGTH, periodic=False, dtype=torch.float64) ** _POVEY_POWER
    hertz = torch.arange(_FFT_LENGTH // 2 + 1, dtype=torch.float64) * (sampling_rate / _FFT_LENGTH)
    lowest, highest = _mel(torch.tensor([_LOWEST_HZ, sampling_rate // 2], dtype=torch.float64)).tolist()
    edges = torch.linspace(lowest, highest, num_mel_bins + 2, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    mel = _mel(hertz)[:, None]
    rising, falling = (mel - left) / (centre - left), (right - mel) / (right - centre)
    return window.to(device), torch.minimum(rising, falling).clamp_min(0).to(device)


def _mel(hertz: Tensor) -> Tensor:
    return 1127 * torch.log1p(hertz / 700)
