"""Self-supervised training of wav2vec 2.0: predict the quantised features of frames that were masked.

Letters in tensor names: B batch, L frames, C channels, E width, G codebooks, V entries of a codebook,
M masked frames, K candidates (the true one first).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from w2v_ray.errors import ConfigError
from w2v_ray.models.config import Wav2Vec2Config
from w2v_ray.models.families import Wav2Vec2Family
from w2v_ray.models.outputs import Wav2Vec2ForPreTrainingOutput
from w2v_ray.models.wav2vec2 import valid_frames

__all__ = ["Wav2Vec2ForPreTraining", "sample_negative_indices"]


def sample_negative_indices(
    mask_time_indices: torch.Tensor, num_negatives: int, *, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Draws, for each masked frame, other masked frames of the same row.

    Args:
        mask_time_indices: (batch, num_frames), true for masked frames.
        num_negatives: How many to draw, with replacement.
        generator: On the CPU; None: torch's own.

    Returns:
        (batch, num_frames, num_negatives) positions in the flattened batch; those of frames that are not
        masked say nothing.

    Raises:
        ValueError: A row has a single masked frame, which has no other to be told from.
    """
    mask_BL = mask_time_indices.bool().cpu()
    batch, frames = mask_BL.shape
    negatives_BLK = torch.zeros(batch, frames, num_negatives, dtype=torch.long)
    for row, mask_L in enumerate(mask_BL):
        masked_M = mask_L.nonzero()[:, 0]
        count = len(masked_M)
        if count == 1:
            raise ValueError(
                f"row {row} has one masked frame, expected none or at least two; mask longer spans"
            )
        if count:
            drawn_MK = torch.randint(count - 1, (count, num_negatives), generator=generator)
            drawn_MK += drawn_MK >= torch.arange(count)[:, None]  # never the frame itself
            negatives_BLK[row, masked_M] = masked_M[drawn_MK]
        negatives_BLK[row] += row * frames
    return negatives_BLK.to(mask_time_indices.device)


class Wav2Vec2GumbelVectorQuantizer(nn.Module):
    """Puts one entry of each codebook in the place of a frame: drawn in training, else the likeliest."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        groups, entries = config.num_codevector_groups, config.num_codevectors_per_group
        if config.codevector_dim % groups:
            raise ConfigError(
                f"codevector_dim is {config.codevector_dim}, expected a multiple of num_codevector_groups "
                f"({groups}); mend config.json"
            )
        self.num_groups = groups
        self.temperature = 2.0
        self.codevectors = nn.Parameter(torch.empty(1, groups * entries, config.codevector_dim // groups))
        self.weight_proj = nn.Linear(config.conv_dim[-1], groups * entries)
        if not self.codevectors.is_meta:
            nn.init.uniform_(self.codevectors)
            nn.init.normal_(self.weight_proj.weight)
            nn.init.zeros_(self.weight_proj.bias)

    def forward(
        self, x_BLC: torch.Tensor, counted_BL: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives the code vectors and the perplexity of their use over the frames that count."""
        batch, frames, _ = x_BLC.shape
        scores_BLGV = self.weight_proj(x_BLC).view(batch, frames, self.num_groups, -1)
        if self.training:
            rows = scores_BLGV.float().flatten(0, 2)
            hard = F.gumbel_softmax(rows, tau=self.temperature, hard=True)
            chosen_BLGV = hard.view_as(scores_BLGV).to(scores_BLGV.dtype)
            use_BLGV = torch.softmax(scores_BLGV.float(), dim=-1)
        else:
            chosen_BLGV = F.one_hot(scores_BLGV.argmax(-1), scores_BLGV.shape[-1]).to(scores_BLGV.dtype)
            use_BLGV = chosen_BLGV
        use_NGV = use_BLGV.flatten(0, 1) if counted_BL is None else use_BLGV[counted_BL]
        share_GV = use_NGV.float().mean(0)
        perplexity = torch.exp(-torch.xlogy(share_GV, share_GV).sum(-1)).sum()
        codes_GVE = self.codevectors.view(self.num_groups, scores_BLGV.shape[-1], -1)
        return torch.einsum("blgv,gve->blge", chosen_BLGV, codes_GVE).flatten(2), perplexity


