"""The models against transformers, the oracle: four published configs made small, random weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from w2v_ray.models.auto import AutoModelForCTC
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.heads import Wav2Vec2ForCTC
from w2v_ray.models.wav2vec2 import Wav2Vec2Model

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "data" / "hf_configs").glob("*.json"))
# What makes a model large; kernels, strides and everything else are as published.
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_dim": [24, 24, 24, 24, 24, 24, 40],
}
NUM_SAMPLES = 16_000
TOLERANCE = 1e-4


@dataclass
class Pair:
    theirs: Any
    ours: Wav2Vec2ForCTC
    folder: Path
    waves: torch.Tensor


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    yield
    logger.setLevel(level)


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Moves every weight away from where it starts, so that a norm or a bias left out shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim == 1 else 0.08
            parameter += spread * torch.randn(parameter.shape, generator=generator)


def make_pair(folder: Path, values: dict[str, Any]) -> Pair:
    torch.manual_seed(0)
    theirs = transformers.Wav2Vec2ForCTC(
        transformers.Wav2Vec2Config(**values, attn_implementation="eager")
    ).eval()
    randomize(theirs, seed=1)
    theirs.save_pretrained(folder)
    ours = Wav2Vec2ForCTC.from_pretrained(folder, attn_implementation="eager")
    waves = torch.randn(1, NUM_SAMPLES, generator=torch.Generator().manual_seed(2))
    return Pair(theirs, ours, folder, waves)


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda path: path.stem)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    values = json.loads(request.param.read_text()) | SMALL
    return make_pair(tmp_path_factory.mktemp(request.param.stem), values)


@pytest.fixture(scope="module")
def layer_norm_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    path = next(path for path in CONFIGS if path.stem == "wav2vec2-large-960h-lv60-self")
    values = json.loads(path.read_text()) | SMALL
    return make_pair(tmp_path_factory.mktemp("ctc"), values)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05, "the outputs are all alike, so agreeing on them shows nothing"
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


def test_four_configs_of_both_families_are_compared() -> None:
    configs = [json.loads(path.read_text()) for path in CONFIGS]
    assert len(configs) == 4
    assert {config["feat_extract_norm"] for config in configs} == {"group", "layer"}
    assert {config["do_stable_layer_norm"] for config in configs} == {True, False}


@torch.no_grad()
def test_logits(pair: Pair) -> None:
    assert_close(pair.ours(pair.waves).logits, pair.theirs(pair.waves).logits)


@torch.no_grad()
def test_sdpa_gives_the_same_logits(pair: Pair) -> None:
    sdpa = AutoModelForCTC.from_pretrained(pair.folder, attn_implementation="sdpa")
    assert_close(sdpa(pair.waves).logits, pair.theirs(pair.waves).logits)


@torch.no_grad()
def test_feature_encoder(pair: Pair) -> None:
    theirs = pair.theirs.wav2vec2.feature_extractor(pair.waves)
    ours, lengths = pair.ours.wav2vec2.feature_extractor(pair.waves, torch.tensor([NUM_SAMPLES]))
    assert_close(ours, theirs.transpose(1, 2))
    assert lengths.tolist() == [theirs.shape[-1]]
    assert lengths.tolist() == pair.theirs._get_feat_extract_output_lengths(NUM_SAMPLES).reshape(-1).tolist()


@torch.no_grad()
def test_feature_projection(pair: Pair) -> None:
    features = torch.randn(1, 50, SMALL["conv_dim"][-1])
    projected, normed = pair.ours.wav2vec2.feature_projection(features)
    their_projected, their_normed = pair.theirs.wav2vec2.feature_projection(features)
    assert_close(projected, their_projected)
    assert_close(normed, their_normed)


@torch.no_grad()
def test_positional_convolution(pair: Pair) -> None:
    hidden = torch.randn(1, 50, SMALL["hidden_size"])
    assert_close(
        pair.ours.wav2vec2.encoder.pos_conv_embed(hidden), pair.theirs.wav2vec2.encoder.pos_conv_embed(hidden)
    )


@pytest.mark.parametrize("index", range(SMALL["num_hidden_layers"]))
@torch.no_grad()
def test_layer(pair: Pair, index: int) -> None:
    hidden = torch.randn(1, 50, SMALL["hidden_size"])
    ours, attention = pair.ours.wav2vec2.encoder.layers[index](hidden, None)
    assert_close(ours, pair.theirs.wav2vec2.encoder.layers[index](hidden))
    assert attention.shape == (1, 4, 50, 50)


@torch.no_grad()
def test_encoder(pair: Pair) -> None:
    hidden = torch.randn(1, 50, SMALL["hidden_size"])
    ours, _, _ = pair.ours.wav2vec2.encoder(hidden, None)
    assert_close(ours, pair.theirs.wav2vec2.encoder(hidden).last_hidden_state)


@torch.no_grad()
def test_hidden_states_and_attentions(pair: Pair) -> None:
    asked = {"output_hidden_states": True, "output_attentions": True}
    ours, theirs = pair.ours(pair.waves, **asked), pair.theirs(pair.waves, **asked)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == SMALL["num_hidden_layers"] + 1
    for our_state, their_state in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert_close(our_state, their_state)
    assert len(ours.attentions) == len(theirs.attentions) == SMALL["num_hidden_layers"]
    for our_attention, their_attention in zip(ours.attentions, theirs.attentions, strict=True):
        torch.testing.assert_close(our_attention, their_attention, atol=TOLERANCE, rtol=0)
    ours, theirs = pair.ours.wav2vec2(pair.waves), pair.theirs.wav2vec2(pair.waves)
    assert_close(ours.last_hidden_state, theirs.last_hidden_state)
    assert_close(ours.extract_features, theirs.extract_features)


@torch.no_grad()
def test_frames_masked_as_told(pair: Pair) -> None:
    num_frames = int(pair.ours.wav2vec2.num_frames(NUM_SAMPLES))
    masked = torch.rand(1, num_frames) < 0.3
    ours = pair.ours.wav2vec2(pair.waves, mask_time_indices=masked).last_hidden_state
    assert_close(ours, pair.theirs.wav2vec2(pair.waves, mask_time_indices=masked).last_hidden_state)
    assert (ours - pair.ours.wav2vec2(pair.waves).last_hidden_state).abs().max() > 0.1


@torch.no_grad()
def test_base_model_of_a_checkpoint_with_a_head(pair: Pair) -> None:
    base = Wav2Vec2Model.from_pretrained(pair.folder)
    assert_close(base(pair.waves).last_hidden_state, pair.theirs.wav2vec2(pair.waves).last_hidden_state)


@torch.no_grad()
def test_what_is_saved_here_transformers_loads(pair: Pair, tmp_path: Path) -> None:
    pair.ours.save_pretrained(tmp_path)
    reloaded, report = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert reloaded.dtype == torch.float32
    assert_close(pair.ours(pair.waves).logits, reloaded.eval()(pair.waves).logits)
    assert type(transformers.AutoModelForCTC.from_pretrained(tmp_path)) is transformers.Wav2Vec2ForCTC


@torch.no_grad()
def test_a_base_model_saved_here_transformers_loads(pair: Pair, tmp_path: Path) -> None:
    Wav2Vec2Model.from_pretrained(pair.folder).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Wav2Vec2Model"]
    reloaded, report = transformers.Wav2Vec2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_close(
        pair.ours.wav2vec2(pair.waves).last_hidden_state, reloaded.eval()(pair.waves).last_hidden_state
    )


def test_the_dtype_saved_is_the_one_of_the_weights(layer_norm_pair: Pair, tmp_path: Path) -> None:
    half, full = tmp_path / "half", tmp_path / "full"
    Wav2Vec2ForCTC.from_pretrained(layer_norm_pair.folder, dtype="float16").save_pretrained(half)
    assert transformers.Wav2Vec2ForCTC.from_pretrained(half).dtype == torch.float16
    # transformers believes the config, so one that was float16 must not stay so.
    config = json.loads((half / "config.json").read_text()) | {"torch_dtype": "float16"}
    (half / "config.json").write_text(json.dumps(config))
    Wav2Vec2ForCTC.from_pretrained(half).save_pretrained(full)
    assert transformers.Wav2Vec2ForCTC.from_pretrained(full).dtype == torch.float32
    assert "torch_dtype" not in json.loads((full / "config.json").read_text())


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "silu", "swish"])
@torch.no_grad()
def test_activations(tmp_path: Path, activation: str) -> None:
    values = json.loads(CONFIGS[0].read_text()) | SMALL | {"num_hidden_layers": 1}
    pair = make_pair(tmp_path, values | {"hidden_act": activation, "feat_extract_activation": activation})
    assert_close(pair.ours(pair.waves).logits, pair.theirs(pair.waves).logits)


@pytest.mark.parametrize("kernel_size", [15, 16])
@torch.no_grad()
def test_positional_kernels_odd_and_even(tmp_path: Path, kernel_size: int) -> None:
    values = json.loads(CONFIGS[0].read_text()) | SMALL | {"num_hidden_layers": 1}
    pair = make_pair(tmp_path, values | {"num_conv_pos_embeddings": kernel_size})
    assert_close(pair.ours(pair.waves).logits, pair.theirs(pair.waves).logits)


@pytest.mark.parametrize("conv_bias", [True, False])
@pytest.mark.parametrize(("norm", "stable"), [("layer", False), ("group", True)])
@torch.no_grad()
def test_mixed_families_and_another_epsilon(tmp_path: Path, norm: str, stable: bool, conv_bias: bool) -> None:
    changes = {"feat_extract_norm": norm, "do_stable_layer_norm": stable, "conv_bias": conv_bias}
    values = json.loads(CONFIGS[0].read_text()) | SMALL | changes | {"layer_norm_eps": 0.05}
    pair = make_pair(tmp_path, values)
    assert_close(pair.ours(pair.waves).logits, pair.theirs(pair.waves).logits)


def padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    waves = torch.randn(3, 12_000, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(3, 12_000, dtype=torch.long)
    for row, length in enumerate((12_000, 7_000, 9_001)):
        mask[row, :length] = 1
    return waves * mask, mask


@torch.no_grad()
def test_a_padded_batch_of_the_layer_norm_family(layer_norm_pair: Pair) -> None:
    waves, mask = padded_batch()
    ours, theirs = layer_norm_pair.ours(waves, mask).logits, layer_norm_pair.theirs(waves, mask).logits
    for row, frames in enumerate(layer_norm_pair.ours.wav2vec2.num_frames(mask.sum(-1)).tolist()):
        assert_close(ours[row, :frames], theirs[row, :frames])


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("zero_infinity", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_ctc_loss_and_its_gradients(
    layer_norm_pair: Pair, reduction: str, zero_infinity: bool, with_mask: bool
) -> None:
    waves, mask = padded_batch()
    labels = torch.tensor([[5, 6, 7, 8, 8], [9, 10, -100, -100, -100], [11, -100, -100, -100, -100]])
    losses, gradients = [], []
    for model in (layer_norm_pair.ours, layer_norm_pair.theirs):
        model.config.ctc_loss_reduction = reduction
        model.config.ctc_zero_infinity = zero_infinity
        model.zero_grad()
        loss = model(waves, mask if with_mask else None, labels=labels).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert losses[0] > 1
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        if name != "wav2vec2.masked_spec_embed":  # used in training mode alone
            torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize(("zero_infinity", "expected"), [(True, 0.0), (False, float("inf"))])
@torch.no_grad()
def test_ctc_loss_of_more_labels_than_frames(
    layer_norm_pair: Pair, zero_infinity: bool, expected: float
) -> None:
    labels = torch.randint(5, 30, (1, 100))
    for model in (layer_norm_pair.ours, layer_norm_pair.theirs):
        model.config.ctc_zero_infinity = zero_infinity
        assert model(layer_norm_pair.waves[:, :3_000], labels=labels).loss.item() == expected


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_mean_the_same_to_both(path: Path) -> None:
    values = json.loads(path.read_text())
    ours = Wav2Vec2Config.from_dict(values).to_dict()
    theirs = transformers.Wav2Vec2Config(**values).to_dict()
    shared = ours.keys() & theirs.keys() - {"output_hidden_size", "architectures", "transformers_version"}
    assert len(shared) > 50

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    assert {k: plain(ours[k]) for k in shared} == {k: plain(theirs[k]) for k in shared}


def test_defaults_are_those_of_transformers() -> None:
    ours, theirs = Wav2Vec2Config().to_dict(), transformers.Wav2Vec2Config().to_dict()
    for name, value in ours.items():
        if name != "output_hidden_size":  # transformers fills it in with hidden_size
            assert name in theirs
            assert value == (list(theirs[name]) if isinstance(theirs[name], tuple) else theirs[name]), name
