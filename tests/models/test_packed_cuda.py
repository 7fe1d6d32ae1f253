"""The paths for a GPU on one that is simulated: the same numbers, no waiting, memory as it was found."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import encoder_cases
from tests.models import test_packed as packed_cases
from tests.simulated_cuda import GIB, Gpu, simulated_cuda
from w2v_ray.errors import ConfigError
from w2v_ray.models import packed_attention
from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.packed import PackedEncoder
from w2v_ray.models.wav2vec2 import Wav2Vec2Model
from w2v_ray.models.wav2vec2_bert import Wav2Vec2BertModel
from w2v_ray.stages.encode import Encode
from w2v_ray.stages.encode_config import EncodeConfig

# Of widths that are multiples of 8, as a GPU's products of bytes want them.
NAMES = [
    *("group", "layer", "adapter", "language-adapter"),
    *("bert", "bert-relative", "bert-rotary", "bert-no-positions", "bert-adapter", "bert-between"),
]
CASES = {name: packed_cases.CASES[name] for name in NAMES}
for name in NAMES:
    if name.startswith("bert"):
        CASES[name] = CASES[name] | {"feature_projection_input_dim": 24}
NO_BIAS = [name for name in NAMES if CASES[name].get("position_embeddings_type", "") not in ("", "relative")]
NO_BIAS += ["group", "layer", "adapter", "language-adapter"]
FRAMES = (25, 1, 9, 24)
NEAR = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}


@cache
def model_of(case: str, kernel: str = "sdpa") -> Any:
    is_bert = case.startswith("bert")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config: Any = (Wav2Vec2BertConfig if is_bert else Wav2Vec2Config)(**CASES[case])
        model: Any = (Wav2Vec2BertModel if is_bert else Wav2Vec2Model)(config, attn_implementation=kernel)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += (0.3 if parameter.ndim == 1 else 0.1) * torch.randn(parameter.shape)
    return model.eval()


def inputs_of(case: str, frames: Sequence[int] = FRAMES) -> list[torch.Tensor]:
    seeds = [torch.Generator().manual_seed(seed) for seed in range(len(frames))]
    if case.startswith("bert"):
        return [torch.randn(n, 24, generator=seed) for n, seed in zip(frames, seeds, strict=True)]
    return [torch.randn(80 + 320 * n, generator=seed) for n, seed in zip(frames, seeds, strict=True)]


@cache
def expected_of(case: str, frames: Sequence[int] = FRAMES) -> list[torch.Tensor]:
    return [output.last for output in PackedEncoder(copy.deepcopy(model_of(case)))(inputs_of(case, frames))]


def encoded(
    gpu: Gpu, case: str, dtype: torch.dtype, *, kernel: str = "sdpa", int8: bool = False, **given: Any
) -> list[torch.Tensor]:
    """What the GPU gives, on the host; what it was asked for meanwhile is in ``gpu``."""
    packed = PackedEncoder(copy.deepcopy(model_of(case, kernel)).to("cuda", dtype), int8=int8)
    inputs = [one.to("cuda", dtype) for one in inputs_of(case, **given)]
    gpu.waits.clear()
    outputs = packed(inputs, layers=True)
    assert not gpu.waits
    assert {layer.device.type for output in outputs for layer in (output.last, *output.layers)} == {"cuda"}
    assert {layer.dtype for output in outputs for layer in (output.last, *output.layers)} == {dtype}
    return [output.last.float().cpu() for output in outputs]


def assert_near(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], near: float) -> None:
    for ours, wanted in zip(found, expected, strict=True):
        assert (ours - wanted).norm() <= near * wanted.norm()


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(name, torch.bfloat16) for name in NAMES]
    + [(name, torch.float32) for name in ("group", "layer", "bert", "bert-relative", "bert-rotary")]
    + [("adapter", torch.float16), ("bert-adapter", torch.float16)],
    ids=str,
)
def test_the_encoder_waits_for_nothing_and_gives_what_it_gives_on_a_cpu(
    case: str, dtype: torch.dtype
) -> None:
    with simulated_cuda() as gpu:
        found = encoded(gpu, case, dtype)
    assert_near(found, expected_of(case), NEAR[dtype])
    is_one_call = dtype != torch.float32 and case in NO_BIAS
    assert gpu.calls["varlen"] == (2 if is_one_call else 0)  # one a layer
    assert gpu.calls["cudnn"] == gpu.calls["mask copied"] == 0


@pytest.mark.parametrize("case", ["group", "bert"])
def test_bytes(case: str) -> None:
    with simulated_cuda(capability=(7, 5)) as gpu:
        found = encoded(gpu, case, torch.bfloat16, int8=True)
    assert_near(found, expected_of(case), 0.06)
    assert gpu.calls["int8"] > 8


@pytest.mark.parametrize(
    ("kernel", "call"), [("eager", ""), ("flex_attention", ""), ("flash_attention_2", "flash-attn")]
)
@pytest.mark.parametrize("case", ["layer", "bert-rotary"])
def test_other_kernels(case: str, kernel: str, call: str) -> None:
    with simulated_cuda() as gpu:
        found = encoded(gpu, case, torch.float16, kernel=kernel)
    assert_near(found, expected_of(case), NEAR[torch.float16])
    assert gpu.calls["sdpa"] == gpu.calls["varlen"] == 0
    assert gpu.calls["flash-attn"] == (2 if call else 0)


def test_a_gpu_older_than_flash_attention_has_one_call_for_each_utterance() -> None:
    with simulated_cuda(capability=(7, 5)) as gpu:
        found = encoded(gpu, "layer", torch.float16)
    assert_near(found, expected_of("layer"), NEAR[torch.float16])
    assert (gpu.calls["varlen"], gpu.calls["sdpa"]) == (0, 2 * len(FRAMES))


@pytest.mark.parametrize("case", ["bert", "bert-relative"])
@pytest.mark.parametrize("queries", [8, 100])
def test_a_bias_lies_where_the_kernel_takes_it(
    case: str, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of lengths whose rows are aligned by themselves, too, though their first number is not."""
    frames = (10, 12, 18, 19)
    monkeypatch.setattr(packed_attention, "_SCORES_AT_ONCE", 4 * 10 * queries)
    with simulated_cuda() as gpu:
        found = encoded(gpu, case, torch.bfloat16, frames=frames)
    assert_near(found, expected_of(case, frames), NEAR[torch.bfloat16])
    assert gpu.calls["mask copied"] == 0


