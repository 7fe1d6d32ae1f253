"""Items and shards: long recordings cut into time ranges, and items grouped in their order.

All of it is a function of the entries and ``shard_seconds`` alone, so that whoever plans gets the same ids.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray.errors import InputError
from w2v_ray.parts import partition_folder
from w2v_ray.plan.known import text_slices
from w2v_ray.schema import DAMAGE_KEY, ITEM

__all__ = [
    "check_key",
    "group",
    "long_seconds",
    "make_items",
    "make_shards",
    "shard_bounds",
    "time_ranges",
]

_LONG = 1.5  # ranges: a recording up to this length is not cut
_MIN_LAST = 1 / 3  # of a range: a shorter rest stays with the range before it
_MIN_RANGE_S = 60.0  # decoding looks for silence some seconds around a border, and borders must not meet
_MAX_RANGE_S = 3600.0  # decoding holds the samples of a range, and refuses items of more than two hours

_MAX_ITEMS = 4096
_BYTES_PER_S = 32_000.0  # 16-bit samples at 16 kHz
_MAX_BYTES = 512 << 20  # of files read whole, however few seconds a high rate makes of them
_MAX_WHOLE_BYTES = 64 << 20  # larger files are opened in place
_MAX_NAME_BYTES = 255  # of a folder; percent-encoded names are ASCII


def long_seconds(shard_seconds: float) -> float:
    """The length from which on a recording is cut into time ranges."""
    return _range_seconds(shard_seconds) * _LONG


def time_ranges(
    start_s: float | None, end_s: float | None, duration_s: float, shard_seconds: float
) -> list[tuple[float | None, float | None, float]]:
    """Start, end and length of the ranges that a recording, or range of one, is planned as.

    They follow each other without a gap from ``start_s`` to ``end_s``, where None is the recording's own
    beginning or end. Inner borders are multiples of ``shard_seconds`` (of a minute or an hour at the
    extremes) from the start.
    """
    if duration_s <= long_seconds(shard_seconds) or shard_seconds == math.inf:
        return [(start_s, end_s, duration_s)]
    length_s = _range_seconds(shard_seconds)
    count = int(duration_s // length_s)
    if duration_s - count * length_s >= length_s * _MIN_LAST:
        count += 1
    borders = [(start_s or 0.0) + number * length_s for number in range(1, count)]
    lengths = [length_s] * (count - 1) + [duration_s - (count - 1) * length_s]
    return list(zip([start_s, *borders], [*borders, end_s], lengths, strict=True))


def _range_seconds(shard_seconds: float) -> float:
    return min(max(shard_seconds, _MIN_RANGE_S), _MAX_RANGE_S)


def group(planned_s: Sequence[float], num_bytes: Sequence[int], shard_seconds: float) -> list[int]:
    """Where each shard ends in the list of items: as many as fit in seconds, bytes and number."""
    ends = []
    begin, total_s, total_bytes = 0, 0.0, 0
    for index, (seconds, size) in enumerate(zip(planned_s, num_bytes, strict=True)):
        is_full = total_s + seconds > shard_seconds or total_bytes + size > _MAX_BYTES
        if index > begin and (is_full or index - begin == _MAX_ITEMS):
            ends.append(index)
            begin, total_s, total_bytes = index, 0.0, 0
        total_s += seconds
        total_bytes += size
    return [*ends, len(planned_s)] if planned_s else []


def check_key(setting: str, key: str, *tables: pa.Table) -> None:
    """Sees that some entry or planned item says something under a key that a setting names.

    Raises:
        InputError: None does, so that the setting would be of no use.
    """
    names: set[str] = set()
    is_damage_all = True
    for table in tables:
        for texts in text_slices(table.column("metadata")):
            for text in texts:
                said = json.loads(text or "{}")
                if key in said:
                    return
                if DAMAGE_KEY not in said:
                    is_damage_all = False
                    names.update(said)
    if is_damage_all:  # which says nothing of what there is
        return
    known = ", ".join(sorted(names)[:10]) or "none"
    raise InputError(
        f"{setting} is {key!r}, which no entry of the inputs has as a key (their keys: {known}); name one "
        f"of a manifest, or leave {setting} out"
    )


def make_items(
    entries: pa.Table,
    shard_seconds: float,
    *,
    cut_long: bool = True,
    partition_by: str | None = None,
    language_keys: Sequence[str] = (),
) -> pa.Table:
    """The rows of a plan.

    Args:
        entries: Rows with the fields of `Entry`, ``fingerprint`` and ``generation``; ``duration_s`` without
            nulls.
        shard_seconds: Of audio in a shard.
        cut_long: Whether long recordings are cut into time ranges; else each is one item.
        partition_by: The key of the metadata whose value all items of a shard have in common.
        language_keys: Other such keys.

    Returns:
        A table of the schema ITEM, shard after shard.

    Raises:
        InputError: A value of ``partition_by`` is too long for the name of a folder.
    """
    items = _cut(entries, shard_seconds if cut_long else math.inf)
    return make_shards(items, shard_seconds, partition_by, language_keys)


def make_shards(
    items: pa.Table, shard_seconds: float, partition_by: str | None = None, language_keys: Sequence[str] = ()
) -> pa.Table:
    """Items that are cut already, in shards of their own; arguments and result as of `make_items`."""
    sizes = [items.num_rows]
    if partition_by is not None or language_keys:
        items, sizes = _grouped(items, partition_by, language_keys)
    is_inside = pc.is_valid(items.column("container"))  # and read whole, whatever its size
    is_whole = pc.and_(pc.is_null(items.column("start_s")), pc.is_null(items.column("end_s")))
    num_bytes = pc.fill_null(items.column("byte_size"), 0)
    in_place = pc.if_else(is_whole, pc.min_element_wise(num_bytes, _MAX_WHOLE_BYTES), 0)
    # Of rows of tables only the length is estimated.
    estimate = pc.cast(pc.multiply(items.column("planned_s"), _BYTES_PER_S), pa.int64(), safe=False)
    weights = pc.if_else(is_inside, pc.coalesce(items.column("byte_size"), estimate), in_place).to_pylist()
    seconds = items.column("planned_s").to_pylist()
    editions = [items.column(name).combine_chunks() for name in ("fingerprint", "generation")]
    shard_ids: list[str] = []
    indices: list[int] = []
    first = 0
    for size in sizes:
        begin, last = first, first + size
        for end in group(seconds[first:last], weights[first:last], shard_seconds):
            end += first
            inside = (column.slice(begin, end - begin).to_pylist() for column in editions)
            names = "\n".join(map("{}~{}".format, *inside))
            shard_id = hashlib.sha256(names.encode()).hexdigest()[:20]
            shard_ids += [shard_id] * (end - begin)
            indices += range(end - begin)
            begin = end
        first = last
    columns = {"shard_id": pa.array(shard_ids, pa.string()), "item_index": pa.array(indices, pa.int32())}
    return pa.table(
        [columns[name] if name in columns else items.column(name) for name in ITEM.names], schema=ITEM
    )


def _grouped(
    items: pa.Table, partition_by: str | None, language_keys: Sequence[str]
) -> tuple[pa.Table, list[int]]:
    """The items by their values of the keys, values in the order they come in, and how many have each."""
    keys = [*([] if partition_by is None else [partition_by]), *language_keys]
    rows: dict[tuple[str, ...], list[int]] = {}
    for row, metadata in enumerate(items.column("metadata").to_pylist()):
        values = json.loads(metadata) if metadata else {}
        folders = tuple(partition_folder(key, values.get(key)) for key in keys)
        if partition_by is not None and len(folders[0]) > _MAX_NAME_BYTES:
            raise InputError(
                f"{items.column('recording_id')[row].as_py()!r} has a value of {partition_by!r} that makes a "
                f"folder name of {len(folders[0])} bytes where {_MAX_NAME_BYTES} are the most; shorten it, "
                "or partition by another key"
            )
        rows.setdefault(folders, []).append(row)
    order = [row for found in rows.values() for row in found]
    return items.take(pa.array(order, pa.int64())), [len(found) for found in rows.values()]


def shard_bounds(items: pa.Table) -> Iterator[tuple[str, int, int]]:
    """The id, first row and number of rows of each shard of a plan, in order."""
    begin = 0
    if items.num_rows:
        runs = pc.run_end_encode(pa.concat_arrays(items.column("shard_id").chunks))
        for shard_id, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
            yield shard_id, begin, end - begin
            begin = end


def _cut(entries: pa.Table, shard_seconds: float) -> pa.Table:
    """Adds planned_s, start_is_cut and end_is_cut; a long entry becomes several rows."""
    longest_s = pc.max(entries.column("duration_s")).as_py()
    if shard_seconds == math.inf or longest_s is None or longest_s <= long_seconds(shard_seconds):
        is_cut = pa.repeat(False, entries.num_rows)
        return (
            entries.append_column("planned_s", entries.column("duration_s"))
            .drop_columns(["duration_s"])
            .append_column("start_is_cut", is_cut)
            .append_column("end_is_cut", is_cut)
        )
    names = ("start_s", "end_s", "duration_s", "fingerprint")
    rows: list[int] = []
    starts: list[float | None] = []
    ends: list[float | None] = []
    lengths: list[float] = []
    start_cuts: list[bool] = []
    end_cuts: list[bool] = []
    fingerprints: list[str] = []
    columns = (entries.column(name).to_pylist() for name in names)
    for row, (start_s, end_s, duration_s, fingerprint) in enumerate(zip(*columns, strict=True)):
        ranges = time_ranges(start_s, end_s, duration_s, shard_seconds)
        for number, (range_start_s, range_end_s, length_s) in enumerate(ranges):
            rows.append(row)
            starts.append(range_start_s)
            ends.append(range_end_s)
            lengths.append(length_s)
            start_cuts.append(number > 0)
            end_cuts.append(number < len(ranges) - 1)
            nth = f"@{number + 1}/{len(ranges)}" if len(ranges) > 1 else ""
            fingerprints.append(fingerprint + nth)
    if len(rows) > entries.num_rows:
        entries = entries.take(pa.array(rows, pa.int64()))
    for name, column in [("start_s", starts), ("end_s", ends)]:
        array = pa.array(column, pa.float64())
        entries = entries.set_column(entries.column_names.index(name), name, array)
    return (
        entries.drop_columns(["duration_s", "fingerprint"])
        .append_column("planned_s", pa.array(lengths, pa.float64()))
        .append_column("start_is_cut", pa.array(start_cuts, pa.bool_()))
        .append_column("end_is_cut", pa.array(end_cuts, pa.bool_()))
        .append_column("fingerprint", pa.array(fingerprints, pa.string()))
    )
