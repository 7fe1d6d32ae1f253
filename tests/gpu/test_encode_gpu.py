"""The encoder on a GPU gives what it gives on the CPU. Run with ``pytest -m gpu tests/gpu``."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

from w2v_ray import demo
from w2v_ray.schema import DECODED, ERROR
from w2v_ray.stages.emissions import emission_of
from w2v_ray.stages.encode import Encode
from w2v_ray.stages.encode_config import EncodeConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def segments() -> pa.Table:
    waves = [soundfile.read(file, dtype="float32")[0] for file in sorted(demo.ARCHIVE.glob("*.flac"))]
    samples = pa.array([wave.tobytes() for wave in waves], DECODED[0].type)
    return pa.table({"samples": samples, "error": pa.array([None] * len(waves), ERROR)})


def emissions(device: str, dtype: str) -> list[np.ndarray]:
    encode = Encode(EncodeConfig(model=str(demo.CHECKPOINT), device=device, dtype=dtype))
    table = encode(segments())
    assert table.column("error").null_count == table.num_rows
    rows = zip(table.column("log_probs").to_pylist(), table.column("num_frames").to_pylist(), strict=True)
    return [np.frombuffer(data, np.float16).reshape(frames, -1).astype(np.float32) for data, frames in rows]


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 0.02), ("float16", 0.3), ("bfloat16", 1.0)])
def test_a_gpu_gives_what_a_cpu_gives(dtype: str, bound: float) -> None:
    for on_cpu, on_gpu in zip(emissions("cpu", "float32"), emissions("cuda", dtype), strict=True):
        likely = on_cpu > -7  # below it a float16 emission says no more than "not this"
        assert np.abs(on_cpu - on_gpu)[likely].max() < bound
        if dtype == "float32":
            assert (on_cpu.argmax(-1) == on_gpu.argmax(-1)).mean() > 0.999


def test_the_likeliest_tokens_are_picked_on_the_gpu() -> None:
    config = EncodeConfig(model=str(demo.CHECKPOINT), device="cuda", dtype="float32", top_tokens=8)
    table = Encode(config)(segments())
    for row, whole in enumerate(emissions("cuda", "float32")):
        top = emission_of(table, row).astype(np.float32)
        is_top = whole > np.sort(whole, axis=1)[:, -8][:, None]
        assert table.column("vocabulary_size")[row].as_py() == whole.shape[1]
        assert np.abs(top - whole)[is_top].max() < 0.02
        assert (top.argmax(-1) == whole.argmax(-1)).mean() > 0.999
