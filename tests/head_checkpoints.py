"""Checkpoints of random heads on the encoder of another checkpoint, for tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from w2v_ray import (
    AutoModel,
    Wav2Vec2ForAudioFrameClassification,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2ForXVector,
)
from w2v_ray.models.config import Wav2Vec2Config

CLASSES = {
    "embed": Wav2Vec2ForXVector,
    "classify": Wav2Vec2ForSequenceClassification,
    "frames": Wav2Vec2ForAudioFrameClassification,
}
LABELS = ["bell", "voice", "rain"]


def add_head(source: Path, folder: Path, task: str, *, seed: int = 0, **changes: Any) -> Path:
    """Writes a checkpoint with a random head of a task on the encoder of ``source``."""
    options = {"tdnn_dim": (24,) * 5, "xvector_output_dim": 12, "classifier_proj_size": 16, "num_labels": 3}
    config = Wav2Vec2Config.from_pretrained(
        source, **options | {"id2label": dict(enumerate(LABELS))} | changes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLASSES[task](config)
        for name, weight in model.named_parameters():  # so that results differ from segment to segment
            if not name.startswith("wav2vec2.") and weight.ndim == 2 and name != "objective.weight":
                torch.nn.init.normal_(weight, std=0.5)
    model.wav2vec2.load_state_dict(AutoModel.from_pretrained(source).state_dict())
    model.save_pretrained(folder)
    shutil.copy(source / "preprocessor_config.json", folder)
    return folder
