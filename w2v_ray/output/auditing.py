"""Auditing an output: that every planned item has one outcome, and every file is whole and the job's own.

The plan says what there must be; every byte of every published file is read and compared with it, and with
what the file's footer says was written. Shards are read one by one, several files at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray import stores
from w2v_ray.errors import OutputError
from w2v_ray.parts import (
    Footer,
    content_sha256,
    list_parts,
    parquet_table,
    partition_folder,
    read_footer,
    read_shards,
)
from w2v_ray.plan.generations import current_items, newest_items
from w2v_ray.plan.records import read_job, read_plans, table_of, tables_beside
from w2v_ray.plan.shards import shard_bounds
from w2v_ray.schema import SCHEMA_VERSION, TABLES

__all__ = ["Audit", "Finding", "audit"]

_THREADS = 8
_MAX_SHOWN = 1000
_NEEDED = ["shard_id", "item_index", "recording_id", "fingerprint", "generation", "metadata"]
_BESIDE = re.compile(r"part-([0-9a-f]+)-[0-9a-f]{12}\.parquet")
_SECONDS = 1e-6  # sums of the same numbers may be taken in another order
_PENDING, _OK, _REJECTED, _PARTLY = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it must be."""

    kind: str
    """``lost``, ``doubled``, ``foreign``, ``missing`` or ``damaged``."""
    name: str
    """The file, relative to the output, or the item or segment."""
    detail: str
    """What is wrong, as the end of a sentence about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What an output holds, beside what was planned. Items that a later generation replaced are left out."""

    output: str
    num_items: int
    """Planned recordings, or time ranges of one: those with rows, the rejected and the pending."""
    num_items_ok: int
    """Items of which every segment has a row."""
    num_items_rejected: int
    """Items rejected in whole or in part."""
    num_items_partly: int
    """Of these, the ones that have rows, too."""
    num_items_pending: int
    """Items of shards that are not published."""
    num_items_superseded: int
    """Items that a later generation has taken the place of, not counted above."""
    num_shards: int
    """Published shards, all of them read."""
    num_files: int
    """Files read."""
    num_leftovers: int
    """Files that count for nothing: the next run or `compact` removes them."""
    num_rows: int
    num_rejects: int
    audio_s: float
    rejected_s: float
    partly: tuple[str, ...]
    """The first of the items that have both rows and rejects: recording and start."""
    findings: tuple[Finding, ...]
    """What is wrong: the first thousand."""
    num_findings: int

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong, though some items may be pending."""
        return not self.num_findings

    @property
    def is_complete(self) -> bool:
        """Whether nothing is wrong and every item has its outcome, where there is any."""
        return self.is_clean and self.num_items > 0 and not self.num_items_pending

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self) | {"is_clean": self.is_clean, "is_complete": self.is_complete})


@dataclass(slots=True)
class _Checked:
    """What was found in one file."""

    findings: list[Finding] = field(default_factory=list)
    outcomes: list[tuple[int, np.ndarray]] = field(default_factory=list)  # first row of the plan, by item
    counts: Counter[str] = field(default_factory=Counter)
    audio_s: float = 0.0
    rejected_s: float = 0.0
    segments: list[tuple[int, np.ndarray]] = field(default_factory=list)  # shard's first row; hashes of ids
    used: list[str] = field(default_factory=list)  # files beside it


def audit(output: str) -> Audit:
    """Compares an output with its plan, reading every published byte.

    Raises:
        OutputError: It is no output, its plan cannot be read, or it cannot be listed.
    """
    output = stores.canonical(output)
    job_fingerprint, job = read_job(output)
    checks = _Checks(output, job_fingerprint, job)
    try:
        return checks.run()
    except OSError as error:
        message = f"output {output!r} cannot be listed ({stores.explain(error)}); check name and permissions"
        raise OutputError(message) from error


class _Checks:
    def __init__(self, output: str, job_fingerprint: str, job: Mapping[str, Any]) -> None:
        self._output, self._job_fingerprint = output, job_fingerprint
        self._table, self._also = table_of(job), tables_beside(job)
        self._partition_by = job.get("partition_by")
        self._keeps = job.get("keep_log_probs") is not None
        self._items, _ = read_plans(output, _NEEDED)
        self._bounds = {shard_id: (begin, size) for shard_id, begin, size in shard_bounds(self._items)}
        self._parts = list_parts(output, self._table)
        self._is_newest = newest_items(self._items).to_numpy(zero_copy_only=False)
        is_current = current_items(self._items, self._parts.files)
        self._is_current = is_current.to_numpy(zero_copy_only=False)
        self._is_spread = self._recordings_in_several_shards()

    def run(self) -> Audit:
        findings = [*self._of_the_plan(), *self._of_the_listing()]
        outcomes = np.zeros(self._items.num_rows, np.int8)
        counts: Counter[str] = Counter()
        audio_s = rejected_s = 0.0
        segments: list[tuple[int, np.ndarray]] = []
        used: set[str] = set()
        by_file: dict[str, set[str]] = {}
        for shard_id, name in self._parts.files.items():
            by_file.setdefault(name, set()).add(shard_id)
        with ThreadPoolExecutor(_THREADS) as pool:
            for checked in pool.map(self._check_file, by_file, by_file.values()):
                findings += checked.findings
                counts += checked.counts
                audio_s += checked.audio_s
                rejected_s += checked.rejected_s
                segments += checked.segments
                used.update(checked.used)
                for begin, found in checked.outcomes:
                    outcomes[begin : begin + len(found)] = found
        findings += self._doubled_segments(segments)
        beside, num_leftovers = self._beside(used)
        findings += beside
        newest = np.bincount(outcomes[self._is_newest], minlength=4)
        partly = np.flatnonzero((outcomes == _PARTLY) & self._is_newest)[:_MAX_SHOWN]
        return Audit(
            output=self._output,
            num_items=int(self._is_newest.sum()),
            num_items_ok=int(newest[_OK]),
            num_items_rejected=int(newest[_REJECTED] + newest[_PARTLY]),
            num_items_partly=int(newest[_PARTLY]),
            num_items_pending=int(newest[_PENDING]),
            num_items_superseded=int((~self._is_newest).sum()),
            num_shards=sum(shard_id in self._bounds for shard_id in self._parts.files),
            num_files=len(by_file) + len(used),
            num_leftovers=num_leftovers + len({n for names in self._parts.spare.values() for n in names}),
            num_rows=counts["rows"],
            num_rejects=counts["rejects"],
            audio_s=audio_s,
            rejected_s=rejected_s,
            partly=tuple(map(self._item_name, partly.tolist())),
            findings=tuple(findings[:_MAX_SHOWN]),
            num_findings=len(findings),
        )

    # ---- what needs no rows

    def _of_the_plan(self) -> Iterator[Finding]:
        if len(self._bounds) < len(list(shard_bounds(self._items))):
            yield Finding("doubled", "_plan", "plans a shard twice")
        counts = self._items.group_by(["fingerprint", "generation"]).aggregate([("recording_id", "count")])
        for row in counts.filter(pc.greater(counts.column("recording_id_count"), 1)).to_pylist():
            yield Finding("doubled", row["fingerprint"], f"is planned {row['recording_id_count']} times")

    def _of_the_listing(self) -> Iterator[Finding]:
        for name in self._parts.strangers:
            yield Finding("foreign", f"{self._table}/{name}", "has no name that a job gives to a file")
        for shard_id, name in self._parts.files.items():
            if shard_id not in self._bounds:
                yield Finding(
                    "foreign", f"{self._table}/{name}", f"is of shard {shard_id}, which no plan holds"
                )
        for shard_id, names in self._parts.spare.items():
            if self._parts.files[shard_id].rpartition("/")[2].startswith("part-"):
                for name in names:
                    yield Finding("doubled", f"{self._table}/{name}", "holds a shard that another file holds")
        for name in stores.list_names(self._output):
            if name in TABLES and name not in (self._table, *self._also):
                own = " and ".join((self._table, *self._also))
                yield Finding("foreign", name, f"is a table of another job; this one writes {own}")

    def _beside(self, used: set[str]) -> tuple[list[Finding], int]:
        """The files of rejects, log-probabilities and other tables that no shard names."""
        findings, num_leftovers = [], 0
        for folder in ("rejects", "log_probs", *self._also):
            for name in stores.list_names(stores.join(self._output, folder)):
                path = f"{folder}/{name}"
                if name.startswith((".", "_")) or path in used:
                    continue
                match = _BESIDE.fullmatch(name)
                if match and match[1] in self._bounds:
                    num_leftovers += 1  # of a writer that died, or lost to a faster one
                else:
                    findings.append(Finding("foreign", path, "is of no shard that is planned"))
        return findings, num_leftovers

    # ---- files

    def _check_file(self, name: str, shard_ids: set[str]) -> _Checked:
        checked = _Checked()
        path = f"{self._table}/{name}"
        try:
            footer = read_footer(stores.join(self._output, path), is_checked=False)
        except OutputError as error:
            checked.findings.append(Finding("damaged", path, f"cannot be read ({_cause(error)})"))
            return checked
        if (reason := self._foreign(footer, shard_ids)) is not None:
            checked.findings.append(Finding("foreign", path, reason))
            return checked
        summaries = [
            s for shard_id, s in footer.shards.items() if shard_id in shard_ids & self._bounds.keys()
        ]
        try:
            read = read_shards(self._output, self._table, name, summaries)
            for summary, rows in zip(summaries, read, strict=True):
                self._check_shard(path, summary, rows, checked)
        except OutputError as error:
            checked.findings.append(Finding("damaged", path, f"cannot be read ({_cause(error)})"))
        return checked

    def _foreign(self, footer: Footer, shard_ids: set[str]) -> str | None:
        if footer.job_fingerprint != self._job_fingerprint:
            return f"is of job {footer.job_fingerprint}, not {self._job_fingerprint}"
        if footer.schema_version != SCHEMA_VERSION:
            return f"has schema version {footer.schema_version}, not {SCHEMA_VERSION}"
        if not shard_ids <= footer.shards.keys():
            return f"holds shard {next(iter(footer.shards))}, not the one in its name"
        return None

    def _check_shard(self, path: str, summary: dict[str, Any], rows: pa.Table, checked: _Checked) -> None:
        begin, size = self._bounds[summary["shard_id"]]
        items = self._items.slice(begin, size)
        problems = list(_against_summary(rows, summary, size))
        rejects = self._read_beside("rejects", summary, checked)
        if rejects is not None and rejects.num_rows != summary["num_rejects"]:
            problems.append(f"says {summary['num_rejects']} rejects where there are {rejects.num_rows}")
        if self._keeps:
            kept = self._read_beside("log_probs", summary, checked)
            if kept is not None and kept.num_rows != summary["num_rows"] + summary["num_rejects"]:
                problems.append(f"kept log-probabilities of {kept.num_rows} segments, not of each")
        for other in self._also:
            beside = self._read_beside(other, summary, checked)
            if beside is not None and not beside.equals(rows.select(beside.column_names)):
                problems.append(f"has other segments in {other} than here")
        if self._partition_by is not None:
            metadata = items.column("metadata")[0].as_py()
            value = json.loads(metadata).get(self._partition_by) if metadata else None
            if path.split("/")[1] != partition_folder(str(self._partition_by), value):
                problems.append(f"belongs into {partition_folder(str(self._partition_by), value)}")
        row_items = rows.column("item_index").to_numpy()
        reject_items = np.zeros(0, np.int32) if rejects is None else rejects.column("item_index").to_numpy()
        for table, indices in ((rows, row_items), (rejects, reject_items)):
            if table is None or not len(indices):
                continue
            if indices.min() < 0 or indices.max() >= size:
                problems.append(f"has an item {indices.max()} where {size} are planned")
                checked.findings += [Finding("damaged", path, problem) for problem in problems]
                return
            if not items.column("recording_id").take(pa.array(indices)).equals(table.column("recording_id")):
                problems.append("has rows of another recording than planned")
        checked.findings += [Finding("damaged", path, problem) for problem in problems]
        has_row = np.bincount(row_items, minlength=size) > 0
        has_reject = np.bincount(reject_items, minlength=size) > 0
        if rejects is not None:  # else it is missing, which is said already
            for index in np.flatnonzero(~has_row & ~has_reject).tolist():
                checked.findings.append(
                    Finding(
                        "lost", self._item_name(begin + index), f"has neither a row nor a reject in {path}"
                    )
                )
        outcome = np.where(has_reject, np.where(has_row, _PARTLY, _REJECTED), _OK).astype(np.int8)
        checked.outcomes.append((begin, outcome))
        self._count(rows, rejects, begin, size, checked)
        self._collect_segments(path, rows, row_items, begin, checked)

    def _count(
        self, rows: pa.Table, rejects: pa.Table | None, begin: int, size: int, checked: _Checked
    ) -> None:
        is_newest = self._is_newest[begin : begin + size]
        is_counted = is_newest[rows.column("item_index").to_numpy()]
        checked.counts["rows"] += int(is_counted.sum())
        checked.audio_s += float(rows.column("duration_s").fill_null(0).to_numpy()[is_counted].sum())
        if rejects is not None:
            is_counted = is_newest[rejects.column("item_index").to_numpy()]
            checked.counts["rejects"] += int(is_counted.sum())
            checked.rejected_s += float(rejects.column("planned_s").fill_null(0).to_numpy()[is_counted].sum())

    def _read_beside(self, folder: str, summary: Mapping[str, Any], checked: _Checked) -> pa.Table | None:
        """The columns that count of the file of a shard in ``folder``; None where it is not as written."""
        name, expected = summary.get(f"{folder}_file"), summary.get(f"{folder}_sha256")
        columns = ["item_index", "recording_id", "segment_id" if folder in self._also else "planned_s"]
        if name is None and folder in self._also:
            checked.findings.append(Finding("missing", folder, f"has no file of shard {summary['shard_id']}"))
            return None
        if name is None:
            return pa.table({column: [] for column in columns}).cast(
                pa.schema(
                    [("item_index", pa.int32()), ("recording_id", pa.string()), ("planned_s", pa.float64())]
                )
            )
        checked.used.append(name)
        path = stores.join(self._output, name)
        try:
            if not stores.exists(path):
                checked.findings.append(Finding("missing", name, "is gone"))
                return None
            data = stores.read_bytes(path)
            if hashlib.sha256(data).hexdigest() != expected:
                checked.findings.append(Finding("damaged", name, "is not as it was written (SHA-256)"))
                return None
            return parquet_table(data, columns)
        except Exception as error:  # each store has its own errors, and Arrow its own
            checked.findings.append(Finding("damaged", name, f"cannot be read ({stores.explain(error)})"))
            return None

    # ---- segments

    def _recordings_in_several_shards(self) -> np.ndarray:
        """Of each item whether its recording has current items in other shards, too."""
        current = self._items.filter(pa.array(self._is_current))
        counts = current.group_by("recording_id").aggregate([("shard_id", "count_distinct")])
        several = counts.filter(pc.greater(counts.column("shard_id_count_distinct"), 1)).column(
            "recording_id"
        )
        spread = pc.is_in(self._items.column("recording_id"), value_set=several)
        found: np.ndarray = np.logical_and(spread.to_numpy(), self._is_current)
        return found

    def _collect_segments(
        self, path: str, rows: pa.Table, row_items: np.ndarray, begin: int, checked: _Checked
    ) -> None:
        if "segment_id" not in rows.column_names:  # a row is an item there
            if len(np.unique(row_items)) < len(row_items):
                checked.findings.append(Finding("doubled", path, "has two rows of one item"))
            return
        ids = rows.column("segment_id")
        if pc.count_distinct(ids).as_py() < rows.num_rows:
            counts = pc.value_counts(ids.combine_chunks())
            name = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0].as_py()
            checked.findings.append(Finding("doubled", name, f"is in {path} twice"))
        is_spread = self._is_spread[begin : begin + int(row_items.max(initial=-1)) + 1]
        if is_spread.any():
            found = ids.filter(pa.array(is_spread[row_items])).to_pylist()
            hashes = [
                int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) for name in found
            ]
            checked.segments.append((begin, np.array(hashes, np.uint64)))

    def _doubled_segments(self, segments: list[tuple[int, np.ndarray]]) -> Iterator[Finding]:
        """Ids that two shards have; within a shard they are found already."""
        if not segments:
            return
        hashes = np.concatenate([found for _, found in segments])
        shards = np.repeat([begin for begin, _ in segments], [len(found) for _, found in segments])
        order = np.lexsort((shards, hashes))
        hashes, shards = hashes[order], shards[order]
        is_same = (hashes[1:] == hashes[:-1]) & (shards[1:] != shards[:-1])
        for place in np.flatnonzero(is_same).tolist():
            one, other = (self._items.column("shard_id")[int(shards[place + i])].as_py() for i in (0, 1))
            name = self._items.column("recording_id")[int(shards[place])].as_py()
            yield Finding("doubled", name, f"has a segment that is both in shard {one} and in {other}")

    def _item_name(self, row: int) -> str:
        shard_id, index, recording = (
            self._items.column(name)[row].as_py() for name in ("shard_id", "item_index", "recording_id")
        )
        return f"{recording} (item {index} of shard {shard_id})"


def _against_summary(rows: pa.Table, summary: Mapping[str, Any], num_items: int) -> Iterator[str]:
    """What of a shard's rows is not as its footer or the plan says."""
    if summary["num_items"] != num_items:
        yield f"says {summary['num_items']} items where {num_items} are planned"
    if rows.num_rows != summary["num_rows"]:
        yield f"says {summary['num_rows']} rows where there are {rows.num_rows}"
    seconds = pc.sum(rows.column("duration_s")).as_py() or 0.0
    if abs(seconds - summary["audio_s"]) > _SECONDS * max(1.0, seconds):
        yield f"says {summary['audio_s']:g} s of audio where there are {seconds:g}"
    if content_sha256(rows) != summary["rows_sha256"]:
        yield "has other rows than were written (SHA-256)"


def _cause(error: BaseException) -> str:
    return stores.explain(error.__cause__ or error)
