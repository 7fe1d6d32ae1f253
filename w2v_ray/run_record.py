"""The record of a run, ``OUT/_runs/RUN.json``: what it was, how far it came, and all that was measured."""

from __future__ import annotations

import json
import logging
import platform
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

from w2v_ray import __version__, stores
from w2v_ray.errors import OutputError
from w2v_ray.lineage import dataset_of
from w2v_ray.plan import Plan
from w2v_ray.progress import Progress, StageTotals
from w2v_ray.quality import Quality

__all__ = ["Published", "RunRecord", "newest_run", "run_name", "state_of"]

_SCHEMA_VERSION = 1
_FOLDER = "_runs"
_NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}\.json")
_WRITE_EVERY_S = 10.0
_LOST_AFTER = timedelta(seconds=60)
_MOST_POINTS = 400
# What a stage's record has besides busy_s and items, by its name; of all others: audio_s.
_MEASURED = {
    "read_audio": ("audio_s", "bytes"),
    "encode": ("audio_s", "padding_s", "batches", "batch_fill"),
    "decode_text": ("audio_s", "frames"),
    "write_parquet": ("audio_s", "rows", "bytes"),
}


def run_name(now: datetime) -> str:
    """A name for a run that begins now; names sort by time."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


class Published:
    """What a run has published: the sums of the summaries of its shards."""

    def __init__(self) -> None:
        self.num_shards = self.num_items = self.num_items_rejected = 0
        self.num_rows = self.num_rejects = self.num_bytes = 0
        self.planned_s = self.audio_s = self.rejected_s = 0.0
        self.rejects_by_reason: Counter[str] = Counter()
        self.quality = Quality()

    def add(self, summary: Mapping[str, Any], *, planned_s: float) -> None:
        """Adds a shard, which was planned with so many seconds of audio."""
        self.num_shards += 1
        self.planned_s += planned_s
        for name in ("num_items", "num_items_rejected", "num_rows", "num_rejects", "num_bytes"):
            setattr(self, name, getattr(self, name) + summary[name])
        self.audio_s += summary["audio_s"]
        self.rejected_s += summary["rejected_s"]
        self.rejects_by_reason.update(json.loads(summary["rejects_by_reason"]))
        self.quality.add(json.loads(summary["quality"]))


class RunRecord:
    """The record of one run, written every ten seconds from a thread of its own, and at the end.

    Nothing that goes wrong here ends the run: a store that refuses is told of once.

    Args:
        run: The name of the run, of `run_name`.
        plan: What is done.
        command: What was asked for, as on the command line.
        task: Of the job.
        settings: All of them, without where inputs and output are.
        inputs: Places that are read.
        tables: Those that are written, besides ``rejects``.
        stages: Those that are measured, in their order.
        cluster: What the run has to work with.
        attention: The kernel of the encoder and why it was taken, where that is known beforehand.
    """

    def __init__(
        self,
        run: str,
        plan: Plan,
        *,
        command: str,
        task: str,
        settings: Mapping[str, Any],
        inputs: Sequence[str],
        tables: Sequence[str],
        stages: Sequence[str],
        cluster: Mapping[str, Any],
        attention: Mapping[str, str] | None = None,
    ) -> None:
        self.run = run
        self.path = stores.join(plan.output, _FOLDER, f"{run}.json")
        self._root = plan.output
        self._began = time.monotonic()
        self._started_at = datetime.now(UTC)
        self._fixed = {
            "schema_version": _SCHEMA_VERSION,
            "run": run,
            "command": command,
            "task": task,
            "output": plan.output,
            "versions": {
                "w2v_ray": __version__,
                "ray": version("ray"),
                "torch": version("torch"),
                "python": platform.python_version(),
            },
            "job": dict(settings),
            "job_fingerprint": plan.job_fingerprint,
            "cluster": dict(cluster),
            "inputs": [dataset_of(place) for place in inputs],
            "outputs": [dataset_of(stores.join(plan.output, table)) for table in (*tables, "rejects")],
        }
        self._skipped = dict(plan.skipped)
        self._attention = attention
        self._stages = tuple(stages)
        self._numbers: dict[str, Any] = {}
        self._timeline: list[dict[str, Any]] = []
        self._spacing, self._passed = 1, 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_refused = False

    def update(
        self,
        progress: Progress,
        published: Published,
        totals: Mapping[str, StageTotals],
        notes: Mapping[str, Mapping[str, str]],
        *,
        is_last: bool = False,
    ) -> None:
        """Takes up what is known now; the first time, the record is written at once."""
        totals = {name: StageTotals() for name in self._stages} | dict(totals)
        numbers = _numbers(progress, published, totals) | {
            "attention": notes.get("attention", self._attention),
        }
        numbers["totals"]["skipped"] = self._skipped
        point = {
            "t_s": round(progress.elapsed_s, 3),
            "audio_s": {name: round(stage.audio_s, 3) for name, stage in totals.items()},
            "queue": dict(progress.queue),
            "num_rejects": progress.num_rejects,
            "num_shards_done": progress.num_shards_done,
        }
        with self._lock:
            self._numbers = numbers
            if is_last or self._passed % self._spacing == 0:
                self._timeline.append(point)
            self._passed += 1
            if len(self._timeline) > _MOST_POINTS:
                self._timeline = self._timeline[::2]
                self._spacing *= 2
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._keep_writing, name="record", daemon=True)
            self._thread.start()

    def end(self, state: str, error: BaseException | None = None) -> None:
        """Writes the record for the last time: ``done``, ``failed`` or ``interrupted``."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()  # what it has in hand must not come after this
        text = None if error is None else " ".join(str(error).split()) or type(error).__name__
        self._write(state, text)

    def _keep_writing(self) -> None:
        self._write("running", None)
        while not self._stop.wait(_WRITE_EVERY_S):
            self._write("running", None)

    def _write(self, state: str, error: str | None) -> None:
        try:
            stores.publish(self.path, self._to_json(state, error), root=self._root)
        except Exception as failure:  # the run is more than its record
            if not self._is_refused:
                self._is_refused = True
                logging.getLogger(__name__).warning("the record of the run cannot be written: %s", failure)

    def _to_json(self, state: str, error: str | None) -> bytes:
        now = datetime.now(UTC)
        with self._lock:
            record = self._fixed | {
                "state": state,
                "started_at": self._started_at.isoformat(timespec="milliseconds"),
                "updated_at": now.isoformat(timespec="milliseconds"),
                "ended_at": None if state == "running" else now.isoformat(timespec="milliseconds"),
                "wall_s": round(time.monotonic() - self._began, 3),
                "error": error,
                **self._numbers,
                "timeline": list(self._timeline),
            }
        return json.dumps(record, default=str).encode()


