"""Options crossed at random, from fixed seeds: what transformers saves gives the same outputs and gradients.

Both compute in float64, so that what differs is a mistake and no rounding.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from w2v_ray.models import heads, pretraining, wav2vec2, wav2vec2_bert, xvector

MODULES = (heads, pretraining, wav2vec2, wav2vec2_bert, xvector)
KINDS = ("Model", "ForCTC", "ForSequenceClassification", "ForAudioFrameClassification", "ForXVector")
ACTIVATIONS = (
    *(
        "gelu",
        "gelu_fast",
        "gelu_new",
        "gelu_python_tanh",
        "hardswish",
        "laplace",
        "leaky_relu",
        "linear",
        "mish",
    ),
    *("prelu", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "tanh"),
)
REFUSES_ADAPTER = ("ForSequenceClassification", "ForAudioFrameClassification")
CASES = [(family, kind) for family in ("Wav2Vec2", "Wav2Vec2Bert") for kind in KINDS]
CASES.append(("Wav2Vec2", "ForPreTraining"))


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    yield
    logger.setLevel(level)


def options_of_both(rng: random.Random) -> dict[str, Any]:
    num_heads, layers = rng.choice([1, 2, 3, 4]), rng.randint(1, 3)
    return {
        "vocab_size": rng.randint(6, 40),
        "num_attention_heads": num_heads,
        "hidden_size": num_heads * rng.choice([2, 4, 6, 8]),
        "num_hidden_layers": rng.randint(1, 3),
        "intermediate_size": rng.randint(3, 40),
        "hidden_act": rng.choice(ACTIVATIONS),
        "layer_norm_eps": rng.choice([1e-5, 1e-12, 1e-3]),
        "mask_time_prob": rng.choice([0.0, 0.5]),
        "ctc_loss_reduction": rng.choice(["sum", "mean"]),
        "use_weighted_layer_sum": rng.random() < 0.5,
        "classifier_proj_size": rng.randint(2, 20),
        "tdnn_dim": [rng.randint(2, 16) for _ in range(layers)],
        "tdnn_kernel": [rng.randint(1, 4) for _ in range(layers)],
        "tdnn_dilation": [rng.randint(1, 3) for _ in range(layers)],
        "xvector_output_dim": rng.randint(2, 12),
        "pad_token_id": rng.randint(0, 4),
        "adapter_kernel_size": rng.randint(1, 5),
        "adapter_stride": rng.randint(1, 3),
        "num_adapter_layers": rng.randint(1, 2),
        "num_labels": rng.randint(2, 5),
    }


def options_of_waves(rng: random.Random) -> dict[str, Any]:
    values, layers, groups = options_of_both(rng), rng.randint(1, 4), rng.choice([1, 2, 3])
    divisors = [n for n in range(1, 9) if values["hidden_size"] % n == 0]
    return values | {
        "feat_extract_norm": rng.choice(["group", "layer"]),
        "do_stable_layer_norm": rng.random() < 0.5,
        "conv_bias": rng.random() < 0.5,
        "conv_dim": [rng.randint(2, 12) for _ in range(layers)],
        "conv_kernel": [rng.randint(4, 10), *(rng.randint(1, 4) for _ in range(layers - 1))],
        "conv_stride": [rng.randint(3, 6), *(rng.randint(1, 2) for _ in range(layers - 1))],
        "feat_extract_activation": rng.choice(ACTIVATIONS),
        "num_conv_pos_embeddings": rng.randint(1, 20),
        "num_conv_pos_embedding_groups": rng.choice(divisors),
        "adapter_attn_dim": rng.choice([None, 1, 5]),
        "num_codevector_groups": groups,
        "num_codevectors_per_group": rng.randint(2, 7),
        "codevector_dim": groups * rng.randint(1, 5),
        "proj_codevector_dim": rng.randint(2, 10),
    }


def options_of_features(rng: random.Random) -> dict[str, Any]:
    return options_of_both(rng) | {
        "feature_projection_input_dim": rng.randint(2, 12),
        "position_embeddings_type": rng.choice([None, "relative", "relative_key", "rotary"]),
        "left_max_position_embeddings": rng.randint(0, 8),
        "right_max_position_embeddings": rng.randint(0, 8),
        "conv_depthwise_kernel_size": rng.choice([1, 3, 5, 9]),
        "adapter_act": rng.choice(ACTIVATIONS),
        "rotary_embedding_base": rng.choice([10_000, 100]),
    }


def make_pair(family: str, kind: str, values: dict[str, Any], kernel: str, folder: Path) -> tuple[Any, Any]:
    name = family + kind
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**values, attn_implementation="eager")
    theirs = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += (0.3 if parameter.ndim == 1 else 0.15) * torch.randn(parameter.shape)
    theirs.save_pretrained(folder)
    ours = next(getattr(module, name) for module in MODULES if name in module.__all__)
    return theirs.double(), ours.from_pretrained(folder, attn_implementation=kernel).double()


def parts(output: Any) -> dict[str, torch.Tensor]:
    """The tensors of an output, those of its tuples by number."""
    found = {}
    for name in output:
        value = output[name]
        found |= {f"{name}{i}": part for i, part in enumerate(value if isinstance(value, tuple) else [value])}
    return found


def assert_rows_alone(theirs: Any, ours: Any, lengths: list[int], batch: torch.Tensor, asked: Any) -> None:
    mask = (torch.arange(batch.shape[1]) < torch.tensor(lengths)[:, None]).long()
    together = parts(ours(batch, mask, **asked))
    for row, length in enumerate(lengths):
        expected = parts(theirs(batch[row : row + 1, :length], **asked))
        for name, value in expected.items():
            if value.ndim == 0:  # a perplexity, which is of the batch
                continue
            found = together[name][row : row + 1]
            found = found[tuple(slice(size) for size in value.shape)]
            torch.testing.assert_close(found, value, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def labels_of(kind: str, values: dict[str, Any], frames: int) -> torch.Tensor | None:
    classes = values["num_labels"]
    if kind == "ForCTC":
        return torch.tensor([[5, 5, -100]])
    if kind == "ForAudioFrameClassification":
        return torch.nn.functional.one_hot(torch.arange(frames)[None] % classes, classes)
    return torch.tensor([classes - 1]) if kind in ("ForSequenceClassification", "ForXVector") else None


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("family", "kind"), CASES, ids=[family + kind for family, kind in CASES])
def test_options_crossed_at_random(family: str, kind: str, seed: int, tmp_path: Path) -> None:
    rng = random.Random(f"{family}{kind}{seed}")
    values = options_of_waves(rng) if family == "Wav2Vec2" else options_of_features(rng)
    # Where transformers is right: classifiers have no adapter, and its count of frames fits kernels of 3.
    values["add_adapter"] = kind not in REFUSES_ADAPTER and rng.random() < 0.6
    if kind == "ForCTC":
        values |= {"adapter_kernel_size": 3, "adapter_stride": rng.choice([2, 3])}
    kernel = rng.choice(["eager", "sdpa"])
    theirs, ours = make_pair(family, kind, values, kernel, tmp_path)
    torch.manual_seed(seed)
    if family == "Wav2Vec2":
        batch, lengths = torch.randn(3, 2_500).double(), [2_500, 1_800, rng.randint(1_500, 2_500)]
    else:
        width = values["feature_projection_input_dim"]
        batch, lengths = torch.randn(3, 120, width).double(), [120, 81, rng.randint(80, 120)]
    asked = {"output_hidden_states": True, "output_attentions": kernel == "eager"}
    with torch.no_grad():
        assert_rows_alone(theirs, ours, lengths, batch, asked)
    frames = theirs(batch[:1]).to_tuple()[0].shape[1]
    labels = labels_of(kind, values, frames)
    if labels is None:
        return
    expected, found = theirs(batch[:1], labels=labels).loss, ours(batch[:1], labels=labels).loss
    torch.testing.assert_close(found.double(), expected.double(), atol=1e-5, rtol=1e-4)
    expected.backward()
    found.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is None) == (gradients[name] is None), name
        if parameter.grad is not None:
            limit = 1e-3 * max(1.0, gradients[name].abs().max().item())
            torch.testing.assert_close(parameter.grad, gradients[name], atol=limit, rtol=0, msg=name)
