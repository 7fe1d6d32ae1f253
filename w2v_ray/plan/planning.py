"""Planning: lists the inputs, drops what is planned already, and writes the rest down as shards.

A recording that is planned and has changed since is refused, or planned again as a new generation whose rows
take the place of its old ones.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray import stores
from w2v_ray.crash_points import crash_point
from w2v_ray.errors import InputError, OutputError
from w2v_ray.inputs import Entry, list_inputs
from w2v_ray.parts import list_parts
from w2v_ray.plan import records
from w2v_ray.plan.changes import Containers, count_gone, last_generations, unplanned, with_generation
from w2v_ray.plan.durations import with_durations
from w2v_ray.plan.generations import newest_items, only_newest
from w2v_ray.plan.known import FINGERPRINT_CHARACTERS, Known, text_slices
from w2v_ray.plan.languages import language_keys, shard_languages
from w2v_ray.plan.shards import check_key, long_seconds, make_items, make_shards, shard_bounds
from w2v_ray.schema import ITEM

__all__ = ["Plan", "entry_table", "make_plan", "partition_key", "plan_entries", "plan_of"]

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
    partition_by: str | None
    """The key of the metadata by which the table is partitioned; None: it is not."""
    items: pa.Table
    """Every planned item, in the schema ITEM, shard after shard."""
    shard_seconds: Mapping[str, float]
    """Planned seconds of audio by shard, in the order of the plan."""
    pending: Sequence[str]
    """The shards that are not published, in the order they are done: by language, then as planned."""
    num_new: int
    """Items that this run planned."""
    num_changed: int
    """Of these, the ones that take the place of earlier items."""
    num_gone: int
    """Recordings that are planned and that the inputs name no more; their rows stay."""
    num_duplicates: int
    """Recordings that the inputs named more than once, each time counted but the first."""
    skipped: Mapping[str, int]
    """Files of the inputs that were not planned, by reason."""
    retried: Mapping[str, int] = field(default_factory=dict)
    """Of a retry, the rejected items that it planned, by the class of their errors; an item with two counts
    for both."""

    @property
    def num_items(self) -> int:
        """Recordings, or time ranges of one; what a later generation has taken the place of is left out."""
        return int(pc.sum(newest_items(self.items)).as_py() or 0)

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

    def shard_tables(self, shard_ids: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The items of each shard as a table of its own; of ``shard_ids`` alone, in their order, if given."""
        places = {shard_id: (begin, size) for shard_id, begin, size in shard_bounds(self.items)}
        for shard_id in places if shard_ids is None else shard_ids:
            begin, size = places[shard_id]
            # Copied, as a slice would carry the whole plan with it wherever it is sent.
            yield self.items.slice(begin, size).take(pa.array(range(size), pa.int64()))

    def pending_tables(self) -> Iterator[pa.Table]:
        """The items of each shard that is not published, in the order of ``pending``."""
        return self.shard_tables(self.pending)


