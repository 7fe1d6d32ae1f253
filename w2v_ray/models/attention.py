"""Attention kernels behind one function signature; which one runs is chosen once, when a model is built.

Letters in tensor names: B batch, H heads, L frames, D width of a head, N frames of all rows end to end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from w2v_ray.errors import ConfigError, MissingExtraError

__all__ = ["KERNELS", "Kernel", "adds_bias", "choose_attention", "choose_kernel"]


class Kernel(Protocol):
    """Attention with queries scaled by ``D ** -0.5``.

    ``valid_BL`` is true for the keys that count (None: all do), ``bias_BHLL`` is added to the scaled
    scores and broadcast over them. Returns the result and, from "eager" alone, the probabilities.
    """

    def __call__(
        self,
        q_BHLD: torch.Tensor,
        k_BHLD: torch.Tensor,
        v_BHLD: torch.Tensor,
        valid_BL: torch.Tensor | None,
        dropout: float,
        *,
        bias_BHLL: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]: ...


def _eager(
    q_BHLD: torch.Tensor,
    k_BHLD: torch.Tensor,
    v_BHLD: torch.Tensor,
    valid_BL: torch.Tensor | None,
    dropout: float,
    *,
    bias_BHLL: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    scores_BHLL = torch.matmul(q_BHLD * q_BHLD.shape[-1] ** -0.5, k_BHLD.transpose(-1, -2))
    if bias_BHLL is not None:
        scores_BHLL = scores_BHLL + bias_BHLL
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
    *,
    bias_BHLL: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    mask = None if valid_BL is None else valid_BL[:, None, None, :]
    if bias_BHLL is not None:
        mask = bias_BHLL if mask is None else bias_BHLL.masked_fill(~mask, torch.finfo(bias_BHLL.dtype).min)
    return F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, attn_mask=mask, dropout_p=dropout), None


def _flex(
    q_BHLD: torch.Tensor,
    k_BHLD: torch.Tensor,
    v_BHLD: torch.Tensor,
    valid_BL: torch.Tensor | None,
    dropout: float,
    *,
    bias_BHLL: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if dropout > 0:
        raise ConfigError(
            f"attention_dropout is {dropout} in training, which flex_attention cannot do; "
            "set it to 0 or choose attn_implementation='sdpa'"
        )
    if q_BHLD.device.type == "cpu":
        if torch.is_grad_enabled() and any(x.requires_grad for x in (q_BHLD, k_BHLD, v_BHLD)):
            raise ConfigError(
                "attn_implementation is 'flex_attention', which computes no gradients on a CPU; "
                "call the model under torch.no_grad() or choose 'sdpa'"
            )
        # Weights that could be trained still look so to torch's check, even where nothing is recorded.
        q_BHLD, k_BHLD, v_BHLD = q_BHLD.detach(), k_BHLD.detach(), v_BHLD.detach()

    def score(
        scaled: torch.Tensor, b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor
    ) -> torch.Tensor:
        if bias_BHLL is not None:
            scaled = scaled + bias_BHLL[b, h, i, j]
        return scaled if valid_BL is None else torch.where(valid_BL[b, j], scaled, -float("inf"))

    if bias_BHLL is not None:
        bias_BHLL = bias_BHLL.expand(*q_BHLD.shape[:3], k_BHLD.shape[2])
    from torch._dynamo import config  # a second to import

    # torch compiles anew for other numbers of heads, other widths, with and without padding or a bias, and
    # falls back on something slow after the eighth time, which two models in a process can reach.
    with config.patch(recompile_limit=64):
        return _compiled_flex(q_BHLD.device.type)(q_BHLD, k_BHLD, v_BHLD, score_mod=score), None


@cache
def _compiled_flex(device: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # On a CPU the plain formula, which needs no C++ compiler, for any number of frames at the first go.
    options: dict[str, Any] = {} if device == "cuda" else {"backend": "eager", "dynamic": True}
    return torch.compile(flex_attention, **options)


def _flash_attention_2(
    q_BHLD: torch.Tensor,
    k_BHLD: torch.Tensor,
    v_BHLD: torch.Tensor,
    valid_BL: torch.Tensor | None,
    dropout: float,
    *,
    bias_BHLL: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    _refuse_flash(bias_BHLL is not None)
    if q_BHLD.device.type != "cuda" or q_BHLD.dtype not in (torch.float16, torch.bfloat16):
        raise ConfigError(
            f"flash_attention_2 was given {q_BHLD.dtype} on {q_BHLD.device.type}, expected torch.float16 or "
            "torch.bfloat16 on cuda; load the model with dtype=torch.float16 and "
            "device_map='cuda', or choose attn_implementation='sdpa'"
        )
    import flash_attn

    qkv_BLHD = [x.transpose(1, 2) for x in (q_BHLD, k_BHLD, v_BHLD)]
    if valid_BL is None:
        out_BLHD = flash_attn.flash_attn_func(*qkv_BLHD, dropout_p=dropout)
    else:
        starts, longest = row_starts(valid_BL)
        out_NHD = flash_attn.flash_attn_varlen_func(
            *(x_BLHD[valid_BL] for x_BLHD in qkv_BLHD), starts, starts, longest, longest, dropout_p=dropout
        )
        out_BLHD = torch.zeros_like(qkv_BLHD[0])
        out_BLHD[valid_BL] = out_NHD
    return out_BLHD.transpose(1, 2), None


def row_starts(valid_BL: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Where each row begins when the valid frames lie end to end, their end too, and the longest row."""
    lengths = valid_BL.sum(-1, dtype=torch.int32)
    return F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)), int(lengths.max())


