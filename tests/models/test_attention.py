"""Every attention kernel on the same inputs, against a loop over queries."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch

from w2v_ray.errors import ConfigError, MissingExtraError
from w2v_ray.models.attention import KERNELS, choose_attention, choose_kernel, row_starts
from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.wav2vec2 import Wav2Vec2Model
from w2v_ray.models.wav2vec2_bert import Wav2Vec2BertModel

B, H, L, D = 3, 2, 7, 8
LENGTHS = [7, 4, 1]
ON_CPU = ("eager", "sdpa", "flex_attention")
TRAINABLE_ON_CPU = ("eager", "sdpa")
NO_FLASH = importlib.util.find_spec("flash_attn") is None


def inputs(
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q_BHLD, k_BHLD, v_BHLD = (torch.randn(B, H, L, D, generator=generator).to(dtype) for _ in range(3))
    valid_BL = torch.arange(L)[None] < torch.tensor(LENGTHS)[:, None]
    return q_BHLD, k_BHLD, v_BHLD, valid_BL


def attend_slowly(
    q_BHLD: torch.Tensor,
    k_BHLD: torch.Tensor,
    v_BHLD: torch.Tensor,
    lengths: list[int],
    bias_BHLL: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    out_BHLD, attention_BHLL = torch.zeros(B, H, L, D), torch.zeros(B, H, L, L)
    for b in range(B):
        for h in range(H):
            for query in range(L):
                scores = [
                    float(q_BHLD[b, h, query] @ k_BHLD[b, h, j]) / math.sqrt(D)
                    + (0.0 if bias_BHLL is None else float(bias_BHLL[b, h, query, j]))
                    for j in range(lengths[b])
                ]
                weights = [math.exp(score) for score in scores]
                for j, weight in enumerate(weights):
                    attention_BHLL[b, h, query, j] = weight / sum(weights)
                    out_BHLD[b, h, query] += weight / sum(weights) * v_BHLD[b, h, j]
    return out_BHLD, attention_BHLL


def bias_of(batch: int) -> torch.Tensor:
    return 2 * torch.randn(batch, H, L, L, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [None, "of all rows", "of each row"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", ON_CPU)
def test_kernel_is_attention(name: str, masked: bool, bias: str | None) -> None:
    q_BHLD, k_BHLD, v_BHLD, valid_BL = inputs()
    bias_BHLL = None if bias is None else bias_of(1 if bias == "of all rows" else B)
    expected, attention = attend_slowly(
        q_BHLD,
        k_BHLD,
        v_BHLD,
        LENGTHS if masked else [L] * B,
        None if bias_BHLL is None else bias_BHLL.expand(B, -1, -1, -1),
    )
    out, probabilities = choose_kernel(name)(
        q_BHLD, k_BHLD, v_BHLD, valid_BL if masked else None, 0.0, bias_BHLL=bias_BHLL
    )
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    if name == "eager":
        torch.testing.assert_close(probabilities, attention, atol=1e-6, rtol=1e-5)
    else:
        assert probabilities is None


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("name", ON_CPU)
def test_what_is_padded_does_not_matter(name: str, with_bias: bool) -> None:
    q_BHLD, k_BHLD, v_BHLD, valid_BL = inputs()
    bias_BHLL = bias_of(B) if with_bias else None
    expected, _ = choose_kernel(name)(q_BHLD, k_BHLD, v_BHLD, valid_BL, 0.0, bias_BHLL=bias_BHLL)
    padding = ~valid_BL[:, None, :, None]
    k_BHLD, v_BHLD = k_BHLD.masked_fill(padding, 50.0), v_BHLD.masked_fill(padding, -1e6)
    if bias_BHLL is not None:
        bias_BHLL = bias_BHLL.masked_fill(~valid_BL[:, None, None, :], 100.0)
    other, _ = choose_kernel(name)(q_BHLD, k_BHLD, v_BHLD, valid_BL, 0.0, bias_BHLL=bias_BHLL)
    assert torch.equal(other, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ON_CPU)
def test_half_precision_stays_near(name: str, dtype: torch.dtype) -> None:
    exact, _ = choose_kernel("eager")(*inputs(), 0.0)
    half, _ = choose_kernel(name)(*inputs(dtype), 0.0)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("name", ON_CPU)
def test_a_row_of_padding_alone_gives_no_nan(name: str, with_bias: bool) -> None:
    q_BHLD, k_BHLD, v_BHLD, valid_BL = inputs()
    valid_BL[2] = False
    bias_BHLL = bias_of(B) if with_bias else None
    if name in TRAINABLE_ON_CPU:
        q_BHLD.requires_grad_()
    out, _ = choose_kernel(name)(q_BHLD, k_BHLD, v_BHLD, valid_BL, 0.0, bias_BHLL=bias_BHLL)
    assert out.isfinite().all()
    if name in TRAINABLE_ON_CPU:
        out.sum().backward()
        assert q_BHLD.grad is not None
        assert q_BHLD.grad.isfinite().all()


@pytest.mark.parametrize("name", TRAINABLE_ON_CPU)
def test_gradients_reach_the_bias(name: str) -> None:
    q_BHLD, k_BHLD, v_BHLD, valid_BL = inputs()
    bias_BHLL = bias_of(B).requires_grad_()
    choose_kernel(name)(q_BHLD, k_BHLD, v_BHLD, valid_BL, 0.0, bias_BHLL=bias_BHLL)[
        0
    ].square().sum().backward()
    assert bias_BHLL.grad is not None
    reached = bias_BHLL.grad.abs().amax((1, 2)) > 0
    # A row with one valid key attends to it whatever the bias.
    assert torch.equal(reached, valid_BL & (valid_BL.sum(1, keepdim=True) > 1))


@pytest.mark.parametrize("name", TRAINABLE_ON_CPU)
def test_dropout_leaves_the_mean(name: str) -> None:
    q_BHLD, k_BHLD, v_BHLD, valid_BL = inputs()
    kernel = choose_kernel(name)
    expected, _ = kernel(q_BHLD, k_BHLD, v_BHLD, valid_BL, 0.0)
    torch.manual_seed(0)
    dropped = torch.stack([kernel(q_BHLD, k_BHLD, v_BHLD, valid_BL, 0.2)[0] for _ in range(2_000)])
    assert not torch.equal(dropped[0], dropped[1])
    assert (dropped.mean(0) - expected).abs().max() < 0.1


def test_flex_attention_says_what_it_cannot_do() -> None:
    q_BHLD, k_BHLD, v_BHLD, valid_BL = inputs()
    kernel = choose_kernel("flex_attention")
    with pytest.raises(ConfigError, match=r"attention_dropout is 0\.1 in training, .* set it to 0 or choose"):
        kernel(q_BHLD, k_BHLD, v_BHLD, valid_BL, 0.1)
    q_BHLD.requires_grad_()
    with pytest.raises(ConfigError, match="computes no gradients on a CPU; call the model under"):
        kernel(q_BHLD, k_BHLD, v_BHLD, valid_BL, 0.0)
    with torch.no_grad():
        out, _ = kernel(q_BHLD, k_BHLD, v_BHLD, valid_BL, 0.0)
    assert out.shape == q_BHLD.shape


@torch.no_grad()
def test_flex_attention_takes_any_number_of_shapes() -> None:
    """More of them than torch would compile one by one before it gives up."""
    kernel, generator = choose_kernel("flex_attention"), torch.Generator().manual_seed(0)
    for size in range(1, 11):
        q_BHLD, k_BHLD, v_BHLD = torch.randn(3, size, 1 + size % 3, 3 + size, 4 * size, generator=generator)
        valid_BL = torch.arange(3 + size)[None] < torch.full((size, 1), 3)
        expected, _ = choose_kernel("sdpa")(q_BHLD, k_BHLD, v_BHLD, valid_BL, 0.0)
        out, _ = kernel(q_BHLD, k_BHLD, v_BHLD, valid_BL, 0.0)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_flash_attention_packs_rows_end_to_end() -> None:
    *_, valid_BL = inputs()
    starts, longest = row_starts(valid_BL)
    assert starts.tolist() == [0, 7, 11, 12]
    assert starts.dtype == torch.int32
    assert longest == 7


@pytest.mark.skipif(not NO_FLASH, reason="flash-attn is installed")
def test_flash_attention_without_its_package() -> None:
    for build in (
        lambda: choose_kernel("flash_attention_2"),
        lambda: Wav2Vec2Model(Wav2Vec2Config(), attn_implementation="flash_attention_2"),
    ):
        with pytest.raises(MissingExtraError, match=r"flash-attn; run pip install 'w2v-ray\[flash\]'"):
            build()


@pytest.mark.parametrize("positions", ["relative", "relative_key"])
def test_flash_attention_refuses_a_bias_before_the_first_batch(positions: str) -> None:
    config = Wav2Vec2BertConfig(position_embeddings_type=positions)
    with (
        torch.device("meta"),
        pytest.raises(ConfigError, match=r"cannot take the bias .*; choose 'sdpa', or 'auto'"),
    ):
        Wav2Vec2BertModel(config, attn_implementation="flash_attention_2")


def test_auto_says_what_it_chose_and_why() -> None:
    half = {"dtype": torch.float16, "device": "cuda"}
    assert choose_attention("auto") == (
        "sdpa",
        "sdpa, as the model is on cpu and flash_attention_2 needs cuda",
    )
    name, reason = choose_attention("auto", bias=True, **half)
    assert name == "sdpa"
    assert reason.startswith("sdpa, as the position type adds a bias")
    name, reason = choose_attention("auto", device="cuda:0")
    assert (name, reason[:38]) == ("sdpa", "sdpa, as the weights are torch.float32")
    name, reason = choose_attention("auto", **half)
    assert name == ("sdpa" if NO_FLASH else "flash_attention_2")
    assert reason.startswith(
        "sdpa, as flash-attn is not" if NO_FLASH else "flash_attention_2, as the weights"
    )
    assert choose_attention("eager") == ("eager", "eager was asked for")


def test_a_model_records_its_kernel() -> None:
    with torch.device("meta"):
        model = Wav2Vec2Model(Wav2Vec2Config(num_hidden_layers=1), attn_implementation="auto")
    assert model.attn_implementation == "sdpa"
    assert "flash_attention_2 needs cuda" in model.attn_reason
    assert model.encoder.layers[0].attention.kernel is KERNELS["sdpa"]


def test_an_unknown_kernel_is_an_error() -> None:
    with pytest.raises(
        ConfigError,
        match="attn_implementation is 'fast', expected one of eager, sdpa, flash_attention_2, "
        "flex_attention, auto; choose",
    ):
        choose_kernel("fast")
