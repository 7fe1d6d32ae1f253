"""The wav2vec 2.0 encoder.

Submodules carry the names of the published checkpoints, so that loading needs no key table. Every
layer that shortens time takes and returns lengths, so that a row's result does not depend on what
it is padded with.

Letters in tensor names: B batch, S samples, C channels, L frames, E hidden width, H heads, D head width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from w2v_ray.errors import ConfigError
from w2v_ray.models.activations import activation
from w2v_ray.models.adapters import AttentionAdapter, Wav2Vec2Adapter, Wav2Vec2AdapterLayer
from w2v_ray.models.attention import choose_kernel
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.masking import mask_frames
from w2v_ray.models.outputs import Wav2Vec2BaseModelOutput
from w2v_ray.models.pretrained import PretrainedModel

__all__ = ["TrueLengthGroupNorm", "Wav2Vec2Model", "initialize", "valid_frames"]


def valid_frames(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """(B,) lengths to a (B, size) mask that is true where a position is inside its row."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


class TrueLengthGroupNorm(nn.GroupNorm):
    """One group per channel, with statistics over a row's own frames and not over its padding.

    ``over_padding`` counts that too, as transformers does.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)
        self.over_padding = False

    def forward(self, x_BCL: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        if lengths is None or self.over_padding:
            return super().forward(x_BCL)
        valid_B1L = valid_frames(lengths, x_BCL.shape[-1])[:, None]
        count_B11 = lengths.clamp(min=1)[:, None, None]
        # As torch's own kernel does: float16 cannot even count the frames of 21 seconds.
        wide_BCL = x_BCL.to(torch.promote_types(x_BCL.dtype, torch.float32))
        mean_BC1 = wide_BCL.masked_fill(~valid_B1L, 0).sum(-1, keepdim=True) / count_B11
        centred_BCL = (wide_BCL - mean_BC1).masked_fill(~valid_B1L, 0)
        variance_BC1 = centred_BCL.square().sum(-1, keepdim=True) / count_B11
        normed_BCL = centred_BCL * torch.rsqrt(variance_BC1 + self.eps)
        return (normed_BCL * self.weight[:, None] + self.bias[:, None]).to(x_BCL.dtype)


class Wav2Vec2ConvLayer(nn.Module):
    def __init__(self, config: Wav2Vec2Config, index: int) -> None:
        super().__init__()
        channels = config.conv_dim[index]
        self.conv = nn.Conv1d(
            config.conv_dim[index - 1] if index else 1,
            channels,
            config.conv_kernel[index],
            stride=config.conv_stride[index],
            bias=config.conv_bias,
        )
        self.layer_norm: nn.Module | None = None
        if config.feat_extract_norm == "layer":
            self.layer_norm = nn.LayerNorm(channels)
        elif index == 0:
            self.layer_norm = TrueLengthGroupNorm(channels)
        self.activation = activation(config.feat_extract_activation)

    def forward(
        self, x_BCL: torch.Tensor, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        x_BCL = self.conv(x_BCL)
        if lengths is not None:
            kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
            lengths = (torch.div(lengths - kernel, stride, rounding_mode="floor") + 1).clamp(min=0)
        if isinstance(self.layer_norm, nn.LayerNorm):
            x_BCL = self.layer_norm(x_BCL.transpose(1, 2)).transpose(1, 2)
        elif self.layer_norm is not None:
            x_BCL = self.layer_norm(x_BCL, lengths)
        return self.activation(x_BCL), lengths


class Wav2Vec2FeatureEncoder(nn.Module):
    """The convolutions: (B, S) samples to (B, L, C) features, 20 ms apart in the published models."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(Wav2Vec2ConvLayer(config, i) for i in range(len(config.conv_dim)))

    def forward(
        self, x_BS: torch.Tensor, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        x_BCL = x_BS[:, None]
        for layer in self.conv_layers:
            x_BCL, lengths = layer(x_BCL, lengths)
        return x_BCL.transpose(1, 2), lengths


class Wav2Vec2FeatureProjection(nn.Module):
    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, x_BLC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        normed_BLC = self.layer_norm(x_BLC)
        return self.dropout(self.projection(normed_BLC)), normed_BLC


class Wav2Vec2PositionalConvEmbedding(nn.Module):
    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        kernel = config.num_conv_pos_embeddings
        with torch.device("cpu"):  # on the meta device, its norm would load torch's compiler: a second
            conv = nn.Conv1d(
                config.hidden_size,
                config.hidden_size,
                kernel,
                padding=kernel // 2,
                groups=config.num_conv_pos_embedding_groups,
            )
            self.conv = nn.utils.parametrizations.weight_norm(conv, dim=2)
        self.activation = activation(config.feat_extract_activation)

    def forward(self, x_BLE: torch.Tensor) -> torch.Tensor:
        # An even kernel gives one frame too many at the end.
        y_BEL = self.conv(x_BLE.transpose(1, 2))[..., : x_BLE.shape[1]]
        return self.activation(y_BEL).transpose(1, 2)


class Wav2Vec2Attention(nn.Module):
    def __init__(self, config: Wav2Vec2Config, attn_implementation: str) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        self.kernel = choose_kernel(attn_implementation)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, x_BLE: torch.Tensor, valid_BL: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, frames, width = x_BLE.shape
        q_BHLD, k_BHLD, v_BHLD = (
            projection(x_BLE).view(batch, frames, self.num_heads, -1).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        out_BHLD, attention_BHLL = self.kernel(q_BHLD, k_BHLD, v_BHLD, valid_BL, dropout)
        return self.out_proj(out_BHLD.transpose(1, 2).reshape(batch, frames, width)), attention_BHLL


class Wav2Vec2FeedForward(nn.Module):
    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.intermediate_dropout = nn.Dropout(config.activation_dropout)
        self.output_dropout = nn.Dropout(config.hidden_dropout)
        self.intermediate_act_fn = activation(config.hidden_act)

    def forward(self, x_BLE: torch.Tensor) -> torch.Tensor:
        x_BLE = self.intermediate_dropout(self.intermediate_act_fn(self.intermediate_dense(x_BLE)))
        x_BLE = self.output_dropout(self.output_dense(x_BLE))
        return x_BLE


class Wav2Vec2EncoderLayer(nn.Module):
    """One transformer layer; norms stand before the blocks ("stable layer norm") or after them."""

    def __init__(self, config: Wav2Vec2Config, attn_implementation: str) -> None:
        super().__init__()
        self.norm_first = config.do_stable_layer_norm
        self.attention = Wav2Vec2Attention(config, attn_implementation)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = Wav2Vec2FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.adapter_layer: AttentionAdapter | None = None
        if self.norm_first and config.adapter_attn_dim is not None:  # the other layers never have one
            self.adapter_layer = AttentionAdapter(config.hidden_size, config.adapter_attn_dim)

    def forward(
        self, x_BLE: torch.Tensor, valid_BL: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.norm_first:
            attended_BLE, attention_BHLL = self.attention(self.layer_norm(x_BLE), valid_BL)
            x_BLE = x_BLE + self.dropout(attended_BLE)
            x_BLE = x_BLE + self.feed_forward(self.final_layer_norm(x_BLE))
            if self.adapter_layer is not None:
                x_BLE = x_BLE + self.adapter_layer(x_BLE)
            return x_BLE, attention_BHLL
        attended_BLE, attention_BHLL = self.attention(x_BLE, valid_BL)
        x_BLE = self.layer_norm(x_BLE + self.dropout(attended_BLE))
        return self.final_layer_norm(x_BLE + self.feed_forward(x_BLE)), attention_BHLL


class Wav2Vec2Encoder(nn.Module):
    def __init__(self, config: Wav2Vec2Config, attn_implementation: str) -> None:
        super().__init__()
        self.norm_first = config.do_stable_layer_norm
        self.layerdrop = config.layerdrop
        self.pos_conv_embed = Wav2Vec2PositionalConvEmbedding(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(
            Wav2Vec2EncoderLayer(config, attn_implementation) for _ in range(config.num_hidden_layers)
        )

    def forward(
        self, x_BLE: torch.Tensor, valid_BL: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        if valid_BL is not None:  # padding must look like the zeros beyond the end of an unpadded row
            x_BLE = x_BLE.masked_fill(~valid_BL[..., None], 0)
        x_BLE = x_BLE + self.pos_conv_embed(x_BLE)
        if not self.norm_first:
            x_BLE = self.layer_norm(x_BLE)
        x_BLE = self.dropout(x_BLE)
        hidden_states, attentions = [x_BLE], []
        for layer in self.layers:
            if self.training and self.layerdrop > 0 and torch.rand(()) < self.layerdrop:
                hidden_states.append(x_BLE)
                continue
            x_BLE, attention_BHLL = layer(x_BLE, valid_BL)
            hidden_states.append(x_BLE)
            if attention_BHLL is not None:
                attentions.append(attention_BHLL)
        if self.norm_first:
            x_BLE = self.layer_norm(x_BLE)
        return x_BLE, hidden_states, attentions


class Wav2Vec2Model(PretrainedModel):
    """The wav2vec 2.0 encoder: convolutions, projection, transformer and, where the config says so, adapter.

    Args:
        config: What to build.
        attn_implementation: The attention kernel; attention probabilities can be returned by "eager"
            alone.

    Raises:
        ConfigError: The config names an unknown activation, or there is no kernel of that name.
    """

    config_class = Wav2Vec2Config
    base_model_prefix = "wav2vec2"
    main_input_name = "input_values"

    def __init__(self, config: Wav2Vec2Config, *, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation=attn_implementation)
        self.feature_extractor = Wav2Vec2FeatureEncoder(config)
        self.feature_projection = Wav2Vec2FeatureProjection(config)
        if config.mask_time_prob > 0 or config.mask_feature_prob > 0:
            self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_size).uniform_())
        self.encoder = Wav2Vec2Encoder(config, self.attn_implementation)
        self.adapter = Wav2Vec2Adapter(config) if config.add_adapter else None
        self.apply(partial(initialize, config))

    def freeze_feature_encoder(self) -> None:
        """Keeps the convolutions as they are during training."""
        self.feature_extractor.requires_grad_(False)

    def num_frames(self, lengths: torch.Tensor | int, *, add_adapter: bool | None = None) -> torch.Tensor:
        """How many output frames so many samples give, 0 where there are too few.

        Args:
            lengths: Samples, of one row or of each.
            add_adapter: Whether to count what the adapter puts out; None: if there is one.
        """
        frames = torch.as_tensor(lengths)
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            frames = (torch.div(frames - kernel, stride, rounding_mode="floor") + 1).clamp(min=0)
        if self.config.add_adapter if add_adapter is None else add_adapter:
            for _ in range(self.config.num_adapter_layers):
                frames = Wav2Vec2AdapterLayer.num_frames(self.config, frames)
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
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Wav2Vec2BaseModelOutput | tuple[Any, ...]:
        """Encodes a batch of waveforms.

        Args:
            input_values: (batch, num_samples) at 16 kHz, normalised as the checkpoint's feature
                extractor says.
            attention_mask: (batch, num_samples), 1 for samples and 0 for padding at the end;
                None: no row is padded.
            mask_time_indices: (batch, num_frames), true for frames to replace by the learned mask;
                without effect where the config says apply_spec_augment=False.
            output_attentions: Whether to return attention probabilities ("eager" only).
            output_hidden_states: Whether to return every layer's output, before the adapter.
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
        lengths = None
        if attention_mask is not None and not bool(attention_mask.all()):
            lengths = attention_mask.sum(-1)
        features_BLC, lengths = self.feature_extractor(input_values, lengths)
        x_BLE, features_BLC = self.feature_projection(features_BLC)
        valid_BL = None if lengths is None else valid_frames(lengths, x_BLE.shape[1])
        learned_E = getattr(self, "masked_spec_embed", None)
        x_BLE = mask_frames(self.config, x_BLE, learned_E, mask_time_indices, lengths, training=self.training)
        x_BLE, hidden_states, attentions = self.encoder(x_BLE, valid_BL)
        if self.adapter is not None:
            x_BLE = self.adapter(x_BLE, lengths)
        output = Wav2Vec2BaseModelOutput(
            last_hidden_state=x_BLE,
            extract_features=features_BLC,
            hidden_states=tuple(hidden_states) if asked["output_hidden_states"] else None,
            attentions=tuple(attentions) if asked["output_attentions"] else None,
        )
        return output if by_name else output.to_tuple()


def initialize(config: Wav2Vec2Config, module: nn.Module) -> None:
    """The published initial distributions, for training from scratch.

    Weights on the meta device are left: they are about to be loaded.
    """
    if any(parameter.is_meta for parameter in module.parameters()):
        return
    if isinstance(module, Wav2Vec2PositionalConvEmbedding):
        conv = module.conv
        # Assigned, as a weight under weight norm is computed anew whenever it is read.
        std = 2 * (conv.kernel_size[0] * conv.in_channels) ** -0.5
        conv.weight = nn.init.normal_(torch.empty_like(conv.weight), std=std)
        nn.init.zeros_(conv.bias)
    elif isinstance(module, Wav2Vec2FeatureProjection):
        bound = module.projection.in_features**-0.5
        nn.init.uniform_(module.projection.weight, -bound, bound)
        nn.init.uniform_(module.projection.bias, -bound, bound)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=config.initializer_range)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Wav2Vec2ConvLayer | Wav2Vec2AdapterLayer):
        nn.init.kaiming_normal_(module.conv.weight)
