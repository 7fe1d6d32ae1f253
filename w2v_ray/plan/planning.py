"""Planning: lists the inputs, drops what is planned already, and writes the rest down as shards.

A recording that is planned and has changed since is refused, as rows of both would mix.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray import stores
from w2v_ray.errors import InputError, OutputError
from w2v_ray.inputs import Entry, list_inputs
from w2v_ray.plan import records
from w2v_ray.plan.durations import with_durations
from w2v_ray.plan.known import FINGERPRINT_CHARACTERS, Known, text_slices
from w2v_ray.plan.shards import long_seconds, make_items, shard_bounds
from w2v_ray.schema import DAMAGE_KEY, ITEM

__all__ = ["Plan", "make_plan"]

_CHUNK = 16_384
_TYPES = {name: ITEM.field(name).type for name in Entry._fields if name in ITEM.names}
_LISTED = pa.schema(_TYPES | {"duration_s": pa.float64(), "fingerprint": pa.string()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that is planned for an output, and what of it was not published when it was planned."""

    output: str
    """Folder or URL, absolute."""
    job_fingerprint: str
    """Hash of the settings that decide what the rows are."""
    items: pa.Table
    """Every planned item, in the schema ITEM, shard after shard."""
    shard_seconds: Mapping[str, float]
    """Planned seconds of audio by shard, in the order of the plan."""
    pending: Sequence[str]
    """The shards that are not published, in the order of the plan."""
    num_new: int
    """Items that this run planned."""
    num_duplicates: int
    """Recordings that the inputs named more than once, each time counted but the first."""
    skipped: Mapping[str, int]
    """Files of the inputs that were not planned, by reason."""

    @property
    def num_items(self) -> int:
        """Recordings, or time ranges of one."""
        return int(self.items.num_rows)

    @property
    def num_shards(self) -> int:
        """Shards, published or not."""
        return len(self.shard_seconds)

    @property
    def num_pending(self) -> int:
        """Shards that are not published."""
        return len(self.pending)

    @property
    def planned_s(self) -> float:
        """Seconds of audio, published or not."""
        return sum(self.shard_seconds.values())

    @property
    def pending_s(self) -> float:
        """Seconds of audio in shards that are not published."""
        return sum(self.shard_seconds[shard_id] for shard_id in self.pending)

    def shard_tables(self, shard_ids: Collection[str] | None = None) -> Iterator[pa.Table]:
        """The items of each shard as a table of its own, in order; of ``shard_ids`` only where given."""
        wanted = None if shard_ids is None else set(shard_ids)
        for shard_id, begin, size in shard_bounds(self.items):
            if wanted is None or shard_id in wanted:
                # Copied, as a slice would carry the whole plan with it wherever it is sent.
                yield self.items.slice(begin, size).take(pa.array(range(size), pa.int64()))

    def pending_tables(self) -> Iterator[pa.Table]:
        """The items of each shard that is not published, in order."""
        return self.shard_tables(self.pending)


def make_plan(
    inputs: Sequence[str],
    output: str,
    *,
    shard_seconds: float,
    job: Mapping[str, records.Json],
    cut_long: bool = True,
    audio_column: str | None = None,
) -> Plan:
    """Plans what no plan of the output holds yet.

    Args:
        inputs: What `list_inputs` takes: paths or URLs.
        output: Folder or URL of one; it must be new, empty, or the output of the same job.
        shard_seconds: Seconds of audio in a shard.
        job: The settings that decide what the rows are; an output keeps to them.
        cut_long: Whether a recording that is longer than a shard becomes several items.
        audio_column: The column of tables that holds or names the audio; None: found by its name and type.

    Raises:
        InputError: An input does not exist or holds no audio, or two recordings have one id.
        OutputError: The output cannot be written, belongs to another job, or holds recordings that have
            changed since.
    """
    stores.check_writable(output)
    output = stores.canonical(output)
    job_fingerprint = records.claim_output(output, job)
    planned, num_plans = records.read_plans(output)
    skipped: Counter[str] = Counter()
    known = Known(planned)
    listed = _listed(inputs, skipped, _containers(planned), audio_column, known)
    kept = _first_of_each(listed)
    known.check_names(kept)
    new = _unplanned(kept, planned, output)
    items = planned.slice(0, 0)
    if new.num_rows:
        new = with_durations(new, long_s=long_seconds(shard_seconds), unknown_s=shard_seconds)
        items = make_items(new, shard_seconds, cut_long=cut_long)
        while items.num_rows and not records.publish_plan(output, items, num_plans + 1):
            planned, num_plans = records.read_plans(output)  # a faster run took that number
            new = _unplanned(new, planned, output)
            items = make_items(new, shard_seconds, cut_long=cut_long)
    everything = pa.concat_tables([planned, items])
    published = records.published_shards(output, records.table_of(job))
    seconds = {
        shard_id: pc.sum(everything.column("planned_s").slice(begin, size)).as_py()
        for shard_id, begin, size in shard_bounds(everything)
    }
    return Plan(
        output=output,
        job_fingerprint=job_fingerprint,
        items=everything,
        shard_seconds=seconds,
        pending=tuple(shard_id for shard_id in seconds if shard_id not in published),
        num_new=items.num_rows,
        num_duplicates=known.num_again + listed.num_rows - kept.num_rows,
        skipped=dict(skipped),
    )


