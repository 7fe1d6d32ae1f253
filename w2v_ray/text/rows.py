"""What a caller of the tokenizer passes, as rows of ids: a text, a pair of them, or ids as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Row", "cut", "read_rows"]


@dataclass(frozen=True, slots=True)
class Row:
    """The ids of a text, of a second text after it, and those that a cut took away."""

    first: list[int]
    second: list[int] | None = None
    taken: tuple[int, ...] = ()
    """The ids that were cut off, after ``stride`` ids that were not."""
    num_taken: int = 0

    @property
    def ids(self) -> list[int]:
        """Those of both texts."""
        return self.first + (self.second or [])


def read_rows(
    texts: Any, pairs: Any, spell: Callable[[str], list[int]], is_split_into_words: bool
) -> tuple[list[Row], bool]:
    """The rows of a text or a list of texts, and whether it is a text alone.

    Args:
        texts: A text, a list of words or of ids; or a list of these, and of pairs of texts.
        pairs: Of the same form, or null: second texts.
        spell: Text to ids.
        is_split_into_words: Whether a list of texts is the words of one.

    Raises:
        ValueError: Texts and their pairs differ in number, or an item is neither text, words nor ids.
    """
    if isinstance(texts, str) or (
        len(texts) and isinstance(texts[0], (str, int) if is_split_into_words else int)
    ):
        return [_row(texts, pairs, spell)], True
    if pairs is None:
        pairs = [None] * len(texts)
    elif isinstance(pairs, str) or len(pairs) != len(texts):
        raise ValueError(
            f"text_pair is {'one text' if isinstance(pairs, str) else f'{len(pairs)} texts'} for "
            f"{len(texts)}, expected a list of as many"
        )
    rows = []
    for item, pair in zip(texts, pairs, strict=True):
        one, other = item, pair
        if pair is None and isinstance(item, list | tuple) and item and not isinstance(item[0], int):
            # Two texts in a list are a pair; so are two in a tuple where lists are the words of a text.
            if len(item) == 2 and (not is_split_into_words or isinstance(item, tuple)):
                one, other = item
            elif len(item) == 1:
                one = item[0]
            elif not is_split_into_words:
                raise ValueError(
                    f"a row has {len(item)} texts, expected one or a pair; pass is_split_into_words=True "
                    "for the words of a text"
                )
        rows.append(_row(one, other, spell))
    return rows, False


def cut(row: Row, length: int | None, strategy: str, side: str, stride: int) -> Row:
    """Takes ids away until ``length`` are left, which of them ``strategy`` says; null and 0 leave all."""
    surplus = len(row.ids) - length if length else 0
    if surplus <= 0:
        return row
    left = side == "left"
    first, second = row.first, row.second
    if strategy == "only_first" or (strategy == "longest_first" and second is None):
        kept, taken = _take(first, surplus, stride, left)
        return Row(kept, second, taken, surplus)
    if strategy == "only_second":
        if not second:
            return row
        kept, taken = _take(second, surplus, stride, left)
        return Row(first, kept, taken, surplus)
    # First the longer text to the length of the other, then both in turn.
    assert second is not None
    uneven = min(abs(len(first) - len(second)), surplus)
    half = (surplus - uneven) // 2
    of_first = half + uneven if len(first) > len(second) else half
    return replace(
        row,
        first=_take(first, of_first, 0, left)[0],
        second=_take(second, surplus - of_first, 0, left)[0],
    )


def _take(ids: list[int], surplus: int, stride: int, left: bool) -> tuple[list[int], tuple[int, ...]]:
    surplus = min(surplus, len(ids))
    window = min(len(ids), surplus + stride)
    if left:
        return ids[surplus:], tuple(ids[:window])
    return ids[: len(ids) - surplus], tuple(ids[len(ids) - window :])


def _row(text: Any, pair: Any, spell: Callable[[str], list[int]]) -> Row:
    return Row(_ids(text, spell), None if pair is None else _ids(pair, spell))


def _ids(text: str | Sequence[Any], spell: Callable[[str], list[int]]) -> list[int]:
    if isinstance(text, str):
        return spell(text)
    words = text if isinstance(text, list | tuple) else [None]
    if all(isinstance(item, int) for item in words):
        return list(text)
    if not all(isinstance(word, str) for word in words):
        raise ValueError(f"a row is {text!r}, expected a text, a list of words or a list of ids")
    return [index for word in text for index in spell(word)]
