"""The heads on Wav2Vec2-BERT against transformers: outputs, losses and files, with and without padding."""

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
from torch.nn import functional as F

from w2v_ray.errors import ConfigError
from w2v_ray.models import auto, heads, xvector
from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.wav2vec2_bert import Wav2Vec2BertModel

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "feature_projection_input_dim": 20,
    "conv_depthwise_kernel_size": 7,
    "left_max_position_embeddings": 5,
    "right_max_position_embeddings": 2,
    "vocab_size": 12,
    "num_labels": 5,
    "classifier_proj_size": 16,
    "tdnn_dim": [16, 12, 20],
    "tdnn_kernel": [3, 2, 1],
    "tdnn_dilation": [2, 3, 1],
    "xvector_output_dim": 14,
}
CLASSES = {
    "Wav2Vec2BertForCTC": heads.Wav2Vec2BertForCTC,
    "Wav2Vec2BertForSequenceClassification": heads.Wav2Vec2BertForSequenceClassification,
    "Wav2Vec2BertForAudioFrameClassification": heads.Wav2Vec2BertForAudioFrameClassification,
    "Wav2Vec2BertForXVector": xvector.Wav2Vec2BertForXVector,
}
CTC, SEQUENCE, FRAMES, XVECTOR = CLASSES
WEIGHTED = {"use_weighted_layer_sum": True}
ADAPTER = {"add_adapter": True, "num_adapter_layers": 2}
FFN = {"use_intermediate_ffn_before_adapter": True, "output_hidden_size": 24}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    (CTC, {}),
    (CTC, ADAPTER),
    (CTC, ADAPTER | FFN),
    (CTC, {"output_hidden_size": 24}),
    (SEQUENCE, {}),
    (SEQUENCE, WEIGHTED),
    (FRAMES, {}),
    (FRAMES, WEIGHTED),
    (XVECTOR, {}),
    (XVECTOR, WEIGHTED),
    (XVECTOR, ADAPTER),
]
POSITIONS = ("rotary", "relative", "relative_key", None)
LENGTHS = (60, 37, 50)  # two layers of the adapter leave enough for the x-vector's network
TOLERANCE = 1e-4


@dataclass
class Pair:
    theirs: Any
    ours: Any
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
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim == 1 else 0.15
            parameter += spread * torch.randn(parameter.shape, generator=generator)


def make_pair(folder: Path, name: str, values: dict[str, Any]) -> Pair:
    torch.manual_seed(0)
    config = transformers.Wav2Vec2BertConfig(**TINY | values, attn_implementation="eager")
    theirs = getattr(transformers, name)(config).eval()
    randomize(theirs, seed=1)
    theirs.save_pretrained(folder)
    return Pair(theirs, CLASSES[name].from_pretrained(folder, attn_implementation="eager"), folder)


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """Makes a pair of models of a class and of the options that differ from TINY; each once."""
    made: dict[str, Pair] = {}

    def make(name: str, **values: Any) -> Pair:
        key = name + json.dumps(values, sort_keys=True)
        if key not in made:
            made[key] = make_pair(tmp_path_factory.mktemp("pair"), name, values)
        return made[key]

    return make


def variant_name(variant: tuple[str, dict[str, Any]]) -> str:
    return variant[0].removeprefix("Wav2Vec2BertFor") + "".join(f"-{option}" for option in variant[1])


