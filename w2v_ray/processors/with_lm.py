"""A processor that decodes with an n-gram language model: the layout of checkpoints that carry one.

Beside the files of a processor lie ``alphabet.json`` and ``language_model/`` with the n-grams, their known
words (``unigrams.txt``) and the weights of the search (``attrs.json``).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from w2v_ray.errors import CheckpointError
from w2v_ray.hub import checkpoint_file, checkpoint_folder
from w2v_ray.processors.processor import FeatureExtractor, Processor, extractor_of, load_parts
from w2v_ray.text.alphabet import Alphabet
from w2v_ray.text.beam import BeamSearchDecoderCTC
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

__all__ = ["ALPHABET_FILE", "Wav2Vec2DecoderWithLMOutput", "Wav2Vec2ProcessorWithLM", "load_decoder"]

_log = logging.getLogger(__name__)

ALPHABET_FILE = "alphabet.json"
_LANGUAGE_MODEL = "language_model"
_OF_THE_SEARCH = ("alpha", "beta", "score_boundary", "unk_score_offset")
_PADDING = -100.0  # fills the logits of shorter rows up
# What the decoder takes for the blank and for the unknown character, however they are bracketed.
_BLANK = re.compile(r"[<\[]pad[>\]]", re.IGNORECASE)
_UNKNOWN = re.compile(r"[<\[]unk[>\]]", re.IGNORECASE)
_UNKNOWN_LABEL, _DELIMITER_LABEL = "\u2047", " "
_UNKNOWN_PIECE, _NO_PIECE = "\u2581\u2047\u2581", ""  # pieces of words tell by themselves where one begins


@dataclass
class Wav2Vec2DecoderWithLMOutput:
    """What decoding with a language model found; also read by position or by key.

    For one recording each field is one value, or a list of the ``n_best``; for a batch, lists of these.
    """

    text: Any
    """The text."""
    logit_score: Any = None
    """The log-probability of its path under the model alone."""
    lm_score: Any = None
    """The score that the search ranks by: ``logit_score`` with that of the language model and hotwords."""
    word_offsets: Any = None
    """Dicts of ``word``, ``start_offset``, ``end_offset`` in frames, if asked for."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are set, in order."""
        return tuple(getattr(self, name) for name in self)

    def keys(self) -> list[str]:
        """The names of the fields that are set, in order."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __getitem__(self, key: str | int | slice) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]


class Wav2Vec2ProcessorWithLM(Processor):
    """A feature extractor, a CTC tokenizer and a beam search with a language model behind one call.

    Args:
        feature_extractor: For audio, of either family.
        tokenizer: For texts and ids.
        decoder: A ``w2v_ray.text.BeamSearchDecoderCTC``, or one of pyctcdecode (extra ``pyctcdecode``),
            which then decodes instead.

    Raises:
        TypeError: One is of another class.
        ValueError: The decoder's alphabet lacks tokens of the tokenizer.
    """

    def __init__(
        self, feature_extractor: FeatureExtractor, tokenizer: Wav2Vec2CTCTokenizer, decoder: Any
    ) -> None:
        super().__init__(feature_extractor, tokenizer)
        theirs = sys.modules.get("pyctcdecode")  # loaded where a decoder of it exists
        if not isinstance(decoder, BeamSearchDecoderCTC) and not (
            theirs is not None and isinstance(decoder, theirs.BeamSearchDecoderCTC)
        ):
            raise TypeError(
                f"decoder is a {type(decoder).__name__}, expected a BeamSearchDecoderCTC of w2v_ray.text or "
                "of pyctcdecode; pass it third"
            )
        if missing := self.get_missing_alphabet_tokens(decoder, tokenizer):
            raise ValueError(
                f"the decoder's alphabet lacks {sorted(missing)}, which the tokenizer has; "
                "build the decoder with all tokens of the tokenizer, in the order of their ids"
            )
        self.decoder = decoder

    @classmethod
    def from_pretrained(
        cls,
        model: str | PathLike[str],
        *,
        revision: str | None = None,
        unigram_encoding: str = "utf-8",
        **overrides: Any,
    ) -> Self:
        """Loads a folder or hub id.

        Args:
            model: It has ``alphabet.json`` and, unless it decodes without a language model,
                ``language_model/``.
            revision: A branch, tag or commit of the hub repository.
            unigram_encoding: Of ``unigrams.txt``.
            overrides: ``alpha``, ``beta``, ``unk_score_offset`` and ``score_boundary`` of the search, and
                constructor arguments of the feature extractor and of the tokenizer, that replace what the
                files say.

        Raises:
            CheckpointError: A file is missing or malformed, or does not fit the others.
            TypeError: An override is unknown.
        """
        search = {name: overrides.pop(name) for name in _OF_THE_SEARCH if name in overrides}
        extractor = extractor_of(model, revision)
        parts = load_parts(model, revision, extractor, overrides, known_besides=_OF_THE_SEARCH)
        decoder = load_decoder(model, revision=revision, unigram_encoding=unigram_encoding)
        _reset(decoder, search.pop("score_boundary", None), **search)
        try:
            return cls(*parts, decoder)
        except ValueError as error:
            raise CheckpointError(f"{ALPHABET_FILE} of model {str(model)!r} does not fit: {error}") from None

    def _save(self, folder: Path) -> tuple[str, ...]:
        written = super()._save(folder)
        # Not over what is there: it may be what this decoder was loaded from.
        with TemporaryDirectory(prefix=".decoder-", dir=folder) as made:
            self.decoder.save_to_dir(made)
            for name in (ALPHABET_FILE, _LANGUAGE_MODEL):
                old, new = folder / name, Path(made, name)
                if old.is_dir():
                    shutil.rmtree(old)
                if new.exists():
                    new.replace(old)
                    paths = sorted(old.iterdir()) if old.is_dir() else [old]
                    written += tuple(str(path) for path in paths)
        return written

    @property
    def language_model(self) -> Any:
        """The decoder's language model; None where it decodes without one."""
        return self.decoder._language_model  # both decoders have it under this name

    @staticmethod
    def get_missing_alphabet_tokens(decoder: Any, tokenizer: Wav2Vec2CTCTokenizer) -> set[str]:
        """The tokens of a tokenizer that a decoder's alphabet has no label for."""
        alphabet = decoder._alphabet
        unknown, delimiter = (
            (_UNKNOWN_PIECE, _NO_PIECE) if alphabet.is_bpe else (_UNKNOWN_LABEL, _DELIMITER_LABEL)
        )

        def label(token: str) -> str:
            if _BLANK.fullmatch(token):
                return ""
            if token == tokenizer.word_delimiter_token:
                return delimiter
            return unknown if _UNKNOWN.fullmatch(token) else token

        return {label(token) for token in tokenizer.get_vocab()} - set(alphabet.labels)

    def decode(
        self,
        logits: Any,
        beam_width: int | None = None,
        beam_prune_logp: float | None = None,
        token_min_logp: float | None = None,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        unk_score_offset: float | None = None,
        lm_score_boundary: bool | None = None,
        output_word_offsets: bool = False,
        n_best: int = 1,
    ) -> Wav2Vec2DecoderWithLMOutput:
        """Finds the best texts of a recording. Null leaves an option as it is.

        Args:
            logits: Of the model, shape (num_frames, vocab_size), or its probabilities.
            beam_width: How many beams go on after a frame.
            beam_prune_logp: Beams that are worse than the best by more than this, below 0, are left.
            token_min_logp: Tokens of less log-probability are not tried, but for the best of a frame.
            hotwords: Words that are favoured, known to the language model or not.
            hotword_weight: How much.
            alpha: The weight of the language model; it stays for later calls, as do the next three.
            beta: What each word adds to the score.
            unk_score_offset: What an unknown word adds to the score, below 0.
            lm_score_boundary: Whether the language model sees where the text begins and ends.
            output_word_offsets: Whether to return the frames of words too.
            n_best: How many texts to return; fewer come where the search found fewer. With more than one
                the fields are lists.

        Raises:
            ValueError: ``n_best`` is less than 1, or as of the decoder.
        """
        _check(n_best)
        _reset(self.decoder, lm_score_boundary, alpha=alpha, beta=beta, unk_score_offset=unk_score_offset)
        options = _given(
            beam_width=beam_width,
            beam_prune_logp=beam_prune_logp,
            token_min_logp=token_min_logp,
            hotwords=hotwords,
            hotword_weight=hotword_weight,
        )
        beams = self.decoder.decode_beams(np.asarray(logits), **options)
        found = _lists([(text, *scored) for text, _, *scored in beams], n_best, output_word_offsets)
        return Wav2Vec2DecoderWithLMOutput(*found)

    def batch_decode(
        self,
        logits: Any,
        pool: Any = None,
        num_processes: int | None = None,
        beam_width: int | None = None,
        beam_prune_logp: float | None = None,
        token_min_logp: float | None = None,
        hotwords: Iterable[str] | None = None,
        hotword_weight: float | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        unk_score_offset: float | None = None,
        lm_score_boundary: bool | None = None,
        output_word_offsets: bool = False,
        n_best: int = 1,
    ) -> Wav2Vec2DecoderWithLMOutput:
        """Finds the best texts of each recording.

        Args:
            logits: Shape (batch, num_frames, vocab_size), or a sequence of (num_frames, vocab_size); frames
                with a value of -100 are padding, and left out.
            pool: A ``multiprocessing`` pool. A decoder of pyctcdecode uses it, and needs one that forks and
                is younger than the processor; the decoder of this package uses as many threads instead.
            num_processes: Without a pool, how many threads to use, or with a decoder of pyctcdecode how many
                new processes; null: all CPUs, or with pyctcdecode this process alone.
            beam_width: As of ``decode``, and the options after it.
            beam_prune_logp: See ``beam_width``.
            token_min_logp: See ``beam_width``.
            hotwords: See ``beam_width``.
            hotword_weight: See ``beam_width``.
            alpha: See ``beam_width``.
            beta: See ``beam_width``.
            unk_score_offset: See ``beam_width``.
            lm_score_boundary: See ``beam_width``.
            output_word_offsets: See ``beam_width``.
            n_best: See ``beam_width``.

        Returns:
            Fields that are lists of what ``decode`` returns, an item for each recording.

        Raises:
            ValueError: As of ``decode``.
        """
        _check(n_best)
        _reset(self.decoder, lm_score_boundary, alpha=alpha, beta=beta, unk_score_offset=unk_score_offset)
        options = _given(
            beam_width=beam_width,
            beam_prune_logp=beam_prune_logp,
            token_min_logp=token_min_logp,
            hotwords=hotwords,
            hotword_weight=hotword_weight,
        )
        if pool is not None and num_processes is not None:
            _log.warning("num_processes is ignored: the pool that was passed has its own number")
        rows = [_without_padding(np.asarray(row)) for row in logits]
        made: Any = nullcontext(pool)
        if pool is None and isinstance(self.decoder, BeamSearchDecoderCTC):
            options["num_threads"] = num_processes or len(os.sched_getaffinity(0))
        elif pool is None and num_processes is not None:
            made = multiprocessing.get_context("fork").Pool(num_processes)
        with made as workers:
            found = self.decoder.decode_beams_batch(workers, rows, **options)
        columns = [_lists(beams, n_best, output_word_offsets) for beams in found]
        text, logit_score, lm_score, offsets = ([row[index] for row in columns] for index in range(4))
        return Wav2Vec2DecoderWithLMOutput(
            text, logit_score, lm_score, offsets if output_word_offsets else None
        )


