"""What TensorFlow wrote into ``tf_model.h5``, in torch's names and layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from w2v_ray.errors import MissingExtraError

__all__ = ["read_tf_file"]

_NAMES = {"kernel": "weight", "gamma": "weight", "beta": "bias"}


def read_tf_file(path: Path) -> dict[str, torch.Tensor]:
    """Reads one HDF5 file of weights, whole or a shard.

    Raises:
        MissingExtraError: h5py is not installed.
        OSError: It is not HDF5, or damaged.
        ValueError: Its weights lie outside it.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError(
            f"{path} is HDF5, which needs the package h5py; run pip install 'w2v-ray[tf]'"
        ) from error
    weights = {}
    with h5py.File(path, "r") as file:

        def take(place: str, found: Any) -> None:
            if not isinstance(found, h5py.Dataset):
                return
            if found.external or found.is_virtual:  # would read any file of the machine it is asked to
                raise ValueError(f"{place} lies in another file")
            # Keras puts a variable below its layer under its full name, which begins with the model's:
            # lm_head/tf_wav2_vec2_for_ctc/lm_head/kernel:0. Shards have neither.
            parts = place.removesuffix(":0").split("/")
            top = file[place.split("/")[0]].attrs
            if "weight_names" in top or "weight_names0" in top:
                parts = parts[2:] or parts[-1:]
            weight = torch.from_numpy(found[()])
            weights[".".join((*parts[:-1], _NAMES.get(parts[-1], parts[-1])))] = _layout(parts[-1], weight)

        file.visititems(take)  # hard links only, so nothing outside the file
    return weights


def _layout(kind: str, weight: torch.Tensor) -> torch.Tensor:
    if kind == "kernel":  # (width, in, out) or (in, out); its other weights lie as torch's do
        return weight.permute(*reversed(range(weight.ndim))).contiguous()
    return weight.reshape(1, 1, -1) if kind == "weight_g" else weight
