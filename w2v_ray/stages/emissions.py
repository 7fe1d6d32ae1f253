"""Emissions in a table of encoded segments: all columns of each, or of each frame the likeliest tokens."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from w2v_ray.errors import EncodeError
from w2v_ray.schema import EMISSION_DTYPE, ENCODED, TOP_TOKENS
from w2v_ray.text.top_tokens import spread_tokens

__all__ = ["Emission", "drop_emissions", "emission_of", "take_emission"]

_DTYPE = np.dtype(EMISSION_DTYPE).newbyteorder("<")
_ID_DTYPE = np.dtype("<u2")
Emission = NDArray[np.float16]


def emission_of(table: pa.Table, row: int) -> Emission:
    """The emission of a segment, shape (num_frames, columns); where only its likeliest tokens are there, the
    rest of each frame's probability is shared by the others.

    Raises:
        EncodeError: There is none, or its size does not fit the number of frames.
    """
    values = take_emission(
        table.column("log_probs")[row].as_buffer(), table.column("num_frames")[row].as_py()
    )
    tokens, size = TOP_TOKENS
    if tokens.name not in table.column_names or not len(values):
        return values
    buffer = table.column(tokens.name)[row].as_buffer()
    if buffer is None:
        return values
    num_columns = table.column(size.name)[row].as_py()
    ids = np.frombuffer(buffer, _ID_DTYPE)
    if len(ids) != values.size or num_columns is None:
        raise EncodeError(
            f"the emission has {len(ids)} tokens and {values.size} log-probabilities, of {num_columns} "
            "columns; encode the segment again"
        )
    return spread_tokens(ids.reshape(values.shape), values, num_columns=num_columns)


def take_emission(buffer: pa.Buffer | None, num_frames: int | None) -> Emission:
    """The numbers of a buffer, a row for each frame.

    Raises:
        EncodeError: There is none, or its size does not fit the number of frames.
    """
    if buffer is None or num_frames is None:
        raise EncodeError("the segment has neither an emission nor an error; encode it again")
    if num_frames == 0:
        return np.zeros((0, 0), _DTYPE)
    columns, rest = divmod(buffer.size, num_frames * _DTYPE.itemsize)
    if num_frames < 0 or rest or not columns:
        raise EncodeError(
            f"the emission has {buffer.size} bytes, expected a multiple of {_DTYPE.itemsize} for each "
            f"of its {num_frames} frames"
        )
    return np.frombuffer(buffer, _DTYPE).reshape(num_frames, columns)


def drop_emissions(table: pa.Table) -> pa.Table:
    """The table without them."""
    names = {ENCODED[0].name, *(field.name for field in TOP_TOKENS)}
    return table.drop_columns([name for name in table.column_names if name in names])
