"""What is dropped in training: from one seed, transformers and this package draw the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from w2v_ray.models.heads import Wav2Vec2ForCTC
from w2v_ray.models.pretraining import Wav2Vec2ForPreTraining

TINY: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "apply_spec_augment": False,
    "num_codevectors_per_group": 6,
    "codevector_dim": 8,
    "proj_codevector_dim": 8,
}
NONE = dict.fromkeys(
    [
        "hidden_dropout",
        "activation_dropout",
        "attention_dropout",
        "feat_proj_dropout",
        "feat_quantizer_dropout",
        "final_dropout",
        "layerdrop",
    ],
    0.0,
)
FAMILIES: dict[str, dict[str, Any]] = {
    "group": {},
    "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}
ALL = {name: 0.1 + 0.05 * index for index, name in enumerate(NONE)}


def make_pair(folder: Path, model_class: Any, **changes: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(**TINY | changes, attn_implementation="eager")
    theirs = getattr(transformers, model_class.__name__)(config)
    theirs.save_pretrained(folder)
    return theirs, model_class.from_pretrained(folder, attn_implementation="eager")


def outputs(model: Any, *, training: bool, seed: int = 6) -> torch.Tensor:
    model.train(training)
    torch.manual_seed(7)
    waves = torch.randn(2, 8_000)
    torch.manual_seed(seed)
    return torch.cat([part.flatten() for part in model(waves).to_tuple() if part.is_floating_point()])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model_class", [Wav2Vec2ForCTC, Wav2Vec2ForPreTraining])
@torch.no_grad()
def test_training_drops_what_transformers_drops(family: str, model_class: Any, tmp_path: Path) -> None:
    theirs, ours = make_pair(tmp_path, model_class, **FAMILIES[family], **ALL)
    for seed in range(5):  # so that layers are skipped in some and not in others
        expected = outputs(theirs, training=True, seed=seed)
        torch.testing.assert_close(outputs(ours, training=True, seed=seed), expected, atol=1e-4, rtol=0)
        assert (expected - outputs(theirs, training=False)).abs().max() > 1e-2


@pytest.mark.parametrize("name", NONE)
@torch.no_grad()
def test_each_is_on_in_training_alone(name: str, tmp_path: Path) -> None:
    if name == "feat_quantizer_dropout":
        model_class, hooked = Wav2Vec2ForPreTraining, "dropout_features"
    else:
        model_class, hooked = Wav2Vec2ForCTC, "lm_head"
    _, ours = make_pair(tmp_path, model_class, **NONE | {name: 0.6})
    seen: list[torch.Tensor] = []
    # The output of the part that is nearest: the quantiser draws numbers of its own in training.
    ours.get_submodule(hooked).register_forward_hook(lambda module, inputs, output: seen.append(output))
    for training in (True, False):
        for seed in (1, 2):
            outputs(ours, training=training, seed=seed)
    assert not torch.allclose(seen[0], seen[1], atol=1e-5)
    assert torch.equal(seen[2], seen[3])
