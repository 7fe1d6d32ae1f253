"""Where speech is, by a detector that the user names, and the segments that follow from it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from w2v_ray.errors import ConfigError, SegmentError

__all__ = ["SpeechDetector", "find_speech", "load_detector", "pauses_between", "speech_regions"]

_RATE_HZ = 16_000
_PADDING_S = 0.2  # kept before and after speech
_SHORT_PAUSE_S = 1.0  # pauses up to this long stay between words
_SLACK_S = 0.1  # of a detector that works in frames, beyond the end

Samples = npt.NDArray[np.float32]
SpeechDetector = Callable[[Samples, int], Iterable[tuple[float, float]]]
"""Takes mono samples and their rate in Hz; returns where speech starts and ends, in seconds."""


def load_detector(name: str) -> SpeechDetector:
    """The function that ``MODULE:FUNCTION`` names.

    Raises:
        ConfigError: It cannot be imported, or is no function.
    """
    module, _, path = name.partition(":")
    found: Any
    try:
        found = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module may fail with anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"vad {name!r} cannot be imported ({reason}); put its module where Python finds it"
        ) from error
    if not callable(found):
        raise ConfigError(f"vad {name!r} is {type(found).__name__}, expected a function; name one")
    return found  # type: ignore[no-any-return]


def find_speech(detector: SpeechDetector, samples: Samples) -> list[tuple[int, int]]:
    """Asks a detector where speech is.

    Args:
        detector: Of the user.
        samples: Mono, 16 kHz, shape (samples,); the detector gets a copy.

    Returns:
        Pairs (start, end) of sample indices, in order, without overlap.

    Raises:
        SegmentError: The detector failed, or its spans are not in order or not within the samples.
    """
    try:
        found = [(float(start), float(end)) for start, end in detector(samples.copy(), _RATE_HZ)]
    except Exception as error:  # it is the user's own code
        reason = " ".join(str(error).split())[:200]
        raise SegmentError(
            f"the voice activity detector failed with {type(error).__name__}: {reason}; correct it"
        ) from error
    spans: list[tuple[int, int]] = []
    total_s, last = len(samples) / _RATE_HZ, 0.0
    for start, end in found:
        if not (last <= start <= end <= total_s + _SLACK_S):
            raise SegmentError(
                f"the voice activity detector found speech from {start:g} to {end:g} s after {last:g} s, "
                f"expected spans in order and within {total_s:.2f} s; correct it"
            )
        last = end
        first, stop = round(start * _RATE_HZ), min(round(end * _RATE_HZ), len(samples))
        if first < stop:
            spans.append((first, stop))
    return spans


def speech_regions(speech: list[tuple[int, int]], total: int, min_samples: int) -> list[tuple[int, int]]:
    """What is kept of a signal where the rest is dropped: speech, what surrounds it, and short pauses.

    Args:
        speech: Pairs (start, end) of sample indices, in order.
        total: Samples of the signal.
        min_samples: The least length of a region, where the signal is as long.

    Returns:
        Pairs (start, end) of sample indices, in order, without overlap.
    """
    padding = max(round(_PADDING_S * _RATE_HZ), min_samples)
    longest_pause = max(round(_SHORT_PAUSE_S * _RATE_HZ), 2 * padding)  # so that regions never meet
    regions: list[tuple[int, int]] = []
    for start, end in speech:
        if regions and start - regions[-1][1] <= longest_pause:
            regions[-1] = regions[-1][0], end
        else:
            regions.append((start, end))
    return [(max(0, start - padding), min(total, end + padding)) for start, end in regions]


def pauses_between(speech: list[tuple[int, int]], total: int) -> list[tuple[int, int]]:
    """What lies before, between and after spans of speech, as pairs (start, end) of sample indices."""
    edges = [(0, 0), *speech, (total, total)]
    return [(left[1], right[0]) for left, right in pairwise(edges) if left[1] < right[0]]
