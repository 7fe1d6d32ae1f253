"""The Conformer of Wav2Vec2-BERT: layers with a causal convolution, four kinds of positions, and the adapter.

Submodules carry the names of the published checkpoints, so that loading needs no key table.

Letters in tensor names: B batch, L frames, E hidden width, C channels, H heads, D head width, P relative
positions.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from w2v_ray.models.activations import activation
from w2v_ray.models.attention import choose_kernel
from w2v_ray.models.bert_config import Wav2Vec2BertConfig
from w2v_ray.models.wav2vec2 import valid_frames

__all__ = [
    "ConformerAdapter",
    "ConformerAttention",
    "ConformerConvolution",
    "ConformerEncoder",
    "ConformerFeedForward",
    "ConformerLayer",
    "adapter_frames",
    "rotate",
    "rotations",
    "sinusoids",
]


def adapter_frames(
    config: Wav2Vec2BertConfig, lengths: torch.Tensor, *, padding: int | None = None
) -> torch.Tensor:
    """How many frames one layer of the adapter makes of so many, 0 of none; None: with its own padding."""
    padded = lengths + 2 * (config.adapter_stride // 2 if padding is None else padding)
    frames = torch.div(padded - config.adapter_kernel_size, config.adapter_stride, rounding_mode="floor") + 1
    return torch.where(lengths > 0, frames.clamp(min=0), 0)


def rotations(config: Wav2Vec2BertConfig, frames: int, *, like: torch.Tensor) -> torch.Tensor:
    """(2, frames, 1, D): cosine and sine of every frame's angles."""
    width = config.hidden_size // config.num_attention_heads
    steps = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
    frequencies = 1.0 / config.rotary_embedding_base ** (steps / width)
    times = torch.arange(frames, device=like.device, dtype=torch.float32)
    angles_LD = (times[:, None] * frequencies).repeat(1, 2)
    return torch.stack([angles_LD.cos(), angles_LD.sin()])[:, :, None].to(like.dtype)


