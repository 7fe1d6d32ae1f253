"""How the encoder computes: its kernel and numbers, its batches and windows; for jobs and for the stage."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from w2v_ray.decoder_config import check_choice, check_range
from w2v_ray.errors import ConfigError
from w2v_ray.head_config import HeadConfig

__all__ = [
    "ATTN_IMPLEMENTATIONS",
    "DTYPES",
    "ENCODER_BOUNDS",
    "ENCODER_CHOICES",
    "ENCODER_FIELDS",
    "NORMALIZE",
    "EncoderConfig",
    "check_encoder",
    "float_dtype",
]

ATTN_IMPLEMENTATIONS = ("auto", "eager", "sdpa", "flash_attention_2", "flex_attention")
DTYPES = ("float32", "float16", "bfloat16", "int8")
NORMALIZE = ("chunk", "segment")

ENCODER_CHOICES = {"attn_implementation": ATTN_IMPLEMENTATIONS, "dtype": DTYPES, "normalize": NORMALIZE}
"""By setting, the values that it takes."""

ENCODER_BOUNDS: dict[str, tuple[float, float]] = {
    "max_batch_seconds": (0.001, 10_000_000),
    "reference_batch": (1, 4096),
    "chunk_length_s": (0.5, 300),
    "stride_length_s": (0, 150),
}
"""By setting, the bounds of its value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig(HeadConfig):
    """The settings of a job's heads, and of how the encoder below them computes.

    Raises:
        ConfigError: A value is out of bounds, or two do not go together.
    """

    attn_implementation: str = "sdpa"
    """The attention kernel: auto, eager, sdpa, flash_attention_2 or flex_attention."""

    dtype: str = "float32"
    """What the encoder computes in: ``float32``, ``float16``, ``bfloat16``, or ``int8`` for its products."""

    max_batch_seconds: float | None = None
    """Seconds of audio encoded at once (0.001 to 10000000); null: 16 on a CPU, tried out on a GPU."""

    deterministic: bool = False
    """Whether each segment is encoded alone, so that not a bit of it depends on its neighbours."""

    reference_batch: int | None = None
    """Segments (1 to 4096) in a batch padded as by transformers, with its numbers; null: no padding."""

    chunk_length_s: float | None = None
    """Seconds (0.5 to 300) that are heard at once of longer segments, in windows; null: the segment."""

    stride_length_s: float | None = None
    """Seconds at both ends of a window that are heard and not kept; null: a sixth of it at each end."""

    normalize: str = "chunk"
    """What of a segment in windows is normalized at once: each ``chunk``, or the whole ``segment``."""

    def __post_init__(self) -> None:
        super(
            EncoderConfig, self
        ).__post_init__()  # slots make a new class, which a bare super() does not know
        check_encoder(self)

    def encoder_fields(self) -> dict[str, Any]:
        """The settings of the encoder that decide what the rows are, most of them where they were changed."""
        always = ("attn_implementation", "dtype")
        return {name: getattr(self, name) for name in always} | {
            field.name: value
            for field in fields(EncoderConfig)
            # How much is encoded at once changes roundings alone.
            if field.name in ENCODER_FIELDS
            and field.name not in (*always, "max_batch_seconds")
            and (value := getattr(self, field.name)) != field.default
        }


ENCODER_FIELDS = tuple(field.name for field in fields(EncoderConfig) if field not in fields(HeadConfig))
"""The settings that are of the encoder and not of its heads."""


def float_dtype(dtype: str, *, on_gpu: bool) -> str:
    """The type of what is not multiplied in bytes, which is the one that is fast beside them."""
    if dtype != "int8":
        return dtype
    return "bfloat16" if on_gpu else "float32"


def check_encoder(config: Any) -> None:
    """Checks the settings of an encoder.

    Args:
        config: Anything that has all of ``ENCODER_FIELDS``.

    Raises:
        ConfigError: One is out of bounds, or two do not go together.
    """
    for name, choices in ENCODER_CHOICES.items():
        check_choice(name, getattr(config, name), choices)
    for name, bounds in ENCODER_BOUNDS.items():
        if isinstance(value := getattr(config, name), int | float):  # and not null, or a pair
            check_range(name, value, *bounds)
    if config.reference_batch is not None and (
        config.dtype == "int8" or config.chunk_length_s is not None or config.deterministic
    ):
        raise ConfigError(
            f"reference_batch is {config.reference_batch}, which has the numbers of padded batches of "
            "whole segments; leave out dtype int8, chunk_length_s and deterministic, or it"
        )
    _check_strides(config)


def _check_strides(config: Any) -> None:
    stride_s, chunk_s = config.stride_length_s, config.chunk_length_s
    if stride_s is None:
        return
    if chunk_s is None:
        raise ConfigError(
            f"stride_length_s is {stride_s!r} without windows; set chunk_length_s, or leave it out"
        )
    pair = (stride_s, stride_s) if isinstance(stride_s, int | float) else tuple(stride_s)
    if len(pair) != 2 or min(pair) < 0 or sum(pair) >= chunk_s:
        raise ConfigError(
            f"stride_length_s is {stride_s!r}, expected seconds from 0, or a pair of them, that together are "
            f"less than chunk_length_s ({chunk_s:g}); lower it"
        )
