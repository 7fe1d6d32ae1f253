"""How long each recording is: as its input says, else its header, and measured where neither will do.

Nothing here fails: what cannot be opened gets an estimate from its size, and its reason when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from w2v_ray import stores
from w2v_ray.inputs.entries import extension

__all__ = ["Recording", "duration_s", "with_durations"]

_LOCAL_THREADS = 8
_REMOTE_THREADS = 32
_CHUNK = 16_384
_SLICE = 256  # plain headers that a thread looks at before another has its turn
_HEAD_BYTES = 1 << 14  # of a local file: a FLAC has its first frame behind some kilobytes of padding
_HEADER_BLOCK_BYTES = 1 << 16
_MEASURE_BLOCK_BYTES = 1 << 22
_UNCOMPRESSED = {".wav", ".wave", ".raw", ".pcm", ".sph", ".nist", ".aif", ".aiff", ".au", ".snd", ".w64"}


class Recording(NamedTuple):
    """What of an entry says where it is and how long it may be, with the meanings of `Entry`."""

    recording_id: str
    uri: str
    byte_offset: int | None
    byte_size: int | None
    container: str | None
    start_s: float | None
    end_s: float | None
    duration_s: float | None


def with_durations(entries: pa.Table, *, long_s: float, unknown_s: float) -> pa.Table:
    """Fills ``duration_s``, the length of the recording or of the range that the entry is, in every row.

    Args:
        entries: Rows with the fields of `Entry` as columns.
        long_s: Recordings longer than this are cut by their length, which must therefore be true.
        unknown_s: The most that is assumed of what cannot be opened.
    """
    from w2v_ray.audio import codecs  # noqa: F401 - a broken installation shows here, not as estimates

    durations = np.empty(entries.num_rows)
    look, measure = partial(_plain, long_s=long_s), partial(duration_s, long_s=long_s, unknown_s=unknown_s)
    with ThreadPoolExecutor(_LOCAL_THREADS) as threads, ThreadPoolExecutor(_REMOTE_THREADS) as many_threads:
        for begin in range(0, entries.num_rows, _CHUNK):
            chunk = entries.slice(begin, _CHUNK).select(Recording._fields)
            known = chunk.column("duration_s").to_numpy()
            found = durations[begin : begin + len(known)]
            found[:] = known
            unsure = np.flatnonzero(~(known <= long_s))  # or NaN: not known
            if not len(unsure):
                continue
            columns = chunk.take(pa.array(unsure)).to_pydict().values()
            rows = list(map(Recording._make, zip(*columns, strict=True)))
            slices = [rows[start : start + _SLICE] for start in range(0, len(rows), _SLICE)]
            found[unsure] = list(chain.from_iterable(threads.map(look, slices)))
            left = np.flatnonzero(np.isnan(found))
            if len(left):
                rows = [rows[row] for row in np.searchsorted(unsure, left)]
                is_local = all(stores.is_local(row.uri) for row in rows)
                found[left] = list((threads if is_local else many_threads).map(measure, rows))
    return entries.set_column(
        entries.column_names.index("duration_s"), "duration_s", pa.array(durations, pa.float64())
    )


def duration_s(row: Recording, long_s: float, unknown_s: float) -> float:
    """The length in seconds of a recording, or of the range of one; arguments as of `with_durations`."""
    try:
        return _rest_s(row, _total_s(row, (row.start_s or 0.0) + long_s))
    except Exception:  # whatever it is: reading or decoding the item meets it again, and says so
        return min(row.duration_s or _estimate_s(row), unknown_s)


def _plain(rows: Sequence[Recording], long_s: float) -> list[float]:
    """The lengths of those recordings that tell them at a glance; NaN for the others."""
    return [_plain_s(row, long_s) for row in rows]


def _plain_s(row: Recording, long_s: float) -> float:
    from w2v_ray.audio.plain_headers import read_plain_header

    if row.container is not None:  # cannot be opened in place, and so is never cut
        return min(row.duration_s or _estimate_s(row), long_s)
    found = stores.local_head(row.uri, row.byte_offset, _HEAD_BYTES)
    if found is None or row.byte_size is None:
        return np.nan
    head, size = found
    if size < row.byte_size or (row.byte_offset is None and size > row.byte_size):
        return np.nan
    header = read_plain_header(lambda offset, count: head[offset : offset + count], row.byte_size)
    return np.nan if header is None else _rest_s(row, header.num_frames / header.sample_rate_hz)


def _rest_s(row: Recording, total_s: float) -> float:
    start_s = row.start_s or 0.0
    rest_s = max(0.0, total_s - start_s)
    return rest_s if row.end_s is None else min(rest_s, row.end_s - start_s)


def _estimate_s(row: Recording) -> float:
    bytes_per_s = 32_000 if extension(row.recording_id) in _UNCOMPRESSED else 8_000
    return float((row.byte_size or 0) / bytes_per_s)


def _total_s(row: Recording, long_s: float) -> float:
    from w2v_ray.audio.codecs import measure_duration, probe

    part = row.uri, row.byte_offset, row.byte_size
    with stores.open_range(*part, block_bytes=_HEADER_BLOCK_BYTES) as file:
        header = probe(file)
    if header.duration_s is not None and (header.duration_is_exact or header.duration_s <= long_s):
        return header.duration_s
    with stores.open_range(*part, block_bytes=_MEASURE_BLOCK_BYTES) as file:
        return measure_duration(file)
