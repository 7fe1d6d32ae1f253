"""How long each recording is: as its input says, else its header, and measured where neither will do.

Nothing here fails: what cannot be opened gets an estimate from its size, and its reason when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray import stores
from w2v_ray.inputs.entries import extension

__all__ = ["with_durations"]

_LOCAL_THREADS = 8
_REMOTE_THREADS = 32
_CHUNK = 4096
_HEADER_BLOCK_BYTES = 1 << 16
_MEASURE_BLOCK_BYTES = 1 << 22
_UNCOMPRESSED = {".wav", ".wave", ".raw", ".pcm", ".sph", ".nist", ".aif", ".aiff", ".au", ".snd", ".w64"}


def with_durations(entries: pa.Table, *, long_s: float, unknown_s: float) -> pa.Table:
    """Fills ``duration_s``, the length of the recording or of the range that the entry is, in every row.

    Args:
        entries: Rows with the fields of `Entry` as columns.
        long_s: Recordings longer than this are cut by their length, which must therefore be true.
        unknown_s: The most that is assumed of what cannot be opened.
    """
    from w2v_ray.audio import codecs  # noqa: F401 - a broken installation shows here, not as estimates

    known = entries.column("duration_s").combine_chunks()
    is_unsure = pc.or_kleene(pc.is_null(known), pc.greater(known, long_s))
    unsure = entries.filter(is_unsure)
    if not unsure.num_rows:
        return entries
    is_remote = not all(map(stores.is_local, pc.unique(unsure.column("uri")).to_pylist()))
    found: list[float] = []
    with ThreadPoolExecutor(_REMOTE_THREADS if is_remote else _LOCAL_THREADS) as pool:
        for start in range(0, unsure.num_rows, _CHUNK):
            rows = unsure.slice(start, _CHUNK).to_pylist()
            found += pool.map(lambda row: _duration_s(row, long_s, unknown_s), rows)
    durations = pc.replace_with_mask(known, is_unsure, pa.array(found, pa.float64()))
    return entries.set_column(entries.column_names.index("duration_s"), "duration_s", durations)


def _duration_s(row: Mapping[str, Any], long_s: float, unknown_s: float) -> float:
    start_s = row["start_s"] or 0.0
    if row["container"] is not None:  # cannot be opened in place, and so is never cut
        return min(row["duration_s"] or _estimate_s(row), long_s)
    try:
        rest_s = max(0.0, _total_s(row, start_s + long_s) - start_s)
    except Exception:  # whatever it is: reading or decoding the item meets it again, and says so
        return min(row["duration_s"] or _estimate_s(row), unknown_s)
    return rest_s if row["end_s"] is None else min(rest_s, row["end_s"] - start_s)


def _estimate_s(row: Mapping[str, Any]) -> float:
    bytes_per_s = 32_000 if extension(row["recording_id"]) in _UNCOMPRESSED else 8_000
    return float((row["byte_size"] or 0) / bytes_per_s)


def _total_s(row: Mapping[str, Any], long_s: float) -> float:
    from w2v_ray.audio.codecs import measure_duration, probe

    part = row["uri"], row["byte_offset"], row["byte_size"]
    with stores.open_range(*part, block_bytes=_HEADER_BLOCK_BYTES) as file:
        header = probe(file)
    if header.duration_s is not None and (header.duration_is_exact or header.duration_s <= long_s):
        return header.duration_s
    with stores.open_range(*part, block_bytes=_MEASURE_BLOCK_BYTES) as file:
        return measure_duration(file)
