"""The log-mel feature extractor on a GPU gives what it gives on the CPU. Run: ``pytest -m gpu tests/gpu``."""

from __future__ import annotations

import pytest
import torch

from w2v_ray.audio.seamless import SeamlessM4TFeatureExtractor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def test_features_are_those_of_the_cpu_and_stay_on_the_device() -> None:
    extractor = SeamlessM4TFeatureExtractor()
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, generator=generator) * 0.1 for n in (560, 16_000, 1_000_003)]
    expected = extractor(rows, sampling_rate=16_000, return_tensors="pt")
    for audio, device in (([row.cuda() for row in rows], None), (rows, "cuda")):
        found = extractor(audio, sampling_rate=16_000, return_tensors="pt", device=device)
        for name, value in expected.items():
            assert found[name].is_cuda
            torch.testing.assert_close(found[name].cpu(), value, rtol=0, atol=1e-5)
    arrays = extractor([row.cuda() for row in rows], sampling_rate=16_000)
    torch.testing.assert_close(
        torch.from_numpy(arrays.input_features), expected.input_features, rtol=0, atol=1e-5
    )
