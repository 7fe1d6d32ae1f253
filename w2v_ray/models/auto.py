"""Which class loads a checkpoint, told from its ``config.json`` alone."""

from __future__ import annotations

from pathlib import Path

import torch

from w2v_ray.errors import CheckpointError
from w2v_ray.hub import checkpoint_file, read_json_file
from w2v_ray.models.heads import Wav2Vec2ForCTC

__all__ = ["AutoModelForCTC"]

_FOR_CTC = {"wav2vec2": Wav2Vec2ForCTC}


class AutoModelForCTC:
    """Loads whatever model with a CTC head a checkpoint holds."""

    @staticmethod
    def from_pretrained(
        model: str | Path,
        *,
        revision: str | None = None,
        dtype: torch.dtype | str = torch.float32,
        attn_implementation: str = "sdpa",
    ) -> Wav2Vec2ForCTC:
        """Loads a folder or hub id; arguments, result and errors as of Wav2Vec2ForCTC.

        Raises:
            CheckpointError: Its ``model_type`` is of no family that is built here.
        """
        path = checkpoint_file(model, "config.json", revision=revision)
        assert path is not None
        model_type = read_json_file(path).get("model_type")
        if model_type not in _FOR_CTC:
            raise CheckpointError(
                f"{path} says model_type {model_type!r}, expected {' or '.join(map(repr, _FOR_CTC))}; "
                "name a checkpoint of that family"
            )
        return _FOR_CTC[model_type].from_pretrained(
            model, revision=revision, dtype=dtype, attn_implementation=attn_implementation
        )
