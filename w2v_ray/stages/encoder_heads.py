"""One encoder with several heads on it: a batch of inputs in, what each head makes of every row out.

Letters in tensor names: B batch, L frames, E width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from w2v_ray.errors import CheckpointError, EncodeError, TooShortError
from w2v_ray.heads import Head
from w2v_ray.models.auto import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    AutoModelForCTC,
)
from w2v_ray.models.languages import Languages
from w2v_ray.schema import EMISSION_DTYPE
from w2v_ray.text.languages import Tokenizers, check_head
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

__all__ = ["EncoderHeads"]

Value = np.ndarray | TooShortError | EncodeError

_CLASSES: dict[str, type[AutoModel]] = {
    "transcribe": AutoModelForCTC,
    "classify": AutoModelForAudioClassification,
    "frames": AutoModelForAudioFrameClassification,
    "embed": AutoModelForAudioXVector,
}
_NOT_FINITE = "the encoder gave numbers that are not finite; try dtype float32"


class EncoderHeads:
    """The models of several heads, whose encoder is loaded into memory once.

    Args:
        heads: At least one; an ``embed`` that pools a layer needs no model of its own.
        device: Where they run.
        options: Of ``from_pretrained``: dtype and attn_implementation.

    Raises:
        CheckpointError: A model cannot be loaded, or two have different encoders.
    """

    def __init__(self, heads: Sequence[Head], *, device: torch.device, **options: Any) -> None:
        self.heads = tuple(heads)
        self._models: dict[str, Any] = {}
        self.encoder: Any = None
        loaded: tuple[str, str | None] | None = None
        for head in heads:
            if head.task == "embed" and head.pooling != "xvector":
                continue
            model = _CLASSES[head.task].from_pretrained(head.model, revision=head.revision, **options)
            if loaded is None:
                self.encoder, loaded = model.base_model, (head.model, head.revision)
            else:
                _check_same(model.base_model, self.encoder, head.model, loaded[0])
                setattr(model, model.base_model_prefix, self.encoder)
            self._models[head.task] = model.to(device)
        for head in heads:
            if head.task not in self._models and (head.model, head.revision) != loaded:
                encoder = AutoModel.from_pretrained(head.model, revision=head.revision, **options)
                if loaded is None:
                    self.encoder, loaded = encoder.to(device), (head.model, head.revision)
                else:
                    _check_same(encoder, self.encoder, head.model, loaded[0])
        self._languages: Languages | None = None  # made when one is first asked for
        self._wants_layers = any(
            head.layer is not None or getattr(self._models.get(head.task), "needs_hidden_states", False)
            for head in heads
        )

    @property
    def language(self) -> str | None:
        """The language that is loaded; None: the checkpoint's own."""
        return None if self._languages is None else self._languages.language

    def use(self, language: str | None) -> None:
        """Changes the language of the head that transcribes, and with it of the encoder.

        Raises:
            LanguageError: The checkpoint has no adapter or no vocabulary for it.
            CheckpointError: These do not fit each other or the model, or cannot be read.
        """
        if self._languages is None:
            if language is None:
                return
            (head,) = self.heads  # others would be of that language as well
            tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(head.model, revision=head.revision)
            tokenizers = Tokenizers(tokenizer)

            def check(name: str, rows: int, source: str) -> None:
                check_head(tokenizers(name), rows, source, name)

            self._languages = Languages(self._models["transcribe"], own=tokenizer.target_lang, check=check)
        self._languages.use(language)

    def __call__(self, values: torch.Tensor, mask: torch.Tensor) -> list[list[Value]]:
        """What each head gives for each row.

        Args:
            values: (batch, length) samples, or (batch, length, width) features.
            mask: (batch, length), 1 where a row has input.

        Returns:
            For each head, for each row an array: log-probabilities (num_frames, vocabulary), a unit vector,
            scores of classes, or of the classes in each frame (num_frames, classes); or what is wrong.
        """
        # Said here, as a config.json can ask for more, or for a tuple.
        asked = {"output_attentions": False, "return_dict": True}
        encoded = self.encoder(values, mask, output_hidden_states=self._wants_layers, **asked)
        num_frames = self.encoder.num_frames(mask.sum(-1))
        found = []
        for head in self.heads:
            model = self._models.get(head.task)
            if model is None:
                layer = head.layer
                x_BLE = encoded.last_hidden_state if layer is None else encoded.hidden_states[layer]
                frames = (
                    num_frames if layer is None else self.encoder.num_frames(mask.sum(-1), add_adapter=False)
                )
                found.append(list(_pooled(x_BLE, frames, with_std=head.pooling == "mean+std")))
                continue
            output = model.apply_head(encoded, values, mask)
            if head.task == "transcribe":
                log_probs = torch.log_softmax(output.logits, dim=-1, dtype=torch.float32)
                found.append(list(_of_frames(log_probs, num_frames)))
            elif head.task == "frames":
                found.append(list(_of_frames(_activated(output.logits, head), num_frames)))
            elif head.task == "classify":
                found.append(list(_checked(_activated(output.logits, head))))
            else:
                frames = self.encoder.num_frames(
                    mask.sum(-1), add_adapter=False if model.needs_hidden_states else None
                )
                found.append(list(_embeddings(output.embeddings, frames, shortest=model.reach + 2)))
        return found


