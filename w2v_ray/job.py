"""A job before and after its data flow: the checks, the plan, and the summary at the end.

Neither torch nor Ray is loaded here, so that a mistake in what was asked for is told at once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from w2v_ray import stores
from w2v_ray.align_config import AlignConfig
from w2v_ray.audio.speech import load_detector
from w2v_ray.config import JobConfig, RedecodeConfig
from w2v_ray.decoder_config import check_one_language
from w2v_ray.decoding import check_decoder, reachable, read_vocabulary, write_vocabulary
from w2v_ray.errors import ConfigError
from w2v_ray.frame_rate import seconds_per_frame
from w2v_ray.head_config import read_also
from w2v_ray.heads import find_heads
from w2v_ray.hub import absolute_model, checkpoint_fingerprint
from w2v_ray.job_file import read_override
from w2v_ray.languages import check_languages, claim_adapters
from w2v_ray.output import (
    SpokenLanguages,
    make_retry_plan,
    remove_leftovers,
    spoken_languages_fingerprint,
)
from w2v_ray.plan import Plan, make_plan, make_redecode_plan, make_sample_plan, status
from w2v_ray.plan.records import read_job, read_settings
from w2v_ray.processors import AutoTokenizer
from w2v_ray.ray_address import check_ray_address
from w2v_ray.schema import TABLE_OF_TASK
from w2v_ray.text.languages import Tokenizers
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

__all__ = [
    "RunSummary",
    "Vocabulary",
    "prepare",
    "prepare_redecode",
    "prepare_retry",
    "prepare_sample",
    "recorded_job",
    "summarize",
    "vocabulary_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run did. Seconds are of audio, except ``wall_s``."""

    output: str
    num_items: int
    """Items of the plan: recordings or time ranges of one."""
    num_shards: int
    num_shards_before: int
    """Shards that earlier runs had published."""
    num_rows: int
    """Rows this run wrote to the table of its task."""
    num_rejects: int
    """Rows this run wrote to ``rejects/``."""
    reject_rate: float
    """Items of the whole output that were rejected in full or in part, as a share of all."""
    audio_s: float
    rejected_s: float
    wall_s: float
    rejects_by_reason: dict[str, int]
    skipped: dict[str, int]
    """Files of the inputs that were not planned, by reason."""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What the columns of a model's emissions stand for, and how far apart their frames are."""

    tokenizer: Wav2Vec2CTCTokenizer
    seconds_per_frame: float


def vocabulary_of(model: str, *, revision: str | None = None) -> Vocabulary:
    """Reads the vocabulary of a checkpoint from its small files.

    Raises:
        CheckpointError: A file is missing or malformed, or the model is of another kind or rate.
    """
    frame_s = seconds_per_frame(model, revision=revision)
    return Vocabulary(
        tokenizer=AutoTokenizer.from_pretrained(model, revision=revision), seconds_per_frame=frame_s
    )


def prepare(job: JobConfig, *, record: bool = True) -> Plan:
    """Checks what a job names and plans it, or takes up the plan that its output holds.

    Args:
        job: What to do.
        record: Whether the output is claimed and the plan written into it; else nothing is written.

    Raises:
        W2vRayError: The output, the model, the language model or the inputs cannot be used.
    """
    fields, vocabulary = _checked(job, record=record)
    annotate = None
    if job.languages_from is not None:
        annotate = partial(SpokenLanguages(job.languages_from).annotate, key=job.language_key)
    plan = make_plan(
        job.inputs,
        job.output,
        shard_seconds=job.shard_seconds,
        job=fields,
        cut_long=_cuts_long(job),
        on_change=job.on_change,
        audio_column=job.audio_column,
        settings=_settings(job),
        annotate=annotate,
        record=record,
    )
    claim_adapters(plan, fields, model=job.model, record=record)
    if job.keep_log_probs is not None and record:
        assert vocabulary is not None, "only transcribe keeps them"
        frame_s = vocabulary.seconds_per_frame
        write_vocabulary(job.output, vocabulary.tokenizer, seconds_per_frame=frame_s)
    return plan


def recorded_job(output: str, overrides: Sequence[str] = ()) -> JobConfig:
    """The job that made an output, as the output records it; its ``inputs`` are the output itself.

    Args:
        output: Folder or URL.
        overrides: ``key=value`` texts that replace settings.

    Raises:
        OutputError: The output belongs to no job, or keeps no settings.
        ConfigError: A setting is unknown or out of bounds.
    """
    settings = read_settings(stores.canonical(output)) | {"inputs": [output], "output": output}
    kind = AlignConfig if "text_key" in settings else JobConfig
    for override in overrides:
        settings |= read_override(override, kind)
    return kind(**settings)


def prepare_retry(
    job: JobConfig, *, reasons: Sequence[str] = (), stages: Sequence[str] = (), record: bool = True
) -> Plan:
    """Plans what of a job's output is rejected again; else as `prepare`.

    Args:
        job: Of `recorded_job`.
        reasons: Classes of errors; empty: all.
        stages: Stages that failed; empty: all.
        record: As of `prepare`.
    """
    fields, _ = _checked(job, record=record)
    plan = make_retry_plan(
        job.output,
        job=fields,
        reasons=reasons,
        stages=stages,
        shard_seconds=job.shard_seconds,
        cut_long=_cuts_long(job),
        record=record,
    )
    claim_adapters(plan, fields, model=job.model, record=record)
    return plan


