"""The options of from_pretrained: dtype, device, config, and what may differ from the checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from w2v_ray.errors import CheckpointError, ConfigError
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.heads import Wav2Vec2ForCTC, Wav2Vec2ForSequenceClassification
from w2v_ray.models.wav2vec2 import Wav2Vec2Model

CONFIG = Wav2Vec2Config(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    conv_dim=(8, 8),
    conv_kernel=(10, 3),
    conv_stride=(5, 2),
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
    classifier_proj_size=8,
)
NUM_GPUS = torch.cuda.device_count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("ctc")
    Wav2Vec2ForCTC(CONFIG).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("classifier")
    config = Wav2Vec2Config.from_dict(
        {**CONFIG.to_dict(), "id2label": {"0": "no", "1": "yes"}, "label2id": {}}
    )
    Wav2Vec2ForSequenceClassification(config).save_pretrained(path)
    return path


def load(folder: Path, **options: Any) -> Wav2Vec2ForCTC:
    return Wav2Vec2ForCTC.from_pretrained(folder, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"torch_dtype": torch.float16},
        {"torch_dtype": "float16"},
        {"dtype": torch.float16},
        {"dtype": torch.float16, "torch_dtype": torch.float16},
    ],
)
def test_both_names_of_dtype(folder: Path, options: dict[str, Any]) -> None:
    model = load(folder, **options)
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert model.dtype == torch.float16
    with torch.no_grad():
        assert model(torch.randn(1, 400).half()).logits.dtype == torch.float16


def test_two_dtypes_are_an_error(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"dtype is torch\.bfloat16 and torch_dtype torch\.float16, expected one"
    ):
        load(folder, dtype=torch.bfloat16, torch_dtype=torch.float16)


@pytest.mark.parametrize("device_map", [None, "cpu", torch.device("cpu"), {"": "cpu"}])
def test_on_the_cpu(folder: Path, device_map: Any) -> None:
    assert load(folder, device_map=device_map).device == torch.device("cpu")


def test_auto_is_the_first_gpu_or_the_cpu(folder: Path) -> None:
    expected = torch.device("cuda", 0) if NUM_GPUS else torch.device("cpu")
    model = load(folder, device_map="auto", attn_implementation="auto")
    assert {t.device for t in model.state_dict().values()} == {expected}
    assert model.device == expected
    assert f"as the model is on {expected.type}" in model.attn_reason or NUM_GPUS
    assert model.wav2vec2.attn_reason == model.attn_reason


@pytest.mark.parametrize(
    "device_map", ["balanced", "sequential", "gpu", 3.5, {"wav2vec2": "cpu", "lm_head": "cpu"}, {}, [1]]
)
def test_what_is_not_one_device_is_an_error(folder: Path, device_map: Any) -> None:
    with pytest.raises(ConfigError, match=r"device_map is .*, expected 'auto' or one device .*; choose"):
        load(folder, device_map=device_map)


@pytest.mark.parametrize("device_map", [f"cuda:{NUM_GPUS}", NUM_GPUS])
def test_a_gpu_that_is_not_there_is_an_error(folder: Path, device_map: Any) -> None:
    with pytest.raises(ConfigError, match=f"has {NUM_GPUS} GPUs; choose 'auto' or 'cpu'"):
        load(folder, device_map=device_map)


def test_options_take_the_place_of_those_of_the_config(folder: Path) -> None:
    model = load(folder, ctc_loss_reduction="mean", hidden_dropout=0.0, pad_token_id=3)
    assert (model.config.ctc_loss_reduction, model.config.hidden_dropout, model.config.pad_token_id) == (
        "mean",
        0.0,
        3,
    )
    assert model.wav2vec2.encoder.layers[0].dropout.p == 0
    given = load(folder, config=Wav2Vec2Config.from_dict({**CONFIG.to_dict(), "final_dropout": 0.7}))
    assert given.dropout.p == 0.7
    both = load(folder, config=given.config, pad_token_id=2)
    assert (both.dropout.p, both.config.pad_token_id, given.config.pad_token_id) == (0.7, 2, 0)


@pytest.mark.parametrize("option", ["hiden_dropout", "trust_remote_code", "extra"])
def test_an_unknown_option_is_an_error(folder: Path, option: str) -> None:
    with pytest.raises(ConfigError, match=rf"Wav2Vec2ForCTC\.from_pretrained has no option '{option}'"):
        load(folder, **{option: True})


def test_an_option_out_of_bounds_is_an_error(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="hidden_dropout is 3, expected from 0 to 1"):
        load(folder, hidden_dropout=3)


def test_a_head_for_other_classes(classifier: Path) -> None:
    cls = Wav2Vec2ForSequenceClassification
    assert cls.from_pretrained(classifier).config.id2label == {0: "no", 1: "yes"}
    with pytest.raises(CheckpointError, match=r"has classifier\.bias, classifier\.weight of another shape"):
        cls.from_pretrained(classifier, num_labels=5)
    torch.manual_seed(1)
    model = cls.from_pretrained(classifier, num_labels=5, ignore_mismatched_sizes=True)
    assert model.config.num_labels == len(model.config.id2label) == 5
    assert model.classifier.weight.shape == (5, 8)
    assert 0 < model.classifier.weight.std() < 0.1
    old = cls.from_pretrained(classifier)
    assert torch.equal(model.projector.weight, old.projector.weight)
    torch.manual_seed(2)
    other = cls.from_pretrained(classifier, num_labels=5, ignore_mismatched_sizes=True)
    assert not torch.equal(other.classifier.weight, model.classifier.weight)


def test_names_of_classes_stay_with_their_number(classifier: Path) -> None:
    same = Wav2Vec2ForSequenceClassification.from_pretrained(classifier, num_labels=2)
    assert same.config.id2label == {0: "no", 1: "yes"}
    assert same.config.label2id == {"no": 0, "yes": 1}
    given = Wav2Vec2ForSequenceClassification.from_pretrained(classifier, config=same.config, num_labels=2)
    assert given.config.id2label == {0: "no", 1: "yes"}
    renamed = Wav2Vec2ForSequenceClassification.from_pretrained(classifier, id2label={0: "a", 1: "b"})
    assert renamed.config.label2id == {"a": 0, "b": 1}


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, None, 16])
def test_a_dtype_that_is_no_float_is_an_error(folder: Path, dtype: Any) -> None:
    with pytest.raises(ConfigError, match=r"dtype is .*, expected auto, float32"):
        load(folder, dtype=dtype)


def test_two_frameworks_are_an_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="from_tf and from_flax are both true"):
        load(folder, from_tf=True, from_flax=True)
    with pytest.raises(CheckpointError, match=r"neither tf_model\.h5 nor tf_model\.h5\.index\.json"):
        load(folder, from_tf=True)


@pytest.mark.parametrize("name", ["eager", "sdpa", "flex_attention"])
def test_kernels_agree_in_a_model(folder: Path, name: str) -> None:
    waves = torch.randn(2, 600, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 600, dtype=torch.long)
    mask[1, 350:] = 0
    model = load(folder, attn_implementation=name)
    assert (model.attn_implementation, model.attn_reason) == (name, f"{name} was asked for")
    with torch.no_grad():
        logits = model(waves * mask, mask).logits
        expected = load(folder)(waves * mask, mask).logits
    frames = model.wav2vec2.num_frames(350)
    torch.testing.assert_close(logits[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[1, :frames], expected[1, :frames], atol=1e-5, rtol=1e-5)


def test_a_model_can_be_saved_where_it_came_from(folder: Path, tmp_path: Path) -> None:
    """Its weights may be mapped from the very file that is written."""
    load(folder).save_pretrained(tmp_path)
    model = Wav2Vec2Model.from_pretrained(tmp_path)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Wav2Vec2Model"]
    again = Wav2Vec2Model.from_pretrained(tmp_path)
    for name, weight in before.items():
        assert torch.equal(model.state_dict()[name], weight)
        assert torch.equal(again.state_dict()[name], weight)