WAVES = [encoder_cases.sound(n, seed) for seed, n in enumerate((16_000, 2_000, 9_000, 8_000, 640, 30_000))]


def stage(folder: Path, **options: Any) -> Encode:
    return Encode(EncodeConfig(model=str(folder), **options))


@pytest.fixture(scope="module", params=["group", "bert"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / request.param
    changes = {"feature_projection_input_dim": 160} if request.param == "bert" else {}
    return encoder_cases.checkpoint(path, request.param, "transcribe", **changes)


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch_seconds": 2},
        {"max_batch_seconds": 100, "dtype": "bfloat16"},
        {"chunk_length_s": 0.6, "normalize": "segment", "deterministic": True, "max_batch_seconds": 1},
    ],
    ids=str,
)
def test_the_stage_waits_for_results_alone(folder: Path, options: dict[str, Any]) -> None:
    expected = stage(folder, **options | {"dtype": "float32"})(encoder_cases.table_of(WAVES))
    with simulated_cuda() as gpu:
        encode = stage(folder, device="cuda", **options)
        encode(encoder_cases.table_of(WAVES[:1]))  # tables of the features are made once
        gpu.waits.clear()
        batches = encode.stats["batches"]
        found = encode(encoder_cases.table_of(WAVES))
        batches = encode.stats["batches"] - batches
    head = encode._heads.heads[0]
    near = 0.5 if "dtype" in options else 1e-3
    for ours, wanted in zip(*(encoder_cases.values_of(t, head) for t in (found, expected)), strict=True):
        assert ours is not None
        assert wanted is not None
        assert np.abs(ours - wanted).max() <= near
    # Of each batch: whether its numbers are finite, and the numbers.
    assert gpu.waits == {"copy to the host": 2 * batches}
    assert gpu.calls["cudnn"] == 0


