"""The Wav2Vec2-BERT encoder: log-mel features to a Conformer, and an adapter that shortens its output.

Letters in tensor names: B batch, L frames, M width of the features, E hidden width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from w2v_ray.errors import ConfigError
from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.conformer import (
    ConformerAdapter,
    ConformerAttention,
    ConformerEncoder,
    ConformerFeedForward,
    adapter_frames,
)
from w2v_ray.models.masking import mask_frames
from w2v_ray.models.outputs import Wav2Vec2BaseModelOutput
from w2v_ray.models.pretrained import PretrainedModel
from w2v_ray.models.wav2vec2 import valid_frames

__all__ = ["Wav2Vec2BertModel", "initialize_conformer"]


class Wav2Vec2BertFeatureProjection(nn.Module):
    def __init__(self, config: Wav2Vec2BertConfig) -> None:
        super().__init__()
        width = config.feature_projection_input_dim
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.projection = nn.Linear(width, config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, x_BLM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        normed_BLM = self.layer_norm(x_BLM)
        return self.dropout(self.projection(normed_BLM)), normed_BLM


class Wav2Vec2BertModel(PretrainedModel):
    """The Wav2Vec2-BERT encoder: projection, Conformer and, where the config says so, the adapter.

    Args:
        config: What to build.
        attn_implementation: The attention kernel; "flash_attention_2" serves the position types "rotary"
            and None alone, as the others add a bias per pair of frames. Attention probabilities can be
            returned by "eager" alone.

    Raises:
        ConfigError: There is no such kernel or activation, or the kernel does not serve the positions.
    """

    config_class = Wav2Vec2BertConfig
    base_model_prefix = "wav2vec2_bert"
    main_input_name = "input_features"

    def __init__(self, config: Wav2Vec2BertConfig, *, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation=attn_implementation)
        self.feature_projection = Wav2Vec2BertFeatureProjection(config)
        if config.mask_time_prob > 0 or config.mask_feature_prob > 0:
            self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_size).uniform_())
        self.encoder = ConformerEncoder(config, self.attn_implementation)
        self.adapter: ConformerAdapter | None = None
        self.intermediate_ffn: ConformerFeedForward | None = None
        if config.add_adapter:
            self.adapter = ConformerAdapter(config, self.attn_implementation)
        if config.use_intermediate_ffn_before_adapter:
            self.intermediate_ffn = ConformerFeedForward(config, config.hidden_size, "relu")
        self.apply(partial(initialize_conformer, config))

    def num_frames(self, lengths: torch.Tensor | int, *, add_adapter: bool | None = None) -> torch.Tensor:
        """How many output frames so many frames of features give.

        Args:
            lengths: Frames of features, of one row or of each.
            add_adapter: Whether to count what the adapter puts out; None: if there is one.
        """
        frames = torch.as_tensor(lengths)
        if self.config.add_adapter if add_adapter is None else add_adapter:
            for _ in range(self.config.num_adapter_layers):
                frames = adapter_frames(self.config, frames)
        return frames

    def frame_mask(self, attention_mask: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Which output frames are inside their row and not padding.

        Args:
            attention_mask: As of ``forward``.
            num_frames: Output frames of the longest row.

        Returns:
            (batch, num_frames) bool.
        """
        return valid_frames(self.num_frames(attention_mask.sum(-1)), num_frames)

    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Wav2Vec2BaseModelOutput | tuple[Any, ...]:
        """Encodes a batch of log-mel features.

        Args:
            input_features: (batch, num_frames, feature_projection_input_dim), as SeamlessM4TFeatureExtractor
                makes them: 20 ms a frame.
            attention_mask: (batch, num_frames), 1 for frames and 0 for padding at the end; None: no row
                is padded.
            mask_time_indices: (batch, num_frames), true for frames to replace by the learned mask; without
                effect where the config says apply_spec_augment=False.
            output_attentions: Whether to return attention probabilities ("eager" only).
            output_hidden_states: Whether to return every layer's output; the adapter's layers are not
                among them.
            return_dict: False returns the fields that are set as a tuple. This and the two before it are
                as the config says where they are None.

        Raises:
            ConfigError: Attentions are asked of a kernel that does not give them, or frames are to be
                masked in a model without a learned mask.
        """
        asked, by_name = self._asked(output_attentions, output_hidden_states, return_dict)
        if asked["output_attentions"] and self.attn_implementation != "eager":
            raise ConfigError(
                f"output_attentions needs attn_implementation='eager', it is {self.attn_implementation!r}; "
                "load the model with attn_implementation='eager'"
            )
        valid_BL = None
        if attention_mask is not None and not bool(attention_mask.all()):
            valid_BL = attention_mask.bool()
        x_BLE, features_BLM = self.feature_projection(input_features)
        lengths = None if valid_BL is None else valid_BL.sum(-1)
        learned_E = getattr(self, "masked_spec_embed", None)
        x_BLE = mask_frames(self.config, x_BLE, learned_E, mask_time_indices, lengths, training=self.training)
        x_BLE, hidden_states, attentions = self.encoder(x_BLE, valid_BL)
        if self.intermediate_ffn is not None:
            x_BLE = x_BLE + 0.5 * self.intermediate_ffn(x_BLE)
        if self.adapter is not None:
            x_BLE = self.adapter(x_BLE, lengths)
        output = Wav2Vec2BaseModelOutput(
            last_hidden_state=x_BLE,
            extract_features=features_BLM,
            hidden_states=tuple(hidden_states) if asked["output_hidden_states"] else None,
            attentions=tuple(attentions) if asked["output_attentions"] else None,
        )
        return output if by_name else output.to_tuple()


def initialize_conformer(config: Wav2Vec2BertConfig, module: nn.Module) -> None:
    """The published initial distributions; weights on the meta device are left, as by ``initialize``."""
    if any(parameter.is_meta for parameter in module.parameters()):
        return
    if isinstance(module, Wav2Vec2BertFeatureProjection):
        bound = module.projection.in_features**-0.5
        nn.init.uniform_(module.projection.weight, -bound, bound)
        nn.init.uniform_(module.projection.bias, -bound, bound)
    elif isinstance(module, ConformerAttention) and module.positions == "relative":
        nn.init.xavier_uniform_(module.pos_bias_u)
        nn.init.xavier_uniform_(module.pos_bias_v)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=config.initializer_range)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=config.initializer_range)
    elif isinstance(module, nn.Conv1d):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            bound = (module.groups / (module.in_channels * module.kernel_size[0])) ** 0.5
            nn.init.uniform_(module.bias, -bound, bound)
