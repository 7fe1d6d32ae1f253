"""What stands on a wav2vec 2.0 encoder: the CTC head."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import nn
from torch.nn import functional as F

from w2v_ray.models.checkpoint import load_model, save_model
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.outputs import CausalLMOutput
from w2v_ray.models.wav2vec2 import Wav2Vec2Model, initialize

__all__ = ["Wav2Vec2ForCTC"]


class Wav2Vec2ForCTC(nn.Module):
    """The encoder with a linear layer to the vocabulary, trained by connectionist temporal classification.

    Args:
        config: What to build.
        attn_implementation: As of Wav2Vec2Model.
    """

    base_model_prefix = "wav2vec2"

    def __init__(self, config: Wav2Vec2Config, *, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.wav2vec2 = Wav2Vec2Model(config, attn_implementation=attn_implementation)
        self.dropout = nn.Dropout(config.final_dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        initialize(config, self.lm_head)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        dtype: torch.dtype | str = torch.float32,
        attn_implementation: str = "sdpa",
    ) -> Self:
        """Loads a folder or hub id; arguments, result and errors as of Wav2Vec2Model."""
        config = Wav2Vec2Config.from_pretrained(model, revision=revision)
        build = partial(cls, config, attn_implementation=attn_implementation)
        return load_model(build, model, revision=revision, dtype=dtype)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes ``config.json`` and ``model.safetensors`` as transformers reads them."""
        save_model(self, self.config, folder)

    def freeze_feature_encoder(self) -> None:
        """Keeps the convolutions as they are during training."""
        self.wav2vec2.feature_extractor.requires_grad_(False)

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> CausalLMOutput:
        """Encodes a batch of waveforms to logits over the vocabulary.

        Args:
            input_values: As of Wav2Vec2Model.
            attention_mask: As of Wav2Vec2Model.
            labels: (batch, target_length) token ids; -100 pads. Gives the CTC loss, reduced as the
                config says.
            output_attentions: As of Wav2Vec2Model.
            output_hidden_states: As of Wav2Vec2Model.

        Raises:
            ValueError: A label is not in the vocabulary.
        """
        encoded = self.wav2vec2(
            input_values,
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits_BLV = self.lm_head(self.dropout(encoded.last_hidden_state))
        loss = None
        if labels is not None:
            loss = self._ctc_loss(logits_BLV, labels, input_values, attention_mask)
        return CausalLMOutput(
            loss=loss, logits=logits_BLV, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )

    def _ctc_loss(
        self,
        logits_BLV: torch.Tensor,
        labels: torch.Tensor,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        config = self.config
        if int(labels.max()) >= config.vocab_size:
            raise ValueError(
                f"a label is {int(labels.max())}, expected ids below vocab_size ({config.vocab_size})"
            )
        num_samples = torch.full_like(labels[:, 0], input_values.shape[1])
        if attention_mask is not None:
            num_samples = attention_mask.sum(-1)
        used = labels >= 0
        log_probs_LBV = F.log_softmax(logits_BLV, dim=-1, dtype=torch.float32).transpose(0, 1)
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN's CTC has stricter limits and no determinism
            return F.ctc_loss(
                log_probs_LBV,
                labels.masked_select(used),
                self.wav2vec2.num_frames(num_samples),
                used.sum(-1),
                blank=config.pad_token_id,
                reduction=config.ctc_loss_reduction,
                zero_infinity=config.ctc_zero_infinity,
            )
