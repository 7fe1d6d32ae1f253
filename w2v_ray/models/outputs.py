"""What a model's ``forward`` returns: named fields that can also be read by position or by key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch

__all__ = ["CausalLMOutput", "Wav2Vec2BaseModelOutput"]


@dataclass
class _Output:
    """Fields that are None are skipped when an output is read by position, as a tuple or by key."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are set, in order."""
        return tuple(getattr(self, name) for name in self.keys())

    def keys(self) -> list[str]:
        """The names of the fields that are set, in order."""
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]

    def __getitem__(self, key: str | int | slice) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())


@dataclass
class Wav2Vec2BaseModelOutput(_Output):
    """What the encoder without a head returns.

    Attributes:
        last_hidden_state: (batch, num_frames, hidden_size).
        extract_features: (batch, num_frames, conv_dim[-1]), what the convolutions gave, normalised.
        hidden_states: The input of the first layer and the output of each, num_hidden_layers + 1 tensors;
            in models that normalise first, the last one before the norm that closes the encoder.
        attentions: The attention probabilities of each layer, (batch, heads, num_frames, num_frames).
    """

    last_hidden_state: torch.Tensor | None = None
    extract_features: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class CausalLMOutput(_Output):
    """What a model with a CTC head returns.

    Attributes:
        loss: A scalar, where labels were given.
        logits: (batch, num_frames, vocab_size), before the softmax.
        hidden_states: As of Wav2Vec2BaseModelOutput.
        attentions: As of Wav2Vec2BaseModelOutput.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
