"""What a job is: its inputs, its output and every setting, checked once, from Python, YAML or ``key=value``.

It looks at values only. Whether the inputs exist, the output can be written and the model loads is for
those who open them; a key it does not know is an error, never ignored.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from w2v_ray.audio_config import ON_TRUNCATED, check_channel, check_vad
from w2v_ray.decoder_config import DecoderConfig, check_choice, check_one_language, check_range, kind_of
from w2v_ray.errors import ConfigError
from w2v_ray.head_config import TASKS, HeadConfig
from w2v_ray.store_config import StoreConfig

__all__ = [
    "ATTN_IMPLEMENTATIONS",
    "ITEM_DEADLINE_S",
    "ON_CHANGE",
    "JobConfig",
    "RedecodeConfig",
    "load_job",
    "read_override",
]

ON_CHANGE = ("refuse", "new")
ATTN_IMPLEMENTATIONS = ("auto", "eager", "sdpa", "flash_attention_2", "flex_attention")
ITEM_DEADLINE_S = 300.0
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_LANGUAGES = ("language_key", "language", "languages_from")
_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True, slots=True)
class JobConfig(HeadConfig):
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

    attn_implementation: str = "sdpa"
    """The attention kernel: auto, eager, sdpa, flash_attention_2 or flex_attention."""

    dtype: str = "float32"
    """The type that the encoder computes in: ``float32``, ``float16`` or ``bfloat16``."""

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
    """By store (s3, gs, az, hf, http): limits, and options of its fsspec file system; never secrets."""

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
        paths = [("output", self.output), ("model", self.model), *(("inputs", text) for text in self.inputs)]
        for name, text in paths:
            if not text.strip():
                raise ConfigError(f"{name} holds {text!r}, expected a path or URL; name one")
        if self.audio_column == "":
            raise ConfigError("audio_column is '', expected the name of a column; name one, or leave it out")
        if not _DEVICE.fullmatch(self.device):
            raise ConfigError(
                f"device is {self.device!r}, expected auto, cpu, cuda or cuda:N; choose one of these"
            )
        check_choice("attn_implementation", self.attn_implementation, ATTN_IMPLEMENTATIONS)
        check_choice("dtype", self.dtype, _DTYPES)
        object.__setattr__(self, "channel", check_channel(self.channel))
        check_choice("on_truncated", self.on_truncated, ON_TRUNCATED)
        check_vad(self.vad, keep_non_speech=self.keep_non_speech)
        check_choice("on_change", self.on_change, ON_CHANGE)
        if self.partition_by is not None and (not self.partition_by or self.partition_by[0] in "._"):
            raise ConfigError(
                f"partition_by is {self.partition_by!r}, expected a key of the manifest that does not begin "
                "with a dot or an underscore, as such folders are hidden; name another, or leave it out"
            )
        check_range("shard_seconds", self.shard_seconds, 10, 7200)
        check_range("max_segment_seconds", self.max_segment_seconds, 1, 300)
        check_range("max_reject_rate", self.max_reject_rate, 0, 1)
        _ = self.store_config
        check_range("item_deadline_seconds", self.item_deadline_seconds, 1, 86_400)
        if self.stall_seconds is not None:
            check_range("stall_seconds", self.stall_seconds, 5, 864_000)
        if self.keep_log_probs is not None:
            check_range("keep_log_probs", self.keep_log_probs, 2, 65_536)
            if self.task != "transcribe":
                raise ConfigError(
                    f"keep_log_probs is {self.keep_log_probs}, which only transcribe has a use for; "
                    "leave it out"
                )
        _check_counts(
            self, "num_encoders", "max_encoders", "encoder_threads", "num_decoders", "decoder_threads"
        )
        _check_placement(self)
        _check_languages(self)

    @property
    def store_config(self) -> StoreConfig:
        """Which stores may be asked, and how."""
        return StoreConfig(allow_http=self.allow_http, options=self.stores or {})

    @property
    def wants_gpu(self) -> bool:
        """Whether the encoder runs on a GPU and nowhere else."""
        return self.device.startswith("cuda") or self.accelerator_type is not None

    def fingerprint_fields(self) -> dict[str, Any]:
        """The settings that decide what the rows of the output are.

        Two runs that agree on these may complete each other's output. Where the work runs, on how many
        workers and how stores are asked is not among them; ``shard_seconds`` is, because shards decide where
        long recordings are cut.
        """
        return {
            "model": self.model,
            "revision": self.revision,
            "attn_implementation": self.attn_implementation,
            "dtype": self.dtype,
            "shard_seconds": self.shard_seconds,
            "channel": self.channel,
            "on_truncated": self.on_truncated,
            "vad": self.vad,
            "keep_non_speech": self.keep_non_speech,
            "max_segment_seconds": self.max_segment_seconds,
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
                raise ConfigError(f"{name} holds {text!r}, expected a path or URL; name one")
        check_range("max_reject_rate", self.max_reject_rate, 0, 1)
        _ = self.store_config
        _check_counts(self, "num_decoders", "decoder_threads")

    @property
    def store_config(self) -> StoreConfig:
        """Which stores may be asked, and how."""
        return StoreConfig(allow_http=self.allow_http, options=self.stores or {})


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> JobConfig:
    """Reads a job from a YAML file whose keys are the fields of `JobConfig`.

    Relative paths in it are relative to the current folder, as on the command line.

    Args:
        path: The YAML file.
        overrides: ``key=value`` texts that replace or add settings; each value is read as YAML, so
            ``num_encoders=2``, ``revision=null`` and ``inputs=[a, b]`` mean what they would in the file.

    Raises:
        ConfigError: The file is missing or not YAML, or a key is unknown, repeated, missing or has a bad
            value; the message names the file or override, and the key as a dotted path.
    """
    settings = _read_mapping(Path(path))
    _check_keys(settings, where=str(path))
    for override in overrides:
        settings |= read_override(override)
    missing = [name for name in _names() if _is_required(name) and name not in settings]
    if missing:
        raise ConfigError(f"{path} lacks {', '.join(missing)}; add what is missing, or pass it as key=value")
    try:
        return JobConfig(**settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"job file {str(path)!r} does not exist; name a YAML file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"job file {str(path)!r} cannot be read as text ({error}); name a YAML file"
        ) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)  # a ValueError is how it reports a date such as 2026-13-01
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not YAML ({_one_line(error)}); mend that line") from error
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            f"{path} holds {kind_of(value)}, expected lines of `key: value`; see pipelines/transcribe.yaml"
        )
    seen: set[str] = set()
    for key, _ in node.value:  # safe_load keeps the last of two equal keys and says nothing
        if key.value in seen:
            raise ConfigError(f"{path} sets {key.value!r} twice; keep one of them")
        seen.add(key.value)
    return {str(key): item for key, item in value.items()}


def read_override(override: str) -> dict[str, Any]:
    """The setting that a text of the form ``key=value`` gives, whose value is YAML.

    Raises:
        ConfigError: It has no such form, or the key is unknown.
    """
    where = f"override {override!r}"
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"{where} has no '=', expected key=value; write it as key=value")
    try:
        setting: dict[str, Any] = {key.strip(): yaml.safe_load(text)}
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where} has a value that is not YAML ({_one_line(error)}); quote it") from error
    _check_keys(setting, where=where)
    return setting


def _check_counts(config: JobConfig | RedecodeConfig, *names: str) -> None:
    for name in names:
        count = getattr(config, name)
        if count is not None and count < 1:
            raise ConfigError(
                f"{name} is {count}, expected 1 or more; raise it, or leave it out for the default"
            )


def _check_placement(job: JobConfig) -> None:
    check_range("gpus_per_encoder", job.gpus_per_encoder, 0.01, 1)
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


def _names() -> list[str]:
    """The keys of a job, those that must be given first."""
    return sorted((field.name for field in fields(JobConfig)), key=lambda name: not _is_required(name))


def _is_required(name: str) -> bool:
    return next(field.default for field in fields(JobConfig) if field.name == name) is MISSING


def _check_keys(settings: dict[str, Any], *, where: str) -> None:
    valid = _names()
    for key, value in settings.items():
        if key in valid:
            continue
        dotted = key
        while isinstance(value, dict) and value:  # a nested section: show the way down to its first setting
            inner, value = next(iter(value.items()))
            dotted = f"{dotted}.{inner}"
        near = difflib.get_close_matches(dotted.rpartition(".")[2], valid, n=1, cutoff=0.5)
        hint = f"the nearest valid key is {near[0]!r}" if near else f"valid keys are {', '.join(valid)}"
        raise ConfigError(f"{where} has the unknown key {dotted!r}; {hint}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
