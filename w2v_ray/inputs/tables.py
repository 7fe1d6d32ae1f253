"""CSV and TSV manifests: a header row, and one recording, or a time range of one, per row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial

from w2v_ray.errors import InputError
from w2v_ray.inputs.entries import Entry
from w2v_ray.inputs.named_files import Named, look_up, open_text, place_of
from w2v_ray.inputs.rows import PATH_KEYS, make_entry, path_of

__all__ = ["read_table"]


class _Commas(csv.excel):
    strict = True


class _Tabs(csv.excel_tab):
    """In a TSV, quotes are characters like any other."""

    quoting = csv.QUOTE_NONE


def read_table(uri: str, *, path_key: str | None = None) -> Iterator[Entry]:
    """The entries of a CSV or, by its name, TSV file. Its columns mean what a manifest's keys do.

    Args:
        uri: The file, perhaps gzipped.
        path_key: The column that names the files; None: the first of ``PATH_KEYS`` that is there.

    Raises:
        InputError: The file cannot be read, or a row lacks or garbles what it needs.
    """
    yield from look_up(uri, _named(uri, path_key))


def _named(uri: str, path_key: str | None) -> Iterator[Named]:
    for where, values in _rows(uri, path_key):
        key, path = path_of(where, values, path_key)
        yield (
            place_of(uri, where, path),
            partial(make_entry, where, values, key, are_texts=True),
        )


def _rows(uri: str, path_key: str | None) -> Iterator[tuple[str, dict[str, object]]]:
    is_tsv = uri.lower().removesuffix(".gz").endswith((".tsv", ".tab"))
    names: list[str] | None = None
    with open_text(uri) as lines:
        rows = csv.reader(lines, _Tabs if is_tsv else _Commas)
        while True:
            try:
                cells = next(rows, None)
            except csv.Error as error:
                raise InputError(
                    f"line {rows.line_num} of {uri!r} cannot be read as a table ({error}); quote its cells"
                ) from error
            if cells is None:
                return
            if not any(cells):
                continue
            if names is None:
                names = _checked_header(uri, rows.line_num, cells, path_key)
                continue
            where = f"line {rows.line_num} of {uri!r}"
            if len(cells) != len(names):
                hint = "check its tabs" if is_tsv else "quote cells that hold commas"
                raise InputError(f"{where} has {len(cells)} cells where the header has {len(names)}; {hint}")
            yield where, dict(zip(names, cells, strict=True))


def _checked_header(uri: str, number: int, cells: list[str], path_key: str | None) -> list[str]:
    names = [cell.strip() for cell in cells]
    where = f"the header in line {number} of {uri!r}"
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{where} names {twice!r} twice; rename one of the columns")
    wanted = PATH_KEYS if path_key is None else (path_key,)
    if not set(wanted) & set(names):
        raise InputError(
            f"{where} has no column {' or '.join(wanted)} (its columns: {', '.join(names)[:200]}); "
            "name the column of the files so, or say which it is with audio_column"
        )
    return names
