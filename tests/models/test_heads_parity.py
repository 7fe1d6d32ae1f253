"""The heads and the convolutional adapter against transformers: random weights, ragged batches, losses."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.loss.loss_utils import ForSequenceClassificationLoss

import w2v_ray.models.heads as our_heads
from w2v_ray.models.wav2vec2 import Wav2Vec2Model
from w2v_ray.models.xvector import Wav2Vec2ForXVector

TOLERANCE = 1e-4
LENGTHS = (9_000, 5_000, 7_021, 6_400)
FAMILIES = {
    "group": {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False},
    "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}
TINY = {
    "vocab_size": 30,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 20,
    "tdnn_dim": [24, 20, 28],
    "tdnn_kernel": [5, 3, 1],
    "tdnn_dilation": [1, 3, 1],
    "xvector_output_dim": 18,
}


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    yield
    logger.setLevel(level)


def make_pair(folder: Path, name: str, family: str = "layer", **changes: Any) -> tuple[Any, Any]:
    """A model of transformers with random weights, and ours that loaded what it saved."""
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        **TINY | FAMILIES[family] | changes, attn_implementation="eager", mask_time_prob=0.05
    )
    theirs = getattr(transformers, name)(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            spread = 0.3 if parameter.ndim == 1 else 0.08
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    theirs.save_pretrained(folder)
    cls = {"Wav2Vec2ForXVector": Wav2Vec2ForXVector, "Wav2Vec2Model": Wav2Vec2Model}.get(name)
    return theirs, (cls or getattr(our_heads, name)).from_pretrained(folder, attn_implementation="eager")


def ragged_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    waves = torch.randn(len(LENGTHS), max(LENGTHS), generator=generator)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return waves * mask, mask


def one_by_one(model: Any, **asked: Any) -> list[Any]:
    """What transformers makes of each row alone, where no padding can spoil it."""
    waves, _ = ragged_batch()
    return [model(waves[i : i + 1, :length], **asked) for i, length in enumerate(LENGTHS)]


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, spread: float = 0.02) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > spread, "the outputs are all alike, so agreeing on them shows nothing"
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


def assert_transformers_loads(ours: Any, name: str, folder: Path) -> Any:
    ours.save_pretrained(folder)
    reloaded, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return reloaded.eval()


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_sequence_classification(family: str, weighted: bool, tmp_path: Path) -> None:
    name = "Wav2Vec2ForSequenceClassification"
    theirs, ours = make_pair(tmp_path, name, family, use_weighted_layer_sum=weighted, num_labels=5)
    waves, mask = ragged_batch()
    labels = torch.tensor([0, 4, 2, 2])
    together = ours(waves, mask, labels=labels)
    alone = torch.cat([output.logits for output in one_by_one(theirs)])
    assert_close(together.logits, alone)
    expected = torch.nn.functional.cross_entropy(alone, labels)
    torch.testing.assert_close(together.loss, expected, rtol=1e-4, atol=0)
    if family == "layer":  # where transformers is right in a batch
        torch.testing.assert_close(together.loss, theirs(waves, mask, labels=labels).loss, rtol=1e-4, atol=0)
    reloaded = assert_transformers_loads(ours, name, tmp_path / "saved")
    assert reloaded.config.num_labels == 5
    assert_close(ours(waves).logits, reloaded(waves).logits)


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"num_labels": 1}, torch.tensor([0.5, -1.0, 2.0, 0.1])),
        ({"num_labels": 1}, torch.tensor([[0.5], [-1.0], [2.0], [0.1]])),
        ({"num_labels": 3, "problem_type": "regression"}, torch.linspace(-2, 2, 12).view(4, 3)),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, torch.eye(3)[[0, 1, 1, 2]] + 0),
        ({"num_labels": 3}, torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1]])),
        ({"num_labels": 3, "problem_type": "single_label_classification"}, torch.tensor([2, 1, 0, 1])),
    ],
    ids=["one_value", "one_column", "regression", "multi_label", "multi_label_by_dtype", "single_label"],
)
@torch.no_grad()
def test_losses_of_every_problem_type(changes: dict[str, Any], labels: torch.Tensor, tmp_path: Path) -> None:
    theirs, ours = make_pair(tmp_path, "Wav2Vec2ForSequenceClassification", **changes)
    assert ours.config.problem_type == changes.get("problem_type")
    waves, mask = ragged_batch()
    expected = ForSequenceClassificationLoss(labels, theirs(waves, mask).logits, theirs.config)
    assert expected > 0.05
    torch.testing.assert_close(ours(waves, mask, labels=labels).loss, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_frame_classification(family: str, weighted: bool, tmp_path: Path) -> None:
    name = "Wav2Vec2ForAudioFrameClassification"
    theirs, ours = make_pair(tmp_path, name, family, use_weighted_layer_sum=weighted, num_labels=3)
    waves, mask = ragged_batch()
    alone = [output.logits[0] for output in one_by_one(theirs)]
    frames = [len(logits) for logits in alone]
    classes = torch.randint(3, (len(frames), max(frames)), generator=torch.Generator().manual_seed(3))
    one_hot = torch.nn.functional.one_hot(classes, 3)
    together = ours(waves, mask, labels=one_hot)
    for row, logits in enumerate(alone):
        assert_close(together.logits[row, : frames[row]], logits)
    true_frames = torch.cat([classes[row, :count] for row, count in enumerate(frames)])
    expected = torch.nn.functional.cross_entropy(torch.cat(alone), true_frames)
    torch.testing.assert_close(together.loss, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(ours(waves, mask, labels=classes).loss, expected, rtol=1e-4, atol=0)
    theirs_loss = theirs(waves, labels=one_hot.float()).loss
    torch.testing.assert_close(ours(waves, labels=one_hot.float()).loss, theirs_loss, rtol=1e-4, atol=0)
    assert_close(ours(waves).logits, assert_transformers_loads(ours, name, tmp_path / "saved")(waves).logits)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_xvector(family: str, weighted: bool, tmp_path: Path) -> None:
    name = "Wav2Vec2ForXVector"
    theirs, ours = make_pair(tmp_path, name, family, use_weighted_layer_sum=weighted, num_labels=7)
    waves, mask = ragged_batch()
    labels = torch.tensor([[6], [0], [3], [3]])
    together = ours(waves, mask, labels=labels)
    alone = one_by_one(theirs)
    logits = torch.cat([output.logits for output in alone])
    assert_close(together.embeddings, torch.cat([output.embeddings for output in alone]))
    assert_close(together.logits, logits)
    expected = theirs.objective(logits, labels)
    torch.testing.assert_close(together.loss, expected, rtol=1e-4, atol=0)
    full = torch.ones_like(mask)
    assert_close(ours(waves, full).embeddings, theirs(waves, full).embeddings)
    reloaded = assert_transformers_loads(ours, name, tmp_path / "saved")
    assert_close(ours(waves).embeddings, reloaded(waves).embeddings)


def test_a_feature_that_never_fires_spoils_no_gradient_of_x_vectors(tmp_path: Path) -> None:
    theirs, ours = make_pair(tmp_path, "Wav2Vec2ForXVector", num_labels=7)
    gradients = []
    for model in (theirs, ours):
        with torch.no_grad():
            model.tdnn[-1].kernel.bias[:9] = -1e3
        model(ragged_batch()[0], labels=torch.tensor([6, 0, 3, 3])).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        limit = 1e-3 * max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(gradients[1][name], gradient, atol=limit, rtol=0, msg=name)


@torch.no_grad()
def test_ctc_loss_counts_the_frames_that_an_adapter_gives(tmp_path: Path) -> None:
    changes = {"add_adapter": True, "num_adapter_layers": 1, "adapter_kernel_size": 5, "adapter_stride": 2}
    theirs, ours = make_pair(tmp_path, "Wav2Vec2ForCTC", **changes)
    waves, labels = ragged_batch()[0][:1, :6_000], torch.tensor([[5, 6, 7]])
    output = ours(waves, labels=labels)
    frames = output.logits.shape[1]
    assert frames == int(ours.wav2vec2.num_frames(6_000)) == 8
    assert int(theirs._get_feat_extract_output_lengths(6_000)) == 9  # which its loss refuses
    log_probs = output.logits.log_softmax(-1).transpose(0, 1)
    expected = torch.nn.functional.ctc_loss(log_probs, labels, [frames], [3], reduction="sum")
    torch.testing.assert_close(output.loss, expected)


@torch.no_grad()
def test_transformers_pools_padding_in_a_ragged_batch(tmp_path: Path) -> None:
    """Why the test above compares with one row at a time; should it fail, compare with batches."""
    theirs, _ = make_pair(tmp_path, "Wav2Vec2ForXVector", "layer")
    batched = theirs(*ragged_batch()).embeddings
    alone = torch.cat([output.embeddings for output in one_by_one(theirs)])
    assert (batched - alone).abs()[1:].max() > 1e-3


@pytest.mark.parametrize("output_hidden_size", [None, 24])
@pytest.mark.parametrize(("kernel", "stride", "layers"), [(3, 2, 3), (3, 1, 1), (2, 3, 2), (5, 2, 1)])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_convolutional_adapter(
    family: str, kernel: int, stride: int, layers: int, output_hidden_size: int | None, tmp_path: Path
) -> None:
    changes = {
        "add_adapter": True,
        "adapter_kernel_size": kernel,
        "adapter_stride": stride,
        "num_adapter_layers": layers,
        "output_hidden_size": output_hidden_size,
    }
    theirs, ours = make_pair(tmp_path, "Wav2Vec2Model", family, **changes)
    waves, mask = ragged_batch()
    together = ours(waves, mask, output_hidden_states=True)
    frame_mask = ours.frame_mask(mask, together.last_hidden_state.shape[1])
    for row, alone in enumerate(one_by_one(theirs, output_hidden_states=True)):
        frames = alone.last_hidden_state.shape[1]
        assert int(ours.num_frames(LENGTHS[row])) == int(frame_mask[row].sum()) == frames
        assert frame_mask[row, :frames].all()
        assert_close(together.last_hidden_state[row, :frames], alone.last_hidden_state[0])
        before = alone.hidden_states[-1]
        assert int(ours.num_frames(LENGTHS[row], add_adapter=False)) == before.shape[1]
        assert_close(together.hidden_states[-1][row, : before.shape[1]], before[0])
    reloaded = assert_transformers_loads(ours, "Wav2Vec2Model", tmp_path / "saved")
    assert_close(ours(waves).last_hidden_state, reloaded(waves).last_hidden_state)


@pytest.mark.parametrize("output_hidden_size", [None, 24])
@torch.no_grad()
def test_ctc_on_a_convolutional_adapter(output_hidden_size: int | None, tmp_path: Path) -> None:
    theirs, ours = make_pair(
        tmp_path,
        "Wav2Vec2ForCTC",
        add_adapter=True,
        num_adapter_layers=1,
        output_hidden_size=output_hidden_size,
        ctc_loss_reduction="mean",
    )
    waves, mask = ragged_batch()
    labels = torch.tensor([[5, 6, 7], [8, -100, -100], [9, 9, -100], [4, 0, 3]])  # 0 is the blank
    together = ours(waves, mask, labels=labels)
    for row, alone in enumerate(one_by_one(theirs)):
        assert_close(together.logits[row, : alone.logits.shape[1]], alone.logits[0])
    # With adapters transformers lets padding into the last frames, so the whole batch is compared unpadded.
    expected = theirs(waves, labels=labels).loss
    torch.testing.assert_close(ours(waves, labels=labels).loss, expected, rtol=1e-4, atol=0)
    losses = [
        theirs(waves[row : row + 1, :length], labels=labels[row : row + 1]).loss
        for row, length in enumerate(LENGTHS)
    ]
    torch.testing.assert_close(together.loss, torch.stack(losses).mean(), rtol=1e-4, atol=0)


@torch.no_grad()
def test_xvector_on_a_convolutional_adapter(tmp_path: Path) -> None:
    changes = {"tdnn_kernel": [3, 2, 1], "tdnn_dilation": [1, 2, 1], "num_adapter_layers": 1}
    theirs, ours = make_pair(tmp_path, "Wav2Vec2ForXVector", add_adapter=True, **changes)
    alone = torch.cat([output.embeddings for output in one_by_one(theirs)])
    assert_close(ours(*ragged_batch()).embeddings, alone)


@pytest.mark.parametrize("activation", ["prelu", "selu", "gelu_fast", "leaky_relu", "tanh"])
@torch.no_grad()
def test_activations_in_their_places(activation: str, tmp_path: Path) -> None:
    if activation == "selu":  # documented, and unknown to transformers itself
        activation_of_theirs = transformers.activations.ACT2FN
        activation_of_theirs["selu"] = torch.nn.SELU
    try:
        theirs, ours = make_pair(
            tmp_path, "Wav2Vec2ForCTC", hidden_act=activation, feat_extract_activation=activation
        )
    finally:
        transformers.activations.ACT2FN.pop("selu", None)
    waves, _ = ragged_batch()
    assert_close(ours(waves).logits, theirs(waves).logits)


@torch.no_grad()
def test_outputs_that_are_asked_for(tmp_path: Path) -> None:
    theirs, ours = make_pair(
        tmp_path, "Wav2Vec2ForSequenceClassification", use_weighted_layer_sum=True, num_labels=4
    )
    waves, _ = ragged_batch()
    asked = {"output_hidden_states": True, "output_attentions": True}
    for our_part, their_part in zip(
        ours(waves, return_dict=False, **asked), theirs(waves, return_dict=False, **asked), strict=True
    ):
        if isinstance(our_part, tuple):
            assert len(our_part) == len(their_part)
        else:
            assert_close(our_part, their_part)
    assert ours(waves).keys() == list(theirs(waves).keys()) == ["logits"]


def test_labels_go_both_ways(tmp_path: Path) -> None:
    names = {0: "angry", 1: "calm", 2: "sad"}
    _, ours = make_pair(
        tmp_path,
        "Wav2Vec2ForSequenceClassification",
        id2label=names,
        label2id={name: index for index, name in names.items()},
        problem_type="multi_label_classification",
    )
    assert ours.config.id2label == names
    assert ours.config.label2id == {"angry": 0, "calm": 1, "sad": 2}
    ours.save_pretrained(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert written["id2label"] == {"0": "angry", "1": "calm", "2": "sad"}
    assert "num_labels" not in written
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "saved")
    assert (theirs.id2label, theirs.num_labels) == (names, 3)
    assert theirs.problem_type == "multi_label_classification"
