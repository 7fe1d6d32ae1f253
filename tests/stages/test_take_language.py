"""Which language each item is of, told before anything is read."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from w2v_ray.errors import LanguageError
from w2v_ray.schema import ERROR, ITEM, LANGUAGE, LANGUAGE_ERROR_KEY, LANGUAGE_KEY
from w2v_ray.stages.take_language import (
    TakeLanguage,
    TakeLanguageConfig,
    languages_of,
    with_language,
    with_languages,
)

KNOWN = ("eng", "fra")
EARLIER = {"stage": "align_text", "error_class": "AlignError", "message": "there is no text"}


def items(*metadata: dict[str, Any] | None) -> pa.Table:
    rows = [{"item_index": i, "metadata": json.dumps(m) if m else None} for i, m in enumerate(metadata)]
    return pa.Table.from_pylist(rows, ITEM)


def taken(table: pa.Table, **config: Any) -> tuple[list[str | None], list[str | None]]:
    """The languages, and the messages of the errors."""
    out = TakeLanguage(TakeLanguageConfig(**config))(table)
    assert out.column_names == [*ITEM.names, "language", "error"]
    assert out.schema.field("language").equals(LANGUAGE)
    errors = out["error"].to_pylist()
    assert all(
        e is None or (e["stage"], e["error_class"]) == ("take_language", "LanguageError") for e in errors
    )
    return out["language"].to_pylist(), [e and e["message"] for e in errors]


def test_the_manifest_comes_first_then_another_output_then_the_default() -> None:
    table = items(
        {"lang": "fra", LANGUAGE_KEY: "eng"},
        {"lang": None, LANGUAGE_KEY: "fra"},
        {"language": "fra"},
        {LANGUAGE_ERROR_KEY: "it was rejected there"},
        None,
    )
    languages, errors = taken(table, key="lang", default="eng", known=KNOWN)
    assert languages == ["fra", "fra", "eng", "eng", "eng"]
    assert errors == [None] * 5


def test_an_item_without_a_language_fails() -> None:
    languages, errors = taken(
        items({"lang": "fra"}, {"a": 1}, {LANGUAGE_ERROR_KEY: "it was rejected"}), key="lang"
    )
    assert languages == ["fra", None, None]
    assert errors[1] == (
        "no language under 'lang' came with this recording; add it to the manifest, or say which those "
        "without one are of with --language"
    )
    assert errors[2] == "it was rejected"


@pytest.mark.parametrize("value", ["spa", "", "../fra", 3, ["fra"], {"a": "fra"}, True])
def test_an_unknown_language_fails(value: object) -> None:
    languages, errors = taken(items({"lang": value}, {"lang": "eng"}), key="lang", default="eng", known=KNOWN)
    assert languages == [None, "eng"]
    assert errors[0] == (
        f"language is {value!r}, expected one of those that the checkpoint has an adapter and a vocabulary "
        "for (eng, fra); correct the language, or leave the recording out"
    )


def test_many_known_languages_are_not_all_told() -> None:
    known = tuple(f"l{i:04}" for i in range(1100))
    _, (message,) = taken(items({"lang": "spa"}), key="lang", known=known)
    assert message is not None
    assert "l0011 and 1088 more)" in message


def test_where_the_languages_are_not_known_any_name_is() -> None:
    languages, errors = taken(items({"lang": "spa"}, {"lang": ""}, {"lang": 3}), key="lang")
    assert languages == ["spa", None, None]
    assert errors[1] == (
        "language is '', expected the name of a language such as 'eng'; correct the language, or leave the "
        "recording out"
    )


def test_a_table_without_the_column_is_of_the_checkpoints_own() -> None:
    table = items(None, None)
    assert languages_of(table) == [None, None]
    assert with_language(table).schema.field("language").equals(LANGUAGE)
    named = table.append_column(LANGUAGE, pa.array(["fra", None]))
    assert with_language(named) is named
    assert languages_of(named) == ["fra", None]


def test_an_error_that_is_there_stays() -> None:
    table = items({"lang": "fra"}, {"lang": "spa"}).append_column(
        "error", pa.array([EARLIER, EARLIER], ERROR)
    )
    out = TakeLanguage(TakeLanguageConfig(key="lang", known=KNOWN))(table)
    assert out["error"].to_pylist() == [EARLIER, EARLIER]


def test_languages_of_rows_that_somebody_has() -> None:
    table = with_languages(items(None, None), ["fra", LanguageError("column 'language' is null")])
    assert table["language"].to_pylist() == ["fra", None]
    assert [e and e["message"] for e in table["error"].to_pylist()] == [None, "column 'language' is null"]