def _refuse_flash(bias: bool) -> None:
    if bias:
        raise ConfigError(
            "attn_implementation is 'flash_attention_2', which cannot take the bias per query and key of "
            "position_embeddings_type 'relative' and 'relative_key'; choose 'sdpa', or 'auto'"
        )
    if find_spec("flash_attn") is None:
        raise MissingExtraError(
            "attn_implementation is 'flash_attention_2', which needs the package flash-attn; "
            "run pip install 'w2v-ray[flash]' --no-build-isolation, or choose 'sdpa'"
        )


KERNELS: dict[str, Kernel] = {
    "eager": _eager,
    "sdpa": _sdpa,
    "flash_attention_2": _flash_attention_2,
    "flex_attention": _flex,
}


def choose_attention(
    attn_implementation: str,
    *,
    bias: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[str, str]:
    """The name of the kernel to use, and why, in a sentence.

    Args:
        attn_implementation: A name of KERNELS, which is taken or refused, or "auto".
        bias: Whether the model adds a bias per query and key to the scores.
        dtype: Of the weights; only "auto" asks.
        device: Of the weights; only "auto" asks.

    Raises:
        ConfigError: There is no kernel of that name, or it cannot compute what the model asks for.
        MissingExtraError: It needs a package that is not installed.
    """
    if attn_implementation not in (*KERNELS, "auto"):
        raise ConfigError(
            f"attn_implementation is {attn_implementation!r}, expected one of {', '.join(KERNELS)}, auto; "
            "choose one of these"
        )
    if attn_implementation != "auto":
        if attn_implementation == "flash_attention_2":
            _refuse_flash(bias)
        return attn_implementation, f"{attn_implementation} was asked for"
    if bias:
        return (
            "sdpa",
            "sdpa, as the position type adds a bias to the scores that flash_attention_2 cannot take",
        )
    if torch.device(device).type != "cuda":
        return (
            "sdpa",
            f"sdpa, as the model is on {torch.device(device).type} and flash_attention_2 needs cuda",
        )
    if dtype not in (torch.float16, torch.bfloat16):
        return "sdpa", f"sdpa, as the weights are {dtype} and flash_attention_2 needs float16 or bfloat16"
    if find_spec("flash_attn") is None:
        return "sdpa", "sdpa, as flash-attn is not installed"
    return "flash_attention_2", f"flash_attention_2, as the weights are {dtype} on cuda and no bias is added"


def choose_kernel(attn_implementation: str) -> Kernel:
    """The kernel of that name, "auto" being what choose_attention makes of it on a CPU.

    Raises:
        ConfigError: There is none of that name.
        MissingExtraError: It needs a package that is not installed.
    """
    return KERNELS[choose_attention(attn_implementation)[0]]


def adds_bias(config: Any) -> bool:
    """Whether models of this config add a bias per query and key to the scores."""
    return getattr(config, "position_embeddings_type", None) in ("relative", "relative_key")
