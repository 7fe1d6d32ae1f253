"""Measuring: the real stages one after another in this process, each timed alone, and then the whole on Ray.

Every stage is called with a first row before it is timed (on a GPU the encoder with all of them, as kernels
are chosen by shape), and then until it has been timed for half a second; the pass in the middle counts.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median_low

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray import __version__, stores
from w2v_ray.benchmark.report import VERSION, BenchReport, StageReport
from w2v_ray.config import JobConfig
from w2v_ray.decoding import reachable
from w2v_ray.errors import InputError
from w2v_ray.heads import Head, find_heads
from w2v_ray.job import prepare_sample, vocabulary_of
from w2v_ray.plan import Plan, take_sample
from w2v_ray.schema import TABLE_OF_TASK
from w2v_ray.stages import (
    ChooseLabels,
    ChooseLabelsConfig,
    DecodeAudio,
    DecodeAudioConfig,
    DecodeText,
    DecodeTextConfig,
    FindTurns,
    FindTurnsConfig,
    ReadAudio,
    SegmentAudio,
    SegmentAudioConfig,
    WriteParquet,
    WriteParquetConfig,
)

__all__ = ["limit_of", "run_bench"]

SECONDS = 120.0
_LEAST_TIMED_S = 0.5
_MOST_PASSES = 20
_TO_DECODER = ("read_audio", "decode_audio", "segment_audio")  # what one worker does with a shard
_NOT_TEXT = (*_TO_DECODER, "encode", "write_parquet")

Stage = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timing:
    """A stage's passes: the one in the middle."""

    name: str
    num_passes: int
    busy_s: float
    cpu_s: float


def run_bench(
    job: JobConfig,
    *,
    seconds: float = SECONDS,
    whole: bool = True,
    on_step: Callable[[str], None] | None = None,
) -> BenchReport:
    """Measures each stage of a job, and the whole, on this machine.

    Args:
        job: What to measure; its output is not touched, nor is its length of shards.
        seconds: Of audio that is taken of its inputs, at most.
        whole: Whether the pipeline is run on Ray as well.
        on_step: Called with what is done next.

    Raises:
        W2vRayError: The inputs, the model or the language model cannot be used, or no recording can be.
    """
    say = on_step or (lambda text: None)
    if job.device.startswith("cuda"):  # before anything is read or timed
        from w2v_ray.benchmark.encoder import encoder_device

        encoder_device(job.device)
    stores.use(job.store_config)
    say("listing the inputs")
    sample = take_sample(job.inputs, seconds=seconds, audio_column=job.audio_column)
    with tempfile.TemporaryDirectory(prefix="w2v-ray-bench-") as folder:
        job = replace(job, output=os.path.join(folder, "stages"))
        plan = prepare_sample(job, sample, seconds=sum(sample.column("duration_s").to_pylist()))
        report = _measure(job, plan, sample, folder, say)
        if whole:
            from w2v_ray.benchmark.whole import run_whole  # and with it Ray

            say("the whole on Ray")
            job = replace(job, output=os.path.join(folder, "whole"))
            measured = run_whole(job, sample, rate=report.expected_rate, num_encoders=report.num_encoders)
            report = replace(report, whole=measured)
    return report


