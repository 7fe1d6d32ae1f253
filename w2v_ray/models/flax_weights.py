"""Weights in Flax's nested dictionaries and in the ``flax_model.msgpack`` that it writes of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from w2v_ray.errors import MissingExtraError

__all__ = ["from_flax", "read_flax_file", "to_flax"]

_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_ARRAY, _SCALAR = 1, 3  # Flax's extension types of msgpack


def read_flax_file(path: Path) -> dict[str, torch.Tensor]:
    """Reads one msgpack file of weights, whole or a shard, in torch's names and layouts.

    Raises:
        MissingExtraError: msgpack is not installed.
        ValueError: It is not what Flax writes.
    """
    try:
        import msgpack
    except ImportError as error:
        raise MissingExtraError(
            f"{path} is msgpack, which needs the package msgpack; run pip install 'w2v-ray[flax]'"
        ) from error

    def array(code: int, content: bytes) -> torch.Tensor:
        if code not in (_ARRAY, _SCALAR):
            raise ValueError(f"it holds msgpack's extension type {code}")
        shape, name, values = msgpack.unpackb(content)
        dtype = getattr(torch, str(name), None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"it holds an array of {name}")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(values):
            raise ValueError(f"it holds an array of shape {tuple(shape)} in {len(values)} bytes")
        return (
            torch.frombuffer(bytearray(values), dtype=dtype).reshape(shape) if values else torch.empty(shape)
        )

    tree = msgpack.unpackb(path.read_bytes(), ext_hook=array)
    if not isinstance(tree, dict):
        raise ValueError("it is not a dictionary")
    return from_flax(tree)


def from_flax(params: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Flax's nested parameters (numpy arrays, or tensors) in torch's names and layouts.

    Raises:
        ValueError: A name is not text, or a value neither a dictionary nor an array.
    """
    weights = {}
    for names, value in _leaves(params, ()):
        weight = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
        if names[-1] == "kernel":  # (width, in, out) or (in, out)
            weight = weight.permute(*reversed(range(weight.ndim))).contiguous()
        weights[".".join((*names[:-1], _NAMES.get(names[-1], names[-1])))] = weight
    return weights


def _leaves(tree: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if not isinstance(name, str):
            raise ValueError(f"it has {name!r} where a name is expected")
        if isinstance(value, Mapping) and "__msgpack_chunked_array__" in value:  # arrays above 1 GiB
            shape, chunks = (
                [part[str(i)] for i in range(len(part))] for part in (value["shape"], value["chunks"])
            )
            yield (*above, name), torch.cat([chunk.flatten() for chunk in chunks]).reshape(shape)
        elif isinstance(value, Mapping):
            yield from _leaves(value, (*above, name))
        elif hasattr(value, "shape"):
            yield (*above, name), value
        else:
            raise ValueError(f"{'.'.join((*above, name))} is {type(value).__name__}, expected an array")


def to_flax(module: nn.Module) -> dict[str, Any]:
    """A model's weights as Flax's nested parameters of numpy arrays, float32 where numpy lacks the dtype."""
    params: dict[str, Any] = {}
    for name, weight in module.state_dict().items():
        *above, kind = name.split(".")
        values = weight.detach().cpu()
        array = (values.float() if values.dtype is torch.bfloat16 else values).numpy()
        if kind in ("original0", "original1"):
            *above, kind = *above[:-2], {"original0": "weight_g", "original1": "weight_v"}[kind]
        elif kind == "weight" and isinstance(module.get_submodule(".".join(above)), nn.Linear | nn.Conv1d):
            kind, array = "kernel", array.T
        elif kind == "weight":
            kind = "scale"
        here = params
        for part in above:
            here = here.setdefault(part, {})
        here[kind] = array
    return params
