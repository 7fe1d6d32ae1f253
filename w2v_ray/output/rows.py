"""Reading an output: the rows that count, recording after recording, without Ray."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray import stores
from w2v_ray.errors import OutputError
from w2v_ray.parts import Footer, list_parts, read_beside, read_footer, read_shards
from w2v_ray.plan.generations import current_items
from w2v_ray.plan.records import read_job, read_plans, table_of, tables_beside
from w2v_ray.plan.shards import shard_bounds
from w2v_ray.schema import REJECT, TABLES

__all__ = ["GENERATIONS", "Unit", "current_rows", "reading_units", "row_schema"]

GENERATIONS = ("newest", "all")

_THREADS = 8
_SHARDS_AT_ONCE = 32
_SHARDS_KEPT = 64  # of those read, as a recording that is planned again lies in shards far apart
_NEEDED = ["shard_id", "item_index", "recording_id", "fingerprint", "generation"]


def current_rows(
    output: str,
    table: str | None = None,
    *,
    generation: str = "newest",
    recordings: Collection[str] | None = None,
) -> Iterator[pa.Table]:
    """The rows of an output that count, in tables that hold whole recordings.

    Recordings come in the order in which they were planned first, and the rows of each by their start. Rows
    of shards that are not published yet are not there.

    Args:
        output: Folder or URL of a job's output.
        table: ``transcripts``, ``embeddings``, ``labels``, ``frames``, ``alignments`` or ``rejects``; None:
            that of the job's task.
        generation: ``newest`` leaves out what a later generation has taken the place of, ``all`` does not.
        recordings: The ids of those to read; None: all.

    Raises:
        OutputError: It is no output, has no such table, or a file cannot be read.
    """
    output, name = stores.canonical(output), _checked_table(stores.canonical(output), table)
    planned, files, is_current = _selected(output, generation)
    reader = _Reader(output, name, files)
    names_of_items = planned.column("recording_id").combine_chunks()
    if recordings is not None:
        wanted_names = pa.array(recordings, pa.string())
        is_current = pc.and_(is_current, pc.is_in(names_of_items, value_set=wanted_names))
    ranks = names_of_items.dictionary_encode()
    rows = pc.indices_nonzero(is_current)
    order = rows.take(pc.sort_indices(ranks.indices.take(rows)))  # stable: by recording, then as planned
    rank_of = ranks.indices.take(order).to_numpy()
    shards = planned.column("shard_id").combine_chunks().dictionary_encode()
    shard_of = shards.indices.take(order).to_numpy()
    items = planned.column("item_index").combine_chunks().take(order).to_numpy()
    for begin, end in _batches(rank_of, shard_of):
        parts = []
        codes = shard_of[begin:end]
        wanted = {
            shards.dictionary[int(code)].as_py(): items[begin:end][codes == code]
            for code in dict.fromkeys(codes)
        }
        for shard_id, found in reader.read(list(wanted)):
            keep = pc.is_in(found.column("item_index"), value_set=pa.array(wanted[shard_id], pa.int32()))
            parts.append(found.filter(keep))
        found = pa.concat_tables(parts)
        names = ranks.dictionary.take(pa.array(dict.fromkeys(rank_of[begin:end].tolist()), pa.int32()))
        rank = pc.index_in(found.column("recording_id"), value_set=names)
        keys = pa.table({"rank": rank, "start_s": found.column("start_s"), "row": np.arange(found.num_rows)})
        order_of_rows = pc.sort_indices(keys, [(key, "ascending") for key in keys.column_names])
        if found.num_rows:
            yield found.take(order_of_rows)


@dataclass(frozen=True, slots=True)
class Unit:
    """Some shards of an output, to be read by one worker."""

    output: str
    table: str
    files: Mapping[str, str]
    """By shard, the file that holds its rows."""
    items: Mapping[str, tuple[int, ...] | None]
    """By shard, the items that count; None: all."""

    def read(self) -> pa.Table:
        """The rows that count."""
        reader = _Reader(self.output, self.table, self.files)
        parts = []
        for shard_id, found in reader.read(list(self.files)):
            items = self.items[shard_id]
            if items is not None:
                found = found.filter(
                    pc.is_in(found.column("item_index"), value_set=pa.array(items, pa.int32()))
                )
            parts.append(found)
        return pa.concat_tables(parts)


def reading_units(output: str, table: str | None = None, *, generation: str = "newest") -> list[Unit]:
    """The rows that `current_rows` yields, as parts that can be read apart, in the order of the plan."""
    output, name = stores.canonical(output), _checked_table(stores.canonical(output), table)
    planned, files, is_current = _selected(output, generation)
    mask = is_current.to_numpy(zero_copy_only=False)
    indices = planned.column("item_index").to_numpy()
    kept: dict[str, tuple[int, ...] | None] = {}
    for shard_id, begin, size in shard_bounds(planned):
        found = mask[begin : begin + size]
        if found.any():
            kept[shard_id] = None if found.all() else tuple(indices[begin : begin + size][found].tolist())
    units: list[Unit] = []
    shards = list(kept)
    for begin in range(0, len(shards), _SHARDS_AT_ONCE):
        some = shards[begin : begin + _SHARDS_AT_ONCE]
        units.append(Unit(output, name, {s: files[s] for s in some}, {s: kept[s] for s in some}))
    return units


def _selected(output: str, generation: str) -> tuple[pa.Table, Mapping[str, str], pa.BooleanArray]:
    """What is planned, the files of what is published, and of each item whether its rows count."""
    if generation not in GENERATIONS:
        raise OutputError(f"generation is {generation!r}, expected newest or all; choose one")
    files = list_parts(output, table_of(read_job(output)[1])).files
    planned, _ = read_plans(output, _NEEDED)
    if generation == "newest":
        return planned, files, current_items(planned, files)
    published = pa.array(list(files), pa.string())
    return planned, files, pc.is_in(planned.column("shard_id"), value_set=published).combine_chunks()


def row_schema(output: str, table: str | None = None) -> pa.Schema:
    """The schema of what `current_rows` yields."""
    name = _checked_table(stores.canonical(output), table)
    return REJECT if name == "rejects" else TABLES[name]


def _checked_table(output: str, table: str | None) -> str:
    job = read_job(output)[1]
    names = [table_of(job), *tables_beside(job), "rejects"]
    if table is not None and table not in names:
        raise OutputError(f"{output!r} has no table {table!r}; name one of {', '.join(names)}")
    return table or names[0]


def _batches(ranks: np.ndarray, shards: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of whole recordings that lie in some tens of shards."""
    begin = 0
    seen: set[int] = set()
    for row, (rank, shard) in enumerate(zip(ranks.tolist(), shards.tolist(), strict=True)):
        if len(seen) >= _SHARDS_AT_ONCE and shard not in seen and ranks[row - 1] != rank:
            yield begin, row
            begin, seen = row, set()
        seen.add(shard)
    if begin < len(ranks):
        yield begin, len(ranks)


