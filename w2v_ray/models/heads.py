"""What stands on an encoder: heads for transcribing and for classifying recordings and frames.

Each head is written once, for any encoder; each model is a head and the family that its encoder is of.

Letters in tensor names: B batch, L frames, E width, K classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from w2v_ray.errors import CheckpointError, ConfigError
from w2v_ray.models.adapters import AttentionAdapter, read_language_adapter
from w2v_ray.models.families import ModelWithHead, Wav2Vec2BertFamily, Wav2Vec2Family
from w2v_ray.models.losses import classification_loss, ctc_loss, frame_classification_loss
from w2v_ray.models.outputs import (
    CausalLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    Wav2Vec2BaseModelOutput,
)

__all__ = [
    "Wav2Vec2BertForAudioFrameClassification",
    "Wav2Vec2BertForCTC",
    "Wav2Vec2BertForSequenceClassification",
    "Wav2Vec2ForAudioFrameClassification",
    "Wav2Vec2ForCTC",
    "Wav2Vec2ForSequenceClassification",
]


class _CTC(ModelWithHead):
    def __init__(
        self, config: Any, target_lang: str | None = None, *, attn_implementation: str = "sdpa"
    ) -> None:
        super().__init__(config, attn_implementation=attn_implementation)
        if config.vocab_size is None:
            raise ConfigError(
                "vocab_size is None, expected the number of tokens; set it to that of the tokenizer"
            )
        self.target_lang = target_lang
        self.dropout = nn.Dropout(config.final_dropout)
        width = config.hidden_size
        if config.add_adapter:
            width = config.output_hidden_size or width
        self.lm_head = nn.Linear(width, config.vocab_size)
        self._initialize(self.lm_head)

    def apply_head(
        self,
        encoded: Wav2Vec2BaseModelOutput,
        inputs: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> CausalLMOutput:
        logits_BLV = self.lm_head(self.dropout(encoded.last_hidden_state))
        loss = None
        if labels is not None:
            lengths = torch.full(labels.shape[:1], inputs.shape[1], device=inputs.device)
            if attention_mask is not None:
                lengths = attention_mask.sum(-1)
            loss = ctc_loss(
                logits_BLV,
                labels,
                self.base_model.num_frames(lengths),
                blank=self.config.pad_token_id,
                reduction=self.config.ctc_loss_reduction,
                zero_infinity=self.config.ctc_zero_infinity,
            )
        return CausalLMOutput(
            loss=loss, logits=logits_BLV, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )


class _SequenceClassification(ModelWithHead):
    def __init__(self, config: Any, *, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation=attn_implementation)
        self._refuse_adapter()
        self._add_layer_weights()
        self.projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)
        self._initialize(self.projector, self.classifier)

    def apply_head(
        self,
        encoded: Wav2Vec2BaseModelOutput,
        inputs: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        x_BLE = self.projector(self._seen(encoded))
        if attention_mask is None:
            pooled_BE = x_BLE.mean(1)
        else:
            valid_BL1 = self.base_model.frame_mask(attention_mask, x_BLE.shape[1])[..., None]
            # Summed as mean() does: float16 ends at 65504, which a few minutes of frames can reach.
            wide = torch.promote_types(x_BLE.dtype, torch.float32)
            total_BE = x_BLE.masked_fill(~valid_BL1, 0).sum(1, dtype=wide)
            pooled_BE = (total_BE / valid_BL1.sum(1)).to(x_BLE.dtype)
        logits_BK = self.classifier(pooled_BE)
        return SequenceClassifierOutput(
            loss=None if labels is None else classification_loss(logits_BK, labels, self.config),
            logits=logits_BK,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class _AudioFrameClassification(ModelWithHead):
    def __init__(self, config: Any, *, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation=attn_implementation)
        self._refuse_adapter()
        self._add_layer_weights()
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self._initialize(self.classifier)

    def apply_head(
        self,
        encoded: Wav2Vec2BaseModelOutput,
        inputs: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> TokenClassifierOutput:
        x_BLE = self._seen(encoded)
        logits_BLK = self.classifier(x_BLE)
        loss = None
        if labels is not None:
            valid_BL = None
            if attention_mask is not None:
                valid_BL = self.base_model.frame_mask(attention_mask, x_BLE.shape[1])
            loss = frame_classification_loss(logits_BLK, labels, valid_BL, self.config)
        return TokenClassifierOutput(
            loss=loss, logits=logits_BLK, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )


class Wav2Vec2ForCTC(Wav2Vec2Family, _CTC):
    """Wav2vec 2.0 with a linear layer to the vocabulary, trained by connectionist temporal classification.

    Where ``adapter_attn_dim`` is set, the model has a small adapter and a head for each of many
    languages, in files beside its weights, and ``load_adapter`` goes from one language to another.

    ``labels`` are (batch, target_length) token ids, of which -100 pads; the loss is reduced as
    ``ctc_loss_reduction`` says.

    Args:
        config: What to build.
        target_lang: The language that the weights are of, for models with adapters.
        attn_implementation: As of Wav2Vec2Model.
    """

    checkpoint: tuple[str | Path, str | None] | None = None

    @classmethod
    def from_pretrained(cls, model: str | Path, *, target_lang: str | None = None, **options: Any) -> Self:
        """Loads a folder or hub id; arguments, result and errors as of PretrainedModel.

        Args:
            model: A folder or hub id.
            target_lang: The language whose adapter and head to load; None: the one in the weights.
            **options: As of PretrainedModel.
        """
        loaded = super().from_pretrained(model, **options)
        loaded.checkpoint = (model, options.get("revision"))
        if target_lang is not None:
            loaded.load_adapter(target_lang)
        return loaded

    def load_adapter(
        self,
        target_lang: str,
        force_load: bool = True,
        *,
        model: str | Path | None = None,
        revision: str | None = None,
    ) -> None:
        """Changes the language: its adapter weights, its head and with it ``config.vocab_size``.

        Args:
            target_lang: As in the name of ``adapter.<target_lang>.safetensors`` or ``.bin``.
            force_load: Whether to load a language that is loaded already.
            model: The folder or hub id with the file; None: the one the model was loaded from.
            revision: Branch, tag or commit of a hub id.

        Raises:
            CheckpointError: There is no such file, or its weights do not fit; it names them.
            ConfigError: The model has no adapters, or it is not known where their files are.
        """
        config = self.config
        if config.adapter_attn_dim is None:
            raise ConfigError(
                f"target_lang is {target_lang!r}, but the config has no adapter_attn_dim; "
                "name a checkpoint with language adapters"
            )
        if target_lang == self.target_lang and not force_load:
            return
        if model is None:
            if self.checkpoint is None:
                raise ConfigError(
                    f"target_lang is {target_lang!r}, but the model was built and not loaded; "
                    "say in load_adapter(model=) where the adapters are"
                )
            model, known_revision = self.checkpoint
            revision = revision or known_revision
        self.fill_adapter(*read_language_adapter(model, target_lang, revision=revision), target_lang)

    def fill_adapter(self, weights: Mapping[str, torch.Tensor], source: str, target_lang: str | None) -> None:
        """Changes the language to one whose weights are in memory; else as ``load_adapter``.

        Args:
            weights: Those of ``adapter_weights``, on any device and of any floating dtype.
            source: Where they came from, for messages.
            target_lang: What they are of.

        Raises:
            CheckpointError: They do not fit, and the model is as it was; it names them.
        """
        config = self.config
        head = weights.get("lm_head.weight")
        vocab_size = head.shape[0] if head is not None and head.ndim == 2 else config.vocab_size
        expected = self.adapter_weights()
        shapes = {name: tuple(weight.shape) for name, weight in expected.items()}
        shapes["lm_head.weight"] = (vocab_size, self.lm_head.in_features)
        shapes["lm_head.bias"] = (vocab_size,)
        found = {name: tuple(weight.shape) for name, weight in weights.items()}
        if wrong := sorted(n for n in shapes.keys() | found.keys() if shapes.get(n) != found.get(n)):
            raise CheckpointError(
                f"{source} does not fit the model: {wrong[0]} has shape {found.get(wrong[0])}, expected "
                f"{shapes.get(wrong[0])} (one of {len(wrong)} such); use the adapter of this checkpoint"
            )
        if vocab_size != config.vocab_size:
            old = expected["lm_head.weight"]
            self.lm_head = nn.Linear(self.lm_head.in_features, vocab_size, device=old.device, dtype=old.dtype)
            config.vocab_size = vocab_size
        with torch.no_grad():
            for name, weight in self.adapter_weights().items():
                weight.copy_(weights[name])
        self.target_lang = target_lang

    def adapter_weights(self) -> dict[str, nn.Parameter]:
        """The weights that differ between languages, under the names that adapter files use.

        To train a language of one's own: freeze the base model, make these trainable, and afterwards
        write them to ``adapter.<lang>.safetensors``.
        """
        return {
            f"{prefix}.{name}": parameter
            for prefix, module in self.named_modules()
            if isinstance(module, AttentionAdapter) or module is self.lm_head
            for name, parameter in module.named_parameters()
        }

    def init_adapter_layers(self) -> None:
        """Starts the adapters and the head anew, to train another language."""
        adapters = [module for module in self.modules() if isinstance(module, AttentionAdapter)]
        self._initialize(self.lm_head, *adapters)
        for adapter in adapters:
            adapter.norm.reset_parameters()


class Wav2Vec2BertForCTC(Wav2Vec2BertFamily, _CTC):
    """Wav2Vec2-BERT with a linear layer to the vocabulary; labels as of Wav2Vec2ForCTC.

    Args:
        config: What to build.
        target_lang: Kept as it is: this family has no adapters for languages.
        attn_implementation: As of Wav2Vec2BertModel.
    """


class Wav2Vec2ForSequenceClassification(Wav2Vec2Family, _SequenceClassification):
    """Wav2vec 2.0 with a classifier of whole recordings: a projection, the mean over time, a linear layer.

    ``labels`` are (batch,) class numbers; (batch, num_labels) of 0 and 1 where several classes may be
    true; or values where ``num_labels`` is 1 or ``problem_type`` is "regression".

    Args:
        config: What to build.
        attn_implementation: As of Wav2Vec2Model.

    Raises:
        ConfigError: ``add_adapter`` is set.
    """


class Wav2Vec2BertForSequenceClassification(Wav2Vec2BertFamily, _SequenceClassification):
    """Wav2Vec2-BERT with a classifier of whole recordings; the rest as of Wav2Vec2ForSequenceClassification.

    Args:
        config: What to build.
        attn_implementation: As of Wav2Vec2BertModel.

    Raises:
        ConfigError: ``add_adapter`` is set.
    """


class Wav2Vec2ForAudioFrameClassification(Wav2Vec2Family, _AudioFrameClassification):
    """Wav2vec 2.0 with a classifier of frames, such as who speaks when.

    ``labels`` are (batch, num_frames) class numbers, of which -100 does not count, or
    (batch, num_frames, num_labels), of which the largest is the class unless ``problem_type`` is
    "multi_label_classification" or "regression".

    Args:
        config: What to build.
        attn_implementation: As of Wav2Vec2Model.

    Raises:
        ConfigError: ``add_adapter`` is set.
    """


class Wav2Vec2BertForAudioFrameClassification(Wav2Vec2BertFamily, _AudioFrameClassification):
    """Wav2Vec2-BERT with a classifier of frames; the rest as of Wav2Vec2ForAudioFrameClassification.

    Args:
        config: What to build.
        attn_implementation: As of Wav2Vec2BertModel.

    Raises:
        ConfigError: ``add_adapter`` is set.
    """
