"""Added tokens: those that a text is cut at before the rest is spelled out in single characters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["AddedToken", "AddedTokens"]


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token of more than a character, or one outside the vocabulary."""

    content: str
    single_word: bool = False
    """Whether it is a token only beside spaces or at an end of the text."""
    lstrip: bool = False
    """Whether it takes the white space before it."""
    rstrip: bool = False
    """Whether it takes the white space after it."""
    normalized: bool = False
    """Whether a lower-casing tokenizer lowers it."""
    special: bool = False
    """Whether ``skip_special_tokens`` leaves it out."""

    def __str__(self) -> str:
        return self.content


class AddedTokens:
    """The added tokens of a tokenizer.

    Args:
        by_id: Tokens by id.
    """

    def __init__(self, by_id: Mapping[int, AddedToken]) -> None:
        self._by_id = dict(by_id)
        self.ids = {token.content: index for index, token in self._by_id.items()}
        """Content to id."""
        # Texts are cut at forgotten tokens too: special ones among them stay whole, others are spelled.
        self._cuts = set(self.ids)
        self._compile()

    @property
    def by_id(self) -> dict[int, AddedToken]:
        """Id to token, by id."""
        return dict(sorted(self._by_id.items()))

    def content_of(self, index: int) -> str | None:
        """The content of the token with an id, or null."""
        return self._by_id[index].content if index in self._by_id else None

    def register(self, tokens: Iterable[AddedToken], known: Mapping[str, int]) -> int:
        """Adds tokens with their ids of ``known``, or new ids; returns how many got a new one."""
        ids = dict(known)
        for token in tokens:
            # The count of tokens, not above the largest id: so it is in the files that transformers wrote.
            index = ids.setdefault(token.content, len(ids))
            self._by_id[index] = token
            self.ids[token.content] = index
            self._cuts.add(token.content)
        self._compile()
        return len(ids) - len(known)

    def forget(self, ids: Iterable[int]) -> None:
        """Removes the tokens that have one of these ids."""
        for index in self._by_id.keys() & set(ids):
            self.ids.pop(self._by_id.pop(index).content, None)

    def cut(self, text: str) -> list[str]:
        """Cuts a text into added tokens and what lies between, white space taken as each token says."""
        pieces = [piece for piece in self._pattern.split(text) if piece]
        for i, piece in enumerate(pieces):
            if piece not in self.ids:
                continue
            token = self._by_id[self.ids[piece]]
            before = pieces[i - 1] if i else ""
            after = pieces[i + 1] if i + 1 < len(pieces) else ""
            if token.rstrip and after:
                pieces[i + 1] = after.lstrip()
            if token.lstrip and before:
                pieces[i - 1] = before.rstrip()
            if token.single_word and before and before[-1] != " ":
                pieces[i - 1], pieces[i] = pieces[i - 1] + piece, ""
            elif token.single_word and after and after[0] != " ":
                pieces[i], pieces[i + 1] = "", piece + pieces[i + 1]
        return [piece for piece in pieces if piece]

    def _compile(self) -> None:
        longest_first = sorted(self._cuts, key=len, reverse=True)
        alternatives = "|".join(map(re.escape, longest_first)) or r"\Z."  # without any, what matches nothing
        self._pattern = re.compile(f"({alternatives})")
