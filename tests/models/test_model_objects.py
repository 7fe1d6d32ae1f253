"""Models as objects: copied, moved, shared by threads, in inference mode, and with rows that hold nothing."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from w2v_ray.models import heads, xvector
from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.wav2vec2 import Wav2Vec2Model
from w2v_ray.models.wav2vec2_bert import Wav2Vec2BertModel

SMALL: dict[str, Any] = {
    "vocab_size": 12,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "hidden_act": "gelu_new",
    "classifier_proj_size": 8,
    "tdnn_dim": (8, 8),
    "tdnn_kernel": (3, 1),
    "tdnn_dilation": (1, 1),
    "xvector_output_dim": 8,
    "use_weighted_layer_sum": True,
}
WAVES: dict[str, Any] = {
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
FEATURES: dict[str, Any] = {"feature_projection_input_dim": 8, "conv_depthwise_kernel_size": 3}
CONFIGS: dict[str, Any] = {
    "group": Wav2Vec2Config(**SMALL, **WAVES),
    "layer": Wav2Vec2Config(**SMALL, **WAVES, feat_extract_norm="layer", do_stable_layer_norm=True),
    **{
        str(kind): Wav2Vec2BertConfig(**SMALL, **FEATURES, position_embeddings_type=kind)
        for kind in (None, "relative", "relative_key", "rotary")
    },
}
HEADS = ("Model", "ForCTC", "ForSequenceClassification", "ForAudioFrameClassification", "ForXVector")
CASES = [(kind, head) for kind in CONFIGS for head in HEADS]


def make(kind: str, head: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = CONFIGS[kind]
    family = "Wav2Vec2" if isinstance(config, Wav2Vec2Config) else "Wav2Vec2Bert"
    encoders = {"Wav2Vec2Model": Wav2Vec2Model, "Wav2Vec2BertModel": Wav2Vec2BertModel}
    cls = (
        encoders.get(family + head) or getattr(heads, family + head, None) or getattr(xvector, family + head)
    )
    return cls(config, **options).eval()


def make_batch(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Three rows, the last of them shorter."""
    generator = torch.Generator().manual_seed(1)
    shape = (3, 600) if isinstance(CONFIGS[kind], Wav2Vec2Config) else (3, 40, 8)
    mask = torch.ones(shape[:2], dtype=torch.long)
    mask[2, shape[1] * 2 // 3 :] = 0
    return torch.randn(shape, generator=generator), mask


def result(model: Any, inputs: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    output: torch.Tensor = model(inputs, mask)[0]
    return output


@pytest.mark.parametrize(("kind", "head"), CASES)
@torch.no_grad()
def test_a_copy_is_another_model_of_the_same_weights(kind: str, head: str) -> None:
    model, (inputs, mask) = make(kind, head), make_batch(kind)
    expected = result(model, inputs, mask)
    twin = copy.deepcopy(model)
    assert torch.equal(result(twin, inputs, mask), expected)
    for parameter in twin.parameters():
        parameter += 1
    assert torch.equal(result(model, inputs, mask), expected)
    other = make(kind, head)
    assert other.load_state_dict(model.state_dict()) == ([], [])
    assert torch.equal(result(other, inputs, mask), expected)


@pytest.mark.parametrize("kind", CONFIGS)
def test_configs_and_outputs_can_be_pickled(kind: str) -> None:
    assert pickle.loads(pickle.dumps(CONFIGS[kind])) == CONFIGS[kind]
    output = make(kind, "ForCTC")(make_batch(kind)[0])
    assert torch.equal(pickle.loads(pickle.dumps(output)).logits, output.logits)


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_inference_mode_and_threads(kind: str, head: str) -> None:
    model, (inputs, mask) = make(kind, head), make_batch(kind)
    with torch.inference_mode():
        expected = result(model, inputs, mask)

    def run(_: int) -> bool:
        with torch.inference_mode():
            return torch.equal(result(model, inputs, mask), expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(8)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("kind", "head"), CASES)
@torch.no_grad()
def test_other_dtypes(kind: str, head: str, dtype: torch.dtype) -> None:
    model, (inputs, mask) = make(kind, head), make_batch(kind)
    expected = result(model, inputs, mask)
    found = result(model.to(dtype), inputs.to(dtype), mask)
    assert found.dtype == dtype
    error = {torch.float16: 0.01, torch.bfloat16: 0.1, torch.float64: 1e-5}[dtype]
    frames = slice(None) if found.ndim == 2 else slice(0, found.shape[1] // 2)  # those of every row
    torch.testing.assert_close(
        found[:, frames].to(torch.float32), expected[:, frames], atol=error, rtol=error
    )


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(("kind", "head"), CASES)
@torch.no_grad()
def test_a_row_that_holds_nothing_spoils_no_other(kind: str, head: str, attn_implementation: str) -> None:
    model = make(kind, head, attn_implementation=attn_implementation)
    inputs, mask = make_batch(kind)
    mask[1] = 0
    found = result(model, inputs, mask)
    torch.testing.assert_close(found[0], result(model, inputs[:1])[0], atol=1e-5, rtol=0)
    size = int(mask[2].sum())
    alone = result(model, inputs[2:, :size])[0]
    torch.testing.assert_close(found[2, : len(alone)], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_the_mean_over_many_frames_fits_float16(kind: str) -> None:
    model = make(kind, "ForSequenceClassification").half()
    model.projector.bias += 1_000  # their sum over the frames is above float16's largest number, 65504
    inputs, mask = make_batch(kind)
    inputs, mask = (torch.cat([part] * 5, dim=1) for part in (inputs.half(), mask))
    mask = (
        torch.arange(mask.shape[1]) < torch.tensor([mask.shape[1], 40, mask.shape[1] - 40])[:, None]
    ).long()
    assert result(model, inputs, mask).isfinite().all()
