"""What is added to a trained encoder: convolutions that shorten its output, and weights per language.

Letters in tensor names: B batch, L frames, E width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from w2v_ray.errors import CheckpointError, ConfigError
from w2v_ray.hub import adapter_file, adapter_languages, is_language_name
from w2v_ray.models.checkpoint import read_weight_file
from w2v_ray.models.config import Wav2Vec2Config

__all__ = ["AttentionAdapter", "Wav2Vec2Adapter", "Wav2Vec2AdapterLayer", "read_language_adapter"]

_PADDING = 1  # whatever the kernel; the published adapters have kernels of 3


class Wav2Vec2AdapterLayer(nn.Module):
    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        width = config.output_hidden_size or config.hidden_size
        self.conv = nn.Conv1d(
            width,
            2 * width,
            config.adapter_kernel_size,
            stride=config.adapter_stride,
            padding=_PADDING,
        )

    @staticmethod
    def num_frames(config: Wav2Vec2Config, frames: torch.Tensor) -> torch.Tensor:
        """Frames out for frames in."""
        reach = frames + 2 * _PADDING - config.adapter_kernel_size
        out = torch.div(reach, config.adapter_stride, rounding_mode="floor") + 1
        return torch.where(frames > 0, out, 0).clamp(min=0)

    def forward(self, x_BEL: torch.Tensor) -> torch.Tensor:
        return F.glu(self.conv(x_BEL), dim=1)


class Wav2Vec2Adapter(nn.Module):
    """Strided convolutions on top of the encoder, after a projection where the width changes.

    No layer is dropped in training, unlike in the encoder: each shortens time, so that dropping one
    would change what the lengths say. With ``over_padding`` it sees what lies beyond a row, as transformers'.
    """

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.config = config
        self.over_padding = False
        width = config.output_hidden_size or config.hidden_size
        self.proj: nn.Linear | None = None
        self.proj_layer_norm: nn.LayerNorm | None = None
        if width != config.hidden_size:
            self.proj = nn.Linear(config.hidden_size, width)
            self.proj_layer_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Wav2Vec2AdapterLayer(config) for _ in range(config.num_adapter_layers))

    def forward(self, x_BLE: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        if self.proj is not None and self.proj_layer_norm is not None:
            x_BLE = self.proj_layer_norm(self.proj(x_BLE))
        x_BEL = x_BLE.transpose(1, 2)
        for layer in self.layers:
            if lengths is not None and not self.over_padding:  # as beyond the end of an unpadded row
                inside_BL = torch.arange(x_BEL.shape[-1], device=x_BEL.device) < lengths[:, None]
                x_BEL = x_BEL.masked_fill(~inside_BL[:, None], 0)
                lengths = Wav2Vec2AdapterLayer.num_frames(self.config, lengths)
            x_BEL = layer(x_BEL)
        return x_BEL.transpose(1, 2)


class AttentionAdapter(nn.Module):
    """A narrow feed-forward block at the end of a layer, trained for one language while the rest stays."""

    def __init__(self, hidden_size: int, adapter_attn_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.linear_1 = nn.Linear(hidden_size, adapter_attn_dim)
        self.linear_2 = nn.Linear(adapter_attn_dim, hidden_size)

    def forward(self, x_BLE: torch.Tensor) -> torch.Tensor:
        y_BLE: torch.Tensor = self.linear_2(F.relu(self.linear_1(self.norm(x_BLE))))
        return y_BLE


def read_language_adapter(
    model: str | Path, language: str, *, revision: str | None = None
) -> tuple[dict[str, torch.Tensor], str]:
    """Reads ``adapter.<language>.safetensors`` or ``adapter.<language>.bin`` of a folder or hub id.

    Returns:
        The weights, and where they came from, for messages.

    Raises:
        CheckpointError: There is no such file, or it cannot be read.
        ConfigError: ``language`` cannot be part of a file's name.
    """
    if not is_language_name(language):
        raise ConfigError(f"target_lang is {language!r}, expected the name of a language such as 'eng'")
    path = adapter_file(model, language, revision=revision)
    if path is not None:
        return read_weight_file(path), str(path)
    known = adapter_languages(model)
    has = f"it has {', '.join(known[:12])}" if known else "see which ones it lists"
    raise CheckpointError(
        f"model {str(model)!r} has no adapter.{language}.safetensors or adapter.{language}.bin ({has}); "
        "choose another target_lang"
    )
