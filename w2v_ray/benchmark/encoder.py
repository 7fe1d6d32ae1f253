"""The encoder under measurement: what it is given, what it makes of its time, what the device could do."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import torch

from w2v_ray.benchmark.peak import device_bytes, device_name, peak_flops, process_bytes
from w2v_ray.benchmark.report import EncoderReport, StageReport
from w2v_ray.config import JobConfig
from w2v_ray.errors import ConfigError
from w2v_ray.frame_rate import model_config
from w2v_ray.heads import Head
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.flops import count_flops
from w2v_ray.processors import AutoFeatureExtractor
from w2v_ray.stages import Encode, EncodeConfig

__all__ = ["EncoderBench", "encoder_device"]

_SHARD_S = 1200.0  # what a GPU is given at once, as in a job; less makes smaller batches
_BYTES = 4  # of a sample


class EncoderBench:
    """The stage ``encode`` of a job, with what its batches hold; torch's threads are as before at the end."""

    def __init__(self, job: JobConfig, heads: Sequence[Head]) -> None:
        self.device = encoder_device(job.device)
        self.on_gpu = self.device.type == "cuda"
        self.device_name = device_name(self.device)
        self.torch_version = torch.__version__
        self.num_encoders = job.num_encoders or (torch.cuda.device_count() if self.on_gpu else 1)
        self.num_threads = None
        if not self.on_gpu:  # as the pipeline gives them out
            self.num_threads = job.encoder_threads or max(1, (os.cpu_count() or 1) // self.num_encoders)
        self._job, self._heads = job, heads
        self._threads_before = torch.get_num_threads()
        self._num_batches, self._padding_share = 0, 0.0
        self._encode = Encode(
            EncodeConfig.of(
                job,
                heads=heads,
                device=str(self.device),
                num_threads=self.num_threads,
                top_tokens=job.top_tokens if self.on_gpu else None,
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.set_num_threads(self._threads_before)

    def __call__(self, table: pa.Table) -> pa.Table:
        before = dict(self._encode.stats)
        encoded = self._encode(table)
        batches, audio_s, padded_s = (
            self._encode.stats[name] - before[name] for name in ("batches", "audio_s", "padded_s")
        )
        self._num_batches = int(batches)
        self._padding_share = padded_s / (padded_s + audio_s) if audio_s else 0.0
        return encoded

    def repeated(self, table: pa.Table, audio_s: float) -> pa.Table:
        """The table as often as a GPU needs it to be as busy as in a job; on a CPU once."""
        copies = max(1, math.ceil(_SHARD_S / audio_s)) if self.on_gpu else 1
        return pa.concat_tables([table] * copies)

    def warm_up(self, table: pa.Table) -> pa.Table:
        """What to encode before the clock runs: the shortest segment, or on a GPU all."""
        if self.on_gpu:
            return table
        lengths = _lengths(table)
        row = min((row for row, length in enumerate(lengths) if length), key=lengths.__getitem__)
        return table.slice(row, 1)

    def memory(self) -> tuple[int, int | None]:
        """The most memory so far: of the process, and of tensors on the GPU, in bytes."""
        return process_bytes(), device_bytes(self.device)

    def report(self, timing: StageReport, table: pa.Table) -> EncoderReport:
        """What became of the time in which a table was encoded, beside what the device can do."""
        flops = _flops(self._job, self._heads, _lengths(table))
        achieved, peak = flops / timing.busy_s, peak_flops(self.device, self._job.dtype)
        return EncoderReport(
            num_batches=self._num_batches,
            padding_share=self._padding_share,
            flop_per_audio_s=flops / timing.audio_s,
            achieved_flops=achieved,
            peak_flops=peak,
            peak_share=achieved / peak,
        )


def encoder_device(name: str) -> torch.device:
    """The device that a job's setting means on this machine.

    Raises:
        ConfigError: It has no such GPU.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device is {name!r} and this machine has {count} GPUs; choose auto or cpu")
    return device


def _lengths(table: pa.Table) -> list[int]:
    """The samples of each segment; 0 of those that have failed."""
    sizes = pc.if_else(pc.is_null(table.column("error")), pc.binary_length(table.column("samples")), 0)
    return [size // _BYTES for size in sizes.to_pylist()]


def _flops(job: JobConfig, heads: Sequence[Head], lengths: Sequence[int]) -> int:
    """Operations for segments of so many samples, each as if it were alone."""
    config = model_config(job.model, revision=job.revision)
    if not isinstance(config, Wav2Vec2Config):
        extractor: Any = AutoFeatureExtractor.from_pretrained(job.model, revision=job.revision)
        lengths = [extractor.num_steps(length) for length in lengths]
    counts = Counter(lengths)
    total = sum(n * sum(count_flops(config, length).values()) for length, n in counts.items())
    for head in heads:
        kind = head.pooling if head.task == "embed" else head.task
        if kind in ("mean", "mean+std"):
            continue
        own = model_config(head.model, revision=head.revision)
        total += sum(n * count_flops(own, length, head=kind)["head"] for length, n in counts.items())
    return total
