"""A head for an encoder that has none: refused in a sentence, or drawn anew where that is asked for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from w2v_ray.errors import CheckpointError
from w2v_ray.models import auto, heads, xvector
from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.pretraining import Wav2Vec2ForPreTraining
from w2v_ray.models.wav2vec2 import Wav2Vec2Model
from w2v_ray.models.wav2vec2_bert import Wav2Vec2BertModel

SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "classifier_proj_size": 64,
    "tdnn_dim": (64, 64),
    "tdnn_kernel": (3, 1),
    "tdnn_dilation": (1, 1),
    "xvector_output_dim": 64,
}
CONFIGS = {
    "wav2vec2": Wav2Vec2Config(
        **SMALL,
        do_stable_layer_norm=True,
        conv_dim=(8, 8),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        num_codevectors_per_group=4,
        codevector_dim=8,
        proj_codevector_dim=8,
    ),
    "wav2vec2_bert": Wav2Vec2BertConfig(
        **SMALL, feature_projection_input_dim=8, conv_depthwise_kernel_size=3
    ),
}
ENCODERS: dict[str, Any] = {"wav2vec2": Wav2Vec2Model, "wav2vec2_bert": Wav2Vec2BertModel}
CLASSES = [
    getattr(module, name)
    for module in (heads, xvector)
    for name in module.__all__
    if name.startswith("Wav2Vec2")
]
NEW = {"ignore_mismatched_sizes": True}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder per family, with the weights of an encoder alone."""
    folders = {}
    for family, config in CONFIGS.items():
        torch.manual_seed(0)
        folders[family] = tmp_path_factory.mktemp(family)
        ENCODERS[family](config).save_pretrained(folders[family])
    return folders


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As wav2vec 2.0 is published before anyone fine-tuned it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pretrained")
    Wav2Vec2ForPreTraining(CONFIGS["wav2vec2"]).save_pretrained(folder)
    return folder


def assert_equal_weights(ours: torch.nn.Module, theirs: torch.nn.Module, apart: str = "-") -> None:
    known = theirs.state_dict()
    for name, weight in ours.state_dict().items():
        if apart not in name:
            assert torch.equal(weight, known[name]), name


