"""What the encoder stage computes, and with what; apart from the stage, so that saying it loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

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
    """Of weights and activations; the softmax is in float32 always."""
    max_batch_seconds: float | None = None
    """Seconds in a batch, padding included; None: 240, or 8 on a CPU, where long segments are best alone."""
    max_padding: float = 0.1
    """Share of a batch that may be padding; on a CPU padding costs more than batching gains."""
    num_threads: int | None = None
    """CPU threads of torch; None: leave torch's default."""

    def __post_init__(self) -> None:
        if bool(self.model) == bool(self.heads):
            raise ConfigError(
                f"model is {self.model!r} and there are {len(self.heads)} heads; name a model, or heads"
            )
        if not self.heads:
            head = Head(task="transcribe", model=self.model, revision=self.revision)
            object.__setattr__(self, "heads", (head,))
        if self.max_batch_seconds is not None and self.max_batch_seconds <= 0:
            raise ConfigError(f"max_batch_seconds is {self.max_batch_seconds}, expected above 0; try 30")
        if not 0 <= self.max_padding < 1:
            raise ConfigError(f"max_padding is {self.max_padding}, expected from 0 up to below 1; try 0.1")
        if self.num_threads is not None and self.num_threads < 1:
            raise ConfigError(f"num_threads is {self.num_threads}, expected at least 1; try 1")
