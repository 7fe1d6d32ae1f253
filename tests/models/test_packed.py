"""The packed encoder gives each utterance what the module gives it alone, whatever lies beside it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.models import packed_attention, packed_convolutions
from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.packed import PackedEncoder, PackedOutput
from w2v_ray.models.wav2vec2 import Wav2Vec2Model
from w2v_ray.models.wav2vec2_bert import Wav2Vec2BertModel

SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
WAVES: dict[str, Any] = SIZE | {
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
LAYER: dict[str, Any] = WAVES | {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
MELS: dict[str, Any] = SIZE | {"feature_projection_input_dim": 20, "conv_depthwise_kernel_size": 5}
SHORTENED: dict[str, Any] = {"add_adapter": True, "num_adapter_layers": 2}

CASES: dict[str, dict[str, Any]] = {
    "group": WAVES,
    "group-bias": WAVES | {"conv_bias": True, "do_stable_layer_norm": True},
    "layer": LAYER | {"conv_bias": True},
    "layer-norm-last": LAYER | {"do_stable_layer_norm": False},
    "adapter": LAYER | SHORTENED | {"output_hidden_size": 24},
    "language-adapter": LAYER | {"adapter_attn_dim": 8},
    "odd-positions": WAVES | {"num_conv_pos_embeddings": 7, "num_conv_pos_embedding_groups": 1},
    "one-position": WAVES | {"num_conv_pos_embeddings": 1},
    "wide-positions": WAVES | {"num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16},
    "activations": WAVES | {"feat_extract_activation": "quick_gelu", "hidden_act": "gelu_new"},
    "fused-activations": LAYER | {"feat_extract_activation": "relu", "hidden_act": "silu"},
    "overlapping-kernels": WAVES
    | {"conv_dim": (12, 20, 16), "conv_kernel": (7, 5, 4), "conv_stride": (3, 2, 1)},
    "kernels-of-a-stride": WAVES | {"conv_dim": (8, 16), "conv_kernel": (4, 3), "conv_stride": (4, 3)},
    "kernels-below-a-stride": LAYER
    | {"conv_dim": (8, 8, 16), "conv_kernel": (3, 2, 1), "conv_stride": (5, 3, 2)},
    "one-convolution": LAYER | {"conv_dim": (16,), "conv_kernel": (10,), "conv_stride": (5,)},
    "bert": MELS | {"left_max_position_embeddings": 3, "right_max_position_embeddings": 1},
    "bert-far-positions": MELS | {"left_max_position_embeddings": 64, "right_max_position_embeddings": 8},
    "bert-relative": MELS | {"position_embeddings_type": "relative"},
    "bert-rotary": MELS | {"position_embeddings_type": "rotary"},
    "bert-no-positions": MELS | {"position_embeddings_type": None},
    "bert-one-head": MELS | {"position_embeddings_type": "relative", "num_attention_heads": 1},
    "bert-adapter": MELS | SHORTENED | {"output_hidden_size": 24},
    "bert-between": MELS
    | {"use_intermediate_ffn_before_adapter": True, "hidden_act": "gelu", "add_adapter": True},
    "bert-no-look-back": MELS | {"conv_depthwise_kernel_size": 1, "position_embeddings_type": "rotary"},
}
# Every kind of bias, of norm and of input once, for what is asked of all kernels and dtypes.
KINDS = ["group", "layer", "bert", "bert-relative", "bert-rotary"]


@cache
def model_of(case: str, kernel: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    """The module, of weights far from where they start."""
    values = CASES[case]
    is_bert = case.startswith("bert")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config: Any = (Wav2Vec2BertConfig if is_bert else Wav2Vec2Config)(**values)
        model: Any = (Wav2Vec2BertModel if is_bert else Wav2Vec2Model)(config, attn_implementation=kernel)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += (0.3 if parameter.ndim == 1 else 0.1) * torch.randn(parameter.shape)
    return model.eval().to(dtype)


@cache
def packed_of(
    case: str, kernel: str = "sdpa", dtype: torch.dtype = torch.float32, int8: bool = False
) -> PackedEncoder:
    return PackedEncoder(copy.deepcopy(model_of(case, kernel, dtype)), int8=int8)


def least(case: str) -> int:
    """Samples, or frames of features, of one frame."""
    return 1 if case.startswith("bert") else model_of(case).config.receptive_samples


def sounds(case: str, lengths: Sequence[int]) -> list[torch.Tensor]:
    """Inputs whose loudness and offset differ, so that nobody's statistics fit another."""
    width = (20,) if case.startswith("bert") else ()
    found = []
    for seed, length in enumerate(lengths):
        noise = torch.randn(length, *width, generator=torch.Generator().manual_seed(seed))
        found.append(noise * (0.2 + seed % 3) + 0.3 * (seed % 2))
    return found


