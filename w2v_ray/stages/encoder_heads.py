"""One encoder with several heads on it: segments in, what each head makes of every one out.

Letters in tensor names: N frames of all segments, L frames of one, E width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from w2v_ray.errors import CheckpointError, EncodeError, TooShortError
from w2v_ray.heads import Head
from w2v_ray.models.adapters import Wav2Vec2Adapter
from w2v_ray.models.auto import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    AutoModelForCTC,
)
from w2v_ray.models.conformer import ConformerAdapter
from w2v_ray.models.languages import Languages
from w2v_ray.models.outputs import Wav2Vec2BaseModelOutput
from w2v_ray.models.packed import PackedEncoder, PackedOutput
from w2v_ray.models.wav2vec2 import TrueLengthGroupNorm
from w2v_ray.schema import EMISSION_DTYPE
from w2v_ray.text.languages import Tokenizers, check_head
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

__all__ = ["EncoderHeads", "TopTokens"]

_LEAST_SHARE = 4  # a token and its number take twice the room of the number
_MOST_COLUMNS = 2**16


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The likeliest tokens of each frame of a segment."""

    ids: np.ndarray
    """Their columns, shape (num_frames, tokens), of uint16."""
    log_probs: np.ndarray
    """Their log-probabilities, of the same shape."""
    vocabulary_size: int
    """Columns of the whole emission."""

    def __len__(self) -> int:
        return len(self.ids)


Value = np.ndarray | TopTokens | TooShortError | EncodeError

_CLASSES: dict[str, type[AutoModel]] = {
    "transcribe": AutoModelForCTC,
    "classify": AutoModelForAudioClassification,
    "frames": AutoModelForAudioFrameClassification,
    "embed": AutoModelForAudioXVector,
}
_NOT_FINITE = "the encoder gave numbers that are not finite; try dtype float32"


@dataclass(frozen=True, slots=True)
class _PaddedOutput(PackedOutput):
    """What an encoder gives for a row of a padded batch."""

    padded: PackedOutput
    """The same with the frames of padding that the reference's head for speakers hears besides."""


class EncoderHeads:
    """The models of several heads, whose encoder is loaded into memory once.

    Args:
        heads: At least one; an ``embed`` that pools a layer needs no model of its own.
        device: Where they run.
        int8: Whether the encoder's large products are of bytes.
        padded: Whether ``encode_padded`` is what will be called, and not ``encode``.
        top_tokens: Log-probabilities are given of so many tokens a frame, where there are many more; None: of
            all.
        options: Of ``from_pretrained``: dtype and attn_implementation.

    Raises:
        CheckpointError: A model cannot be loaded, or two have different encoders.
    """

    def __init__(
        self,
        heads: Sequence[Head],
        *,
        device: torch.device,
        int8: bool = False,
        padded: bool = False,
        top_tokens: int | None = None,
        **options: Any,
    ) -> None:
        self.heads = tuple(heads)
        self._top_tokens = top_tokens
        self._models: dict[str, Any] = {}
        self.encoder: Any = None
        loaded: tuple[str, str | None] | None = None
        for head in heads:
            if head.task == "embed" and head.pooling != "xvector":
                continue
            # Others are compared with the first on the CPU, so that the device never has two encoders.
            place = {"device_map": device} if loaded is None else {}
            model = _CLASSES[head.task].from_pretrained(
                head.model, revision=head.revision, **options, **place
            )
            if loaded is None:
                self.encoder, loaded = model.base_model, (head.model, head.revision)
            else:
                _check_same(model.base_model, self.encoder, head.model, loaded[0])
                setattr(model, model.base_model_prefix, self.encoder)
            self._models[head.task] = model.to(device)
        for head in heads:
            if head.task not in self._models and (head.model, head.revision) != loaded:
                place = {"device_map": device} if loaded is None else {}
                encoder = AutoModel.from_pretrained(head.model, revision=head.revision, **options, **place)
                if loaded is None:
                    self.encoder, loaded = encoder, (head.model, head.revision)
                else:
                    _check_same(encoder, self.encoder, head.model, loaded[0])
        self._languages: Languages | None = None  # made when one is first asked for
        self._wants_layers = any(
            head.layer is not None or getattr(self._models.get(head.task), "needs_hidden_states", False)
            for head in heads
        )
        if padded:
            for module in self.encoder.modules():
                if isinstance(module, TrueLengthGroupNorm | Wav2Vec2Adapter | ConformerAdapter):
                    module.over_padding = True
        self._packed = None if padded else PackedEncoder(self.encoder, int8=int8)

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

    def encode(self, inputs: Sequence[torch.Tensor]) -> list[PackedOutput]:
        """What the encoder gives for segments, none of them padded; as of ``PackedEncoder``."""
        assert self._packed is not None, "made for padded batches"
        return self._packed(inputs, layers=self._wants_layers)

    @torch.inference_mode()
    def encode_padded(self, values: torch.Tensor, mask: torch.Tensor | None) -> list[PackedOutput]:
        """What the encoder gives for a padded batch, as the reference computes it.

        Args:
            values: (batch, length) samples, or (batch, length, width) features.
            mask: (batch, length), 1 where a row has input; None: the padding is heard as silence.
        """
        # Said here, as a config.json can ask for more, or for a tuple.
        asked = {"output_attentions": False, "return_dict": True}
        encoded = self.encoder(values, mask, output_hidden_states=self._wants_layers, **asked)
        last, layers = encoded.last_hidden_state, encoded.hidden_states or ()
        if mask is None:
            return [PackedOutput(last[row], tuple(x[row] for x in layers)) for row in range(len(values))]
        counts = self.encoder.num_frames(mask.sum(-1)).tolist()
        inner = self.encoder.num_frames(mask.sum(-1), add_adapter=False).tolist()
        # What is pooled there is counted as if no layer left frames out, and after an adapter in any case.
        heard = [count + getattr(self._models.get("embed"), "skipped", 0) for count in counts]
        return [
            _PaddedOutput(
                last[row, : counts[row]],
                tuple(x[row, : inner[row]] for x in layers),
                padded=PackedOutput(last[row, : heard[row]], tuple(x[row, : heard[row]] for x in layers)),
            )
            for row in range(len(values))
        ]

    @torch.inference_mode()
    def __call__(self, outputs: Sequence[PackedOutput]) -> list[list[Value]]:
        """What each head gives for each segment.

        Args:
            outputs: Of the encoder.

        Returns:
            For each head, for each segment an array: log-probabilities (num_frames, vocabulary), or
            TopTokens in their place, a unit vector, scores of classes, or those of each frame
            (num_frames, classes); or what is wrong.
        """
        return [list(self._of_head(head, outputs)) for head in self.heads]

    def _of_head(self, head: Head, outputs: Sequence[PackedOutput]) -> Iterator[Value]:
        model = self._models.get(head.task)
        if model is None:
            frames = [output.last if head.layer is None else output.layers[head.layer] for output in outputs]
            yield from _checked([_pooled(x_LE, with_std=head.pooling == "mean+std") for x_LE in frames])
        elif head.task in ("transcribe", "frames"):  # each frame for itself, so all of them at once
            logits_NK = _apply(model, _joined(outputs)).logits[0]
            if head.task == "transcribe":
                scores_NK = torch.log_softmax(logits_NK, dim=-1, dtype=torch.float32)
                lengths = [len(output.last) for output in outputs]
                count, size = self._top_tokens, scores_NK.shape[1]
                if count is not None and _LEAST_SHARE * count <= size <= _MOST_COLUMNS:
                    yield from _top_of_frames(scores_NK, lengths, count)
                    return
            else:
                scores_NK = _activated(logits_NK, head)
                lengths = [
                    len(output.layers[0] if model.needs_hidden_states else output.last) for output in outputs
                ]
            yield from _of_frames(scores_NK, lengths)
        elif head.task == "classify":
            yield from _checked([_activated(_apply(model, output).logits[0], head) for output in outputs])
        else:
            outputs = [one.padded if isinstance(one, _PaddedOutput) else one for one in outputs]
            units = [
                torch.nn.functional.normalize(_apply(model, output).embeddings[0].float(), dim=-1)
                for output in outputs
            ]
            frames = [output.layers[0] if model.needs_hidden_states else output.last for output in outputs]
            yield from _embeddings(units, [len(x_LE) for x_LE in frames], shortest=model.reach + 2)


