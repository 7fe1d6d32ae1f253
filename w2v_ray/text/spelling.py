"""A given text in the tokens of a vocabulary; the characters that it does not have keep their place."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from w2v_ray.text.greedy import CTCLabels

__all__ = ["Spelling"]

_COMPOSED = 3  # code points that Unicode may compose to one letter


class Spelling:
    """Spells words in the columns of an emission.

    A character is looked up as it is, then composed, then as a capital and as a small letter; after that,
    one that stands for several, such as a ligature, is spelled by those. Where the vocabulary has tokens of
    several characters the longest that fits is taken.

    Args:
        labels: What the columns stand for. Special tokens are not spelled with.
    """

    def __init__(self, labels: CTCLabels) -> None:
        tokenizer = labels.tokenizer
        special = set(tokenizer.all_special_tokens)
        self._columns = {token: index for token, index in tokenizer.encoder.items() if token not in special}
        self._longest = max(map(len, self._columns), default=1)
        self._found: dict[str, tuple[int, ...]] = {}
        self.labels = labels
        self.blank = int(labels.is_blank.argmax())
        """The column of the blank."""
        space = " " if tokenizer.word_delimiter_token is None else tokenizer.word_delimiter_token
        column = tokenizer.encoder.get(space)
        self.delimiter = None if column == self.blank else column
        """The column between two words; null where the vocabulary has none."""

    def spell(self, word: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The pieces of a word in order and the columns of each, none where the vocabulary has it not."""
        begin = 0
        while begin < len(word):
            for size in range(min(max(self._longest, _COMPOSED), len(word) - begin), 0, -1):
                piece = word[begin : begin + size]
                columns = self._look_up(piece)
                if columns or size == 1:
                    yield piece, columns
                    begin += size
                    break

    def _look_up(self, piece: str) -> tuple[int, ...]:
        if piece not in self._found:
            self._found[piece] = next(self._spellings(piece), ())
        return self._found[piece]

    def _spellings(self, piece: str) -> Iterator[tuple[int, ...]]:
        composed = unicodedata.normalize("NFC", piece)
        for form in (piece, composed, composed.upper(), composed.lower()):
            if form in self._columns:
                yield (self._columns[form],)
        if len(piece) == 1:
            compatible = unicodedata.normalize("NFKC", piece)
            for form in (piece.upper(), compatible, compatible.upper(), compatible.lower()):
                if all(letter in self._columns for letter in form):
                    yield tuple(self._columns[letter] for letter in form)