def _listed(
    inputs: Sequence[str],
    skipped: Counter[str],
    planned: Collection[tuple[str, str | None, str | None]],
    audio_column: str | None,
    known: Known,
) -> pa.Table:
    """The entries that are not planned as they are."""
    entries = list_inputs(inputs, skipped=skipped, planned=planned, audio_column=audio_column)
    batches = []
    while chunk := list(islice(entries, _CHUNK)):
        columns = dict(zip(Entry._fields, zip(*chunk, strict=True), strict=True))
        columns["fingerprint"] = tuple(map(_fingerprint, chunk))
        arrays = [pa.array(columns[field.name], field.type) for field in _LISTED]
        fresh = known.unplanned(pa.table(arrays, schema=_LISTED))
        if fresh.num_rows:  # a copy takes the room it needs, where the array has grown to more
            batches += fresh.take(pa.array(np.arange(fresh.num_rows))).to_batches()
    return pa.Table.from_batches(batches, _LISTED)


def _fingerprint(entry: Entry) -> str:
    """A hash of all that says which bytes of which version the recording is, and what it is called."""
    text = "\x1f".join(map(str, entry[: Entry._fields.index("duration_s")]))
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_CHARACTERS]


def _containers(planned: pa.Table) -> set[tuple[str, str | None, str | None]]:
    """Uri, version and container of the files whose members or rows are planned."""
    is_inside = pc.or_(pc.is_valid(planned.column("byte_offset")), pc.is_valid(planned.column("container")))
    is_damage = pc.fill_null(pc.match_substring(planned.column("metadata"), DAMAGE_KEY), False)
    names = ["uri", "version", "container"]
    files = planned.filter(pc.or_(is_inside, is_damage)).group_by(names).aggregate([])
    return set(zip(*(files.column(name).to_pylist() for name in names), strict=True))


def _first_of_each(listed: pa.Table) -> pa.Table:
    """Drops recordings that are named again."""
    hashes = [np.array(list(map(hash, texts))) for texts in text_slices(listed.column("recording_id"))]
    if not hashes or len(np.unique(np.concatenate(hashes))) == listed.num_rows:
        return listed
    num_ids = pc.count_distinct(listed.column("recording_id")).as_py()
    numbered = listed.select(["recording_id", "fingerprint"])
    numbered = numbered.append_column("position", pa.array(np.arange(listed.num_rows)))
    firsts = numbered.group_by(["recording_id", "fingerprint"]).aggregate([("position", "min")])
    if firsts.num_rows > num_ids:
        extremes = [("position_min", "min"), ("position_min", "max")]
        counts = firsts.group_by("recording_id").aggregate(extremes)
        low, high = counts.column("position_min_min"), counts.column("position_min_max")
        clash = counts.filter(pc.not_equal(low, high))
        rows = [clash.column(name)[0].as_py() for name in ("position_min_min", "position_min_max")]
        one, other = (_described(listed.slice(row, 1).to_pylist()[0]) for row in rows)
        raise InputError(
            f"two recordings are called {clash.column('recording_id')[0].as_py()!r}: {one} and {other}; "
            "give each its own id"
        )
    return listed.take(pa.array(np.sort(firsts.column("position_min").to_numpy())))


def _unplanned(listed: pa.Table, planned: pa.Table, output: str) -> pa.Table:
    """The entries that no plan holds."""
    if not planned.num_rows or not listed.num_rows:
        return listed
    known = pc.utf8_slice_codeunits(planned.column("fingerprint"), 0, FINGERPRINT_CHARACTERS)
    new = listed.filter(pc.invert(pc.is_in(listed.column("fingerprint"), value_set=known.combine_chunks())))
    if not new.num_rows:
        return new
    ids = planned.column("recording_id").combine_chunks()
    changed = new.filter(pc.is_in(new.column("recording_id"), value_set=ids))
    if changed.num_rows:
        row = changed.slice(0, 1).to_pylist()[0]
        before = planned.filter(pc.equal(planned.column("recording_id"), row["recording_id"]))
        more = f" (and {changed.num_rows - 1} more)" if changed.num_rows > 1 else ""
        raise OutputError(
            f"{row['uri']!r} has changed since it was planned in {output!r}: "
            f"{_difference(before.slice(0, 1).to_pylist()[0], row)}{more}; name a new --output"
        )
    return new


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    names = {"uri": "file", "byte_size": "size", "version": "version", "byte_offset": "place in the tar"}
    names |= {"container": "container", "row": "row", "channel": "channel"}
    changed = [key for key in names if old[key] != new[key]]
    return (
        ", ".join(f"{names[key]} {_shown(old[key])} -> {_shown(new[key])}" for key in changed) or "its range"
    )


def _described(row: Mapping[str, Any]) -> str:
    start_s, end_s = row["start_s"], row["end_s"]
    part = "" if start_s is None else f" from {start_s:g} s" + ("" if end_s is None else f" to {end_s:g} s")
    return f"{row['uri']!r}{part} ({row['byte_size']} bytes)"


def _shown(value: object) -> str:
    if isinstance(value, str) and value.startswith("mtime:") and value[6:].isdigit():
        return f"mtime {datetime.fromtimestamp(int(value[6:]) / 1e9, UTC):%Y-%m-%d %H:%M:%S.%f} UTC"
    return str(value)
