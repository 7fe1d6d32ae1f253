"""The labels of a CTC model as its decoder reads them: the blank, the space, pieces of words."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Sequence

from w2v_ray.errors import ConfigError

__all__ = ["Alphabet", "build_alphabet"]

_BOUNDARY = "\u2581"  # begins a piece that begins a word
_UNKNOWN = "\u2047"
_UNKNOWN_PIECE = f"{_BOUNDARY}{_UNKNOWN}{_BOUNDARY}"
_BLANK_NAME = re.compile(r"[<\[]pad[>\]]", re.IGNORECASE)
_UNKNOWN_NAME = re.compile(r"[<\[]unk[>\]]", re.IGNORECASE)
_SPECIAL_NAME = re.compile(r"[<\[].+[>\]]")

_logger = logging.getLogger(__name__)


class Alphabet:
    """What each column of the logits is: a string, ``""`` for the blank, ``" "`` for what ends a word.

    Args:
        labels: One for each column, already in this form; `build_alphabet` brings a vocabulary into it.
        is_bpe: Whether labels are pieces, of which those that begin with U+2581 begin a word.
    """

    def __init__(self, labels: Sequence[str], is_bpe: bool) -> None:
        self._labels = list(labels)
        self._is_bpe = is_bpe

    @property
    def labels(self) -> list[str]:
        """A copy of the labels, in the order of the columns."""
        return self._labels[:]

    @property
    def is_bpe(self) -> bool:
        """Whether labels are pieces of words with U+2581 at the front of a word's first."""
        return self._is_bpe

    @classmethod
    def build_alphabet(cls, labels: Sequence[str]) -> Alphabet:
        """Does what `build_alphabet` does."""
        return build_alphabet(labels)

    def dumps(self) -> str:
        """As JSON, the content of an ``alphabet.json``."""
        return json.dumps({"labels": self._labels, "is_bpe": self._is_bpe})

    @classmethod
    def loads(cls, s: str) -> Alphabet:
        """From JSON.

        Raises:
            ConfigError: It is no JSON, or has other keys than ``labels`` and ``is_bpe``.
        """
        try:
            content = json.loads(s)
        except ValueError as error:
            raise ConfigError(f"the alphabet is not JSON ({error}); save the decoder again") from error
        if not isinstance(content, dict) or set(content) != {"labels", "is_bpe"}:
            found = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise ConfigError(f"the alphabet has {found}, expected the keys labels and is_bpe; save it again")
        return cls(content["labels"], content["is_bpe"])


def build_alphabet(labels: Sequence[str]) -> Alphabet:
    """Reads a model's vocabulary, by the rules of pyctcdecode.

    A vocabulary with labels that begin with ``##`` or U+2581 is one of pieces. ``<pad>`` or ``[pad]`` is the
    blank, else ``_``, and a blank column is added behind the others where there is none; ``|`` is the space
    where there is no space; ``<unk>`` or ``[unk]`` is U+2047.

    Args:
        labels: The vocabulary's tokens in the order of the columns.

    Raises:
        ConfigError: A label is there twice or is not a string, or pieces have a space in them.
    """
    names = list(labels)
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f"the labels hold {name!r}, expected strings; pass the vocabulary's tokens")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError(f"the labels hold {twice[0]!r} more than once; each column needs its own")
    if any(name.startswith(("##", _BOUNDARY)) for name in names):
        return Alphabet(_pieces(names), True)
    return Alphabet(_characters(names), False)


def _characters(names: list[str]) -> list[str]:
    if "|" in names and " " not in names:
        names[names.index("|")] = " "
    names = ["" if _BLANK_NAME.fullmatch(name) else name for name in names]
    if "_" in names and "" not in names:
        names[names.index("_")] = ""
    if "" not in names:
        names.append("")
    names = [_UNKNOWN if _UNKNOWN_NAME.fullmatch(name) else name for name in names]
    if " " not in names:
        _logger.warning("no label is a space: all text will be one word")
    return names


def _pieces(names: list[str]) -> list[str]:
    spaced = next((name for name in names if " " in name), None)
    if spaced is not None:
        raise ConfigError(f"the piece {spaced!r} has a space in it; write the beginning of a word as U+2581")
    if any(name.startswith("##") for name in names):
        names = [_marked(name) for name in names]
    names = ["" if _BLANK_NAME.fullmatch(name) else name for name in names]
    if "" not in names:
        names.append("")
    return [_UNKNOWN_PIECE if _UNKNOWN_NAME.fullmatch(name) else name for name in names]


def _marked(name: str) -> str:
    """A piece marked as ``##inside`` a word or not, as one marked at the front of a word or not."""
    if name.startswith("##"):
        return name[2:]
    if _SPECIAL_NAME.fullmatch(name) or name in ("", _BOUNDARY, _UNKNOWN_PIECE):
        return name
    return _BOUNDARY + name


def covers(alphabet: Alphabet, words: Collection[str]) -> bool:
    """Whether at least four fifths of the characters of ``words`` are labels."""
    characters = set("".join(words))
    return len(characters - set(alphabet.labels)) <= 0.2 * len(characters)
