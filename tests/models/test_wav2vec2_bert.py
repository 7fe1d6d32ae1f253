"""The Wav2Vec2-BERT encoder by itself: rows that do not depend on their batch, masking, training, errors."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.errors import CheckpointError, ConfigError
from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.conformer import ConformerConvolution
from w2v_ray.models.wav2vec2_bert import Wav2Vec2BertModel

POSITIONS = ("rotary", "relative", "relative_key", None)
NO_DROPOUT = dict.fromkeys(("conformer_conv_dropout", "layerdrop"), 0.0)  # the others start at 0
WIDTH = 20


def tiny_config(**changes: Any) -> Wav2Vec2BertConfig:
    values: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "feature_projection_input_dim": WIDTH,
        "conv_depthwise_kernel_size": 7,
        "left_max_position_embeddings": 5,
        "right_max_position_embeddings": 2,
        "num_adapter_layers": 2,
        "output_hidden_size": 24,
    }
    return Wav2Vec2BertConfig(**values | changes)


def randomized(config: Wav2Vec2BertConfig, attn_implementation: str = "sdpa") -> Wav2Vec2BertModel:
    """Weights far from where they start, so that what a norm or bias lets through is seen."""
    torch.manual_seed(0)
    model = Wav2Vec2BertModel(config, attn_implementation=attn_implementation)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim == 1 else 0.12
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@cache
def tiny_model(positions: str | None, add_adapter: bool, attn_implementation: str) -> Wav2Vec2BertModel:
    config = tiny_config(
        position_embeddings_type=positions,
        add_adapter=add_adapter,
        use_intermediate_ffn_before_adapter=add_adapter,
    )
    return randomized(config, attn_implementation)


def features(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(frames, WIDTH, generator=torch.Generator().manual_seed(seed))


def batch_of(rows: list[torch.Tensor], fill: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    batch = torch.full((len(rows), longest, WIDTH), fill)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        batch[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return batch, mask


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("add_adapter", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    fill=st.sampled_from([0.0, 1.0, -30.0, float("nan")]),
    data=st.data(),
)
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(
    positions: str | None,
    add_adapter: bool,
    attn_implementation: str,
    lengths: list[int],
    fill: float,
    data: st.DataObject,
) -> None:
    model = tiny_model(positions, add_adapter, attn_implementation)
    order = data.draw(st.permutations(range(len(lengths))))
    rows = [features(lengths[i], seed=i) for i in order]
    batch, mask = batch_of(rows, fill)
    together = model(batch, mask, output_hidden_states=True)
    inside = model.frame_mask(mask, together.last_hidden_state.shape[1])
    for index, row in enumerate(rows):
        alone = model(row[None], output_hidden_states=True)
        frames = alone.last_hidden_state.shape[1]
        assert inside[index].tolist() == [True] * frames + [False] * (inside.shape[1] - frames)
        torch.testing.assert_close(
            together.last_hidden_state[index, :frames], alone.last_hidden_state[0], atol=3e-5, rtol=1e-5
        )
        for state, state_alone in zip(together.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(state[index, : len(row)], state_alone[0], atol=3e-5, rtol=1e-5)


@torch.no_grad()
def test_the_convolution_sees_nothing_that_comes_later() -> None:
    torch.manual_seed(0)
    convolution = ConformerConvolution(tiny_config()).eval()
    x_BLE = torch.randn(1, 20, 32)
    changed_BLE = x_BLE.clone()
    changed_BLE[:, 12:] = torch.randn(1, 8, 32)
    difference_L = (convolution(changed_BLE, None) - convolution(x_BLE, None)).abs().amax((0, 2))
    assert (difference_L[:12] == 0).all()
    assert (difference_L[12:] > 0.01).all()
    changed_BLE = x_BLE.clone()
    changed_BLE[:, 5] = torch.randn(1, 32)
    difference_L = (convolution(changed_BLE, None) - convolution(x_BLE, None)).abs().amax((0, 2))
    assert [i for i, value in enumerate(difference_L.tolist()) if value > 0] == list(range(5, 12))


@torch.no_grad()
def test_rotations_are_absolute_and_the_other_positions_relative() -> None:
    """Frames put behind an empty stretch: only what rotates before the projections notices where they are."""
    rows = features(10)
    for positions in POSITIONS:
        model = tiny_model(positions, False, "sdpa")
        shifted = torch.cat([torch.zeros(6, WIDTH), rows])[None]
        mask = torch.tensor([[0] * 6 + [1] * 10])
        difference = model(shifted, mask).last_hidden_state[0, 6:] - model(rows[None]).last_hidden_state[0]
        if positions == "rotary":
            assert difference.abs().max() > 0.01
        else:
            assert difference.abs().max() < 1e-4


@torch.no_grad()
def test_num_frames_is_what_the_adapter_gives() -> None:
    model = tiny_model("relative_key", True, "sdpa")
    given_frames = [model(features(n)[None]).last_hidden_state.shape[1] for n in range(1, 30)]
    assert model.num_frames(torch.arange(1, 30)).tolist() == given_frames
    assert given_frames[:9] == [1, 1, 1, 1, 2, 2, 2, 2, 3]
    assert int(model.num_frames(0)) == 0
    assert int(model.num_frames(17)) == 5
    assert int(model.num_frames(17, add_adapter=False)) == 17
    without = tiny_model("relative_key", False, "sdpa")
    assert without.num_frames(torch.tensor([0, 3, 17])).tolist() == [0, 3, 17]
    assert int(without.num_frames(17, add_adapter=True)) == 5


def test_no_frames_stay_none_whatever_the_adapter_pads() -> None:
    for kernel, stride in ((1, 2), (3, 8), (8, 8)):
        model = Wav2Vec2BertModel(
            tiny_config(add_adapter=True, adapter_kernel_size=kernel, adapter_stride=stride)
        )
        assert model.num_frames(torch.tensor([0])).tolist() == [0]
        assert model.frame_mask(torch.tensor([[0, 0], [1, 1]]), 1).tolist()[0] == [False]


@pytest.mark.parametrize("add_adapter", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_an_empty_row_does_not_spoil_the_others(positions: str | None, add_adapter: bool) -> None:
    for attn_implementation in ("eager", "sdpa"):
        model = tiny_model(positions, add_adapter, attn_implementation)
        batch, mask = batch_of([features(12), features(0)])
        together = model(batch, mask).last_hidden_state
        assert together.isfinite().all()
        torch.testing.assert_close(together[0], model(batch[:1]).last_hidden_state[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_mask_of_ones_is_no_mask() -> None:
    model, batch = tiny_model("relative_key", True, "sdpa"), torch.stack([features(9, 1), features(9, 2)])
    ones = torch.ones(2, 9, dtype=torch.long)
    assert torch.equal(model(batch, ones).last_hidden_state, model(batch).last_hidden_state)
    assert torch.equal(model(batch, ones.bool()).last_hidden_state, model(batch).last_hidden_state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_half_precision_keeps_its_dtype_and_stays_near(positions: str | None, dtype: torch.dtype) -> None:
    batch, mask = batch_of([features(30, 1), features(14, 2)])
    exact_model = tiny_model(positions, True, "sdpa")
    inside = exact_model.frame_mask(mask, int(exact_model.num_frames(30)))
    exact = exact_model(batch, mask).last_hidden_state[inside]
    model = Wav2Vec2BertModel(exact_model.config)
    model.load_state_dict(exact_model.state_dict())
    half = model.eval().to(dtype)(batch.to(dtype), mask).last_hidden_state[inside]
    assert half.dtype == dtype
    assert (half.float() - exact).abs().mean() < 0.05 * exact.std()


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_attentions_are_shares_of_the_frames_of_the_row(positions: str | None) -> None:
    model = tiny_model(positions, True, "eager")
    batch, mask = batch_of([features(20, 1), features(8, 2)])
    out = model(batch, mask, output_attentions=True)
    assert len(out.attentions) == 2
    for attention in out.attentions:
        assert attention.shape == (2, 4, 20, 20)
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4, 20))
        assert attention[1, :, :, 8:].abs().max() == 0


def test_attentions_of_a_kernel_without_them_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"attn_implementation='eager', it is 'sdpa'"):
        tiny_model(None, False, "sdpa")(features(5)[None], output_attentions=True)


@torch.no_grad()
def test_evaluation_is_deterministic() -> None:
    model, batch = tiny_model("relative_key", True, "sdpa"), features(12)[None]
    first = model(batch).last_hidden_state
    random.seed(99)
    torch.manual_seed(99)
    assert torch.equal(model(batch).last_hidden_state, first)


@pytest.mark.parametrize(
    "masks",
    [
        {"mask_time_prob": 0.5, "mask_time_length": 2, "mask_feature_prob": 0.0},
        {"mask_time_prob": 0.0, "mask_feature_prob": 0.5, "mask_feature_length": 4},
    ],
    ids=["time", "feature"],
)
@torch.no_grad()
def test_spec_augment_masks_in_training_alone(masks: dict[str, Any]) -> None:
    random.seed(0)
    model, batch = randomized(tiny_config(**NO_DROPOUT | masks)), features(40)[None]
    clean = model(batch).last_hidden_state
    model.train()
    assert not torch.allclose(model(batch).last_hidden_state, clean, atol=1e-3)
    model.config.apply_spec_augment = False
    torch.testing.assert_close(model(batch).last_hidden_state, clean)
    model.config.apply_spec_augment = True
    model.eval()
    assert torch.equal(model(batch).last_hidden_state, clean)


@torch.no_grad()
def test_spec_augment_puts_the_learned_mask_on_frames_of_the_row_alone() -> None:
    random.seed(0)
    model = randomized(tiny_config(**NO_DROPOUT, mask_time_prob=0.9, mask_time_length=3)).train()
    seen: list[torch.Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch, mask = batch_of([features(60, 1), features(30, 2)])
    model(batch, mask)
    masked_BL = (seen[0] == model.masked_spec_embed).all(-1)
    assert 0.3 < masked_BL[0].float().mean() < 0.95
    assert 0.3 < masked_BL[1, :30].float().mean() < 0.95
    assert not masked_BL[1, 30:].any()


@torch.no_grad()
def test_spec_augment_zeroes_the_same_features_in_all_frames() -> None:
    random.seed(0)
    changes = {"mask_time_prob": 0.0, "mask_feature_prob": 0.4, "mask_feature_length": 4}
    model = randomized(tiny_config(**NO_DROPOUT, **changes)).train()
    seen: list[torch.Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.stack([features(30, 1), features(30, 2)]))
    zero_BLE = seen[0] == 0
    assert torch.equal(zero_BLE.all(1), zero_BLE.any(1))
    assert 0 < zero_BLE.float().mean() < 0.6


def test_there_is_a_learned_mask_where_something_is_masked() -> None:
    config = tiny_config(mask_time_prob=0.0, mask_feature_prob=0.0)
    without = Wav2Vec2BertModel(config)
    assert "masked_spec_embed" not in without.state_dict()
    assert "masked_spec_embed" in Wav2Vec2BertModel(tiny_config()).state_dict()
    masked = torch.ones(1, 5, dtype=torch.bool)
    with pytest.raises(
        ConfigError, match="needs a learned mask, but mask_time_prob and mask_feature_prob are 0"
    ):
        without(features(5)[None], mask_time_indices=masked)


@torch.no_grad()
def test_layerdrop_skips_layers_in_training_alone() -> None:
    config = tiny_config(**NO_DROPOUT | {"layerdrop": 1.0}, mask_time_prob=0.0, add_adapter=True)
    model, batch = randomized(config), features(20)[None]
    clean = model(batch, output_hidden_states=True)
    assert not torch.allclose(clean.hidden_states[0], clean.hidden_states[1])
    assert clean.last_hidden_state.shape == (1, 5, 24)
    dropped = model.train()(batch, output_hidden_states=True)
    assert len(dropped.hidden_states) == 3
    assert torch.equal(dropped.hidden_states[0], dropped.hidden_states[2])
    assert dropped.last_hidden_state.shape == (1, 20, 24)


def test_training_reaches_every_weight() -> None:
    for positions in POSITIONS:
        config = tiny_config(
            **NO_DROPOUT,
            position_embeddings_type=positions,
            add_adapter=True,
            use_intermediate_ffn_before_adapter=True,
            mask_time_prob=0.5,
        )
        model = randomized(config).train()
        batch, mask = batch_of([features(30, 1), features(20, 2)])
        model(batch, mask).last_hidden_state.square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


def test_weights_start_as_those_of_transformers() -> None:
    for positions in ("relative", "relative_key"):
        values = {
            "hidden_size": 128,
            "num_hidden_layers": 1,
            "intermediate_size": 128,
            "initializer_range": 0.05,
            "output_hidden_size": 64,
            "add_adapter": True,
            "use_intermediate_ffn_before_adapter": True,
            "position_embeddings_type": positions,
        }
        torch.manual_seed(0)
        ours = Wav2Vec2BertModel(Wav2Vec2BertConfig(**values)).state_dict()
        theirs = transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig(**values)).state_dict()
        assert ours.keys() == theirs.keys()
        for name, weight in theirs.items():
            assert weight.shape == ours[name].shape, name
            if weight.std() == 0:
                assert torch.equal(ours[name], weight), name
            else:
                mean, spread = weight.mean().item(), weight.std().item()
                assert ours[name].mean().item() == pytest.approx(mean, abs=0.5 * spread), name
                assert ours[name].std().item() == pytest.approx(spread, rel=0.25), name


@torch.no_grad()
def test_what_is_saved_is_what_was_loaded(tmp_path: Path) -> None:
    model = tiny_model("relative", True, "sdpa")
    model.save_pretrained(tmp_path)
    loaded = Wav2Vec2BertModel.from_pretrained(tmp_path)
    assert not loaded.training
    assert loaded.config.to_dict().items() >= model.config.to_dict().items()
    assert torch.equal(loaded(features(9)[None])[0], model(features(9)[None])[0])


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    tiny_model("relative_key", False, "sdpa").save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"relative_key"', '"relative"'))
    message = r"lacks encoder.*linear_pos.* and has encoder.*distance_embedding.*, which the model does not"
    with pytest.raises(CheckpointError, match=message):
        Wav2Vec2BertModel.from_pretrained(tmp_path)
    wider = text.replace('"left_max_position_embeddings": 5', '"left_max_position_embeddings": 6')
    (tmp_path / "config.json").write_text(wider)
    with pytest.raises(CheckpointError, match=r"of another shape \(encoder.*distance_embedding"):
        Wav2Vec2BertModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("option", ["hidden_act", "adapter_act"])
def test_an_unknown_activation_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match="activation is 'sine', expected one of gelu, "):
        Wav2Vec2BertModel(tiny_config(add_adapter=True, **{option: "sine"}))


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_flex_attention_gives_the_same(positions: str | None) -> None:
    batch, mask = batch_of([features(12, 1), features(7, 2)])
    flex, sdpa = (tiny_model(positions, True, name) for name in ("flex_attention", "sdpa"))
    inside = sdpa.frame_mask(mask, int(sdpa.num_frames(12)))
    ours, expected = flex(batch, mask).last_hidden_state, sdpa(batch, mask).last_hidden_state
    torch.testing.assert_close(ours[inside], expected[inside], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["relative", "relative_key"])
def test_flash_attention_is_refused_where_positions_add_a_bias(positions: str) -> None:
    config = tiny_config(position_embeddings_type=positions)
    with pytest.raises(
        ConfigError, match="'flash_attention_2', which cannot take the bias per query and key"
    ):
        Wav2Vec2BertModel(config, attn_implementation="flash_attention_2")
    chosen = Wav2Vec2BertModel(config, attn_implementation="auto")
    assert chosen.attn_implementation == "sdpa"
    assert "adds a bias" in chosen.attn_reason


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match="attn_implementation is 'fast', expected one of "):
        Wav2Vec2BertModel(tiny_config(), attn_implementation="fast")
