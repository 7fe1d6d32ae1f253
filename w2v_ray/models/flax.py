"""The classes that transformers had for Flax, under their names, computed by torch.

They read ``flax_model.msgpack``, take any kind of array and return numpy's, which JAX takes in turn.
Flax and JAX themselves are not needed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call

from w2v_ray.models.checkpoint import check_weights, current_names, has_weights
from w2v_ray.models.flax_weights import from_flax, to_flax
from w2v_ray.models.heads import Wav2Vec2ForCTC
from w2v_ray.models.outputs import CausalLMOutput, _Output
from w2v_ray.models.pretrained import PretrainedModel
from w2v_ray.models.pretraining import Wav2Vec2ForPreTraining
from w2v_ray.models.tensorflow import to_tensor
from w2v_ray.models.wav2vec2 import Wav2Vec2Model

__all__ = [
    "FlaxCausalLMOutput",
    "FlaxWav2Vec2BaseModelOutput",
    "FlaxWav2Vec2ForCTC",
    "FlaxWav2Vec2ForPreTraining",
    "FlaxWav2Vec2ForPreTrainingOutput",
    "FlaxWav2Vec2Model",
]

Array = npt.NDArray[Any]


@dataclass
class FlaxWav2Vec2BaseModelOutput(_Output):
    """The fields of Wav2Vec2BaseModelOutput, as numpy arrays."""

    last_hidden_state: Array | None = None
    extract_features: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None


@dataclass
class FlaxCausalLMOutput(_Output):
    """The fields of CausalLMOutput but for the loss, as numpy arrays."""

    logits: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None


@dataclass
class FlaxWav2Vec2ForPreTrainingOutput(_Output):
    """The fields of Wav2Vec2ForPreTrainingOutput but for the losses, as numpy arrays."""

    projected_states: Array | None = None
    projected_quantized_states: Array | None = None
    codevector_perplexity: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None


class _FlaxModel(PretrainedModel):
    output_class: ClassVar[type[Any]]

    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, from_pt: bool = False, revision: str | None = None, **options: Any
    ) -> Self:
        """Loads a folder or hub id: its ``flax_model.msgpack`` if it has one, its torch weights if not.

        Args:
            model: A folder or hub id.
            from_pt: Whether to take the torch weights in any case.
            revision: Branch, tag or commit of a hub id.
            **options: As of PretrainedModel.

        Raises:
            CheckpointError: As of PretrainedModel.
            MissingExtraError: msgpack is not installed.
        """
        from_flax = not from_pt and has_weights(model, "flax", revision=revision)
        return super().from_pretrained(model, from_flax=from_flax, revision=revision, **options)

    @property
    def params(self) -> dict[str, Any]:
        """A copy of the weights, nested and laid out as Flax has them."""
        return to_flax(self)

    def __call__(
        self,
        input_values: Any,
        attention_mask: Any = None,
        mask_time_indices: Any = None,
        params: Mapping[str, Any] | None = None,
        dropout_rng: Any = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        freeze_feature_encoder: bool = False,
        return_dict: bool | None = None,
    ) -> Any:
        """Encodes a batch of waveforms; the results are those of the torch class, without gradients.

        Args:
            input_values: (batch, num_samples), any kind of array.
            attention_mask: (batch, num_samples), 1 for samples and 0 for padding at the end.
            mask_time_indices: (batch, num_frames), true for frames to replace by the learned mask.
            params: Used instead of the model's own weights; as ``params`` gives them.
            dropout_rng: A number or JAX key that decides what is dropped in training.
            train: Whether to drop out.
            output_attentions: As of Wav2Vec2Model.
            output_hidden_states: As of Wav2Vec2Model.
            freeze_feature_encoder: In the signature only, as there are no gradients.
            return_dict: False gives a tuple.
        """
        return self._run(
            {
                "input_values": input_values,
                "attention_mask": attention_mask,
                "mask_time_indices": mask_time_indices,
                "output_attentions": output_attentions,
                "output_hidden_states": output_hidden_states,
            },
            params,
            dropout_rng,
            train,
            return_dict,
        )

    def _run(
        self,
        inputs: dict[str, Any],
        params: Mapping[str, Any] | None,
        rng: Any,
        train: bool,
        return_dict: bool | None,
    ) -> Any:
        dtypes = {
            "input_values": self.dtype,
            "attention_mask": torch.long,
            "mask_time_indices": torch.bool,
        }
        given = {
            name: to_tensor(value, dtypes[name], self.device) if name in dtypes else value
            for name, value in inputs.items()
            if value is not None
        }
        was_training = self.training
        self.train(train)
        try:
            with torch.no_grad(), _seeded(rng, self.device):
                if params is None:
                    output = self.forward(**given, return_dict=True)
                else:
                    output = functional_call(
                        _Forward(self), self._weights(params), (), {**given, "return_dict": True}, strict=True
                    )
        finally:
            self.train(was_training)
        found = {name: _numpy(getattr(output, name, None)) for name in self.output_class.__annotations__}
        result = self.output_class(**found)
        _, by_name = self._asked(None, None, return_dict)
        return result if by_name else result.to_tuple()

    def _weights(self, params: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        weights = current_names(from_flax(params))
        check_weights(self.state_dict(), weights, "params")
        return {
            f"model.{name}": weight.to(self.device, self.dtype).contiguous()
            for name, weight in weights.items()
        }


class _Forward(nn.Module):
    """A model whose call is its torch ``forward``, for torch's functional_call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        return self.model.forward(**inputs)