@torch.no_grad()
def alone(model: Any, one: torch.Tensor) -> PackedOutput:
    output = model(one[None], output_hidden_states=True)
    return PackedOutput(output.last_hidden_state[0], tuple(layer[0] for layer in output.hidden_states))


def assert_near(ours: PackedOutput, expected: PackedOutput, *, atol: float = 1e-4, rtol: float = 0.0) -> None:
    assert len(ours.layers) == len(expected.layers)
    for found, wanted in zip((ours.last, *ours.layers), (expected.last, *expected.layers), strict=True):
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted, atol=atol, rtol=rtol)


def assert_as_alone(case: str, inputs: Sequence[torch.Tensor], kernel: str = "sdpa") -> None:
    found = packed_of(case, kernel)(inputs, layers=True)
    for one, ours in zip(inputs, found, strict=True):
        assert_near(ours, alone(model_of(case, kernel), one))


@pytest.mark.parametrize("case", CASES)
def test_an_utterance_gives_what_the_module_gives_it_alone(case: str) -> None:
    shortest = least(case)
    times = 1 if shortest == 1 else model_of(case).config.hop_samples
    # Of one frame up, beside others of the same length, of twice it and of one sample more.
    lengths = [shortest + times * frames for frames in (30, 0, 0, 7, 1, 30)]
    assert_as_alone(case, sounds(case, [*lengths, lengths[0] + 1]))
    assert_as_alone(case, sounds(case, lengths[:1]))


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("case", KINDS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_lengths_in_any_order(case: str, kernel: str, data: st.DataObject) -> None:
    shortest = least(case)
    most = 60 if shortest == 1 else 9_000
    lengths = data.draw(st.lists(st.integers(shortest, most), min_size=1, max_size=6))
    inputs = sounds(case, lengths)
    order = data.draw(st.permutations(range(len(lengths))))
    assert_as_alone(case, [inputs[index] for index in order], kernel)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data(), at_once=st.integers(1, 12), case=st.sampled_from(["group", "layer"]))
def test_pieces_of_convolutions_have_no_seams(case: str, at_once: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(400, 6_000), min_size=1, max_size=4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_convolutions, "_FRAMES_AT_ONCE_CPU", at_once)
        patch.setattr(packed_convolutions, "_WINDOWS_AT_ONCE", 1 + 50 * at_once)
        assert_as_alone(case, sounds(case, lengths))


@pytest.mark.parametrize("case", [case for case in CASES if "kernel" in case or "one-conv" in case])
@pytest.mark.parametrize("at_once", [1, 3])
def test_pieces_of_unusual_convolutions_have_no_seams(
    case: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_convolutions, "_FRAMES_AT_ONCE_CPU", at_once)
    config = model_of(case).config
    lengths = [config.receptive_samples + config.hop_samples * frames + 2 for frames in (9, 0, 2, 5)]
    assert_as_alone(case, sounds(case, lengths))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    at_once=st.integers(1, 2_000),
    case=st.sampled_from(["bert", "bert-far-positions", "bert-relative", "bert-one-head"]),
    kernel=st.sampled_from(["eager", "sdpa"]),
)
def test_ranges_of_queries_have_no_seams(case: str, kernel: str, lengths: list[int], at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_attention, "_SCORES_AT_ONCE", at_once)
        assert_as_alone(case, sounds(case, lengths), kernel)