def _apply(model: Any, output: PackedOutput) -> Any:
    """What a model's head gives for a batch of one."""
    layers = tuple(x_LE[None] for x_LE in output.layers) or None
    encoded = Wav2Vec2BaseModelOutput(last_hidden_state=output.last[None], hidden_states=layers)
    return model.apply_head(encoded, output.last[None])


def _joined(outputs: Sequence[PackedOutput]) -> PackedOutput:
    if len(outputs) == 1:
        return outputs[0]
    layers = zip(*(output.layers for output in outputs), strict=True)
    return PackedOutput(torch.cat([output.last for output in outputs]), tuple(map(torch.cat, layers)))


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


def _of_frames(x_NK: torch.Tensor, lengths: Sequence[int]) -> Iterator[Value]:
    finite = x_NK.isfinite().all(-1).cpu().numpy()
    array = x_NK.to(getattr(torch, EMISSION_DTYPE)).cpu().numpy()
    for part in _parts(lengths):
        yield array[part] if finite[part].all() else EncodeError(_NOT_FINITE)


def _top_of_frames(x_NK: torch.Tensor, lengths: Sequence[int], count: int) -> Iterator[Value]:
    """The same of the largest numbers of each frame, picked where the model is: the others never leave it."""
    finite = x_NK.isfinite().all(-1).cpu().numpy()
    top = x_NK.topk(count, dim=-1, sorted=False)
    # Torch has no arithmetic of uint16, but the same bits have a name in int16.
    ids = top.indices.to(torch.int16).cpu().numpy().view(np.uint16)
    array = top.values.to(getattr(torch, EMISSION_DTYPE)).cpu().numpy()
    for part in _parts(lengths):
        if finite[part].all():
            yield TopTokens(ids[part], array[part], x_NK.shape[1])
        else:
            yield EncodeError(_NOT_FINITE)


def _parts(lengths: Sequence[int]) -> Iterator[slice]:
    end = 0
    for length in lengths:
        begin, end = end, end + length
        yield slice(begin, end)


def _checked(rows: Sequence[torch.Tensor]) -> Iterator[Value]:
    for row in torch.stack(list(rows)).cpu().numpy():
        yield row if np.isfinite(row).all() else EncodeError(_NOT_FINITE)


def _pooled(x_LE: torch.Tensor, *, with_std: bool) -> torch.Tensor:
    """The unit vector of the mean, and the standard deviation, of the frames."""
    x_LE = x_LE.float()
    pooled_E = x_LE.mean(0)
    if with_std:
        pooled_E = torch.cat([pooled_E, (x_LE - pooled_E).square().mean(0).sqrt()])
    return torch.nn.functional.normalize(pooled_E, dim=-1)


def _embeddings(units: Sequence[torch.Tensor], lengths: Sequence[int], *, shortest: int) -> Iterator[Value]:
    for value, length in zip(_checked(units), lengths, strict=True):
        if length < shortest:
            yield TooShortError(
                f"the segment has {length} frames, the head for speakers needs {shortest}; "
                "nobody can be told by so short a sound"
            )
        else:
            yield value
