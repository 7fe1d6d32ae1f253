"""Kernels, 8-bit weights and placement on a GPU, against the CPU. Run with ``pytest -m gpu tests/gpu``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from w2v_ray.errors import ConfigError
from w2v_ray.models.attention import KERNELS, choose_kernel
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.heads import Wav2Vec2ForCTC
from w2v_ray.models.int8 import Int8Linear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

B, H, L, D = 3, 4, 150, 64
NO_FLASH = importlib.util.find_spec("flash_attn") is None
NAMES = [name for name in KERNELS if name != "flash_attention_2" or not NO_FLASH]


def inputs(dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(B, H, L, D, generator=generator).to("cuda", dtype) for _ in range(3)]
    bias_BHLL = torch.randn(B, H, L, L, generator=generator).to("cuda", dtype)
    return qkv, bias_BHLL, (torch.arange(L)[None] < torch.tensor([L, 70, 1])[:, None]).cuda()


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_and_its_gradients(name: str, dtype: torch.dtype, with_bias: bool, masked: bool) -> None:
    if name == "flash_attention_2" and (with_bias or dtype == torch.float32):
        pytest.skip("refused")
    qkv, bias_BHLL, valid_BL = inputs(dtype)
    results = []
    for kernel, inputs_here in (("eager", [x.double() for x in qkv]), (name, qkv)):
        leaves = [x.detach().requires_grad_() for x in inputs_here]
        bias = bias_BHLL.to(leaves[0].dtype) if with_bias else None
        out, _ = choose_kernel(kernel)(*leaves, valid_BL if masked else None, 0.0, bias_BHLL=bias)
        shown = out.masked_fill(~valid_BL[:, None, :, None], 0) if masked else out
        shown.sum().backward()
        results.append([shown.detach().double(), *(x.grad.double() for x in leaves if x.grad is not None)])
    # TF32 is off by default, so float32 is exact up to the order of sums.
    bound = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]
    for exact, found in zip(*results, strict=True):
        assert (exact - found).abs().max() < bound * max(1.0, float(exact.abs().max()))


@pytest.mark.skipif(NO_FLASH, reason="flash-attn is not installed")
def test_flash_attention_refuses_float32() -> None:
    qkv, _, valid_BL = inputs(torch.float32)
    with pytest.raises(ConfigError, match=r"was given torch\.float32 on cuda, expected torch\.float16"):
        choose_kernel("flash_attention_2")(*qkv, valid_BL, 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    Wav2Vec2ForCTC(Wav2Vec2Config(num_hidden_layers=2)).save_pretrained(path)
    return path


@torch.no_grad()
@pytest.mark.parametrize("load_in_8bit", [True, False])
@pytest.mark.parametrize("attn_implementation", [*NAMES, "auto"])
def test_a_model_on_the_gpu(folder: Path, attn_implementation: str, load_in_8bit: bool) -> None:
    waves = torch.randn(2, 32_000, generator=torch.Generator().manual_seed(0))
    expected = Wav2Vec2ForCTC.from_pretrained(folder)(waves).logits
    model = Wav2Vec2ForCTC.from_pretrained(
        folder,
        device_map="auto",
        dtype=torch.float16,
        attn_implementation=attn_implementation,
        load_in_8bit=load_in_8bit,
    )
    assert {t.device for t in model.state_dict().values()} == {torch.device("cuda", 0)}
    assert any(isinstance(m, Int8Linear) for m in model.modules()) == load_in_8bit
    logits = model(waves.cuda().half()).logits.float().cpu()
    assert (logits - expected).norm() < (0.05 if load_in_8bit else 0.01) * expected.norm()
    if attn_implementation == "auto":
        assert model.attn_implementation == ("sdpa" if NO_FLASH else "flash_attention_2")
