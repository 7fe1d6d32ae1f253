"""The non-linear functions that a ``config.json`` can name."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from w2v_ray.errors import ConfigError

__all__ = ["ACTIVATIONS", "Activation", "activation"]

Activation = Callable[[torch.Tensor], torch.Tensor]


def _clipped_gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x).clamp(-10, 10)


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def _laplace(x: torch.Tensor) -> torch.Tensor:
    mean, deviation = 0.707107, 0.282095
    return 0.5 * (1 + torch.erf((x - mean) / (deviation * math.sqrt(2))))


def _linear(x: torch.Tensor) -> torch.Tensor:
    return x


def _relu_squared(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).square()


def _root_softplus(x: torch.Tensor) -> torch.Tensor:
    return F.softplus(x).sqrt()


_TANH_GELU = partial(F.gelu, approximate="tanh")

# The names are many and the functions few: the gelus differ in how their authors rounded.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_10": _clipped_gelu,
    "gelu_accurate": _TANH_GELU,
    "gelu_fast": _TANH_GELU,
    "gelu_new": _TANH_GELU,
    "gelu_python_tanh": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
    "quick_gelu": _quick_gelu,
    "hardswish": F.hardswish,
    "laplace": _laplace,
    "leaky_relu": F.leaky_relu,
    "linear": _linear,
    "mish": F.mish,
    "relu": F.relu,
    "relu2": _relu_squared,
    "relu6": F.relu6,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "sqrtsoftplus": _root_softplus,
    "swish": F.silu,
    "tanh": torch.tanh,
}


def activation(name: str) -> Activation:
    """The function of that name; "prelu" is a module of its own, as its slope is a weight.

    Raises:
        ConfigError: There is none of that name.
    """
    if name == "prelu":
        return nn.PReLU()
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"activation is {name!r}, expected one of {', '.join(ACTIVATIONS)} or prelu; mend config.json"
        )
    return ACTIVATIONS[name]
