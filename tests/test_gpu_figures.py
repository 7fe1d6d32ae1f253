"""The peaks that the encoder's benchmark knows are those of the device that is there, or none."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def figures() -> Any:
    path = Path(__file__).parents[1] / "benchmarks" / "gpu_figures.py"
    spec = importlib.util.spec_from_file_location("gpu_figures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.1),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),  # a part of one
        ("Tesla T4", None),
    ],
)
def test_the_peak_of_a_device_is_known_by_its_name(figures: Any, name: str, peak: float | None) -> None:
    assert figures.dense_peak_tflops(name) == peak
