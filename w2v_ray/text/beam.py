"""CTC beam search with a language model, word frames and hotwords: pyctcdecode's, in C++."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Unpack

import numpy as np
from numpy.typing import NDArray

from w2v_ray.errors import ConfigError, LanguageModelError
from w2v_ray.text._beam import BeamSearch, NgramModel, Trie, may_be_probabilities
from w2v_ray.text.alphabet import Alphabet, build_alphabet, covers
from w2v_ray.text.fusion import FusionWeights, LanguageModel, listed_unigrams
from w2v_ray.text.language_model import open_language_model

__all__ = ["BeamSearchDecoderCTC", "Hypothesis", "OutputBeam", "TextToken", "build_ctcdecoder"]

OutputBeam = tuple[str, Any, list[tuple[str, tuple[int, int]]], float, float]
"""Text, the language model's state after it, words with their frames, logit score, score with everything."""

_ALPHABET_FILE = "alphabet.json"
_MODEL_FOLDER = "language_model"
_ALL = 2**31  # hypotheses; more than any beam_width keeps

_logger = logging.getLogger(__name__)


class TextToken(NamedTuple):
    """One label of a hypothesis."""

    label: str
    column: int
    """Of the logits."""
    start: int
    """The frame in which the label begins."""
    end: int
    """The frame after the last one in a row that has it; blanks behind it are not its."""
    word: int
    """Which word it is part of; -1 for a space."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One text that an utterance may be."""

    text: str
    words: list[tuple[str, tuple[int, int]]]
    """Each word with its first frame and the one after its last."""
    tokens: list[TextToken]
    """The labels that spell the text, in order, with one space between words where spaces are labels."""
    logit_score: float
    """The sum of the log-probabilities of the paths that spell it and were not pruned."""
    lm_score: float
    """What beams are ranked by: logit_score with the language model and hotwords; natural logarithm."""
    last_lm_state: Any
    """For ``lm_start_state`` of what follows; None without a language model."""