def sinusoids(frames: int, *, like: torch.Tensor) -> torch.Tensor:
    """(2 * frames - 1, E): a wave per distance, from the key furthest to the left to the one as far right."""
    width = like.shape[-1]
    steps = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
    frequencies = torch.exp(steps * -(math.log(10_000.0) / width))
    distances = torch.arange(frames - 1, -frames, -1, device=like.device, dtype=torch.float32)
    angles = distances[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(like.dtype)


def rotate(x_BLE: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    x_BLHD = x_BLE.view(*x_BLE.shape[:2], -1, turns.shape[-1])
    begin, end = x_BLHD.chunk(2, dim=-1)
    turned_BLHD = torch.cat([-end, begin], dim=-1)
    return (x_BLHD * turns[0] + turned_BLHD * turns[1]).view_as(x_BLE)


class ConformerFeedForward(nn.Module):
    def __init__(self, config: Wav2Vec2BertConfig, width: int, hidden_act: str) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(width, config.intermediate_size)
        self.intermediate_act_fn = activation(hidden_act)
        self.intermediate_dropout = nn.Dropout(config.activation_dropout)
        self.output_dense = nn.Linear(config.intermediate_size, width)
        self.output_dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x_BLE: torch.Tensor) -> torch.Tensor:
        x_BLE = self.intermediate_dropout(self.intermediate_act_fn(self.intermediate_dense(x_BLE)))
        x_BLE = self.output_dropout(self.output_dense(x_BLE))
        return x_BLE


class ConformerAttention(nn.Module):
    """Attention with one kind of positions: "rotary", "relative", "relative_key" or none."""

    def __init__(
        self, config: Wav2Vec2BertConfig, width: int, positions: str | None, attn_implementation: str
    ) -> None:
        super().__init__()
        self.positions = positions
        self.num_heads = config.num_attention_heads
        self.head_width = width // config.num_attention_heads
        self.dropout = config.attention_dropout
        self.kernel = choose_kernel(attn_implementation)
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        if positions == "relative":
            self.linear_pos = nn.Linear(width, width, bias=False)
            self.pos_bias_u = nn.Parameter(torch.zeros(self.num_heads, self.head_width))
            self.pos_bias_v = nn.Parameter(torch.zeros(self.num_heads, self.head_width))
        elif positions == "relative_key":
            self.left, self.right = config.left_max_position_embeddings, config.right_max_position_embeddings
            self.distance_embedding = nn.Embedding(self.left + self.right + 1, self.head_width)

    def forward(
        self, x_BLE: torch.Tensor, valid_BL: torch.Tensor | None, table: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``table``: of the encoder, rotations for "rotary", sinusoids for "relative"."""
        batch, frames, width = x_BLE.shape
        rotated_BLE = x_BLE
        if self.positions == "rotary":  # before the projections, so it is not relative
            assert table is not None
            rotated_BLE = rotate(x_BLE, table)
        q_BHLD, k_BHLD, v_BHLD = (
            projection(y_BLE).view(batch, frames, self.num_heads, -1).transpose(1, 2)
            for projection, y_BLE in (
                (self.linear_q, rotated_BLE),
                (self.linear_k, rotated_BLE),
                (self.linear_v, x_BLE),
            )
        )
        bias_BHLL = None
        if self.positions == "relative":
            assert table is not None
            positions_HDP = self.linear_pos(table).view(-1, self.num_heads, self.head_width).permute(1, 2, 0)
            scores_BHLP = torch.matmul(q_BHLD + self.pos_bias_v[:, None], positions_HDP)
            bias_BHLL = self._by_distance(scores_BHLP, frames - 1, frames - 1)
            q_BHLD = q_BHLD + self.pos_bias_u[:, None]
        elif self.positions == "relative_key":
            # Scores of the few distances there are, and not of every pair of frames: the same numbers.
            scores_BHLP = torch.matmul(q_BHLD, self.distance_embedding.weight.to(q_BHLD.dtype).T)
            bias_BHLL = self._by_distance(scores_BHLP, self.left, self.right)
        dropout = self.dropout if self.training else 0.0
        out_BHLD, attention_BHLL = self.kernel(q_BHLD, k_BHLD, v_BHLD, valid_BL, dropout, bias_BHLL=bias_BHLL)
        return self.linear_out(out_BHLD.transpose(1, 2).reshape(batch, frames, width)), attention_BHLL

    def _by_distance(self, scores_BHLP: torch.Tensor, left: int, right: int) -> torch.Tensor:
        """Scores per distance to scaled scores per key; whatever is further away counts as the furthest."""
        batch, heads, frames, _ = scores_BHLP.shape
        times = torch.arange(frames, device=scores_BHLP.device)
        distances_LL = (times[None, :] - times[:, None]).clamp(-left, right) + left
        scores_BHLL = scores_BHLP.gather(-1, distances_LL.expand(batch, heads, -1, -1))
        return scores_BHLL / math.sqrt(self.head_width)


class ConformerConvolution(nn.Module):
    """A gated depthwise convolution over the frames so far: none sees what comes after it."""

    def __init__(self, config: Wav2Vec2BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.pointwise_conv1 = nn.Conv1d(width, 2 * width, 1, bias=False)
        self.depthwise_conv = nn.Conv1d(
            width, width, config.conv_depthwise_kernel_size, groups=width, bias=False
        )
        self.depthwise_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.activation = activation(config.hidden_act)
        self.pointwise_conv2 = nn.Conv1d(width, width, 1, bias=False)
        self.dropout = nn.Dropout(config.conformer_conv_dropout)

    def forward(self, x_BLE: torch.Tensor, valid_BL: torch.Tensor | None) -> torch.Tensor:
        x_BLE = self.layer_norm(x_BLE)
        if valid_BL is not None:  # padding on the left must look like the zeros before the first frame
            x_BLE = x_BLE.masked_fill(~valid_BL[..., None], 0)
        x_BEL = F.glu(self.pointwise_conv1(x_BLE.transpose(1, 2)), dim=1)
        x_BEL = self.depthwise_conv(F.pad(x_BEL, (self.depthwise_conv.kernel_size[0] - 1, 0)))
        x_BLE = self.activation(self.depthwise_layer_norm(x_BEL.transpose(1, 2)))
        x_BLE = self.dropout(self.pointwise_conv2(x_BLE.transpose(1, 2)).transpose(1, 2))
        return x_BLE


class ConformerLayer(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward; every block adds to its input."""

    def __init__(self, config: Wav2Vec2BertConfig, attn_implementation: str) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.ffn1_layer_norm = nn.LayerNorm(width, eps=eps)
        self.ffn1 = ConformerFeedForward(config, width, config.hidden_act)
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.self_attn_dropout = nn.Dropout(config.attention_dropout)
        self.self_attn = ConformerAttention(
            config, width, config.position_embeddings_type, attn_implementation
        )
        self.conv_module = ConformerConvolution(config)
        self.ffn2_layer_norm = nn.LayerNorm(width, eps=eps)
        self.ffn2 = ConformerFeedForward(config, width, config.hidden_act)
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)

    def forward(
        self, x_BLE: torch.Tensor, valid_BL: torch.Tensor | None, table: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        x_BLE = x_BLE + 0.5 * self.ffn1(self.ffn1_layer_norm(x_BLE))
        attended_BLE, attention_BHLL = self.self_attn(self.self_attn_layer_norm(x_BLE), valid_BL, table)
        x_BLE = x_BLE + self.self_attn_dropout(attended_BLE)
        x_BLE = x_BLE + self.conv_module(x_BLE, valid_BL)
        x_BLE = x_BLE + 0.5 * self.ffn2(self.ffn2_layer_norm(x_BLE))
        return self.final_layer_norm(x_BLE), attention_BHLL


class ConformerEncoder(nn.Module):
    def __init__(self, config: Wav2Vec2BertConfig, attn_implementation: str) -> None:
        super().__init__()
        self.config = config
        self.layerdrop = config.layerdrop
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(
            ConformerLayer(config, attn_implementation) for _ in range(config.num_hidden_layers)
        )

    def forward(
        self, x_BLE: torch.Tensor, valid_BL: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        if valid_BL is not None:
            x_BLE = x_BLE.masked_fill(~valid_BL[..., None], 0)
        x_BLE = self.dropout(x_BLE)
        table = None
        if self.config.position_embeddings_type == "rotary":
            table = rotations(self.config, x_BLE.shape[1], like=x_BLE)
        elif self.config.position_embeddings_type == "relative":
            table = sinusoids(x_BLE.shape[1], like=x_BLE)
        hidden_states, attentions = [x_BLE], []
        for layer in self.layers:
            if self.training and self.layerdrop > 0 and torch.rand(()) < self.layerdrop:
                hidden_states.append(x_BLE)
                continue
            x_BLE, attention_BHLL = layer(x_BLE, valid_BL, table)
            hidden_states.append(x_BLE)
            if attention_BHLL is not None:
                attentions.append(attention_BHLL)
        return x_BLE, hidden_states, attentions


class ConformerAdapterLayer(nn.Module):
    """Strided convolutions that shorten a sequence, then attention without positions and a feed-forward."""

    def __init__(self, config: Wav2Vec2BertConfig, width: int, attn_implementation: str) -> None:
        super().__init__()
        eps, kernel, stride = config.layer_norm_eps, config.adapter_kernel_size, config.adapter_stride
        self.residual_layer_norm = nn.LayerNorm(width, eps=eps)
        self.residual_conv = nn.Conv1d(width, 2 * width, kernel, stride=stride, padding=stride // 2)
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.self_attn_conv = nn.Conv1d(width, 2 * width, kernel, stride=stride, padding=stride // 2)
        self.self_attn = ConformerAttention(config, width, None, attn_implementation)
        self.self_attn_dropout = nn.Dropout(config.conformer_conv_dropout)
        self.ffn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.ffn = ConformerFeedForward(config, width, config.adapter_act)

    def forward(
        self, x_BLE: torch.Tensor, valid_BL: torch.Tensor | None, shortened_BL: torch.Tensor | None
    ) -> torch.Tensor:
        """``valid_BL`` is true for the frames that come in, ``shortened_BL`` for those that go out."""

        def shorten(norm: nn.Module, conv: nn.Module) -> torch.Tensor:
            y_BLE: torch.Tensor = norm(x_BLE)
            if valid_BL is not None:  # padding must look like the zeros beyond the end of an unpadded row
                y_BLE = y_BLE.masked_fill(~valid_BL[..., None], 0)
            return F.glu(conv(y_BLE.transpose(1, 2)), dim=1).transpose(1, 2)

        residual_BLE = shorten(self.residual_layer_norm, self.residual_conv)
        shorter_BLE = shorten(self.self_attn_layer_norm, self.self_attn_conv)
        attended_BLE, _ = self.self_attn(shorter_BLE, shortened_BL)
        y_BLE: torch.Tensor = residual_BLE + self.self_attn_dropout(attended_BLE)
        y_BLE = y_BLE + self.ffn(self.ffn_layer_norm(y_BLE))
        return y_BLE


class ConformerAdapter(nn.Module):
    """The layers, after a projection where the width changes; ``over_padding`` as of Wav2Vec2Adapter."""

    def __init__(self, config: Wav2Vec2BertConfig, attn_implementation: str) -> None:
        super().__init__()
        self.config = config
        self.over_padding = False
        self.layerdrop = config.layerdrop
        width = config.output_hidden_size or config.hidden_size
        self.proj: nn.Module | None = None
        self.proj_layer_norm: nn.Module | None = None
        if width != config.hidden_size:
            self.proj = nn.Linear(config.hidden_size, width)
            self.proj_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(
            ConformerAdapterLayer(config, width, attn_implementation)
            for _ in range(config.num_adapter_layers)
        )

    def forward(self, x_BLE: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        if self.proj is not None and self.proj_layer_norm is not None:
            x_BLE = self.proj_layer_norm(self.proj(x_BLE))
        valid_BL = None
        if lengths is not None and not self.over_padding:
            valid_BL = valid_frames(lengths, x_BLE.shape[1])
        for layer in self.layers:
            if self.training and self.layerdrop > 0 and torch.rand(()) < self.layerdrop:
                continue
            shortened_BL = None
            if lengths is not None:
                # transformers counts with another padding than its convolutions have.
                counted = self.config.adapter_kernel_size // 2 if self.over_padding else None
                lengths = adapter_frames(self.config, lengths, padding=counted)
                out = adapter_frames(self.config, torch.tensor(x_BLE.shape[1]))
                shortened_BL = valid_frames(lengths, int(out))
            x_BLE = layer(x_BLE, valid_BL, shortened_BL)
            valid_BL = None if self.over_padding else shortened_BL
        return x_BLE
