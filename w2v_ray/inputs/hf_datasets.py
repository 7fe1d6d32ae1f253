"""Hugging Face datasets: folders that ``save_to_disk`` wrote, and datasets by their names.

Both are Arrow files, which are mapped and not read: audio is neither loaded nor decoded.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray import stores
from w2v_ray.errors import InputError
from w2v_ray.inputs.columns import AudioColumn, find_audio_column, scalar_names, scalar_rows
from w2v_ray.inputs.entries import Entry
from w2v_ray.inputs.value_rows import RowGroup, row_entries

__all__ = ["SCHEME", "is_saved_dataset", "read_named_dataset", "read_saved_dataset"]

SCHEME = "hf-dataset://"
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_OPTIONS = ("config", "split", "revision")

_Planned = Collection[tuple[str, str | None, str | None]]


def is_saved_dataset(folder: str) -> bool:
    """Whether ``save_to_disk`` of a dataset, or of several splits, wrote the folder."""
    return any(stores.exists(stores.join(folder, name)) for name in (_STATE, _SPLITS))


def read_saved_dataset(folder: str, *, column: str | None, planned: _Planned) -> Iterator[Entry | None]:
    """The rows of a folder that ``save_to_disk`` wrote, split after split; None for a file that is planned.

    Raises:
        InputError: It lies in a store, is not complete, or has no column of audio.
    """
    if not stores.is_local(folder):
        raise InputError(
            f"{folder!r} is a dataset saved in a store, where it cannot be mapped; copy it to a disk that "
            "all workers see, or save it there as Parquet"
        )
    try:
        if stores.exists(stores.join(folder, _SPLITS)):
            names = json.loads(stores.read_bytes(stores.join(folder, _SPLITS)))["splits"]
            folders = [stores.join(folder, str(name)) for name in names]
        else:
            folders = [folder]
        files = [
            stores.join(part, str(file["filename"]))
            for part in folders
            for file in json.loads(stores.read_bytes(stores.join(part, _STATE)))["_data_files"]
        ]
        if outside := next((path for path in files if ".." in path.removeprefix(folder).split("/")), None):
            raise ValueError(f"it names {outside!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = stores.explain(error)
        raise InputError(f"{folder!r} is no whole saved dataset ({reason}); save it again") from error
    for path in files:
        yield from _read_arrow(path, column, planned)


def read_named_dataset(text: str, *, column: str | None, planned: _Planned) -> Iterator[Entry | None]:
    """The rows of ``hf-dataset://NAME?config=...&split=...&revision=...``, fetched to the cache where needed.

    Raises:
        InputError: The package is missing, the dataset cannot be loaded, or it has no column of audio.
    """
    name, _, query = text.removeprefix(SCHEME).partition("?")
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True)) if query else {}
    except ValueError:
        options = {query: ""}
    unknown = [key for key in options if key not in _OPTIONS or not options[key]]
    if unknown or not name:
        what = f"has {unknown[0]!r} after its '?'" if unknown else "has no name"
        raise InputError(
            f"input {text!r} {what}; write {SCHEME}NAME or {SCHEME}NAME?config=...&split=...&revision=..."
        )
    if "[" in options.get("split", ""):
        raise InputError(
            f"input {text!r} takes a part of a split; name whole splits, such as train or train+test"
        )
    for path in _fetched(text, name, options):
        yield from _read_arrow(path, column, planned)


def _fetched(text: str, name: str, options: dict[str, str]) -> list[str]:
    """The Arrow files that the package makes of a dataset, in order."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"input {text!r} needs the package datasets; pip install datasets") from error
    datasets.disable_progress_bars()
    try:
        loaded: Any = datasets.load_dataset(
            name, options.get("config"), split=options.get("split"), revision=options.get("revision")
        )
    except Exception as error:  # of the network, the hub, the builder or the files
        raise InputError(
            f"input {text!r} cannot be loaded ({type(error).__name__}: {stores.explain(error)}); check its "
            "name, config and split, and that the hub can be reached"
        ) from error
    parts = list(loaded.values()) if isinstance(loaded, dict) else [loaded]
    return [file["filename"] for part in parts for file in part.cache_files]


def _read_arrow(path: str, column: str | None, planned: _Planned) -> Iterator[Entry | None]:
    file = stores.info(path)
    if file is None:
        raise InputError(f"{path!r}, a file of a dataset, does not exist; save the dataset again")
    try:
        with pa.memory_map(stores.local_path(file.uri)) as source, pa.ipc.open_stream(source) as reader:
            audio = find_audio_column(repr(file.uri), reader.schema, column)
            if audio is None:
                names = ", ".join(reader.schema.names)[:200]
                raise InputError(
                    f"{file.uri!r} has no column of audio (its columns: {names}); name one as audio_column"
                )
            if (file.uri, file.version, f"arrow:{audio.name}") in planned:
                yield None
                return
            yield from row_entries(file, "arrow", audio, _record_batches(reader, audio))
    except (pa.ArrowException, OSError) as error:
        reason = stores.explain(error)
        raise InputError(f"{file.uri!r} is no whole Arrow file ({reason}); save the dataset again") from error


def _record_batches(reader: pa.ipc.RecordBatchStreamReader, audio: AudioColumn) -> Iterator[RowGroup]:
    names = scalar_names(reader.schema, audio)
    first_row = 0
    for batch in reader:
        column = batch.column(audio.name)
        paths: list[str | None] = [None] * batch.num_rows
        sizes: list[float | None] = [None] * batch.num_rows
        if audio.holds == "uris":
            paths = column.to_pylist()
        else:
            data = column.field("bytes") if audio.holds == "struct" else column
            sizes = pc.binary_length(data).to_pylist()
            if audio.holds == "struct" and "path" in [field.name for field in column.type]:
                paths = column.field("path").to_pylist()
        yield RowGroup(first_row, list(scalar_rows(batch, names)), paths, sizes)
        first_row += batch.num_rows