class FlaxWav2Vec2Model(_FlaxModel, Wav2Vec2Model):
    """Wav2Vec2Model under the name and with the call of its Flax version."""

    output_class = FlaxWav2Vec2BaseModelOutput


class FlaxWav2Vec2ForCTC(_FlaxModel, Wav2Vec2ForCTC):
    """Wav2Vec2ForCTC under the name and with the call of its Flax version, which takes no labels."""

    output_class = FlaxCausalLMOutput

    def forward(  # type: ignore[override]
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None, **asked: Any
    ) -> CausalLMOutput:
        """Logits over the vocabulary; ``asked`` as of Wav2Vec2Model."""
        encoded = self.wav2vec2(input_values, attention_mask, **asked)
        return CausalLMOutput(
            logits=self.lm_head(self.dropout(encoded.last_hidden_state)),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class FlaxWav2Vec2ForPreTraining(_FlaxModel, Wav2Vec2ForPreTraining):
    """Wav2Vec2ForPreTraining under the name and with the call of its Flax version, which gives no loss."""

    output_class = FlaxWav2Vec2ForPreTrainingOutput

    def __call__(  # type: ignore[override]
        self,
        input_values: Any,
        attention_mask: Any = None,
        mask_time_indices: Any = None,
        gumbel_temperature: float = 1,
        params: Mapping[str, Any] | None = None,
        dropout_rng: Any = None,
        gumbel_rng: Any = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        freeze_feature_encoder: bool = False,
        return_dict: bool | None = None,
    ) -> Any:
        """Encodes a batch of waveforms and quantises its features; the rest as of FlaxWav2Vec2Model.

        Args:
            input_values: As of FlaxWav2Vec2Model.
            attention_mask: As of FlaxWav2Vec2Model.
            mask_time_indices: (batch, num_frames), true for frames to replace by the learned mask.
            gumbel_temperature: How evenly code vectors are drawn in training.
            params: As of FlaxWav2Vec2Model.
            dropout_rng: As of FlaxWav2Vec2Model; decides the code vectors, too.
            gumbel_rng: Used where ``dropout_rng`` is None.
            train: Whether to drop out and to draw code vectors.
            output_attentions: As of Wav2Vec2Model.
            output_hidden_states: As of Wav2Vec2Model.
            freeze_feature_encoder: In the signature only, as there are no gradients.
            return_dict: False gives a tuple.
        """
        before = self.quantizer.temperature
        self.set_gumbel_temperature(gumbel_temperature)
        try:
            return super().__call__(
                input_values,
                attention_mask,
                mask_time_indices,
                params,
                gumbel_rng if dropout_rng is None else dropout_rng,
                train,
                output_attentions,
                output_hidden_states,
                return_dict=return_dict,
            )
        finally:
            self.set_gumbel_temperature(before)


@contextmanager
def _seeded(rng: Any, device: torch.device) -> Iterator[None]:
    """Draws from ``rng`` inside, and leaves torch's own state as it was; None draws from that."""
    if rng is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(zlib.crc32(np.asarray(rng).tobytes()))  # a CPU's generator takes 32 bits
        yield


def _numpy(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(map(_numpy, value))
    if not isinstance(value, torch.Tensor):
        return value
    value = value.float() if value.dtype is torch.bfloat16 else value  # numpy has no such dtype
    return value.cpu().numpy()