def _measure(
    job: JobConfig, plan: Plan, sample: pa.Table, folder: str, say: Callable[[str], None]
) -> BenchReport:
    timings: list[_Timing] = []

    def timed(name: str, stage: Stage, table: pa.Table, *, warm_up: pa.Table | None = None) -> pa.Table:
        say(name)
        stage(table.slice(0, 1) if warm_up is None else warm_up)
        result, timing = _timed(name, lambda _: stage(table))
        timings.append(timing)
        return result

    items = pa.concat_tables(plan.pending_tables())
    table = timed("read_audio", ReadAudio(), items)
    inside = pc.if_else(
        pc.is_null(table.column("byte_size")), pc.binary_length(table.column("audio_bytes")), 0
    )
    read_bytes = (pc.sum(sample.column("share_bytes")).as_py() or 0) + (pc.sum(inside).as_py() or 0)
    decoding = DecodeAudioConfig(channel=job.channel, on_truncated=job.on_truncated)
    table = timed("decode_audio", DecodeAudio(decoding), table)
    segmentation = SegmentAudioConfig(
        max_segment_seconds=job.max_segment_seconds, vad=job.vad, keep_non_speech=job.keep_non_speech
    )
    table = timed("segment_audio", SegmentAudio(segmentation), table)
    audio_s = _audio_s(table)

    heads = find_heads(job, job.model, revision=job.revision)
    say("loading the model")
    from w2v_ray.benchmark.encoder import EncoderBench  # and with it torch

    with EncoderBench(job, heads) as encoder:
        repeated = encoder.repeated(table, audio_s)
        encoded = timed("encode", encoder, repeated, warm_up=encoder.warm_up(repeated))
        audio_s, encoded_s = _audio_s(encoded.slice(0, table.num_rows)), _audio_s(encoded)
        table = encoded.slice(0, table.num_rows)
        for name, stage in (found for head in heads if (found := _results(job, head)) is not None):
            table = timed(name, stage, table)
        say("write_parquet")
        first = table.filter(pc.equal(table.column("item_index"), 0))
        first = first.filter(pc.equal(first.column("shard_id"), plan.pending[0]))
        _write(job, plan, [first], folder, "warm-up")
        shards = [table.filter(pc.equal(table.column("shard_id"), shard)) for shard in plan.pending]
        _, timing = _timed("write_parquet", lambda number: _write(job, plan, shards, folder, str(number)))
        timings.append(timing)
        say("the peak of this device")
        stages = _stage_reports(timings, audio_s, encoded_s)
        encode = next(stage for stage in stages if stage.name == "encode")
        sizes = [_bytes_in(Path(folder, name)) for name in ("written-warm-up", "written-0")]
        first_s = pc.sum(first.filter(pc.is_null(first.column("error"))).column("duration_s")).as_py() or 0.0
        num_cores = os.cpu_count() or 1
        rate, limit = limit_of(stages, num_cores=num_cores, num_encoders=encoder.num_encoders)
        memory = encoder.memory()  # before the matrices below
        return BenchReport(
            version=VERSION,
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            w2v_ray=__version__,
            torch=encoder.torch_version,
            model=job.model,
            task=job.task,
            decoder=_decoder_name(job),
            device=str(encoder.device),
            device_name=encoder.device_name,
            num_encoders=encoder.num_encoders,
            num_cores=num_cores,
            encoder_threads=encoder.num_threads,
            dtype=job.dtype,
            attn_implementation=job.attn_implementation,
            num_recordings=sample.num_rows,
            num_segments=table.num_rows,
            num_failed=table.num_rows - table.column("error").null_count,
            audio_s=audio_s,
            encoded_s=encoded_s,
            read_bytes_per_audio_s=read_bytes / audio_s,
            written_bytes_per_audio_s=_written_per_s(sizes, [first_s, audio_s], job.shard_seconds),
            stages=stages,
            encoder=encoder.report(encode, repeated),
            process_bytes=memory[0],
            device_bytes=memory[1],
            audio_decoders=_needed(encode.rate, stages, _TO_DECODER),
            text_decoders=_needed(
                encode.rate, stages, [stage.name for stage in stages if stage.name not in _NOT_TEXT]
            ),
            expected_rate=rate,
            limit=limit,
            whole=None,
        )


def _timed(name: str, run: Callable[[int], pa.Table]) -> tuple[pa.Table, _Timing]:
    """Runs passes until they took long enough; what the last one gave, and the one in the middle."""
    passes: list[tuple[float, float]] = []
    while not passes or (sum(busy for busy, _ in passes) < _LEAST_TIMED_S and len(passes) < _MOST_PASSES):
        began, cpu_began = time.perf_counter(), time.process_time()
        result = run(len(passes))
        passes.append((time.perf_counter() - began, time.process_time() - cpu_began))
    busy_s, cpu_s = median_low(passes)
    return result, _Timing(name=name, num_passes=len(passes), busy_s=busy_s, cpu_s=cpu_s)


def _audio_s(table: pa.Table) -> float:
    """The seconds of the rows that have not failed.

    Raises:
        InputError: All have.
    """
    is_whole = pc.is_null(table.column("error"))
    audio_s = float(pc.sum(table.filter(is_whole).column("duration_s")).as_py() or 0.0)
    if audio_s <= 0:
        errors = [error["message"] for error in table.column("error").to_pylist() if error is not None]
        raise InputError(
            "no recording of the sample can be used, the first because "
            f"{errors[0] if errors else 'nobody speaks in it'}"
        )
    return audio_s


