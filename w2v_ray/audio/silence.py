"""Finds where audio may be cut: the agreed cut of two time ranges, and the borders of segments.

Every decision is made on integers, so it does not depend on how a machine orders its float sums:
two workers that hold the same samples always cut at the same one. It never drops a sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["find_cut", "find_sound", "split_at_silences"]

_RATE_HZ = 16_000  # of what split_at_silences takes
_HOPS_PER_S = 100  # an energy frame is two hops: 20 ms, every 10 ms
_LONGEST_USEFUL = _HOPS_PER_S  # silences of 1 s or more are equally good
_LONG_SILENCE = _HOPS_PER_S // 2
_SMOOTH = _HOPS_PER_S // 5  # 200 ms
_AS_GOOD_AS_SILENT = 10**6  # 60 dB below the loud frames
_CLEAR = 10  # 10 dB between the quiet and the loud frames: there is something to tell apart
_NO_SOUND = 2.0**-10  # 60 dB below full scale: nothing in it can be heard


def find_cut(window: npt.NDArray[np.float32], rate_hz: int) -> int:
    """Finds the sample at which two neighbouring time ranges part.

    The cut is the middle of the longest silence; silences of a second and more count the same, and
    then the one nearest the middle of the window is taken, the earlier of two. Silence is what lies
    in the lowest quarter, in dB, between the window's own quiet and loud frames, so there always is
    some.

    Args:
        window: Mono samples around the nominal border, at the rate of the source, shape (samples,).
        rate_hz: The rate of the source.

    Returns:
        An index in ``[0, len(window)]``: what comes before it belongs to the left range.
    """
    hop = rate_hz // _HOPS_PER_S
    frames = _frame_energies(_hop_energies(window, hop))
    if len(frames) == 0:
        return len(window) // 2
    threshold, _ = _quiet_threshold(frames)
    middle = len(frames) / 2
    best = max(
        _runs(frames <= threshold),
        key=lambda run: (
            min(run[1] - run[0], _LONGEST_USEFUL),
            -abs((run[0] + run[1]) / 2 - middle),
            -run[0],
        ),
    )
    return _middle(best) * hop


def find_sound(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Says for every 10 ms of a signal whether something sounds in it.

    Quiet is what lies in the lowest quarter, in dB, between the signal's own quiet and loud frames. A
    signal without such a difference sounds throughout, unless it stays 60 dB below full scale.

    Args:
        samples: Mono samples at 16 kHz, shape (samples,).

    Returns:
        Shape (samples // 160,).
    """
    hops = _hop_energies(samples, _RATE_HZ // _HOPS_PER_S)
    if max(float(samples.max(initial=0.0)), -float(samples.min(initial=0.0))) < _NO_SOUND:
        return np.zeros(len(hops), np.bool_)
    frames = _frame_energies(hops)
    threshold, clear = _quiet_threshold(frames) if len(frames) else (0, False)
    return 2 * hops > threshold if clear else np.ones(len(hops), np.bool_)


def split_at_silences(
    samples: npt.NDArray[np.float32],
    max_seconds: float = 30.0,
    *,
    pauses: Sequence[tuple[int, int]] = (),
) -> list[tuple[int, int]]:
    """Splits a signal into segments that follow each other without gap or overlap.

    A signal of up to ``max_seconds`` stays whole. Segments of a longer one have between a third of
    ``max_seconds`` and ``max_seconds``: each ends in the longest clear silence of half a second or
    more (the last of equals), or else at the quietest 200 ms of the last third it may end in. Where there
    are ``pauses``, the longest of them comes before both, one of a second being as good as any longer.

    Args:
        samples: Mono samples at 16 kHz, shape (samples,).
        max_seconds: The length that no segment exceeds; at least 1.
        pauses: Pairs (start, end) of sample indices, in order, between which nobody speaks.

    Returns:
        Pairs (start, end) of sample indices, the end excluded; empty for an empty signal.
    """
    if max_seconds < 1:
        raise ValueError(f"max_seconds is {max_seconds}; segments must be allowed at least 1 s")
    total = len(samples)
    longest = int(max_seconds * _RATE_HZ)
    if total <= longest:
        return [(0, total)] if total else []
    hop = _RATE_HZ // _HOPS_PER_S
    hops = _hop_energies(samples, hop)
    most, least = longest // hop, longest // hop // 3
    start, cuts = 0, []
    while total - start * hop > longest:
        # Both sides of the cut keep their least length: what is left is longer than the longest.
        low, high = start + least, min(start + most, total // hop - least)
        within = [(max(a // hop, low), min(b // hop, high)) for a, b in pauses]
        within = [pause for pause in within if pause[0] < pause[1]]
        if within:
            first, last = max(within, key=lambda run: (min(run[1] - run[0], _LONGEST_USEFUL), run[0]))
            start = (first + last) // 2
        else:
            start = low + _best_cut(hops[low:high], min(least, high - low))
        cuts.append(start * hop)
    return list(zip([0, *cuts], [*cuts, total], strict=True))


def _best_cut(hops: npt.NDArray[np.int64], last: int) -> int:
    """Where to cut a stretch of hops: at a long silence, else at the quietest of the ``last`` hops."""
    frames = _frame_energies(hops)
    threshold, clear = _quiet_threshold(frames)
    long = [run for run in _runs(frames <= threshold) if run[1] - run[0] >= _LONG_SILENCE] if clear else []
    if long:
        return _middle(max(long, key=lambda run: (min(run[1] - run[0], _LONGEST_USEFUL), run[0])))
    first = max(len(hops) - last - _SMOOTH // 2, 0)
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(hops[first:])])
    width = min(_SMOOTH, len(sums) - 1)
    smooth = sums[width:] - sums[:-width]
    quietest = len(smooth) - 1 - int(np.argmin(smooth[::-1]))  # the last of equals
    return first + quietest + width // 2


def _hop_energies(samples: npt.NDArray[np.float32], hop: int) -> npt.NDArray[np.int64]:
    """Sums of squares of 10 ms each, of samples rounded to 20 bits below their peak."""
    count = len(samples) // hop
    energies = np.zeros(count, np.int64)
    peak = max(float(samples.max()), -float(samples.min())) if len(samples) else 0.0
    if peak == 0.0:
        return energies
    scale = 2.0 ** (20 - math.frexp(peak)[1])  # a power of two: the product is exact
    for first in range(0, count, 1000):
        part = samples[first * hop : min(first + 1000, count) * hop].astype(np.float64)
        part *= scale
        np.rint(part, out=part)
        part *= part
        # Integers below 2**53 (20 bits squared, fewer than 2**13 of them): any order sums the same.
        energies[first : first + 1000] = part.reshape(-1, hop).sum(axis=1)
    return energies


def _frame_energies(hops: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return hops[:-1] + hops[1:]


def _quiet_threshold(frames: npt.NDArray[np.int64]) -> tuple[int, bool]:
    """The energy up to which a frame is quiet, and whether quiet and loud frames differ clearly."""
    ordered = np.sort(frames)
    quiet, loud = (int(ordered[len(ordered) * percent // 100]) for percent in (1, 95))
    floor = max(quiet, loud // _AS_GOOD_AS_SILENT)
    # A quarter of the way up in dB is a geometric mean, and integer square roots are exact.
    return max(math.isqrt(math.isqrt(floor**3 * loud)), floor), loud >= _CLEAR * max(floor, 1)


def _runs(quiet: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The runs of true values as (first, one past the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], quiet, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _middle(run: tuple[int, int]) -> int:
    """The hop border in the middle of a run of frames, each of which is two hops."""
    return (run[0] + run[1] + 1) // 2
