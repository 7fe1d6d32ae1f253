"""Matrix products of inference: a layer's weights in the layout that is fastest here, with what follows them.

Where oneDNN is there, its own matrix products are used: it knows the wide registers of every maker's CPUs,
packs the weights once, and adds the bias and the activation while a tile is still in the cache. In int8 every
row (a frame) has a scale of its own, so that what it gives does not depend on the rows beside it.

Letters in tensor names: N rows, I inputs of a row, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from w2v_ray.models.activations import activation

__all__ = ["Product", "has_fast_int8", "make_product", "take_product"]

Product = Callable[[torch.Tensor], torch.Tensor]
"""(N, I) rows to (N, O)."""

_FUSED = {"gelu": "gelu", "gelu_python": "gelu", "relu": "relu", "silu": "swish", "swish": "swish"}
_HALF = 128  # added to a signed byte, it is an unsigned one
_MOST = 127
_LEAST_ROWS = 17  # torch multiplies no fewer rows of bytes on a GPU


def has_fast_int8(device: torch.device) -> bool:
    """Whether the device has instructions for sums of products of bytes; without, they take minutes."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (7, 5)
    return device.type == "cpu" and _has_onednn() and torch.cpu._is_vnni_supported()


def take_product(*linears: Any, act: str | None = None, int8: bool = False) -> Product:
    """The product of linear layers (or convolutions of one step) with one input, their outputs side by side.

    Their weights are taken from them: a second copy of a large model may not fit where the first just did.

    Args:
        *linears: ``nn.Linear`` or ``nn.Conv1d``, which cannot be called afterwards.
        act: The activation that follows, as a ``config.json`` names it.
        int8: Whether to multiply bytes.
    """
    weights = [_rows(linear.weight) for linear in linears]
    biases = [
        weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.detach()
        for linear, weight in zip(linears, weights, strict=True)
    ]
    bias_O = torch.cat(biases) if any(linear.bias is not None for linear in linears) else None
    for linear in linears:
        linear.weight = None
    return make_product(torch.cat(weights) if len(weights) > 1 else weights[0], bias_O, act=act, int8=int8)


def make_product(
    weight_OI: torch.Tensor, bias_O: torch.Tensor | None, *, act: str | None = None, int8: bool = False
) -> Product:
    """The product with a matrix of weights; the rest as of ``take_product``."""
    if int8:
        return _int8(weight_OI, bias_O, act)
    if weight_OI.device.type == "cpu" and _has_onednn(weight_OI.dtype):
        return _onednn(weight_OI, bias_O, act)
    finish = _identity if act is None else activation(act)
    return lambda x_NI: finish(F.linear(x_NI, weight_OI, bias_O))


def _rows(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().flatten(1)


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


def _has_onednn(dtype: torch.dtype = torch.float32) -> bool:
    if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    # A CPU with registers of 256 bits alone is refused for bfloat16, which torch itself multiplies there.
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _onednn(weight_OI: torch.Tensor, bias_O: torch.Tensor | None, act: str | None) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous())
    fused = "none" if act is None else _FUSED.get(act, "none")
    finish = _identity if act is None or fused != "none" else activation(act)
    multiply = torch.ops.mkldnn._linear_pointwise

    def product(x_NI: torch.Tensor) -> torch.Tensor:
        return finish(multiply(x_NI, packed, bias_O, fused, [], "none"))

    return product


def _int8(weight_OI: torch.Tensor, bias_O: torch.Tensor | None, act: str | None) -> Product:
    scale_O = (weight_OI.float().abs().amax(1) / _MOST).clamp_min(torch.finfo(torch.float32).tiny)
    bytes_OI = (weight_OI.float() / scale_O[:, None]).round_().clamp_(-_MOST, _MOST).to(torch.int8)
    finish = _identity if act is None else activation(act)
    multiply = (
        _onednn_bytes(bytes_OI, scale_O) if weight_OI.device.type == "cpu" else _bytes(bytes_OI, scale_O)
    )

    def product(x_NI: torch.Tensor) -> torch.Tensor:
        wide_NI = x_NI.float()
        scale_N1 = (wide_NI.abs().amax(1, keepdim=True) / _MOST).clamp_min_(torch.finfo(torch.float32).tiny)
        y_NO = multiply((wide_NI / scale_N1).round_()).mul_(scale_N1)
        if bias_O is not None:
            y_NO += bias_O
        return finish(y_NO.to(x_NI.dtype))

    return product


def _onednn_bytes(bytes_OI: torch.Tensor, scale_O: torch.Tensor) -> Product:
    packed = torch.ops.onednn.qlinear_prepack(bytes_OI, None)
    zeros_O = torch.zeros(len(scale_O), dtype=torch.int32)
    multiply = torch.ops.onednn.qlinear_pointwise
    plain: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")

    def product(x_NI: torch.Tensor) -> torch.Tensor:
        # Unsigned, as the instructions want one side to be.
        shifted = x_NI.add_(_HALF).to(torch.uint8)
        y_NO: torch.Tensor = multiply(shifted, 1.0, _HALF, packed, scale_O, zeros_O, *plain)
        return y_NO

    return product


def _bytes(bytes_OI: torch.Tensor, scale_O: torch.Tensor) -> Product:
    bytes_IO = bytes_OI.t()

    def product(x_NI: torch.Tensor) -> torch.Tensor:
        bytes_NI = x_NI.to(torch.int8)
        if len(x_NI) < _LEAST_ROWS:
            bytes_NI = F.pad(bytes_NI, (0, 0, 0, _LEAST_ROWS - len(x_NI)))
        return torch._int_mm(bytes_NI, bytes_IO)[: len(x_NI)] * scale_O

    return product