def _results(job: JobConfig, head: Head) -> tuple[str, Stage] | None:
    """What makes results of a head's numbers, in one thread; None: they are results already."""
    if head.task == "embed":
        return None
    if head.task == "classify":
        labels = ChooseLabelsConfig(classes=head.classes, top_k=job.top_k, threshold=job.threshold)
        return "choose_labels", ChooseLabels(labels)
    if head.task == "frames":
        turns = FindTurnsConfig(
            classes=head.classes,
            seconds_per_frame=head.seconds_per_frame,
            onset=job.onset,
            offset=job.offset,
            min_on_seconds=job.min_on_seconds,
            min_off_seconds=job.min_off_seconds,
        )
        return "find_turns", FindTurns(turns)
    vocabulary = vocabulary_of(head.model, revision=head.revision)
    text = DecodeTextConfig(
        tokenizer=vocabulary.tokenizer,
        seconds_per_frame=vocabulary.seconds_per_frame,
        decoder=reachable(job.decoder()),
        model=head.model,
        revision=head.revision,
    )
    return "decode_text", DecodeText(text)


def _write(job: JobConfig, plan: Plan, shards: Sequence[pa.Table], folder: str, name: str) -> pa.Table:
    """Writes shards to a folder of their own, as a published shard is not written again."""
    tasks = [job.task, *(text.partition("=")[0].strip() for text in job.also)]
    stage = WriteParquet(
        WriteParquetConfig(
            output=os.path.join(folder, f"written-{name}"),
            job_fingerprint=plan.job_fingerprint,
            table=TABLE_OF_TASK[tasks[0]],
            also=tuple(TABLE_OF_TASK[task] for task in tasks[1:]),
        )
    )
    return pa.concat_tables([stage(shard) for shard in shards])


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def _written_per_s(sizes: Sequence[int], seconds: Sequence[float], shard_s: float) -> float:
    """Bytes of tables for a second of audio in a shard of the job.

    A file has some bytes however little audio it is of, which a small one and a larger one tell.
    """
    (small, large), (small_s, large_s) = sizes, seconds
    if large_s >= shard_s or large_s <= small_s:
        return large / large_s
    growth = max(0.0, (large - small) / (large_s - small_s))
    return (large + growth * (shard_s - large_s)) / shard_s


def _stage_reports(timings: Sequence[_Timing], audio_s: float, encoded_s: float) -> tuple[StageReport, ...]:
    lengths = [encoded_s if timing.name == "encode" else audio_s for timing in timings]
    paces = [timing.busy_s / length for timing, length in zip(timings, lengths, strict=True)]
    return tuple(
        StageReport(
            name=timing.name,
            audio_s=length,
            num_passes=timing.num_passes,
            busy_s=timing.busy_s,
            cpu_s=timing.cpu_s,
            rate=1 / pace,
            share=pace / sum(paces),
        )
        for timing, length, pace in zip(timings, lengths, paces, strict=True)
    )


def _needed(rate: float, stages: Sequence[StageReport], names: Sequence[str]) -> int:
    """Threads that do these stages one after another and keep up with ``rate``."""
    return math.ceil(rate * sum(1 / stage.rate for stage in stages if stage.name in names))


def limit_of(stages: Sequence[StageReport], *, num_cores: int, num_encoders: int) -> tuple[float, str]:
    """The rate of a machine on which all stages go on at once, and the stage that limits it.

    Args:
        stages: As they were timed.
        num_cores: Of the CPU, which all stages share.
        num_encoders: That encode at once, each as fast as the one that was timed.
    """
    costs = {stage.name: stage.cpu_s / stage.audio_s for stage in stages}
    cpu_rate = num_cores / sum(costs.values())
    encode_rate = num_encoders * next(stage.rate for stage in stages if stage.name == "encode")
    if encode_rate <= cpu_rate:
        return encode_rate, "encode"
    return cpu_rate, max(costs, key=costs.__getitem__)


def _decoder_name(job: JobConfig) -> str:
    if job.task != "transcribe" and not any(text.startswith("transcribe") for text in job.also):
        return "none"
    if not job.is_search:
        return "greedy"
    return f"beam search of {job.beam_width or 100}" + (f" with {job.lm}" if job.lm else "")
