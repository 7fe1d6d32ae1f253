"""Counting the n-grams of a text with numpy: sorted arrays instead of dictionaries of tuples."""

from __future__ import annotations

import contextlib
import gzip
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from w2v_ray import stores
from w2v_ray.errors import LanguageModelError, ReadError

__all__ = ["UNK", "NgramTable", "TextCounts", "count_ngrams", "read_blocks"]

UNK, BOS, EOS = 0, 1, 2
_RESERVED = (b"<unk>", b"<s>", b"</s>")
_BLOCK_BYTES = 1 << 24

UInt32s = npt.NDArray[np.uint32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NgramTable:
    """The n-grams of one order; each is a row of every array, sorted by suffix, then by first word."""

    first: UInt32s
    """Its first word."""
    suffix: UInt32s
    """The row of its other words in the table of the order below; of a unigram 0."""
    context: UInt32s
    """The row of all but its last word in the table of the order below; of a unigram 0."""
    count: Int64s
    """How often it is in the text."""

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class TextCounts:
    """The words of a text, and its n-grams of every order."""

    words: list[bytes]
    """By id; the first three are ``<unk>``, ``<s>`` and ``</s>``."""
    tables: list[NgramTable]
    """Of order 1, 2, ...; row ``i`` of the first is word ``i``."""
    num_words: int
    num_sentences: int


class _Ids(dict[bytes, int]):
    """Word -> id; a new word takes the next."""

    def __missing__(self, word: bytes) -> int:
        self[word] = number = len(self)
        return number


def read_blocks(paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """The text of files, plain or gzip by content, in blocks of whole lines.

    Args:
        paths: Local paths, URLs, or ``-`` for standard input.

    Yields:
        The path and some 16 MB of its lines, every one of which ends with a newline.

    Raises:
        LanguageModelError: A file is missing, unreadable or damaged.
    """
    for path in paths:
        try:
            with contextlib.ExitStack() as stack:
                file = cast(
                    BinaryIO,
                    sys.stdin.buffer
                    if path == "-"
                    else stack.enter_context(stores.open_range(path, None, None)),
                )
                if getattr(file, "peek", lambda _: b"")(2)[:2] == b"\x1f\x8b":
                    file = cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=file)))
                rest = b""
                while block := file.read(_BLOCK_BYTES):
                    lines, newline, rest_of_block = block.rpartition(b"\n")
                    if newline:
                        yield path, rest + lines + newline
                        rest = rest_of_block
                    else:
                        rest += block
                if rest:
                    yield path, rest + b"\n"
        except ReadError as error:
            raise LanguageModelError(str(error)) from error
        except (EOFError, OSError, zlib.error) as error:
            raise LanguageModelError(
                f"{path!r} cannot be read as text ({stores.explain(error)}); name whole text or gzip files"
            ) from error


def count_ngrams(
    blocks: Iterable[tuple[str, bytes]], order: int, *, on_progress: Callable[[str], None] = lambda _: None
) -> TextCounts:
    """Counts the n-grams of a text, a sentence a line, up to an order.

    Every line becomes ``<s> words </s>``; lines without words are left out.

    Args:
        blocks: As from `read_blocks`.
        order: The highest order.
        on_progress: Called now and then with what is being done.

    Raises:
        LanguageModelError: The text is empty, its lines are all too short for ``order``, or it holds a
            reserved word.
    """
    words, ids = _read_ids(blocks, on_progress)
    is_begin = ids == BOS
    num_sentences = int(np.count_nonzero(is_begin))
    if not num_sentences:
        raise LanguageModelError("the text holds no words; give one with a sentence on every line")
    before = _words_before(is_begin, order)
    count = np.bincount(ids, minlength=len(words)).astype(np.int64)
    everyone = np.arange(len(words), dtype=np.uint32)
    nothing = np.zeros(len(words), np.uint32)
    tables = [NgramTable(everyone, nothing, nothing, count)]
    rows = ids  # of the n-gram of the order below that ends at each position
    for n in range(2, order + 1):
        on_progress(f"counting the {n}-grams of {len(ids):,} words")
        ends = np.flatnonzero(before >= n - 1)
        if not len(ends):
            raise LanguageModelError(
                f"the text has no sentence of {n - 2} words, so no {n}-grams; lower --order"
            )
        # Equal n-grams have equal (suffix, first word).
        keys = rows[ends].astype(np.uint64) * np.uint64(len(words)) + ids[ends - (n - 1)]
        by_key = np.argsort(keys)
        keys = keys[by_key]
        is_new = np.empty(len(keys), bool)
        is_new[0] = True
        np.not_equal(keys[1:], keys[:-1], out=is_new[1:])
        starts = np.flatnonzero(is_new)
        some_end = ends[by_key[starts]]
        keys = keys[starts]
        tables.append(
            NgramTable(
                first=(keys % np.uint64(len(words))).astype(np.uint32),
                suffix=(keys // np.uint64(len(words))).astype(np.uint32),
                context=rows[some_end - 1],
                count=np.diff(np.append(starts, len(is_new))),
            )
        )
        if n < order:
            found = np.zeros(len(ids), np.uint32)
            found[ends[by_key]] = np.cumsum(is_new, dtype=np.uint32) - np.uint32(1)
            rows = found
    return TextCounts(words, tables, len(ids) - 2 * num_sentences, num_sentences)


def _words_before(is_begin: npt.NDArray[np.bool_], order: int) -> npt.NDArray[np.uint8]:
    """How many words of its sentence come before each word, ``order`` standing for more."""
    before = np.zeros(len(is_begin), np.uint8)
    reaches = ~is_begin  # whether no sentence begins in the last `step` words
    for step in range(1, order):
        before += reaches
        reaches[step:] &= ~is_begin[:-step] if step < len(is_begin) else False
    return before


def _read_ids(
    blocks: Iterable[tuple[str, bytes]], on_progress: Callable[[str], None]
) -> tuple[list[bytes], UInt32s]:
    """The words by id, and the text as ids, ``<s>`` and ``</s>`` around every line."""
    ids = _Ids({word: number for number, word in enumerate(_RESERVED)})
    pieces: list[UInt32s] = [np.array([BOS], np.uint32)]
    num_words = 0
    for path, block in blocks:
        for word in _RESERVED:
            if word in block and word in block.split():
                raise LanguageModelError(
                    f"{path!r} holds the word {word.decode()}, which language models reserve; "
                    "remove it, as sentences are marked here by their lines"
                )
        tokens = block.replace(b"\n", b" </s> <s> ").split()
        piece = np.fromiter(map(ids.__getitem__, tokens), np.uint32, len(tokens))
        num_words += len(piece)
        pieces.append(piece)
        on_progress(f"reading {path}: {num_words:,} words so far, {len(ids):,} different")
    text = np.concatenate(pieces)[:-1]  # the last <s> has no sentence
    del pieces
    empty = np.flatnonzero((text[:-1] == BOS) & (text[1:] == EOS))
    if len(empty):
        keep = np.ones(len(text), bool)
        keep[empty] = keep[empty + 1] = False
        text = text[keep]
    return list(ids), text
