"""Which column of a Parquet or Arrow file holds the audio, and what the others say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray.errors import InputError
from w2v_ray.inputs.entries import extension
from w2v_ray.inputs.rows import PATH_KEYS

__all__ = ["AudioColumn", "find_audio_column", "scalar_names", "scalar_rows", "seconds_of"]

_BYTES_NAMES = ("audio", "audio_bytes", "bytes", "wav", "flac", "mp3", "speech", "content", "data")
_UNCOMPRESSED = {".wav", ".wave", ".raw", ".pcm", ".sph", ".aif", ".aiff", ".au", ".snd", ".w64"}


class AudioColumn(NamedTuple):
    """The column of the audio."""

    name: str
    holds: str
    """``bytes``, ``struct`` (of bytes and path) or ``uris``."""


def find_audio_column(where: str, schema: pa.Schema, name: str | None) -> AudioColumn | None:
    """The column that holds encoded audio, or else paths and URLs of it; None where there is none.

    Args:
        where: The file in words.
        schema: Its columns.
        name: The column to take; None: found by type, and by name where several have one.

    Raises:
        InputError: ``name`` is not there or cannot hold audio, or several columns can.
    """
    if name is not None:
        if name not in schema.names:
            raise InputError(
                f"{where} has no column {name!r}, which audio_column names (its columns: {_listed(schema)})"
            )
        if (holds := _holds(schema.field(name).type)) is None:
            raise InputError(
                f"the column {name!r} of {where} is {schema.field(name).type}, expected bytes, text, or a "
                "struct of bytes and path; name another as audio_column"
            )
        return AudioColumn(name, holds)
    features = _features(schema)
    columns = [
        AudioColumn(field.name, holds)
        for field in schema
        if (holds := _holds(field.type)) is not None and features.get(field.name, "Audio") == "Audio"
    ]
    for holds in ("struct", "bytes"):
        found = [column for column in columns if column.holds == holds]
        if declared := [column for column in found if column.name in features]:
            found = declared
        if len(found) > 1:
            found = [column for column in found if column.name == _BYTES_NAMES[0]] or found
        if len(found) > 1:
            found = [column for column in found if column.name in _BYTES_NAMES] or found
        if len(found) > 1:
            names = ", ".join(column.name for column in found)
            raise InputError(
                f"{where} has several columns that may hold audio ({names}); name one as audio_column"
            )
        if found:
            return found[0]
    texts = [column.name for column in columns if column.holds == "uris"]
    return next((AudioColumn(key, "uris") for key in PATH_KEYS if key in texts), None)


def scalar_names(schema: pa.Schema, audio: AudioColumn) -> list[str]:
    """The columns beside the audio whose values JSON can hold."""
    return [field.name for field in schema if field.name != audio.name and _is_scalar(field.type)]


def scalar_rows(table: pa.Table | pa.RecordBatch, names: list[str]) -> Iterator[dict[str, Any]]:
    """The values of these columns, row by row, as JSON has them: times are texts, NaN is null."""
    columns = [_json_values(table.column(name)) for name in names]
    if not columns:
        yield from ({} for _ in range(table.num_rows))
        return
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def seconds_of(row: Mapping[str, Any], num_bytes: float | None, path: str | None) -> float:
    """The length of a recording by its row's ``duration``, or else an estimate from its size."""
    duration_s = row.get("duration")
    if isinstance(duration_s, int | float) and 0 < duration_s < math.inf:
        return float(duration_s)
    bytes_per_s = 32_000 if extension(path or "") in _UNCOMPRESSED else 8_000
    return (num_bytes or 0) / bytes_per_s


def _holds(type_: pa.DataType) -> str | None:
    if pa.types.is_struct(type_):
        names = [field.name for field in type_]
        if "bytes" in names and _is_binary(type_.field("bytes").type):
            return "struct"
        return None
    if _is_binary(type_):
        return "bytes"
    return "uris" if pa.types.is_string(type_) or pa.types.is_large_string(type_) else None


def _is_binary(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def _is_scalar(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return not (
        pa.types.is_nested(type_)
        or _is_binary(type_)
        or pa.types.is_fixed_size_binary(type_)
        or pa.types.is_binary_view(type_)
        or pa.types.is_interval(type_)  # which Arrow makes no text of
        or isinstance(type_, pa.BaseExtensionType)
    )


def _json_values(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    type_ = column.type
    if pa.types.is_temporal(type_) or pa.types.is_decimal(type_):
        column = pc.cast(column, pa.string())
    values: list[Any] = column.to_pylist()
    if pa.types.is_floating(type_):
        return [value if value is None or math.isfinite(value) else None for value in values]
    return values


def _features(schema: pa.Schema) -> dict[str, str]:
    """The kinds of columns, as Hugging Face datasets note them in their files."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: value["_type"] for name, value in features.items() if value["_type"] != "Value"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _listed(schema: pa.Schema) -> str:
    return ", ".join(schema.names)[:200]