@pytest.fixture(params=VARIANTS, ids=variant_name)
def variant(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    value: tuple[str, dict[str, Any]] = request.param
    return value


@pytest.fixture
def pair(variant: tuple[str, dict[str, Any]], pair_of: Callable[..., Pair]) -> Pair:
    return pair_of(variant[0], **variant[1])


def ragged() -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(LENGTHS)
    batch = torch.randn(len(LENGTHS), longest, 20, generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(longest)[None] < torch.tensor(LENGTHS)[:, None]).long()
    return torch.where(mask[..., None] == 1, batch, 3.0), mask  # padding that would show


def rows() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each row of the batch without its padding."""
    batch, mask = ragged()
    for row, length in enumerate(LENGTHS):
        yield batch[row : row + 1, :length], mask[row : row + 1, :length]


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.02, "the outputs are all alike, so agreeing on them shows nothing"
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


def assert_loss(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.ndim == 0
    assert ours > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
@torch.no_grad()
def test_outputs(
    variant: tuple[str, dict[str, Any]], positions: str | None, pair_of: Callable[..., Pair]
) -> None:
    pair = pair_of(variant[0], **variant[1], position_embeddings_type=positions)
    batch, _ = ragged()
    ours, theirs = pair.ours(batch), pair.theirs(batch)
    assert ours.keys() == list(theirs.keys())
    for name in ours:
        assert_close(ours[name], theirs[name])
    sdpa = CLASSES[variant[0]].from_pretrained(pair.folder, attn_implementation="sdpa")
    assert_close(sdpa(batch).logits, theirs.logits)


@torch.no_grad()
def test_rows_of_a_ragged_batch_are_those_of_transformers_alone(pair: Pair) -> None:
    batch, mask = ragged()
    ours = pair.ours(batch, mask)
    for index, (row, _) in enumerate(rows()):
        alone = pair.theirs(row)
        for name in ours:
            frames = slice(alone[name].shape[1]) if ours[name].ndim == 3 else slice(None)
            assert_close(ours[name][index][frames], alone[name][0])


@pytest.mark.parametrize(
    ("name", "values"), [variant for variant in VARIANTS if "add_adapter" not in variant[1]], ids=str
)
@torch.no_grad()
def test_a_ragged_batch_is_that_of_transformers(
    name: str, values: dict[str, Any], pair_of: Callable[..., Pair]
) -> None:
    pair = pair_of(name, **values)
    batch, mask = ragged()
    ours, theirs = pair.ours(batch, mask), pair.theirs(batch, attention_mask=mask)
    if name == XVECTOR:  # transformers pools a longer stretch of the shorter rows than they have
        assert_close(ours.embeddings[0], theirs.embeddings[0])
        assert (ours.embeddings[1] - theirs.embeddings[1]).abs().max() > 10 * TOLERANCE
    elif name == SEQUENCE:
        assert_close(ours.logits, theirs.logits)
    else:
        assert_close(ours.logits[mask.bool()], theirs.logits[mask.bool()])


@torch.no_grad()
def test_hidden_states_attentions_and_tuples(pair: Pair) -> None:
    batch, _ = ragged()
    asked = {"output_hidden_states": True, "output_attentions": True}
    ours, theirs = pair.ours(batch, **asked), pair.theirs(batch, **asked)
    assert ours.keys() == list(theirs.keys())
    assert len(ours.hidden_states) == 3
    for our_state, their_state in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert_close(our_state, their_state)
    assert len(ours.attentions) == 2
    for our_attention, their_attention in zip(ours.attentions, theirs.attentions, strict=True):
        torch.testing.assert_close(our_attention, their_attention, atol=TOLERANCE, rtol=0)
    as_tuple = pair.ours(batch, return_dict=False)
    their_tuple = pair.theirs(batch, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == len(their_tuple)
    assert_close(as_tuple[0], their_tuple[0])


@torch.no_grad()
def test_what_is_saved_here_transformers_loads(
    variant: tuple[str, dict[str, Any]], pair: Pair, tmp_path: Path
) -> None:
    pair.ours.save_pretrained(tmp_path)
    their_class = getattr(transformers, variant[0])
    reloaded, report = their_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    batch, _ = ragged()
    assert_close(pair.ours(batch).logits, reloaded.eval()(batch).logits)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [variant[0]]


@torch.no_grad()
def test_the_encoder_of_a_checkpoint_with_a_head(pair: Pair) -> None:
    batch, mask = ragged()
    encoder = Wav2Vec2BertModel.from_pretrained(pair.folder)
    theirs = pair.theirs.wav2vec2_bert(batch).last_hidden_state
    assert_close(encoder(batch).last_hidden_state, theirs)
    assert torch.equal(encoder.frame_mask(mask, 60), pair.ours.wav2vec2_bert.frame_mask(mask, 60))


def test_the_auto_classes_know_the_family(pair_of: Callable[..., Pair]) -> None:
    classes = {
        CTC: auto.AutoModelForCTC,
        SEQUENCE: auto.AutoModelForAudioClassification,
        FRAMES: auto.AutoModelForAudioFrameClassification,
        XVECTOR: auto.AutoModelForAudioXVector,
    }
    for name, auto_class in classes.items():
        folder = pair_of(name).folder
        assert type(auto_class.from_pretrained(folder)) is CLASSES[name]
        assert type(auto.AutoModel.from_pretrained(folder)) is Wav2Vec2BertModel


LABELS = torch.tensor([[5, 6, 7, 8, 8], [9, 10, -100, -100, -100], [11, -100, -100, -100, -100]])


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("zero_infinity", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_ctc_loss_and_its_gradients(
    reduction: str, zero_infinity: bool, with_mask: bool, pair_of: Callable[..., Pair]
) -> None:
    pair = pair_of(CTC, ctc_loss_reduction=reduction, ctc_zero_infinity=zero_infinity)
    batch, mask = ragged()
    losses, gradients = [], []
    for model in (pair.ours, pair.theirs):
        model.zero_grad()
        loss = model(batch, attention_mask=mask if with_mask else None, labels=LABELS).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert_loss(*losses)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        if name != "wav2vec2_bert.masked_spec_embed":  # used in training mode alone
            torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=2e-3, msg=name)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@torch.no_grad()
def test_ctc_loss_behind_an_adapter_is_that_of_the_rows_alone(
    reduction: str, pair_of: Callable[..., Pair]
) -> None:
    pair = pair_of(CTC, **ADAPTER, **FFN, ctc_loss_reduction=reduction)
    batch, mask = ragged()
    alone = [
        pair.theirs(row, attention_mask=row_mask, labels=LABELS[index : index + 1]).loss
        for index, (row, row_mask) in enumerate(rows())
    ]
    expected = torch.stack(alone).sum() if reduction == "sum" else torch.stack(alone).mean()
    assert_loss(pair.ours(batch, mask, labels=LABELS).loss, expected)
    assert_loss(pair.ours(batch, labels=LABELS).loss, pair.theirs(batch, labels=LABELS).loss)


@pytest.mark.parametrize(("zero_infinity", "expected"), [(True, 0.0), (False, float("inf"))])
@torch.no_grad()
def test_ctc_loss_of_more_labels_than_frames(
    zero_infinity: bool, expected: float, pair_of: Callable[..., Pair]
) -> None:
    pair = pair_of(CTC, ctc_zero_infinity=zero_infinity)
    labels = torch.randint(1, 12, (1, 90))
    for model in (pair.ours, pair.theirs):
        assert model(ragged()[0][:1], labels=labels).loss.item() == expected


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("values", [{}, WEIGHTED], ids=str)
@torch.no_grad()
def test_sequence_losses(values: dict[str, Any], with_mask: bool, pair_of: Callable[..., Pair]) -> None:
    pair = pair_of(SEQUENCE, **values)
    batch, mask = ragged()
    given = {"attention_mask": mask if with_mask else None}
    labels = torch.tensor([4, 0, 2])
    theirs = pair.theirs(batch, **given, labels=labels)
    assert_loss(pair.ours(batch, **given, labels=labels).loss, theirs.loss)
    # The pages document these two, which transformers has for other models and not for this one.
    several = torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]])
    expected = F.binary_cross_entropy_with_logits(theirs.logits, several)
    assert_loss(pair.ours(batch, **given, labels=several).loss, expected)


@pytest.mark.parametrize(
    ("problem", "num_labels", "labels"),
    [
        ("single_label_classification", 5, torch.tensor([4, 0, 2])),
        ("multi_label_classification", 5, torch.eye(5)[:3]),
        ("multi_label_classification", 5, torch.eye(5, dtype=torch.long)[:3]),
        ("regression", 1, torch.tensor([0.5, -1.0, 2.0])),
        (None, 1, torch.tensor([0.5, -1.0, 2.0])),
        ("regression", 5, torch.arange(15.0).reshape(3, 5)),
    ],
)
@torch.no_grad()
def test_problem_types(
    problem: str | None, num_labels: int, labels: torch.Tensor, pair_of: Callable[..., Pair]
) -> None:
    pair = pair_of(SEQUENCE, num_labels=num_labels, problem_type=problem)
    batch, mask = ragged()
    logits = pair.theirs(batch, attention_mask=mask).logits
    if problem == "single_label_classification":
        expected = pair.theirs(batch, attention_mask=mask, labels=labels).loss
    elif problem == "multi_label_classification":
        expected = F.binary_cross_entropy_with_logits(logits, labels.float())
    else:
        expected = F.mse_loss(logits.squeeze(-1), labels)
    assert_loss(pair.ours(batch, mask, labels=labels).loss, expected)


@pytest.mark.parametrize("values", [{}, WEIGHTED], ids=str)
@torch.no_grad()
def test_frame_losses(values: dict[str, Any], pair_of: Callable[..., Pair]) -> None:
    pair = pair_of(FRAMES, **values)
    batch, mask = ragged()
    classes = torch.randint(0, 5, (3, 60), generator=torch.Generator().manual_seed(4))
    labels = F.one_hot(classes, 5)
    theirs = pair.theirs(batch, labels=labels)
    assert_loss(pair.ours(batch, labels=labels).loss, theirs.loss)
    assert_loss(pair.ours(batch, labels=classes).loss, theirs.loss)
    # transformers counts the frames of the padding, too.
    logits = pair.theirs(batch, attention_mask=mask).logits
    expected = F.cross_entropy(logits[mask.bool()], classes[mask.bool()])
    assert_loss(pair.ours(batch, mask, labels=labels).loss, expected)


@pytest.mark.parametrize("values", [{}, WEIGHTED, ADAPTER], ids=str)
@torch.no_grad()
def test_xvector_loss(values: dict[str, Any], pair_of: Callable[..., Pair]) -> None:
    pair = pair_of(XVECTOR, **values)
    batch, mask = ragged()
    labels = torch.tensor([4, 0, 2])
    assert_loss(pair.ours(batch, labels=labels).loss, pair.theirs(batch, labels=labels).loss)
    alone = [pair.theirs(row, labels=labels[index : index + 1]).loss for index, (row, _) in enumerate(rows())]
    assert_loss(pair.ours(batch, mask, labels=labels).loss, torch.stack(alone).mean())


@torch.no_grad()
def test_weighted_layers_before_an_adapter_are_pooled_whole(pair_of: Callable[..., Pair]) -> None:
    """The layers are as long as the input, which transformers forgets where it counts in a batch."""
    pair = pair_of(XVECTOR, **WEIGHTED, **ADAPTER)
    batch, mask = ragged()
    embeddings = pair.ours(batch, mask).embeddings
    for index, (row, row_mask) in enumerate(rows()):
        assert_close(embeddings[index], pair.theirs(row).embeddings[0])
        theirs = pair.theirs(row, attention_mask=row_mask).embeddings[0]
        assert (embeddings[index] - theirs).abs().max() > 0.01


def test_a_frozen_base_model_gets_no_gradient(pair_of: Callable[..., Pair]) -> None:
    labels = {
        CTC: LABELS,
        SEQUENCE: torch.tensor([4, 0, 2]),
        FRAMES: torch.zeros(3, 60, 5),
        XVECTOR: torch.tensor([4, 0, 2]),
    }
    for name, model_class in CLASSES.items():
        model = model_class(Wav2Vec2BertConfig(**TINY | WEIGHTED)).train()
        model.freeze_base_model()
        model(ragged()[0], labels=labels[name]).loss.backward()
        for parameter_name, parameter in model.named_parameters():
            assert (parameter.grad is None) == parameter_name.startswith("wav2vec2_bert."), parameter_name


def test_the_constructor_takes_a_language_and_needs_a_vocabulary() -> None:
    config = Wav2Vec2BertConfig(**TINY)
    assert heads.Wav2Vec2BertForCTC(config, target_lang="deu").target_lang == "deu"
    assert heads.Wav2Vec2BertForCTC(config).target_lang is None
    with pytest.raises(ConfigError, match="vocab_size is None, expected the number of tokens"):
        heads.Wav2Vec2BertForCTC(Wav2Vec2BertConfig(**TINY | {"vocab_size": None}))


@pytest.mark.parametrize("name", [SEQUENCE, FRAMES])
def test_classifiers_refuse_an_adapter_as_those_of_transformers(name: str) -> None:
    with pytest.raises(ConfigError, match=f"add_adapter is True, which {name} does not support"):
        CLASSES[name](Wav2Vec2BertConfig(**TINY | ADAPTER))
    with pytest.raises(ValueError, match="does not support the use of Wav2Vec2Bert adapters"):
        getattr(transformers, name)(transformers.Wav2Vec2BertConfig(**TINY | ADAPTER))


def test_labels_outside_the_vocabulary_are_an_error(pair_of: Callable[..., Pair]) -> None:
    with pytest.raises(ValueError, match=r"a label is 12, expected ids below vocab_size \(12\)"):
        pair_of(CTC).ours(ragged()[0][:1], labels=torch.tensor([[5, 12]]))
