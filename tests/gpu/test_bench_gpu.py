"""A measurement on a GPU: a shard of audio at once, and memory of the device. Run with ``pytest -m gpu``."""

from __future__ import annotations

import pytest
import torch

from w2v_ray import JobConfig, demo
from w2v_ray.benchmark import run_bench

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_encoder_of_a_gpu_is_given_as_much_as_in_a_job(dtype: str) -> None:
    job = JobConfig(inputs=demo.INPUTS, output="x", model=str(demo.CHECKPOINT), device="cuda", dtype=dtype)
    report = run_bench(job, seconds=20, whole=False)
    assert report.device == "cuda"
    assert report.device_name == torch.cuda.get_device_name()
    assert report.num_encoders == torch.cuda.device_count()
    assert report.encoder_threads is None
    assert report.encoded_s >= 1200 > report.audio_s
    assert report.device_bytes is not None
    assert report.device_bytes > 1e8
    assert 1e12 < report.encoder.peak_flops < 1e16
    assert 0 < report.encoder.peak_share < 1
