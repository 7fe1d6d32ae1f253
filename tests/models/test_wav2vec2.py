"""The models by themselves: rows that do not depend on their batch, masking, training, errors."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from w2v_ray.errors import ConfigError
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.heads import Wav2Vec2ForCTC
from w2v_ray.models.wav2vec2 import Wav2Vec2Model

FAMILIES = {
    "group": {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False},
    "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}
NO_DROPOUT = dict.fromkeys(
    (
        "hidden_dropout",
        "activation_dropout",
        "attention_dropout",
        "feat_proj_dropout",
        "final_dropout",
        "layerdrop",
    ),
    0.0,
)


def tiny_config(family: str, **changes: Any) -> Wav2Vec2Config:
    values: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    return Wav2Vec2Config(**values | FAMILIES[family] | changes)


def randomized(model: torch.nn.Module, seed: int = 0) -> Any:
    """Weights far from where they start, so that what a norm or bias lets through is seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim == 1 else 0.06
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@cache
def tiny_model(family: str, attn_implementation: str) -> Wav2Vec2ForCTC:
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(tiny_config(family), attn_implementation=attn_implementation)
    return randomized(model)


def wave(num_samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def batch_of(waves: list[torch.Tensor], fill: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, waves))
    values = torch.full((len(waves), longest), fill)
    mask = torch.zeros(len(waves), longest, dtype=torch.long)
    for row, samples in enumerate(waves):
        values[row, : len(samples)] = samples
        mask[row, : len(samples)] = 1
    return values, mask


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(400, 7_000), min_size=2, max_size=5),
    fill=st.sampled_from([0.0, 1.0, -30.0]),
    data=st.data(),
)
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(
    family: str, attn_implementation: str, lengths: list[int], fill: float, data: st.DataObject
) -> None:
    model = tiny_model(family, attn_implementation)
    order = data.draw(st.permutations(range(len(lengths))))
    waves = [wave(lengths[i], seed=i) for i in order]
    values, mask = batch_of(waves, fill)
    together = model(values, mask, output_hidden_states=True)
    for row, samples in enumerate(waves):
        alone = model(samples[None], output_hidden_states=True)
        frames = alone.logits.shape[1]
        torch.testing.assert_close(together.logits[row, :frames], alone.logits[0], atol=1e-5, rtol=1e-5)
        for state, state_alone in zip(together.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(state[row, :frames], state_alone[0], atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_real_speech_does_not_depend_on_its_batch(family: str, shared_data: Path) -> None:
    import soundfile

    files = sorted((shared_data / "libri").rglob("*.flac"))[:4]
    waves = []
    for file, seconds in zip(files, (5, 2, 3, 1), strict=True):
        samples = torch.from_numpy(soundfile.read(file, dtype="float32", frames=16_000 * seconds)[0])
        waves.append((samples - samples.mean()) / samples.std())
    model = tiny_model(family, "sdpa")
    values, mask = batch_of(waves)
    together = model(values, mask).logits
    for row, samples in enumerate(waves):
        alone = model(samples[None]).logits[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_group_norm_without_lengths_would_depend_on_padding() -> None:
    model = tiny_model("group", "sdpa")
    values, _ = batch_of([wave(2_000), wave(6_000)])
    frames = int(model.wav2vec2.num_frames(2_000))
    difference = model(values).logits[0, :frames] - model(values[:1, :2_000]).logits[0]
    assert difference.abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_mask_of_ones_is_no_mask(family: str) -> None:
    model, values = tiny_model(family, "sdpa"), wave(4_000).reshape(2, 2_000)
    assert torch.equal(model(values, torch.ones_like(values)).logits, model(values).logits)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_kernels_agree(family: str) -> None:
    values, mask = batch_of([wave(5_000, 1), wave(3_100, 2), wave(400, 3)])
    eager, sdpa = (tiny_model(family, kernel)(values, mask).logits for kernel in ("eager", "sdpa"))
    for row, frames in enumerate(tiny_model(family, "sdpa").wav2vec2.num_frames(mask.sum(-1)).tolist()):
        torch.testing.assert_close(eager[row, :frames], sdpa[row, :frames], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_group_norm_counts_frames_beyond_what_float16_can() -> None:
    layer = Wav2Vec2Model(tiny_config("group", conv_dim=(4,) * 7)).feature_extractor.conv_layers[0].half()
    samples = wave(400_000).half()
    alone, _ = layer(samples[None, None], None)
    padded = torch.cat([samples, torch.zeros(50_000, dtype=torch.float16)])
    batched, lengths = layer(padded[None, None], torch.tensor([len(samples)]))
    frames = alone.shape[-1]
    assert lengths.item() == frames > torch.finfo(torch.float16).max
    torch.testing.assert_close(batched[..., :frames], alone, atol=4e-3, rtol=4e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_half_precision_keeps_its_dtype_and_stays_near(family: str, dtype: torch.dtype) -> None:
    values, mask = batch_of([wave(4_000, 1), wave(2_500, 2)])
    exact = tiny_model(family, "sdpa")(values, mask).logits
    model = Wav2Vec2ForCTC(tiny_config(family))
    model.load_state_dict(tiny_model(family, "sdpa").state_dict())
    half = model.eval().to(dtype)(values.to(dtype), mask).logits
    assert half.dtype == dtype
    for row, frames in enumerate(model.wav2vec2.num_frames(mask.sum(-1)).tolist()):
        assert (half[row, :frames].float() - exact[row, :frames]).abs().mean() < 0.1 * exact[row].std()


@torch.no_grad()
def test_a_row_too_short_for_a_frame_does_not_spoil_the_others() -> None:
    model = tiny_model("layer", "sdpa")
    values, mask = batch_of([wave(3_000, 1), wave(200, 2)])
    together = model(values, mask).logits
    assert model.wav2vec2.num_frames(mask.sum(-1)).tolist() == [9, 0]
    torch.testing.assert_close(together[0], model(values[:1]).logits[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_num_frames_is_what_the_convolutions_give() -> None:
    model = tiny_model("layer", "sdpa").wav2vec2
    lengths = [400, 401, 719, 720, 721, 1_039, 1_040, 2_345, 16_000]
    given_frames = [model.feature_extractor(wave(n)[None], None)[0].shape[1] for n in lengths]
    assert model.num_frames(torch.tensor(lengths)).tolist() == given_frames
    assert given_frames[:4] == [1, 1, 1, 2]
    assert model.num_frames(torch.tensor([0, 1, 9, 10, 399])).tolist() == [0] * 5
    assert int(model.num_frames(16_000)) == 49


@torch.no_grad()
def test_attentions_are_shares_of_the_frames_of_the_row() -> None:
    model = tiny_model("layer", "eager")
    values, mask = batch_of([wave(5_000, 1), wave(2_000, 2)])
    out = model(values, mask, output_attentions=True)
    frames = model.wav2vec2.num_frames(mask.sum(-1)).tolist()
    assert len(out.attentions) == 2
    for attention in out.attentions:
        assert attention.shape == (2, 4, frames[0], frames[0])
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4, frames[0]))
        assert attention[1, :, :, frames[1] :].abs().max() == 0


def test_attentions_of_a_kernel_without_them_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"attn_implementation='eager', it is 'sdpa'"):
        tiny_model("layer", "sdpa")(wave(2_000)[None], output_attentions=True)


@torch.no_grad()
def test_outputs_are_read_by_name_key_and_position() -> None:
    model, values = tiny_model("layer", "sdpa"), wave(2_000)[None]
    out = model(values)
    assert out.keys() == ["logits"]
    assert list(out) == ["logits"]
    assert out[0] is out["logits"] is out.logits
    assert out.loss is None
    out = model(values, labels=torch.tensor([[5]]), output_hidden_states=True)
    assert out.keys() == ["loss", "logits", "hidden_states"]
    assert out[:2] == (out.loss, out.logits)
    assert out.to_tuple() == (out.loss, out.logits, out.hidden_states)
    base = model.wav2vec2(values)
    assert base.keys() == ["last_hidden_state", "extract_features"]
    assert base.last_hidden_state.shape == (1, 6, 32)
    assert base.extract_features.shape == (1, 6, 16)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_evaluation_is_deterministic(family: str) -> None:
    model, values = tiny_model(family, "sdpa"), wave(4_000)[None]
    first = model(values).logits
    random.seed(99)
    torch.manual_seed(99)
    assert torch.equal(model(values).logits, first)


def training_model(**changes: Any) -> Wav2Vec2ForCTC:
    torch.manual_seed(0)
    model: Wav2Vec2ForCTC = randomized(Wav2Vec2ForCTC(tiny_config("layer", **NO_DROPOUT | changes)))
    return model


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
    model, values = training_model(**masks), wave(8_000)[None]
    clean = model(values).logits
    model.train()
    assert not torch.allclose(model(values).logits, clean, atol=1e-3)
    model.config.apply_spec_augment = False
    torch.testing.assert_close(model(values).logits, clean)
    model.config.apply_spec_augment = True
    model.eval()
    assert torch.equal(model(values).logits, clean)


@torch.no_grad()
def test_spec_augment_puts_the_learned_mask_on_frames_of_the_row_alone() -> None:
    model = training_model(mask_time_prob=0.9, mask_time_length=3).wav2vec2.train()
    seen: list[torch.Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    values, mask = batch_of([wave(16_000, 1), wave(8_000, 2)])
    model(values, mask)
    masked_BL = (seen[0] == model.masked_spec_embed).all(-1)
    frames = model.num_frames(mask.sum(-1)).tolist()
    assert 0.3 < masked_BL[0].float().mean() < 0.9
    assert 0.3 < masked_BL[1, : frames[1]].float().mean() < 0.9
    assert not masked_BL[1, frames[1] :].any()


@torch.no_grad()
def test_spec_augment_zeroes_the_same_features_in_all_frames() -> None:
    model = training_model(mask_time_prob=0.0, mask_feature_prob=0.4, mask_feature_length=4).wav2vec2.train()
    seen: list[torch.Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(wave(16_000).reshape(2, 8_000))
    zero_BLE = seen[0] == 0
    assert torch.equal(zero_BLE.all(1), zero_BLE.any(1))
    assert 0 < zero_BLE.float().mean() < 0.6


@torch.no_grad()
def test_at_least_so_many_spans_are_masked() -> None:
    masks = {
        "mask_time_prob": 1e-9,
        "mask_time_length": 2,
        "mask_feature_prob": 1e-9,
        "mask_feature_length": 3,
    }
    counts = {"mask_time_min_masks": 4, "mask_feature_min_masks": 5}
    for changes, frames, features in (
        (counts, range(5, 9), range(7, 16)),
        (dict.fromkeys(counts, 0), [0], [0]),
    ):
        model = training_model(**masks, **changes).wav2vec2.train()
        model.masked_spec_embed.fill_(7.0)
        seen: list[torch.Tensor] = []
        model.encoder.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        torch.manual_seed(0)
        random.seed(0)
        model(wave(16_000)[None])
        zero_E = (seen[0][0] == 0).all(0)
        assert int(zero_E.sum()) in features
        assert int((seen[0][0, :, ~zero_E] == 7).all(-1).sum()) in frames


@torch.no_grad()
def test_layerdrop_skips_layers_in_training_alone() -> None:
    model = training_model(layerdrop=1.0, mask_time_prob=0.0).wav2vec2
    values = wave(4_000)[None]
    states = model(values, output_hidden_states=True).hidden_states
    assert not torch.allclose(states[0], states[1])
    model.train()
    states = model(values, output_hidden_states=True).hidden_states
    assert len(states) == 3
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[1], states[2])


@torch.no_grad()
def test_layerdrop_skips_as_often_as_it_says() -> None:
    model = training_model(layerdrop=0.3, mask_time_prob=0.0).wav2vec2.train()
    runs = [0]

    def count(*_: object) -> None:
        runs[0] += 1

    for layer in model.encoder.layers:
        layer.register_forward_pre_hook(count)
    torch.manual_seed(1)
    for _ in range(300):
        model.encoder(torch.zeros(1, 2, 32), None)
    assert 0.63 < runs[0] / 600 < 0.77  # 0.7, give or take three and a half standard deviations


@torch.no_grad()
def test_dropout_is_on_in_training() -> None:
    model = training_model(mask_time_prob=0.0, hidden_dropout=0.3).train()
    values = wave(4_000)[None]
    assert not torch.allclose(model(values).logits, model(values).logits)


def test_a_frozen_feature_encoder_gets_no_gradient() -> None:
    model = training_model().train()
    model.freeze_feature_encoder()
    model(wave(4_000)[None], labels=torch.tensor([[5, 6]])).loss.backward()
    frozen = dict(model.wav2vec2.feature_extractor.named_parameters(prefix="wav2vec2.feature_extractor"))
    assert len(frozen) == 7 * 4
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in frozen), name


@pytest.mark.parametrize("family", FAMILIES)
def test_training_learns_a_padded_batch(family: str) -> None:
    torch.manual_seed(0)
    random.seed(0)
    model = Wav2Vec2ForCTC(tiny_config(family, **NO_DROPOUT, mask_time_prob=0.05)).train()
    values, mask = batch_of([wave(6_000, 1), wave(4_000, 2)])
    labels = torch.tensor([[5, 6, 7], [8, 9, -100]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        loss = model(values, mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_a_label_outside_the_vocabulary_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"a label is 32, expected ids below vocab_size \(32\)"):
        tiny_model("layer", "sdpa")(wave(4_000)[None], labels=torch.tensor([[5, 32]]))


def test_weights_start_as_published() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "num_conv_pos_embeddings": 64, "initializer_range": 0.05}
    model = Wav2Vec2ForCTC(tiny_config("layer", **sizes))
    conv = model.wav2vec2.encoder.pos_conv_embed.conv
    assert conv.weight.std().item() == pytest.approx(2 * (64 * 256) ** -0.5, rel=0.02)
    assert conv.bias.abs().max() == 0
    linear = model.wav2vec2.encoder.layers[0].attention.q_proj
    assert linear.weight.std().item() == pytest.approx(0.05, rel=0.02)
    assert Wav2Vec2Config().initializer_range == 0.02
    projection = model.wav2vec2.feature_projection.projection
    assert projection.weight.abs().max().item() == pytest.approx(16**-0.5, rel=0.02)
    assert model.lm_head.bias.abs().max() == 0
    assert model.wav2vec2.feature_extractor.conv_layers[1].conv.weight.std().item() == pytest.approx(
        (2 / (16 * 3)) ** 0.5, rel=0.1
    )


def test_there_is_a_learned_mask_where_something_is_masked() -> None:
    without = Wav2Vec2Model(tiny_config("layer", mask_time_prob=0.0, mask_feature_prob=0.0))
    assert "masked_spec_embed" not in without.state_dict()
    assert "masked_spec_embed" in Wav2Vec2Model(tiny_config("layer")).state_dict()


@pytest.mark.parametrize("option", ["hidden_act", "feat_extract_activation"])
def test_an_unknown_activation_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=r"^activation is 'gleu', expected one of gelu, "):
        Wav2Vec2ForCTC(tiny_config("layer", **{option: "gleu"}))


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match="'flash', expected one of eager, sdpa"):
        Wav2Vec2Model(tiny_config("layer"), attn_implementation="flash")
