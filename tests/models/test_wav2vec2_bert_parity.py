"""The Wav2Vec2-BERT encoder against transformers, the oracle: every option, random weights, both ways."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from w2v_ray.models.wav2vec2_bert import Wav2Vec2BertModel

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "feature_projection_input_dim": 20,
    "conv_depthwise_kernel_size": 7,
    # Less than the batches are long, so that clipping and growing are compared.
    "left_max_position_embeddings": 5,
    "right_max_position_embeddings": 2,
    "max_source_positions": 9,
}
POSITIONS = ("rotary", "relative", "relative_key", None)
ADAPTERS: dict[str, dict[str, Any]] = {
    "no_adapter": {"add_adapter": False},
    "no_adapter_other_width": {"add_adapter": False, "output_hidden_size": 24},
    "adapter": {"add_adapter": True},
    "adapter_ffn": {"add_adapter": True, "use_intermediate_ffn_before_adapter": True},
    "adapter_other_width": {"add_adapter": True, "output_hidden_size": 24, "num_adapter_layers": 2},
    "adapter_ffn_other_width": {
        "add_adapter": True,
        "output_hidden_size": 24,
        "num_adapter_layers": 3,
        "use_intermediate_ffn_before_adapter": True,
    },
}
LENGTHS = (23, 11, 1, 18)
TOLERANCE = 1e-4


@dataclass
class Pair:
    theirs: Any
    ours: Wav2Vec2BertModel
    folder: Path


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
            spread = 0.3 if parameter.ndim == 1 else 0.15
            parameter += spread * torch.randn(parameter.shape, generator=generator)


def make_pair(folder: Path, values: dict[str, Any]) -> Pair:
    torch.manual_seed(0)
    config = transformers.Wav2Vec2BertConfig(**TINY | values, attn_implementation="eager")
    theirs = transformers.Wav2Vec2BertModel(config).eval()
    randomize(theirs, seed=1)
    theirs.save_pretrained(folder)
    return Pair(theirs, Wav2Vec2BertModel.from_pretrained(folder, attn_implementation="eager"), folder)


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """Makes a pair of models of the options that differ from TINY; each once."""
    made: dict[str, Pair] = {}

    def make(**values: Any) -> Pair:
        key = json.dumps(values, sort_keys=True)
        if key not in made:
            made[key] = make_pair(tmp_path_factory.mktemp("pair"), values)
        return made[key]

    return make


@pytest.fixture(params=POSITIONS, ids=str)
def positions(request: pytest.FixtureRequest) -> str | None:
    value: str | None = request.param
    return value


@pytest.fixture(params=ADAPTERS)
def pair(request: pytest.FixtureRequest, positions: str | None, pair_of: Callable[..., Pair]) -> Pair:
    return pair_of(position_embeddings_type=positions, **ADAPTERS[request.param])


def features(frames: int, seed: int = 2, width: int = 20) -> torch.Tensor:
    return torch.randn(1, frames, width, generator=torch.Generator().manual_seed(seed))


def ragged() -> tuple[torch.Tensor, torch.Tensor]:
    batch = torch.cat([features(max(LENGTHS), seed) for seed in range(len(LENGTHS))])
    mask = (torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]).long()
    return torch.where(mask[..., None] == 1, batch, 3.0), mask  # padding that would show


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05, "the outputs are all alike, so agreeing on them shows nothing"
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_outputs(pair: Pair) -> None:
    ours, theirs = pair.ours(features(23)), pair.theirs(features(23))
    assert_close(ours.last_hidden_state, theirs.last_hidden_state)
    assert_close(ours.extract_features, theirs.extract_features)
    assert ours.keys() == list(theirs.keys())


@torch.no_grad()
def test_sdpa_gives_the_same(pair: Pair) -> None:
    sdpa = Wav2Vec2BertModel.from_pretrained(pair.folder, attn_implementation="sdpa")
    batch, mask = ragged()
    frames = int(sdpa.num_frames(23))
    inside = sdpa.frame_mask(mask, frames)
    ours, eager = sdpa(batch, mask).last_hidden_state, pair.ours(batch, mask).last_hidden_state
    assert_close(ours[inside], eager[inside])


@torch.no_grad()
def test_hidden_states_attentions_and_tuples(pair: Pair) -> None:
    asked = {"output_hidden_states": True, "output_attentions": True}
    ours, theirs = pair.ours(features(23), **asked), pair.theirs(features(23), **asked)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 3
    for our_state, their_state in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert_close(our_state, their_state)
    assert len(ours.attentions) == len(theirs.attentions) == 2
    for our_attention, their_attention in zip(ours.attentions, theirs.attentions, strict=True):
        torch.testing.assert_close(our_attention, their_attention, atol=TOLERANCE, rtol=0)
    as_tuple = pair.ours(features(23), **asked, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == len(pair.theirs(features(23), **asked, return_dict=False)) == 4
    assert torch.equal(as_tuple[0], ours.last_hidden_state)


@torch.no_grad()
def test_rows_of_a_ragged_batch_are_those_of_transformers_alone(pair: Pair) -> None:
    batch, mask = ragged()
    ours = pair.ours(batch, mask).last_hidden_state
    inside = pair.ours.frame_mask(mask, ours.shape[1])
    for row, length in enumerate(LENGTHS):
        alone = pair.theirs(batch[row : row + 1, :length]).last_hidden_state[0]
        assert alone.shape[0] == int(pair.ours.num_frames(length)) == int(inside[row].sum())
        assert_close(ours[row, : len(alone)], alone)
        masked = pair.theirs(batch[row : row + 1, :length], attention_mask=mask[row : row + 1, :length])
        assert_close(ours[row, : len(alone)], masked.last_hidden_state[0])


@torch.no_grad()
def test_a_ragged_batch_is_that_of_transformers(positions: str | None, pair_of: Callable[..., Pair]) -> None:
    pair = pair_of(position_embeddings_type=positions, add_adapter=False)
    batch, mask = ragged()
    asked = {"output_hidden_states": True, "output_attentions": True}
    ours, theirs = pair.ours(batch, mask, **asked), pair.theirs(batch, attention_mask=mask, **asked)
    inside = pair.ours.frame_mask(mask, max(LENGTHS))
    assert torch.equal(inside, mask.bool())
    assert_close(ours.last_hidden_state[inside], theirs.last_hidden_state[inside])
    for our_state, their_state in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert_close(our_state[inside], their_state[inside])
    for our_attention, their_attention in zip(ours.attentions, theirs.attentions, strict=True):
        queries = inside[:, None, :, None]
        torch.testing.assert_close(our_attention * queries, their_attention * queries, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_transformers_lets_padding_into_the_adapter(pair_of: Callable[..., Pair]) -> None:
    """Why rows are compared alone: its strided convolutions read the frames behind the end of a row."""
    pair = pair_of(position_embeddings_type="relative_key", **ADAPTERS["adapter"])
    batch, mask = ragged()
    theirs = pair.theirs(batch, attention_mask=mask).last_hidden_state[1]
    alone = pair.theirs(batch[1:2, : LENGTHS[1]]).last_hidden_state[0]
    assert (theirs[: len(alone)] - alone).abs().max() > 0.1
    ours = pair.ours(batch, mask).last_hidden_state[1]
    assert_close(ours[: len(alone)], alone)


@pytest.mark.parametrize("index", range(TINY["num_hidden_layers"]))
@torch.no_grad()
def test_modules_of_a_layer(positions: str | None, index: int, pair_of: Callable[..., Pair]) -> None:
    pair = pair_of(position_embeddings_type=positions, add_adapter=False)
    ours, theirs = pair.ours.encoder.layers[index], pair.theirs.encoder.layers[index]
    hidden = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(5))
    assert_close(ours.ffn1(hidden), theirs.ffn1(hidden))
    assert_close(ours.ffn2(hidden), theirs.ffn2(hidden))
    mask = torch.arange(12)[None] < 8
    for valid in (None, mask):
        assert_close(ours.conv_module(hidden, valid), theirs.conv_module(hidden, attention_mask=valid))


@torch.no_grad()
def test_modules_around_the_layers(positions: str | None, pair_of: Callable[..., Pair]) -> None:
    pair = pair_of(position_embeddings_type=positions, **ADAPTERS["adapter_ffn_other_width"])
    for ours, theirs in zip(
        pair.ours.feature_projection(features(12)), pair.theirs.feature_projection(features(12)), strict=True
    ):
        assert_close(ours, theirs)
    hidden = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(5))
    assert_close(pair.ours.encoder(hidden, None)[0], pair.theirs.encoder(hidden).last_hidden_state)
    assert_close(pair.ours.intermediate_ffn(hidden), pair.theirs.intermediate_ffn(hidden))
    assert_close(pair.ours.adapter(hidden, None), pair.theirs.adapter(hidden))
    shorter = torch.randn(1, 12, 24, generator=torch.Generator().manual_seed(6))
    for ours, theirs in zip(pair.ours.adapter.layers, pair.theirs.adapter.layers, strict=True):
        assert_close(ours(shorter, None, None), theirs(shorter))


@torch.no_grad()
def test_what_is_saved_here_transformers_loads(pair: Pair, tmp_path: Path) -> None:
    pair.ours.save_pretrained(tmp_path)
    reloaded, report = transformers.Wav2Vec2BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_close(pair.ours(features(23)).last_hidden_state, reloaded.eval()(features(23)).last_hidden_state)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Wav2Vec2BertModel"]


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
@torch.no_grad()
def test_adapter_kernels_and_strides(kernel: int, stride: int, pair_of: Callable[..., Pair]) -> None:
    pair = pair_of(
        add_adapter=True,
        adapter_kernel_size=kernel,
        adapter_stride=stride,
        num_hidden_layers=1,
        num_adapter_layers=2,
    )
    theirs = pair.theirs(features(23)).last_hidden_state
    assert_close(pair.ours(features(23)).last_hidden_state, theirs)
    assert int(pair.ours.num_frames(23)) == theirs.shape[1]
    if kernel // 2 == stride // 2:  # elsewhere the formula of transformers is not about its convolutions
        lengths = torch.arange(1, 40)
        assert torch.equal(
            pair.ours.num_frames(lengths), pair.theirs._get_feat_extract_output_lengths(lengths)
        )
        mask = torch.arange(23)[None] < torch.tensor([23, 7, 12])[:, None]
        frames = theirs.shape[1]
        expected = pair.theirs._get_feature_vector_attention_mask(frames, mask.long())
        assert torch.equal(pair.ours.frame_mask(mask.long(), frames), expected)


@pytest.mark.parametrize(
    "changes",
    [
        *({"hidden_act": name, "adapter_act": name} for name in ("gelu", "relu", "swish", "gelu_new")),
        {"hidden_act": "tanh", "adapter_act": "gelu_fast"},
        {"hidden_act": "prelu", "adapter_act": "prelu"},
        {"layer_norm_eps": 0.05},
        {"conv_depthwise_kernel_size": 1},
        {"conv_depthwise_kernel_size": 31},
        {"num_attention_heads": 1},
        {"num_attention_heads": 16},
        {"num_hidden_layers": 1, "num_adapter_layers": 4},
        {"num_adapter_layers": 0, "output_hidden_size": 24},
        {"mask_time_prob": 0.0, "mask_feature_prob": 0.0},
        {"apply_spec_augment": False},
        {"left_max_position_embeddings": 0, "right_max_position_embeddings": 0},
        {"left_max_position_embeddings": 64, "right_max_position_embeddings": 8},
        {"position_embeddings_type": "relative", "max_source_positions": 500},
        {"position_embeddings_type": "rotary", "rotary_embedding_base": 50},
    ],
    ids=str,
)
@torch.no_grad()
def test_other_options(changes: dict[str, Any], pair_of: Callable[..., Pair], tmp_path: Path) -> None:
    pair = pair_of(add_adapter=True, use_intermediate_ffn_before_adapter=True, **changes)
    batch, mask = ragged()
    ours = pair.ours(batch, mask).last_hidden_state
    for row, length in enumerate(LENGTHS):
        alone = pair.theirs(batch[row : row + 1, :length]).last_hidden_state[0]
        assert_close(ours[row, : len(alone)], alone)
    pair.ours.save_pretrained(tmp_path)
    reloaded, report = transformers.Wav2Vec2BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_close(reloaded.eval()(batch[:1]).last_hidden_state, ours[:1])


@torch.no_grad()
def test_selu_which_the_pages_name_and_transformers_lacks(
    pair_of: Callable[..., Pair], tmp_path: Path
) -> None:
    assert "selu" not in transformers.activations.ACT2FN
    theirs = pair_of(**ADAPTERS["adapter"]).theirs
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {
        "hidden_act": "selu",
        "adapter_act": "selu",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = theirs(features(23)).last_hidden_state
    modules = [module for module in theirs.modules() if hasattr(module, "intermediate_act_fn")]
    modules += [layer.conv_module for layer in theirs.encoder.layers]
    names = ["intermediate_act_fn" if hasattr(m, "intermediate_act_fn") else "activation" for m in modules]
    kept = [getattr(module, name) for module, name in zip(modules, names, strict=True)]
    for module, name in zip(modules, names, strict=True):
        setattr(module, name, torch.nn.SELU())
    expected = theirs(features(23)).last_hidden_state
    for module, name, function in zip(modules, names, kept, strict=True):
        setattr(module, name, function)
    assert_close(Wav2Vec2BertModel.from_pretrained(tmp_path)(features(23)).last_hidden_state, expected)
    assert (expected - before).abs().max() > 0.1


@pytest.mark.parametrize("apply_spec_augment", [True, False])
@torch.no_grad()
def test_frames_masked_as_told(apply_spec_augment: bool, pair_of: Callable[..., Pair]) -> None:
    pair = pair_of(apply_spec_augment=apply_spec_augment)
    batch, mask = ragged()
    masked = torch.rand(mask.shape, generator=torch.Generator().manual_seed(8)) < 0.4
    ours = pair.ours(batch, mask, mask_time_indices=masked).last_hidden_state
    theirs = pair.theirs(batch, attention_mask=mask, mask_time_indices=masked).last_hidden_state
    inside = mask.bool()
    assert_close(ours[inside], theirs[inside])
    difference = (ours - pair.ours(batch, mask).last_hidden_state)[inside].abs().max()
    assert difference > 0.1 if apply_spec_augment else difference == 0


def test_training_drops_what_transformers_drops(positions: str | None, pair_of: Callable[..., Pair]) -> None:
    """From one seed, both draw the same numbers in the same order: every dropout and layer drop agrees."""
    pair = pair_of(
        position_embeddings_type=positions,
        **ADAPTERS["adapter_ffn_other_width"],
        num_hidden_layers=4,
        hidden_dropout=0.12,
        activation_dropout=0.14,
        attention_dropout=0.16,
        feat_proj_dropout=0.18,
        conformer_conv_dropout=0.22,
        layerdrop=0.4,
    )
    masked = torch.rand(1, 23, generator=torch.Generator().manual_seed(8)) < 0.4
    shapes, gradients = set(), []
    for seed in range(6):
        results = []
        for model in (pair.ours, pair.theirs):
            model.train()
            torch.manual_seed(seed)
            results.append(model(features(23), mask_time_indices=masked).last_hidden_state)
            model.eval()
        assert_close(*results)
        shapes.add(results[0].shape)
    assert len(shapes) > 1, "no layer of the adapter was dropped"
    for model, result in zip((pair.ours, pair.theirs), results, strict=True):
        model.zero_grad()
        result.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        if gradient is None:  # of a layer that was dropped
            assert gradients[1][name] is None
        else:
            torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-4, msg=name)


@torch.no_grad()
def test_defaults_made_narrow() -> None:
    """The published model but for its widths and depth: 64 and 8 positions, 31 frames of convolution."""
    narrow = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    torch.manual_seed(0)
    theirs = transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig(**narrow)).eval()
    randomize(theirs, seed=1)
    ours = Wav2Vec2BertModel(Wav2Vec2BertModel.config_class(**narrow)).eval()
    ours.load_state_dict(theirs.state_dict())
    batch = features(150, width=160)
    assert_close(ours(batch).last_hidden_state, theirs(batch).last_hidden_state)
    mask = torch.arange(150)[None] < 140
    assert_close(
        ours(batch, mask).last_hidden_state[:, :140],
        theirs(batch, attention_mask=mask.long()).last_hidden_state[:, :140],
    )
