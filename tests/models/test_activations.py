"""Every activation that transformers can be told by name, on the same numbers."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2CLS, ACT2FN

from w2v_ray.errors import ConfigError
from w2v_ray.models.activations import ACTIVATIONS, activation


@pytest.mark.parametrize("name", sorted(ACT2CLS.keys() - {"xielu"}))
@torch.no_grad()
def test_it_is_the_one_of_transformers(name: str) -> None:
    x = torch.linspace(-12, 12, 4_001)
    torch.testing.assert_close(activation(name)(x), ACT2FN[name](x), atol=2e-6, rtol=0)


def test_selu_is_that_of_torch() -> None:
    x = torch.linspace(-3, 3, 101)
    assert torch.equal(activation("selu")(x), torch.nn.SELU()(x))


def test_all_of_transformers_but_one_are_here() -> None:
    assert ACT2CLS.keys() - ACTIVATIONS.keys() == {"prelu", "xielu"}
    assert isinstance(activation("prelu"), torch.nn.PReLU)


def test_an_unknown_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^activation is 'gleu', expected one of gelu, .* or prelu; mend"):
        activation("gleu")
