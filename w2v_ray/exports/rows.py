"""What an output holds: its recordings in the order of its plans, and their rows, read shard by shard.

A recording may lie in many shards: time ranges of one follow each other, and a part that was tried again
comes with a later plan. A few shards are held at a time, and the next ones are fetched meanwhile.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from w2v_ray import stores
from w2v_ray.errors import OutputError
from w2v_ray.plan.records import published_shards, read_job, read_plans, table_of
from w2v_ray.schema import REJECT, TABLES

__all__ = ["Planned", "read_planned", "read_rows"]

_THREADS = 8
_AHEAD = 4  # shards fetched before they are needed
_TOGETHER = 8  # whose rows are taken together
_HELD = 16  # at once: more than a recording that was tried again needs in most plans


class Planned(NamedTuple):
    """What the plans of an output say of it."""

    output: str
    table: str
    recording_ids: list[str]
    """In the order in which they were planned first."""
    members: set[str]
    """Those whose audio is a part of a file, such as a member of a tar."""
    pending: set[str]
    """Those of which an item is not published."""


def read_planned(output: str) -> Planned:
    """Reads the plans of an output.

    Raises:
        OutputError: It is not the output of a job of this version, or cannot be read.
    """
    if (reason := stores.refusal(output)) is not None:
        raise OutputError(f"output {output!r} {reason}")
    output = stores.canonical(output)
    try:
        table = table_of(read_job(output)[1])
        items, _ = read_plans(output, ["shard_id", "recording_id", "byte_offset"])
        published = pa.array(published_shards(output, table), pa.string())
    except OutputError:
        raise
    except Exception as error:  # each store has its own errors
        message = f"output {output!r} cannot be listed ({stores.explain(error)}); check name and permissions"
        raise OutputError(message) from error
    if not items.num_rows:
        raise OutputError(f"output {output!r} holds no plan; name the output of a job that has started")
    recordings = items.column("recording_id").combine_chunks()
    is_member = pc.is_valid(items.column("byte_offset").combine_chunks())
    is_pending = pc.invert(pc.is_in(items.column("shard_id").combine_chunks(), value_set=published))
    return Planned(
        output=output,
        table=table,
        recording_ids=pc.unique(recordings).to_pylist(),
        members=set(recordings.filter(is_member).to_pylist()),
        pending=set(recordings.filter(is_pending).to_pylist()),
    )


def read_rows(planned: Planned, table: str, recording_ids: Collection[str] | None) -> Iterator[pa.Table]:
    """Yields published rows in tables that hold whole recordings, in the order of `Planned`.

    Args:
        planned: What `read_planned` found.
        table: ``transcripts``, ``alignments`` or ``rejects``.
        recording_ids: The recordings to read; None: all.

    Raises:
        OutputError: A file of the output cannot be read.
    """
    items, _ = read_plans(planned.output, ["shard_id", "recording_id"])
    recordings = items.column("recording_id").combine_chunks().dictionary_encode()
    shards = items.column("shard_id").combine_chunks().dictionary_encode()
    # Codes are in the order of first appearance, so that pairs in their order are in that of the plan.
    codes = (
        recordings.indices.to_numpy().astype(np.int64) * len(shards.dictionary) + shards.indices.to_numpy()
    )
    published = published_shards(planned.output, planned.table)
    if table == "rejects":  # which may be there before their shard is done, and are none if it has none
        published &= published_shards(planned.output, table)
    is_there = pc.is_in(shards.dictionary, value_set=pa.array(published, pa.string())).to_numpy(False)
    owners, holders = np.divmod(np.unique(codes), len(shards.dictionary))
    is_wanted = is_there[holders]
    if recording_ids is not None:
        wanted = pa.array(recording_ids, pa.string())
        is_wanted &= pc.is_in(recordings.dictionary, value_set=wanted).to_numpy(False)[owners]
    owners, holders = owners[is_wanted], holders[is_wanted]
    with _Shards(planned.output, table, shards.dictionary, list(dict.fromkeys(holders.tolist()))) as held:
        offsets: dict[int, int] = {}  # of the shards whose rows come next, where each begins in them
        tables: list[pa.Table] = []
        indices: list[int] = []
        last = -1
        for owner, holder in zip(owners.tolist(), holders.tolist(), strict=True):
            if owner != last and len(tables) >= _TOGETHER and holder not in offsets:
                yield pa.concat_tables(tables).take(pa.array(indices, pa.int64()))
                offsets, tables, indices = {}, [], []
            last = owner
            shard = held.get(holder)
            if holder not in offsets:
                offsets[holder] = sum(table.num_rows for table in tables)
                tables.append(shard.rows)
            found = shard.of_recording.get(recordings.dictionary[owner].as_py(), [])
            indices += [offsets[holder] + index for index in found]
        if indices:
            yield pa.concat_tables(tables).take(pa.array(indices, pa.int64()))


class _Shard(NamedTuple):
    rows: pa.Table
    of_recording: dict[str, list[int]]


class _Shards:
    """The shards of a table that are needed now, and those that will be next."""

    def __init__(self, output: str, table: str, shard_ids: pa.Array, order: list[int]) -> None:
        self._folder = stores.join(output, table)
        self._schema = REJECT if table == "rejects" else TABLES[table]
        self._shard_ids, self._order = shard_ids, order
        self._position = {shard: position for position, shard in enumerate(order)}
        self._held: OrderedDict[int, Future[_Shard]] = OrderedDict()
        self._pool = ThreadPoolExecutor(_THREADS)

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def get(self, shard: int) -> _Shard:
        """A shard, one of ``order``."""
        position = self._position[shard]
        for needed in self._order[position : position + 1 + _AHEAD]:
            if needed not in self._held:
                self._held[needed] = self._pool.submit(self._read, self._shard_ids[needed].as_py())
        self._held.move_to_end(shard)
        while len(self._held) > _HELD:
            self._held.popitem(last=False)
        return self._held[shard].result()

    def _read(self, shard_id: str) -> _Shard:
        path = stores.join(self._folder, f"part-{shard_id}.parquet")
        try:
            with stores.open_range(path, None, None) as file:
                rows = pq.read_table(file, use_threads=False).select(self._schema.names)
        except Exception as error:  # each store has its own errors, and Arrow its own
            raise OutputError(
                f"{path!r} cannot be read ({stores.explain(error)}); restore it, or delete it and run again"
            ) from error
        of_recording: dict[str, list[int]] = {}
        for number, recording_id in enumerate(rows.column("recording_id").to_pylist()):
            of_recording.setdefault(recording_id, []).append(number)
        return _Shard(rows, of_recording)
