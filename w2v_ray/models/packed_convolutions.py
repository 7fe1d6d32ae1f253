"""The convolutions of wav2vec 2.0 over utterances that lie end to end, as matrix products.

A convolution over frames that lie behind one another in memory is a product of overlapping rows with one
matrix. An utterance that begins at a multiple of the total stride (320 samples) has exactly the frames that
it has alone, so that several share one product without padding; and a long one is done in pieces, each small
enough for the cache. The group norm of the base models is a scale and a shift of each channel, which follow
from the 10 x 10 covariance of the samples in a window: they are put into the first layer's weights, and there
is no pass over its output, the largest there is.

Letters in tensor names: S samples, N rows (frames), C channels, K samples of a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from w2v_ray.models.activations import activation
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.products import Product, make_product, take_product

__all__ = ["PackedConvolutions"]

# Frames that are computed at once: on a CPU, so that what lies between two layers stays in its cache.
_FRAMES_AT_ONCE_CPU = 100
_FRAMES_AT_ONCE = 20_000
_WINDOWS_AT_ONCE = 1_000_000  # of statistics: 80 MB


class PackedConvolutions:
    """The convolutions of an encoder, whose weights it takes.

    Args:
        layers: Of ``Wav2Vec2FeatureEncoder``.
        config: Of the encoder.
        int8: Whether all layers but the first multiply bytes.
    """

    def __init__(self, layers: Sequence[Any], config: Wav2Vec2Config, *, int8: bool) -> None:
        self._kernels, self._strides = tuple(config.conv_kernel), tuple(config.conv_stride)
        self._stride = math.prod(self._strides)
        self._reach = config.receptive_samples
        self._act = config.feat_extract_activation
        self._activate = activation(self._act)
        first = layers[0]
        self._norms = [
            layer.layer_norm if isinstance(layer.layer_norm, nn.LayerNorm) else None for layer in layers
        ]
        self._group_norm = None if isinstance(first.layer_norm, nn.LayerNorm) else first.layer_norm
        self._weight_CK = first.conv.weight.detach()[:, 0]
        self._dtype = self._weight_CK.dtype
        if self._group_norm is None:
            self._first = make_product(self._weight_CK, first.conv.bias, act=self._fused(0))
        self._products = []
        for index, layer in enumerate(layers[1:], 1):
            # One row of a product is the frames of a window, one after another.
            layer.conv.weight = nn.Parameter(layer.conv.weight.detach().transpose(1, 2).contiguous(), False)
            self._products.append(take_product(layer.conv, act=self._fused(index), int8=int8))

    def _fused(self, index: int) -> str | None:
        return self._act if self._norms[index] is None else None

    def num_frames(self, num_samples: int) -> int:
        """Frames of so many samples."""
        for kernel, stride in zip(self._kernels, self._strides, strict=True):
            num_samples = (num_samples - kernel) // stride + 1
        return num_samples

    def __call__(self, waves: Sequence[torch.Tensor]) -> torch.Tensor:
        """The frames of all utterances, end to end.

        Args:
            waves: (num_samples,) each, as the checkpoint's feature extractor makes them.

        Returns:
            (total frames, channels).
        """
        frames = [self.num_frames(len(wave)) for wave in waves]
        products = [self._first_product(wave) for wave in waves]
        at_once = _FRAMES_AT_ONCE_CPU if waves[0].device.type == "cpu" else _FRAMES_AT_ONCE
        found = []
        for pieces in _pieces(frames, at_once):
            parts = []
            for index, begin, end in pieces:
                samples = waves[index][begin * self._stride : (end - 1) * self._stride + self._reach]
                windows_NK = _windows(samples, self._kernels[0], self._strides[0]).contiguous()
                parts.append((products[index], windows_NK, end - begin))
            found.append(self._convolve(parts))
        return torch.cat(found) if len(found) > 1 else found[0]

    def _convolve(self, parts: Sequence[tuple[Product, torch.Tensor, int]]) -> torch.Tensor:
        """The frames of parts of utterances: the first product of each, its windows and number of frames."""
        # Every part begins where all strides agree; the last frame reaches over its end by less than `extra`.
        extra = -(-(self._reach - self._stride) // self._stride)
        per_frame = self._stride // self._strides[0]
        rows = [first(windows_NK) for first, windows_NK, _ in parts]
        x_NC = rows[0]
        if len(parts) > 1:
            sizes = [(frames + extra) * per_frame for *_, frames in parts]
            x_NC = torch.cat(
                [
                    F.pad(part_NC, (0, 0, 0, size - len(part_NC)))
                    for part_NC, size in zip(rows, sizes, strict=True)
                ]
            )
        x_NC = self._finish(x_NC, 0)
        for index, product in enumerate(self._products, 1):
            x_NC = self._finish(product(_joined(x_NC, self._kernels[index], self._strides[index])), index)
        begin, kept = 0, []
        for *_, frames in parts:
            kept.append(x_NC[begin : begin + frames])
            begin += frames + extra
        return torch.cat(kept) if len(kept) > 1 else kept[0]

    def _finish(self, x_NC: torch.Tensor, index: int) -> torch.Tensor:
        norm = self._norms[index]
        return x_NC if norm is None else self._activate(norm(x_NC))

    def _first_product(self, wave_S: torch.Tensor) -> Product:
        if self._group_norm is None:
            return self._first
        scale_C, shift_C = self._normalization(wave_S)
        weight_CK = self._weight_CK.double() * scale_C[:, None]
        return make_product(weight_CK.to(self._dtype), shift_C.to(self._dtype), act=self._act)

    def _normalization(self, wave_S: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the group norm multiplies each channel by and adds to it, over all frames of an utterance."""
        norm, kernel = self._group_norm, self._kernels[0]
        assert norm is not None, "only asked where there is one"
        windows_NK = _windows(wave_S, kernel, self._strides[0])
        total_K = torch.zeros(kernel, dtype=torch.float64, device=wave_S.device)
        square_KK = torch.zeros(kernel, kernel, dtype=torch.float64, device=wave_S.device)
        for some_NK in torch.split(windows_NK, _WINDOWS_AT_ONCE):
            wide_NK = some_NK.double()
            total_K += wide_NK.sum(0)
            square_KK += wide_NK.T @ wide_NK
        mean_K = total_K / len(windows_NK)
        covariance_KK = square_KK / len(windows_NK) - mean_K[:, None] * mean_K
        weight_CK = self._weight_CK.double()
        variance_C = ((weight_CK @ covariance_KK) * weight_CK).sum(1).clamp_min_(0)
        scale_C = norm.weight.double() * torch.rsqrt(variance_C + norm.eps)
        # A bias of the convolution is part of the mean, and goes with it.
        return scale_C, norm.bias.double() - (weight_CK @ mean_K) * scale_C


def _windows(wave_S: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """(N, K): the samples that each frame of the first layer sees, without a copy."""
    return wave_S.contiguous().unfold(0, kernel, stride)


def _joined(x_NC: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """(frames after it, kernel * C): the rows that each frame of the next layer sees, end to end."""
    rows, channels = x_NC.shape
    after = (rows - kernel) // stride + 1
    if kernel == stride:
        return x_NC[: after * kernel].reshape(after, kernel * channels)
    return x_NC.as_strided((after, kernel * channels), (stride * channels, 1)).contiguous()


def _pieces(frames: Sequence[int], at_once: int) -> Iterator[list[tuple[int, int, int]]]:
    """Ranges of utterances (index, first frame, end), together at most so many frames."""
    piece: list[tuple[int, int, int]] = []
    room = at_once
    for index, count in enumerate(frames):
        parts = -(-count // at_once)
        for part in range(parts):
            begin, end = count * part // parts, count * (part + 1) // parts
            if piece and end - begin > room:
                yield piece
                piece, room = [], at_once
            piece.append((index, begin, end))
            room -= end - begin
    if piece:
        yield piece
