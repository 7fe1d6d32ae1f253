"""Encoders for inference: utterances end to end, without padding, their weights in the fastest layout.

Nothing looks beyond its utterance: convolutions over time have gaps of zeros where the next one begins, and
attention is within each. What an utterance gives is therefore what it gives alone, but for rounding.

Letters in tensor names: N frames of all utterances, L frames of one, E hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from w2v_ray.models.packed_conformer import PackedWav2Vec2Bert
from w2v_ray.models.packed_wav2vec2 import PackedWav2Vec2
from w2v_ray.models.wav2vec2 import Wav2Vec2Model
from w2v_ray.models.wav2vec2_bert import Wav2Vec2BertModel

__all__ = ["PackedEncoder", "PackedOutput"]


@dataclass(frozen=True, slots=True)
class PackedOutput:
    """What an encoder gives for one utterance."""

    last: torch.Tensor
    """(num_frames, width) of the last layer, or of the adapter where the model has one."""
    layers: tuple[torch.Tensor, ...]
    """(num_frames, width) of each layer, before the adapter; none unless they were asked for."""


class PackedEncoder:
    """An encoder that computes utterances of any lengths at once, none of them padded.

    Args:
        model: In evaluation mode, where it is to run. Its large weights are taken from it: it cannot be
            called afterwards, nor saved.
        int8: Whether to multiply bytes wherever weights are large.
    """

    def __init__(self, model: Wav2Vec2Model | Wav2Vec2BertModel, *, int8: bool = False) -> None:
        # Each layer's copy in another layout takes the place of its weights, so that there is one at a time.
        self._encode: PackedWav2Vec2 | PackedWav2Vec2Bert
        if isinstance(model, Wav2Vec2Model):
            self._encode = PackedWav2Vec2(model, int8=int8)
        else:
            self._encode = PackedWav2Vec2Bert(model, int8=int8)
        self._adapter = model.adapter

    @torch.inference_mode()
    def __call__(self, inputs: Sequence[torch.Tensor], *, layers: bool = False) -> list[PackedOutput]:
        """What each utterance gives.

        Args:
            inputs: (num_samples,) samples or (num_frames, width) features of each, as the checkpoint's
                feature extractor makes them, of at least one frame, on the encoder's device and in its dtype.
            layers: Whether to keep what each layer gives.
        """
        lengths = [self._encode.num_frames(len(one)) for one in inputs]
        with _of_any_length(inputs[0].device):
            x_NE, kept = self._encode(inputs, keep=layers)
            parts = torch.split(x_NE, lengths)
            if self._adapter is not None:
                parts = tuple(self._adapter(part_LE[None], None)[0] for part_LE in parts)
        of_layers = (
            zip(*(torch.split(layer_NE, lengths) for layer_NE in kept), strict=True)
            if kept
            else [()] * len(parts)
        )
        return [PackedOutput(last, tuple(few)) for last, few in zip(parts, of_layers, strict=True)]


def _of_any_length(device: torch.device) -> AbstractContextManager[None]:
    """Without cuDNN's attention, some GPUs' first choice, which plans for each length and keeps the plans."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
