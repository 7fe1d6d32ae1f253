"""The data flow of a job, and running it: read, decode, segment, encode, decode text, write.

This is the only place where stages are wired together. It refuses to compute anything itself.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy

from w2v_ray.align_config import AlignConfig
from w2v_ray.config import JobConfig
from w2v_ray.errors import ConfigError
from w2v_ray.hub import absolute_model
from w2v_ray.job import RunSummary, prepare, seconds_per_frame, summarize
from w2v_ray.packing import PackedStage, pack, unpack
from w2v_ray.plan import Plan
from w2v_ray.progress import Meter, Progress
from w2v_ray.schema import SAMPLE_RATE_HZ
from w2v_ray.stages.align_text import MAX_ITEM_SECONDS, AlignText, AlignTextConfig, TakeText
from w2v_ray.stages.decode_audio import DecodeAudio, DecodeAudioConfig
from w2v_ray.stages.decode_text import DecodeText, DecodeTextConfig
from w2v_ray.stages.encode import Encode, EncodeConfig
from w2v_ray.stages.read_audio import ReadAudio, ReadAudioConfig
from w2v_ray.stages.segment_audio import SegmentAudio, SegmentAudioConfig
from w2v_ray.stages.write_parquet import WriteParquet, WriteParquetConfig

__all__ = ["Pools", "build", "run", "run_plan"]

logger = logging.getLogger(__name__)

# A shard must stay one block after the encoder, however many log-probabilities it has.
_MAX_BLOCK_BYTES = 8 * 2**30
# A worker that dies is replaced; one that dies each time on the same shard ends the job instead of looping.
_MAX_RETRIES = 2
# Decoded shards that wait in memory for each encoder. More would not make it faster, and every page of the
# object store that a worker ever read counts as resident in it.
_SHARDS_AHEAD = 6
_POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """Where the stages run, apart from what they compute: workers, and what each reserves."""

    num_readers: int | None  # None: as many as the free CPUs allow
    num_encoders: int
    encoder_cpus: float
    encoder_gpus: float
    num_decoders: int
    decoder_cpus: float
    num_writers: int
    task_cpus: float

    @classmethod
    def for_cluster(cls, job: JobConfig, *, cpus: float, gpus: float) -> Pools:
        """Sizes the pools so that readers and writers always have CPUs left.

        Raises:
            ConfigError: The job asks for more than the cluster has.
        """
        on_gpu = job.device.startswith("cuda") or (job.device == "auto" and gpus > 0)
        if on_gpu and gpus < 1:
            raise ConfigError(
                f"device is {job.device!r} but the cluster has no GPU; use device cpu, or add one"
            )
        share = min(1.0, cpus / 8)
        num_encoders = job.num_encoders or (int(gpus) if on_gpu else 1)
        num_decoders = job.num_decoders or max(1, int(cpus // 8))
        if on_gpu and num_encoders > gpus:
            raise ConfigError(
                f"num_encoders is {num_encoders} but the cluster has {gpus:g} GPUs; set it to {int(gpus)}"
            )
        pools = cls(
            # Encoders on CPUs use all of them; a reader feeds what four cores encode with the smallest model.
            num_readers=None if on_gpu else max(1, int(cpus // 4)),
            num_encoders=num_encoders,
            encoder_cpus=share if on_gpu else cpus / 2 / num_encoders,
            encoder_gpus=1.0 if on_gpu else 0.0,
            num_decoders=num_decoders,
            decoder_cpus=share,
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


def build(job: JobConfig, plan: Plan, pools: Pools, *, meter: ActorHandle[Meter]) -> Dataset:
    """The flow over the shards that are not published yet: a lazy Dataset of shard summaries."""
    read = ReadAudio(ReadAudioConfig())
    decode = DecodeAudio(_decoding(job))
    segment = SegmentAudio(SegmentAudioConfig(max_segment_seconds=job.max_segment_seconds))
    model = absolute_model(job.model)
    encode = EncodeConfig(
        model=model,
        revision=job.revision,
        device="cpu" if not pools.encoder_gpus else job.device.replace("auto", "cuda"),
        attn_implementation=job.attn_implementation,
        dtype=job.dtype,
        num_threads=None if pools.encoder_gpus else job.encoder_threads or _all_cores(pools),
    )
    text_stage, text = _text_stage(job, model)
    write = WriteParquetConfig(output=job.output, job_fingerprint=plan.job_fingerprint, table=_table(job))
    task: dict[str, Any] = {
        "num_cpus": pools.task_cpus,
        "batch_format": "pyarrow",
        "compute": TaskPoolStrategy(size=pools.num_readers),
        "max_retries": _MAX_RETRIES,
    }
    actor: dict[str, Any] = {
        "batch_format": "pyarrow",
        "max_restarts": _MAX_RETRIES,
        "max_task_retries": _MAX_RETRIES,
    }

    with warnings.catch_warnings():
        # Bounds on retries can be given in no other way in Ray 2.60 to 2.63, which call it deprecated.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        # A shard is one row, in a block of its own; from_arrow would start a worker to look at each.
        ds: Dataset = ray.data.from_blocks([pack(shard) for shard in plan.pending_tables()])
        if isinstance(job, AlignConfig):
            ds = ds.map_batches(PackedStage(TakeText(job.text_key)), batch_size=1, **task)
        ds = ds.map_batches(PackedStage(read), batch_size=1, **task)
        ds = ds.map_batches(PackedStage(decode), batch_size=1, **task)
        ds = ds.map_batches(PackedStage(segment), batch_size=1, **task)
        ds = ds.map_batches(
            EncodeShard,  # from here on a shard is a block of segments
            fn_constructor_kwargs={"config": encode, "meter": meter},
            batch_size=1,
            num_cpus=pools.encoder_cpus,
            num_gpus=pools.encoder_gpus,
            compute=ActorPoolStrategy(size=pools.num_encoders),
            **actor,
        )
        ds = ds.map_batches(
            text_stage,
            fn_constructor_args=(text,),
            batch_size=None,
            num_cpus=pools.decoder_cpus,
            compute=ActorPoolStrategy(size=pools.num_decoders),
            **actor,
        )
        return ds.map_batches(
            WriteParquet,  # an actor as well: where workers are few, Ray starts one anew for each task
            fn_constructor_args=(write,),
            batch_size=None,
            num_cpus=pools.task_cpus,
            compute=ActorPoolStrategy(size=pools.num_writers),
            **actor,
        )


def run(job: JobConfig, *, on_progress: Callable[[Progress], None] | None = None) -> RunSummary:
    """Runs a job to its end; what earlier runs of the same job published is not done again.

    Args:
        job: What to do.
        on_progress: Called about twice a second with how far the run is.

    Returns:
        What was done.

    Raises:
        W2vRayError: The job cannot start or go on; what is published by then stays and counts.
    """
    return run_plan(job, prepare(job), on_progress=on_progress)


def run_plan(
    job: JobConfig, plan: Plan, *, on_progress: Callable[[Progress], None] | None = None
) -> RunSummary:
    """Runs what is pending of a plan that ``prepare`` made for the job; otherwise as ``run``."""
    began = time.monotonic()
    summaries: list[dict[str, Any]] = []
    if plan.num_pending:
        with _ray():
            resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
            pools = Pools.for_cluster(job, cpus=resources.get("CPU", 0), gpus=resources.get("GPU", 0))
            meter = cast("ActorHandle[Meter]", ray.remote(Meter).options(num_cpus=0).remote())
            shards_ahead = _SHARDS_AHEAD * pools.num_encoders
            store_bytes = int(shards_ahead * job.shard_seconds * SAMPLE_RATE_HZ * 4)
            with _data_settings(store_bytes), _reported(plan, meter, summaries, on_progress):
                ds = build(job, plan, pools, meter=meter)
                for batch in ds.iter_batches(batch_size=None, batch_format="pyarrow"):
                    summaries.extend(cast(pa.Table, batch).to_pylist())
    return summarize(job, plan, summaries, time.monotonic() - began)


class EncodeShard:
    """The encoder as an actor: a packed shard in, a block of encoded segments out."""

    def __init__(self, config: EncodeConfig, meter: ActorHandle[Meter]) -> None:
        self._encode = Encode(config, report=meter.add.remote)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self._encode(unpack(batch))


def _text_stage(job: JobConfig, model: str) -> tuple[type, DecodeTextConfig | AlignTextConfig]:
    """What becomes of the emissions, and its settings."""
    config = AlignTextConfig if isinstance(job, AlignConfig) else DecodeTextConfig
    stage = AlignText if isinstance(job, AlignConfig) else DecodeText
    return stage, config(model=model, revision=job.revision, seconds_per_frame=seconds_per_frame(job))


def _decoding(job: JobConfig) -> DecodeAudioConfig:
    if isinstance(job, AlignConfig):
        return DecodeAudioConfig(max_item_seconds=MAX_ITEM_SECONDS)
    return DecodeAudioConfig()


def _table(job: JobConfig) -> str:
    return "alignments" if isinstance(job, AlignConfig) else "transcripts"


def _all_cores(pools: Pools) -> int:
    return max(1, (os.cpu_count() or 1) // pools.num_encoders)


@contextmanager
def _ray() -> Iterator[None]:
    """Ray as it runs already, or the cluster that RAY_ADDRESS names, or a new one on this machine."""
    if ray.is_initialized():
        yield
        return
    quiet = logging.getLogger().getEffectiveLevel() > logging.DEBUG
    ray.init(
        log_to_driver=not quiet,
        logging_level=logging.ERROR if quiet else logging.INFO,
        include_dashboard=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _data_settings(store_bytes: int) -> Iterator[None]:
    """Ray Data's settings for the time of the run, which may hold that much between its stages."""
    # Ray Data logs a line for each execution, and one for the bars that are off; progress is shown here.
    log = logging.getLogger("ray.data")
    level = log.level
    if logging.getLogger().getEffectiveLevel() > logging.DEBUG:
        log.setLevel(logging.ERROR)
    context = DataContext.get_current()
    before = context.target_max_block_size, context.enable_progress_bars, context.print_on_execution_start
    context.target_max_block_size = _MAX_BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    limits = context.execution_options.resource_limits
    context.execution_options.resource_limits = limits.copy(object_store_memory=store_bytes)
    try:
        yield
    finally:
        context.execution_options.resource_limits = limits
        context.target_max_block_size, context.enable_progress_bars, context.print_on_execution_start = before
        log.setLevel(level)


@contextmanager
def _reported(
    plan: Plan,
    meter: ActorHandle[Meter],
    summaries: list[dict[str, Any]],
    on_progress: Callable[[Progress], None] | None,
) -> Iterator[None]:
    """Tells ``on_progress`` how far the run is, from a thread, and once more at the end."""
    if on_progress is None:
        yield
        return
    began = time.monotonic()
    planned_s = plan.shard_seconds
    pending_s = sum(planned_s[shard] for shard in plan.pending)

    def progress() -> Progress:
        published = list(summaries)
        published_s = sum(planned_s[s["shard_id"]] for s in published)
        encoded_s = cast(float, ray.get(meter.total.remote()))
        return Progress(
            planned_s=plan.planned_s,
            before_s=plan.planned_s - pending_s,
            done_s=min(pending_s, max(published_s, encoded_s)),
            num_shards=plan.num_shards,
            num_shards_done=plan.num_shards - len(plan.pending) + len(published),
            num_rejects=sum(s["num_rejects"] for s in published),
            elapsed_s=time.monotonic() - began,
        )

    stop = threading.Event()

    def report() -> None:
        while not stop.wait(_POLL_S):
            on_progress(progress())

    thread = threading.Thread(target=report, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    on_progress(progress())
