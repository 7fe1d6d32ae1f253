"""Speaker embeddings: a time-delay network on an encoder, pooled over time.

Letters in tensor names: B batch, L frames, E width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from w2v_ray.models.families import ModelWithHead, Wav2Vec2BertFamily, Wav2Vec2Family
from w2v_ray.models.losses import AMSoftmaxLoss
from w2v_ray.models.outputs import Wav2Vec2BaseModelOutput, XVectorOutput
from w2v_ray.models.wav2vec2 import valid_frames

__all__ = ["Wav2Vec2BertForXVector", "Wav2Vec2ForXVector"]


class TDNNLayer(nn.Module):
    """A dilated convolution over time, without padding, as a linear layer over the frames it sees."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        kernel_size = config.tdnn_kernel[index]
        width = config.tdnn_dim[max(index - 1, 0)]
        self.dilation: int = config.tdnn_dilation[index]
        self.reach: int = (kernel_size - 1) * self.dilation  # frames that are fewer afterwards
        self.skipped: int = self.reach - (kernel_size - 1)  # frames between those that it sees
        self.kernel = nn.Linear(width * kernel_size, config.tdnn_dim[index])

    def forward(self, x_BLE: torch.Tensor) -> torch.Tensor:
        frames = x_BLE.shape[1] - self.reach
        starts = range(0, self.reach + 1, self.dilation)
        return F.relu(self.kernel(torch.cat([x_BLE[:, start : start + frames] for start in starts], dim=-1)))


class _XVector(ModelWithHead):
    def __init__(self, config: Any, *, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation=attn_implementation)
        if not config.use_weighted_layer_sum:  # which is of the layers, before any adapter
            self._refuse_wide_adapter()
        self._add_layer_weights()
        self.projector = nn.Linear(config.hidden_size, config.tdnn_dim[0])
        layers = [TDNNLayer(config, i) for i in range(len(config.tdnn_dim))]
        self.tdnn = nn.ModuleList(layers)
        self.reach = sum(layer.reach for layer in layers)
        self.skipped = sum(layer.skipped for layer in layers)
        self.feature_extractor = nn.Linear(2 * config.tdnn_dim[-1], config.xvector_output_dim)
        self.classifier = nn.Linear(config.xvector_output_dim, config.xvector_output_dim)
        self.objective = AMSoftmaxLoss(config.xvector_output_dim, config.num_labels)
        self._initialize(self.projector, self.tdnn, self.feature_extractor, self.classifier)
        if not self.objective.weight.is_meta:
            nn.init.normal_(self.objective.weight)

    def apply_head(
        self,
        encoded: Wav2Vec2BaseModelOutput,
        inputs: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> XVectorOutput:
        config = self.config
        x_BLE = self._seen(encoded)
        lengths = torch.full(inputs.shape[:1], x_BLE.shape[1], device=x_BLE.device)
        if attention_mask is not None:
            # A weighted sum is over what the layers gave, which is before any adapter.
            add_adapter = config.add_adapter and not config.use_weighted_layer_sum
            lengths = self.base_model.num_frames(attention_mask.sum(-1), add_adapter=add_adapter)
        x_BLE = self.projector(x_BLE)
        x_BLE = F.pad(x_BLE, (0, 0, 0, max(0, self.reach + 1 - x_BLE.shape[1])))
        for layer in self.tdnn:
            x_BLE = layer(x_BLE)
        embeddings_BE = self.feature_extractor(_statistics(x_BLE, lengths - self.reach))
        logits_BE = self.classifier(embeddings_BE)
        return XVectorOutput(
            loss=None if labels is None else self.objective(logits_BE, labels),
            logits=logits_BE,
            embeddings=embeddings_BE,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


def _statistics(x_BLE: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation of each row's own frames, side by side."""
    wide_BLE = x_BLE.to(torch.promote_types(x_BLE.dtype, torch.float32))
    outside_BL1 = ~valid_frames(lengths, x_BLE.shape[1])[..., None]
    count_B1 = lengths.clamp(min=0)[:, None]
    mean_BE = wide_BLE.masked_fill(outside_BL1, 0).sum(1) / count_B1
    centred_BLE = (wide_BLE - mean_BE[:, None]).masked_fill(outside_BL1, 0)
    variance_BE = centred_BLE.square().sum(1) / (count_B1 - 1)
    # A feature that is 0 in every frame, as after a ReLU, deviates by 0; the root has no gradient there.
    still_BE = variance_BE == 0
    deviation_BE = variance_BE.masked_fill(still_BE, 1).sqrt().masked_fill(still_BE, 0)
    return torch.cat([mean_BE, deviation_BE], dim=-1).to(x_BLE.dtype)


class Wav2Vec2ForXVector(Wav2Vec2Family, _XVector):
    """Wav2vec 2.0 with a head that embeds speakers.

    ``embeddings`` are one vector per recording; two recordings are of one speaker where the cosine of
    theirs is above a threshold, which depends on the data (0.7 is a start). Each row pools its own
    frames alone. A row with fewer than two frames after the time-delay network (15 before it, as
    published, about 0.3 s) gives NaN.

    ``labels`` are (batch,) speaker numbers below ``num_labels``, for the additive-margin softmax.

    Args:
        config: What to build.
        attn_implementation: As of Wav2Vec2Model.

    Raises:
        ConfigError: An adapter changes the width of what the head sees.
    """


class Wav2Vec2BertForXVector(Wav2Vec2BertFamily, _XVector):
    """Wav2Vec2-BERT with a head that embeds speakers; the rest as of Wav2Vec2ForXVector.

    Args:
        config: What to build.
        attn_implementation: As of Wav2Vec2BertModel.

    Raises:
        ConfigError: An adapter changes the width of what the head sees.
    """
