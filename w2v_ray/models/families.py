"""What models with a head share: the encoder under its family's name, and the arguments of ``forward``.

Letters in tensor names: B batch, L frames, E width, N hidden states.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from w2v_ray.errors import ConfigError
from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.outputs import Wav2Vec2BaseModelOutput
from w2v_ray.models.pretrained import PretrainedModel
from w2v_ray.models.wav2vec2 import Wav2Vec2Model
from w2v_ray.models.wav2vec2_bert import Wav2Vec2BertModel

__all__ = ["ModelWithHead", "Wav2Vec2BertFamily", "Wav2Vec2Family"]


class ModelWithHead(PretrainedModel):
    """An encoder under the name that its family gives it, and what a head needs of its output."""

    encoder_class: ClassVar[type[PretrainedModel]]

    def __init__(self, config: Any, *, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation=attn_implementation)
        encoder = self.encoder_class(config, attn_implementation=self.attn_implementation)
        self.add_module(self.base_model_prefix, encoder)

    @property
    def base_model(self) -> Any:
        """The encoder."""
        return getattr(self, self.base_model_prefix)

    def freeze_base_model(self) -> None:
        """Keeps the encoder as it is during training, so that the head alone learns."""
        self.base_model.requires_grad_(False)

    @property
    def needs_hidden_states(self) -> bool:
        """Whether the head looks at all layers of the encoder."""
        return hasattr(self, "layer_weights")

    def apply_head(
        self,
        encoded: Wav2Vec2BaseModelOutput,
        inputs: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> Any:
        """What the head alone makes of an encoder's output, so that several heads can share one encoder.

        Args:
            encoded: What ``base_model`` gave, with hidden states where ``needs_hidden_states``.
            inputs: What it gave that for.
            attention_mask: The mask that it was given.
            labels: As the class says; they give a loss.

        Returns:
            What the model itself returns, with the hidden states and attentions of ``encoded``.
        """
        raise NotImplementedError

    def _output(
        self,
        inputs: torch.Tensor,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None,
        asked: dict[str, bool],
    ) -> Any:
        wanted = {**asked, "output_hidden_states": asked["output_hidden_states"] or self.needs_hidden_states}
        encoded = self.base_model(inputs, attention_mask, **wanted, return_dict=True)
        output = self.apply_head(encoded, inputs, attention_mask, labels)
        if not asked["output_hidden_states"]:
            output.hidden_states = None
        return output

    def _initialize(self, *modules: nn.Module) -> None:
        for module in modules:
            for linear in module.modules():
                # On the meta device weights are about to be loaded, and drawing would load torch's compiler.
                if isinstance(linear, nn.Linear) and not linear.weight.is_meta:
                    nn.init.normal_(linear.weight, std=self.config.initializer_range)
                    nn.init.zeros_(linear.bias)

    def _refuse_adapter(self) -> None:
        if self.config.add_adapter:
            raise ConfigError(
                f"add_adapter is True, which {type(self).__name__} does not support; set it to False"
            )

    def _refuse_wide_adapter(self) -> None:
        config = self.config
        if config.add_adapter and config.output_hidden_size not in (None, config.hidden_size):
            raise ConfigError(
                f"output_hidden_size is {config.output_hidden_size}, but {type(self).__name__} needs "
                f"an adapter that keeps hidden_size ({config.hidden_size}); set it to that"
            )

    def _add_layer_weights(self) -> None:
        if self.config.use_weighted_layer_sum:
            count = self.config.num_hidden_layers + 1
            self.layer_weights = nn.Parameter(torch.full((count,), 1 / count))

    def _seen(self, encoded: Wav2Vec2BaseModelOutput) -> torch.Tensor:
        """What the head sees of the encoder's output: the last layer, or a weighted sum of all."""
        if not self.needs_hidden_states:
            assert encoded.last_hidden_state is not None
            return encoded.last_hidden_state
        assert encoded.hidden_states is not None, "the head needs hidden states"
        weights_N111 = torch.softmax(self.layer_weights, dim=-1)[:, None, None, None]
        return (torch.stack(list(encoded.hidden_states)) * weights_N111).sum(0)


class Wav2Vec2Family(ModelWithHead):
    """What all models with a wav2vec 2.0 encoder share."""

    config_class = Wav2Vec2Config
    encoder_class = Wav2Vec2Model
    base_model_prefix = "wav2vec2"
    main_input_name = "input_values"

    wav2vec2: Wav2Vec2Model

    def freeze_feature_encoder(self) -> None:
        """Keeps the convolutions as they are during training."""
        self.wav2vec2.freeze_feature_encoder()

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Runs the encoder and the head on a batch of waveforms.

        Args:
            input_values: As of Wav2Vec2Model.
            attention_mask: As of Wav2Vec2Model.
            labels: As the class says; they give a loss.
            output_attentions: As of Wav2Vec2Model.
            output_hidden_states: As of Wav2Vec2Model.
            return_dict: As of Wav2Vec2Model.
        """
        asked, by_name = self._asked(output_attentions, output_hidden_states, return_dict)
        output = self._output(input_values, attention_mask, labels, asked)
        return output if by_name else output.to_tuple()


class Wav2Vec2BertFamily(ModelWithHead):
    """What all models with a Wav2Vec2-BERT encoder share."""

    config_class = Wav2Vec2BertConfig
    encoder_class = Wav2Vec2BertModel
    base_model_prefix = "wav2vec2_bert"
    main_input_name = "input_features"

    wav2vec2_bert: Wav2Vec2BertModel

    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Runs the encoder and the head on a batch of log-mel features.

        Args:
            input_features: As of Wav2Vec2BertModel.
            attention_mask: As of Wav2Vec2BertModel.
            labels: As the class says; they give a loss.
            output_attentions: As of Wav2Vec2BertModel.
            output_hidden_states: As of Wav2Vec2BertModel.
            return_dict: As of Wav2Vec2BertModel.
        """
        asked, by_name = self._asked(output_attentions, output_hidden_states, return_dict)
        output = self._output(input_features, attention_mask, labels, asked)
        return output if by_name else output.to_tuple()
