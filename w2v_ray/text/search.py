"""A beam search set up once for many emissions: what it finds, as transcripts with frames and confidences.

The search itself is in ``beam``. Here the columns of an emission become its labels, and its words become
those columns again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from w2v_ray.text.beam import Alphabet, BeamSearchDecoderCTC, LanguageModel
from w2v_ray.text.confidence import SpelledWord, place_characters, score_words, text_confidence
from w2v_ray.text.greedy import CTCLabels
from w2v_ray.text.transcript import Transcript

__all__ = ["BeamSearch", "SearchOptions"]

_WORD_START = "\u2581"  # begins the pieces that begin a word, where labels are pieces of words


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How wide to search, and for what."""

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
        texts = [self._text(labels, column) for column in self._columns.tolist()]
        alphabet = Alphabet.build_alphabet(texts)
        self._texts: list[str] = alphabet.labels
        self._blank = int(np.flatnonzero(self._columns == labels.blank)[0])
        self._search = BeamSearchDecoderCTC(alphabet, language_model)
        self._options = {
            "beam_width": options.beam_width,
            "beam_prune_logp": options.beam_prune_logp,
            "token_min_logp": options.token_min_logp,
            "hotwords": list(options.hotwords) or None,
            "hotword_weight": options.hotword_weight,
        }
        self._spell = cache(self._spell_anew)

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
            characters: Whether to place characters too.
            num_threads: Emissions that are searched at once.
        """
        taken = [np.ascontiguousarray(emission[:, self._columns]) for emission in emissions]
        found = self._search.decode_beams_batch(None, taken, num_threads=num_threads, **self._options)
        return [
            self._transcript(emission, beams[0], characters)
            for emission, beams in zip(taken, found, strict=True)
        ]

    def _transcript(self, emission: NDArray[np.float32], beam: Any, characters: bool) -> Transcript:
        *_, frames_of_words, logit_score, lm_score = beam
        spelled: list[SpelledWord] = []
        for word, (start, end) in frames_of_words:
            # Where two ways to a text merge, its frames are of one of them: they are kept in order here.
            start = max(start, spelled[-1].end_frame if spelled else 0)
            end = max(end, start)
            columns = self._spell(word)
            texts = tuple(self._texts[column].removeprefix(_WORD_START) for column in columns)
            spelled.append(SpelledWord(word, columns, texts, start, end))
        words = score_words(emission, spelled, blank=self._blank)
        joined = self._tokenizer.replace_word_delimiter_char.join(word.word for word in words)
        return Transcript(
            text=self._tokenizer.finish_text(joined),
            confidence=text_confidence(words),
            words=words,
            characters=place_characters(emission, spelled, blank=self._blank) if characters else None,
            logit_score=float(logit_score),
            lm_score=float(lm_score),
        )

    def _text(self, labels: CTCLabels, column: int) -> str:
        if labels.is_blank[column]:
            return ""
        if labels.is_space[column]:
            return " "
        text = labels.texts[column]
        return text.lower() if self._tokenizer.do_lower_case else text

    def _spell_anew(self, word: str) -> tuple[int, ...]:
        """The columns whose texts make the word: as few as can be, the first of those that begin words."""
        of_text = {text: column for column, text in enumerate(self._texts) if text.strip()}
        fewest: list[tuple[int, ...] | None] = [(), *([None] * len(word))]
        for end in range(1, len(word) + 1):
            for start in range(end):
                before = fewest[start]
                piece = word[start:end]
                column = of_text.get(piece)
                if start == 0:
                    column = of_text.get(_WORD_START + piece, column)
                if before is None or column is None:
                    continue
                best = fewest[end]
                if best is None or len(before) + 1 < len(best):
                    fewest[end] = (*before, column)
        spelled = fewest[-1]
        assert spelled is not None, f"the search made {word!r} of labels that do not spell it"
        return spelled