class Wav2Vec2ForPreTraining(Wav2Vec2Family):
    """Wav2vec 2.0 with the quantiser and the two projections of its self-supervised training.

    Args:
        config: What to build.
        attn_implementation: As of Wav2Vec2Model.

    Raises:
        ConfigError: The adapter has another width than the encoder, or the codebooks do not divide
            ``codevector_dim``.
    """

    def __init__(self, config: Wav2Vec2Config, *, attn_implementation: str = "sdpa") -> None:
        super().__init__(config, attn_implementation=attn_implementation)
        self._refuse_wide_adapter()
        self.dropout_features = nn.Dropout(config.feat_quantizer_dropout)
        self.quantizer = Wav2Vec2GumbelVectorQuantizer(config)
        self.project_hid = nn.Linear(config.hidden_size, config.proj_codevector_dim)
        self.project_q = nn.Linear(config.codevector_dim, config.proj_codevector_dim)

    def set_gumbel_temperature(self, temperature: float) -> None:
        """Sets how evenly code vectors are drawn in training; lowered step by step from 2."""
        self.quantizer.temperature = temperature

    def forward(  # type: ignore[override]
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        sampled_negative_indices: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Wav2Vec2ForPreTrainingOutput | tuple[torch.Tensor, ...]:
        """Encodes a batch of waveforms and quantises what should be predicted.

        Args:
            input_values: As of Wav2Vec2Model.
            attention_mask: As of Wav2Vec2Model.
            mask_time_indices: (batch, num_frames), true for frames to mask and to predict.
            sampled_negative_indices: (batch, num_frames, num_negatives), as ``sample_negative_indices``
                draws them. Gives the losses, which are sums over all masked frames.
            output_attentions: As of Wav2Vec2Model.
            output_hidden_states: As of Wav2Vec2Model.
            return_dict: As of Wav2Vec2Model.

        Raises:
            ValueError: There are negatives and no masked frames, or an adapter put out fewer frames than
                there are codes to predict.
        """
        if sampled_negative_indices is not None and mask_time_indices is None:
            raise ValueError(
                "sampled_negative_indices are given without mask_time_indices, expected both; "
                "say which frames are masked"
            )
        mask_BL = None if mask_time_indices is None else mask_time_indices.bool()
        asked, by_name = self._asked(output_attentions, output_hidden_states, return_dict)
        encoded = self.wav2vec2(
            input_values,
            attention_mask,
            mask_time_indices=mask_BL,
            **asked,
            return_dict=True,
        )
        predicted_BLE = self.project_hid(encoded.last_hidden_state)
        coded = encoded.extract_features.shape[1]
        if sampled_negative_indices is not None and predicted_BLE.shape[1] != coded:
            raise ValueError(
                f"the adapter gives {predicted_BLE.shape[1]} frames for {coded} codes, expected as many for "
                "the losses; train with add_adapter=False"
            )
        counted_BL = mask_BL
        if counted_BL is None and attention_mask is not None:
            counted_BL = valid_frames(
                self.wav2vec2.num_frames(attention_mask.sum(-1), add_adapter=False), coded
            )
        codes_BLE, perplexity = self.quantizer(self.dropout_features(encoded.extract_features), counted_BL)
        quantized_BLE = self.project_q(codes_BLE.to(self.project_q.weight.dtype))
        output = Wav2Vec2ForPreTrainingOutput(
            projected_states=predicted_BLE,
            projected_quantized_states=quantized_BLE,
            codevector_perplexity=perplexity,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        if sampled_negative_indices is not None and mask_BL is not None:
            output.contrastive_loss = self._contrastive_loss(
                predicted_BLE, quantized_BLE, codes_BLE, mask_BL, sampled_negative_indices
            )
            entries = self.config.num_codevectors_per_group * self.config.num_codevector_groups
            output.diversity_loss = (entries - perplexity) / entries * mask_BL.sum()
            output.loss = output.contrastive_loss + self.config.diversity_loss_weight * output.diversity_loss
        return output if by_name else output.to_tuple()

    def _contrastive_loss(
        self,
        predicted_BLE: torch.Tensor,
        quantized_BLE: torch.Tensor,
        codes_BLE: torch.Tensor,
        mask_BL: torch.Tensor,
        negatives_BLK: torch.Tensor,
    ) -> torch.Tensor:
        """Cross entropy of telling the true quantised frame from the others, for masked frames alone.

        A negative with the code of the true frame is no negative. Codes are compared, not what is projected
        from them: a matrix product may give equal rows a different last bit, by where they stand.
        """
        negatives_MK = negatives_BLK[mask_BL].long()
        true_M1 = mask_BL.flatten().nonzero()
        candidates_MK = torch.cat([true_M1, negatives_MK], dim=1)
        quantized_MKE = quantized_BLE.flatten(0, 1)[candidates_MK]
        similarity_MK = F.cosine_similarity(
            predicted_BLE[mask_BL][:, None].float(), quantized_MKE.float(), dim=-1
        )
        logits_MK = similarity_MK / self.config.contrastive_logits_temperature
        codes_ME = codes_BLE.flatten(0, 1)
        same_MK = (codes_ME[negatives_MK] == codes_ME[true_M1]).all(-1)
        same_MK = F.pad(same_MK, (1, 0), value=False)
        logits_MK = logits_MK.masked_fill(same_MK, float("-inf"))
        truth_M = torch.zeros(len(logits_MK), dtype=torch.long, device=logits_MK.device)
        return F.cross_entropy(logits_MK, truth_M, reduction="sum")
