"""Attention kernels behind one function signature; which one runs is chosen once, when a model is built.

Letters in tensor names: B batch, H heads, L frames, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from w2v_ray.errors import ConfigError

__all__ = ["KERNELS", "choose_kernel"]

# (q_BHLD, k_BHLD, v_BHLD, valid_BL or None, dropout) -> (output_BHLD, probabilities_BHLL or None)
Kernel = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float],
    tuple[torch.Tensor, torch.Tensor | None],
]


def _eager(
    q_BHLD: torch.Tensor,
    k_BHLD: torch.Tensor,
    v_BHLD: torch.Tensor,
    valid_BL: torch.Tensor | None,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    scores_BHLL = torch.matmul(q_BHLD * q_BHLD.shape[-1] ** -0.5, k_BHLD.transpose(-1, -2))
    if valid_BL is not None:
        scores_BHLL = scores_BHLL.masked_fill(~valid_BL[:, None, None, :], torch.finfo(scores_BHLL.dtype).min)
    probabilities_BHLL = torch.softmax(scores_BHLL, dim=-1)
    dropped_BHLL = F.dropout(probabilities_BHLL, dropout, training=dropout > 0)
    return torch.matmul(dropped_BHLL, v_BHLD), probabilities_BHLL


def _sdpa(
    q_BHLD: torch.Tensor,
    k_BHLD: torch.Tensor,
    v_BHLD: torch.Tensor,
    valid_BL: torch.Tensor | None,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    mask = None if valid_BL is None else valid_BL[:, None, None, :]
    return F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, attn_mask=mask, dropout_p=dropout), None


KERNELS: dict[str, Kernel] = {"eager": _eager, "sdpa": _sdpa}


def choose_kernel(attn_implementation: str) -> Kernel:
    """The kernel of that name.

    Raises:
        ConfigError: There is none of that name.
    """
    if attn_implementation not in KERNELS:
        raise ConfigError(
            f"attn_implementation is {attn_implementation!r}, expected one of {', '.join(KERNELS)}; "
            "choose one of these"
        )
    return KERNELS[attn_implementation]