def _check_same(encoder: Any, other: Any, model: str, other_model: str) -> None:
    weights, expected = encoder.state_dict(), other.state_dict()
    for name in sorted(weights.keys() | expected.keys()):
        if (
            name not in weights
            or name not in expected
            or not torch.equal(weights[name], expected[name].cpu())
        ):
            raise CheckpointError(
                f"model {model!r} has another encoder than {other_model!r} ({name} differs); "
                "run it as a job of its own"
            )


def _activated(logits: torch.Tensor, head: Head) -> torch.Tensor:
    logits = logits.float()
    return logits.sigmoid() if head.activation == "sigmoid" else logits.softmax(-1)


def _of_frames(x_BLK: torch.Tensor, num_frames: torch.Tensor) -> Iterator[Value]:
    finite = x_BLK.isfinite().all(-1).cpu().numpy()
    arrays = x_BLK.to(getattr(torch, EMISSION_DTYPE)).cpu().numpy()
    for row, frames in enumerate(num_frames.cpu().tolist()):
        yield arrays[row, :frames] if finite[row, :frames].all() else EncodeError(_NOT_FINITE)


def _checked(x_BK: torch.Tensor) -> Iterator[Value]:
    for row in x_BK.cpu().numpy():
        yield row if np.isfinite(row).all() else EncodeError(_NOT_FINITE)


def _pooled(x_BLE: torch.Tensor, num_frames: torch.Tensor, *, with_std: bool) -> Iterator[Value]:
    """Unit vectors of the mean, and the standard deviation, of each row's own frames."""
    x_BLE = x_BLE.float()
    inside_BL1 = (torch.arange(x_BLE.shape[1], device=x_BLE.device) < num_frames[:, None])[..., None]
    count_B1 = num_frames[:, None].clamp(min=1)
    mean_BE = x_BLE.masked_fill(~inside_BL1, 0).sum(1) / count_B1
    if with_std:
        square_BLE = (x_BLE - mean_BE[:, None]).square().masked_fill(~inside_BL1, 0)
        mean_BE = torch.cat([mean_BE, (square_BLE.sum(1) / count_B1).sqrt()], dim=-1)
    yield from _checked(torch.nn.functional.normalize(mean_BE, dim=-1))


def _embeddings(x_BE: torch.Tensor, num_frames: torch.Tensor, *, shortest: int) -> Iterator[Value]:
    units = torch.nn.functional.normalize(x_BE.float(), dim=-1)
    for value, frames in zip(_checked(units), num_frames.cpu().tolist(), strict=True):
        if frames < shortest:
            yield TooShortError(
                f"the segment has {frames} frames, the head for speakers needs {shortest}; "
                "nobody can be told by so short a sound"
            )
        else:
            yield value
