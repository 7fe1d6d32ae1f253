"""SpecAugment: which positions of a batch to mask while training, and masking them.

Letters in tensor names: B batch, L frames, E width.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from w2v_ray.errors import ConfigError

__all__ = ["mask_frames", "spec_augment_mask"]


def mask_frames(
    config: Any,
    x_BLE: torch.Tensor,
    learned_E: torch.Tensor | None,
    mask_time_indices: torch.Tensor | None,
    lengths: torch.Tensor | None,
    *,
    training: bool,
) -> torch.Tensor:
    """Replaces frames by the learned mask, and features by zeros.

    Args:
        config: Of a model; says whether and how much to mask.
        x_BLE: (batch, num_frames, hidden_size).
        learned_E: (hidden_size,), what stands in the place of a masked frame; None: the model has none.
        mask_time_indices: (batch, num_frames), true for frames to mask; None: drawn in training.
        lengths: (batch,), the true frames of each row; None: no row is padded.
        training: Whether to draw what to mask.

    Returns:
        (batch, num_frames, hidden_size).

    Raises:
        ConfigError: Frames are to be masked, and there is no learned mask.
    """
    if not config.apply_spec_augment:
        return x_BLE
    batch, frames, width = x_BLE.shape
    if mask_time_indices is None and training and config.mask_time_prob > 0:
        mask_time_indices = spec_augment_mask(
            batch,
            frames,
            prob=config.mask_time_prob,
            span=config.mask_time_length,
            min_spans=config.mask_time_min_masks,
            lengths=None if lengths is None else lengths.tolist(),
        ).to(x_BLE.device)
    if mask_time_indices is not None:
        if learned_E is None:
            raise ConfigError(
                "mask_time_indices needs a learned mask, but mask_time_prob and mask_feature_prob are 0; "
                "set one of them"
            )
        x_BLE = torch.where(mask_time_indices.bool()[..., None], learned_E.to(x_BLE.dtype), x_BLE)
    if training and config.mask_feature_prob > 0:
        mask_BE = spec_augment_mask(
            batch,
            width,
            prob=config.mask_feature_prob,
            span=config.mask_feature_length,
            min_spans=config.mask_feature_min_masks,
        ).to(x_BLE.device)
        x_BLE = x_BLE.masked_fill(mask_BE[:, None], 0)
    return x_BLE


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
