"""A language model with its weights in the beam search and the words it takes for known."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Collection
from typing import Any, TypedDict

from w2v_ray.errors import ConfigError, LanguageModelError
from w2v_ray.text._beam import NgramModel, Trie
from w2v_ray.text.language_model import KenlmModel, open_language_model

__all__ = ["FusionWeights", "LanguageModel"]

_WEIGHTS_FILE = "attrs.json"
_WORDS_FILE = "unigrams.txt"
_SUFFIXES = (".arpa", ".arpa.gz", ".lm", ".lm.gz", ".bin", ".binary", ".w2vlm")

_logger = logging.getLogger(__name__)


class FusionWeights(TypedDict, total=False):
    """How a language model counts beside the logits; what is left out stays as the model has it."""

    alpha: float | None
    """Weight of its log-probabilities."""
    beta: float | None
    """Added for each word."""
    unk_score_offset: float | None
    """Added, in log10, for each word that is not known."""
    lm_score_boundary: bool | None
    """Whether the utterance is a whole sentence: begins after ``<s>`` and ends with ``</s>``."""


class LanguageModel:
    """An n-gram model in the beam search, with pyctcdecode's arguments.

    Args:
        kenlm_model: What `open_language_model` returns, or a ``kenlm.Model``.
        unigrams: The words that are known, as far as the model has them. Without them every word of the
            model is, but every unfinished word counts as unknown, which costs accuracy.
        alpha: Weight of the model's log-probabilities.
        beta: Added for each word.
        unk_score_offset: Added, in log10, for each word that is not known.
        score_boundary: Whether to score the begin and the end of the sentence.
        path: The model's file, which `save_to_dir` copies; else that of ``kenlm_model``.
    """

    def __init__(
        self,
        kenlm_model: Any,
        unigrams: Collection[str] | None = None,
        alpha: float = 0.5,
        beta: float = 1.5,
        unk_score_offset: float = -10.0,
        score_boundary: bool = True,
        *,
        path: str | None = None,
    ) -> None:
        if not isinstance(kenlm_model, NgramModel | KenlmModel) and not hasattr(kenlm_model, "BaseScore"):
            raise ConfigError(
                f"kenlm_model is a {type(kenlm_model).__name__}, expected what open_language_model returns"
            )
        self._model = kenlm_model
        self._path = path
        self._unigrams = (
            None if unigrams is None else Trie({word for word in unigrams if word in kenlm_model})
        )
        if self._unigrams is None:
            _logger.warning("no unigrams are given: unfinished words all count as unknown, results suffer")
        elif unigrams and len(self._unigrams) < 0.1 * len(unigrams):
            _logger.warning(
                "the language model has %d of the %d unigrams; do they belong together?",
                len(self._unigrams),
                len(unigrams),
            )
        self.alpha, self.beta = alpha, beta
        self.unk_score_offset, self.score_boundary = unk_score_offset, score_boundary

    @classmethod
    def of_all_words(cls, model: NgramModel, *, path: str | None = None, **weights: Any) -> LanguageModel:
        """With every word of the model known."""
        made = cls(model, (), path=path, **weights)
        made._unigrams = Trie.of_model(model)
        return made

    @property
    def order(self) -> int:
        """The number of words of the longest n-grams."""
        return int(self._model.order)

    @property
    def model(self) -> Any:
        """What asks for scores: an `NgramModel` or a ``kenlm.Model``."""
        return self._model.model if isinstance(self._model, KenlmModel) else self._model

    @property
    def unigrams(self) -> Trie | None:
        """The words that are known."""
        return self._unigrams

    def reset_params(self, **params: Any) -> None:
        """Changes ``alpha``, ``beta``, ``unk_score_offset`` or ``score_boundary``; None leaves one as it is.

        Raises:
            ConfigError: A value is no number, or ``score_boundary`` no bool.
        """
        for name, value in params.items():
            if value is None:
                continue
            if name not in ("alpha", "beta", "unk_score_offset", "score_boundary"):
                raise ConfigError(f"{name} is no parameter of a language model; name alpha, beta, ...")
            wanted = bool if name == "score_boundary" else (int, float)
            if not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
                kind = "True or False" if wanted is bool else "a number"
                raise ConfigError(f"{name} is {value!r}, expected {kind}")
            setattr(self, name, value)

    def save_to_dir(self, filepath: str, unigram_encoding: str | None = None) -> None:
        """Writes ``attrs.json``, ``unigrams.txt`` and the model's file into an existing folder."""
        weights = {name: getattr(self, name) for name in ("alpha", "beta", "unk_score_offset")}
        with open(os.path.join(filepath, _WEIGHTS_FILE), "w", encoding="utf-8") as file:
            json.dump({**weights, "score_boundary": self.score_boundary}, file)
        with open(
            os.path.join(filepath, _WORDS_FILE),
            "w",
            encoding=unigram_encoding or "utf-8",
            errors="surrogateescape",
        ) as file:
            file.writelines(f"{word}\n" for word in (self._unigrams.words() if self._unigrams else ()))
        source = self._path or self._model.path
        if isinstance(source, bytes):  # of a kenlm.Model
            source = os.fsdecode(source)
        if source is None:
            self._model.save(os.path.join(filepath, "model.w2vlm"))
        else:
            shutil.copy2(source, os.path.join(filepath, os.path.basename(source)))

    @staticmethod
    def parse_directory_contents(filepath: str) -> dict[str, str]:
        """The paths of ``json_attrs``, ``unigrams`` and ``kenlm`` in a folder that was saved.

        Raises:
            LanguageModelError: One is missing, or there is more than these.
        """
        found = sorted(name for name in os.listdir(filepath) if not name.startswith((".", "__")))
        models = [name for name in found if name.endswith(_SUFFIXES)]
        if sorted([*models, _WEIGHTS_FILE, _WORDS_FILE]) != found or len(models) != 1:
            raise LanguageModelError(
                f"{filepath!r} holds {found}, expected {_WEIGHTS_FILE}, {_WORDS_FILE} and one model whose "
                f"name ends in {', '.join(_SUFFIXES)}"
            )
        names = {"json_attrs": _WEIGHTS_FILE, "unigrams": _WORDS_FILE, "kenlm": models[0]}
        return {kind: os.path.join(filepath, name) for kind, name in names.items()}

    @classmethod
    def load_from_dir(cls, filepath: str, unigram_encoding: str | None = None) -> LanguageModel:
        """Reads what `save_to_dir` or pyctcdecode wrote.

        Raises:
            LanguageModelError: A file is missing or damaged.
        """
        paths = cls.parse_directory_contents(filepath)
        try:
            with open(paths["json_attrs"], encoding="utf-8") as file:
                weights = json.load(file)
            with open(
                paths["unigrams"], encoding=unigram_encoding or "utf-8", errors="surrogateescape"
            ) as file:
                words = file.read().splitlines()
        except ValueError as error:
            raise LanguageModelError(
                f"{filepath!r} cannot be read ({error}); save the decoder again"
            ) from error
        wanted = {"alpha", "beta", "unk_score_offset", "score_boundary"}
        if not isinstance(weights, dict) or set(weights) != wanted:
            raise LanguageModelError(f"{paths['json_attrs']!r} holds {weights!r}, expected {sorted(wanted)}")
        return cls(open_language_model(paths["kenlm"]), words, path=paths["kenlm"], **weights)


def listed_unigrams(path: str) -> set[str] | None:
    """The words of an ARPA file that have a backoff beside them, which pyctcdecode takes for known.

    None where there are none, or where the file is not a plain one on this machine whose name ends in .arpa.
    """
    if not path.endswith(".arpa") or not os.path.isfile(path):
        return None
    words: set[str] = set()
    inside = False
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for line in map(str.strip, file):
            if line == "\\2-grams:":
                break
            inside |= line == "\\1-grams:"
            fields = line.split("\t")
            if inside and len(fields) == 3:
                words.add(fields[1])
    return words or None
