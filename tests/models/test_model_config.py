"""The configuration: what it reads, keeps, works out and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from w2v_ray.errors import CheckpointError, ConfigError
from w2v_ray.models.config import Wav2Vec2Config

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "data" / "hf_configs").glob("*.json"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_published_configs_come_back_whole(path: Path, tmp_path: Path) -> None:
    published = json.loads(path.read_text())
    config = Wav2Vec2Config.from_dict(published)
    config.save_pretrained(tmp_path / "new" / "folder")
    written = json.loads((tmp_path / "new" / "folder" / "config.json").read_text())
    assert {name: written[name] for name in published} == published
    assert Wav2Vec2Config.from_pretrained(tmp_path / "new" / "folder") == config
    assert config.extra["transformers_version"] == published["transformers_version"]
    assert (config.hop_samples, config.receptive_samples) == (320, 400)


def test_the_copies_are_the_published_ones(shared_data: Path) -> None:
    for path in CONFIGS:
        original = shared_data / "misc" / "config" / f"{path.stem}.config.json"
        assert path.read_bytes() == original.read_bytes()


@pytest.mark.parametrize(
    ("kernels", "strides", "hop", "receptive"),
    [((80, 3, 3), (80, 2, 2), 320, 560), ((10,), (5,), 5, 10), ((1, 1), (3, 4), 12, 1)],
)
def test_hop_and_receptive_field(
    kernels: tuple[int, ...], strides: tuple[int, ...], hop: int, receptive: int
) -> None:
    config = Wav2Vec2Config(conv_dim=(8,) * len(kernels), conv_kernel=kernels, conv_stride=strides)
    assert config.hop_samples == hop
    assert config.receptive_samples == receptive


def test_null_is_the_default_in_old_files() -> None:
    config = Wav2Vec2Config.from_dict(
        {"vocab_size": None, "ctc_loss_reduction": None, "output_hidden_size": None}
    )
    assert config == Wav2Vec2Config()


def test_lists_become_tuples_and_lists_again() -> None:
    config = Wav2Vec2Config(conv_dim=[8, 8], conv_kernel=[3, 3], conv_stride=[2, 2])  # type: ignore[arg-type]
    assert config.conv_dim == (8, 8)
    assert config.to_dict()["conv_dim"] == [8, 8]


BAD = [
    ({"hidden_size": 100, "num_attention_heads": 12}, "hidden_size is 100, expected a multiple of num_att"),
    (
        {"hidden_size": 120, "num_conv_pos_embedding_groups": 16},
        "a multiple of num_conv_pos_embedding_groups",
    ),
    ({"conv_dim": [8, 8]}, "conv_dim, conv_stride and conv_kernel have 2, 7 and 7 entries, expected equally"),
    (
        {"conv_dim": [], "conv_stride": [], "conv_kernel": []},
        "have 0, 0 and 0 entries, expected equally many",
    ),
    ({"conv_kernel": [0] * 7}, r"conv_kernel is \[0, .*, expected a list of whole numbers above 0"),
    ({"conv_dim": 512}, "conv_dim is 512, expected a list of whole numbers above 0"),
    ({"conv_stride": "5222222"}, "conv_stride is '5222222', expected a list of whole numbers above 0"),
    ({"feat_extract_norm": "batch"}, "feat_extract_norm is 'batch', expected 'group' or 'layer'"),
    ({"ctc_loss_reduction": "none"}, "ctc_loss_reduction is 'none', expected 'sum' or 'mean'"),
    ({"hidden_size": "768"}, "hidden_size is '768', expected int"),
    ({"vocab_size": 32.5}, "vocab_size is 32.5, expected int"),
    ({"do_stable_layer_norm": "no"}, "do_stable_layer_norm is 'no', expected bool"),
    ({"hidden_act": 3}, "hidden_act is 3, expected str"),
    ({"layer_norm_eps": "1e-5"}, "layer_norm_eps is '1e-5', expected float"),
    ({"num_attention_heads": 0}, "num_attention_heads is 0, expected at least 1"),
    ({"num_hidden_layers": -1}, "num_hidden_layers is -1, expected at least 1"),
    ({"mask_time_length": 0}, "mask_time_length is 0, expected at least 1"),
    ({"hidden_dropout": 1.5}, "hidden_dropout is 1.5, expected from 0 to 1"),
    ({"layerdrop": -0.1}, "layerdrop is -0.1, expected from 0 to 1"),
    ({"hidden_size": True}, "hidden_size is True, expected int"),
    ({"conv_dim": [True] * 7}, "conv_dim is .*, expected a list of whole numbers above 0"),
    ({"adapter_attn_dim": 0}, "adapter_attn_dim is 0, expected at least 1"),
    ({"return_dict": 1}, "return_dict is 1, expected bool"),
    ({"mask_time_prob": float("nan")}, "mask_time_prob is nan, expected from 0 to 1"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=lambda value: next(iter(value), "") if value else "")
def test_a_contradiction_names_what_is_wrong(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{message}.*; mend config.json$"):
        Wav2Vec2Config(**values)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "wav2vec2"} | values))
    with pytest.raises(CheckpointError, match=f"^{path}: .*{message}"):
        Wav2Vec2Config.from_pretrained(tmp_path)


def test_another_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"^model_type is 'hubert', expected 'wav2vec2'; name a checkpoint"
    ):
        Wav2Vec2Config.from_dict({"model_type": "hubert"})
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(CheckpointError, match=r"config\.json: model_type is 'whisper', expected 'wav2vec2'"):
        Wav2Vec2Config.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model_type": ', r"config\.json is not readable as JSON"),
        (b"\xff\xfe\x00", r"config\.json is not readable as JSON"),
        (b"[1, 2]", r"config\.json holds a JSON list, expected an object"),
        (b"", r"config\.json is not readable as JSON"),
        (b"[" * 100_000, r"config\.json is not readable as JSON"),
    ],
)
def test_a_malformed_file_is_an_error(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Wav2Vec2Config.from_pretrained(tmp_path)


def test_a_missing_file_is_an_error_that_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"has no config\.json \(it holds model\.safetensors\)"):
        Wav2Vec2Config.from_pretrained(tmp_path)


def test_labels_have_generic_names_unless_given() -> None:
    assert Wav2Vec2Config().id2label == {0: "LABEL_0", 1: "LABEL_1"}
    config = Wav2Vec2Config(num_labels=3)
    assert config.num_labels == 3
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    config.num_labels = 1
    assert config.id2label == {0: "LABEL_0"}
    assert config == Wav2Vec2Config(num_labels=1)


def test_labels_read_from_text_are_numbers_again(tmp_path: Path) -> None:
    values = {"id2label": {"0": "no", "1": "yes", "2": "both"}, "label2id": {"no": "0", "yes": 1, "both": 2}}
    config = Wav2Vec2Config.from_dict(values)
    assert config.id2label == {0: "no", 1: "yes", 2: "both"}
    assert config.label2id == {"no": 0, "yes": 1, "both": 2}
    assert config.num_labels == 3
    config.save_pretrained(tmp_path)
    assert Wav2Vec2Config.from_pretrained(tmp_path) == config


def test_label2id_is_made_from_id2label() -> None:
    assert Wav2Vec2Config(id2label={0: "a", 1: "b"}).label2id == {"a": 0, "b": 1}


def test_changes_take_the_place_of_what_the_file_says(tmp_path: Path) -> None:
    Wav2Vec2Config(id2label={0: "a", 1: "b", 2: "c"}).save_pretrained(tmp_path)
    same = Wav2Vec2Config.from_pretrained(tmp_path, num_labels=3, problem_type="regression")
    assert (same.id2label, same.problem_type) == ({0: "a", 1: "b", 2: "c"}, "regression")
    other = Wav2Vec2Config.from_pretrained(tmp_path, num_labels=5, hidden_dropout=0.3)
    assert (other.num_labels, other.id2label[4], other.hidden_dropout) == (5, "LABEL_4", 0.3)
    named = Wav2Vec2Config.from_pretrained(tmp_path, id2label={0: "x", 1: "y"})
    assert named.label2id == {"x": 0, "y": 1}
    with pytest.raises(ConfigError, match=r"^num_label is no option of Wav2Vec2Config; use one that it"):
        Wav2Vec2Config.from_pretrained(tmp_path, num_label=5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"num_labels": 2, "id2label": {0: "a", 1: "b", 2: "c"}},
            "num_labels is 2, but id2label names 3 classes; set id2label instead",
        ),
        ({"num_labels": -1}, "num_labels is -1, expected a whole number"),
        ({"num_labels": "3"}, "num_labels is '3', expected a whole number"),
        ({"id2label": {"first": "a"}}, "id2label or label2id has an index that is not"),
        ({"num_labels": True}, "num_labels is True, expected a whole number"),
        ({"id2label": ["a", "b"]}, r"id2label is \['a', 'b'\], expected an object"),
        ({"id2label": ["a", "b"], "num_labels": 3}, r"id2label is \['a', 'b'\], expected an object"),
        ({"id2label": 5}, "id2label is 5, expected an object"),
        ({"id2label": {0: "a"}, "label2id": {"a": None}}, "id2label or label2id has an index that is not"),
        ({"problem_type": "ranking"}, "problem_type is 'ranking', expected None or 'regression' or"),
        (
            {"problem_type": "single_label_classification", "num_labels": 1},
            "^problem_type is 'single_label_classification' with one class, expected two at least",
        ),
        ({"tdnn_dim": [8, 8]}, "tdnn_dim, tdnn_kernel and tdnn_dilation have 2, 5 and 5 entries"),
        ({"output_hidden_size": 0}, "output_hidden_size is 0, expected at least 1"),
        ({"feat_quantizer_dropout": 2}, "feat_quantizer_dropout is 2, expected from 0 to 1"),
    ],
)
def test_labels_and_heads_that_contradict_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Wav2Vec2Config(**values)
