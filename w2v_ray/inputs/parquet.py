"""Parquet files whose rows hold audio, or name the files that do.

Only the small columns are read, row group by row group: the audio stays where it is until its item is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from w2v_ray import stores
from w2v_ray.errors import InputError, ReadError
from w2v_ray.inputs.columns import AudioColumn, find_audio_column, scalar_names, scalar_rows
from w2v_ray.inputs.entries import Entry, metadata_json
from w2v_ray.inputs.value_rows import RowGroup, row_entries
from w2v_ray.schema import DAMAGE_KEY

__all__ = ["read_parquet"]

_BLOCK_BYTES = 1 << 16


def read_parquet(
    file: stores.FileInfo,
    *,
    column: str | None = None,
    skipped: Counter[str],
    planned: Collection[tuple[str, str | None, str | None]] = (),
    is_named: bool = True,
) -> Iterator[Entry | None]:
    """An entry per row, and one for a file that is damaged; None for a file that is planned.

    Args:
        file: The file.
        column: The column of the audio; None: found by type and name.
        skipped: Counts the file if it was not named itself and holds no audio.
        planned: Uri, version and container of files that need not be read again.
        is_named: Whether the user named the file itself.

    Raises:
        InputError: The store does not give the file, or it has no column of audio.
    """
    num_entries = 0
    try:
        with stores.open_range(file.uri, None, None, block_bytes=_BLOCK_BYTES) as source:
            parquet = pq.ParquetFile(source)
            audio = find_audio_column(repr(file.uri), parquet.schema_arrow, column)
            if audio is None:
                if is_named:
                    names = ", ".join(parquet.schema_arrow.names)[:200]
                    raise InputError(
                        f"{file.uri!r} has no column of audio (its columns: {names}); name one as "
                        "audio_column"
                    )
                skipped[".parquet files without audio"] += 1
            elif (file.uri, file.version, f"parquet:{audio.name}") in planned:
                yield None
            else:
                for entry in row_entries(file, "parquet", audio, _row_groups(parquet, audio)):
                    num_entries += 1
                    yield entry
    except ReadError as error:
        raise InputError(f"{error} (planning has to look into every Parquet file)") from error
    except (pa.ArrowException, OSError) as error:
        text = (
            f"{file.uri!r} is no whole Parquet file ({stores.explain(error)}); repair it, as only the "
            f"{num_entries} recordings before that are planned"
        )
        metadata = metadata_json({DAMAGE_KEY: text})
        yield Entry(
            file.uri, file.uri, byte_size=file.size, version=file.version, duration_s=0.0, metadata=metadata
        )


def _row_groups(parquet: pq.ParquetFile, audio: AudioColumn) -> Iterator[RowGroup]:
    names = scalar_names(parquet.schema_arrow, audio)
    type_ = parquet.schema_arrow.field(audio.name).type
    path = None
    if audio.holds == "uris":
        path = audio.name
    elif audio.holds == "struct" and "path" in [field.name for field in type_]:
        path = f"{audio.name}.path"
    leaf = f"{audio.name}.bytes" if audio.holds == "struct" else audio.name
    wanted = [*names, *([path] if path else [])]
    first_row = 0
    for number in range(parquet.num_row_groups):
        num_rows = parquet.metadata.row_group(number).num_rows
        table = parquet.read_row_group(number, columns=wanted)
        values = list(scalar_rows(table, names)) if names else [{} for _ in range(num_rows)]
        paths: list[str | None] = [None] * num_rows
        if path:
            column = table.column(audio.name)
            paths = (column if audio.holds == "uris" else pc.struct_field(column, "path")).to_pylist()
        sizes: list[float | None] = [None] * num_rows
        if audio.holds != "uris":
            sizes = _sizes(parquet, number, audio, leaf, has_paths=path is not None)
        yield RowGroup(first_row, values, paths, sizes)
        first_row += num_rows


def _sizes(
    parquet: pq.ParquetFile, number: int, audio: AudioColumn, leaf: str, *, has_paths: bool
) -> list[float | None]:
    """The mean size of the values of a row group, where they are not null."""
    group = parquet.metadata.row_group(number)
    chunk = _chunk(group, leaf)
    is_counted = chunk.is_stats_set and chunk.statistics.has_null_count
    num_nulls = chunk.statistics.null_count if is_counted else 0
    if num_nulls == group.num_rows:
        return [None] * group.num_rows
    mean = chunk.total_uncompressed_size / (group.num_rows - num_nulls)
    if not num_nulls and (
        is_counted or not has_paths
    ):  # nulls without a path are rejected when they are read
        return [mean] * group.num_rows
    # Only where some rows have bytes and some a path must these be read to tell which.
    sizes: list[float | None] = []
    for batch in parquet.iter_batches(batch_size=16, row_groups=[number], columns=[leaf], use_threads=False):
        values = batch.column(0)
        values = values.field("bytes") if audio.holds == "struct" else values
        sizes += [mean if is_there else None for is_there in values.is_valid().to_pylist()]
    return sizes


def _chunk(group: Any, leaf: str) -> Any:
    chunks = (group.column(index) for index in range(group.num_columns))
    return next(chunk for chunk in chunks if chunk.path_in_schema == leaf)
