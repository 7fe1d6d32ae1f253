"""Reading: the bytes of each item, fetched in threads, exactly as many and of that version as were planned.

Nothing is decoded. What is too large to hold, and ranges of files that several items share, stay where they
are for `decode_audio` to open in place.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray import stores
from w2v_ray.errors import ConfigError, ItemError, ReadError
from w2v_ray.schema import DAMAGE_KEY, ERROR, READ, error_value

__all__ = ["ReadAudio", "ReadAudioConfig"]

_STAGE = "read_audio"
_NEEDED = ["uri", "byte_offset", "byte_size", "version", "start_s", "end_s", "metadata"]


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
    ``whole_read_bytes``, or is a time range of a file that other items of the table are ranges of, too.
    Bytes and errors that the table has already are kept.
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

        def read(row: dict[str, Any]) -> bytes | dict[str, str] | None:
            if row["error"] is not None or row["is_given"]:
                error: dict[str, str] | None = row["error"]
                return error
            is_range = row["start_s"] is not None or row["end_s"] is not None
            try:
                return self._read(row, is_shared=is_range and uses[row["uri"], row["byte_offset"]] > 1)
            except ItemError as failure:
                return error_value(_STAGE, failure)
            except Exception as failure:  # one item must never cost its neighbours
                reason = f"{type(failure).__name__}: {stores.explain(failure)}"
                return error_value(_STAGE, ReadError(f"{row['uri']!r} cannot be read ({reason}); check it"))

        with ThreadPoolExecutor(self._config.num_threads) as pool:
            results = list(pool.map(read, rows))
        data = pa.array([result if isinstance(result, bytes) else None for result in results], READ[0].type)
        errors = pa.array([result if isinstance(result, dict) else None for result in results], ERROR)
        if given.null_count < len(given):
            data = pc.coalesce(given, data)
        for field, column in zip(READ, (data, errors), strict=True):
            table = table.set_column(table.column_names.index(field.name), field, column)
        return table

    def _read(self, row: dict[str, Any], *, is_shared: bool) -> bytes | None:
        uri, offset, size = row["uri"], row["byte_offset"], row["byte_size"]
        if row["metadata"] and DAMAGE_KEY in row["metadata"]:
            damage = json.loads(row["metadata"]).get(DAMAGE_KEY)
            if damage is not None:
                raise ReadError(damage)
        if size is None:  # it was not there when it was planned
            with stores.open_range(uri, offset, None, version=row["version"]) as file:
                size = file.seek(0, io.SEEK_END)
        if is_shared or size > self._config.whole_read_bytes:
            return None
        return stores.read_range(uri, offset, size, version=row["version"])
