"""The wav2vec 2.0 encoder over utterances that lie end to end.

Letters in tensor names: N frames of all utterances, E hidden width, C channels, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch.nn import functional as F

from w2v_ray.models.activations import activation
from w2v_ray.models.packed_attention import packed_attention
from w2v_ray.models.packed_convolutions import PackedConvolutions
from w2v_ray.models.products import take_product
from w2v_ray.models.wav2vec2 import Wav2Vec2EncoderLayer, Wav2Vec2Model, Wav2Vec2PositionalConvEmbedding

__all__ = ["PackedWav2Vec2", "with_gaps"]


class PackedWav2Vec2:
    """The encoder up to its adapter; it takes the weights of the model's large layers."""

    def __init__(self, model: Wav2Vec2Model, *, int8: bool) -> None:
        self._convolutions = PackedConvolutions(
            list(model.feature_extractor.conv_layers), model.config, int8=int8
        )
        self._norm = model.feature_projection.layer_norm
        self._project = take_product(model.feature_projection.projection, int8=int8)
        self._positions = _Positions(model.encoder.pos_conv_embed, model.config.feat_extract_activation)
        self._norm_first = model.encoder.norm_first
        self._encoder_norm = model.encoder.layer_norm
        layers: list[Any] = list(model.encoder.layers)
        make_layer = partial(_Layer, act=model.config.hidden_act, kernel=model.attn_implementation, int8=int8)
        self._layers = [make_layer(layer) for layer in layers]
        self.num_frames = self._convolutions.num_frames

    def __call__(
        self, waves: Sequence[torch.Tensor], *, keep: bool
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The frames of all utterances, and if ``keep`` those of each layer, end to end."""
        lengths = [self.num_frames(len(wave)) for wave in waves]
        x_NE = self._project(self._norm(self._convolutions(waves)))
        x_NE = x_NE + self._positions(x_NE, lengths)
        if not self._norm_first:
            x_NE = self._encoder_norm(x_NE)
        kept = [x_NE] if keep else []
        for layer in self._layers:
            x_NE = layer(x_NE, lengths)
            if keep:
                kept.append(x_NE)
        return self._encoder_norm(x_NE) if self._norm_first else x_NE, kept


class _Positions:
    """The positional convolution: a gap between two utterances is as wide as it can look ahead or back."""

    def __init__(self, module: Wav2Vec2PositionalConvEmbedding, act: str) -> None:
        conv = module.conv
        self._weight = conv.weight.detach()[
            :, :, None
        ].contiguous()  # its norm is computed here, and never again
        self._bias, self._groups = conv.bias, conv.groups
        kernel = self._weight.shape[-1]
        self._before = kernel // 2
        self._after = kernel - 1 - self._before
        self._activate = activation(act)

    def __call__(self, x_NE: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        gap = max(self._before, self._after)
        spread_NE = with_gaps(x_NE, lengths, before=self._before, between=gap, after=self._after)
        # As an image of one line, whose channels lie beside each other as they do here: nothing is copied.
        y_1E1N = F.conv2d(spread_NE.t()[None, :, None], self._weight, self._bias, groups=self._groups)
        y_NE = self._activate(y_1E1N[0, :, 0].t())
        if len(lengths) == 1:
            return y_NE
        begins = accumulate((length + gap for length in lengths[:-1]), initial=0)
        return torch.cat([y_NE[begin : begin + n] for begin, n in zip(begins, lengths, strict=True)])


def with_gaps(
    x_NE: torch.Tensor, lengths: Sequence[int], *, before: int, between: int, after: int
) -> torch.Tensor:
    """Rows of zeros before, between and after utterances that lie end to end."""
    if len(lengths) == 1:
        return F.pad(x_NE, (0, 0, before, after))
    zeros = x_NE.new_zeros(max(before, between, after), x_NE.shape[1])
    parts = [zeros[:before]]
    for part_LE in torch.split(x_NE, list(lengths)):
        parts += [part_LE, zeros[:between]]
    parts[-1] = zeros[:after]
    return torch.cat(parts)


class _Layer:
    def __init__(self, layer: Wav2Vec2EncoderLayer, *, act: str, kernel: str, int8: bool) -> None:
        attention, feed_forward = layer.attention, layer.feed_forward
        self._num_heads, self._kernel = attention.num_heads, kernel
        self._norm_first = layer.norm_first
        self._qkv = take_product(attention.q_proj, attention.k_proj, attention.v_proj, int8=int8)
        self._out = take_product(attention.out_proj, int8=int8)
        self._norm, self._final_norm = layer.layer_norm, layer.final_layer_norm
        self._wide = take_product(feed_forward.intermediate_dense, act=act, int8=int8)
        self._narrow = take_product(feed_forward.output_dense, int8=int8)
        self._adapter = layer.adapter_layer  # called as it is: its weights change with the language

    def __call__(self, x_NE: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        if self._norm_first:
            x_NE = x_NE + self._attend(self._norm(x_NE), lengths)
            x_NE = x_NE + self._narrow(self._wide(self._final_norm(x_NE)))
            return x_NE if self._adapter is None else x_NE + self._adapter(x_NE)
        x_NE = self._norm(x_NE + self._attend(x_NE, lengths))
        out_NE: torch.Tensor = self._final_norm(x_NE + self._narrow(self._wide(x_NE)))
        return out_NE

    def _attend(self, x_NE: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        q_NHD, k_NHD, v_NHD = self._qkv(x_NE).view(len(x_NE), 3, self._num_heads, -1).unbind(1)
        return self._out(packed_attention(q_NHD, k_NHD, v_NHD, lengths, kernel=self._kernel))
