"""Matrix products in the layouts of inference, against what the definition gives in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from w2v_ray.models import products
from w2v_ray.models.activations import ACTIVATIONS, activation
from w2v_ray.models.products import has_fast_int8, make_product, take_product

CPU = torch.device("cpu")
needs_bytes = pytest.mark.skipif(not has_fast_int8(CPU), reason="this CPU has no instructions for bytes")


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("act", [None, *ACTIVATIONS])
def test_a_product_with_its_activation(act: str | None) -> None:
    weight, bias, x = random(24, 40), random(24, seed=1), random(7, 40, seed=2)
    expected = F.linear(x, weight, bias)
    expected = expected if act is None else activation(act)(expected)
    torch.testing.assert_close(make_product(weight, bias, act=act)(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
def test_dtypes(dtype: torch.dtype, near: float, bias: bool) -> None:
    weight, x = random(24, 40, dtype=dtype), random(7, 40, seed=2, dtype=dtype)
    bias_O = random(24, seed=1, dtype=dtype) if bias else None
    found = make_product(weight, bias_O)(x)
    expected = F.linear(x.double(), weight.double(), None if bias_O is None else bias_O.double())
    assert found.dtype == dtype
    assert (found.double() - expected).norm() <= near * expected.norm()


def test_a_cpu_without_instructions_for_bfloat16_multiplies_it_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "_has_onednn", lambda dtype=torch.float32: dtype == torch.float32)
    monkeypatch.setattr(products, "_onednn", None)  # would be called, and refuse
    weight, x = random(24, 40, dtype=torch.bfloat16), random(7, 40, seed=2, dtype=torch.bfloat16)
    torch.testing.assert_close(make_product(weight, None)(x), F.linear(x, weight))


@pytest.mark.parametrize("int8", [False, pytest.param(True, marks=needs_bytes)])
@pytest.mark.parametrize("biases", [(True, True, True), (False, False, False), (True, False, True)])
def test_layers_of_one_input_are_one_product(biases: tuple[bool, ...], int8: bool) -> None:
    layers = [nn.Linear(40, 8 * (index + 1), bias=bias) for index, bias in enumerate(biases)]
    x = random(5, 40)
    expected = torch.cat([layer(x) for layer in layers], dim=-1)
    weight = torch.cat([layer.weight.detach() for layer in layers])
    product = take_product(*layers, int8=int8)
    allowed = torch.full_like(expected, 1e-5)
    if int8:  # half a step of either factor
        step_O, step_N = (factor.abs().amax(1) / 127 for factor in (weight, x))
        allowed = x.abs().sum(1)[:, None] * step_O / 2 + step_N[:, None] / 2 * weight.abs().sum(1)
        allowed += step_N[:, None] * step_O / 4 * x.shape[1] + 1e-5
    assert ((product(x) - expected).abs() <= allowed).all()
    assert all(layer.weight is None for layer in layers)


def test_a_convolution_of_one_step() -> None:
    convolution, x = nn.Conv1d(12, 20, 1), random(9, 12)
    expected = convolution(x.T[None])[0].T
    torch.testing.assert_close(take_product(convolution)(x), expected, atol=1e-6, rtol=1e-5)


@needs_bytes
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 90),
    outputs=st.integers(1, 70),
    bias=st.booleans(),
    act=st.sampled_from([None, "gelu", "relu"]),
)
def test_bytes_are_those_of_the_definition(
    rows: int, inputs: int, outputs: int, bias: bool, act: str | None
) -> None:
    weight, x = random(outputs, inputs), random(rows, inputs, seed=1) * torch.logspace(-3, 3, rows)[:, None]
    bias_O = random(outputs, seed=2) if bias else None
    before = x.clone()
    found = make_product(weight, bias_O, act=act, int8=True)(x)
    assert torch.equal(x, before)
    scale_O, scale_N = weight.abs().amax(1) / 127, x.abs().amax(1) / 127
    bytes_OI = (weight / scale_O[:, None]).round().double()
    bytes_NI = (x / scale_N[:, None]).round().double()
    expected = bytes_NI @ bytes_OI.T * scale_O.double() * scale_N.double()[:, None]
    expected = expected if bias_O is None else expected + bias_O
    expected = expected if act is None else activation(act)(expected)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@needs_bytes
@settings(max_examples=30, deadline=None, derandomize=True)
@given(cuts=st.sets(st.integers(1, 59)), order=st.permutations(range(60)))
def test_a_row_of_bytes_is_the_same_to_the_bit_beside_any_other(cuts: set[int], order: list[int]) -> None:
    product = make_product(random(48, 64), random(48, seed=1), act="gelu", int8=True)
    x = random(60, 64, seed=2)
    expected = product(x)
    parts = [product(x[order][begin:end]) for begin, end in pairwise([0, *sorted(cuts), 60])]
    assert torch.equal(torch.cat(parts), expected[order])


@needs_bytes
def test_rows_and_weights_of_zeros_and_numbers_that_are_not_finite() -> None:
    weight, x = random(16, 32), random(6, 32, seed=1)
    weight[3] = 0
    x[1] = 0
    x[2, 5] = float("nan")
    x[3, 5] = float("inf")
    x[4] = 1e-38
    found = make_product(weight, torch.ones(16), int8=True)(x)
    assert (found[:2, 3] == 1).all()
    assert (found[1] == 1).all()
    assert not found[2].isfinite().any()
    assert not found[3].isfinite().any()
    torch.testing.assert_close(found[4], torch.ones(16))
    assert found[[0, 5]].isfinite().all()


@pytest.mark.parametrize(("has_instructions", "has_library"), [(True, False), (False, True)])
def test_bytes_are_fast_with_instructions_and_a_library_for_them(
    monkeypatch: pytest.MonkeyPatch, has_instructions: bool, has_library: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: has_instructions)
    monkeypatch.setattr(products, "_has_onednn", lambda: has_library)
    assert not has_fast_int8(CPU)
    assert not has_fast_int8(torch.device("meta"))
