"""Attention of utterances that lie end to end: each sees its own frames alone.

Letters in tensor names: N frames of all utterances, L frames of one, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import accumulate

import torch

from w2v_ray.models.attention import KERNELS

__all__ = ["Bias", "packed_attention"]

Bias = Callable[[torch.Tensor, int, int], torch.Tensor]
"""(H, L, D) queries of an utterance and a range of them to (H, range, L), which is added to the scores."""

_SCORES_AT_ONCE = 2**24  # that a bias is computed for: 64 MB in float32
_ALIGNED = 8  # numbers, where the rows of a bias begin that a GPU's kernel reads


def packed_attention(
    q_NHD: torch.Tensor,
    k_NHD: torch.Tensor,
    v_NHD: torch.Tensor,
    lengths: Sequence[int],
    *,
    kernel: str,
    bias: Bias | None = None,
) -> torch.Tensor:
    """Attention with queries scaled by ``D ** -0.5``.

    Args:
        q_NHD: Queries.
        k_NHD: Keys.
        v_NHD: Values.
        lengths: Frames of each utterance, N together.
        kernel: A name of KERNELS.
        bias: What is added to the scores; asked for so many queries at a time that it stays small.

    Returns:
        (N, H * D).
    """
    if bias is None and q_NHD.is_cuda and q_NHD.dtype in (torch.float16, torch.bfloat16):
        attend = _FLASH.get(kernel)
        if attend is not None and (attend is not _varlen or _takes_varlen(q_NHD)):
            ends = _ends(tuple(lengths), q_NHD.device)
            return attend(q_NHD, k_NHD, v_NHD, ends, max(lengths)).flatten(1)
    found = []
    parts = (torch.split(x_NHD, list(lengths)) for x_NHD in (q_NHD, k_NHD, v_NHD))
    for q_LHD, k_LHD, v_LHD in zip(*parts, strict=True):
        q_HLD, k_HLD, v_HLD = (x.transpose(0, 1) for x in (q_LHD, k_LHD, v_LHD))
        found += _one(q_HLD, k_HLD, v_HLD, kernel, bias)
    return torch.cat(found) if len(found) > 1 else found[0]


def _one(
    q_HLD: torch.Tensor, k_HLD: torch.Tensor, v_HLD: torch.Tensor, kernel: str, bias: Bias | None
) -> list[torch.Tensor]:
    """The result of one utterance, (L, H * D), in parts if a bias for all of it would be large."""
    heads, frames, _ = q_HLD.shape
    step = frames if bias is None else max(1, _SCORES_AT_ONCE // (heads * frames))
    parts = []
    for begin in range(0, frames, step):
        end = min(frames, begin + step)
        added = None if bias is None else _aligned(bias(q_HLD, begin, end))[None]
        out_1HLD, _ = KERNELS[kernel](
            q_HLD[None, :, begin:end], k_HLD[None], v_HLD[None], None, 0.0, bias_BHLL=added
        )
        parts.append(out_1HLD[0].transpose(0, 1).flatten(1))
    return parts


def _aligned(bias_HQL: torch.Tensor) -> torch.Tensor:
    """A bias as a GPU's kernel takes it; what is given it otherwise it copies, or refuses for its address."""
    begins = (*bias_HQL.stride()[:-1], bias_HQL.storage_offset())
    if not bias_HQL.is_cuda or not any(begin % _ALIGNED for begin in begins):
        return bias_HQL
    *shape, frames = bias_HQL.shape
    copy = bias_HQL.new_empty(*shape, -(-frames // _ALIGNED) * _ALIGNED)[..., :frames]
    return copy.copy_(bias_HQL)


@lru_cache(maxsize=8)
def _ends(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Where utterances begin and end, on a GPU: the same for all layers, and sent without waiting for it."""
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return ends.pin_memory().to(device, non_blocking=True)


def _takes_varlen(q_NHD: torch.Tensor) -> bool:
    """Whether torch's own FlashAttention computes this, on this GPU; where not, "sdpa" has other ways."""
    width = q_NHD.shape[-1]
    return width % 8 == 0 and width <= 256 and torch.cuda.get_device_capability(q_NHD.device) >= (8, 0)


def _varlen(
    q_NHD: torch.Tensor, k_NHD: torch.Tensor, v_NHD: torch.Tensor, ends: torch.Tensor, longest: int
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # FlashAttention, as it comes with torch

    out = varlen_attn(q_NHD, k_NHD, v_NHD, ends, ends, longest, longest)
    assert isinstance(out, torch.Tensor), "nothing else was asked for"
    return out


def _flash_attention_2(
    q_NHD: torch.Tensor, k_NHD: torch.Tensor, v_NHD: torch.Tensor, ends: torch.Tensor, longest: int
) -> torch.Tensor:
    import flash_attn

    out: torch.Tensor = flash_attn.flash_attn_varlen_func(q_NHD, k_NHD, v_NHD, ends, ends, longest, longest)
    return out


_FLASH = {"flash_attention_2": _flash_attention_2}
if find_spec("torch.nn.attention.varlen") is not None:
    _FLASH["sdpa"] = _varlen
