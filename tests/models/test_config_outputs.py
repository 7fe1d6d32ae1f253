"""What ``config.json`` says that models return, which an argument of ``forward`` overrules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from w2v_ray.errors import ConfigError
from w2v_ray.models.flax import FlaxWav2Vec2ForCTC
from w2v_ray.models.heads import Wav2Vec2ForCTC
from w2v_ray.models.pretraining import Wav2Vec2ForPreTraining
from w2v_ray.models.tensorflow import TFWav2Vec2ForCTC
from w2v_ray.models.wav2vec2 import Wav2Vec2Model
from w2v_ray.models.wav2vec2_bert import Wav2Vec2BertModel
from w2v_ray.models.xvector import Wav2Vec2ForXVector

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "tdnn_dim": (8, 8),
    "tdnn_kernel": (3, 1),
    "tdnn_dilation": (1, 1),
    "xvector_output_dim": 8,
}
WAVES = {
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_codevectors_per_group": 4,
    "codevector_dim": 8,
    "proj_codevector_dim": 8,
}
FEATURES = {"feature_projection_input_dim": 8, "conv_depthwise_kernel_size": 3}
CLASSES = [Wav2Vec2Model, Wav2Vec2ForCTC, Wav2Vec2ForXVector, Wav2Vec2ForPreTraining, Wav2Vec2BertModel]
SAID = [
    {"output_hidden_states": True},
    {"output_attentions": True},
    {"return_dict": False},
    {"output_hidden_states": True, "output_attentions": True, "return_dict": False},
]


def save_model(cls: Any, folder: Path, said: dict[str, Any]) -> torch.Tensor:
    bert = cls is Wav2Vec2BertModel
    torch.manual_seed(0)
    cls(cls.config_class(**SMALL, **(FEATURES if bert else WAVES))).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    return torch.randn(1, 20, 8) if bert else torch.randn(1, 400)


@pytest.mark.parametrize("said", SAID, ids=lambda said: "+".join(said))
@pytest.mark.parametrize("cls", CLASSES)
@torch.no_grad()
def test_the_config_says_what_is_returned(cls: Any, said: dict[str, Any], tmp_path: Path) -> None:
    inputs = save_model(cls, tmp_path, said)
    ours = cls.from_pretrained(tmp_path, attn_implementation="eager")
    theirs = getattr(transformers, cls.__name__).from_pretrained(tmp_path, attn_implementation="eager").eval()
    theirs.config.return_dict = True  # False in a config is more than the heads of transformers can take
    plain = {"output_hidden_states": False, "output_attentions": False, "return_dict": True}
    for asked in ({}, plain):
        found, expected = ours(inputs, **asked), theirs(inputs, **asked)
        assert isinstance(found, tuple) == (not asked and "return_dict" in said)
        if not isinstance(found, tuple):
            assert found.keys() == list(expected.keys())
            assert dict(found.items()).keys() == dict(expected.items()).keys()
            assert all(one is other for one, other in zip(found.values(), found.to_tuple(), strict=True))
            found = found.to_tuple()
        for one, other in zip(found, expected.to_tuple(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    assert ours.config.to_dict().items() >= said.items()


@pytest.mark.parametrize("cls", [TFWav2Vec2ForCTC, FlaxWav2Vec2ForCTC])
def test_the_older_names_do_so_too(cls: Any, tmp_path: Path) -> None:
    waves = save_model(Wav2Vec2ForCTC, tmp_path, {"output_hidden_states": True, "return_dict": False})
    model = cls.from_pretrained(tmp_path)
    logits, hidden_states = model(waves)
    assert (logits.shape, len(hidden_states)) == ((1, 39, 32), 3)
    assert model(waves, output_hidden_states=False, return_dict=True).keys() == ["logits"]


def test_attentions_need_the_kernel_that_gives_them(tmp_path: Path) -> None:
    waves = save_model(Wav2Vec2ForCTC, tmp_path, {"output_attentions": True})
    with pytest.raises(
        ConfigError, match="output_attentions needs attn_implementation='eager', it is 'sdpa'"
    ):
        Wav2Vec2ForCTC.from_pretrained(tmp_path)(waves)


def test_an_option_says_it_as_well(tmp_path: Path) -> None:
    waves = save_model(Wav2Vec2ForCTC, tmp_path, {})
    output = Wav2Vec2ForCTC.from_pretrained(tmp_path, output_hidden_states=True)(waves)
    assert len(output.hidden_states) == 3
    assert output["hidden_states"] is output.hidden_states
    for absent in ("loss", "keys"):
        with pytest.raises(KeyError, match=absent):
            output[absent]
