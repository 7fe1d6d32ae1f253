"""What a job is: its inputs, its output and every setting, checked once, wherever it comes from.

It looks at values only. Whether the inputs exist, the output can be written and the model loads is for
those who open them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from w2v_ray.audio_config import ON_TRUNCATED, check_channel, check_vad
from w2v_ray.decoder_config import DecoderConfig, check_choice, check_one_language, check_range
from w2v_ray.encoder_config import EncoderConfig
from w2v_ray.errors import ConfigError
from w2v_ray.head_config import TASKS
from w2v_ray.store_config import StoreConfig, store_config_of

__all__ = [
    "DEVICE_PATTERN",
    "ITEM_DEADLINE_S",
    "JOB_BOUNDS",
    "JOB_CHOICES",
    "ON_CHANGE",
    "WORKER_COUNTS",
    "JobConfig",
    "RedecodeConfig",
]

ON_CHANGE = ("refuse", "new")
ITEM_DEADLINE_S = 300.0
_LANGUAGES = ("language_key", "language", "languages_from")

DEVICE_PATTERN = r"auto|cpu|cuda(:\d+)?"
"""What ``device`` may be, as a regular expression for all of it."""

JOB_CHOICES = {
    "on_truncated": ON_TRUNCATED,
    "on_change": ON_CHANGE,
}
"""By setting, the values that it takes."""

JOB_BOUNDS: dict[str, tuple[float, float]] = {
    "shard_seconds": (10, 7200),
    "gpus_per_encoder": (0.01, 1),
    "max_segment_seconds": (1, 300),
    "max_reject_rate": (0, 1),
    "item_deadline_seconds": (1, 86_400),
    "stall_seconds": (5, 864_000),
    "keep_log_probs": (2, 65_536),
}
"""By setting, the bounds of its value."""

WORKER_COUNTS = ("num_encoders", "max_encoders", "encoder_threads", "num_decoders", "decoder_threads")
"""The settings that are whole numbers of 1 or more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobConfig(EncoderConfig):
    """One job: what to do, what to read, where to write, which model, and how.

    Raises:
        ConfigError: A value is of the wrong type or out of bounds; the message names the field, the
            value, the bound and the fix.
    """

    inputs: tuple[str, ...]
    """Folders, files, lists, manifests, tars, Parquet files or datasets: paths, globs or fsspec URLs."""

    output: str
    """The folder, or fsspec URL of one, that receives the tables, ``rejects/`` and the plan."""

    model: str
    """A checkpoint folder, or the id of a Hugging Face hub repository."""

    revision: str | None = None
    """The branch, tag or commit of a hub repository; null takes its default branch."""

    audio_column: str | None = None
    """The column of tables that holds or names the audio; null finds it by its name and type."""

    device: str = "auto"
    """Where the encoder runs: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N``."""

    shard_seconds: float = 1200.0
    """Audio per shard, in seconds (10 to 7200): the unit of work, of memory and of one output file."""

    channel: str | int = "mix"
    """What is taken of recordings with several channels: mix, left, right, split, or a number from 0."""

    on_truncated: str = "mark"
    """What is done with audio that is shorter than its header says: mark its rows, or reject them."""

    vad: str | None = None
    """A voice activity detector as ``MODULE:FUNCTION``, whose pauses are cut at first; null: silences are."""

    keep_non_speech: bool = True
    """Whether what the ``vad`` does not call speech is recognised as well."""

    max_segment_seconds: float = 30.0
    """The longest piece the encoder takes at once, in seconds (1 to 300); longer speech is cut in silence."""

    num_encoders: int | None = None
    """Encoder workers; null starts as many as the GPUs have room for, or one on each machine without any."""

    max_encoders: int | None = None
    """Encoder workers that there may be once machines join the cluster; null: those of the beginning."""

    gpus_per_encoder: float = 1.0
    """The share of a GPU (0.01 to 1) that an encoder reserves; at 0.5 two of them have a GPU together."""

    accelerator_type: str | None = None
    """The GPUs that encoders run on, by Ray's name (L4, A10G, H100); null: any."""

    encoder_threads: int | None = None
    """CPU threads of each encoder; null takes all cores."""

    num_decoders: int | None = None
    """Text decoder workers; null takes one."""

    decoder_threads: int | None = None
    """CPU threads of each text decoder; null takes as many as the encoders are expected to keep busy."""

    keep_log_probs: int | None = None
    """Tokens per frame (2 to 65536) whose log-probabilities are kept for ``w2v-ray redecode``; null: none."""

    max_reject_rate: float = 1.0
    """The share of items (0 to 1) that may end in ``rejects/`` before the job counts as failed."""

    stores: dict[str, Any] | None = None
    """By store (s3, gs, az, hf, http): limits, and options of its fsspec file system; never secrets. Its
    variables are filled in when stores are asked, so that records of the job hold their names alone."""

    allow_http: bool = False
    """Whether ``http://`` and ``https://`` addresses are read."""
    item_deadline_seconds: float = ITEM_DEADLINE_S
    """What a worker has in hand may take so long, in seconds (1 to 86400), plus the length of its audio."""

    stall_seconds: float | None = None
    """The job ends where nothing moves for so long, in seconds (5 to 864000); null takes 1800, or more where
    ``item_deadline_seconds`` and ``shard_seconds`` ask for it."""
    on_change: str = "refuse"
    """What is done with inputs that have changed since they were planned: ``refuse``, or do them ``new``."""

    partition_by: str | None = None
    """A key of the manifest, by whose value the files of the table are put into folders; null: none."""

    language_key: str | None = None
    """The key of each recording's language in what the inputs say of it; null: they say none."""

    language: str | None = None
    """The language of recordings that are told none, of a checkpoint with an adapter for each; null: where
    none is told at all, the checkpoint's own."""

    languages_from: str | None = None
    """The output of a ``w2v-ray classify`` job that told the language of each of these recordings."""

    def __post_init__(self) -> None:
        super(JobConfig, self).__post_init__()  # slots make a new class, which a bare super() does not know
        object.__setattr__(self, "inputs", tuple(self.inputs))
        if self.task == "align" and type(self) is JobConfig:
            raise ConfigError(f"task is 'align', expected one of {', '.join(TASKS)}; use `w2v-ray align`")
        if not self.inputs:
            raise ConfigError("inputs is empty, expected at least one path or URL; name what to read")
        paths = [("output", self.output), ("model", self.model)]
        for name, text in [*paths, *((f"inputs[{index}]", text) for index, text in enumerate(self.inputs))]:
            if not text.strip():
                raise ConfigError(f"{name} is {text!r}, expected a path or URL; name one")
        if self.audio_column == "":
            raise ConfigError("audio_column is '', expected the name of a column; name one, or leave it out")
        if not re.fullmatch(DEVICE_PATTERN, self.device):
            raise ConfigError(
                f"device is {self.device!r}, expected auto, cpu, cuda or cuda:N; choose one of these"
            )
        for name, choices in JOB_CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        object.__setattr__(self, "channel", check_channel(self.channel))
        check_vad(self.vad, keep_non_speech=self.keep_non_speech)
        if self.partition_by is not None and (not self.partition_by or self.partition_by[0] in "._"):
            raise ConfigError(
                f"partition_by is {self.partition_by!r}, expected a key of the manifest that does not begin "
                "with a dot or an underscore, as such folders are hidden; name another, or leave it out"
            )
        for name, bounds in JOB_BOUNDS.items():
            if (value := getattr(self, name)) is not None:
                check_range(name, value, *bounds)
        _ = self.store_config
        if self.keep_log_probs is not None and self.task != "transcribe":
            raise ConfigError(
                f"keep_log_probs is {self.keep_log_probs}, which only transcribe has a use for; leave it out"
            )
        _check_counts(self, *WORKER_COUNTS)
        _check_placement(self)
        _check_languages(self)

    @property
    def store_config(self) -> StoreConfig:
        """Which stores may be asked, and how."""
        return store_config_of(self.stores, allow_http=self.allow_http)

    @property
    def wants_gpu(self) -> bool:
        """Whether the encoder runs on a GPU and nowhere else."""
        return self.device.startswith("cuda") or self.accelerator_type is not None

    @property
    def top_tokens(self) -> int | None:
        """How many of the likeliest tokens of a frame the job makes use of; null: all."""
        enough = self.decoder().top_tokens
        if self.task == "align" or enough is None or (self.keep_log_probs or 0) > enough:
            return None
        return enough

    def fingerprint_fields(self) -> dict[str, Any]:
        """The settings that decide what the rows of the output are.

        Two runs that agree on these may complete each other's output. Where the work runs, on how many
        workers and how stores are asked is not among them; ``shard_seconds`` is, because shards decide where
        long recordings are cut.
        """
        return {
            "model": self.model,
            "revision": self.revision,
            "shard_seconds": self.shard_seconds,
            "channel": self.channel,
            "on_truncated": self.on_truncated,
            "vad": self.vad,
            "keep_non_speech": self.keep_non_speech,
            "max_segment_seconds": self.max_segment_seconds,
            **self.encoder_fields(),
            **self.search_fields(),
            **self.head_fields(),
            **({} if self.keep_log_probs is None else {"keep_log_probs": self.keep_log_probs}),
            **({} if self.partition_by is None else {"partition_by": self.partition_by}),
            **self.language_fields(),
        }

    def language_fields(self) -> dict[str, Any]:
        """The settings of languages that are not as they were left."""
        return {name: value for name in _LANGUAGES if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class RedecodeConfig(DecoderConfig):
    """Text of another decoder for a job that kept log-probabilities: whose, where to, and how.

    Raises:
        ConfigError: As of JobConfig.
    """

    source: str
    """The output of a job with ``keep_log_probs``: a folder or URL."""

    output: str
    """Another folder or URL, which receives ``transcripts/`` and ``rejects/``."""

    num_decoders: int | None = None
    """Text decoder workers; null takes one."""

    decoder_threads: int | None = None
    """CPU threads of each text decoder; null takes all cores."""

    max_reject_rate: float = 1.0
    """As of JobConfig."""

    stores: dict[str, Any] | None = None
    """As of JobConfig."""

    allow_http: bool = False
    """As of JobConfig."""

    def __post_init__(self) -> None:
        super(RedecodeConfig, self).__post_init__()
        for name, text in (("source", self.source), ("output", self.output)):
            if not text.strip():
                raise ConfigError(f"{name} is {text!r}, expected a path or URL; name one")
        check_range("max_reject_rate", self.max_reject_rate, *JOB_BOUNDS["max_reject_rate"])
        _ = self.store_config
        _check_counts(self, "num_decoders", "decoder_threads")

    @property
    def store_config(self) -> StoreConfig:
        """Which stores may be asked, and how."""
        return store_config_of(self.stores, allow_http=self.allow_http)


def _check_counts(config: JobConfig | RedecodeConfig, *names: str) -> None:
    for name in names:
        count = getattr(config, name)
        if count is not None and count < 1:
            raise ConfigError(
                f"{name} is {count}, expected 1 or more; raise it, or leave it out for the default"
            )


def _check_placement(job: JobConfig) -> None:
    if job.max_encoders is not None and job.max_encoders < (job.num_encoders or 1):
        raise ConfigError(
            f"max_encoders is {job.max_encoders} and num_encoders {job.num_encoders}, expected no fewer than "
            "the job begins with; raise max_encoders, or leave it out"
        )
    if job.accelerator_type is not None and not job.accelerator_type.strip():
        raise ConfigError(
            f"accelerator_type is {job.accelerator_type!r}, expected a name such as L4; fill it in, or leave "
            "it out"
        )
    for name, default in (("gpus_per_encoder", 1.0), ("accelerator_type", None)):
        if job.device == "cpu" and (value := getattr(job, name)) != default:
            raise ConfigError(f"{name} is {value!r} but device is 'cpu'; leave one of them out")


def _check_languages(job: JobConfig) -> None:
    given = job.language_fields()
    for name, value in given.items():
        if not value.strip():
            raise ConfigError(f"{name} is {value!r}, expected a text; fill it in, or leave it out")
        if job.task not in ("transcribe", "align") or job.also:
            those = "transcribe alone has" if job.also else "transcribe and align have"
            raise ConfigError(f"{name} is {value!r}, which only {those} a use for; leave it out")
    if given.keys() - {"language"}:
        check_one_language(job, next(iter(given)))
