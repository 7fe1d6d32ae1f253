"""How emissions become text, as settings: read and checked here, used by every job that decodes."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from w2v_ray.errors import ConfigError

__all__ = [
    "SEARCH_BOUNDS",
    "DecoderConfig",
    "check_choice",
    "check_one_language",
    "check_range",
    "check_types",
    "kind_of",
    "takes_text",
]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_text_list(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# The annotation of a field -> what a value of it is called, and the check.
_TYPES: dict[str, tuple[str, Callable[[object], bool]]] = {
    "tuple[str, ...]": ("a list of text", _is_text_list),
    "str": ("text", _is_text),
    "str | int": ("text or a whole number", lambda value: _is_text(value) or _is_whole(value)),
    "str | None": ("text or null", lambda value: value is None or _is_text(value)),
    "int | None": ("a whole number or null", lambda value: value is None or _is_whole(value)),
    "int": ("a whole number", _is_whole),
    "float": ("a number", _is_number),
    "float | None": ("a number or null", lambda value: value is None or _is_number(value)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "dict[str, Any] | None": ("a mapping or null", lambda value: value is None or isinstance(value, dict)),
}

SEARCH_BOUNDS: dict[str, tuple[float, float]] = {
    "alpha": (0, 100),
    "beta": (-100, 100),
    "hotword_weight": (0, 1000),
    "beam_width": (1, 10_000),
    "beam_prune_logp": (-1000, 0),
    "token_min_logp": (-1000, 0),
}
"""By setting of a search, the bounds of its value."""

_TOKEN_MIN_LOGP = -5.0  # of a search for which none is given
# So many tokens of a frame hold all that are likelier than 1 in as many: those that a search at its defaults
# does not pass over, of which there are e ** 5 at most, and what counts in a confidence.
_TOP_TOKENS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """How emissions become text: greedily, or by a beam search where one of its settings asks for it.

    Raises:
        ConfigError: A value is of the wrong type or out of bounds, or belongs to a search that nothing
            asks for.
    """

    lm: str | None = None
    """A language model: an ARPA, ``.w2vlm`` or KenLM file or URL, or ``checkpoint`` for the model's own."""

    alpha: float | None = None
    """Weight of the language model (0 to 100); null: 0.5, or what the checkpoint's own says."""

    beta: float | None = None
    """What each word adds to a score (-100 to 100); null: 1.5, or what the checkpoint's own says."""

    unigrams: str | None = None
    """A file or URL of the words that count as known, one a line; null: those of an ARPA or ``.w2vlm``."""

    hotwords: tuple[str, ...] = ()
    """Words or phrases that the search prefers."""

    hotword_weight: float | None = None
    """How much it prefers them (0 to 1000); null: 10."""

    beam_width: int | None = None
    """Beams kept per frame (1 to 10000); null: 100 with ``lm`` or ``hotwords``, greedy decoding without."""

    beam_prune_logp: float | None = None
    """Beams this much below the best are dropped (-1000 to 0); null: -10."""

    token_min_logp: float | None = None
    """Tokens below it are not tried in a frame unless best (-1000 to 0); null: -5."""

    characters: bool = False
    """Whether the rows hold times and confidences of characters besides those of words."""

    def __post_init__(self) -> None:
        check_types(self)
        object.__setattr__(self, "hotwords", tuple(self.hotwords))
        for name in ("lm", "unigrams"):
            text = getattr(self, name)
            if text is not None and not text.strip():
                raise ConfigError(f"{name} is {text!r}, expected a path or URL; name one, or leave it out")
        for index, word in enumerate(self.hotwords):
            if not word.strip():
                raise ConfigError(f"hotwords[{index}] is {word!r}, expected words; take out what is empty")
        for name, bounds in SEARCH_BOUNDS.items():
            if (value := getattr(self, name)) is not None:
                check_range(name, value, *bounds)
        needs = {
            "alpha": (self.lm, "name lm"),
            "beta": (self.lm, "name lm"),
            "unigrams": (self.lm, "name lm"),
            "hotword_weight": (self.hotwords, "name hotwords"),
            "beam_prune_logp": (self.is_search, "set beam_width, or name lm or hotwords"),
            "token_min_logp": (self.is_search, "set beam_width, or name lm or hotwords"),
        }
        for name, (has_use, fix) in needs.items():
            if (value := getattr(self, name)) is not None and not has_use:
                raise ConfigError(f"{name} is {value!r}, which has no effect by itself; {fix} too")

    @property
    def top_tokens(self) -> int | None:
        """How many of the likeliest tokens of a frame are enough for its text; null: all may be needed."""
        least = _TOKEN_MIN_LOGP if self.token_min_logp is None else self.token_min_logp
        return _TOP_TOKENS if math.exp(-least) <= _TOP_TOKENS else None

    @property
    def is_search(self) -> bool:
        """Whether the settings ask for a beam search."""
        return self.lm is not None or bool(self.hotwords) or self.beam_width is not None

    def decoder(self) -> DecoderConfig:
        """These settings alone, of a config that has others besides."""
        return DecoderConfig(**{field.name: getattr(self, field.name) for field in fields(DecoderConfig)})

    def search_fields(self) -> dict[str, Any]:
        """The settings that decide what text comes out, without those that are as they were left.

        ``lm`` and ``unigrams`` are names here: of the files their content counts, which is for others to
        read.
        """
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in fields(DecoderConfig)
            if (value := getattr(self, field.name)) != field.default
        }


