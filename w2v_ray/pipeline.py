"""The data flow of a job, and running it: read, decode, segment, encode, decode text, write.

Decoding again is the end of the same flow: read log-probabilities, decode text, write.

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
from dataclasses import replace
from typing import Any, cast

import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy

from w2v_ray import stores
from w2v_ray.align_config import AlignConfig
from w2v_ray.config import JobConfig, RedecodeConfig
from w2v_ray.decoding import reachable
from w2v_ray.hub import absolute_model
from w2v_ray.job import RunSummary, Vocabulary, prepare, prepare_redecode, summarize, vocabulary_of
from w2v_ray.packing import PackedStage, pack, unpack
from w2v_ray.parts import log_probs_files
from w2v_ray.plan import Plan
from w2v_ray.plan.records import read_job
from w2v_ray.pools import Pools
from w2v_ray.progress import Meter, Progress
from w2v_ray.ray_auth import warn_of_open_cluster
from w2v_ray.schema import SAMPLE_RATE_HZ
from w2v_ray.stages.align_text import MAX_ITEM_SECONDS, AlignText, AlignTextConfig, TakeText
from w2v_ray.stages.decode_audio import DecodeAudio, DecodeAudioConfig
from w2v_ray.stages.decode_text import DecodeText, DecodeTextConfig
from w2v_ray.stages.encode import Encode, EncodeConfig
from w2v_ray.stages.keep_log_probs import KeepLogProbs, ReadLogProbs, ReadLogProbsConfig
from w2v_ray.stages.read_audio import ReadAudio, ReadAudioConfig
from w2v_ray.stages.segment_audio import SegmentAudio, SegmentAudioConfig
from w2v_ray.stages.write_parquet import WriteParquet, WriteParquetConfig

__all__ = ["build", "build_redecode", "redecode", "run", "run_plan", "run_redecode_plan", "running_ray"]

logger = logging.getLogger(__name__)

# A shard must stay one block after the encoder, however many log-probabilities it has.
_MAX_BLOCK_BYTES = 8 * 2**30
# A worker that dies is replaced; one that dies each time on the same shard ends the job instead of looping.
_MAX_RETRIES = 2
# Decoded shards that wait in memory for each encoder. More would not make it faster, and every page of the
# object store that a worker ever read counts as resident in it.
_SHARDS_AHEAD = 6
_REDECODE_STORE_BYTES = 2 * 2**30  # between reading and decoding, where shards are small
_POLL_S = 0.5

TextConfig = DecodeTextConfig | AlignTextConfig

_ACTOR: dict[str, Any] = {
    "batch_format": "pyarrow",
    "max_restarts": _MAX_RETRIES,
    "max_task_retries": _MAX_RETRIES,
}


def build(job: JobConfig, plan: Plan, pools: Pools, *, meter: ActorHandle[Meter]) -> Dataset:
    """The flow over the shards that are not published yet: a lazy Dataset of shard summaries."""
    read = ReadAudio(ReadAudioConfig())
    decode = DecodeAudio(_decoding(job))
    segment = SegmentAudio(
        SegmentAudioConfig(
            max_segment_seconds=job.max_segment_seconds, vad=job.vad, keep_non_speech=job.keep_non_speech
        )
    )
    model = absolute_model(job.model)
    encode = EncodeConfig(
        model=model,
        revision=job.revision,
        device="cpu" if not pools.encoder_gpus else job.device.replace("auto", "cuda"),
        attn_implementation=job.attn_implementation,
        dtype=job.dtype,
        num_threads=None if pools.encoder_gpus else job.encoder_threads or _all_cores(pools),
    )
    vocabulary = vocabulary_of(job.model, revision=job.revision)
    if isinstance(job, AlignConfig):
        frame_s = vocabulary.seconds_per_frame
        text: TextConfig = AlignTextConfig(
            model=model, revision=job.revision, seconds_per_frame=frame_s, num_threads=pools.decoder_threads
        )
    else:
        text = DecodeTextConfig(
            tokenizer=vocabulary.tokenizer,
            seconds_per_frame=vocabulary.seconds_per_frame,
            decoder=reachable(job.decoder()),
            model=model,
            revision=job.revision,
            num_threads=pools.decoder_threads,
        )
    write = WriteParquetConfig(
        output=job.output,
        job_fingerprint=plan.job_fingerprint,
        table="alignments" if isinstance(job, AlignConfig) else "transcripts",
        keeps_log_probs=job.keep_log_probs is not None,
        partition_by=plan.partition_by,
    )
    task = _task(pools)
    with _bounded_retries():
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
            **_ACTOR,
            **_environment(),
        )
        return _decoded_and_written(ds, text, write, pools, keep=job.keep_log_probs)


def build_redecode(job: RedecodeConfig, plan: Plan, vocabulary: Vocabulary, pools: Pools) -> Dataset:
    """The flow over the kept log-probabilities of the shards that are not published yet."""
    source_fingerprint, _ = read_job(job.source)
    read = ReadLogProbsConfig(
        source=job.source, job_fingerprint=source_fingerprint, tokenizer=vocabulary.tokenizer
    )
    text = DecodeTextConfig(
        tokenizer=vocabulary.tokenizer,
        seconds_per_frame=vocabulary.seconds_per_frame,
        decoder=reachable(job.decoder()),
        num_threads=pools.decoder_threads,
    )
    write = WriteParquetConfig(
        output=job.output, job_fingerprint=plan.job_fingerprint, partition_by=plan.partition_by
    )
    with _bounded_retries():
        kept = log_probs_files(job.source, plan.pending)
        ds: Dataset = ray.data.from_blocks([pa.table({"log_probs_file": [name]}) for name in kept])
        ds = ds.map_batches(ReadLogProbs(read), batch_size=1, **_task(pools))
        return _decoded_and_written(ds, text, write, pools, keep=None)


def _decoded_and_written(
    ds: Dataset, text: TextConfig, write: WriteParquetConfig, pools: Pools, *, keep: int | None
) -> Dataset:
    """The end of every flow: blocks of encoded segments in, one each shard, and summaries out."""
    ds = ds.map_batches(
        TextShard,
        fn_constructor_kwargs={"config": text, "keep": keep},
        batch_size=None,
        num_cpus=pools.decoder_cpus,
        compute=ActorPoolStrategy(size=pools.num_decoders),
        **_ACTOR,
        **_environment(),
    )
    return ds.map_batches(
        WriteParquet,  # an actor as well: where workers are few, Ray starts one anew for each task
        fn_constructor_args=(write,),
        batch_size=None,
        num_cpus=pools.task_cpus,
        compute=ActorPoolStrategy(size=pools.num_writers),
        **_ACTOR,
        **_environment(),
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
        with running_ray():
            resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
            pools = Pools.for_cluster(job, cpus=resources.get("CPU", 0), gpus=resources.get("GPU", 0))
            meter = cast("ActorHandle[Meter]", ray.remote(Meter).options(num_cpus=0).remote())
            shards_ahead = _SHARDS_AHEAD * pools.num_encoders
            store_bytes = int(shards_ahead * job.shard_seconds * SAMPLE_RATE_HZ * 4)
            with _data_settings(store_bytes), _reported(plan, meter, summaries, on_progress):
                _gather(build(job, plan, pools, meter=meter), summaries)
    return summarize(job, plan, summaries, time.monotonic() - began)


def redecode(job: RedecodeConfig, *, on_progress: Callable[[Progress], None] | None = None) -> RunSummary:
    """Decodes what a job kept again, with another decoder, into an output of its own.

    What earlier runs of the same job published is not done again; what the source has published since is.

    Args:
        job: Whose log-probabilities to take, and how to decode them.
        on_progress: Called about twice a second with how far the run is.

    Raises:
        W2vRayError: The job cannot start or go on; what is published by then stays and counts.
    """
    return run_redecode_plan(job, *prepare_redecode(job), on_progress=on_progress)


def run_redecode_plan(
    job: RedecodeConfig,
    plan: Plan,
    vocabulary: Vocabulary,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunSummary:
    """Runs what is pending of what ``prepare_redecode`` made for the job; otherwise as ``redecode``."""
    began = time.monotonic()
    summaries: list[dict[str, Any]] = []
    if plan.num_pending:
        with running_ray():
            cpus = ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
            pools = Pools.for_redecode(job, cpus=cpus)
            with _data_settings(_REDECODE_STORE_BYTES), _reported(plan, None, summaries, on_progress):
                _gather(build_redecode(job, plan, vocabulary, pools), summaries)
    return summarize(job, plan, summaries, time.monotonic() - began)


def _gather(ds: Dataset, summaries: list[dict[str, Any]]) -> None:
    for batch in ds.iter_batches(batch_size=None, batch_format="pyarrow"):
        summaries.extend(cast(pa.Table, batch).to_pylist())


class EncodeShard:
    """The encoder as an actor: a packed shard in, a block of encoded segments out."""

    def __init__(self, config: EncodeConfig, meter: ActorHandle[Meter]) -> None:
        self._encode = Encode(config, report=meter.add.remote)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self._encode(unpack(batch))


def _decoding(job: JobConfig) -> DecodeAudioConfig:
    config = DecodeAudioConfig(channel=job.channel, on_truncated=job.on_truncated)
    return replace(config, max_item_seconds=MAX_ITEM_SECONDS) if isinstance(job, AlignConfig) else config


class TextShard:
    """The text stage as an actor: a block of encoded segments in, one of transcripts or alignments out."""

    def __init__(self, config: TextConfig, keep: int | None) -> None:
        self._keep = None
        if isinstance(config, AlignTextConfig):
            self._stage: AlignText | DecodeText = AlignText(config)
        else:
            self._keep = None if keep is None else KeepLogProbs(config.tokenizer, count=keep)
            self._stage = DecodeText(config)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self._stage(batch if self._keep is None else self._keep(batch))


def _task(pools: Pools) -> dict[str, Any]:
    return {
        "num_cpus": pools.task_cpus,
        "batch_format": "pyarrow",
        "compute": TaskPoolStrategy(size=pools.num_readers),
        "max_retries": _MAX_RETRIES,
        **_environment(),
    }


def _environment() -> dict[str, Any]:
    """What tells worker processes how to ask stores, where this process was told something."""
    variables = stores.in_use().environment()
    return {"runtime_env": {"env_vars": variables}} if variables else {}


@contextmanager
def _bounded_retries() -> Iterator[None]:
    with warnings.catch_warnings():
        # Bounds on retries can be given in no other way in Ray 2.60 to 2.63, which call it deprecated.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        yield


def _all_cores(pools: Pools) -> int:
    return max(1, (os.cpu_count() or 1) // pools.num_encoders)


@contextmanager
def running_ray() -> Iterator[None]:
    """Ray as it runs already, or the cluster that RAY_ADDRESS names, or a new one on this machine."""
    if ray.is_initialized():
        warn_of_open_cluster()
        yield
        return
    quiet = logging.getLogger().getEffectiveLevel() > logging.DEBUG
    ray.init(
        log_to_driver=not quiet,
        logging_level=logging.ERROR if quiet else logging.INFO,
        include_dashboard=False,
    )
    try:
        warn_of_open_cluster()
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
    meter: ActorHandle[Meter] | None,
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
        encoded_s = 0.0 if meter is None else cast(float, ray.get(meter.total.remote()))
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
