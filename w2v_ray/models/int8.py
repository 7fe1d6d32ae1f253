"""Linear layers whose weights lie in memory as 8-bit integers, a quarter of float32.

The weights alone are rounded; the sums are done in the dtype of the activations, on any device.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["Int8Linear", "quantize_linears"]

# Weights that are loaded anew for each language after the model is there.
_LEFT_ALONE = "adapter_layer"


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and one scale per output.

    Args:
        weight: (out_features, in_features), of any float dtype.
        bias: (out_features,) or None.
        dtype: Of the scales and the bias, and so of what goes in and comes out.
    """

    weight: torch.Tensor
    weight_scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        scale = (weight.float().abs().amax(1) / 127).to(dtype)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        rounded = (weight.float() / scale.float()[:, None]).round().clamp(-127, 127)
        self.register_buffer("weight", rounded.to(torch.int8))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if bias is None else bias.to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        return F.linear(x, self.weight * self.weight_scale[:, None], self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def quantize_linears(
    module: nn.Module, weights: dict[str, torch.Tensor], dtype: torch.dtype, device: torch.device | str
) -> None:
    """Replaces the linear layers of a model's encoder, taking their weights out of ``weights``.

    Heads stay as they are: they are small, and what they compute is read off directly. So do adapters.
    """
    prefix = getattr(module, "base_model_prefix", "")
    encoder = getattr(module, prefix, module)
    start = f"{prefix}." if encoder is not module else ""
    linears = {name: layer for name, layer in encoder.named_modules() if type(layer) is nn.Linear}
    for name, layer in linears.items():
        if _LEFT_ALONE in name.split("."):
            continue
        weight = weights.pop(f"{start}{name}.weight")
        bias = weights.pop(f"{start}{name}.bias") if layer.bias is not None else None
        parent, _, child = name.rpartition(".")
        setattr(encoder.get_submodule(parent), child, Int8Linear(weight, bias, dtype).to(device))