def test_padded_batches_have_the_numbers_of_a_cpu(folder: Path) -> None:
    expected = stage(folder, reference_batch=4)(encoder_cases.table_of(WAVES))
    with simulated_cuda():
        encode = stage(folder, device="cuda", reference_batch=4)
        found = encode(encoder_cases.table_of(WAVES))
    head = encode._heads.heads[0]
    assert found["error"].to_pylist() == expected["error"].to_pylist()
    for ours, wanted in zip(*(encoder_cases.values_of(t, head) for t in (found, expected)), strict=True):
        assert (ours is None) == (wanted is None)
        assert ours is None or np.abs(ours - wanted).max() <= 1e-3


@pytest.mark.parametrize("family", ["layer", "bert-adapter"])
def test_all_heads(family: str, tmp_path: Path) -> None:
    heads = encoder_cases.heads_of(tmp_path, family)
    options: dict[str, Any] = {"heads": heads, "max_batch_seconds": 2}
    expected = Encode(EncodeConfig(**options))(encoder_cases.table_of(WAVES))
    with simulated_cuda():
        found = Encode(EncodeConfig(device="cuda", **options))(encoder_cases.table_of(WAVES))
    assert found["error"].to_pylist() == expected["error"].to_pylist()
    for head in heads:
        ours, wanted = (encoder_cases.values_of(table, head) for table in (found, expected))
        for one, other in zip(ours, wanted, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert np.abs(one - other).max() <= 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_auto_is_chosen_for_the_device_that_the_encoder_is_on(folder: Path, dtype: str) -> None:
    with simulated_cuda():
        encode = stage(folder, device="cuda", dtype=dtype, attn_implementation="auto", max_batch_seconds=1)
    has_bias = folder.name == "bert"
    name = "flash_attention_2" if dtype == "bfloat16" and not has_bias else "sdpa"
    assert encode.attention["name"] == name
    assert "on cpu" not in encode.attention["reason"]


def bytes_of_a_batch(encode: Encode, gpu: Gpu, waves: Sequence[Any]) -> int:
    before = gpu.peak = gpu.allocated
    assert encode(encoder_cases.table_of(waves))["error"].null_count == len(waves)
    return gpu.peak - before


def shortened(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[float, float]]:
    """Lets the warm-up try seconds where it tries minutes; what it found is in what is returned."""
    from w2v_ray.stages import batches

    monkeypatch.setattr(batches, "_TRIAL_S", 0.5)
    monkeypatch.setattr(batches, "_FIRST_S", 0.5)
    monkeypatch.setattr(batches, "_MOST_S", 8.0)
    monkeypatch.setattr(batches, "_ENOUGH_GAIN", 0.0)  # times mean nothing here
    found: dict[float, float] = {}
    choose = batches.choose_budget

    def choose_seen(measure: Any, *, most_bytes: float) -> float:
        def seen(seconds: float) -> tuple[float, float]:
            took = measure(seconds)
            found[seconds] = took[1]
            return took[0], took[1]

        return choose(seen, most_bytes=most_bytes)

    monkeypatch.setattr(batches, "choose_budget", choose_seen)
    return lambda: found


def test_a_full_batch_takes_the_memory_that_was_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shortened(monkeypatch)
    with simulated_cuda(num_bytes=GIB) as gpu:
        encode = stage(folder, device="cuda")
        budget_s = encode.stats["budget_s"]
        assert budget_s == 8.0
        lengths = [6_000 + 400 * n for n in range(8)] * 4
        lengths = sorted(lengths, reverse=True)
        waves = [encoder_cases.sound(n, n) for n in lengths[: encode._num_next(lengths)]]
        assert bytes_of_a_batch(encode, gpu, waves) <= 1.1 * found()[budget_s]
        assert encode.stats["batches"] == 1


def test_memory_that_others_take_halves_the_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shortened(monkeypatch)
    waves = [encoder_cases.sound(8_000, n) for n in range(8)]
    with simulated_cuda(num_bytes=GIB) as gpu:
        encode = stage(folder, device="cuda")
        gpu.num_bytes = gpu.allocated + int(found()[2.0])
        table = encode(encoder_cases.table_of(waves))
        assert table["error"].null_count == len(waves)
        assert encode.stats["budget_s"] < 4.0
        small = stage(folder, device="cuda")  # whose warm-up has no more
        assert small.stats["budget_s"] <= 2.0


def test_bytes_are_refused_on_a_gpu_without_instructions_for_them(folder: Path) -> None:
    with simulated_cuda(capability=(7, 0)), pytest.raises(ConfigError, match="has no instructions for it"):
        stage(folder, device="cuda", dtype="int8")
