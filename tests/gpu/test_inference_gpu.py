"""The local pipeline on a GPU gives what it gives on the CPU. Run with ``pytest -m gpu tests/gpu``."""

from __future__ import annotations

import pytest
import torch

from w2v_ray import demo
from w2v_ray.inference import pipeline

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("place", [{}, {"device": 0}, {"device": "cuda"}, {"device_map": "auto"}], ids=str)
def test_a_gpu_reads_what_a_cpu_reads(place: dict[str, object]) -> None:
    files = sorted(demo.ARCHIVE.glob("*.flac"))
    on_cpu = pipeline("automatic-speech-recognition", demo.CHECKPOINT, device="cpu")
    on_gpu = pipeline("automatic-speech-recognition", demo.CHECKPOINT, **place)
    assert next(on_gpu.model.parameters()).device.type == "cuda"
    assert on_gpu(files, batch_size=3) == on_cpu(files)
