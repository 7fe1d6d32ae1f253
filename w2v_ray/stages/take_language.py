"""The language of each item, taken from what the manifest says of it before its audio is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from w2v_ray.errors import LanguageError
from w2v_ray.schema import ERROR, LANGUAGE, LANGUAGE_ERROR_KEY, LANGUAGE_KEY, error_value

__all__ = ["TakeLanguage", "TakeLanguageConfig", "languages_of", "with_language", "with_languages"]

_STAGE = "take_language"


@dataclass(frozen=True, kw_only=True, slots=True)
class TakeLanguageConfig:
    """Where the language of a recording is told, and which there are."""

    key: str | None = None
    """Of the language in the metadata; None: the metadata has none of its own."""
    default: str | None = None
    """Of recordings that are told none; None: they fail."""
    known: tuple[str, ...] | None = None
    """Those that the checkpoint has; None: that shows when one is first used."""


class TakeLanguage:
    """Adds ``language`` to a table of items; one with none, or an unknown one, fails before it is read.

    What planning took from another output counts where the metadata itself says nothing.

    Args:
        config: Where it is told.
    """

    def __init__(self, config: TakeLanguageConfig) -> None:
        self._config = config

    def __call__(self, table: pa.Table) -> pa.Table:
        texts = table.column("metadata").to_pylist()
        found = [self._told(json.loads(text) if text else {}) for text in texts]
        return with_languages(table, found, known=self._config.known)

    def _told(self, values: Mapping[str, Any]) -> object:
        """The language, or the error of an item without one."""
        key, default = self._config.key, self._config.default
        if key is not None and values.get(key) is not None:
            return values[key]
        if LANGUAGE_KEY in values:
            return values[LANGUAGE_KEY]
        if default is not None:
            return default
        if LANGUAGE_ERROR_KEY in values:
            return LanguageError(values[LANGUAGE_ERROR_KEY])
        return LanguageError(
            f"no language under {key!r} came with this recording; add it to the manifest, or say which "
            "those without one are of with --language"
        )


def languages_of(table: pa.Table) -> list[str | None]:
    """The language of each row: None where it is the checkpoint's own, as of all rows without the column."""
    languages: list[str | None] = with_language(table).column(LANGUAGE.name).to_pylist()
    return languages


def with_language(table: pa.Table) -> pa.Table:
    """The table with the column ``language``: null where there was none."""
    if LANGUAGE.name in table.column_names:
        return table
    return table.append_column(LANGUAGE, pa.nulls(table.num_rows, LANGUAGE.type))


def with_languages(
    table: pa.Table, languages: list[object], *, known: tuple[str, ...] | None = None
) -> pa.Table:
    """The items with ``language``; those whose language is none of those known have failed.

    Args:
        table: Of items, with or without errors.
        languages: Of each its name, or the error of having none.
        known: Those that there are; None: any name.
    """
    has_errors = "error" in table.column_names
    errors = table.column("error").to_pylist() if has_errors else [None] * table.num_rows
    names: list[str | None] = []
    for row, language in enumerate(languages):
        error = language if isinstance(language, LanguageError) else _fault(language, known)
        names.append(language if error is None and isinstance(language, str) else None)
        if error is not None:
            errors[row] = errors[row] or error_value(_STAGE, error)
    table = table.append_column(LANGUAGE, pa.array(names, LANGUAGE.type))
    column = pa.array(errors, ERROR)
    if not has_errors:
        return table.append_column("error", column)
    return table.set_column(table.column_names.index("error"), pa.field("error", ERROR), column)


def _fault(language: object, known: tuple[str, ...] | None) -> LanguageError | None:
    if isinstance(language, str) and (language if known is None else language in known):
        return None
    some = "the name of a language such as 'eng'"
    if known is not None:
        names = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
        some = f"one of those that the checkpoint has an adapter and a vocabulary for ({names})"
    return LanguageError(
        f"language is {language!r}, expected {some}; correct the language, or leave the recording out"
    )
