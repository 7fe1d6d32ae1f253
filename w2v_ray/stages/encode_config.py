"""What the encoder stage computes, and with what; apart from the stage, so that saying it loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from w2v_ray.encoder_config import ENCODER_FIELDS, EncoderConfig, check_encoder
from w2v_ray.errors import ConfigError
from w2v_ray.heads import Head

__all__ = ["EncodeConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeConfig:
    """What the encoder computes, and with what."""

    model: str = ""
    """A folder or hub id with a CTC head, which transcribes; with ``heads`` it is left out."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    heads: tuple[Head, ...] = ()
    """What to compute instead: the first head's failures are the segment's, of others they are null."""
    device: str = "cpu"
    """A torch device: cpu, cuda or cuda:N."""
    attn_implementation: str = "sdpa"
    """The attention kernel."""
    dtype: str = "float32"
    """Of weights and activations; the softmax is in float32 always. "int8" multiplies bytes, the rest is
    in float32 on a CPU and in bfloat16 on a GPU."""
    max_batch_seconds: float | None = None
    """Seconds of audio in a batch, long segments counting for more; None: 16 on a CPU, tried out on a GPU."""
    deterministic: bool = False
    """Whether every segment is computed alone, so that its numbers never differ in a bit."""
    reference_batch: int | None = None
    """Segments in a batch that is padded as transformers pads it, in their order, with the numbers that this
    gives; None: nothing is padded."""
    chunk_length_s: float | None = None
    """Seconds that are heard at once of longer segments, in overlapping windows; None: up to five minutes."""
    stride_length_s: float | Sequence[float] | None = None
    """Seconds at the ends of a window that are heard and not kept; None: a sixth of it at each end."""
    normalize: str = "chunk"
    """Whether each window is normalized by itself, as pipelines do ("chunk"), or the whole ("segment")."""
    top_tokens: int | None = None
    """How many of the likeliest tokens of each frame are handed on, where the model has four times as many or
    more; None: all. It pays on a GPU; a CPU picks them slower than it hands on all."""
    num_threads: int | None = None
    """CPU threads of torch; None: leave torch's default."""

    @classmethod
    def of(
        cls,
        settings: EncoderConfig,
        *,
        heads: Sequence[Head],
        device: str,
        num_threads: int | None,
        top_tokens: int | None = None,
    ) -> Self:
        """What a job's settings of the encoder ask for."""
        shared = {name: getattr(settings, name) for name in ENCODER_FIELDS}
        return cls(
            heads=tuple(heads), device=device, num_threads=num_threads, top_tokens=top_tokens, **shared
        )

    def __post_init__(self) -> None:
        if bool(self.model) == bool(self.heads):
            raise ConfigError(
                f"model is {self.model!r} and there are {len(self.heads)} heads; name a model, or heads"
            )
        if not self.heads:
            head = Head(task="transcribe", model=self.model, revision=self.revision)
            object.__setattr__(self, "heads", (head,))
        check_encoder(self)
        if self.top_tokens is not None and self.top_tokens < 1:
            raise ConfigError(f"top_tokens is {self.top_tokens}, expected at least 1; try 256")
        if self.num_threads is not None and self.num_threads < 1:
            raise ConfigError(f"num_threads is {self.num_threads}, expected at least 1; try 1")
