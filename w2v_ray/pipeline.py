"""The data flow of a job, and running it: read, decode, segment, encode, make results, write.

Decoding again is the end of the same flow: read log-probabilities, decode text, write.

This is the only place where stages are wired together. It refuses to compute anything itself.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy

from w2v_ray import stores
from w2v_ray.align_config import AlignConfig
from w2v_ray.attempts import Attempts
from w2v_ray.config import ITEM_DEADLINE_S, JobConfig, RedecodeConfig
from w2v_ray.decoding import reachable
from w2v_ray.execution import RemoteBook, Run, data_settings, running_ray
from w2v_ray.flow_record import queues_of, record_of, stages_of
from w2v_ray.guards import Guard
from w2v_ray.heads import Head, find_heads
from w2v_ray.job import RunSummary, Vocabulary, prepare, prepare_redecode, summarize, vocabulary_of
from w2v_ray.languages import known_languages
from w2v_ray.machines import wait_for_machines
from w2v_ray.packing import PackedStage, PackedTables, unpack
from w2v_ray.parts import log_probs_files
from w2v_ray.plan import Plan
from w2v_ray.plan.records import read_job
from w2v_ray.pools import Pools
from w2v_ray.progress import Meter, Progress
from w2v_ray.quarantine import GuardedEncoder, TrackedStage, loaded
from w2v_ray.schema import SAMPLE_RATE_HZ, TABLE_OF_TASK
from w2v_ray.stages.align_text import MAX_ITEM_SECONDS, AlignTextConfig, TakeText
from w2v_ray.stages.choose_labels import ChooseLabelsConfig
from w2v_ray.stages.decode_audio import DecodeAudio, DecodeAudioConfig
from w2v_ray.stages.decode_text import DecodeTextConfig
from w2v_ray.stages.encode_config import EncodeConfig
from w2v_ray.stages.find_turns import FindTurnsConfig
from w2v_ray.stages.keep_log_probs import ReadLogProbs, ReadLogProbsConfig
from w2v_ray.stages.make_results import RESULT_STAGES, ResultConfig, ResultStage
from w2v_ray.stages.read_audio import ReadAudio, ReadAudioConfig
from w2v_ray.stages.segment_audio import SegmentAudio, SegmentAudioConfig
from w2v_ray.stages.take_language import TakeLanguage, TakeLanguageConfig
from w2v_ray.stages.write_parquet import WriteParquet, WriteParquetConfig
from w2v_ray.telemetry import RemoteMeter

__all__ = ["build", "build_redecode", "redecode", "run", "run_plan", "run_redecode_plan", "running_ray"]

# A worker that dies is replaced; what one shard may cost is bounded by the book of attempts, long before.
_MAX_RETRIES = 100
_MAX_RESTARTS = 10_000  # of one actor in a run of any length
# Decoded shards that wait in memory for each encoder. More would not make it faster, and every page of the
# object store that a worker ever read counts as resident in it.
_SHARDS_AHEAD = 6
_REDECODE_STORE_BYTES = 2 * 2**30  # between reading and decoding, where shards are small
_LEAST_STALL_S = 1800.0
_STALL_MARGIN_S = 300.0  # for a worker to start in the place of one that hung

_ACTOR: dict[str, Any] = {
    "batch_format": "pyarrow",
    "max_restarts": _MAX_RESTARTS,
    "max_task_retries": _MAX_RETRIES,
}


def build(
    job: JobConfig,
    plan: Plan,
    pools: Pools,
    *,
    meter: ActorHandle[Meter] | None,
    attempts: ActorHandle[Attempts],
) -> Dataset:
    """The flow over the shards that are not published yet: a lazy Dataset of shard summaries."""
    # torch comes with it: workers that import this module to do something else start in half the time and a
    # third of the memory without.
    from w2v_ray.stages import Encode

    guard = Guard(
        book=RemoteBook(attempts),
        item_deadline_s=job.item_deadline_seconds,
        meter=None if meter is None else RemoteMeter(meter),
    )
    read = partial(ReadAudio, ReadAudioConfig())
    decode = partial(DecodeAudio, _decoding(job))
    segmentation = SegmentAudioConfig(
        max_segment_seconds=job.max_segment_seconds, vad=job.vad, keep_non_speech=job.keep_non_speech
    )
    segment = partial(SegmentAudio, segmentation)
    heads = find_heads(job, job.model, revision=job.revision)
    encode = EncodeConfig.of(
        job,
        heads=heads,
        device="cpu" if not pools.encoder_gpus else job.device.replace("auto", "cuda"),
        num_threads=None if pools.encoder_gpus else job.encoder_threads or pools.encoder_threads,
        top_tokens=job.top_tokens if pools.encoder_gpus else None,
    )
    results = [config for head in heads for config in _results(job, head, pools)]
    write = WriteParquetConfig(
        output=plan.output,  # absolute, as the workers of a cluster are in other folders
        job_fingerprint=plan.job_fingerprint,
        table=TABLE_OF_TASK[job.task],
        also=tuple(TABLE_OF_TASK[head.task] for head in heads[1:]),
        keeps_log_probs=job.keep_log_probs is not None,
        partition_by=plan.partition_by,
    )
    task = _task(pools)
    placed: dict[str, Any] = {"accelerator_type": job.accelerator_type} if job.accelerator_type else {}
    with _bounded_retries():
        # A shard is one row, in a block of its own; from_arrow would start a worker to look at each. Ray goes
        # through them twice and asks for a list, which would hold all of them at once.
        ds: Dataset = ray.data.from_blocks(cast("list[pa.Table]", PackedTables(plan.pending_tables)))
        if isinstance(job, AlignConfig):
            take_text = guard.metered(TakeText(job.text_key), "take_text")
            ds = ds.map_batches(PackedStage(take_text), batch_size=1, **task)
        if (languages := _languages(job)) is not None:
            take_language = guard.metered(TakeLanguage(languages), "take_language")
            ds = ds.map_batches(PackedStage(take_language), batch_size=1, **task)
        ds = ds.map_batches(PackedStage(guard.stage("read_audio", read)), batch_size=1, **task)
        ds = ds.map_batches(PackedStage(guard.stage("decode_audio", decode)), batch_size=1, **task)
        ds = ds.map_batches(PackedStage(guard.stage("segment_audio", segment)), batch_size=1, **task)
        ds = ds.map_batches(
            EncodeShard,  # from here on a shard is a block of segments
            fn_constructor_kwargs={"make": partial(Encode, encode), "guard": guard},
            batch_size=1,
            num_cpus=pools.encoder_cpus,
            num_gpus=pools.encoder_gpus,
            **placed,
            compute=_pool(*pools.encoders(plan.num_pending)),
            **_ACTOR,
            **_environment(),
        )
        return _finished_and_written(ds, results, write, pools, guard, keep=job.keep_log_probs)


def _languages(job: JobConfig) -> TakeLanguageConfig | None:
    """Where the language of a recording is told; None: nowhere."""
    if not job.language_fields():
        return None
    tokenizer = vocabulary_of(job.model, revision=job.revision).tokenizer
    known = known_languages(job.model, tokenizer, revision=job.revision)
    return TakeLanguageConfig(key=job.language_key, default=job.language, known=known)


def _results(job: JobConfig, head: Head, pools: Pools) -> Iterator[ResultConfig]:
    """What makes the results of a head's numbers; an embedding is one already."""
    if head.task == "classify":
        yield ChooseLabelsConfig(classes=head.classes, top_k=job.top_k, threshold=job.threshold)
    elif head.task == "frames":
        yield FindTurnsConfig(
            classes=head.classes,
            seconds_per_frame=head.seconds_per_frame,
            onset=job.onset,
            offset=job.offset,
            min_on_seconds=job.min_on_seconds,
            min_off_seconds=job.min_off_seconds,
        )
    elif head.task == "transcribe":
        vocabulary = vocabulary_of(head.model, revision=head.revision)
        frame_s = vocabulary.seconds_per_frame
        model, revision, threads = head.model, head.revision, pools.decoder_threads
        if isinstance(job, AlignConfig):
            yield AlignTextConfig(
                model=model, revision=revision, seconds_per_frame=frame_s, num_threads=threads
            )
        else:
            yield DecodeTextConfig(
                tokenizer=vocabulary.tokenizer,
                seconds_per_frame=frame_s,
                decoder=reachable(job.decoder()),
                model=model,
                revision=revision,
                num_threads=threads,
            )