@pytest.mark.parametrize(("case", "lengths"), [("group", [1_000, 400, 5_000]), ("bert", [23, 1, 12])])
def test_flex_attention(case: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compiled for each kind of scores, which takes seconds: a bias of ranges stands for all."""
    monkeypatch.setattr(packed_attention, "_SCORES_AT_ONCE", 500)
    assert_as_alone(case, sounds(case, lengths), "flex_attention")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [*KINDS, "adapter", "bert-adapter"])
def test_half_precision_does_not_depend_on_neighbours(case: str, dtype: torch.dtype) -> None:
    shortest = least(case)
    times = 1 if shortest == 1 else 320
    exact = sounds(case, [shortest + times * frames for frames in (25, 0, 9, 24)])
    inputs = [one.to(dtype) for one in exact]
    packed = packed_of(case, dtype=dtype)
    for one, wide, ours in zip(inputs, exact, packed(inputs, layers=True), strict=True):
        (by_itself,) = packed([one], layers=True)
        for found, wanted in zip((ours.last, *ours.layers), (by_itself.last, *by_itself.layers), strict=True):
            assert (found - wanted).float().norm() <= 1e-2 * wanted.float().norm()
        expected = alone(model_of(case), wide).last
        assert (ours.last.float() - expected).norm() <= 0.05 * expected.norm()


@pytest.mark.parametrize("case", ["group", "layer"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_stay_where_they_are(case: str, broken: float) -> None:
    inputs = sounds(case, [4_000, 4_000, 4_000])
    expected = packed_of(case)(inputs)
    inputs[1] = inputs[1].clone()
    inputs[1][2_000] = broken
    found = packed_of(case)(inputs)
    assert not found[1].last.isfinite().all()
    for index in (0, 2):
        torch.testing.assert_close(found[index].last, expected[index].last, atol=1e-5, rtol=0)


def test_silence_and_an_offset_have_the_statistics_of_the_module() -> None:
    """The variance of silence is 0, that of an offset is a small difference of large numbers."""
    waves = [torch.zeros(4_000), torch.full((4_000,), 0.5), 50 + sounds("group", [4_000])[0]]
    for wave, ours in zip(waves, packed_of("group")(waves), strict=True):
        expected = alone(copy.deepcopy(model_of("group")).double(), wave.double())
        torch.testing.assert_close(ours.last.double(), expected.last, atol=2e-3, rtol=0)


@pytest.mark.parametrize("case", KINDS)
def test_bytes_do_not_depend_on_neighbours_and_are_near(case: str) -> None:
    from w2v_ray.models.products import has_fast_int8

    if not has_fast_int8(torch.device("cpu")):
        pytest.skip("this CPU has no instructions for bytes")
    shortest = least(case)
    times = 1 if shortest == 1 else 320
    inputs = sounds(case, [shortest + times * frames for frames in (25, 0, 9, 24)])
    packed = packed_of(case, int8=True)
    for one, ours in zip(inputs, packed(inputs, layers=True), strict=True):
        (by_itself,) = packed([one], layers=True)
        # A number on the edge of two bytes may fall to the other side, for the last bit of a sum before it.
        assert_near(ours, by_itself, atol=2e-2)
        expected = alone(model_of(case), one).last
        assert (ours.last - expected).norm() <= 0.05 * expected.norm()


def test_layers_are_kept_where_they_are_asked_for() -> None:
    inputs = sounds("adapter", [8_000, 4_000])
    for asked, count in ((True, 3), (False, 0)):
        for output in packed_of("adapter")(inputs, layers=asked):
            assert len(output.layers) == count
            assert all(len(layer) > len(output.last) for layer in output.layers)


def test_weights_are_taken_from_the_model() -> None:
    """A second copy of a large model may not fit where the first just did."""
    model = copy.deepcopy(model_of("layer"))
    before = sum(parameter.numel() for parameter in model.parameters())
    PackedEncoder(model)
    left = sum(parameter.numel() for parameter in model.parameters())
    assert left < 0.3 * before
    assert all(layer.attention.q_proj.weight is None for layer in model.encoder.layers)