class _Reader:
    """Reads published shards, several at once, and keeps the last ones."""

    def __init__(self, output: str, table: str, files: Mapping[str, str]) -> None:
        self._output, self._table, self._files = output, table, files
        self._main = table_of(read_job(output)[1])
        self._footers: dict[str, Footer] = {}
        self._kept: OrderedDict[str, pa.Table] = OrderedDict()

    def read(self, shard_ids: list[str]) -> Iterator[tuple[str, pa.Table]]:
        by_file: dict[str, list[str]] = {}
        for shard_id in shard_ids:
            if shard_id not in self._kept:
                by_file.setdefault(self._files[shard_id], []).append(shard_id)
        with ThreadPoolExecutor(_THREADS) as pool:
            for found in pool.map(self._read_file, by_file, by_file.values()):
                self._kept.update(found)
        for shard_id in shard_ids:
            self._kept.move_to_end(shard_id)
            yield shard_id, self._kept[shard_id]
        while len(self._kept) > _SHARDS_KEPT:
            self._kept.popitem(last=False)

    def _read_file(self, name: str, shard_ids: list[str]) -> list[tuple[str, pa.Table]]:
        if name not in self._footers:
            self._footers[name] = read_footer(stores.join(self._output, self._main, name))
        wanted = set(shard_ids)
        summaries = [s for shard_id, s in self._footers[name].shards.items() if shard_id in wanted]
        names = [summary["shard_id"] for summary in summaries]
        if self._table != self._main:
            found = (read_beside(self._output, self._table, summary) for summary in summaries)
            return list(zip(names, found, strict=True))
        return list(zip(names, read_shards(self._output, self._main, name, summaries), strict=True))
