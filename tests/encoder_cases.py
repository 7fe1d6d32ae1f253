"""Small random checkpoints of every head on encoders of both families, and what the models give alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

import w2v_ray
from w2v_ray import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    AutoModelForCTC,
)
from w2v_ray.heads import Head
from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.schema import DECODED, ERROR

SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "tdnn_dim": [24] * 5,
    "xvector_output_dim": 12,
    "classifier_proj_size": 16,
    "id2label": {"0": "bell", "1": "voice", "2": "rain"},
}
WAVES = SMALL | {
    "model_type": "wav2vec2",
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
LAYER = WAVES | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
BERT = SMALL | {"model_type": "wav2vec2-bert", "output_hidden_size": 32}
SHORTENED = {"add_adapter": True, "num_adapter_layers": 1, "output_hidden_size": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "group": WAVES,
    "layer": LAYER,
    "bert": BERT,
    "bert-relative": BERT | {"position_embeddings_type": "relative"},
    "adapter": LAYER | SHORTENED,
    "bert-adapter": BERT | SHORTENED,
}
CLASSES: dict[str, Any] = {
    "transcribe": AutoModelForCTC,
    "classify": AutoModelForAudioClassification,
    "frames": AutoModelForAudioFrameClassification,
    "embed": AutoModelForAudioXVector,
}
KINDS = {"transcribe": "CTC", "classify": "SequenceClassification", "frames": "AudioFrameClassification"}


def checkpoint(folder: Path, family: str, task: str, *, masked: bool | None = None, **changes: Any) -> Path:
    """Writes the checkpoint of a head; all heads of a family have one encoder."""
    folder.mkdir(parents=True)
    name = "Wav2Vec2Bert" if family.startswith("bert") else "Wav2Vec2"
    make_config: Any = Wav2Vec2BertConfig if name == "Wav2Vec2Bert" else Wav2Vec2Config
    config = make_config.from_dict(FAMILIES[family] | changes)

    with torch.random.fork_rng(devices=[]):
        encoder = getattr(w2v_ray, f"{name}Model")(config)
        model = getattr(w2v_ray, f"{name}For{KINDS.get(task, 'XVector')}")(config)
        torch.manual_seed(0)
        for part in (encoder, model):
            for parameter in part.parameters():
                torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 0.15)
    for key, value in model.base_model.state_dict().items():
        value.copy_(encoder.state_dict()[key])
    model.save_pretrained(folder)
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": True,
        "return_attention_mask": family != "group" if masked is None else masked,
    }
    if family.startswith("bert"):
        preprocessor = {"feature_extractor_type": "SeamlessM4TFeatureExtractor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="utf-8")
    return folder


def heads_of(folder: Path, family: str, **changes: Any) -> tuple[Head, ...]:
    """All heads that an encoder can have."""
    tasks = ["transcribe", "embed"] if "adapter" in family else list(CLASSES)
    found = []
    for task in tasks:
        model = str(checkpoint(folder / task, family, task, **changes))
        options: dict[str, Any] = {"embed": {"pooling": "xvector", "size": 12}}.get(task, {})
        if task in ("classify", "frames"):
            options = {
                "classes": ("bell", "voice", "rain"),
                "activation": "softmax" if task == "classify" else "sigmoid",
            }
        found.append(Head(task=task, model=model, **options))
    return tuple(found)


def sound(num_samples: int, seed: int = 0) -> NDArray[np.float32]:
    """Noise whose loudness and offset differ from seed to seed."""
    noise = np.random.default_rng(seed).standard_normal(num_samples)
    return ((0.02 + 0.05 * (seed % 3)) * noise + 0.01 * (seed % 2)).astype(np.float32)


def table_of(waves: Sequence[NDArray[np.float32]]) -> pa.Table:
    return pa.table(
        {
            "samples": pa.array([wave.tobytes() for wave in waves], DECODED[0].type),
            "error": pa.array([None] * len(waves), ERROR),
        }
    )


def values_of(table: pa.Table, head: Head) -> list[NDArray[Any] | None]:
    """What a head gave for each row."""
    if head.task in ("transcribe", "frames"):
        name = "log_probs" if head.task == "transcribe" else "frame_scores"
        width = 32 if head.task == "transcribe" else 3
        return [
            None if data is None else np.frombuffer(data, np.float16).reshape(-1, width).astype(np.float32)
            for data in table[name].to_pylist()
        ]
    rows = table["class_scores" if head.task == "classify" else "embedding"].to_pylist()
    return [None if row is None else np.array(row, np.float32) for row in rows]


@cache
def _loaded(task: str, model: str) -> tuple[Any, Any]:
    kind = AutoModel if task == "pool" else CLASSES[task]
    return kind.from_pretrained(model).eval(), AutoFeatureExtractor.from_pretrained(model)


@torch.no_grad()
def alone(head: Head, wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a head gives for a segment by itself, from the classes of models."""
    pools = head.task == "embed" and head.pooling != "xvector"
    model, extract = _loaded("pool" if pools else head.task, head.model)
    features = extract(wave, sampling_rate=16_000, return_attention_mask=True, return_tensors="pt")
    name = model.main_input_name
    values = features[name][:, : int(features["attention_mask"].sum())]
    output = model(values, output_hidden_states=True)
    if pools:
        x = output.last_hidden_state if head.layer is None else output.hidden_states[head.layer]
        parts = [x[0].mean(0)]
        parts += [x[0].std(0, correction=0)] if head.pooling == "mean+std" else []
        found = torch.nn.functional.normalize(torch.cat(parts), dim=-1)
    elif head.task == "transcribe":
        found = output.logits[0].log_softmax(-1)
    elif head.task == "embed":
        found = torch.nn.functional.normalize(output.embeddings[0], dim=-1)
    else:
        found = output.logits[0].softmax(-1) if head.activation == "softmax" else output.logits[0].sigmoid()
    return np.asarray(found.numpy())


def assert_near(ours: NDArray[Any] | None, expected: NDArray[Any], head: Head, *, atol: float = 1e-4) -> None:
    assert ours is not None
    assert ours.shape == expected.shape
    # Where float16 is written, numbers as near as that may be rounded to neighbours of each other.
    step = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float32)
    room = atol + (step if head.task in ("transcribe", "frames") else 0.0)
    assert (np.abs(ours - expected) <= room).all()
