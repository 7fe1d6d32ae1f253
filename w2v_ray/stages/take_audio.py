"""The first stage of a Dataset that no plan made: rows with audio in any form in, items to be read out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile

from w2v_ray.audio.reader import MAX_CHANNELS
from w2v_ray.errors import ConfigError, ReadError
from w2v_ray.schema import DECODED, ENCODED, ERROR, ITEM, READ, SEGMENT, error_value

__all__ = ["AUDIO_COLUMNS", "TakeAudio"]

# The names under which audio is looked for, where the caller does not say.
AUDIO_COLUMNS = ("audio", "bytes", "audio_bytes", "uri", "path", "amplitude")
_RATE_COLUMNS = ("sampling_rate", "sample_rate")
_MAX_RATE_HZ = 2**31 - 1  # that a WAV can say; what is accepted is for decode_audio
# "text" is not among them: align_text takes it.
_TAKEN = {*ITEM.names, *(field.name for field in (*READ, *DECODED, *SEGMENT, *ENCODED))}


class TakeAudio:
    """One item for each row, in the columns that ``read_audio`` takes; bytes that are given are in place.

    Items are numbered within the table, in ``item_index`` and ``recording_id``.

    Args:
        audio_column: The column with encoded bytes, a path or URL, an Audio struct of Hugging Face datasets,
            or samples with their rate in sampling_rate or sample_rate; None: the first of AUDIO_COLUMNS.
        keep: Other columns of the rows to carry along, through all stages; ``text`` is what align_text takes,
            and decode_text adds one of its own.

    Raises:
        ConfigError: A column is not there, or has a name that the stages use.
    """

    def __init__(self, audio_column: str | None = None, *, keep: Sequence[str] = ()) -> None:
        self._audio_column = audio_column
        self._keep = tuple(keep)

    def column_of(self, names: Sequence[str]) -> str:
        """Which of the columns of a table holds the audio.

        Raises:
            ConfigError: None does.
        """
        name = self._audio_column or next((n for n in AUDIO_COLUMNS if n in names), None)
        if name is None or name not in names:
            wanted = repr(self._audio_column) if self._audio_column else f"one of {', '.join(AUDIO_COLUMNS)}"
            raise ConfigError(
                f"the Dataset has no audio column {wanted} (its columns are {', '.join(names)}); "
                "name it with audio_column="
            )
        return name

    def __call__(self, rows: pa.Table) -> pa.Table:
        name = self.column_of(rows.column_names)
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
        if "path" not in value and "bytes" not in value and "array" not in value:
            raise TypeError(
                f"the struct has {', '.join(value) or 'no fields'}, expected bytes, path, or array and "
                "sampling_rate"
            )
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
    array = np.asarray(samples)
    if array.dtype.kind in "iub":
        raise ValueError(
            f"samples are {array.dtype}, expected floats in [-1, 1]; divide those of 16 bits by 32768"
        )
    with np.errstate(over="ignore"):  # what has no float32 is infinite, and told of where it is decoded
        array = array.astype(np.float32)
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[0] > array.shape[1]):
        raise ValueError(
            f"samples have the shape {array.shape}, expected one row for each channel; transpose them"
        )
    if rate is None:
        raise ValueError(f"samples without a rate; add a column {' or '.join(_RATE_COLUMNS)}")
    if not isinstance(rate, int | float) or not 1 <= rate <= _MAX_RATE_HZ:
        raise ValueError(f"the rate of the samples is {rate!r}, expected Hz, such as 16000")
    if array.ndim == 2 and not 1 <= len(array) <= MAX_CHANNELS:
        raise ValueError(f"samples have {len(array):,} channels, expected 1 to {MAX_CHANNELS}; take some")
    file = io.BytesIO()
    soundfile.write(file, array.T if array.ndim == 2 else array, int(rate), format="WAV", subtype="FLOAT")
    return file.getvalue()
