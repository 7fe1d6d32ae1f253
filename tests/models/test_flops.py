"""Operations counted from a config are those that torch counts while the model runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.flops import count_flops
from w2v_ray.models.heads import (
    Wav2Vec2BertForAudioFrameClassification,
    Wav2Vec2BertForCTC,
    Wav2Vec2BertForSequenceClassification,
    Wav2Vec2ForAudioFrameClassification,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
)
from w2v_ray.models.xvector import Wav2Vec2BertForXVector, Wav2Vec2ForXVector

SMALL: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "classifier_proj_size": 9,
    "num_labels": 5,
    "tdnn_dim": (12, 8, 6),
    "tdnn_kernel": (5, 3, 1),
    "tdnn_dilation": (1, 2, 1),
    "xvector_output_dim": 7,
}
CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": (8, 10, 12),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
ADAPTER = {"add_adapter": True, "num_adapter_layers": 2, "output_hidden_size": 16}
HEADS: dict[str, tuple[type[Any], type[Any]]] = {
    "transcribe": (Wav2Vec2ForCTC, Wav2Vec2BertForCTC),
    "classify": (Wav2Vec2ForSequenceClassification, Wav2Vec2BertForSequenceClassification),
    "frames": (Wav2Vec2ForAudioFrameClassification, Wav2Vec2BertForAudioFrameClassification),
    "xvector": (Wav2Vec2ForXVector, Wav2Vec2BertForXVector),
}


def counted_by_torch(model: Any, *inputs: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(*inputs)
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("transcribe", {}),
        ("transcribe", {"do_stable_layer_norm": True, "adapter_attn_dim": 6, "conv_bias": True}),
        ("transcribe", ADAPTER),
        ("transcribe", {"num_conv_pos_embeddings": 15}),
        ("classify", {}),
        ("frames", {}),
        ("xvector", {}),
        ("xvector", {"add_adapter": True, "use_weighted_layer_sum": True}),
    ],
)
@pytest.mark.parametrize("samples", [1200, 4321])
def test_wav2vec2(head: str, options: dict[str, Any], samples: int) -> None:
    config = Wav2Vec2Config(**SMALL | CONVOLUTIONS | options)
    model = HEADS[head][0](config, attn_implementation="eager")
    counted = counted_by_torch(model, torch.zeros(1, samples))
    assert sum(count_flops(config, samples, head=head).values()) == counted


@pytest.mark.parametrize(
    ("head", "options"),
    [
        *(("transcribe", {"position_embeddings_type": kind}) for kind in ("relative_key", "relative")),
        *(("transcribe", {"position_embeddings_type": kind}) for kind in ("rotary", None)),
        ("transcribe", {**ADAPTER, "use_intermediate_ffn_before_adapter": True}),
        ("classify", {}),
        ("frames", {}),
        ("xvector", {}),
    ],
)
@pytest.mark.parametrize("steps", [9, 120])
def test_wav2vec2_bert(head: str, options: dict[str, Any], steps: int) -> None:
    config = Wav2Vec2BertConfig(**SMALL | {"feature_projection_input_dim": 14} | options)
    model = HEADS[head][1](config, attn_implementation="eager")
    counted = counted_by_torch(model, torch.zeros(1, steps, 14))
    assert sum(count_flops(config, steps, head=head).values()) == counted


def test_the_parts_of_the_base_model() -> None:
    parts = count_flops(Wav2Vec2Config(), 10 * 16_000, head="transcribe")
    assert list(parts) == [
        "convolutions",
        "projection",
        "positions",
        "attention",
        "feed_forward",
        "head",
    ]
    assert parts["head"] == 2 * 499 * 768 * 32
    assert parts["feed_forward"] == 12 * 4 * 499 * 768 * 3072
    without = count_flops(Wav2Vec2Config(), 10 * 16_000)
    assert without == {name: flops for name, flops in parts.items() if name != "head"}


def test_an_input_too_short_for_a_frame_needs_next_to_nothing() -> None:
    assert count_flops(Wav2Vec2Config(), 100, head="transcribe")["attention"] == 0
