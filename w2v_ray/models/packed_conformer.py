"""The Conformer of Wav2Vec2-BERT over utterances that lie end to end.

Letters in tensor names: N frames of all utterances, L frames of one, M width of the features, E hidden width,
H heads, D head width, P relative positions, Q queries of a range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from w2v_ray.models.activations import activation
from w2v_ray.models.conformer import (
    ConformerAttention,
    ConformerConvolution,
    ConformerFeedForward,
    ConformerLayer,
    rotate,
    rotations,
    sinusoids,
)
from w2v_ray.models.packed_attention import packed_attention
from w2v_ray.models.packed_wav2vec2 import with_gaps
from w2v_ray.models.products import Product, take_product
from w2v_ray.models.wav2vec2_bert import Wav2Vec2BertModel

__all__ = ["PackedWav2Vec2Bert"]


class PackedWav2Vec2Bert:
    """The encoder up to its adapter; it takes the weights of the model's large layers."""

    def __init__(self, model: Wav2Vec2BertModel, *, int8: bool) -> None:
        self._config = model.config
        self._norm = model.feature_projection.layer_norm
        self._project = take_product(model.feature_projection.projection, int8=int8)
        layers: list[Any] = list(model.encoder.layers)
        make_layer = partial(_Layer, act=model.config.hidden_act, kernel=model.attn_implementation, int8=int8)
        self._layers = [make_layer(layer) for layer in layers]
        self._last: tuple[Product, Product] | None = None
        if model.intermediate_ffn is not None:
            self._last = _half_feed_forward(model.intermediate_ffn, "relu", int8=int8)

    @staticmethod
    def num_frames(num_features: int) -> int:
        """Frames of so many frames of features."""
        return num_features

    def __call__(
        self, features: Sequence[torch.Tensor], *, keep: bool
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The frames of all utterances, and if ``keep`` those of each layer, end to end."""
        lengths = [len(one) for one in features]
        x_NE = self._project(self._norm(torch.cat(list(features)) if len(features) > 1 else features[0]))
        table = None
        positions = self._config.position_embeddings_type
        if positions == "rotary":
            turns = rotations(self._config, max(lengths), like=x_NE)
            table = torch.cat([turns[:, :length] for length in lengths], dim=1)
        elif positions == "relative":
            table = sinusoids(max(lengths), like=x_NE)
        kept = [x_NE] if keep else []
        for layer in self._layers:
            x_NE = layer(x_NE, lengths, table)
            if keep:
                kept.append(x_NE)
        if self._last is not None:
            wide, narrow = self._last
            x_NE = x_NE + narrow(wide(x_NE))
        return x_NE, kept


class _Layer:
    def __init__(self, layer: ConformerLayer, *, act: str, kernel: str, int8: bool) -> None:
        self._norms = layer.ffn1_layer_norm, layer.self_attn_layer_norm, layer.ffn2_layer_norm
        self._final_norm = layer.final_layer_norm
        self._first = _half_feed_forward(layer.ffn1, act, int8=int8)
        self._second = _half_feed_forward(layer.ffn2, act, int8=int8)
        self._attend = _Attention(layer.self_attn, kernel=kernel, int8=int8)
        self._convolve = _Convolution(layer.conv_module, act=act, int8=int8)

    def __call__(
        self, x_NE: torch.Tensor, lengths: Sequence[int], table: torch.Tensor | None
    ) -> torch.Tensor:
        first_norm, attention_norm, second_norm = self._norms
        wide, narrow = self._first
        x_NE = x_NE + narrow(wide(first_norm(x_NE)))
        x_NE = x_NE + self._attend(attention_norm(x_NE), lengths, table)
        x_NE = x_NE + self._convolve(x_NE, lengths)
        wide, narrow = self._second
        out_NE: torch.Tensor = self._final_norm(x_NE + narrow(wide(second_norm(x_NE))))
        return out_NE


def _half_feed_forward(module: ConformerFeedForward, act: str, *, int8: bool) -> tuple[Product, Product]:
    dense = module.output_dense
    dense.weight.data.mul_(0.5)  # exactly the half that is added, in any dtype
    dense.bias.data.mul_(0.5)
    return take_product(module.intermediate_dense, act=act, int8=int8), take_product(dense, int8=int8)


class _Attention:
    def __init__(self, module: ConformerAttention, *, kernel: str, int8: bool) -> None:
        self._positions, self._kernel = module.positions, kernel
        self._num_heads, self._head_width = module.num_heads, module.head_width
        if module.positions == "rotary":
            self._qk = take_product(module.linear_q, module.linear_k, int8=int8)
            self._v = take_product(module.linear_v, int8=int8)
        else:
            self._qkv = take_product(module.linear_q, module.linear_k, module.linear_v, int8=int8)
        self._out = take_product(module.linear_out, int8=int8)
        if module.positions == "relative":
            self._linear_pos = module.linear_pos
            self._bias_u, self._bias_v = module.pos_bias_u, module.pos_bias_v
        elif module.positions == "relative_key":
            self._left, self._right = module.left, module.right
            self._distances_DP = module.distance_embedding.weight.detach().T / math.sqrt(module.head_width)

    def __call__(
        self, x_NE: torch.Tensor, lengths: Sequence[int], table: torch.Tensor | None
    ) -> torch.Tensor:
        shape = len(x_NE), -1, self._num_heads, self._head_width
        bias = None
        if self._positions == "rotary":  # before the products, so it is not relative
            assert table is not None
            q_NHD, k_NHD = self._qk(rotate(x_NE[None], table)[0]).view(shape).unbind(1)
            v_NHD = self._v(x_NE).view(shape)[:, 0]
        else:
            q_NHD, k_NHD, v_NHD = self._qkv(x_NE).view(shape).unbind(1)
        if self._positions == "relative_key":
            bias = self._near
        elif self._positions == "relative":
            assert table is not None
            places_PHD = self._linear_pos(table).view(-1, self._num_heads, self._head_width)
            places_HDP = places_PHD.permute(1, 2, 0) / math.sqrt(self._head_width)
            shift_H1D = (self._bias_v - self._bias_u)[:, None]
            q_NHD = q_NHD + self._bias_u
            bias = partial(self._any, places_HDP=places_HDP, shift_H1D=shift_H1D)
        return self._out(packed_attention(q_NHD, k_NHD, v_NHD, lengths, kernel=self._kernel, bias=bias))

    def _near(self, q_HLD: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        """The bias of distances, of which those beyond the furthest that are told apart count as these."""
        frames = q_HLD.shape[1]
        scores_HQP = q_HLD[:, begin:end] @ self._distances_DP.to(q_HLD.dtype)
        # Wider than the utterance on either side, so that a query's distances fit in wherever it is. Rows
        # begin, and the first key in each lies, where a GPU's kernel takes them without a copy.
        left = _round_up(self._left)
        wide = _round_up(left + frames + self._right)
        columns = torch.arange(wide, device=q_HLD.device) - left
        rows = torch.arange(begin, end, device=q_HLD.device)
        bias_HQL = torch.where(columns < rows[:, None], scores_HQP[..., :1], scores_HQP[..., -1:])
        band = bias_HQL.as_strided(
            scores_HQP.shape,
            (bias_HQL.stride(0), wide + 1, 1),
            bias_HQL.storage_offset() + begin + left - self._left,
        )
        band.copy_(scores_HQP)
        return bias_HQL[..., left : left + frames]

    def _any(
        self,
        q_HLD: torch.Tensor,
        begin: int,
        end: int,
        *,
        places_HDP: torch.Tensor,
        shift_H1D: torch.Tensor,
    ) -> torch.Tensor:
        """The bias of all distances; a query's are those of the one before it, moved by one."""
        frames, middle = q_HLD.shape[1], places_HDP.shape[-1] // 2
        # Of the positions those that these queries can reach: the first of them looks furthest ahead.
        places_HDP = places_HDP[..., middle - end + 1 : middle + frames - begin]
        scores_HQP = (q_HLD[:, begin:end] + shift_H1D) @ places_HDP
        heads, queries, width = scores_HQP.shape
        return scores_HQP.as_strided(
            (heads, queries, frames),
            (queries * width, width - 1, 1),
            scores_HQP.storage_offset() + queries - 1,
        )


def _round_up(size: int) -> int:
    return -(-size // 8) * 8


class _Convolution:
    """The gated depthwise convolution, before each utterance as many zeros as it looks back."""

    def __init__(self, module: ConformerConvolution, *, act: str, int8: bool) -> None:
        self._norm, self._depthwise_norm = module.layer_norm, module.depthwise_layer_norm
        self._gated = take_product(module.pointwise_conv1, int8=int8)
        self._weight = module.depthwise_conv.weight.detach()[:, :, None].contiguous()
        self._activate = activation(act)
        self._out = take_product(module.pointwise_conv2, int8=int8)

    def __call__(self, x_NE: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        y_NE = F.glu(self._gated(self._norm(x_NE)))
        back = self._weight.shape[-1] - 1
        spread_NE = with_gaps(y_NE, lengths, before=back, between=back, after=0)
        y_NE = F.conv2d(spread_NE.t()[None, :, None], self._weight, groups=len(self._weight))[0, :, 0].t()
        if len(lengths) > 1:
            begin, parts = 0, []
            for length in lengths:
                parts.append(y_NE[begin : begin + length])
                begin += length + back
            y_NE = torch.cat(parts)
        return self._out(self._activate(self._depthwise_norm(y_NE)))
