"""A beam search set up once for many emissions: what it finds, as transcripts with frames and confidences.

The search itself is in ``beam``; here the columns of an emission become its labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from w2v_ray.text.alphabet import build_alphabet
from w2v_ray.text.beam import BeamSearchDecoderCTC, Hypothesis
from w2v_ray.text.confidence import SpelledWord, Token, score_characters, score_words, text_confidence
from w2v_ray.text.fusion import LanguageModel
from w2v_ray.text.greedy import CTCLabels
from w2v_ray.text.transcript import Transcript

__all__ = ["BeamSearch", "SearchOptions"]

_WORD_START = "\u2581"  # begins the pieces that begin a word, where labels are pieces of words


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How wide to search, and for what; as of BeamSearchDecoderCTC."""

    beam_width: int = 100
    beam_prune_logp: float = -10.0
    token_min_logp: float = -5.0
    hotwords: tuple[str, ...] = ()
    hotword_weight: float = 10.0


class BeamSearch:
    """Decodes emissions of one model, with or without a language model.

    Args:
        labels: What the columns of the emissions stand for.
        language_model: What it weighs texts with; None: nothing.
        options: How to search.
    """

    def __init__(
        self, labels: CTCLabels, *, language_model: LanguageModel | None, options: SearchOptions
    ) -> None:
        self._tokenizer = labels.tokenizer
        # One column a label: others of the same token, as padded output layers have them, are left out.
        self._columns = np.unique(labels.merged)
        self._blank = int(np.flatnonzero(self._columns == labels.blank)[0])
        alphabet = build_alphabet([_label(labels, column) for column in self._columns.tolist()])
        self._search = BeamSearchDecoderCTC(alphabet, language_model)
        self._options = asdict(options)

    def decode(
        self,
        emissions: Sequence[NDArray[np.float32]],
        *,
        characters: bool = False,
        num_threads: int = 1,
    ) -> list[Transcript]:
        """Searches emissions of at least one frame each, without NaN.

        Args:
            emissions: Natural log-probabilities, shape (frames, columns) each.
            characters: Whether to score characters too.
            num_threads: Emissions that are searched at once.
        """
        taken = [self._taken(emission) for emission in emissions]
        found = self._search.decode_hypotheses(
            taken, prune_history=True, num_threads=num_threads, **self._options
        )
        return [
            self._transcript(emission, hypotheses[0], characters)
            for emission, hypotheses in zip(taken, found, strict=True)
        ]

    def hypotheses(self, emission: NDArray[np.float32], *, n_best: int) -> list[Hypothesis]:
        """The best texts of one emission, as the search itself gives them."""
        return self._search.decode_hypotheses([self._taken(emission)], n_best=n_best, **self._options)[0]

    def _taken(self, emission: NDArray[np.float32]) -> NDArray[np.float32]:
        # No probability at all is a number that the search takes, far below what it keeps.
        return np.maximum(emission[:, self._columns], np.float32(-1e4))

    def _transcript(self, emission: NDArray[np.float32], found: Hypothesis, characters: bool) -> Transcript:
        tokens: list[list[Token]] = [[] for _ in found.words]
        position = 0
        for label, column, start, end, word in found.tokens:
            if word >= 0:
                # Where two ways to a text merge, its frames are of one of them: they are kept in order here.
                start = max(start, position)
                position = end = max(start, end)
                tokens[word].append(Token(label.removeprefix(_WORD_START), column, start, end))
        spelled = [
            SpelledWord(word, tuple(own)) for (word, _), own in zip(found.words, tokens, strict=True) if own
        ]
        words = score_words(emission, spelled, blank=self._blank)
        text = self._tokenizer.replace_word_delimiter_char.join(word.word for word in words)
        return Transcript(
            text=self._tokenizer.finish_text(text),
            confidence=text_confidence(words),
            words=words,
            characters=score_characters(emission, spelled) if characters else None,
            logit_score=found.logit_score,
            lm_score=found.lm_score,
        )


def _label(labels: CTCLabels, column: int) -> str:
    if labels.is_blank[column]:
        return ""
    if labels.is_space[column]:
        return " "
    text = labels.texts[column]
    return text.lower() if labels.tokenizer.do_lower_case else text
