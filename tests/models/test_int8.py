"""Linear layers with 8-bit weights: what they round, and what becomes of a whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from w2v_ray.errors import CheckpointError, ConfigError
from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.heads import Wav2Vec2BertForCTC, Wav2Vec2ForCTC
from w2v_ray.models.int8 import Int8Linear
from w2v_ray.models.wav2vec2 import Wav2Vec2Model

CONFIG = Wav2Vec2Config(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    conv_dim=(32, 32),
    conv_kernel=(10, 3),
    conv_stride=(5, 2),
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
)
BERT_CONFIG = Wav2Vec2BertConfig(
    vocab_size=32,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    feature_projection_input_dim=20,
    conv_depthwise_kernel_size=3,
    position_embeddings_type="relative_key",
)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_rounded_to_255_steps_of_their_row(dtype: torch.dtype) -> None:
    weight, bias, x = random(7, 40), random(7, seed=1), random(3, 5, 40, seed=2, dtype=dtype)
    weight[2] *= 1000
    weight[3] = 0
    layer = Int8Linear(weight, bias, dtype)
    steps = layer.weight.float()
    assert layer.weight.dtype == torch.int8
    assert steps.abs().amax(1).tolist() == [127, 127, 127, 0, 127, 127, 127]
    error = (steps * layer.weight_scale.float()[:, None] - weight).abs()
    # Half a step, and where float16 or bfloat16 cannot say the largest weight, what is lost there.
    assert (error <= weight.abs().amax(1, keepdim=True) * (0.5 / 127 + torch.finfo(dtype).eps)).all()
    out = layer(x)
    assert out.dtype == dtype
    exact = F.linear(x.double(), steps.double() * layer.weight_scale.double()[:, None], bias.double())
    torch.testing.assert_close(
        out.double(), exact, rtol=20 * torch.finfo(dtype).eps, atol=0.1 if dtype != torch.float32 else 1e-3
    )


def test_without_a_bias() -> None:
    weight, x = random(7, 40), random(5, 40, seed=2)
    layer = Int8Linear(weight, None, torch.float32)
    torch.testing.assert_close(layer(x), F.linear(x, weight), atol=0.2, rtol=0)
    assert "bias" not in layer.state_dict()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    models = {"wav2vec2": Wav2Vec2ForCTC(CONFIG), "bert": Wav2Vec2BertForCTC(BERT_CONFIG)}
    for name, model in models.items():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        model.save_pretrained(tmp_path_factory.mktemp(name))
    return {name: next(tmp_path_factory.getbasetemp().glob(f"{name}*")) for name in models}


def kinds(model: nn.Module) -> dict[str, type[nn.Module]]:
    return {n: type(m) for n, m in model.named_modules() if isinstance(m, nn.Linear | Int8Linear)}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "model_class", "shape"),
    [("wav2vec2", Wav2Vec2ForCTC, (2, 1_600)), ("bert", Wav2Vec2BertForCTC, (2, 50, 20))],
)
def test_a_model_in_8_bits_is_near_the_exact_one(
    folders: dict[str, Path], name: str, model_class: Any, shape: tuple[int, ...]
) -> None:
    exact = model_class.from_pretrained(folders[name])
    small = model_class.from_pretrained(folders[name], load_in_8bit=True, device_map="auto").cpu()
    found, names = kinds(small), kinds(exact).keys()
    assert found.keys() == names
    assert {n for n, kind in found.items() if kind is nn.Linear} == {"lm_head"}
    x = random(*shape)
    expected, logits = exact(x).logits, small(x).logits
    difference = (logits - expected).norm() / expected.norm()
    assert 1e-5 < difference < 0.03
    half = small.bfloat16()(x.bfloat16()).logits
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() / expected.norm() < 0.05


def memory(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


def test_memory_and_dtypes(folders: dict[str, Path]) -> None:
    exact = Wav2Vec2Model.from_pretrained(folders["wav2vec2"])
    small = Wav2Vec2Model.from_pretrained(folders["wav2vec2"], load_in_8bit=True, torch_dtype=torch.float16)
    linear = sum(m.weight.numel() for m in exact.modules() if isinstance(m, nn.Linear))
    outputs = sum(m.out_features for m in exact.modules() if isinstance(m, nn.Linear))
    assert memory(small) == memory(exact) / 2 - linear + 2 * outputs
    assert {t.dtype for t in small.state_dict().values()} == {torch.int8, torch.float16}
    assert {k: v for k, v in kinds(small).items() if v is nn.Linear} == {}
    assert {p.dtype for p in small.parameters()} == {torch.float16}


def test_training_goes_on_around_the_rounded_weights(folders: dict[str, Path]) -> None:
    model = Wav2Vec2ForCTC.from_pretrained(folders["wav2vec2"], load_in_8bit=True).train()
    model(random(1, 2_000), labels=torch.tensor([[5]])).loss.backward()
    assert model.lm_head.weight.grad is not None
    assert model.wav2vec2.encoder.layers[0].layer_norm.weight.grad is not None


def test_what_is_rounded_is_not_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    model = Wav2Vec2ForCTC.from_pretrained(folders["wav2vec2"], load_in_8bit=True)
    with pytest.raises(ConfigError, match=r"load_in_8bit was true, .*; load the model without it to save it"):
        model.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())


def test_loading_is_as_strict(folders: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="of another shape"):
        Wav2Vec2ForCTC.from_pretrained(folders["wav2vec2"], load_in_8bit=True, intermediate_size=100)


def test_language_adapters_stay_as_they_are(tmp_path: Path) -> None:
    """They are loaded anew for each language, after the model is there."""
    values = {**CONFIG.to_dict(), "adapter_attn_dim": 16, "do_stable_layer_norm": True}
    Wav2Vec2ForCTC(Wav2Vec2Config.from_dict(values)).save_pretrained(tmp_path)
    found = kinds(Wav2Vec2ForCTC.from_pretrained(tmp_path, load_in_8bit=True))
    adapters = {name for name in found if "adapter_layer" in name}
    assert len(adapters) == 4
    assert {name for name, kind in found.items() if kind is nn.Linear} == {*adapters, "lm_head"}
