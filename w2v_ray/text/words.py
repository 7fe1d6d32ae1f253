"""A CTC path of tokens as characters and words, each with the frames it covers.

Frames are half-open ranges: the first frame, and the last one plus one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

__all__ = [
    "Span",
    "Wav2Vec2CTCTokenizerOutput",
    "clean_up_spaces",
    "collapse",
    "join_outputs",
    "join_words",
    "offsets",
]

_SPACED_PUNCTUATION = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {tail}", tail) for tail in ("n't", "'m", "'s", "'ve", "'re")),
)


@dataclass(slots=True)
class Wav2Vec2CTCTokenizerOutput:
    """A text with the frames of its characters and words; for a batch, lists of them."""

    text: Any
    """The text, or a list of texts."""
    char_offsets: Any = None
    """Dicts of ``char``, ``start_offset``, ``end_offset`` in frames, if asked for."""
    word_offsets: Any = None
    """Dicts of ``word``, ``start_offset``, ``end_offset`` in frames, if asked for."""

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


@dataclass(frozen=True, slots=True)
class Span:
    """A token or a word, and its frames."""

    text: str
    start: int
    end: int


def collapse(tokens: Sequence[str], *, blank: str | None, group: bool = True) -> list[Span]:
    """Merges equal neighbours, unless ``group`` is false, and leaves out blanks."""
    runs = ((token, len(list(run))) for token, run in groupby(tokens)) if group else ((t, 1) for t in tokens)
    spans, frame = [], 0
    for token, frames in runs:
        if token != blank:
            spans.append(Span(token, frame, frame + frames))
        frame += frames
    return spans


def join_words(characters: Sequence[Span], delimiter: str) -> list[Span]:
    """The words between delimiters, from the first frame of each to its last."""
    words = []
    for is_delimiter, run in groupby(characters, key=lambda span: span.text == delimiter):
        if not is_delimiter:
            spans = list(run)
            words.append(Span("".join(span.text for span in spans), spans[0].start, spans[-1].end))
    return words


def offsets(name: str, spans: Iterable[Span]) -> list[dict[str, str | int]]:
    """Spans as the dicts that a tokenizer returns, with the text under ``name``."""
    return [{name: span.text, "start_offset": span.start, "end_offset": span.end} for span in spans]


def join_outputs(outputs: Sequence[Wav2Vec2CTCTokenizerOutput]) -> Wav2Vec2CTCTokenizerOutput:
    """The outputs of a batch as one of lists; what was not asked for stays null."""
    columns = {
        name: [output[name] for output in outputs] for name in ("text", "char_offsets", "word_offsets")
    }
    asked = {name: column for name, column in columns.items() if any(value is not None for value in column)}
    return Wav2Vec2CTCTokenizerOutput(**asked)


def clean_up_spaces(text: str) -> str:
    """Removes the spaces that English does not write before punctuation and contractions."""
    for spaced, joined in _SPACED_PUNCTUATION:
        text = text.replace(spaced, joined)
    return text