def check_types(config: DecoderConfig) -> None:
    for field in fields(config):
        name, (expected, is_valid) = field.name, _TYPES[str(field.type)]
        value = getattr(config, name)
        if not is_valid(value):
            if expected == "a list of text" and isinstance(value, list | tuple):
                index = next(index for index, item in enumerate(value) if not _is_text(item))
                name, value, expected = f"{name}[{index}]", value[index], "text"
            raise ConfigError(
                f"{name} is {value!r} ({kind_of(value)}), expected {expected}; {_fix(name, value, expected)}"
            )
        if str(field.type).startswith("float") and value is not None:
            try:
                object.__setattr__(config, name, float(value))
            except OverflowError as error:  # a whole number of more than 308 digits
                raise ConfigError(
                    f"{name} is a number of {len(str(value))} digits, expected a number that can be counted "
                    "to; lower it"
                ) from error


def takes_text(annotation: str) -> bool:
    """Whether a field with this annotation takes a text as it is."""
    return _TYPES[annotation][1]("text")


def check_one_language(decoder: DecoderConfig, several: str) -> None:
    """Refuses what is of one language where ``several`` tells of more than one.

    Raises:
        ConfigError: A language model, its words or hotwords are named.
    """
    for name in ("lm", "unigrams", "hotwords"):
        if value := getattr(decoder, name):
            raise ConfigError(
                f"{name} is {value!r}, which is of one language, and {several} tells of several; leave it "
                "out, or do each language by itself"
            )


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(choices)}; choose one of these")


def check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also true for nan
        fix = "lower it" if value > high else "raise it" if value < low else "give a number"
        raise ConfigError(f"{name} is {value:g}, expected {low} to {high}; {fix}")


def kind_of(value: object) -> str:
    names = {str: "text", bool: "a truth value", int: "a whole number", float: "a number", dict: "a mapping"}
    names |= {list: "a list", tuple: "a list", type(None): "nothing", bytes: "binary", set: "a set"}
    names |= {datetime.date: "a date", datetime.datetime: "a time"}
    return names.get(type(value), type(value).__name__)


def _fix(name: str, value: object, expected: str) -> str:
    if expected == "a list of text":
        return f"write `{name}: [FIRST, SECOND]`"
    if expected == "true or false":
        return "write true or false, without quotes"
    if expected == "a mapping or null":
        return f"write `{name}: {{NAME: {{OPTION: VALUE}}}}`"
    if value is None:
        return "give one, or leave the key out for the default"
    if isinstance(value, list | tuple | dict | set):
        return f"write one value after `{name}:`"
    return "put it in quotes" if expected.startswith("text") else "write it as digits, without quotes"
