"""Long recordings in overlapping windows, as pipelines with a chunk length and strides cut them.

A window's strides are heard and not kept, so that what is kept has seen both its sides. Joined, the kept
frames are as many as those of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Window", "cut_windows", "window_samples"]


@dataclass(frozen=True, slots=True)
class Window:
    """A range of samples, and how many at its ends are heard and not kept."""

    start: int
    end: int
    left: int
    right: int

    def kept(self, hop: int) -> slice:
        """The frames to keep, of an encoder with so many samples from one frame to the next."""
        size = self.end - self.start
        num_frames = round(size / hop)
        left, right = (round(edge / size * num_frames) for edge in (self.left, self.right))
        # An adapter may give one frame more than is rounded to, which is the segment's last.
        return slice(left, num_frames - right if right else None)


def window_samples(
    chunk_s: float, stride_s: float | Sequence[float] | None, *, rate: int, hop: int
) -> tuple[int, int, int]:
    """The samples of a window and of its left and right stride, in whole frames.

    Args:
        chunk_s: Seconds that are heard at once.
        stride_s: Seconds at both ends that are heard and not kept, or a pair for the left and the right;
            None: a sixth of the window at each end.
        rate: Samples in a second.
        hop: Samples from one frame to the next.

    Raises:
        ValueError: The strides leave nothing of the window.
    """
    if stride_s is None:
        stride_s = chunk_s / 6
    if isinstance(stride_s, int | float):
        stride_s = stride_s, stride_s
    if len(stride_s) != 2:
        raise ValueError(
            f"stride_length_s is {stride_s!r}, expected seconds, or a pair of them: left and right"
        )
    length, left, right = (round(s * rate / hop) * hop for s in (chunk_s, *stride_s))
    if length <= left + right or min(left, right) < 0:
        raise ValueError(
            f"chunk_length_s is {chunk_s} and stride_length_s {stride_s[0]} and {stride_s[1]}, expected "
            "strides from 0 whose sum is shorter than the chunk"
        )
    return length, left, right


def cut_windows(num_samples: int, length: int, left: int, right: int) -> Iterator[Window]:
    """The windows of a recording; the first has no left stride and the last no right one."""
    for start in range(0, max(num_samples, 1), length - left - right):
        is_last = start + length >= num_samples
        yield Window(start, min(start + length, num_samples), left if start else 0, 0 if is_last else right)
        if is_last:
            return
