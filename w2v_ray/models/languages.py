"""The languages of a model with adapters: each read once, kept in memory, and put into the model in turn."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from w2v_ray.errors import CheckpointError, LanguageError
from w2v_ray.hub import adapter_file, adapter_languages
from w2v_ray.models.checkpoint import read_weight_file
from w2v_ray.models.heads import Wav2Vec2ForCTC

__all__ = ["Languages"]

_Weights = dict[str, torch.Tensor]


class Languages:
    """Changes a model from language to language.

    Args:
        model: A Wav2Vec2ForCTC with adapters, as it was loaded: its own weights can be gone back to.
        own: The language that these are of where no file of its own has it.
        check: Called with a language, the rows of its head and the file, before they are used; it raises
            where they do not fit the vocabulary.
        max_kept: Languages that are kept in memory, those used last; some MB each.

    Attributes:
        language: The one in the model; None: the checkpoint's own weights.
        num_changes: How often the model's weights were exchanged.

    Raises:
        CheckpointError: The model has no adapters.
    """

    def __init__(
        self,
        model: Any,
        *,
        own: str | None = None,
        check: Callable[[str, int, str], None] | None = None,
        max_kept: int = 32,
    ) -> None:
        if not isinstance(model, Wav2Vec2ForCTC) or model.config.adapter_attn_dim is None:
            raise CheckpointError(
                f"a {type(model).__name__} without adapter_attn_dim has one language; name a checkpoint with "
                "language adapters, or leave the language out"
            )
        assert model.checkpoint is not None, "a loaded model knows where its files are"
        self._model = model
        self._checkpoint, self._revision = model.checkpoint
        # With a file of its own it is that file's, as of from_pretrained(target_lang=).
        has_file = (
            own is not None and adapter_file(self._checkpoint, own, revision=self._revision) is not None
        )
        self._own = None if has_file else own
        self._check = check
        self._max_kept = max_kept
        self._own_weights = {
            name: weight.detach().to("cpu", copy=True) for name, weight in model.adapter_weights().items()
        }
        self._kept: OrderedDict[str, tuple[_Weights, str]] = OrderedDict()
        self.language: str | None = None
        self.num_changes = 0

    def use(self, language: str | None) -> None:
        """Puts a language into the model, unless it is there.

        Args:
            language: As in the name of ``adapter.<language>.safetensors`` or ``.bin``; None: the
                checkpoint's own weights.

        Raises:
            LanguageError: The checkpoint has no such file.
            CheckpointError: The file cannot be read or reached, or does not fit the model or the vocabulary;
                the model is as it was.
        """
        if language == self._own:
            language = None
        if language == self.language:
            return
        weights, source = (self._own_weights, "") if language is None else self._weights(language)
        self._model.fill_adapter(weights, source, language)
        self.language = language
        self.num_changes += 1

    def _weights(self, language: str) -> tuple[_Weights, str]:
        if language in self._kept:
            self._kept.move_to_end(language)
            return self._kept[language]
        path = adapter_file(self._checkpoint, language, revision=self._revision)
        if path is None:
            raise _unknown(language, self._checkpoint)
        source = str(path)
        weights = {
            name: weight.to(self._model.dtype, copy=True) for name, weight in read_weight_file(path).items()
        }
        head = weights.get("lm_head.weight")
        if self._check is not None and head is not None and head.ndim == 2:
            self._check(language, head.shape[0], source)
        self._kept[language] = weights, source
        if len(self._kept) > self._max_kept:
            self._kept.popitem(last=False)
        return weights, source


def _unknown(language: str, model: str | Path) -> LanguageError:
    known = adapter_languages(model)
    has = f"it has {', '.join(known[:12])}" if known else "see which ones it lists"
    return LanguageError(
        f"language is {language!r}, and model {str(model)!r} has no adapter for it ({has}); correct the "
        "language, or leave the recording out"
    )
