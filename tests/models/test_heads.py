"""The heads by themselves: rows that do not depend on their batch, what is trained, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.errors import ConfigError
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.heads import (
    Wav2Vec2ForAudioFrameClassification,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
)
from w2v_ray.models.wav2vec2 import Wav2Vec2Model
from w2v_ray.models.xvector import Wav2Vec2ForXVector

CLASSIFIERS = [Wav2Vec2ForSequenceClassification, Wav2Vec2ForAudioFrameClassification, Wav2Vec2ForXVector]
HEADS = [Wav2Vec2ForCTC, *CLASSIFIERS]
SHORTEST = 9 * 320 + 400  # samples that give X vectors of these configs two frames


def tiny_config(**changes: Any) -> Wav2Vec2Config:
    values: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "classifier_proj_size": 12,
        "tdnn_dim": (24, 20),
        "tdnn_kernel": (5, 3),
        "tdnn_dilation": (1, 2),
        "xvector_output_dim": 16,
        "num_labels": 3,
    }
    return Wav2Vec2Config(**values | changes)


def tiny_model(cls: Any, **changes: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(tiny_config(**changes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += (0.3 if parameter.ndim == 1 else 0.06) * torch.randn(parameter.shape)
    return model.eval()


def wave(num_samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def batch_of(lengths: list[int], fill: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.full((len(lengths), max(lengths)), fill)
    mask = torch.zeros(values.shape, dtype=torch.long)
    for row, length in enumerate(lengths):
        values[row, :length] = wave(length, seed=row)
        mask[row, :length] = 1
    return values, mask


def result(output: Any) -> torch.Tensor:
    found = output.embeddings if hasattr(output, "embeddings") else output.logits
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("cls", CLASSIFIERS)
@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(SHORTEST, 9_000), min_size=2, max_size=4),
    fill=st.sampled_from([0.0, 1.0, -30.0]),
)
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(
    cls: Any, weighted: bool, lengths: list[int], fill: float
) -> None:
    model = tiny_model(cls, use_weighted_layer_sum=weighted)
    together = result(model(*batch_of(lengths, fill)))
    for row, length in enumerate(lengths):
        alone = result(model(wave(length, seed=row)[None]))[0]
        ours = together[row, : len(alone)] if together.ndim == 3 else together[row]
        torch.testing.assert_close(ours, alone, atol=3e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(400, 9_000), min_size=2, max_size=4),
    layers=st.integers(1, 3),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
)
@torch.no_grad()
def test_a_row_on_an_adapter_does_not_depend_on_its_batch(
    lengths: list[int], layers: int, kernel: int, stride: int
) -> None:
    changes = {"num_adapter_layers": layers, "adapter_kernel_size": kernel, "adapter_stride": stride}
    model = tiny_model(Wav2Vec2Model, add_adapter=True, **changes)
    frames = model.num_frames(torch.tensor(lengths)).tolist()
    values, mask = batch_of(lengths)
    if max(frames) == 0:
        return
    together = model(values, mask).last_hidden_state
    assert together.shape[1] == max(frames)
    assert model.frame_mask(mask, max(frames)).sum(1).tolist() == frames
    for row, length in enumerate(lengths):
        if frames[row]:
            alone = model(wave(length, seed=row)[None]).last_hidden_state[0]
            torch.testing.assert_close(together[row, : frames[row]], alone, atol=3e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_too_short_for_the_time_delay_network_are_not_numbers_and_harm_no_other() -> None:
    model = tiny_model(Wav2Vec2ForXVector)
    values, mask = batch_of([6_000, SHORTEST, SHORTEST - 320, 400])
    embeddings = model(values, mask).embeddings
    assert embeddings[:2].isfinite().all()
    assert embeddings[2:].isnan().all()
    assert model(values[3:, :400]).embeddings.isnan().all()
    torch.testing.assert_close(embeddings[0], model(values[:1]).embeddings[0], atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("cls", HEADS)
def test_a_frozen_base_model_gets_no_gradient(cls: Any) -> None:
    model = cls(tiny_config()).train()
    model.freeze_base_model()
    labels = {Wav2Vec2ForCTC: torch.tensor([[5, 6]]), Wav2Vec2ForAudioFrameClassification: torch.ones(1, 18)}
    model(wave(6_000)[None], labels=labels.get(cls, torch.ones(1)).long()).loss.backward()
    assert model.base_model is model.wav2vec2
    assert any(parameter.grad is not None for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        if name.startswith("wav2vec2."):
            assert parameter.grad is None, name


@pytest.mark.parametrize("cls", [*HEADS, Wav2Vec2Model])
def test_a_frozen_feature_encoder_learns_nothing(cls: Any) -> None:
    model = cls(tiny_config())
    model.freeze_feature_encoder()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in model.state_dict() if "feature_extractor.conv_layers" in name}


@pytest.mark.parametrize("cls", [*HEADS, Wav2Vec2Model])
@torch.no_grad()
def test_a_tuple_holds_what_is_set(cls: Any) -> None:
    model, values = tiny_model(cls), wave(6_000)[None]
    named = model(values, output_hidden_states=True)
    plain = model(values, output_hidden_states=True, return_dict=False)
    assert isinstance(plain, tuple)
    assert len(plain) == len(named.keys())
    assert torch.equal(plain[0], named[0])
    assert isinstance(model(values, return_dict=None), type(named))


@pytest.mark.parametrize("cls", CLASSIFIERS)
def test_training_learns_a_padded_batch(cls: Any) -> None:
    torch.manual_seed(0)
    off = dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "layerdrop"), 0.0)
    model = cls(tiny_config(use_weighted_layer_sum=True, mask_time_prob=0.0, **off)).train()
    values, mask = batch_of([6_000, 4_000, 5_000])
    labels = torch.tensor([2, 0, 1])
    if cls is Wav2Vec2ForAudioFrameClassification:
        labels = labels[:, None].expand(-1, 18)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        loss = model(values, mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert model.layer_weights.std() > 0


@torch.no_grad()
def test_labels_of_frames_in_every_form() -> None:
    model = tiny_model(Wav2Vec2ForAudioFrameClassification)
    values, mask = batch_of([6_000, 4_000])
    logits = model(values, mask).logits
    classes = torch.randint(3, logits.shape[:2], generator=torch.Generator().manual_seed(1))
    classes[0, 3:7] = -100
    counted = [*logits[0, :3], *logits[0, 7:], *logits[1, : int(model.wav2vec2.num_frames(4_000))]]
    truth = torch.cat([classes[0, :3], classes[0, 7:], classes[1, : int(model.wav2vec2.num_frames(4_000))]])
    expected = torch.nn.functional.cross_entropy(torch.stack(counted), truth)
    torch.testing.assert_close(model(values, mask, labels=classes).loss, expected)
    model.config.problem_type = "multi_label_classification"
    several = torch.randint(2, logits.shape, generator=torch.Generator().manual_seed(2))
    valid = model.wav2vec2.frame_mask(mask, logits.shape[1])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[valid], several[valid].float())
    torch.testing.assert_close(model(values, mask, labels=several).loss, expected)
    model.config.problem_type = "regression"
    expected = torch.nn.functional.mse_loss(logits[valid], several[valid].float())
    torch.testing.assert_close(model(values, mask, labels=several).loss, expected)
    with pytest.raises(ValueError, match=r"labels have shape \(2, 5\), expected \(2, 18\) or \(2, 18, 3\)"):
        model(values, mask, labels=classes[:, :5])


@torch.no_grad()
def test_one_class_per_frame_is_regression() -> None:
    model = tiny_model(Wav2Vec2ForAudioFrameClassification, num_labels=1)
    values = wave(6_000)[None]
    logits, truth = model(values).logits, torch.linspace(-1, 1, 18)[None]
    expected = torch.nn.functional.mse_loss(logits[..., 0], truth)
    torch.testing.assert_close(model(values, labels=truth).loss, expected)
    torch.testing.assert_close(model(values, labels=truth[..., None]).loss, expected)


@torch.no_grad()
def test_blanks_among_the_labels_are_padding() -> None:
    model = tiny_model(Wav2Vec2ForCTC)
    values = wave(6_000)[None]
    padded = model(values, labels=torch.tensor([[5, 6, 0, 0]])).loss
    assert padded == model(values, labels=torch.tensor([[5, 6, -100, -100]])).loss
    assert padded == model(values, labels=torch.tensor([[5, 6]])).loss


@pytest.mark.parametrize("cls", CLASSIFIERS[:2])
def test_classifiers_refuse_an_adapter(cls: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^add_adapter is True, which {cls.__name__} does not support"):
        cls(tiny_config(add_adapter=True))


def test_an_adapter_of_another_width_does_not_fit_x_vectors() -> None:
    Wav2Vec2ForXVector(tiny_config(add_adapter=True, output_hidden_size=32))
    Wav2Vec2ForXVector(tiny_config(add_adapter=True, output_hidden_size=24, use_weighted_layer_sum=True))
    with pytest.raises(ConfigError, match=r"^output_hidden_size is 24, but Wav2Vec2ForXVector needs"):
        Wav2Vec2ForXVector(tiny_config(add_adapter=True, output_hidden_size=24))


def test_masking_without_a_learned_mask_is_refused() -> None:
    model = tiny_model(Wav2Vec2Model, mask_time_prob=0.0)
    with pytest.raises(ConfigError, match=r"^mask_time_indices needs a learned mask, but mask_time_prob"):
        model(wave(6_000)[None], mask_time_indices=torch.ones(1, 18, dtype=torch.bool))


@torch.no_grad()
def test_masking_can_be_switched_off() -> None:
    model, values = tiny_model(Wav2Vec2Model, apply_spec_augment=False), wave(6_000)[None]
    masked = model(values, mask_time_indices=torch.ones(1, 18, dtype=torch.bool)).last_hidden_state
    assert torch.equal(masked, model(values).last_hidden_state)


def test_heads_start_as_published() -> None:
    torch.manual_seed(0)
    model = Wav2Vec2ForXVector(tiny_config(use_weighted_layer_sum=True, tdnn_dim=(240, 200)))
    for linear in (model.projector, model.tdnn[1].kernel, model.feature_extractor, model.classifier):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert linear.bias.abs().max() == 0
    assert model.objective.weight.std().item() == pytest.approx(1, rel=0.3)
    assert model.layer_weights.tolist() == pytest.approx([1 / 3] * 3)
