"""What the heads are trained with. Frames and labels that pad a batch never count.

Letters in tensor names: B batch, L frames, V vocabulary, K classes, E width, N whatever is counted.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from w2v_ray.models.config import PretrainedConfig

__all__ = ["AMSoftmaxLoss", "classification_loss", "ctc_loss", "frame_classification_loss"]


def ctc_loss(
    logits_BLV: torch.Tensor,
    labels: torch.Tensor,
    num_frames: torch.Tensor,
    *,
    blank: int,
    reduction: str,
    zero_infinity: bool,
) -> torch.Tensor:
    """Connectionist temporal classification.

    Args:
        logits_BLV: (batch, num_frames, vocab_size).
        labels: (batch, target_length) token ids; negative ones and blanks are padding.
        num_frames: (batch,), the true frames of each row.
        blank: The id that stands for no token.
        reduction: "sum" or "mean", as of torch.
        zero_infinity: Whether a row with more labels than frames counts as zero.

    Raises:
        ValueError: A label is not in the vocabulary.
    """
    vocab_size = logits_BLV.shape[-1]
    if int(labels.max()) >= vocab_size:
        raise ValueError(f"a label is {int(labels.max())}, expected ids below vocab_size ({vocab_size})")
    labels = labels.to(logits_BLV.device)
    used = (labels >= 0) & (labels != blank)
    log_probs_LBV = F.log_softmax(logits_BLV, dim=-1, dtype=torch.float32).transpose(0, 1)
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN's CTC has stricter limits and no determinism
        return F.ctc_loss(
            log_probs_LBV,
            labels.masked_select(used),
            num_frames,
            used.sum(-1),
            blank=blank,
            reduction=reduction,
            zero_infinity=zero_infinity,
        )


def classification_loss(
    logits_NK: torch.Tensor, labels: torch.Tensor, config: PretrainedConfig
) -> torch.Tensor:
    """The loss that ``problem_type`` names, or else the one that the labels suggest.

    That is the squared error for one class, cross entropy for whole numbers and binary cross entropy for
    others.

    Args:
        logits_NK: (N, num_labels).
        labels: (N,) class numbers or (N,) values in regression of one class, else (N, num_labels).
        config: Says ``num_labels`` and ``problem_type``.
    """
    labels = labels.to(logits_NK.device)
    problem = config.problem_type
    if problem is None:
        whole = not labels.is_floating_point()
        problem = "single_label_classification" if whole else "multi_label_classification"
        problem = "regression" if config.num_labels == 1 else problem
    if problem == "regression":
        return F.mse_loss(logits_NK, labels.to(logits_NK.dtype).reshape(logits_NK.shape))
    if problem == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits_NK, labels.to(logits_NK.dtype))
    return F.cross_entropy(logits_NK, labels.reshape(-1))


def frame_classification_loss(
    logits_BLK: torch.Tensor,
    labels: torch.Tensor,
    valid_BL: torch.Tensor | None,
    config: PretrainedConfig,
) -> torch.Tensor:
    """As ``classification_loss``, over the true frames of all rows.

    Args:
        logits_BLK: (batch, num_frames, num_labels).
        labels: (batch, num_frames) class numbers, of which -100 does not count, or
            (batch, num_frames, num_labels), of which the largest is the class unless ``problem_type``
            says that there may be several.
        valid_BL: (batch, num_frames), true for the frames that count; None: all do.
        config: Says ``num_labels`` and ``problem_type``.

    Raises:
        ValueError: There are not as many labels as frames.
    """
    if labels.shape not in (logits_BLK.shape[:2], logits_BLK.shape):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, expected {tuple(logits_BLK.shape[:2])} or "
            f"{tuple(logits_BLK.shape)}; give one label per frame, or one row of num_labels"
        )
    labels = labels.to(logits_BLK.device)
    one_class = config.problem_type in (None, "single_label_classification") and config.num_labels > 1
    if labels.ndim == 3 and one_class:
        labels = labels.argmax(-1)
    logits_NK = logits_BLK.flatten(0, 1) if valid_BL is None else logits_BLK[valid_BL]
    labels = labels.flatten(0, 1) if valid_BL is None else labels[valid_BL]
    if one_class:
        return F.cross_entropy(logits_NK, labels.long())
    return classification_loss(logits_NK, labels, config)


class AMSoftmaxLoss(nn.Module):
    """Cross entropy of cosines to one vector per class, with a margin that the true class must win by."""

    def __init__(self, width: int, num_labels: int, *, scale: float = 30.0, margin: float = 0.4) -> None:
        super().__init__()
        self.scale = scale
        self.margin = margin
        self.weight = nn.Parameter(torch.randn(width, num_labels))

    def forward(self, x_BE: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        labels = labels.flatten().to(x_BE.device)
        cosines_BK = F.normalize(x_BE, dim=1) @ F.normalize(self.weight, dim=0)
        is_true_BK = F.one_hot(labels, cosines_BK.shape[-1]).bool()
        cosines_BK = torch.where(is_true_BK, cosines_BK - self.margin, cosines_BK)
        return F.cross_entropy(self.scale * cosines_BK, labels)