def make_plan(
    inputs: Sequence[str],
    output: str,
    *,
    shard_seconds: float,
    job: Mapping[str, records.Json],
    cut_long: bool = True,
    on_change: str = "refuse",
    settings: Mapping[str, Any] | None = None,
    audio_column: str | None = None,
    annotate: Callable[[str, str | None], str | None] | None = None,
    record: bool = True,
) -> Plan:
    """Plans what no plan of the output holds yet.

    Args:
        inputs: What `list_inputs` takes: paths or URLs.
        output: Folder or URL of one; it must be new, empty, or the output of the same job.
        shard_seconds: Seconds of audio in a shard.
        job: The settings that decide what the rows are; an output keeps to them.
        cut_long: Whether a recording that is longer than a shard becomes several items.
        on_change: ``refuse`` recordings that have changed since they were planned, or plan them ``new``.
        settings: All settings of the job, to be kept in the output for those who take it up again.
        audio_column: The column of tables that holds or names the audio; None: found by its name and type.
        annotate: Gives the metadata of a recording, by its id and what its input says, with what is known of
            it from elsewhere.
        record: Whether the output is claimed and the plan written into it; else nothing is written.

    Raises:
        InputError: An input does not exist or holds no audio, two recordings have one id, or no entry has
            the key by which files are to be partitioned, or that is to tell the language.
        OutputError: The output cannot be written, belongs to another job, or holds recordings that have
            changed since, unless ``on_change`` is ``new``.
    """
    if record:
        stores.check_writable(output)
    else:
        stores.check_place(output)
    output = stores.canonical(output)
    if record:
        fingerprint = records.claim_output(output, job, settings)
    else:
        fingerprint = records.check_claim(output, job)
    planned, num_plans = records.read_plans(output)
    skipped: Counter[str] = Counter()
    known = Known(only_newest(planned))
    # What is known from elsewhere may have changed, unlike the tars and tables that are planned.
    containers = Containers(planned if annotate is None else planned.slice(0, 0))
    entries = list_inputs(inputs, skipped=skipped, planned=containers, audio_column=audio_column)
    if annotate is not None:
        entries = (e._replace(metadata=annotate(e.recording_id, e.metadata)) for e in entries)
    listed = _listed(entries, known, read_keys(job))
    kept = _first_of_each(listed)
    known.check_names(kept)
    crash_point("plan.ready")
    while True:
        new = unplanned(kept, planned, output, on_change)
        if not new.num_rows:
            items = planned.slice(0, 0)
            break
        new = with_durations(new, long_s=long_seconds(shard_seconds), unknown_s=shard_seconds)
        if (key := partition_key(job)) is not None:
            check_key("partition_by", key, new, planned)
        if (told := job.get("language_key")) is not None and not (
            job.get("language") or job.get("languages_from")
        ):
            check_key("language_key", str(told), new, planned)
        items = make_items(
            new, shard_seconds, cut_long=cut_long, partition_by=key, language_keys=language_keys(job)
        )
        if not record:
            break
        _check_owner(output, fingerprint)
        if records.publish_plan(output, items, num_plans + 1):
            _check_owner(output, fingerprint)  # as another job takes what has no plan yet
            break
        planned, num_plans = records.read_plans(output)  # a faster run took that number
    return plan_of(
        output,
        job,
        pa.concat_tables([planned, items]),
        num_new=items.num_rows,
        num_changed=pc.sum(pc.greater(items.column("generation"), 1)).as_py() or 0,
        num_gone=count_gone(known, containers, new),
        num_duplicates=known.num_again + listed.num_rows - kept.num_rows,
        skipped=skipped,
    )


def _check_owner(output: str, fingerprint: str) -> None:
    if records.read_job(output)[0] != fingerprint:
        raise OutputError(
            f"output {output!r} was taken by a job with other settings while the inputs were listed; "
            "name a new output"
        )


def plan_entries(
    planned: pa.Table,
    again: pa.Table,
    changed: Mapping[str, tuple[int | None, str | None]],
    *,
    job: Mapping[str, records.Json],
    shard_seconds: float,
    cut_long: bool,
) -> pa.Table:
    """New items for items that are tried again, and for recordings whose files have changed.

    Args:
        planned: All that is planned.
        again: The planned items to try again as they are.
        changed: By recording, the size and the version that its file has now.
        job: The settings that decide what the rows are.
        shard_seconds: As of `make_plan`.
        cut_long: As of `make_plan`.
    """
    last = last_generations(
        planned,
        pa.chunked_array([pa.array([*again.column("recording_id").to_pylist(), *changed], pa.string())]),
    )
    generations = [last[name] + 1 for name in again.column("recording_id").to_pylist()]
    place = again.column_names.index("generation")
    again = again.set_column(place, ITEM.field("generation"), pa.array(generations, pa.int32()))
    key, keys = partition_key(job), language_keys(job)
    items = make_shards(again, shard_seconds, key, keys)
    if not changed:
        return items
    newest = only_newest(planned)
    is_changed = pc.is_in(newest.column("recording_id"), value_set=pa.array(list(changed), pa.string()))
    ranges: dict[str, list[dict[str, Any]]] = {}
    for row in newest.filter(is_changed).to_pylist():
        ranges.setdefault(row["recording_id"], []).append(row)
    entries = []
    for recording, rows in ranges.items():
        size, version = changed[recording]
        row = {name: rows[0][name] for name in _TYPES} | {"byte_size": size, "version": version}
        row["start_s"] = next(item["start_s"] for item in rows if not item["start_is_cut"])
        row["end_s"] = next(item["end_s"] for item in rows if not item["end_is_cut"])
        entries.append(Entry(**row))
    listed = with_generation(
        entry_table(entries, read_keys(job)), [last[entry.recording_id] + 1 for entry in entries]
    )
    listed = with_durations(listed, long_s=long_seconds(shard_seconds), unknown_s=shard_seconds)
    made = make_items(listed, shard_seconds, cut_long=cut_long, partition_by=key, language_keys=keys)
    return pa.concat_tables([items, made])