def build_redecode(
    job: RedecodeConfig,
    plan: Plan,
    vocabulary: Vocabulary,
    pools: Pools,
    *,
    meter: ActorHandle[Meter] | None,
    attempts: ActorHandle[Attempts],
) -> Dataset:
    """The flow over the kept log-probabilities of the shards that are not published yet."""
    guard = Guard(
        book=RemoteBook(attempts),
        item_deadline_s=ITEM_DEADLINE_S,
        meter=None if meter is None else RemoteMeter(meter),
    )
    source_fingerprint, _ = read_job(job.source)
    read = ReadLogProbsConfig(
        source=stores.canonical(job.source),
        job_fingerprint=source_fingerprint,
        tokenizer=vocabulary.tokenizer,
    )
    text = DecodeTextConfig(
        tokenizer=vocabulary.tokenizer,
        seconds_per_frame=vocabulary.seconds_per_frame,
        decoder=reachable(job.decoder()),
        num_threads=pools.decoder_threads,
    )
    write = WriteParquetConfig(
        output=plan.output, job_fingerprint=plan.job_fingerprint, partition_by=plan.partition_by
    )
    with _bounded_retries():
        kept = log_probs_files(job.source, plan.pending)
        ds: Dataset = ray.data.from_blocks(
            [
                pa.table({"shard_id": [shard], "log_probs_file": [name]})
                for shard, name in zip(plan.pending, kept, strict=True)
            ]
        )
        stage = TrackedStage(ReadLogProbs(read), name="read_log_probs", book=guard.book)
        ds = ds.map_batches(guard.metered(stage, "read_log_probs"), batch_size=1, **_task(pools))
        return _finished_and_written(ds, [text], write, pools, guard, keep=None)


