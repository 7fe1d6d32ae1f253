"""The classes that transformers had for TensorFlow, under their names, computed by torch.

They read ``tf_model.h5``, take numpy arrays, lists, torch's or TensorFlow's tensors, and return
torch's, which ``numpy`` and TensorFlow read in turn. TensorFlow itself is not needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from w2v_ray.errors import ConfigError
from w2v_ray.models.checkpoint import has_weights
from w2v_ray.models.heads import Wav2Vec2ForCTC, Wav2Vec2ForSequenceClassification
from w2v_ray.models.outputs import CausalLMOutput, SequenceClassifierOutput, Wav2Vec2BaseModelOutput
from w2v_ray.models.pretrained import PretrainedModel
from w2v_ray.models.wav2vec2 import Wav2Vec2Model

__all__ = ["TFWav2Vec2ForCTC", "TFWav2Vec2ForSequenceClassification", "TFWav2Vec2Model", "to_tensor"]


class _TensorFlowModel(PretrainedModel):
    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, from_pt: bool = False, revision: str | None = None, **options: Any
    ) -> Self:
        """Loads a folder or hub id: its ``tf_model.h5`` if it has one, and its torch weights if not.

        Args:
            model: A folder or hub id.
            from_pt: Whether to take the torch weights in any case.
            revision: Branch, tag or commit of a hub id.
            **options: As of PretrainedModel.

        Raises:
            CheckpointError: As of PretrainedModel.
            MissingExtraError: h5py is not installed.
        """
        from_tf = not from_pt and has_weights(model, "tf", revision=revision)
        return super().from_pretrained(model, from_tf=from_tf, revision=revision, **options)

    def __call__(self, input_values: Any, *args: Any, **kwargs: Any) -> Any:
        """``call``, which also takes all arguments in one dictionary, as a processor returns them."""
        if hasattr(input_values, "keys"):
            return self.call(*args, **{**input_values, **kwargs})
        return self.call(input_values, *args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def _run(self, training: bool | None, return_dict: bool | None, **inputs: Any) -> Any:
        dtypes = {"input_values": self.dtype, "attention_mask": torch.long}
        given = {
            name: value if isinstance(value, bool) else to_tensor(value, dtypes.get(name), self.device)
            for name, value in inputs.items()
            if value is not None
        }
        was_training = self.training
        self.train(bool(training))
        try:
            with torch.set_grad_enabled(bool(training)):
                output = super().__call__(**given, return_dict=True)
        finally:
            self.train(was_training)
        _, by_name = self._asked(None, None, return_dict)
        return output if by_name else output.to_tuple()


class TFWav2Vec2Model(_TensorFlowModel, Wav2Vec2Model):
    """Wav2Vec2Model under the name and with the ``call`` of its TensorFlow version."""

    def call(
        self,
        input_values: Any,
        attention_mask: Any = None,
        token_type_ids: None = None,
        position_ids: None = None,
        head_mask: None = None,
        inputs_embeds: None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = False,
    ) -> Wav2Vec2BaseModelOutput | tuple[torch.Tensor, ...]:
        """Encodes a batch of waveforms; arguments and result as of Wav2Vec2Model.

        Args:
            input_values: (batch, num_samples), any kind of array.
            attention_mask: (batch, num_samples), 1 for samples and 0 for padding at the end.
            token_type_ids: In the signature only.
            position_ids: In the signature only.
            head_mask: In the signature only.
            inputs_embeds: In the signature only.
            output_attentions: As of Wav2Vec2Model.
            output_hidden_states: As of Wav2Vec2Model.
            return_dict: False gives a tuple.
            training: Whether to drop out, to mask, and to record gradients.

        Raises:
            ConfigError: One of the arguments that are in the signature only is given.
        """
        _refuse(token_type_ids, position_ids, head_mask, inputs_embeds)
        output: Wav2Vec2BaseModelOutput = self._run(
            training,
            return_dict,
            input_values=input_values,
            attention_mask=attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        return output


class TFWav2Vec2ForCTC(_TensorFlowModel, Wav2Vec2ForCTC):
    """Wav2Vec2ForCTC under the name and with the ``call`` of its TensorFlow version."""

    def call(
        self,
        input_values: Any,
        attention_mask: Any = None,
        token_type_ids: None = None,
        position_ids: None = None,
        head_mask: None = None,
        inputs_embeds: None = None,
        output_attentions: bool | None = None,
        labels: Any = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = False,
    ) -> CausalLMOutput | tuple[torch.Tensor, ...]:
        """Logits over the vocabulary; arguments as of TFWav2Vec2Model and Wav2Vec2ForCTC.

        Raises:
            ConfigError: One of the arguments that are in the signature only is given.
        """
        _refuse(token_type_ids, position_ids, head_mask, inputs_embeds)
        output: CausalLMOutput = self._run(
            training,
            return_dict,
            input_values=input_values,
            attention_mask=attention_mask,
            labels=labels,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        return output


class TFWav2Vec2ForSequenceClassification(_TensorFlowModel, Wav2Vec2ForSequenceClassification):
    """Wav2Vec2ForSequenceClassification under the name and with the ``call`` of its TensorFlow version."""

    def call(
        self,
        input_values: Any,
        attention_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Any = None,
        training: bool | None = False,
    ) -> SequenceClassifierOutput | tuple[torch.Tensor, ...]:
        """Logits over the classes; arguments as of TFWav2Vec2Model and Wav2Vec2ForSequenceClassification."""
        output: SequenceClassifierOutput = self._run(
            training,
            return_dict,
            input_values=input_values,
            attention_mask=attention_mask,
            labels=labels,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        return output


def _refuse(*unused: object) -> None:
    names = ("token_type_ids", "position_ids", "head_mask", "inputs_embeds")
    for name, value in zip(names, unused, strict=True):
        if value is not None:
            raise ConfigError(f"{name} is given, which wav2vec 2.0 has no use for; leave it out")


def to_tensor(value: Any, dtype: torch.dtype | None, device: torch.device) -> torch.Tensor:
    """Any kind of array as a tensor; ``dtype`` None keeps its own."""
    tensor = value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
    return tensor.to(device=device, dtype=dtype or tensor.dtype)
