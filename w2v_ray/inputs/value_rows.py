"""Entries of the rows of a Parquet or Arrow file, whose audio is a value of the row or a file it names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from w2v_ray import stores
from w2v_ray.inputs.columns import AudioColumn, seconds_of
from w2v_ray.inputs.entries import Entry, metadata_json
from w2v_ray.inputs.named_files import Named, look_up, place_of
from w2v_ray.inputs.rows import make_entry, path_of
from w2v_ray.schema import DAMAGE_KEY

__all__ = ["RowGroup", "row_entries"]


class RowGroup(NamedTuple):
    """Rows that follow each other, without their audio."""

    first_row: int
    values: list[dict[str, Any]]
    """The small columns of each row."""
    paths: list[str | None]
    """What the rows call their audio, or where it is."""
    num_bytes: list[float | None]
    """The size of each row's audio, perhaps a mean; None: it has none of its own."""


def row_entries(
    file: stores.FileInfo, kind: str, audio: AudioColumn, groups: Iterable[RowGroup]
) -> Iterator[Entry]:
    """An entry per row, in order.

    Args:
        file: The Parquet or Arrow file.
        kind: ``parquet`` or ``arrow``.
        audio: Its column.
        groups: Its rows.

    Raises:
        InputError: None of the files that rows name exists, or a row names what no store serves.
    """
    if audio.holds == "uris":
        yield from look_up(file.uri, _named_rows(file.uri, audio, groups))
        return
    container = f"{kind}:{audio.name}"
    for group in groups:
        elsewhere = iter(_elsewhere(file.uri, audio, group))
        for index, (values, path, size) in enumerate(
            zip(group.values, group.paths, group.num_bytes, strict=True)
        ):
            row = group.first_row + index
            if size is None and path:
                yield next(elsewhere)
                continue
            said = ({} if path is None else {"path": path}) | values
            said.pop(DAMAGE_KEY, None)
            yield Entry(
                f"{file.uri}#{row}",
                file.uri,
                container=container,
                row=row,
                version=file.version,
                duration_s=seconds_of(values, size, path),
                metadata=metadata_json(said),
            )


def _elsewhere(uri: str, audio: AudioColumn, group: RowGroup) -> Iterator[Entry]:
    """The entries of rows that hold no bytes but the path of a file."""
    rows = enumerate(zip(group.values, group.paths, group.num_bytes, strict=True), group.first_row)
    named = (
        _named_row(uri, row, {audio.name: path} | values, audio)
        for row, (values, path, size) in rows
        if size is None and path
    )
    return look_up(uri, named)


def _named_rows(uri: str, audio: AudioColumn, groups: Iterable[RowGroup]) -> Iterator[Named]:
    for group in groups:
        for row, (values, path) in enumerate(zip(group.values, group.paths, strict=True), group.first_row):
            yield _named_row(uri, row, {audio.name: path} | values, audio)


def _named_row(uri: str, row: int, values: dict[str, Any], audio: AudioColumn) -> Named:
    where = f"row {row} of {uri!r}"
    key, path = path_of(where, values, audio.name)
    return place_of(uri, where, path), partial(make_entry, where, values, key)
