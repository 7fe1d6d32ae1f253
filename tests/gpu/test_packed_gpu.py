"""The packed encoder on a GPU: what each utterance gives alone, in every type, in the memory it was given.

Run with ``pytest -m gpu tests/gpu``.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from tests.encoder_cases import sound, table_of
from w2v_ray.models import packed_attention
from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.heads import Wav2Vec2ForCTC
from w2v_ray.models.packed import PackedEncoder
from w2v_ray.models.wav2vec2 import Wav2Vec2Model
from w2v_ray.models.wav2vec2_bert import Wav2Vec2BertModel
from w2v_ray.stages.encode import Encode
from w2v_ray.stages.encode_config import EncodeConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

SIZE: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}
WAVES = SIZE | {"conv_dim": (64,) * 7, "num_conv_pos_embeddings": 32}
CASES: dict[str, Any] = {
    "group": Wav2Vec2Config(**WAVES),
    "layer": Wav2Vec2Config(
        **WAVES, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True, add_adapter=True
    ),
    "bert": Wav2Vec2BertConfig(**SIZE),
    "bert-rotary": Wav2Vec2BertConfig(**SIZE, position_embeddings_type="rotary", add_adapter=True),
    "bert-relative": Wav2Vec2BertConfig(**SIZE, position_embeddings_type="relative"),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of 10 bits, which hide a mistake as large as those of bfloat16."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def model_of(case: str) -> Any:
    torch.manual_seed(0)
    config = CASES[case]
    model: Any = (Wav2Vec2BertModel if case.startswith("bert") else Wav2Vec2Model)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (0.2 if parameter.ndim == 1 else 0.03) * torch.randn(parameter.shape)
    return model.eval()


def inputs_of(case: str) -> list[torch.Tensor]:
    if case.startswith("bert"):
        return [torch.randn(frames, 160) for frames in (200, 1, 37, 199, 2)]
    return [torch.randn(samples) for samples in (64_000, 400, 12_345, 63_999, 720)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_utterances_give_what_they_give_alone(case: str, dtype: torch.dtype) -> None:
    exact = model_of(case)
    packed = PackedEncoder(copy.deepcopy(exact).to("cuda", dtype))
    torch.manual_seed(1)
    inputs = inputs_of(case)
    on_gpu = [one.to("cuda", dtype) for one in inputs]
    together = packed(on_gpu, layers=True)
    order = [3, 0, 4, 2, 1]
    again = packed([on_gpu[index] for index in order], layers=True)
    for index, (one, ours) in enumerate(zip(on_gpu, together, strict=True)):
        (by_itself,) = packed([one], layers=True)
        other = again[order.index(index)]
        for found, moved, wanted in zip(
            (ours.last, *ours.layers),
            (other.last, *other.layers),
            (by_itself.last, *by_itself.layers),
            strict=True,
        ):
            if dtype == torch.float32:
                torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(moved, wanted, atol=1e-4, rtol=1e-4)
            else:
                for batched in (found, moved):
                    assert (batched - wanted).float().norm() <= 1e-2 * wanted.float().norm()
        with torch.no_grad():
            expected = exact(inputs[index][None]).last_hidden_state[0]
        near = 1e-3 if dtype == torch.float32 else 0.05
        assert (ours.last.float().cpu() - expected).norm() <= near * expected.norm()


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_attention_of_all_utterances_is_one_call(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("FlashAttention needs an Ampere GPU or a newer one")
    calls = []
    attend = packed_attention._FLASH["sdpa"]
    monkeypatch.setattr(packed_attention, "_varlen", lambda *given: calls.append(given) or attend(*given))
    monkeypatch.setitem(packed_attention._FLASH, "sdpa", packed_attention._varlen)
    packed = PackedEncoder(model_of("group").to("cuda", dtype))
    packed([one.to("cuda", dtype) for one in inputs_of("group")])
    assert len(calls) == 3  # one a layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_waited_for(case: str, dtype: torch.dtype) -> None:
    packed = PackedEncoder(model_of(case).to("cuda", dtype))
    inputs = [one.to("cuda", dtype) for one in inputs_of(case)]
    packed(inputs)  # kernels are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        packed(inputs[1:])  # of other lengths together
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("frames", range(33, 41))
@pytest.mark.parametrize("queries", [8, 16, 40])
@pytest.mark.parametrize("case", ["bert", "bert-relative"])
def test_a_bias_of_any_length_is_taken_by_the_kernel(
    case: str, queries: int, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_attention, "_SCORES_AT_ONCE", 4 * frames * queries)
    exact = model_of(case)
    packed = PackedEncoder(copy.deepcopy(exact).to("cuda", torch.bfloat16))
    one = torch.randn(frames, 160)
    (found,) = packed([one.to("cuda", torch.bfloat16)])
    with torch.no_grad():
        expected = exact(one[None]).last_hidden_state[0]
    assert (found.last.float().cpu() - expected).norm() <= 0.05 * expected.norm()


def test_what_flash_attention_refuses_is_computed_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setitem(packed_attention._FLASH, "sdpa", packed_attention._varlen)
    q, k, v = (torch.randn(50, 4, 32, device="cuda", dtype=torch.float16) for _ in range(3))
    found = packed_attention.packed_attention(q, k, v, [20, 30], kernel="sdpa")
    monkeypatch.undo()
    expected = packed_attention.packed_attention(q, k, v, [20, 30], kernel="sdpa")
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    Wav2Vec2ForCTC(Wav2Vec2Config(num_hidden_layers=4)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"feature_extractor_type": "Wav2Vec2FeatureExtractor"}')
    return str(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_full_batch_takes_the_memory_that_was_measured(
    checkpoint: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of clips of other lengths than those of the warm-up, within a tenth."""
    from w2v_ray.stages import encode as encode_module

    measured: dict[float, float] = {}
    choose = encode_module.choose_budget

    def choose_seen(measure: Any, *, most_bytes: float) -> float:
        def seen(seconds: float) -> tuple[float, float]:
            found: tuple[float, float] = measure(seconds)
            measured[seconds] = found[1]
            return found

        return choose(seen, most_bytes=most_bytes)

    monkeypatch.setattr(encode_module, "choose_budget", choose_seen)
    encode = Encode(EncodeConfig(model=checkpoint, device="cuda", dtype=dtype))
    budget_s = encode.stats["budget_s"]
    assert budget_s in measured
    random = np.random.default_rng(0)
    lengths = []
    while sum(lengths) < 16_000 * budget_s:
        lengths.append(int(random.integers(5 * 16_000, 20 * 16_000)))
    waves = [sound(length, seed) for seed, length in enumerate(lengths)]
    assert encode.budget_bytes == measured[budget_s]
    weights = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    table = encode(table_of(waves))
    assert table["error"].null_count == len(waves)
    # A batch's cost counts attention too, so it holds somewhat less; two batches' inputs are there at once.
    assert torch.cuda.max_memory_allocated() - weights <= 1.1 * measured[budget_s]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_deterministic_results_are_the_same_to_the_bit(checkpoint: str, dtype: str) -> None:
    encode = Encode(EncodeConfig(model=checkpoint, device="cuda", dtype=dtype, deterministic=True))
    waves = [sound(length, seed) for seed, length in enumerate((90_000, 16_000, 123_456, 89_999))]
    rows = [encode(table_of([wave])).to_pylist()[0] for wave in waves]
    for order in ([0, 1, 2, 3], [3, 1], [2, 0, 1]):
        assert encode(table_of([waves[row] for row in order])).to_pylist() == [rows[row] for row in order]
