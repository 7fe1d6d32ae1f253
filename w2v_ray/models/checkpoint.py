"""Weights from and to disk, strictly: what is missing, unexpected or misshapen is an error that names it.

A head alone may be drawn anew, and only where that is asked for.

Reads safetensors, ``pytorch_model.bin`` without running any code in it, and what TensorFlow and Flax
wrote; each whole or in shards.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from w2v_ray.errors import CheckpointError, ConfigError, MissingExtraError
from w2v_ray.hub import checkpoint_file, shard_names
from w2v_ray.models.flax_weights import read_flax_file
from w2v_ray.models.int8 import quantize_linears
from w2v_ray.models.tf_weights import read_tf_file

__all__ = [
    "check_weights",
    "choose_dtype",
    "current_names",
    "fill_model",
    "has_weights",
    "read_weight_file",
    "read_weights",
    "save_model",
]

Model = TypeVar("Model", bound=nn.Module)

_log = logging.getLogger(__name__)

# The learned mask exists for training only: published fine-tuned checkpoints often lack it, and a config
# that masks nothing has no place for it.
_TRAINING_ONLY = "masked_spec_embed"
# What a config can add to an encoder that was trained without, to be trained with the head.
_ADDED = {"adapter", "adapter_layer", "intermediate_ffn"}
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# In the order in which they are looked for; those that end in .json list the files that hold the weights.
_FILES = {
    "torch": (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
        "pytorch_model.bin",
    ),
    "tf": ("tf_model.h5", "tf_model.h5.index.json"),
    "flax": ("flax_model.msgpack", "flax_model.msgpack.index.json"),
}


def fill_model(
    build: Callable[[], Model],
    weights: dict[str, torch.Tensor],
    source: str,
    *,
    encoder: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    ignore_mismatched_sizes: bool = False,
    load_in_8bit: bool = False,
) -> Model:
    """Builds a model and fills it with weights, which are taken out of ``weights`` one by one.

    Args:
        build: Makes the model; called without memory for its weights.
        weights: As ``read_weights`` returns them.
        source: Where they came from, for messages.
        encoder: The name of the encoder in the weights of models with a head. A model without one takes
            it and leaves the heads; a model with one takes weights of an encoder alone as that part.
        dtype: Of the weights in memory.
        device: Where they go.
        ignore_mismatched_sizes: Whether weights of the head that are missing or of another shape are
            drawn anew, and those of other heads left; a warning names them.
        load_in_8bit: Whether the encoder's linear layers are kept in 8 bits.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: A weight is missing, unexpected or misshapen; the message names it.
    """
    with torch.device("meta"):
        module = build()
    expected = module.state_dict()
    weights = _encoder_in_place(expected, weights, f"{encoder}.")
    for name in expected.keys() ^ weights.keys():
        if name.split(".")[-1] == _TRAINING_ONLY:
            if name in weights:
                del weights[name]
            else:
                weights[name] = torch.rand(expected[name].shape)
    start = f"{encoder}." if any(name.startswith(f"{encoder}.") for name in expected) else ""
    fix = "use a checkpoint that fits its config.json"
    faulty = (expected.keys() ^ weights.keys()) | _misshapen(expected, weights)
    if all(_can_be_new(name, start) for name in faulty):
        if ignore_mismatched_sizes:
            _replace_head(build, expected, weights, source)
        # Said of a head alone: an encoder that does not fit is another encoder.
        fix += ", or draw a new head with ignore_mismatched_sizes=True"
    check_weights(expected, weights, source, fix)
    if load_in_8bit:
        quantize_linears(module, weights, dtype, device)
    cast = {name: weights.pop(name).to(device, dtype) for name in expected if name in weights}
    module.load_state_dict(cast, strict=not load_in_8bit, assign=True)
    return module.eval()


def _encoder_in_place(
    expected: Mapping[str, torch.Tensor], weights: dict[str, torch.Tensor], start: str
) -> dict[str, torch.Tensor]:
    """Weights with the encoder where a model expects it: on its own, or as the part that a head stands on."""
    inside = {name for name in weights if name.startswith(start)}
    if not any(name.startswith(start) for name in expected):
        return {name.removeprefix(start): weights[name] for name in inside} if inside else weights
    if not inside and any(start + name in expected for name in weights):
        return {start + name: weight for name, weight in weights.items()}
    return weights


def _can_be_new(name: str, start: str) -> bool:
    """Whether a weight is of a head, or of what a config adds to an encoder that begins with ``start``."""
    return not name.startswith(start) or not _ADDED.isdisjoint(name.split("."))


def _replace_head(
    build: Callable[[], nn.Module],
    expected: Mapping[str, torch.Tensor],
    weights: dict[str, torch.Tensor],
    source: str,
) -> None:
    """Draws in ``weights`` what is missing or misshapen, and takes out what the model has no place for."""
    drawn = (expected.keys() - weights.keys()) | _misshapen(expected, weights)
    left = weights.keys() - expected.keys()
    if drawn:
        fresh = build().state_dict()
        weights.update({name: fresh[name] for name in drawn})
        _log.warning(
            "%s does not hold %s as the config asks; drawn anew, to be trained", source, _names(drawn)
        )
    for name in left:
        del weights[name]
    if left:
        _log.warning("%s has %s, which the model does not; left out", source, _names(left))


def has_weights(model: str | Path, framework: str, *, revision: str | None = None) -> bool:
    """Whether a folder or hub id has files of "torch", "tf" or "flax".

    Raises:
        CheckpointError: The model cannot be found or reached.
    """
    found = (checkpoint_file(model, name, revision=revision, required=False) for name in _FILES[framework])
    return any(path is not None for path in found)


def read_weights(
    model: str | Path, *, revision: str | None = None, framework: str = "torch"
) -> tuple[dict[str, torch.Tensor], str]:
    """Reads all weights of a folder or hub id.

    Args:
        model: A folder or hub id.
        revision: Branch, tag or commit of a hub id.
        framework: Whose files to read: "torch", "tf" or "flax".

    Returns:
        The weights in the names and layouts of torch, and where they came from, for messages.

    Raises:
        CheckpointError: There are none, or a file cannot be read.
        MissingExtraError: A package is needed to read them.
    """
    for name in _FILES[framework]:
        path = checkpoint_file(model, name, revision=revision, required=False)
        if path is None:
            continue
        if not name.endswith(".json"):
            return current_names(read_weight_file(path)), str(path)
        weights: dict[str, torch.Tensor] = {}
        for shard in shard_names(path):
            shard_path = checkpoint_file(model, shard, revision=revision)
            assert shard_path is not None
            weights |= read_weight_file(shard_path)
        return current_names(weights), str(path)
    fix = f"name a checkpoint with {framework} weights"
    for other in ("tf", "flax"):
        if framework == "torch" and has_weights(model, other, revision=revision):
            fix = f"load it with from_{other}=True"
    raise CheckpointError(
        f"model {str(model)!r} has neither {_FILES[framework][0]} nor {_FILES[framework][-1]}; {fix}"
    )


def read_weight_file(path: Path) -> dict[str, torch.Tensor]:
    """Reads one file of weights, of a kind that its suffix tells, without running any code in it.

    Raises:
        CheckpointError: It cannot be read, or holds something else.
        MissingExtraError: A package is needed to read it.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".h5":
            return read_tf_file(path)
        if path.suffix == ".msgpack":
            return read_flax_file(path)
        # Never a plain unpickle: that would run whatever code the file holds.
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except MissingExtraError:
        raise
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


