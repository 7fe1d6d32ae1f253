"""How many workers each stage gets, and what each reserves, for a job on a cluster of some size."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from w2v_ray.config import JobConfig, RedecodeConfig
from w2v_ray.errors import ConfigError

__all__ = ["Pools"]

# Seconds of audio in a second: what an encoder is expected to reach on a GPU, and what a thread of a beam
# search reaches at a width of 100 at least. A KenLM file is asked through Python: a thread does a fifth then.
_ENCODER_RATE = 3000
_SEARCH_RATE = 1000
_KENLM_SLOWDOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """Where the stages run, apart from what they compute: workers, and what each reserves."""

    num_readers: int | None  # None: as many as the free CPUs allow
    num_encoders: int
    encoder_cpus: float
    encoder_gpus: float
    num_decoders: int
    decoder_cpus: float
    decoder_threads: int
    num_writers: int
    task_cpus: float

    @classmethod
    def for_cluster(
        cls, job: JobConfig, *, cpus: float, gpus: float, node_cpus: float | None = None
    ) -> Pools:
        """Sizes the pools so that readers and writers always have CPUs left.

        Args:
            job: What is wanted.
            cpus: Of the cluster.
            gpus: Of the cluster.
            node_cpus: Of its largest machine, which is the most that one worker can reserve; None: all.

        Raises:
            ConfigError: The job asks for more than the cluster has.
        """
        on_gpu = job.device.startswith("cuda") or (job.device == "auto" and gpus > 0)
        if on_gpu and gpus < 1:
            raise ConfigError(
                f"device is {job.device!r} but the cluster has no GPU; use device cpu, or add one"
            )
        share = min(1.0, cpus / 8)
        node_cpus = cpus if node_cpus is None else node_cpus
        num_encoders = job.num_encoders or (int(gpus) if on_gpu else 1)
        num_decoders, threads, decoder_cpus = _decoders(job, cpus, node_cpus, num_encoders if on_gpu else 0)
        if on_gpu and num_encoders > gpus:
            raise ConfigError(
                f"num_encoders is {num_encoders} but the cluster has {gpus:g} GPUs; set it to {int(gpus)}"
            )
        if not on_gpu and num_encoders > max(1, cpus):
            raise ConfigError(
                f"num_encoders is {num_encoders} but the cluster has {cpus:g} CPUs; set {int(cpus)} at most"
            )
        pools = cls(
            # Encoders on CPUs use all of them; a reader feeds what four cores encode with the smallest model.
            num_readers=None if on_gpu else max(1, int(cpus // 4)),
            num_encoders=num_encoders,
            encoder_cpus=share if on_gpu else min(cpus / 2 / num_encoders, node_cpus),
            encoder_gpus=1.0 if on_gpu else 0.0,
            num_decoders=num_decoders,
            decoder_cpus=decoder_cpus,
            decoder_threads=threads,
            num_writers=max(1, int(cpus // 8)),
            task_cpus=share,
        )
        reserved = pools.num_encoders * pools.encoder_cpus + pools.num_decoders * pools.decoder_cpus
        reserved += pools.num_writers * pools.task_cpus
        if reserved + pools.task_cpus > cpus:
            raise ConfigError(
                f"{num_encoders} encoders and {num_decoders} text decoders would reserve {reserved:g} of "
                f"{cpus:g} CPUs and leave none to read; lower num_encoders or num_decoders"
            )
        return pools

    @classmethod
    def for_redecode(cls, job: RedecodeConfig, *, cpus: float) -> Pools:
        """Sizes the pools of a job without an encoder: the decoder takes what the machine has."""
        share = min(1.0, cpus / 8)
        num_decoders = job.num_decoders or 1
        return cls(
            num_readers=max(1, int(cpus // 4)),
            num_encoders=0,
            encoder_cpus=0.0,
            encoder_gpus=0.0,
            num_decoders=num_decoders,
            decoder_cpus=min(share, cpus / 2 / num_decoders),
            decoder_threads=job.decoder_threads or max(1, (os.cpu_count() or 1) // num_decoders),
            num_writers=1,
            task_cpus=share,
        )


def _decoders(job: JobConfig, cpus: float, node_cpus: float, gpus: int) -> tuple[int, int, float]:
    """Text decoders, threads of each, and CPUs that each reserves, so that no encoder waits for them."""
    share = min(1.0, cpus / 8)
    if not job.is_search:
        return job.num_decoders or max(1, int(cpus // 8)), 1, share
    width = job.beam_width or 100
    rate = _SEARCH_RATE * min(1.0, 100 / width) / (_KENLM_SLOWDOWN if (job.lm or "").endswith(".bin") else 1)
    # An encoder on CPUs has all cores and is slower than one thread that searches.
    needed = max(1, math.ceil(gpus * _ENCODER_RATE / rate))
    most = max(1, int(min(cpus / 2, node_cpus)))
    num_decoders = job.num_decoders or 1
    threads = job.decoder_threads or max(1, min(needed, most) // num_decoders)
    return num_decoders, threads, float(threads) if gpus and not job.decoder_threads else share
