"""Reading: the bytes of each item, fetched in threads, exactly as many and of that version as were planned.

Nothing is decoded. What is too large to hold, and ranges of files, stay where they are for `decode_audio` to
open in place. What lies inside a Parquet, Arrow or gzip file is read whole, each of them once for all items.
"""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray import stores
from w2v_ray.containers import Wanted, read_values
from w2v_ray.errors import ConfigError, ItemError, ReadError
from w2v_ray.schema import DAMAGE_KEY, ERROR, READ, error_value

__all__ = ["ReadAudio", "ReadAudioConfig"]

_STAGE = "read_audio"
_NEEDED = [
    "uri",
    "byte_offset",
    "byte_size",
    "container",
    "row",
    "version",
    "start_s",
    "end_s",
    "metadata",
]
_SMALL_BYTES = 1 << 20  # one read of a part of a file would fetch as much

_Result = bytes | dict[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAudioConfig:
    """How bytes are fetched."""

    num_threads: int = 8
    """Items fetched at once."""
    whole_read_bytes: int = 64 << 20
    """The largest file or member that is read whole, in bytes."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_threads <= 256:
            raise ConfigError(f"num_threads is {self.num_threads}, expected 1 to 256; try 8")
        if not 0 <= self.whole_read_bytes < 2 << 30:
            raise ConfigError(
                f"whole_read_bytes is {self.whole_read_bytes}, expected from 0 to below 2 GiB; try {64 << 20}"
            )


class ReadAudio:
    """Adds ``audio_bytes`` and ``error`` to a table of items.

    ``audio_bytes`` is null where the item failed, and where it is left in place: where it is larger than
    ``whole_read_bytes``, or is a time range of a file of more than a MiB, or of one that other items of the
    table are ranges of, too. Bytes and errors that the table has already are kept.
    """

    def __init__(self, config: ReadAudioConfig | None = None) -> None:
        self._config = config or ReadAudioConfig()

    def __call__(self, table: pa.Table) -> pa.Table:
        for field in READ:
            if field.name not in table.column_names:
                table = table.append_column(field, pa.nulls(table.num_rows, field.type))
        given = table.column(READ[0].name)
        rows = table.select([*_NEEDED, "error"]).append_column("is_given", pc.is_valid(given)).to_pylist()
        uses = Counter((row["uri"], row["byte_offset"]) for row in rows)

        results: list[_Result] = [row["error"] for row in rows]
        inside: dict[tuple[str, str, str | None], list[int]] = defaultdict(list)
        whole: list[int] = []
        for index, row in enumerate(rows):
            if row["error"] is not None or row["is_given"]:
                continue
            if row["container"] is None or _damage(row) is not None:
                whole.append(index)
            else:
                inside[row["uri"], row["container"], row["version"]].append(index)

        def read(index: int) -> None:
            row = rows[index]
            is_range = row["start_s"] is not None or row["end_s"] is not None
            is_shared = is_range and uses[row["uri"], row["byte_offset"]] > 1
            try:
                results[index] = self._read(row, is_range=is_range, is_shared=is_shared)
            except Exception as failure:  # one item must never cost its neighbours
                results[index] = _error(row["uri"], failure)

        def read_inside(file: tuple[str, str, str | None]) -> None:
            _read_inside(file, inside[file], rows, results)

        with ThreadPoolExecutor(self._config.num_threads) as pool:
            reads = [pool.submit(read_inside, file) for file in inside]
            reads += [pool.submit(read, index) for index in whole]
            for done in reads:
                done.result()
        data = pa.array([result if isinstance(result, bytes) else None for result in results], READ[0].type)
        errors = pa.array([result if isinstance(result, dict) else None for result in results], ERROR)
        if given.null_count < len(given):
            data = pc.coalesce(given, data)
        for field, column in zip(READ, (data, errors), strict=True):
            table = table.set_column(table.column_names.index(field.name), field, column)
        return table

    def _read(self, row: dict[str, Any], *, is_range: bool, is_shared: bool) -> bytes | None:
        uri, offset, size = row["uri"], row["byte_offset"], row["byte_size"]
        if (damage := _damage(row)) is not None:
            raise ReadError(damage)
        if size is None:  # it was not there when it was planned
            with stores.open_range(uri, offset, None, version=row["version"]) as file:
                size = file.seek(0, io.SEEK_END)
        most = self._config.whole_read_bytes
        if is_shared or size > (min(most, _SMALL_BYTES) if is_range else most):
            return None
        return stores.read_range(uri, offset, size, version=row["version"])


def _read_inside(
    file: tuple[str, str, str | None],
    indices: Sequence[int],
    rows: list[dict[str, Any]],
    results: list[_Result],
) -> None:
    """Fills in the results of the items that lie inside one file."""
    uri, container, version = file
    missing = set(indices)
    wanted = [
        Wanted(index, rows[index]["byte_offset"], rows[index]["byte_size"], rows[index]["row"])
        for index in indices
    ]
    try:
        for index, value in read_values(uri, container, version, wanted):
            results[index] = value if isinstance(value, bytes) else error_value(_STAGE, value)
            missing.discard(index)
    except Exception as failure:  # what was read by then stays
        for index in missing:
            results[index] = _error(uri, failure)


def _damage(row: dict[str, Any]) -> str | None:
    """What planning found wrong with the file."""
    if row["metadata"] and DAMAGE_KEY in row["metadata"]:
        damage: str | None = json.loads(row["metadata"]).get(DAMAGE_KEY)
        return damage
    return None


def _error(uri: str, failure: Exception) -> dict[str, str]:
    if not isinstance(failure, ItemError):
        reason = f"{type(failure).__name__}: {stores.explain(failure)}"
        failure = ReadError(f"{uri!r} cannot be read ({reason}); check it")
    return error_value(_STAGE, failure)