class BeamSearchDecoderCTC:
    """Decodes logits into text. Any number of threads may use one; instances can be pickled.

    Args:
        alphabet: What the columns of the logits are.
        language_model: Its weights can be changed with `reset_params`, or for one call.
    """

    def __init__(self, alphabet: Alphabet, language_model: LanguageModel | None = None) -> None:
        self._alphabet = alphabet
        self._language_model = language_model
        self._search = BeamSearch(alphabet.labels, alphabet.is_bpe)
        self._num_labels = len(alphabet.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._alphabet, self._language_model)

    @property
    def alphabet(self) -> Alphabet:
        """The labels."""
        return self._alphabet

    @property
    def language_model(self) -> LanguageModel | None:
        """The language model with its weights."""
        return self._language_model

    def reset_params(
        self,
        alpha: float | None = None,
        beta: float | None = None,
        unk_score_offset: float | None = None,
        lm_score_boundary: bool | None = None,
    ) -> None:
        """Changes how the language model counts, for all later calls; None leaves a value as it is."""
        if self._language_model is not None:
            self._language_model.reset_params(
                alpha=alpha, beta=beta, unk_score_offset=unk_score_offset, score_boundary=lm_score_boundary
            )

    def cleanup(self) -> None:
        """Does nothing: a decoder's memory goes with it. Here for callers of pyctcdecode."""

    def decode(
        self,
        logits: NDArray[Any],
        beam_width: int = 100,
        beam_prune_logp: float = -10.0,
        token_min_logp: float = -5.0,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float = 10.0,
        lm_start_state: Any = None,
        **weights: Unpack[FusionWeights],
    ) -> str:
        """The best text of one utterance.

        Args:
            logits: (frames, labels) of float16, float32 or float64: logits, log-probabilities, or
                probabilities, which are known by their sums.
            beam_width: How many beams go on after each frame, at least 1.
            beam_prune_logp: Beams that are worse than the best by more than this are dropped.
            token_min_logp: Labels less likely than this are passed over, but for a frame's likeliest.
            hotwords: Words to favour, whether or not the language model has them. Of several words in one
                string each counts for itself.
            hotword_weight: Added for each hotword in the text.
            lm_start_state: Where the language model begins, in place of the begin of a sentence.
            **weights: ``alpha``, ``beta``, ``unk_score_offset``, ``lm_score_boundary`` for this call alone.

        Raises:
            ValueError: The logits are no such array, or hold NaN or inf; an option is out of bounds.
        """
        found = self._decode(
            [logits],
            (beam_width, beam_prune_logp, token_min_logp, True, hotwords, hotword_weight),
            weights,
            lm_start_state=lm_start_state,
            n_best=1,
        )
        return str(found[0][0][0])

    def decode_beams(
        self,
        logits: NDArray[Any],
        beam_width: int = 100,
        beam_prune_logp: float = -10.0,
        token_min_logp: float = -5.0,
        prune_history: bool = False,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float = 10.0,
        lm_start_state: Any = None,
        **weights: Unpack[FusionWeights],
    ) -> list[OutputBeam]:
        """All beams of one utterance, the best first; arguments as of `decode`.

        Args:
            prune_history: Whether of beams that the language model cannot tell apart any more only the best
                goes on: faster, and the same best text, but fewer others.
        """
        found = self._decode(
            [logits],
            (beam_width, beam_prune_logp, token_min_logp, prune_history, hotwords, hotword_weight),
            weights,
            lm_start_state=lm_start_state,
        )
        return [beam[:5] for beam in found[0]]

    def decode_batch(
        self,
        pool: Any,
        logits_list: Iterable[NDArray[Any]],
        beam_width: int = 100,
        beam_prune_logp: float = -10.0,
        token_min_logp: float = -5.0,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float = 10.0,
        *,
        num_threads: int | None = None,
        **weights: Unpack[FusionWeights],
    ) -> list[str]:
        """The best text of each utterance; other arguments as of `decode`.

        Args:
            pool: None, or a pool whose number of workers is how many threads are used; it gets no work.
            logits_list: One (frames, labels) each.
            num_threads: How many threads to use, in place of the pool's number.
        """
        found = self._decode(
            logits_list,
            (beam_width, beam_prune_logp, token_min_logp, True, hotwords, hotword_weight),
            weights,
            n_best=1,
            num_threads=_num_threads(pool, num_threads),
        )
        return [beams[0][0] for beams in found]

    def decode_beams_batch(
        self,
        pool: Any,
        logits_list: Iterable[NDArray[Any]],
        beam_width: int = 100,
        beam_prune_logp: float = -10.0,
        token_min_logp: float = -5.0,
        prune_history: bool = False,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float = 10.0,
        *,
        num_threads: int | None = None,
        **weights: Unpack[FusionWeights],
    ) -> list[list[tuple[str, list[tuple[str, tuple[int, int]]], float, float]]]:
        """All beams of each utterance, without the language model's state; arguments as of `decode_batch`.

        Args:
            pool: None, or a pool of as many workers as threads are wanted.
            logits_list: One (frames, labels) each.
            num_threads: How many threads to use.
        """
        found = self._decode(
            logits_list,
            (beam_width, beam_prune_logp, token_min_logp, prune_history, hotwords, hotword_weight),
            weights,
            num_threads=_num_threads(pool, num_threads),
        )
        return [[(text, words, logit, lm) for text, _, words, logit, lm, _ in beams] for beams in found]

    def decode_hypotheses(
        self,
        logits_list: Iterable[NDArray[Any]],
        *,
        n_best: int = 1,
        beam_width: int = 100,
        beam_prune_logp: float = -10.0,
        token_min_logp: float = -5.0,
        prune_history: bool = False,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float = 10.0,
        lm_start_state: Any = None,
        num_threads: int = 1,
        **weights: Unpack[FusionWeights],
    ) -> list[list[Hypothesis]]:
        """The best texts of each utterance with the frames of every label; arguments as of `decode`.

        Args:
            logits_list: One (frames, labels) each.
            n_best: How many to return at most; there may be fewer.
            lm_start_state: Where the language model begins, for each utterance.
            num_threads: How many threads to use.
        """
        found = self._decode(
            logits_list,
            (beam_width, beam_prune_logp, token_min_logp, prune_history, hotwords, hotword_weight),
            weights,
            lm_start_state=lm_start_state,
            n_best=_whole("n_best", n_best),
            num_threads=num_threads,
            with_pieces=True,
        )
        return [
            [
                Hypothesis(text, words, list(map(TextToken._make, tokens)), logit, lm, state)
                for text, state, words, logit, lm, tokens in beams
            ]
            for beams in found
        ]

    def _decode(
        self,
        logits_list: Iterable[NDArray[Any]],
        options: tuple[int, float, float, bool, Iterable[str] | None, float],
        weights: FusionWeights,
        *,
        lm_start_state: Any = None,
        n_best: int = _ALL,
        num_threads: int = 1,
        with_pieces: bool = False,
    ) -> list[list[Any]]:
        beam_width, beam_prune_logp, token_min_logp, prune_history, hotwords, hotword_weight = options
        prepared = [self._prepared(logits) for logits in logits_list]
        in_full = n_best > 1  # of many beams some have nearly equal scores: round as NumPy does
        model = self._language_model
        given: dict[str, Any] = {name: value for name, value in weights.items() if value is not None}
        if unknown := set(given) - set(FusionWeights.__annotations__):
            raise TypeError(f"{sorted(unknown)[0]} is no option of the search")
        return self._search.search(
            [array if are or not in_full else _log_probs(array) for array, are in prepared],
            are_log_probs=in_full,
            are_probabilities=[are for _, are in prepared],
            model=model.model if model else None,
            unigrams=model.unigrams if model else None,
            alpha=given.get("alpha", model.alpha if model else 0.0),
            beta=given.get("beta", model.beta if model else 0.0),
            unk_score_offset=given.get("unk_score_offset", model.unk_score_offset if model else 0.0),
            score_boundary=given.get("lm_score_boundary", model.score_boundary if model else True),
            beam_width=_whole("beam_width", beam_width),
            beam_prune_logp=_not_positive("beam_prune_logp", beam_prune_logp),
            token_min_logp=float(token_min_logp),
            prune_history=bool(prune_history),
            hotwords=_hotword_trie(hotwords),
            hotword_weight=float(hotword_weight),
            start_state=lm_start_state if model else None,
            n_best=n_best,
            with_pieces=with_pieces,
            num_threads=_whole("num_threads", num_threads),
        )

    def _prepared(self, logits: NDArray[Any]) -> tuple[NDArray[Any], bool]:
        """An array that the search can read, and whether it holds probabilities."""
        logits = np.asarray(logits)
        if logits.ndim != 2 or logits.shape[1] != self._num_labels:
            raise ValueError(
                f"the logits have shape {logits.shape}, expected (frames, {self._num_labels}), a column for "
                "each label and the blank; pass one utterance's logits of the model that the labels belong to"
            )
        if self._num_labels == 0:
            raise ValueError("the alphabet has no labels, expected at least the blank; build one with labels")
        if logits.dtype.kind not in "fiub":
            raise ValueError(f"the logits are of type {logits.dtype}, expected float16, float32 or float64")
        is_native = logits.dtype.char in "efd" and logits.dtype.isnative
        array = np.ascontiguousarray(logits if is_native else logits.astype(np.float64))
        if not may_be_probabilities(array):
            return array, False
        with np.errstate(all="ignore"):  # pyctcdecode's rule, with the rounding of NumPy's sums
            return array, math.isclose(logits.sum(axis=1).mean(), 1)

    def save_to_dir(self, filepath: str) -> None:
        """Writes ``alphabet.json`` and, of a language model, the folder ``language_model`` into a folder."""
        with open(os.path.join(filepath, _ALPHABET_FILE), "w", encoding="utf-8") as file:
            file.write(self._alphabet.dumps())
        if self._language_model is not None:
            folder = os.path.join(filepath, _MODEL_FOLDER)
            os.makedirs(folder)
            self._language_model.save_to_dir(folder)

    @staticmethod
    def parse_directory_contents(filepath: str) -> dict[str, str | None]:
        """The paths of ``alphabet`` and ``language_model``, the latter None if there is none.

        Raises:
            LanguageModelError: There is no alphabet, or there is something else.
        """
        found = sorted(name for name in os.listdir(filepath) if not name.startswith((".", "__")))
        if _ALPHABET_FILE not in found or (len(found) > 1 and _MODEL_FOLDER not in found):
            raise LanguageModelError(
                f"{filepath!r} holds {found}, expected {_ALPHABET_FILE} and at most {_MODEL_FOLDER} beside it"
            )
        model = os.path.join(filepath, _MODEL_FOLDER) if len(found) > 1 else None
        return {"alphabet": os.path.join(filepath, _ALPHABET_FILE), "language_model": model}

    @classmethod
    def load_from_dir(cls, filepath: str, unigram_encoding: str | None = None) -> BeamSearchDecoderCTC:
        """Reads what `save_to_dir` or pyctcdecode wrote."""
        paths = cls.parse_directory_contents(filepath)
        with open(str(paths["alphabet"]), encoding="utf-8") as file:
            alphabet = Alphabet.loads(file.read())
        folder = paths["language_model"]
        return cls(alphabet, LanguageModel.load_from_dir(folder, unigram_encoding) if folder else None)

    @classmethod
    def load_from_hf_hub(
        cls, model_id: str, cache_dir: str | None = None, **kwargs: Any
    ) -> BeamSearchDecoderCTC:
        """Downloads a repository of the Hugging Face hub that holds what `save_to_dir` writes, and reads it.

        Args:
            model_id: Such as ``owner/name``.
            cache_dir: Where to keep it; huggingface_hub's cache if not given.
            **kwargs: Of ``huggingface_hub.snapshot_download``, such as ``revision``.
        """
        from huggingface_hub import snapshot_download

        return cls.load_from_dir(snapshot_download(model_id, cache_dir=cache_dir, **kwargs))