def read_keys(job: Mapping[str, records.Json]) -> list[str]:
    """The keys of the metadata that a job with these settings reads: they are inputs like the audio."""
    keys = [str(job[name]) for name in ("text_key", "partition_by") if job.get(name) is not None]
    return keys + language_keys(job)


def partition_key(job: Mapping[str, records.Json]) -> str | None:
    """The key of the metadata by which the output of a job with these settings is partitioned."""
    key = job.get("partition_by")
    return None if key is None else str(key)


def plan_of(
    output: str,
    job: Mapping[str, records.Json],
    items: pa.Table,
    *,
    num_new: int,
    num_changed: int = 0,
    num_gone: int = 0,
    num_duplicates: int = 0,
    skipped: Mapping[str, int] | None = None,
) -> Plan:
    """All that is planned, beside what of it is published; what is pending goes by language."""
    published = list_parts(output, records.table_of(job)).files
    wanted = set(pc.unique(only_newest(items).column("shard_id")).to_pylist())
    bounds = {
        shard_id: (begin, size)
        for shard_id, begin, size in shard_bounds(items)
        if shard_id in wanted or shard_id in published
    }
    planned_s = items.column("planned_s")
    seconds = {shard_id: pc.sum(planned_s.slice(*place)).as_py() for shard_id, place in bounds.items()}
    pending = [shard_id for shard_id in bounds if shard_id not in published]
    if keys := language_keys(job):
        languages = shard_languages(items, keys)
        pending.sort(key=lambda shard_id: languages[shard_id] or "")  # stable: as planned within one
    return Plan(
        output=output,
        job_fingerprint=records.job_fingerprint(job),
        partition_by=partition_key(job),
        items=items,
        shard_seconds=seconds,
        pending=tuple(pending),
        num_new=num_new,
        num_changed=num_changed,
        num_gone=num_gone,
        num_duplicates=num_duplicates,
        skipped=dict(skipped or {}),
    )


def _listed(entries: Iterator[Entry], known: Known, keys: Sequence[str]) -> pa.Table:
    """The entries that are not planned as they are."""
    batches = []
    while chunk := list(islice(entries, _CHUNK)):
        fresh = known.unplanned(entry_table(chunk, keys))
        if fresh.num_rows:  # a copy takes the room it needs, where the array has grown to more
            batches += fresh.take(pa.array(np.arange(fresh.num_rows))).to_batches()
    return pa.Table.from_batches(batches, _LISTED)


def entry_table(entries: Sequence[Entry], keys: Sequence[str]) -> pa.Table:
    """Entries as rows with their fields and ``fingerprint``; ``keys`` of their metadata count in it."""
    columns = dict(zip(Entry._fields, zip(*entries, strict=True), strict=True))
    columns["fingerprint"] = tuple(_fingerprint(entry, keys) for entry in entries)
    return pa.table([pa.array(columns[field.name], field.type) for field in _LISTED], schema=_LISTED)


def _fingerprint(entry: Entry, keys: Sequence[str]) -> str:
    """A hash of what says which bytes of which version it is, what it is called, and what is read of it."""
    text = "\x1f".join(map(str, entry[: Entry._fields.index("duration_s")]))
    if keys:
        metadata = json.loads(entry.metadata or "{}")
        text += "".join(f"\x1f{json.dumps(metadata.get(key))}" for key in keys)
    return hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_CHARACTERS]


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


def _described(row: Mapping[str, Any]) -> str:
    start_s, end_s = row["start_s"], row["end_s"]
    part = "" if start_s is None else f" from {start_s:g} s" + ("" if end_s is None else f" to {end_s:g} s")
    return f"{row['uri']!r}{part} ({row['byte_size']} bytes)"
