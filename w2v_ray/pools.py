"""How many workers each stage gets, and what each reserves, for a job on a cluster of some size."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from w2v_ray.config import JobConfig, RedecodeConfig
from w2v_ray.errors import ConfigError

__all__ = ["Machines", "Pools"]

# Seconds of audio in a second: what an encoder is expected to reach on a GPU, and what a thread of a beam
# search reaches at a width of 100 at least. A KenLM file is asked through Python: a thread does a fifth then.
_ENCODER_RATE = 3000
_SEARCH_RATE = 1000
_KENLM_SLOWDOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """What the machines that run work have; a head that reserves no CPU is none of them."""

    num_nodes: int
    cpus: float
    node_cpus: float
    """CPUs of the largest one, which is the most that one worker can reserve."""
    gpus: float = 0.0
    """GPUs that encoders may run on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """Where the stages run, apart from what they compute: workers, and what each reserves."""

    num_readers: int | None  # None: as many as the free CPUs allow
    num_encoders: int
    encoder_cpus: float
    encoder_gpus: float
    encoder_threads: int  # of one on CPUs
    num_decoders: int
    decoder_cpus: float
    decoder_threads: int
    num_writers: int
    task_cpus: float
    growth: float = 1.0  # how many times these encoders and decoders there may be once machines have joined

    def encoders(self, num_shards: int) -> tuple[int, int]:
        """How many encoders a run over so many shards has at least, and at most."""
        most = math.ceil(self.num_encoders * self.growth)
        if self.encoder_gpus:
            return self.num_encoders, most
        # Ray adds a worker only where CPUs are left once every stage has got its part, which is never where
        # encoders run on CPUs. So all that there is a shard for are asked for at once, and wait for machines.
        all_of_them = max(self.num_encoders, min(most, num_shards))
        return all_of_them, all_of_them

    def decoders(self) -> tuple[int, int]:
        """How many text decoders a run has at least, and at most."""
        return self.num_decoders, math.ceil(self.num_decoders * self.growth)

    @classmethod
    def for_cluster(cls, job: JobConfig, machines: Machines) -> Pools:
        """Sizes the pools so that readers always have CPUs left, also once a machine is lost.

        Raises:
            ConfigError: The job asks for more than the cluster has.
        """
        cpus, node_cpus, gpus = machines.cpus, machines.node_cpus, machines.gpus
        on_gpu = job.wants_gpu or (job.device == "auto" and gpus > 0)
        kind = f"{job.accelerator_type} GPU" if job.accelerator_type else "GPU"
        if on_gpu and gpus < 1:
            raise ConfigError(
                f"device is {job.device!r} but the cluster has no {kind}; use device cpu, or add one"
            )
        # What is left without the largest machine. The workers of a machine that is lost are started on the
        # others, and must not take what readers need there.
        safe_cpus = cpus - node_cpus if machines.num_nodes > 1 else cpus
        share = min(1.0, safe_cpus / 8, node_cpus / 8)
        room = int(gpus) * int(1 / job.gpus_per_encoder)
        num_encoders = job.num_encoders or (room if on_gpu else machines.num_nodes)
        num_decoders, threads, decoder_cpus = _decoders(
            job, safe_cpus, node_cpus, num_encoders if on_gpu else 0, share
        )
        if on_gpu and num_encoders > room:
            raise ConfigError(
                f"num_encoders is {num_encoders} but the cluster has {gpus:g} {kind}s, with room for {room} "
                f"at gpus_per_encoder {job.gpus_per_encoder:g}; set it to {room}, and max_encoders to what "
                "there may be later"
            )
        if not on_gpu and num_encoders > max(1, cpus):
            raise ConfigError(
                f"num_encoders is {num_encoders} but the cluster has {cpus:g} CPUs; set {int(cpus)} at most"
            )
        growth = max(1.0, (job.max_encoders or num_encoders) / num_encoders)
        encoder_cpus = share
        if not on_gpu:
            encoder_cpus = min(safe_cpus / 2 / num_encoders, node_cpus)
            if growth > 1:
                # So much that one more does not fit on a machine, but asks an autoscaler for another.
                on_each = math.ceil(num_encoders / machines.num_nodes)
                encoder_cpus = node_cpus * max(0.6 / on_each, 1.05 / (on_each + 1))
        pools = cls(
            # Encoders on CPUs use all of them; a reader feeds what four cores encode with the smallest model.
            # Without a bound Ray asks an autoscaler for machines to read on, before it knows their speed.
            num_readers=None if on_gpu else math.ceil(max(1, cpus // 4) * growth),
            num_encoders=num_encoders,
            encoder_cpus=encoder_cpus,
            encoder_gpus=job.gpus_per_encoder if on_gpu else 0.0,
            encoder_threads=max(1, int(node_cpus) // math.ceil(num_encoders / machines.num_nodes)),
            num_decoders=num_decoders,
            # All that there may be fit on what is there at first, should the rest go.
            decoder_cpus=decoder_cpus / growth,
            decoder_threads=threads,
            num_writers=max(1, int(safe_cpus // 8)),
            task_cpus=share,
            growth=growth,
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
            encoder_threads=0,
            num_decoders=num_decoders,
            decoder_cpus=min(share, cpus / 2 / num_decoders),
            decoder_threads=job.decoder_threads or max(1, (os.cpu_count() or 1) // num_decoders),
            num_writers=1,
            task_cpus=share,
        )


def _decoders(
    job: JobConfig, cpus: float, node_cpus: float, gpus: int, share: float
) -> tuple[int, int, float]:
    """Text decoders, threads of each, and CPUs that each reserves, so that no encoder waits for them."""
    if not job.is_search:
        return job.num_decoders or max(1, int(cpus // 8)), 1, share
    width = job.beam_width or 100
    rate = _SEARCH_RATE * min(1.0, 100 / width) / (_KENLM_SLOWDOWN if (job.lm or "").endswith(".bin") else 1)
    # An encoder on CPUs has all cores and is slower than one thread that searches.
    needed = min(max(1, math.ceil(gpus * _ENCODER_RATE / rate)), max(1, int(cpus / 2)))
    # One that took a whole machine would leave the GPU there without an encoder.
    num_decoders = job.num_decoders or math.ceil(needed / max(1, int(node_cpus / 2)))
    threads = job.decoder_threads or max(1, needed // num_decoders)
    reserved = min(float(threads), node_cpus / 2) if gpus and not job.decoder_threads else share
    return num_decoders, threads, reserved