def _finished_and_written(
    ds: Dataset,
    results: Sequence[ResultConfig],
    write: WriteParquetConfig,
    pools: Pools,
    guard: Guard,
    *,
    keep: int | None,
) -> Dataset:
    """The end of every flow: blocks of encoded segments in, one each shard, and summaries out."""
    if results:
        name = RESULT_STAGES[type(results[0])][0]
        ds = ds.map_batches(
            ResultShard,
            fn_constructor_kwargs={"make": partial(ResultStage, results, keep), "name": name, "guard": guard},
            batch_size=None,
            num_cpus=pools.decoder_cpus,
            compute=_pool(*pools.decoders()),
            **_ACTOR,
            **_environment(),
        )
    return ds.map_batches(
        WriteShard,  # an actor as well: where workers are few, Ray starts one anew for each task
        fn_constructor_kwargs={"make": partial(WriteParquet, write), "guard": guard},
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
    job: JobConfig,
    plan: Plan,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    command: str | None = None,
) -> RunSummary:
    """Runs what is pending of a plan that ``prepare`` made for the job; otherwise as ``run``.

    ``command`` is what the record of the run says was asked for, where it is not the job's task.
    """
    began = time.monotonic()
    summaries: list[dict[str, Any]] = []
    if plan.num_pending:
        with running_ray():
            stall_s = job.stall_seconds or max(
                _LEAST_STALL_S, job.item_deadline_seconds + job.shard_seconds + _STALL_MARGIN_S
            )
            machines = wait_for_machines(
                gpus=job.gpus_per_encoder if job.wants_gpu else 0.0,
                accelerator_type=job.accelerator_type,
                timeout_s=stall_s,
            )
            pools = Pools.for_cluster(job, machines)
            run = Run(
                plan,
                stall_s=stall_s,
                queues=queues_of(stages_of(job)),
                on_progress=on_progress,
                record=record_of(job, plan, pools, command=command),
            )
            shards_ahead = _SHARDS_AHEAD * math.ceil(pools.num_encoders * pools.growth)
            store_bytes = int(shards_ahead * job.shard_seconds * SAMPLE_RATE_HZ * 4)
            with data_settings(store_bytes):
                summaries = run.gather(build(job, plan, pools, meter=run.meter, attempts=run.attempts))
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
            pools = Pools.for_redecode(job, cpus=wait_for_machines(timeout_s=_LEAST_STALL_S).cpus)
            run = Run(
                plan,
                stall_s=_LEAST_STALL_S,
                queues=queues_of(stages_of(job)),
                on_progress=on_progress,
                record=record_of(job, plan, pools, command=None),
            )
            with data_settings(_REDECODE_STORE_BYTES):
                summaries = run.gather(
                    build_redecode(job, plan, vocabulary, pools, meter=run.meter, attempts=run.attempts)
                )
    return summarize(job, plan, summaries, time.monotonic() - began)


