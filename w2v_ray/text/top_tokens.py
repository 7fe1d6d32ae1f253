"""Emissions made small: of each frame the likeliest tokens, and back to all of them.

What is kept in files has at most so many tokens a frame, and none that is less likely than ``FLOOR``, except
the blank, which is always kept: a search drops such tokens anyway, and what is not there compresses best.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from w2v_ray.errors import EncodeError

__all__ = ["FLOOR", "keep_top_tokens", "restore_emission", "spread_tokens"]

FLOOR = -10.0  # natural log: 1 in 22,000; a search at its defaults ignores what is below -5
_TYPE = np.dtype("<f2")


def keep_top_tokens(log_probs: NDArray[np.floating[Any]], *, count: int, blank: int) -> tuple[bytes, bytes]:
    """Picks the blank and the ``count - 1`` likeliest other tokens of each frame.

    Args:
        log_probs: Natural log-probabilities, shape (frames, columns).
        count: Tokens of a frame, the blank included; more than there are columns means all.
        blank: The column of the blank.

    Returns:
        The columns of the others, likeliest first, in unsigned bytes, or in two bytes each where there are
        more than 256 columns, shape (count - 1, frames); and the log-probabilities of the blank and of
        these as float16, first all lower bytes and then all upper ones, shape (2, count, frames). Where a
        frame keeps fewer, the column is 0 and the log-probability minus infinity.
    """
    frames, columns = log_probs.shape
    if not frames:
        return b"", b""
    others = min(count, columns) - 1
    values = log_probs.astype(np.float32)
    kept = np.empty((others + 1, frames), np.float32)
    kept[0] = values[:, blank]
    values[:, blank] = -np.inf
    ids = np.argsort(-values, axis=1, kind="stable")[:, :others]
    kept[1:] = np.take_along_axis(values, ids, axis=1).T
    gone = kept[1:] < FLOOR
    kept[1:][gone] = -np.inf
    ids = np.where(gone, 0, ids.T).astype(_id_type(columns))
    pairs = kept.astype(_TYPE).view(np.uint8).reshape(-1, 2)
    return ids.tobytes(), pairs.T.tobytes()


def restore_emission(
    ids: bytes | memoryview, log_probs: bytes | memoryview, *, num_frames: int, num_columns: int, blank: int
) -> NDArray[np.float16]:
    """Makes an emission of what ``keep_top_tokens`` kept of it.

    The probability that is left of a frame is shared equally by the tokens that were not kept, none of
    which gets more than the least likely one that was.

    Args:
        ids: As returned by ``keep_top_tokens``.
        log_probs: As returned by ``keep_top_tokens``.
        num_frames: Frames of the emission.
        num_columns: Columns of the emission.
        blank: The column of the blank.

    Returns:
        Natural log-probabilities, shape (num_frames, num_columns).

    Raises:
        EncodeError: The sizes do not fit each other, or a column does not exist.
    """
    count, rest = divmod(len(log_probs), max(1, num_frames) * _TYPE.itemsize)
    id_type = _id_type(num_columns)
    if rest or len(ids) != max(0, count - 1) * num_frames * id_type.itemsize or (num_frames and not count):
        raise EncodeError(
            f"what is kept of the emission has {len(log_probs)} and {len(ids)} bytes, which does not fit "
            f"{num_frames} frames; transcribe again"
        )
    emission = np.full((num_frames, num_columns), -np.inf, np.float32)
    if not num_frames:
        return emission.astype(np.float16)
    pairs = np.frombuffer(log_probs, np.uint8).reshape(2, -1).T
    kept = np.ascontiguousarray(pairs).view(_TYPE).reshape(count, num_frames).astype(np.float32)
    columns = np.frombuffer(ids, id_type).reshape(count - 1, num_frames)
    is_kept = np.isfinite(kept[1:])
    if (columns[is_kept] >= num_columns).any():
        raise EncodeError(
            f"what is kept of the emission names a column beyond {num_columns}; transcribe again"
        )
    rank, frame = np.nonzero(is_kept)
    emission[frame, columns[rank, frame]] = kept[1:][rank, frame]
    emission[:, blank] = kept[0]

    missing = ~np.isfinite(emission)
    missing[:, blank] = False
    num_missing = missing.sum(axis=1)
    left = 1 - np.exp(np.where(missing, -np.inf, emission).astype(np.float64)).sum(axis=1)
    share = np.log(np.maximum(left, 1e-7) / np.maximum(num_missing, 1))
    least = np.where(is_kept, kept[1:], 0).min(axis=0, initial=0)
    fill = np.minimum(share, np.where(is_kept.all(axis=0), least, FLOOR))
    return np.where(missing, fill[:, None], emission).astype(np.float16)


def spread_tokens(
    ids: NDArray[np.uint16], log_probs: NDArray[np.float16], *, num_columns: int
) -> NDArray[np.float16]:
    """Makes an emission of the likeliest tokens of each frame.

    The probability that is left of a frame is shared equally by the others, none of which gets more than the
    least likely one that is given.

    Args:
        ids: The columns of the tokens, in any order, shape (frames, tokens).
        log_probs: Their natural log-probabilities, of the same shape.
        num_columns: Columns of the emission.

    Returns:
        Natural log-probabilities, shape (frames, num_columns).

    Raises:
        EncodeError: A column does not exist.
    """
    if ids.size and ids.max() >= num_columns:
        raise EncodeError(f"the emission names column {ids.max()} of {num_columns}; encode the segment again")
    given = log_probs.astype(np.float32)
    left = np.maximum(1 - np.exp(given).sum(axis=1), 1e-7)
    share = np.log(left / max(1, num_columns - ids.shape[1]))
    fill = np.minimum(share, given.min(axis=1, initial=0)).astype(np.float16)
    emission = np.repeat(fill[:, None], num_columns, axis=1)
    np.put_along_axis(emission, ids.astype(np.intp), log_probs, axis=1)
    return emission


def _id_type(columns: int) -> np.dtype[Any]:
    return np.dtype("u1" if columns <= 256 else "<u2")
