"""Recordings as classes, each with its score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from w2v_ray.audio.recordings import read_recording
from w2v_ray.inference.pieces import Piece, answer, forward, refuse_short

__all__ = ["AudioClassificationPipeline"]


class AudioClassificationPipeline:
    """Says of which class a recording is; the options may be given here, for all calls, or in a call.

    Args:
        model: A model for sequence classification.
        feature_extractor: The one that the model was trained with.
        top_k: How many labels to return, the most likely first; null: all.
        function_to_apply: ``softmax``, ``sigmoid`` or ``none``; null: ``none`` for regression, ``sigmoid``
            for several labels at once, else ``softmax``, as the config's ``problem_type`` says.
        batch_size: Recordings that the model computes at once.
    """

    def __init__(
        self,
        model: Any,
        feature_extractor: Any,
        *,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        batch_size: int = 1,
    ) -> None:
        self.model, self.feature_extractor = model, feature_extractor
        self.top_k, self.function_to_apply = top_k, function_to_apply
        self.batch_size = batch_size

    def __call__(
        self,
        inputs: Any,
        *,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        batch_size: int | None = None,
    ) -> Any:
        """Classifies one recording, or several.

        Args:
            inputs: As of AutomaticSpeechRecognitionPipeline; further keys of mappings are left out.
            top_k: As of the constructor, and the options after it.
            function_to_apply: See ``top_k``.
            batch_size: See ``top_k``.

        Returns:
            For a recording a list of dicts of ``score`` and ``label``, the highest score first; for a list
            a list of them; for what yields recordings an iterator.

        Raises:
            ItemError: As of AutomaticSpeechRecognitionPipeline, and its other errors.
        """
        function = function_to_apply or self.function_to_apply or self._default_function()
        if function not in ("softmax", "sigmoid", "none"):
            raise ValueError(f"function_to_apply is {function!r}, expected 'softmax', 'sigmoid' or 'none'")
        top_k = self.top_k if top_k is None else top_k
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected at least 1, or null for all labels")
        name = partial(self._name, function, top_k)
        return answer(
            inputs, self._whole, self._logits, name, self.batch_size if batch_size is None else batch_size
        )

    def _default_function(self) -> str:
        functions = {"regression": "none", "multi_label_classification": "sigmoid"}
        return functions.get(self.model.config.problem_type, "softmax")

    def _whole(self, item: Any) -> Iterator[Piece]:
        yield Piece(read_recording(item, self.feature_extractor.sampling_rate).samples)

    def _logits(self, pieces: Sequence[Piece]) -> Iterator[torch.Tensor | None]:
        return forward(self.model, self.feature_extractor, pieces)

    def _name(
        self, function: str, top_k: int | None, pieces: Sequence[Piece], rows: Sequence[torch.Tensor | None]
    ) -> list[dict[str, Any]]:
        (logits,) = rows
        if logits is None:
            refuse_short(len(pieces[0].samples))
        scores = logits.float().cpu()
        if function != "none":
            scores = scores.softmax(-1) if function == "softmax" else scores.sigmoid()
        best = scores.topk(min(top_k or len(scores), len(scores)))
        names = self.model.config.id2label
        return [
            {"score": score, "label": names[index]}
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
