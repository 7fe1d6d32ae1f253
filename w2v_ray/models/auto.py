"""Which class loads a checkpoint, told from the ``model_type`` in its ``config.json`` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from w2v_ray.errors import CheckpointError
from w2v_ray.hub import checkpoint_file, read_json_file
from w2v_ray.models.heads import (
    Wav2Vec2BertForAudioFrameClassification,
    Wav2Vec2BertForCTC,
    Wav2Vec2BertForSequenceClassification,
    Wav2Vec2ForAudioFrameClassification,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
)
from w2v_ray.models.pretrained import PretrainedModel
from w2v_ray.models.pretraining import Wav2Vec2ForPreTraining
from w2v_ray.models.wav2vec2 import Wav2Vec2Model
from w2v_ray.models.wav2vec2_bert import Wav2Vec2BertModel
from w2v_ray.models.xvector import Wav2Vec2BertForXVector, Wav2Vec2ForXVector

__all__ = [
    "AutoModel",
    "AutoModelForAudioClassification",
    "AutoModelForAudioFrameClassification",
    "AutoModelForAudioXVector",
    "AutoModelForCTC",
    "AutoModelForPreTraining",
]


class AutoModel:
    """Loads the encoder of a checkpoint, with or without a head, of whatever family it is."""

    classes: ClassVar[dict[str, type[PretrainedModel]]] = {
        "wav2vec2": Wav2Vec2Model,
        "wav2vec2-bert": Wav2Vec2BertModel,
    }

    @classmethod
    def from_pretrained(cls, model: str | Path, *, revision: str | None = None, **options: Any) -> Any:
        """Loads a folder or hub id.

        Args:
            model: A folder or hub id.
            revision: Branch, tag or commit of a hub id.
            **options: As of ``from_pretrained`` of the class that is loaded.

        Raises:
            CheckpointError: Its ``model_type`` is of no family that has such a model here.
        """
        path = checkpoint_file(model, "config.json", revision=revision)
        assert path is not None
        model_type = read_json_file(path).get("model_type")
        if not isinstance(model_type, str) or model_type not in cls.classes:
            raise CheckpointError(
                f"{path} says model_type {model_type!r}, expected {' or '.join(map(repr, cls.classes))}; "
                "name a checkpoint of that family"
            )
        return cls.classes[model_type].from_pretrained(model, revision=revision, **options)


class AutoModelForCTC(AutoModel):
    """Loads whatever model with a CTC head a checkpoint holds."""

    classes: ClassVar[dict[str, type[PretrainedModel]]] = {
        "wav2vec2": Wav2Vec2ForCTC,
        "wav2vec2-bert": Wav2Vec2BertForCTC,
    }


class AutoModelForAudioClassification(AutoModel):
    """Loads whatever classifier of recordings a checkpoint holds."""

    classes: ClassVar[dict[str, type[PretrainedModel]]] = {
        "wav2vec2": Wav2Vec2ForSequenceClassification,
        "wav2vec2-bert": Wav2Vec2BertForSequenceClassification,
    }


class AutoModelForAudioFrameClassification(AutoModel):
    """Loads whatever classifier of frames a checkpoint holds."""

    classes: ClassVar[dict[str, type[PretrainedModel]]] = {
        "wav2vec2": Wav2Vec2ForAudioFrameClassification,
        "wav2vec2-bert": Wav2Vec2BertForAudioFrameClassification,
    }


class AutoModelForAudioXVector(AutoModel):
    """Loads whatever model for speaker embeddings a checkpoint holds."""

    classes: ClassVar[dict[str, type[PretrainedModel]]] = {
        "wav2vec2": Wav2Vec2ForXVector,
        "wav2vec2-bert": Wav2Vec2BertForXVector,
    }


class AutoModelForPreTraining(AutoModel):
    """Loads whatever model for self-supervised training a checkpoint holds; Wav2Vec2-BERT has none."""

    classes: ClassVar[dict[str, type[PretrainedModel]]] = {"wav2vec2": Wav2Vec2ForPreTraining}
