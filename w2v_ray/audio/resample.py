"""Brings audio of any rate to 16 kHz mono, block by block, in bounded memory.

The filter is that of torchaudio's default (a sinc with a Hann window over six zero crossings,
roll-off 0.99), kept as one short row of weights per output phase: 36 weights at 44.1 kHz where a
dense kernel multiplies 475, and 2 to 20 MB for a rate that shares no factor with 16,000, where a dense
kernel would take gigabytes. It does not judge rates; ``codecs`` refuses what is out of bounds.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["Resampler", "mix_to_mono"]

_ZERO_CROSSINGS = 6
_ROLL_OFF = 0.99
_STEP = 1 << 15  # samples in or out per step, about: bounds the memory of a step to some MB


def mix_to_mono(block: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The mean of the channels of a block of shape (frames, channels), as shape (frames,).

    Channels are added one after the other, so a frame's result does not depend on its block.
    """
    mono = block[:, 0].astype(np.float32)  # a copy that callers own
    for channel in range(1, block.shape[1]):
        mono += block[:, channel]
    if block.shape[1] > 1:
        mono *= np.float32(1 / block.shape[1])
    return mono


class Resampler:
    """A stream of mono samples at one rate, turned into a stream at another.

    The concatenated output has ``ceil(samples * target / source)`` samples and does not depend, to
    the last bit, on how the input was cut into blocks: work is done in steps of one fixed size
    counted from the first sample.
    """

    def __init__(self, source_rate_hz: int, target_rate_hz: int = 16_000) -> None:
        if source_rate_hz < 1 or target_rate_hz < 1:
            raise ValueError(f"rates must be at least 1 Hz, got {source_rate_hz} and {target_rate_hz}")
        common = math.gcd(source_rate_hz, target_rate_hz)
        self._source, self._target = source_rate_hz // common, target_rate_hz // common
        self._received = self._emitted = 0
        if self._source == self._target:
            return
        self._weights, self._reach = _filter(self._source, self._target)
        # A period is `source` samples in, `target` samples out; a step is a whole number of them.
        self._periods = max(1, _STEP // max(self._source, self._target))
        first = np.arange(self._target) * self._source // self._target
        self._starts = np.arange(self._periods)[:, None] * self._source + first
        self._step = self._periods * self._source
        self._window = np.zeros(self._step + 2 * self._reach, np.float32)
        self._filled = self._reach  # zeros before the first sample

    def push(self, block: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Takes the next samples, shape (samples,), and returns what can be computed so far."""
        self._received += len(block)
        if self._source == self._target:
            self._emitted += len(block)
            return block
        done: list[npt.NDArray[np.float32]] = []
        while len(block):
            taken = block[: len(self._window) - self._filled]
            self._window[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            block = block[len(taken) :]
            if self._filled == len(self._window):
                done.append(self._convert())
        output = np.concatenate(done) if done else np.zeros(0, np.float32)
        self._emitted += len(output)
        return output

    def flush(self) -> npt.NDArray[np.float32]:
        """Ends the stream and returns its last samples; nothing may be pushed after it."""
        missing = -(-self._received * self._target // self._source) - self._emitted
        done: list[npt.NDArray[np.float32]] = []
        while (have := sum(map(len, done))) < missing:
            self._window[self._filled :] = 0  # zeros after the last sample
            done.append(self._convert()[: missing - have])
        self._emitted += missing
        return np.concatenate(done) if done else np.zeros(0, np.float32)

    def _convert(self) -> npt.NDArray[np.float32]:
        """Filters one full window and keeps its end as the beginning of the next one."""
        taps = np.lib.stride_tricks.sliding_window_view(self._window, self._weights.shape[1])
        output: npt.NDArray[np.float32] = np.einsum("ptw,tw->pt", taps[self._starts], self._weights).ravel()
        kept = 2 * self._reach
        self._window[:kept] = self._window[-kept:]
        self._filled = kept
        return output


def _filter(source: int, target: int) -> tuple[npt.NDArray[np.float32], int]:
    """Weights of each of the ``target`` phases, shape (target, 2 * reach), and their reach in samples."""
    cutoff = min(source, target) * _ROLL_OFF
    reach = math.ceil(_ZERO_CROSSINGS * source / cutoff) + 1
    phase = np.arange(target) * source % target / target
    offset = np.arange(2 * reach) - reach - phase[:, None]  # in samples from the output's position
    crossings = np.clip(offset * (cutoff / source), -_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    window = np.cos(crossings * (np.pi / 2 / _ZERO_CROSSINGS)) ** 2
    return (np.sinc(crossings) * window * (cutoff / source)).astype(np.float32), reach