@pytest.mark.parametrize("cls", CLASSES)
def test_without_being_asked_no_head_is_drawn(cls: Any, encoders: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError) as caught:
        cls.from_pretrained(encoders[cls.base_model_prefix])
    message = str(caught.value)
    assert "lacks " in message
    assert f"lacks {cls.base_model_prefix}" not in message
    assert message.endswith(
        "; use a checkpoint that fits its config.json, or draw a new head with ignore_mismatched_sizes=True"
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("cls", CLASSES)
def test_a_new_head_for_an_encoder(
    cls: Any, weighted: bool, encoders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = encoders[cls.base_model_prefix]
    options: dict[str, Any] = {"use_weighted_layer_sum": weighted}
    if "CTC" not in cls.__name__:
        options["num_labels"] = 5
    torch.manual_seed(1)
    with caplog.at_level(logging.WARNING, logger="w2v_ray"):
        model = cls.from_pretrained(folder, **options, **NEW)
    drawn = [name for name in model.state_dict() if not name.startswith(cls.base_model_prefix)]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(folder / "model.safetensors") in record.getMessage()
    assert ", ".join(sorted(drawn)[:5]) in record.getMessage()
    assert_equal_weights(model.base_model, ENCODERS[cls.base_model_prefix].from_pretrained(folder))
    theirs = getattr(transformers, cls.__name__).from_pretrained(folder, **options).eval()
    assert theirs.state_dict().keys() == model.state_dict().keys()
    for name in drawn:
        ours, expected = model.state_dict()[name], theirs.state_dict()[name]
        assert ours.shape == expected.shape, name
        if ours.ndim > 1:  # drawn, of the same spread as theirs
            assert ours.std() / expected.std() == pytest.approx(1, abs=0.25), name
        else:
            assert ours.tolist() == [0.5 if name == "layer_weights" else 0.0] * len(ours), name
    assert not model.training
    model.save_pretrained(tmp_path)
    assert_equal_weights(cls.from_pretrained(tmp_path), model)


def test_other_draws_each_time(encoders: dict[str, Path]) -> None:
    first, second = (heads.Wav2Vec2ForCTC.from_pretrained(encoders["wav2vec2"], **NEW) for _ in range(2))
    assert not torch.equal(first.lm_head.weight, second.lm_head.weight)


def test_a_pretraining_checkpoint_gives_its_encoder(
    pretrained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = Wav2Vec2ForPreTraining.from_pretrained(pretrained)
    for loaded in (Wav2Vec2Model.from_pretrained(pretrained), auto.AutoModel.from_pretrained(pretrained)):
        assert_equal_weights(loaded, source.wav2vec2)
    with pytest.raises(
        CheckpointError, match=r"lacks lm_head\.bias.* and has project_hid.*, or draw a new head"
    ):
        auto.AutoModelForCTC.from_pretrained(pretrained)
    assert not caplog.records
    with caplog.at_level(logging.WARNING, logger="w2v_ray"):
        model = auto.AutoModelForCTC.from_pretrained(pretrained, vocab_size=12, **NEW)
    assert model.lm_head.weight.shape == (12, 16)
    assert_equal_weights(model.wav2vec2, source.wav2vec2)
    drawn, left = (record.getMessage() for record in caplog.records)
    assert "does not hold lm_head.bias, lm_head.weight as" in drawn
    assert "has project_hid.bias, " in left
    assert " and 2 more, which the model does not; left out" in left


def test_a_classifier_from_a_model_that_transcribes(tmp_path: Path) -> None:
    source = heads.Wav2Vec2ForCTC(CONFIGS["wav2vec2"])
    source.save_pretrained(tmp_path)
    model = auto.AutoModelForAudioClassification.from_pretrained(tmp_path, num_labels=3, **NEW)
    assert model.classifier.out_features == 3
    assert_equal_weights(model.wav2vec2, source.wav2vec2)


@pytest.mark.parametrize("family", CONFIGS)
def test_what_the_config_adds_to_the_encoder_is_drawn_too(family: str, encoders: dict[str, Path]) -> None:
    """As Wav2Vec2-BERT is fine-tuned: with an adapter that the published weights lack."""
    options: dict[str, Any] = {"add_adapter": True, "mask_time_prob": 0.0, "vocab_size": 9}
    if family == "wav2vec2":
        options["adapter_attn_dim"] = 4
    else:
        options["use_intermediate_ffn_before_adapter"] = True
    with pytest.raises(CheckpointError, match=r"lacks lm_head\.bias.*adapter\..*, or draw a new head"):
        auto.AutoModelForCTC.from_pretrained(encoders[family], **options)
    model = auto.AutoModelForCTC.from_pretrained(encoders[family], **options, **NEW)
    assert model.base_model.adapter.layers[0].state_dict()
    assert "masked_spec_embed" not in model.base_model.state_dict()  # nothing is masked
    encoder = ENCODERS[family].from_pretrained(encoders[family])
    assert_equal_weights(model.base_model.feature_projection, encoder.feature_projection)
    assert_equal_weights(model.base_model.encoder, encoder.encoder, apart="adapter_layer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_hidden_layers": 2}, r"lacks .*encoder\.layers\.1"),
        ({"intermediate_size": 20}, r"of another shape \(wav2vec2\.encoder\.layers\.0\.feed_forward"),
        ({"conv_bias": True}, r"lacks .*conv_layers\.0\.conv\.bias"),
    ],
)
def test_an_encoder_is_never_drawn(options: dict[str, Any], message: str, encoders: dict[str, Path]) -> None:
    for cls in (heads.Wav2Vec2ForCTC, heads.Wav2Vec2ForSequenceClassification):
        with pytest.raises(CheckpointError, match=message) as caught:
            cls.from_pretrained(encoders["wav2vec2"], **options, **NEW)
        assert str(caught.value).endswith("; use a checkpoint that fits its config.json")
    with pytest.raises(CheckpointError, match=message.replace(r"wav2vec2\.", "")):
        Wav2Vec2Model.from_pretrained(encoders["wav2vec2"], **options, **NEW)


def test_what_an_encoder_has_too_much_is_never_left(encoders: dict[str, Path], tmp_path: Path) -> None:
    deeper = Wav2Vec2Config.from_dict(CONFIGS["wav2vec2"].to_dict(), num_hidden_layers=2)
    Wav2Vec2Model(deeper).save_pretrained(tmp_path)
    for cls in (Wav2Vec2Model, heads.Wav2Vec2ForCTC):
        with pytest.raises(
            CheckpointError, match=r"has .*encoder\.layers\.1.*, which the model does not; use"
        ):
            cls.from_pretrained(tmp_path, num_hidden_layers=1, **NEW)
