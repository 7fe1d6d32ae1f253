"""The configuration of Wav2Vec2-BERT: what it reads, keeps and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from w2v_ray.errors import CheckpointError, ConfigError
from w2v_ray.models.bert_config import Wav2Vec2BertConfig

# One value per option, none of them the default.
CHANGED: dict[str, Any] = {
    "vocab_size": 7,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 20,
    "feature_projection_input_dim": 80,
    "hidden_act": "gelu",
    "hidden_dropout": 0.2,
    "activation_dropout": 0.3,
    "attention_dropout": 0.4,
    "feat_proj_dropout": 0.5,
    "final_dropout": 0.6,
    "layerdrop": 0.7,
    "initializer_range": 0.5,
    "layer_norm_eps": 0.01,
    "apply_spec_augment": False,
    "mask_time_prob": 0.8,
    "mask_time_length": 3,
    "mask_time_min_masks": 4,
    "mask_feature_prob": 0.9,
    "mask_feature_length": 5,
    "mask_feature_min_masks": 6,
    "ctc_loss_reduction": "mean",
    "ctc_zero_infinity": True,
    "use_weighted_layer_sum": True,
    "classifier_proj_size": 9,
    "tdnn_dim": [8, 9],
    "tdnn_kernel": [3, 2],
    "tdnn_dilation": [2, 4],
    "xvector_output_dim": 11,
    "pad_token_id": 3,
    "bos_token_id": 4,
    "eos_token_id": 5,
    "add_adapter": True,
    "adapter_kernel_size": 5,
    "adapter_stride": 4,
    "num_adapter_layers": 2,
    "adapter_act": "selu",
    "use_intermediate_ffn_before_adapter": True,
    "output_hidden_size": 24,
    "position_embeddings_type": None,
    "rotary_embedding_base": 500,
    "max_source_positions": 70,
    "left_max_position_embeddings": 0,
    "right_max_position_embeddings": 9,
    "conv_depthwise_kernel_size": 5,
    "conformer_conv_dropout": 0.25,
}


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_defaults_are_those_of_transformers() -> None:
    ours, theirs = Wav2Vec2BertConfig().to_dict(), transformers.Wav2Vec2BertConfig().to_dict()
    for name in CHANGED:
        if name != "output_hidden_size":  # transformers fills it in with hidden_size
            assert ours[name] == plain(theirs[name]), name
    assert ours["model_type"] == theirs["model_type"] == "wav2vec2-bert"


def test_every_option_is_changed_in_these_tests() -> None:
    ours = Wav2Vec2BertConfig().to_dict()
    assert ours.keys() - CHANGED.keys() == {
        *("model_type", "id2label", "label2id", "problem_type"),
        *("output_attentions", "output_hidden_states", "return_dict"),
    }
    assert not [name for name, value in CHANGED.items() if ours[name] == value]


def test_every_option_travels_from_transformers_and_back(tmp_path: Path) -> None:
    theirs = transformers.Wav2Vec2BertConfig(**CHANGED)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Wav2Vec2BertConfig.from_pretrained(tmp_path / "theirs")
    assert {name: plain(getattr(ours, name)) for name in CHANGED} == CHANGED
    ours.save_pretrained(tmp_path / "ours")
    assert Wav2Vec2BertConfig.from_pretrained(tmp_path / "ours") == ours
    again = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert type(again) is transformers.Wav2Vec2BertConfig
    assert {name: plain(getattr(again, name)) for name in CHANGED} == CHANGED


def test_labels_and_unknown_keys_are_kept(tmp_path: Path) -> None:
    theirs = transformers.Wav2Vec2BertConfig(
        id2label={0: "no", 1: "yes", 2: "maybe"},
        label2id={"no": 0, "yes": 1, "maybe": 2},
        problem_type="single_label_classification",
        codevector_dim=768,
    )
    theirs.save_pretrained(tmp_path)
    ours = Wav2Vec2BertConfig.from_pretrained(tmp_path)
    assert ours.num_labels == 3
    assert ours.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert ours.problem_type == "single_label_classification"
    assert ours.extra["codevector_dim"] == 768
    assert ours.to_dict()["codevector_dim"] == 768
    assert Wav2Vec2BertConfig().num_labels == 2


def test_null_positions_are_no_positions_and_other_nulls_defaults() -> None:
    config = Wav2Vec2BertConfig.from_dict(
        {"position_embeddings_type": None, "hidden_act": None, "vocab_size": None, "output_hidden_size": None}
    )
    assert config == Wav2Vec2BertConfig(position_embeddings_type=None)
    assert config.to_dict()["position_embeddings_type"] is None


BAD = [
    ({"hidden_size": 100}, r"hidden_size is 100, expected a multiple of num_attention_heads \(16\)"),
    (
        {"add_adapter": True, "output_hidden_size": 40},
        r"output_hidden_size is 40, expected a multiple of num_attention_heads \(16\)",
    ),
    ({"hidden_size": "1024"}, "hidden_size is '1024', expected int"),
    ({"vocab_size": 1.5}, "vocab_size is 1.5, expected int"),
    ({"feature_projection_input_dim": 0}, "feature_projection_input_dim is 0, expected at least 1"),
    ({"position_embeddings_type": "absolute"}, "position_embeddings_type is 'absolute', expected .*rotary"),
    ({"ctc_loss_reduction": "none"}, "ctc_loss_reduction is 'none', expected 'sum' or 'mean'"),
    ({"conformer_conv_dropout": 1.5}, "conformer_conv_dropout is 1.5, expected from 0 to 1"),
    ({"conv_depthwise_kernel_size": 30}, "conv_depthwise_kernel_size is 30, expected an odd number"),
    ({"left_max_position_embeddings": -1}, "left_max_position_embeddings is -1, expected at least 0"),
    ({"right_max_position_embeddings": -1}, "right_max_position_embeddings is -1, expected at least 0"),
    ({"rotary_embedding_base": 0}, "rotary_embedding_base is 0, expected at least 1"),
    ({"max_source_positions": 0}, "max_source_positions is 0, expected at least 1"),
    ({"num_adapter_layers": -1}, "num_adapter_layers is -1, expected at least 0"),
    ({"adapter_stride": 0}, "adapter_stride is 0, expected at least 1"),
    (
        {"tdnn_dim": [8, 8]},
        "tdnn_dim, tdnn_kernel and tdnn_dilation have 2, 5 and 5 entries, expected equally many",
    ),
    (
        {"use_intermediate_ffn_before_adapter": True},
        "use_intermediate_ffn_before_adapter is True and add_adapter is False, expected an adapter",
    ),
    (
        {"hidden_size": 48, "position_embeddings_type": "rotary"},
        r"position_embeddings_type is 'rotary', expected 'relative_key' or None where .* an odd width \(3\)",
    ),
    (
        {"hidden_size": 15, "num_attention_heads": 3, "position_embeddings_type": "relative"},
        r"position_embeddings_type is 'relative', expected 'relative_key' or None .* an odd width \(15\)",
    ),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=lambda value: next(iter(value), "") if value else "")
def test_a_contradiction_names_what_is_wrong(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{message}.*; mend config.json$"):
        Wav2Vec2BertConfig(**values)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "wav2vec2-bert"} | values))
    with pytest.raises(CheckpointError, match=f"^{path}: .*{message}"):
        Wav2Vec2BertConfig.from_pretrained(tmp_path)


def test_odd_widths_are_fine_where_nothing_is_paired() -> None:
    for positions in ("relative_key", None):
        Wav2Vec2BertConfig(hidden_size=15, num_attention_heads=3, position_embeddings_type=positions)
    Wav2Vec2BertConfig(hidden_size=48, position_embeddings_type="relative")


def test_another_family_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"^model_type is 'wav2vec2', expected 'wav2vec2-bert'"):
        Wav2Vec2BertConfig.from_dict({"model_type": "wav2vec2"})
