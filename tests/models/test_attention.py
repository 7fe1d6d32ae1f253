"""Every attention kernel on the same inputs, against a loop over queries."""

from __future__ import annotations

import math

import pytest
import torch

from w2v_ray.errors import ConfigError
from w2v_ray.models.attention import KERNELS, choose_kernel

B, H, L, D = 3, 2, 7, 8
LENGTHS = [7, 4, 1]


def inputs(
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q_BHLD, k_BHLD, v_BHLD = (torch.randn(B, H, L, D, generator=generator).to(dtype) for _ in range(3))
    valid_BL = torch.arange(L)[None] < torch.tensor(LENGTHS)[:, None]
    return q_BHLD, k_BHLD, v_BHLD, valid_BL


def attend_slowly(
    q_BHLD: torch.Tensor, k_BHLD: torch.Tensor, v_BHLD: torch.Tensor, lengths: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    out_BHLD, attention_BHLL = torch.zeros(B, H, L, D), torch.zeros(B, H, L, L)
    for b in range(B):
        for h in range(H):
            for query in range(L):
                scores = [
                    float(q_BHLD[b, h, query] @ k_BHLD[b, h, j]) / math.sqrt(D) for j in range(lengths[b])
                ]
                weights = [math.exp(score) for score in scores]
                for j, weight in enumerate(weights):
                    attention_BHLL[b, h, query, j] = weight / sum(weights)
                    out_BHLD[b, h, query] += weight / sum(weights) * v_BHLD[b, h, j]
    return out_BHLD, attention_BHLL


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_is_attention(name: str, masked: bool) -> None:
    q_BHLD, k_BHLD, v_BHLD, valid_BL = inputs()
    expected, attention = attend_slowly(q_BHLD, k_BHLD, v_BHLD, LENGTHS if masked else [L] * B)
    out, probabilities = choose_kernel(name)(q_BHLD, k_BHLD, v_BHLD, valid_BL if masked else None, 0.0)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    if name == "eager":
        torch.testing.assert_close(probabilities, attention, atol=1e-6, rtol=1e-5)
    else:
        assert probabilities is None


@pytest.mark.parametrize("name", KERNELS)
def test_what_is_padded_does_not_matter(name: str) -> None:
    q_BHLD, k_BHLD, v_BHLD, valid_BL = inputs()
    expected, _ = choose_kernel(name)(q_BHLD, k_BHLD, v_BHLD, valid_BL, 0.0)
    padding = ~valid_BL[:, None, :, None]
    other, _ = choose_kernel(name)(
        q_BHLD, k_BHLD.masked_fill(padding, 50.0), v_BHLD.masked_fill(padding, -1e6), valid_BL, 0.0
    )
    assert torch.equal(other, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", KERNELS)
def test_half_precision_stays_near(name: str, dtype: torch.dtype) -> None:
    exact, _ = choose_kernel("eager")(*inputs(), 0.0)
    half, _ = choose_kernel(name)(*inputs(dtype), 0.0)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", KERNELS)
def test_a_row_of_padding_alone_gives_no_nan(name: str) -> None:
    q_BHLD, k_BHLD, v_BHLD, valid_BL = inputs()
    valid_BL[2] = False
    for tensor in (q_BHLD, k_BHLD, v_BHLD):
        tensor.requires_grad_()
    out, _ = choose_kernel(name)(q_BHLD, k_BHLD, v_BHLD, valid_BL, 0.0)
    out.sum().backward()
    assert out.isfinite().all()
    assert q_BHLD.grad is not None
    assert q_BHLD.grad.isfinite().all()


@pytest.mark.parametrize("name", KERNELS)
def test_dropout_leaves_the_mean(name: str) -> None:
    q_BHLD, k_BHLD, v_BHLD, valid_BL = inputs()
    kernel = choose_kernel(name)
    expected, _ = kernel(q_BHLD, k_BHLD, v_BHLD, valid_BL, 0.0)
    torch.manual_seed(0)
    dropped = torch.stack([kernel(q_BHLD, k_BHLD, v_BHLD, valid_BL, 0.2)[0] for _ in range(2_000)])
    assert not torch.equal(dropped[0], dropped[1])
    assert (dropped.mean(0) - expected).abs().max() < 0.1


def test_an_unknown_kernel_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match="attn_implementation is 'fast', expected one of eager, sdpa; choose"
    ):
        choose_kernel("fast")
