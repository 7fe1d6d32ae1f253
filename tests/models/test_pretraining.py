"""Self-supervised training against transformers: outputs, losses, gradients, and how negatives are drawn."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from w2v_ray.errors import ConfigError
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.masking import spec_augment_mask
from w2v_ray.models.pretraining import Wav2Vec2ForPreTraining, sample_negative_indices
from w2v_ray.models.wav2vec2 import Wav2Vec2Model

NO_DROPOUT = dict.fromkeys(
    (
        "hidden_dropout",
        "activation_dropout",
        "attention_dropout",
        "feat_proj_dropout",
        "feat_quantizer_dropout",
        "layerdrop",
    ),
    0.0,
)
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_codevectors_per_group": 9,
    "codevector_dim": 12,
    "proj_codevector_dim": 10,
    "num_negatives": 7,
    "diversity_loss_weight": 0.3,
    "contrastive_logits_temperature": 0.2,
}
FAMILIES = {
    "group": {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False},
    "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}
FRAMES = 31
OUTPUTS = ("projected_states", "projected_quantized_states", "codevector_perplexity")
LOSSES = ("loss", "contrastive_loss", "diversity_loss")


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    yield
    logger.setLevel(level)


def make_pair(folder: Path, family: str, **changes: Any) -> tuple[Any, Wav2Vec2ForPreTraining]:
    torch.manual_seed(0)
    values = TINY | FAMILIES[family] | NO_DROPOUT | changes
    theirs = transformers.Wav2Vec2ForPreTraining(
        transformers.Wav2Vec2Config(**values, attn_implementation="eager")
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            # Small biases, or all frames of so deep and narrow a model get the same code.
            spread = 0.03 if parameter.ndim == 1 else 0.08
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    theirs.save_pretrained(folder)
    return theirs, Wav2Vec2ForPreTraining.from_pretrained(folder, attn_implementation="eager")


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    random.seed(2)
    mask = spec_augment_mask(3, FRAMES, prob=0.5, span=3, min_spans=2)
    negatives = sample_negative_indices(mask, TINY["num_negatives"], generator=generator)
    waves = torch.randn(3, 10_000, generator=generator)
    return {"input_values": waves, "mask_time_indices": mask, "sampled_negative_indices": negatives}


def assert_same(ours: Any, theirs: Any) -> None:
    for name in OUTPUTS:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=0, msg=name)
    for name in LOSSES:
        torch.testing.assert_close(ours[name], theirs[name], atol=0, rtol=1e-4, msg=name)
    assert theirs.contrastive_loss > 1
    assert theirs.projected_states.std() > 0.05


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_outputs_and_losses(family: str, groups: int, tmp_path: Path) -> None:
    theirs, ours = make_pair(tmp_path, family, num_codevector_groups=groups)
    assert_same(ours(**batch()), theirs(**batch()))
    values = batch()["input_values"]
    without = ours(values)
    assert without.loss is without.contrastive_loss is without.diversity_loss is None
    for name in OUTPUTS:
        torch.testing.assert_close(without[name], theirs(values)[name], atol=1e-4, rtol=0, msg=name)


@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_training_draws_the_same_codes_and_gradients(temperature: float, tmp_path: Path) -> None:
    theirs, ours = make_pair(tmp_path, "layer")
    results = []
    for model in (theirs, ours):
        model.train()
        model.set_gumbel_temperature(temperature)
        torch.manual_seed(3)
        output = model(**batch())
        output.loss.backward()
        results.append((output, {name: p.grad for name, p in model.named_parameters()}))
    assert_same(results[1][0], results[0][0])
    assert results[0][1].keys() == results[1][1].keys()
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, atol=2e-3, rtol=1e-3, msg=name)


@torch.no_grad()
def test_negatives_with_the_code_of_the_true_frame_do_not_count(tmp_path: Path) -> None:
    theirs, ours = make_pair(tmp_path, "layer", num_codevectors_per_group=2)
    inputs = batch()
    codes = ours(**inputs).projected_quantized_states.flatten(0, 1)
    drawn = inputs["sampled_negative_indices"][inputs["mask_time_indices"]]
    true = inputs["mask_time_indices"].flatten().nonzero()
    share = (codes[drawn] - codes[true]).abs().amax(-1).lt(1e-6).float().mean()
    assert 0.05 < share < 0.99
    expected = theirs(**inputs)
    assert_same(ours(**inputs), expected)
    # A matrix product may differ in the last bit from frame to frame. transformers then takes a negative
    # with the code of the true frame for another one, which the codes that ours compares do not show.
    last_bits = 1e-7 * torch.randn(codes.shape, generator=torch.Generator().manual_seed(4))
    for model in (theirs, ours):
        project = model.project_q.forward
        model.project_q.forward = lambda x, project=project: project(x) + last_bits.view(*x.shape[:2], -1)
    assert theirs(**inputs).contrastive_loss > 1.1 * expected.contrastive_loss
    assert_same(ours(**inputs), expected)


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_an_adapter_behind_the_encoder(stride: int, tmp_path: Path) -> None:
    theirs, ours = make_pair(tmp_path, "layer", add_adapter=True, adapter_stride=stride)
    values = batch()["input_values"]
    for name in OUTPUTS:
        torch.testing.assert_close(ours(values)[name], theirs(values)[name], atol=1e-4, rtol=0, msg=name)
    mask = torch.ones_like(values[:1])
    mask[0, 5_000:] = 0
    alone = ours(values[:1, :5_000]).codevector_perplexity  # of frames before the adapter, as codes are
    torch.testing.assert_close(ours(values[:1], mask).codevector_perplexity, alone)
    assert (ours(values[:1]).codevector_perplexity - alone).abs() > 0.01
    if stride == 1:  # as many frames as codes
        assert_same(ours(**batch()), theirs(**batch()))
        return
    with pytest.raises(ValueError, match=r"^the adapter gives 4 frames for 31 codes, expected as many"):
        ours(**batch())


@torch.no_grad()
def test_perplexity_counts_true_frames_alone(tmp_path: Path) -> None:
    _, ours = make_pair(tmp_path, "group")
    values = batch()["input_values"][:1]
    padded = torch.cat([values, torch.zeros(1, 4_000)], dim=1)
    mask = torch.cat([torch.ones_like(values), torch.zeros(1, 4_000)], dim=1).long()
    alone, together = ours(values), ours(padded, mask)
    torch.testing.assert_close(together.codevector_perplexity, alone.codevector_perplexity)
    assert (ours(padded).codevector_perplexity - alone.codevector_perplexity).abs() > 0.01
    torch.testing.assert_close(
        together.projected_states[:, :FRAMES], alone.projected_states, atol=1e-5, rtol=1e-4
    )


@torch.no_grad()
def test_saved_here_and_loaded_by_transformers(tmp_path: Path) -> None:
    theirs, ours = make_pair(tmp_path, "group")
    ours.save_pretrained(tmp_path / "saved")
    reloaded, report = transformers.Wav2Vec2ForPreTraining.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(report.values()), report
    assert_same(ours(**batch()), reloaded.eval()(**batch()))
    base = Wav2Vec2Model.from_pretrained(tmp_path)
    values = batch()["input_values"]
    torch.testing.assert_close(
        base(values).last_hidden_state, theirs.wav2vec2(values).last_hidden_state, atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_what_else_is_returned(tmp_path: Path) -> None:
    theirs, ours = make_pair(tmp_path, "layer")
    asked = {"output_hidden_states": True, "output_attentions": True}
    named = ours(**batch(), **asked)
    assert named.keys() == list(theirs(**batch(), **asked).keys())
    assert (len(named.hidden_states), len(named.attentions)) == (3, 2)
    plain = ours(**batch(), **asked, return_dict=False)
    assert isinstance(plain, tuple)
    assert torch.equal(plain[0], named.loss)


def test_negatives_are_other_masked_frames_of_the_row() -> None:
    mask = torch.zeros(3, 20, dtype=torch.bool)
    mask[0, [2, 3, 11]] = True
    mask[1, 5:9] = True
    drawn = sample_negative_indices(mask, 500, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 20, 500)
    for row, frame in mask.nonzero().tolist():
        others = set((mask[row].nonzero()[:, 0] + 20 * row).tolist()) - {20 * row + frame}
        assert set(drawn[row, frame].tolist()) == others  # all of them, in 500 draws
    again = sample_negative_indices(mask, 500, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


def test_a_single_masked_frame_has_no_negatives() -> None:
    with pytest.raises(ValueError, match=r"^row 1 has one masked frame, expected none or at least two"):
        sample_negative_indices(torch.tensor([[True, True], [False, True]]), 3)


def test_negatives_need_a_mask() -> None:
    model = Wav2Vec2ForPreTraining(Wav2Vec2Config(**TINY))  # type: ignore[arg-type]
    inputs = batch()
    del inputs["mask_time_indices"]
    with pytest.raises(ValueError, match=r"^sampled_negative_indices are given without mask_time_indices"):
        model(**inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"add_adapter": True, "output_hidden_size": 24},
            "output_hidden_size is 24, but Wav2Vec2ForPreTraining needs an adapter that keeps hidden_size",
        ),
        ({"num_codevector_groups": 5}, r"codevector_dim is 12, expected a multiple of num_codevector_groups"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Wav2Vec2ForPreTraining(Wav2Vec2Config(**TINY | changes))  # type: ignore[arg-type]


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = Wav2Vec2ForPreTraining(Wav2Vec2Config(**TINY | NO_DROPOUT)).train()  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = model(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_projections_start_as_published() -> None:
    torch.manual_seed(0)
    model = Wav2Vec2ForPreTraining(Wav2Vec2Config(**TINY | {"num_codevectors_per_group": 200}))  # type: ignore[arg-type]
    assert model.quantizer.weight_proj.weight.std().item() == pytest.approx(1, rel=0.05)
    assert 0 <= model.quantizer.codevectors.min() < 0.01 < 0.99 < model.quantizer.codevectors.max() <= 1
    assert model.project_hid.weight.abs().max().item() == pytest.approx(32**-0.5, rel=0.05)
    assert model.project_q.bias.abs().max() > 0
