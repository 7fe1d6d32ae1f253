"""What a model's ``forward`` returns: named fields that can also be read by position or by key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch

__all__ = [
    "CausalLMOutput",
    "SequenceClassifierOutput",
    "TokenClassifierOutput",
    "Wav2Vec2BaseModelOutput",
    "Wav2Vec2ForPreTrainingOutput",
    "XVectorOutput",
]


@dataclass
class _Output:
    """Fields that are None are skipped when an output is read by position, as a tuple or by key."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are set, in order."""
        return tuple(getattr(self, name) for name in self.keys())

    def keys(self) -> list[str]:
        """The names of the fields that are set, in order."""
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]

    def values(self) -> list[Any]:
        """The fields that are set, in order."""
        return list(self.to_tuple())

    def items(self) -> list[tuple[str, Any]]:
        """Name and value of the fields that are set, in order."""
        return list(zip(self.keys(), self.to_tuple(), strict=True))

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())


@dataclass
class Wav2Vec2BaseModelOutput(_Output):
    """What the encoder without a head returns.

    Attributes:
        last_hidden_state: (batch, num_frames, hidden_size), or output_hidden_size and fewer frames
            after an adapter.
        extract_features: (batch, num_frames, conv_dim[-1]), what the convolutions gave, normalised.
        hidden_states: The input of the first layer and the output of each, num_hidden_layers + 1 tensors
            of (batch, num_frames, hidden_size); in models that normalise first, the last one before the
            norm that closes the encoder.
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


@dataclass
class SequenceClassifierOutput(_Output):
    """What a model that classifies whole recordings returns.

    Attributes:
        loss: A scalar, where labels were given.
        logits: (batch, num_labels), before the softmax; the value itself in regression.
        hidden_states: As of Wav2Vec2BaseModelOutput.
        attentions: As of Wav2Vec2BaseModelOutput.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class TokenClassifierOutput(_Output):
    """What a model that classifies frames returns.

    Attributes:
        loss: A scalar, where labels were given.
        logits: (batch, num_frames, num_labels), before the softmax or the sigmoid.
        hidden_states: As of Wav2Vec2BaseModelOutput.
        attentions: As of Wav2Vec2BaseModelOutput.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class XVectorOutput(_Output):
    """What a model that embeds speakers returns.

    Attributes:
        loss: A scalar, where labels were given.
        logits: (batch, xvector_output_dim), what the loss compares with its class vectors.
        embeddings: (batch, xvector_output_dim), one vector per recording; those of one speaker are close
            by cosine similarity.
        hidden_states: As of Wav2Vec2BaseModelOutput.
        attentions: As of Wav2Vec2BaseModelOutput.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class Wav2Vec2ForPreTrainingOutput(_Output):
    """What the model for self-supervised training returns.

    Attributes:
        loss: A scalar, the contrastive loss and the weighted diversity loss, where negatives were given.
        projected_states: (batch, num_frames, proj_codevector_dim), what the encoder predicts.
        projected_quantized_states: (batch, num_frames, proj_codevector_dim), what it should predict.
        codevector_perplexity: A scalar, how many entries of the codebooks are in use.
        hidden_states: As of Wav2Vec2BaseModelOutput.
        attentions: As of Wav2Vec2BaseModelOutput.
        contrastive_loss: A scalar, where negatives were given.
        diversity_loss: A scalar, where negatives were given.
    """

    loss: torch.Tensor | None = None
    projected_states: torch.Tensor | None = None
    projected_quantized_states: torch.Tensor | None = None
    codevector_perplexity: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    contrastive_loss: torch.Tensor | None = None
    diversity_loss: torch.Tensor | None = None