class EncodeShard:
    """The encoder as an actor: a packed shard in, a block of encoded segments out."""

    def __init__(self, make: Callable[..., Callable[[pa.Table], pa.Table]], guard: Guard) -> None:
        worker = _actor_id()
        meter = guard.batch_meter(worker)

        def encoder(
            before: Callable[[Sequence[int]], None], report: Callable[[float], None]
        ) -> Callable[[pa.Table], pa.Table]:
            made = make(before=before, report=report)
            if meter is not None and guard.meter is not None:
                meter.watch(made)
                if (attention := getattr(made, "attention", None)) is not None:
                    guard.meter.note("attention", attention)
            return made

        def guarded() -> GuardedEncoder:
            return GuardedEncoder(
                encoder,
                book=guard.book,
                item_deadline_s=guard.item_deadline_s,
                report=(lambda seconds: None) if meter is None else meter.batch,
            )

        stage = loaded(guarded, name="encode", worker=worker, book=guard.book)
        self._stage = guard.metered(stage, "encode", by_batch=meter)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self._stage(unpack(batch))


def _decoding(job: JobConfig) -> DecodeAudioConfig:
    config = DecodeAudioConfig(channel=job.channel, on_truncated=job.on_truncated)
    return replace(config, max_item_seconds=MAX_ITEM_SECONDS) if isinstance(job, AlignConfig) else config


class ResultShard:
    """The last stages as an actor: a block of encoded segments in, one of results out."""

    def __init__(self, make: Callable[[], ResultStage], name: str, guard: Guard) -> None:
        stage = loaded(partial(guard.guarded, name, make), name=name, worker=_actor_id(), book=guard.book)
        self._stage = guard.metered(stage, name)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self._stage(batch)


class WriteShard:
    """The writer as an actor: a block of results in, the summary of the shard out."""

    def __init__(self, make: Callable[[], WriteParquet], guard: Guard) -> None:
        stage = TrackedStage(make(), name="write_parquet", book=guard.book)
        self._stage = guard.metered(stage, "write_parquet")

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self._stage(batch)


def _actor_id() -> str:
    return str(ray.get_runtime_context().get_actor_id())


def _task(pools: Pools) -> dict[str, Any]:
    return {
        "num_cpus": pools.task_cpus,
        "batch_format": "pyarrow",
        "compute": TaskPoolStrategy(size=pools.num_readers),
        "max_retries": _MAX_RETRIES,
        **_environment(),
    }


def _pool(least: int, most: int) -> ActorPoolStrategy:
    """So many workers; those above the least are started when all are busy."""
    return ActorPoolStrategy(size=most) if least == most else ActorPoolStrategy(min_size=least, max_size=most)


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
