"""The first stage of a Dataset that no plan made: rows with audio in any form in, items to be read out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile

from w2v_ray.errors import ConfigError, ReadError
from w2v_ray.schema import ERROR, ITEM, READ, error_value

__all__ = ["AUDIO_COLUMNS", "TakeAudio"]

# The names under which audio is looked for, where the caller does not say.
AUDIO_COLUMNS = ("audio", "bytes", "audio_bytes", "uri", "path", "amplitude")
_RATE_COLUMNS = ("sampling_rate", "sample_rate")
_TAKEN = {*ITEM.names, *(field.name for field in READ)}


class TakeAudio:
    """One item for each row, in the columns that ``read_audio`` takes; bytes that are given are in place.

    Items are numbered within the table, in ``item_index`` and ``recording_id``.

    Args:
        audio_column: The column with encoded bytes, a path or URL, an Audio struct of Hugging Face datasets,
            or samples with their rate in sampling_rate or sample_rate; None: the first of AUDIO_COLUMNS.
        keep: Other columns of the rows to carry along, through all stages.

    Raises:
        ConfigError: A column is not there, or has a name that the stages use.
    """

    def __init__(self, audio_column: str | None = None, *, keep: Sequence[str] = ()) -> None:
        self._audio_column = audio_column
        self._keep = tuple(keep)

    def __call__(self, rows: pa.Table) -> pa.Table:
        name = self._audio_column or next((n for n in AUDIO_COLUMNS if n in rows.column_names), None)
        if name is None or name not in rows.column_names:
            wanted = repr(self._audio_column) if self._audio_column else f"one of {', '.join(AUDIO_COLUMNS)}"
            raise ConfigError(
                f"the Dataset has no audio column {wanted} (its columns are {', '.join(rows.column_names)}); "
                "name it with audio_column="
            )
        for kept in self._keep:
            if kept not in rows.column_names or kept in _TAKEN:
                problem = (
                    "a column of the stages has that name; rename it" if kept in _TAKEN else "there is none"
                )
                raise ConfigError(f"keep names the column {kept!r}, and {problem}")
        rate_column = next((n for n in _RATE_COLUMNS if n in rows.column_names), None)
        rates = rows.column(rate_column).to_pylist() if rate_column else [None] * rows.num_rows
        given: list[bytes | None] = []
        uris: list[str] = []
        errors: list[dict[str, str] | None] = []
        for value, rate in zip(rows.column(name), rates, strict=True):
            source, error = None, None
            try:
                source = _source(value.as_py(), rate)
            except (TypeError, ValueError) as problem:
                error = error_value("read_audio", ReadError(f"column {name!r}: {problem}"))
            given.append(source if isinstance(source, bytes) else None)
            uris.append(source if isinstance(source, str) else "")
            errors.append(error)
        indices = range(rows.num_rows)
        items = pa.Table.from_pylist(
            [
                {"item_index": i, "recording_id": str(i), "uri": uri}
                for i, uri in zip(indices, uris, strict=True)
            ],
            schema=ITEM,
        )
        items = items.append_column(READ[0], pa.array(given, READ[0].type))
        items = items.append_column(READ[1], pa.array(errors, ERROR))
        for kept in self._keep:
            items = items.append_column(kept, rows.column(kept))
        return items


def _source(value: Any, rate: int | None) -> bytes | str:
    """The encoded bytes of a value, or the place to read them from."""
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        if value.get("array") is not None:
            return _wav(value["array"], value.get("sampling_rate"))
        value = value.get("path")
    if isinstance(value, bytes | str) and value:
        return value
    if isinstance(value, list | np.ndarray):
        return _wav(value, rate)
    raise TypeError(
        f"the value is {type(value).__name__} or empty, expected bytes, a path, an Audio struct or samples"
    )


def _wav(samples: Any, rate: int | None) -> bytes:
    """Samples in a container of their own, so that arrays go the way of all audio."""
    array = np.asarray(samples, np.float32)
    if rate is None:
        raise ValueError(f"samples without a rate; add a column {' or '.join(_RATE_COLUMNS)}")
    file = io.BytesIO()
    soundfile.write(file, array.T if array.ndim == 2 else array, int(rate), format="WAV", subtype="FLOAT")
    return file.getvalue()
