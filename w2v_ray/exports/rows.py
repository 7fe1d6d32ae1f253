"""The rows of each recording, read from an output shard by shard, in the order of its plan.

A recording may lie in many shards: time ranges of one follow each other, and a part that was tried again
comes with a later plan. A few shards are held at a time, and the next ones are fetched meanwhile.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from w2v_ray import stores
from w2v_ray.errors import OutputError
from w2v_ray.plan.records import published_shards, read_job, read_plans, table_of
from w2v_ray.schema import REJECT, TABLES

__all__ = ["Part", "Planned", "read_parts", "read_planned"]

_WANTED = {
    *("recording_id", "uri", "metadata"),
    *("segment_id", "channel", "start_s", "end_s", "text", "confidence", "score", "words"),
}
_THREADS = 8
_AHEAD = 4  # shards fetched before they are needed
_HELD = 16  # at once: more than a recording that was tried again needs in most plans


class Planned(NamedTuple):
    """What the plans of an output say: its recordings, and which shards hold each."""

    output: str
    table: str
    recording_ids: list[str]
    """In the order of the plans."""
    shard_ids: list[str]
    members: npt.NDArray[np.bool_]
    """By recording: whether it is a part of a file."""
    shards: npt.NDArray[np.int64]
    """Positions in ``shard_ids``, recording after recording."""
    offsets: npt.NDArray[np.int64]
    """Where each recording begins in ``shards``, and the end."""


class Part(NamedTuple):
    """What is published of a recording."""

    recording_id: str
    is_member: bool
    rows: pa.Table
    rejects: pa.Table
    num_pending: int
    """Shards of it that are not published."""


class _Shard(NamedTuple):
    rows: pa.Table
    rejects: pa.Table
    rows_of: dict[str, list[int]]
    rejects_of: dict[str, list[int]]


def read_planned(output: str) -> Planned:
    """Reads the plans of an output.

    Raises:
        OutputError: It is not the output of a job of this version, or cannot be read.
    """
    if (reason := stores.refusal(output)) is not None:
        raise OutputError(f"output {output!r} {reason}")
    output = stores.canonical(output)
    _, job = read_job(output)
    items, _ = read_plans(output, ["shard_id", "recording_id", "byte_offset"])
    if not items.num_rows:
        raise OutputError(f"output {output!r} holds no plan; name the output of a job that has started")
    recordings = items.column("recording_id").combine_chunks().dictionary_encode()
    shards = items.column("shard_id").combine_chunks().dictionary_encode()
    codes = recordings.indices.to_numpy().astype(np.int64)
    # Codes are in the order of first appearance, so that pairs in their order are in that of the plan.
    pairs = np.unique(codes * len(shards.dictionary) + shards.indices.to_numpy())
    owners, of_owner = np.divmod(pairs, len(shards.dictionary))
    members = np.zeros(len(recordings.dictionary), bool)
    members[codes] = pc.is_valid(items.column("byte_offset")).to_numpy()
    return Planned(
        output=output,
        table=table_of(job),
        recording_ids=recordings.dictionary.to_pylist(),
        shard_ids=shards.dictionary.to_pylist(),
        members=members,
        shards=of_owner,
        offsets=np.searchsorted(owners, np.arange(len(recordings.dictionary) + 1)),
    )


def read_parts(planned: Planned, only: Collection[str] | None, *, characters: bool) -> Iterator[Part]:
    """Yields what is published of each recording, in the order of the plan.

    Args:
        planned: What `read_planned` found.
        only: Ids of the recordings to read; None: all.
        characters: Whether rows come with the column of that name.

    Raises:
        OutputError: A file of the output cannot be read.
    """
    wanted = list(range(len(planned.recording_ids)))
    if only is not None:
        numbers = {recording_id: number for number, recording_id in enumerate(planned.recording_ids)}
        wanted = sorted(numbers[recording_id] for recording_id in only)
    spans = [planned.shards[planned.offsets[number] : planned.offsets[number + 1]] for number in wanted]
    order = list(dict.fromkeys(np.concatenate(spans).tolist() if spans else []))
    with _Shards(planned, order, characters=characters) as shards:
        for number, span in zip(wanted, spans, strict=True):
            recording_id = planned.recording_ids[number]
            rows, rejects = [shards.schema.empty_table()], [REJECT.empty_table()]
            num_pending = 0
            for index in span.tolist():
                shard = shards.get(index)
                if shard is None:
                    num_pending += 1
                    continue
                if recording_id in shard.rows_of:
                    rows.append(shard.rows.take(shard.rows_of[recording_id]))
                if recording_id in shard.rejects_of:
                    rejects.append(shard.rejects.take(shard.rejects_of[recording_id]))
            yield Part(
                recording_id=recording_id,
                is_member=bool(planned.members[number]),
                rows=pa.concat_tables(rows),
                rejects=pa.concat_tables(rejects),
                num_pending=num_pending,
            )


class _Shards:
    """The shards that are needed now, and those that will be next."""

    def __init__(self, planned: Planned, order: list[int], *, characters: bool) -> None:
        self._planned, self._order = planned, order
        self._position = {shard: position for position, shard in enumerate(order)}
        self._published = published_shards(planned.output, planned.table)
        self._rejected = published_shards(planned.output, "rejects")
        names = _WANTED | ({"characters"} if characters else set())
        self.schema = pa.schema(field for field in TABLES[planned.table] if field.name in names)
        self._held: OrderedDict[int, Future[_Shard | None]] = OrderedDict()
        self._pool = ThreadPoolExecutor(_THREADS)

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def get(self, shard: int) -> _Shard | None:
        """The shard at this position of the plan; None where it is not published."""
        position = self._position[shard]
        for needed in self._order[position : position + 1 + _AHEAD]:
            if needed not in self._held:
                self._held[needed] = self._pool.submit(self._read, self._planned.shard_ids[needed])
        self._held.move_to_end(shard)
        while len(self._held) > _HELD:
            self._held.popitem(last=False)
        return self._held[shard].result()

    def _read(self, shard_id: str) -> _Shard | None:
        if shard_id not in self._published:
            return None
        rows = _read_table(self._planned, self._planned.table, shard_id, self.schema)
        rejects = REJECT.empty_table()
        if shard_id in self._rejected:
            rejects = _read_table(self._planned, "rejects", shard_id, REJECT)
        return _Shard(rows, rejects, _by_recording(rows), _by_recording(rejects))


def _read_table(planned: Planned, table: str, shard_id: str, schema: pa.Schema) -> pa.Table:
    path = stores.join(planned.output, table, f"part-{shard_id}.parquet")
    try:
        with stores.open_range(path, None, None) as file:
            return pq.read_table(file, columns=schema.names, use_threads=False).select(schema.names)
    except Exception as error:  # each store has its own errors, and Arrow its own
        raise OutputError(
            f"{path!r} cannot be read ({stores.explain(error)}); restore it, or delete it and run again"
        ) from error


def _by_recording(rows: pa.Table) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for number, recording_id in enumerate(rows.column("recording_id").to_pylist()):
        found.setdefault(recording_id, []).append(number)
    return found
