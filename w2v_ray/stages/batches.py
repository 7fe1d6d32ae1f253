"""How much the encoder takes at once: seconds of audio, found on the device and halved where memory ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from w2v_ray.schema import SAMPLE_RATE_HZ

__all__ = ["Budget", "attention_seconds", "choose_budget", "tried_budget"]

_ENOUGH_GAIN = 1.03  # of speed, for twice the memory
_FIRST_S, _MOST_S = 15.0, 960.0
_TRIAL_S = 15.0  # of the items of a trial
_MEMORY_SHARE = 0.8  # of what is free on a GPU


class Budget:
    """Seconds of audio of a batch, in which a long item counts for more: attention grows with its square.

    Args:
        seconds: The most that a batch may cost.
        quadratic_s: Seconds of an item at which attention costs as much as all the rest.
    """

    def __init__(self, seconds: float, *, quadratic_s: float) -> None:
        self.seconds = seconds
        self._quadratic_s = quadratic_s

    def cost(self, seconds: float) -> float:
        """What an item of so many seconds counts for."""
        return seconds + seconds**2 / self._quadratic_s

    def halve(self, seconds: Sequence[float]) -> None:
        """Takes note that memory ended in a batch of items of so many seconds: half of it may fit."""
        self.seconds = min(self.seconds, sum(map(self.cost, seconds))) / 2

    def next_batch(self, seconds: Sequence[float]) -> int:
        """How many of these items, from the first on, are the next batch: at least one."""
        room = self.seconds
        for count, item_s in enumerate(seconds):
            room -= self.cost(item_s)
            if room < 0:
                return max(1, count)
        return len(seconds)


def attention_seconds(config: Any) -> float:
    """Seconds of an item at which the products of attention are as many as all others of a layer.

    Args:
        config: Of an encoder, of either family, of 50 frames a second.
    """
    width: int = config.hidden_size
    inner: int = config.intermediate_size
    products = 4 * width * width + 2 * width * inner
    return products / (2 * width) / 50


def choose_budget(measure: Callable[[float], tuple[float, float]], *, most_bytes: float) -> float:
    """The seconds of audio of a batch from which on a device is no faster, or its memory full.

    Args:
        measure: Encodes so many seconds of audio, and says in how many seconds and with how many bytes.
        most_bytes: Of the device's memory, that a batch may take.
    """
    budget, best = 0.0, 0.0
    seconds = _FIRST_S
    while seconds <= _MOST_S:
        took_s, used = measure(seconds)
        if used > most_bytes:
            break
        rate = seconds / took_s
        if budget and rate < best * _ENOUGH_GAIN:
            break
        budget, best = seconds, max(best, rate)
        if 2 * used > most_bytes:  # what is twice as long takes about twice as much
            break
        seconds *= 2
    return budget or _FIRST_S


def tried_budget(
    encode: Callable[[Sequence[np.ndarray]], Any], device: torch.device
) -> tuple[float, float | None]:
    """The seconds of audio of a batch for a GPU, found by encoding noise on it, and the bytes that it takes.

    The bytes are those beside the weights; None where not even the smallest batch fits.
    """
    generator = np.random.default_rng(0)
    taken: dict[float, float] = {}

    def measure(seconds: float) -> tuple[float, float]:
        piece = generator.standard_normal(int(_TRIAL_S * SAMPLE_RATE_HZ), dtype=np.float32)
        waves = [piece] * max(1, round(seconds / _TRIAL_S))
        took_s = []
        before = torch.cuda.memory_allocated(device)
        for _ in range(2):  # the first time, kernels are loaded
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            began = time.perf_counter()
            try:
                encode(waves)
            except torch.OutOfMemoryError:  # another worker on this device has taken what was free
                return math.inf, math.inf
            torch.cuda.synchronize(device)
            took_s.append(time.perf_counter() - began)
        taken[seconds] = torch.cuda.max_memory_allocated(device) - before
        return took_s[-1], taken[seconds]

    torch.cuda.empty_cache()  # of what loading took
    seconds = choose_budget(measure, most_bytes=_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0])
    return seconds, taken.get(seconds)
