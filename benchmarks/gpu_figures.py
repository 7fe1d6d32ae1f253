"""What benchmarks/encode.py tells of a GPU alone: the share of its peak, an hour of audio, and memory."""

from __future__ import annotations

import itertools
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from w2v_ray.frame_rate import model_config
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.flops import count_flops
from w2v_ray.processors import AutoFeatureExtractor
from w2v_ray.schema import SAMPLE_RATE_HZ

__all__ = ["dense_peak_tflops", "measure_gpu"]

# Dense bfloat16 with sums in float32, of the maker's data sheets; a device's name has all words of its row.
_PEAKS = (
    (("GB200",), 2500.0),
    (("B200",), 2250.0),
    (("GH200",), 989.4),
    (("H200", "NVL"), 835.5),
    (("H200",), 989.4),
    (("H100", "NVL"), 835.5),
    (("H100", "PCIe"), 756.5),
    (("H100",), 989.4),
    (("A100",), 312.0),
    (("A30",), 165.0),
    (("A40",), 149.7),
    (("A10",), 125.0),
    (("A10G",), 70.0),
    (("L40S",), 362.1),
    (("L40",), 181.1),
    (("L4",), 121.0),
)
_SHORTEST_S, _LONGEST_S = 10.0, 20.0  # of the clips that the share of the peak is told of


def dense_peak_tflops(name: str) -> float | None:
    """The dense bfloat16 peak of a GPU of that name; None: it is not known here, or a part of a GPU."""
    words = set(re.split(r"[\s-]+", name))
    if "MIG" in words:
        return None
    return next((peak for wanted, peak in _PEAKS if words.issuperset(wanted)), None)


def measure_gpu(
    folder: Path,
    encode: Callable[[Any], Any],
    everything: Sequence[Any],
    *,
    table_of: Callable[[Sequence[Any]], Any],
    repeats: int,
    peak_tflops: float | None,
) -> dict[str, Any]:
    """The figures of one size.

    Args:
        folder: The checkpoint.
        encode: The stage, with it.
        everything: All clips there are.
        table_of: Makes what the stage takes of clips.
        repeats: How often each is timed; medians are told.
        peak_tflops: Of the device; None: as its name says.
    """

    def median_s(*shards: Sequence[Any]) -> float:
        tables = [table_of(shard) for shard in shards]
        runs = []
        for _ in range(1 + repeats):
            torch.cuda.synchronize()
            began = time.perf_counter()
            for table in tables:
                encode(table)
            torch.cuda.synchronize()
            runs.append(time.perf_counter() - began)
        return statistics.median(runs[1:])  # the first may have tried kernels, or made room for itself

    waves = [wave for wave in everything if _SHORTEST_S <= len(wave) / SAMPLE_RATE_HZ <= _LONGEST_S]
    waves = waves or list(everything)
    weights = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    taken_s = median_s(waves)
    taken_bytes = torch.cuda.max_memory_allocated() - weights
    tflops = sum(_flops(folder, [len(wave) for wave in waves])) / taken_s / 1e12
    name = torch.cuda.get_device_name()
    peak = peak_tflops or dense_peak_tflops(name)
    unknown = f"the dense bfloat16 peak of {name!r} is not known here; give it with --peak-tflops"
    number = max(1, round(3600 / _seconds_of(everything) * len(everything)))
    hour = list(itertools.islice(itertools.cycle(everything), number))
    thirds = [hour[i::3] for i in range(3)]  # a job's shards have twenty minutes
    tried = getattr(encode, "budget_bytes", None)
    return {
        "clips_for_the_share": len(waves),
        "ms_per_clip": round(taken_s / len(waves) * 1e3, 3),
        "x_real_time_of_these": round(_seconds_of(waves) / taken_s, 1),
        "tflops": round(tflops, 1),
        "peak_tflops": peak,
        "share_of_peak": round(tflops / peak, 3) if peak else unknown,
        "s_for_an_hour": round(median_s(*thirds) * 3600 / _seconds_of(hour), 2),
        "batch_s": getattr(encode, "stats", {}).get("budget_s"),
        "mb_of_weights": round(weights / 1e6),
        "mb_of_a_batch": round(taken_bytes / 1e6),
        "mb_of_a_batch_as_tried_out": None if tried is None else round(tried / 1e6),
    }


def _flops(folder: Path, samples: Sequence[int]) -> list[int]:
    """Operations of each clip, as if it were alone: of the encoder and its head."""
    config: Any = model_config(str(folder))
    if not isinstance(config, Wav2Vec2Config):
        extractor: Any = AutoFeatureExtractor.from_pretrained(folder)
        samples = [extractor.num_steps(number) for number in samples]
    return [sum(count_flops(config, number, head="transcribe").values()) for number in samples]


def _seconds_of(waves: Sequence[Any]) -> float:
    return sum(map(len, waves)) / SAMPLE_RATE_HZ
