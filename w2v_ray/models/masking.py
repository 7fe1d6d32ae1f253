"""SpecAugment: which positions of a batch to mask while training."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

__all__ = ["spec_augment_mask"]


def spec_augment_mask(
    batch: int,
    size: int,
    *,
    prob: float,
    span: int,
    min_spans: int = 0,
    lengths: Sequence[int] | None = None,
) -> torch.Tensor:
    """Draws spans of positions to mask, from Python's ``random``.

    Args:
        batch: Number of rows.
        size: Positions in a row.
        prob: Share of positions that would be masked if no spans overlapped.
        span: Positions in a span.
        min_spans: Spans to draw at least, where a row is long enough for one.
        lengths: Positions of each row that may be masked; None: all.

    Returns:
        (batch, size) bool, true where masked.
    """
    mask_BL = torch.zeros(batch, size, dtype=torch.bool)
    for row in range(batch):
        length = size if lengths is None else min(size, int(lengths[row]))
        num_starts = length - span + 1
        if num_starts < 1:
            continue
        num_spans = max(min_spans, int(prob * length / span + random.random()))
        for start in random.sample(range(num_starts), min(num_spans, num_starts, length // span)):
            mask_BL[row, start : start + span] = True
    return mask_BL
