"""Weights from and to disk, strictly: what is missing, unexpected or misshapen is an error that names it.

Reads safetensors, whole and sharded, and ``pytorch_model.bin`` without running any code in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from w2v_ray.errors import CheckpointError, ConfigError
from w2v_ray.hub import checkpoint_file, read_json_file
from w2v_ray.models.config import Wav2Vec2Config

__all__ = ["load_model", "read_weights", "save_model"]

Model = TypeVar("Model", bound=nn.Module)

# The learned mask exists for training only, and published fine-tuned checkpoints often lack it.
_TRAINING_ONLY = "masked_spec_embed"
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_model(
    build: Callable[[], Model],
    model: str | Path,
    *,
    prefix: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str = torch.float32,
) -> Model:
    """Builds a model and fills it with a checkpoint's weights.

    Args:
        build: Makes the model; called without memory for its weights.
        model: A folder or hub id.
        prefix: Where set, the model is the part of that name of checkpoints that have more; theirs
            is taken and their heads are left.
        revision: Branch, tag or commit of a hub id.
        dtype: Of the weights in memory; "auto" takes the one they are stored in.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: A file or weight is missing, unexpected or misshapen; the message names it.
        ConfigError: There is no dtype of that name.
    """
    weights, source = read_weights(model, revision=revision)
    weights = {_current_name(name): weight for name, weight in weights.items()}
    if prefix is not None and any(name.startswith(f"{prefix}.") for name in weights):
        weights = {k.removeprefix(f"{prefix}."): w for k, w in weights.items() if k.startswith(f"{prefix}.")}
    target = _dtype(dtype, weights)
    with torch.device("meta"):
        module = build()
    expected = module.state_dict()
    for name, weight in expected.items():
        if name.split(".")[-1] == _TRAINING_ONLY and name not in weights:
            weights[name] = torch.rand(weight.shape)
    _check(expected, weights, source)
    cast = {name: weights[name].to(target) for name in expected}
    module.load_state_dict(cast, assign=True)
    return module.eval()


def read_weights(model: str | Path, *, revision: str | None = None) -> tuple[dict[str, torch.Tensor], str]:
    """Reads all weights of a folder or hub id.

    Returns:
        The weights under the names of the files, and where they came from, for messages.

    Raises:
        CheckpointError: There are none, or a file cannot be read.
    """
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        path = checkpoint_file(model, name, revision=revision, required=False)
        if path is None:
            continue
        if not name.endswith(".json"):
            return _read_file(path), str(path)
        shards = read_json_file(path).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise CheckpointError(f"{path} has no weight_map; fetch the file again")
        weights: dict[str, torch.Tensor] = {}
        for shard in sorted(set(map(str, shards.values()))):
            shard_path = checkpoint_file(model, shard, revision=revision)
            assert shard_path is not None
            weights |= _read_file(shard_path)
        return weights, str(path)
    raise CheckpointError(
        f"model {str(model)!r} has neither model.safetensors nor pytorch_model.bin; "
        "name a checkpoint with torch weights"
    )


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Never a plain unpickle: that would run whatever code the file holds.
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, UnpicklingError):  # torch's text advises to read it with the safety off
            reason = "it is damaged or holds objects that are not tensors"
        raise CheckpointError(f"{path} cannot be read as weights ({reason}); fetch the file again") from error
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(weight, torch.Tensor) for name, weight in weights.items()
    ):
        raise CheckpointError(
            f"{path} does not hold a mapping of names to tensors; name a checkpoint of a model"
        )
    return dict(weights)


def _current_name(name: str) -> str:
    """Weight norm's parameters, in the spelling of torch's parametrizations."""
    for old, new in (("conv.weight_g", "original0"), ("conv.weight_v", "original1")):
        if name.endswith(f"pos_conv_embed.{old}"):
            return name.removesuffix(old) + f"conv.parametrizations.weight.{new}"
    return name


def _dtype(dtype: torch.dtype | str, weights: Mapping[str, torch.Tensor]) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return next((w.dtype for w in weights.values() if w.is_floating_point()), torch.float32)
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype is {dtype!r}, expected auto, {', '.join(_DTYPES)}; choose one of these")
    return _DTYPES[dtype]


def _check(expected: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], source: str) -> None:
    def names(found: set[str]) -> str:
        shown = sorted(found)
        return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")

    faults = []
    if missing := expected.keys() - weights.keys():
        faults.append(f"lacks {names(missing)}")
    if unexpected := weights.keys() - expected.keys():
        faults.append(f"has {names(unexpected)}, which the model does not")
    misshapen = {n for n in expected.keys() & weights.keys() if expected[n].shape != weights[n].shape}
    if misshapen:
        first = sorted(misshapen)[0]
        faults.append(
            f"has {names(misshapen)} of another shape ({first} is {tuple(weights[first].shape)}, "
            f"the config asks for {tuple(expected[first].shape)})"
        )
    if faults:
        raise CheckpointError(f"{source} {' and '.join(faults)}; use a checkpoint that fits its config.json")


def save_model(module: nn.Module, config: Wav2Vec2Config, folder: str | Path) -> None:
    """Writes ``config.json`` and ``model.safetensors`` as transformers reads them.

    Args:
        module: Its weights are written in the dtype they have.
        config: Written with the class and the dtype of ``module``, whatever it was loaded from.
        folder: Created if need be.
    """
    dtype = next(module.parameters()).dtype
    extra = {k: v for k, v in config.extra.items() if k != "torch_dtype"}  # the older name of dtype
    extra |= {"architectures": [type(module).__name__], "dtype": str(dtype).removeprefix("torch.")}
    dataclasses.replace(config, extra=extra).save_pretrained(folder)
    weights = {name: weight.detach().contiguous().cpu() for name, weight in module.state_dict().items()}
    save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