def newest_run(output: str) -> dict[str, Any] | None:
    """The record of the run that began last; None where there is none.

    Raises:
        OutputError: The output cannot be listed, or the record cannot be read.
    """
    if (reason := stores.refusal(output)) is not None:
        raise OutputError(f"output {output!r} {reason}")
    output = stores.canonical(output)
    folder = stores.join(output, _FOLDER)
    try:
        names = [name for name in stores.list_names(folder) if _NAME.fullmatch(name)]
        if not names:
            return None
        record: dict[str, Any] = json.loads(stores.read_bytes(stores.join(folder, max(names))))
    except Exception as error:  # each store has its own errors
        raise OutputError(
            f"the records of runs in {output!r} cannot be read ({stores.explain(error)}); check name and "
            "permissions"
        ) from error
    return record


def state_of(record: Mapping[str, Any], now: datetime) -> str:
    """The state of a run; ``lost`` where it should be running and has said nothing for a minute."""
    silent = now - datetime.fromisoformat(record["updated_at"])
    return "lost" if record["state"] == "running" and silent > _LOST_AFTER else str(record["state"])


def _numbers(progress: Progress, published: Published, totals: Mapping[str, StageTotals]) -> dict[str, Any]:
    quality = published.quality.to_dict()
    if quality["segment_s"] is not None:
        quality["segment_s"]["mean"] = published.audio_s / published.num_rows
    quality["reject_rate"] = published.num_items_rejected / max(1, published.num_items)
    names = ("planned_s", "before_s", "done_s", "num_shards", "num_shards_done", "num_rejects", "elapsed_s")
    read = totals.get("read_audio")
    return {
        "progress": {name: getattr(progress, name) for name in names}
        | {"rate_x": progress.rate, "left_s": progress.left_s, "queue": dict(progress.queue)},
        "totals": {
            "audio_s": published.audio_s,
            "rejected_s": published.rejected_s,
            "num_rows": published.num_rows,
            "num_rejects": published.num_rejects,
            "num_items": published.num_items,
            "num_shards": published.num_shards,
            "rejects_by_reason": dict(sorted(published.rejects_by_reason.items())),
            "bytes_read": read.num_bytes if read is not None else None,
            "bytes_written": published.num_bytes,
        },
        "stages": {name: _stage(name, stage) for name, stage in totals.items()},
        "quality": quality,
    }


def _stage(name: str, totals: StageTotals) -> dict[str, Any]:
    fill = None
    if totals.padding_s is not None and totals.audio_s > 0:
        fill = totals.audio_s / (totals.audio_s + totals.padding_s)
    known = {
        "audio_s": totals.audio_s,
        "bytes": totals.num_bytes,
        "rows": totals.rows,
        "frames": totals.frames,
        "padding_s": totals.padding_s,
        "batches": totals.batches,
        "batch_fill": fill,
    }
    errors = Counter[str]()
    for (_, reason), number in totals.errors.items():
        errors[reason] += number
    return {
        "busy_s": totals.busy_s,
        "items": totals.items,
        "shards": totals.shards,
        "errors": dict(errors),
        **{key: known[key] for key in _MEASURED.get(name, ("audio_s",))},
    }