def prepare_sample(job: JobConfig, sample: pa.Table, *, seconds: float) -> Plan:
    """Plans a part of a sample, or several rounds of it, for a measurement; else as `prepare`.

    Args:
        job: Its output is new.
        sample: Of `w2v_ray.plan.take_sample`.
        seconds: Of audio.
    """
    fields, _ = _checked(job, record=True)
    return make_sample_plan(sample, job.output, seconds=seconds, shard_seconds=job.shard_seconds, job=fields)


def _check_output(output: str, *, record: bool) -> None:
    if record:
        stores.check_writable(output)
        stores.remove_unfinished(output)
    else:
        stores.check_place(output)


def _checked(job: JobConfig, *, record: bool) -> tuple[dict[str, Any], Vocabulary | None]:
    """The settings that decide what the rows are, and the vocabulary of text, if all that is named exists."""
    if record:  # it is about to run
        check_ray_address()
    stores.use(job.store_config)
    _check_output(job.output, record=record)
    if job.vad is not None:
        load_detector(job.vad)
    # Of files their content counts, not their names: a folder may be moved, and a branch may move on.
    content: dict[str, Any] = {"model": checkpoint_fingerprint(job.model, job.revision), "revision": None}
    vocabulary = None
    for head in find_heads(job, job.model, revision=job.revision):
        if head.task == "transcribe":
            vocabulary = vocabulary_of(head.model, revision=head.revision)
            tokenizer = vocabulary.tokenizer
            if job.language_fields():
                content |= check_languages(
                    head.model,
                    tokenizer,
                    revision=head.revision,
                    language=job.language,
                    is_one=job.language_key is None and job.languages_from is None,
                )
                tokenizer = Tokenizers(tokenizer)(job.language)
            content |= check_decoder(job.decoder(), tokenizer, model=head.model, revision=head.revision)
        elif head.task == "embed":
            content["pooling"] = head.pooling  # what auto was
        elif head.task == "frames":
            content["activation"] = head.activation
    if job.languages_from is not None:
        content["languages_from"] = spoken_languages_fingerprint(job.languages_from)
    if job.also:
        content["also"] = [_content_of_also(text) for text in job.also]
    return job.fingerprint_fields() | content, vocabulary


def _content_of_also(text: str) -> str:
    task, model = read_also(text)
    return task if model is None else f"{task}={checkpoint_fingerprint(model)}"


def _cuts_long(job: JobConfig) -> bool:
    return not isinstance(job, AlignConfig)  # a text belongs to the whole of its recording


def _settings(job: JobConfig) -> dict[str, Any]:
    """All settings but where the inputs and the output are, with places that other folders find as well."""
    files = reachable(job.decoder())
    also = [(task, model and absolute_model(model)) for task, model in map(read_also, job.also)]
    places = {
        "model": absolute_model(job.model),
        "also": [f"{task}={model}" if model else task for task, model in also],
        "lm": files.lm,
        "unigrams": files.unigrams,
        "languages_from": job.languages_from and stores.canonical(job.languages_from),
    }
    return {name: value for name, value in asdict(job).items() if name not in ("inputs", "output")} | places


def prepare_redecode(job: RedecodeConfig, *, record: bool = True) -> tuple[Plan, Vocabulary]:
    """Checks what a job names, and plans the shards of its source that its output lacks.

    Args:
        job: What to do.
        record: As of `prepare`.

    Raises:
        W2vRayError: The source kept no log-probabilities, or the language model or the output cannot be used.
    """
    if record:
        check_ray_address()
    stores.use(job.store_config)
    if job.decoder().lm == "checkpoint":
        raise ConfigError(
            "lm is 'checkpoint', which redecode does not read; name the file in its folder language_model"
        )
    tokenizer, frame_s = read_vocabulary(job.source)
    content = check_decoder(job.decoder(), _of_language(tokenizer, job))
    _check_output(job.output, record=record)
    plan = make_redecode_plan(job.source, job.output, job=content, record=record)
    return plan, Vocabulary(tokenizer=tokenizer, seconds_per_frame=frame_s)


def _of_language(tokenizer: Wav2Vec2CTCTokenizer, job: RedecodeConfig) -> Wav2Vec2CTCTokenizer:
    """The tokenizer of the language of a source, where it is of one."""
    _, source = read_job(stores.canonical(job.source))
    for name in ("language_key", "languages_from"):
        if source.get(name) is not None:
            check_one_language(job, repr(job.source))
    language = source.get("language")
    return tokenizer if language is None else Tokenizers(tokenizer)(str(language))


def summarize(
    job: JobConfig | RedecodeConfig, plan: Plan, summaries: list[dict[str, Any]], wall_s: float
) -> RunSummary:
    """Adds up the summaries of the shards that a run published, in ``wall_s`` seconds of the clock.

    It is the end of the run: what dead or slower writers left of these shards goes.
    """
    table = "transcripts" if isinstance(job, RedecodeConfig) else TABLE_OF_TASK[job.task]
    remove_leftovers(plan.output, table, {summary["shard_id"]: summary for summary in summaries})
    whole = status(job.output)
    reasons: Counter[str] = Counter()
    for summary in summaries:
        reasons.update(json.loads(summary["rejects_by_reason"]))
    return RunSummary(
        output=job.output,
        num_items=plan.num_items,
        num_shards=plan.num_shards,
        num_shards_before=plan.num_shards - len(plan.pending),
        num_rows=sum(summary["num_rows"] for summary in summaries),
        num_rejects=sum(summary["num_rejects"] for summary in summaries),
        reject_rate=whole.num_items_rejected / max(1, whole.num_items),
        audio_s=sum(summary["audio_s"] for summary in summaries),
        rejected_s=sum(summary["rejected_s"] for summary in summaries),
        wall_s=wall_s,
        rejects_by_reason=dict(reasons),
        skipped=dict(plan.skipped),
    )
