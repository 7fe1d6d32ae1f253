"""What this device can do: operations a second of large matrix products, its name, and memory in use."""

from __future__ import annotations

import platform
import resource
import time
from pathlib import Path

import torch

from w2v_ray.models.products import make_product

__all__ = ["device_bytes", "device_name", "peak_flops", "process_bytes"]

_SMALLEST, _LARGEST = 256, 8192
_LONG_ENOUGH_S = {"cpu": 0.05, "cuda": 0.005}  # a product that takes this long is as fast as they get
_REPEATS = 4


def peak_flops(device: torch.device, dtype: str) -> float:
    """Operations a second in the fastest of several products of square matrices, as threads are set now.

    They are the products that the encoder uses; those of int8 scale their rows, as there.
    """
    is_bytes = dtype == "int8"
    beside = torch.float32 if device.type == "cpu" else torch.bfloat16  # bytes, as in the stage
    kept = beside if is_bytes else getattr(torch, dtype)
    best, size, seconds = 0.0, _SMALLEST, 0.0
    while size <= _LARGEST and seconds < _LONG_ENOUGH_S[device.type]:
        left, right = (torch.randn(size, size, device=device).to(kept) for _ in range(2))
        multiply = make_product(right, None, int8=is_bytes)
        multiply(left)  # the first one chooses a kernel
        times = []
        for _ in range(_REPEATS):
            _wait(device)
            began = time.perf_counter()
            multiply(left)
            _wait(device)
            times.append(time.perf_counter() - began)
        seconds = min(times)
        best = max(best, 2 * size**3 / seconds)
        size *= 2
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """What the maker calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def process_bytes() -> int:
    """The most memory that this process has had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def device_bytes(device: torch.device) -> int | None:
    """The most memory of tensors that this process has had on a GPU; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
