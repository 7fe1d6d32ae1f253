"""What a decoder makes of an emission: a text, its words and characters, each with frames and a confidence.

Frames are half-open ranges, counted from the start of the emission.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Character", "Transcript", "Word"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A recognised word."""

    word: str
    start_frame: int
    end_frame: int
    confidence: float
    """In [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Character:
    """A recognised character, or whatever else one token of the vocabulary spells."""

    char: str
    start_frame: int
    end_frame: int
    confidence: float
    """In [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What was recognised. Words and characters come in order and do not overlap."""

    text: str
    confidence: float | None
    """In [0, 1]; null where there are no words."""
    words: list[Word]
    characters: list[Character] | None = None
    """Those of the words, in order; null where they were not asked for."""
    logit_score: float | None = None
    """Natural log-probability of the text by the emission alone; null where text is decoded greedily."""
    lm_score: float | None = None
    """The same with what language model and hotwords add; null where text is decoded greedily."""