def load_decoder(
    model: str | PathLike[str], *, revision: str | None = None, unigram_encoding: str = "utf-8"
) -> BeamSearchDecoderCTC:
    """The beam search of a checkpoint, with its language model if it has one.

    Raises:
        CheckpointError: There is no ``alphabet.json``, or a file is malformed.
    """
    folder = checkpoint_folder(str(model), (ALPHABET_FILE, f"{_LANGUAGE_MODEL}/*"), revision=revision)
    alphabet = checkpoint_file(folder, ALPHABET_FILE)
    assert alphabet is not None  # it is required
    try:
        if (folder / _LANGUAGE_MODEL).is_dir():
            return BeamSearchDecoderCTC.load_from_dir(str(folder), unigram_encoding)
        return BeamSearchDecoderCTC(Alphabet.loads(alphabet.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the decoder in {folder} cannot be read ({reason}); fetch it again") from error


def _reset(decoder: Any, lm_score_boundary: bool | None, **weights: float | None) -> None:
    numbers = {name: None if value is None else float(value) for name, value in weights.items()}
    decoder.reset_params(**numbers, lm_score_boundary=lm_score_boundary)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _check(n_best: int) -> None:
    if n_best < 1:
        raise ValueError(f"n_best is {n_best}, expected at least 1")


def _without_padding(logits: NDArray[Any]) -> NDArray[Any]:
    kept: NDArray[Any] = logits[(logits != _PADDING).all(axis=-1)]
    return kept


def _lists(beams: Sequence[Any], n_best: int, with_offsets: bool) -> tuple[Any, Any, Any, Any]:
    """Beams of text, word frames and both scores as columns; of one beam the values themselves."""
    texts, frames, logit_scores, lm_scores = ([beam[index] for beam in beams] for index in range(4))
    offsets = [
        [{"word": word, "start_offset": start, "end_offset": end} for word, (start, end) in words]
        for words in (frames if with_offsets else [])
    ]
    if n_best == 1:
        return texts[0], logit_scores[0], lm_scores[0], offsets[0] if with_offsets else None
    columns = (texts[:n_best], logit_scores[:n_best], lm_scores[:n_best])
    return *columns, offsets[:n_best] if with_offsets else None