def build_ctcdecoder(
    labels: Sequence[str],
    kenlm_model_path: str | None = None,
    unigrams: Collection[str] | None = None,
    alpha: float = 0.5,
    beta: float = 1.5,
    unk_score_offset: float = -10.0,
    lm_score_boundary: bool = True,
) -> BeamSearchDecoderCTC:
    """Builds a decoder.

    Args:
        labels: The model's vocabulary in the order of its columns; see `build_alphabet`.
        kenlm_model_path: A path or URL of any file that `open_language_model` reads.
        unigrams: The words that are known. If not given, those of the model; KenLM's binary files do not
            list theirs.
        alpha: Weight of the language model's log-probabilities.
        beta: Added for each word.
        unk_score_offset: Added, in log10, for each word that is not known.
        lm_score_boundary: Whether to score the begin and the end of the sentence.

    Raises:
        ConfigError: The labels cannot be an alphabet.
        LanguageModelError: The language model cannot be read.
    """
    alphabet = build_alphabet(labels)
    if unigrams is not None and not covers(alphabet, unigrams):
        _logger.warning("a fifth or more of the characters of the unigrams are no labels")
    if kenlm_model_path is None:
        return BeamSearchDecoderCTC(alphabet)
    path = os.fspath(kenlm_model_path)
    model = open_language_model(path)
    weights: dict[str, Any] = {"alpha": alpha, "beta": beta, "unk_score_offset": unk_score_offset}
    weights["score_boundary"] = lm_score_boundary
    source = path if os.path.isfile(path) else None
    if unigrams is None:
        unigrams = listed_unigrams(path)
        if unigrams is None and isinstance(model, NgramModel):
            return BeamSearchDecoderCTC(alphabet, LanguageModel.of_all_words(model, path=source, **weights))
    return BeamSearchDecoderCTC(alphabet, LanguageModel(model, unigrams, path=source, **weights))


def _log_probs(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Log-softmax in the type of the logits, as pyctcdecode has it, clipped in float64."""
    with np.errstate(all="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
        log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        clipped: NDArray[np.float64] = np.clip(log_probs.astype(np.float64), math.log(1e-15), 0)
    return clipped


def _hotword_trie(hotwords: Iterable[str] | None) -> Trie | None:
    words = [word for phrase in hotwords or () for word in phrase.split()]
    return Trie(words) if words else None


def _num_threads(pool: Any, num_threads: int | None) -> int:
    if num_threads is not None or pool is None:
        return num_threads or 1
    workers = getattr(pool, "_processes", None) or getattr(pool, "_max_workers", None)
    return int(workers or os.cpu_count() or 1)


def _whole(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ConfigError(f"{name} is {value!r}, expected a whole number of at least 1")
    return min(int(value), _ALL)


def _not_positive(name: str, value: float) -> float:
    if not value <= 0:
        raise ConfigError(
            f"{name} is {value!r}, expected a number of at most 0: how much worse than the best"
        )
    return float(value)