def current_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights with weight norm's parameters, in the spelling of torch's parametrizations."""
    renamed = {}
    for name, weight in weights.items():
        for old, new in (("conv.weight_g", "original0"), ("conv.weight_v", "original1")):
            if name.endswith(f"pos_conv_embed.{old}"):
                name = name.removesuffix(old) + f"conv.parametrizations.weight.{new}"
        renamed[name] = weight
    return renamed


def choose_dtype(dtype: torch.dtype | str, weights: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The dtype of that name; "auto" is the one of the weights.

    Raises:
        ConfigError: There is none of that name, or it is not of floating point.
    """
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    if dtype == "auto":
        return next((w.dtype for w in weights.values() if w.is_floating_point()), torch.float32)
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ConfigError(f"dtype is {dtype!r}, expected auto, {', '.join(_DTYPES)}; choose one of these")
    return _DTYPES[dtype]


def _misshapen(expected: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> set[str]:
    return {n for n in expected.keys() & weights.keys() if expected[n].shape != weights[n].shape}


def _names(found: set[str]) -> str:
    shown = sorted(found)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def check_weights(
    expected: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    source: str,
    fix: str = "use a checkpoint that fits its config.json",
) -> None:
    """Compares the names and shapes of weights with those of a model.

    Args:
        expected: Those of the model.
        weights: Those found.
        source: Where they came from, for the message.
        fix: What to do if they differ, for the message.

    Raises:
        CheckpointError: One is missing, unexpected or misshapen; it names ``source`` and the weight.
    """
    faults = []
    if missing := expected.keys() - weights.keys():
        faults.append(f"lacks {_names(missing)}")
    if unexpected := weights.keys() - expected.keys():
        faults.append(f"has {_names(unexpected)}, which the model does not")
    if misshapen := _misshapen(expected, weights):
        first = sorted(misshapen)[0]
        faults.append(
            f"has {_names(misshapen)} of another shape ({first} is {tuple(weights[first].shape)}, "
            f"the config asks for {tuple(expected[first].shape)})"
        )
    if faults:
        raise CheckpointError(f"{source} {' and '.join(faults)}; {fix}")


def save_model(module: nn.Module, config: Any, folder: str | Path) -> None:
    """Writes ``config.json`` and ``model.safetensors`` as transformers reads them.

    Args:
        module: Its weights are written in the dtype they have.
        config: Written with the class and the dtype of ``module``, whatever it was loaded from.
        folder: Created if need be.
    """
    dtype = next(module.parameters()).dtype
    extra = {k: v for k, v in config.extra.items() if k != "torch_dtype"}  # the older name of dtype
    architecture = type(module).__name__.removeprefix("TF").removeprefix("Flax")  # their files are torch's
    extra |= {"architectures": [architecture], "dtype": str(dtype).removeprefix("torch.")}
    dataclasses.replace(config, extra=extra).save_pretrained(folder)
    weights = {name: weight.detach().contiguous().cpu() for name, weight in module.state_dict().items()}
    path = Path(folder) / "model.safetensors"
    # Never into the file itself: the model's own weights may be mapped from it.
    save_file(weights, path.with_suffix(".safetensors.part"), metadata={"format": "pt"})
    os.replace(path.with_suffix(".safetensors.part"), path)
