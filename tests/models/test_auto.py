"""Which class each Auto class takes, by the config alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from w2v_ray.errors import CheckpointError
from w2v_ray.models import auto
from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.config import Wav2Vec2Config

SMALL = {
    "vocab_size": 12,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "classifier_proj_size": 8,
    "tdnn_dim": (8, 8),
    "tdnn_kernel": (3, 1),
    "tdnn_dilation": (1, 1),
    "xvector_output_dim": 8,
}
CONFIGS = {
    "wav2vec2": Wav2Vec2Config(
        **SMALL,  # type: ignore[arg-type]
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        num_codevectors_per_group=4,
        codevector_dim=8,
        proj_codevector_dim=8,
    ),
    "wav2vec2-bert": Wav2Vec2BertConfig(
        **SMALL,  # type: ignore[arg-type]
        feature_projection_input_dim=8,
        position_embeddings_type="rotary",
        conv_depthwise_kernel_size=3,
    ),
}
AUTO_CLASSES = [getattr(auto, name) for name in auto.__all__]
CASES = [(cls, model_type) for cls in AUTO_CLASSES for model_type in cls.classes]


@pytest.mark.parametrize(
    ("auto_class", "model_type"), CASES, ids=[f"{cls.__name__}-{model_type}" for cls, model_type in CASES]
)
def test_each_family_and_head(auto_class: Any, model_type: str, tmp_path: Path) -> None:
    expected = auto_class.classes[model_type]
    expected(CONFIGS[model_type]).save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path, dtype="float16", attn_implementation="eager")
    assert type(loaded) is expected
    assert loaded.attn_implementation == "eager"
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float16}
    assert type(auto.AutoModel.from_pretrained(tmp_path)) is auto.AutoModel.classes[model_type]
    theirs = getattr(transformers, auto_class.__name__).from_pretrained(tmp_path)
    assert type(theirs).__name__ == expected.__name__


def test_there_is_one_for_each_head_of_both_families() -> None:
    assert len(CASES) == 11
    assert len({cls for cls, _ in CASES}) == len(auto.__all__) == 6


@pytest.mark.parametrize("model_type", ["hubert", None, 5, ["wav2vec2"], {}])
@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
def test_another_family_is_refused(auto_class: Any, model_type: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(CheckpointError) as caught:
        auto_class.from_pretrained(tmp_path)
    said = f"{tmp_path / 'config.json'} says model_type {model_type!r}, expected 'wav2vec2'"
    assert str(caught.value).startswith(said)


def test_there_is_no_self_supervised_wav2vec2_bert(tmp_path: Path) -> None:
    CONFIGS["wav2vec2-bert"].save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"says model_type 'wav2vec2-bert', expected 'wav2vec2'; name"):
        auto.AutoModelForPreTraining.from_pretrained(tmp_path)
