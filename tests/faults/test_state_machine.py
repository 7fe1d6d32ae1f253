"""Random lives of an output: inputs come, change and go, runs are killed, retried and compacted in any order.

A model in plain Python says what the rows that count must be after each run that came to its end.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.made_outputs import JOB, made_rows, plan, publish, write_archive
from w2v_ray import crash_points, stores
from w2v_ray.output import audit, compact, current_rows, make_retry_plan, remove_leftovers
from w2v_ray.plan import Plan, status

NAMES = [*(f"a{number}.wav" for number in range(5)), "long1.wav", "long2.wav"]
DEATHS = [None] * 4 + [
    f"{point}:{count}"
    for point in crash_points.CRASH_POINTS
    if point.startswith(("plan.ready", "plan.done", "commit", "compact", "clean"))
    for count in (1, 2, 3)
]
deaths = st.sampled_from(DEATHS)


class Killed(BaseException):
    """The end of a process, as far as the code that it interrupts is concerned."""


def fails(item: Mapping[str, Any]) -> bool:
    """Some items fail at their first generations, some always."""
    until = zlib.crc32(f"{item['recording_id']}{item['start_s']}".encode()) % 5
    return until == 4 or int(item["generation"]) <= until


class Life(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.output = str(self.folder / "out")
        self.contents: dict[str, str] = {}
        self.manifest = ""
        # By recording: size and version as planned, the generation of each item by its start, and the last.
        self.versions: dict[str, tuple[int, str]] = {}
        self.generations: dict[str, dict[float | None, int]] = {}
        self.last: dict[str, int] = {}
        self.is_complete = False

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @rule(name=st.sampled_from(NAMES))
    def add_or_change(self, name: str) -> None:
        self.contents[name] = self.contents.get(name, "") + "x"
        self.manifest = write_archive(self.folder / "in", self.contents)
        self.is_complete = False

    @precondition(lambda self: len(self.contents) > 1)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.contents)))
        (self.folder / "in" / name).unlink()
        del self.contents[name]
        self.manifest = write_archive(self.folder / "in", self.contents)

    @precondition(lambda self: self.contents)
    @rule(death=deaths)
    def run(self, death: str | None) -> None:
        def whole() -> None:
            stores.check_writable(self.output)
            stores.remove_unfinished(self.output)
            self.finish(plan(self.manifest, self.output, on_change="new"))

        is_alive = self.dying(whole, death)
        if not (death or "").startswith("plan.ready") or is_alive:
            for name in self.contents:
                self.expect_newest(name)
        self.is_complete = is_alive

    @precondition(lambda self: self.versions)
    @rule(death=deaths)
    def retry(self, death: str | None) -> None:
        if not self.is_complete:
            self.run(None)
        rejected = {item["recording_id"] for item in self.items() if fails(item)}

        def whole() -> None:
            self.finish(make_retry_plan(self.output, job=JOB, shard_seconds=JOB["shard_seconds"]))

        is_alive = self.dying(whole, death)
        for name in rejected:
            if not self.expect_newest(name, only_known=True):
                generation = self.last[name] + 1
                for item in [item for item in self.items() if fails(item) and item["recording_id"] == name]:
                    self.generations[name][item["start_s"]] = generation
                    self.last[name] = generation
        self.is_complete = is_alive

    @precondition(lambda self: self.versions)
    @rule(death=deaths, target_mb=st.sampled_from([0.02, 0.05, 100]))
    def compact(self, death: str | None, target_mb: float) -> None:
        self.dying(lambda: compact(self.output, target_mb=target_mb), death)

    @invariant()
    def nothing_is_wrong(self) -> None:
        if not getattr(self, "versions", None):
            return
        found = audit(self.output)
        assert found.is_clean, found.findings
        if not self.is_complete:
            return
        assert found.is_complete
        assert found.num_items == len(self.items())
        expected = [row for item in self.items() for row in made_rows(item, failing=fails)]
        for table in ("transcripts", "rejects"):
            rows = [row for part in current_rows(self.output, table) for row in part.to_pylist()]
            names = ["recording_id", "start_s"] + (["text"] if table == "transcripts" else ["attempt"])
            wanted = [
                row | {"attempt": row["generation"]}
                for row in expected
                if (row.get("error") is None) == (table == "transcripts")
            ]
            assert sorted(tuple(row[name] for name in names) for row in rows) == sorted(
                tuple(row[name] for name in names) for row in wanted
            )
        counted = status(self.output)
        assert (counted.num_rows, counted.num_items_rejected) == (found.num_rows, found.num_items_rejected)

    # ---- the model

    def expect_newest(self, name: str, *, only_known: bool = False) -> bool:
        """Whether a recording is planned anew, as its file is not what was planned."""
        path = self.folder / "in" / name
        if not path.exists():
            return False
        now = path.stat().st_size, f"mtime:{path.stat().st_mtime_ns}"
        if self.versions.get(name) == now or (only_known and name not in self.versions):
            return False
        self.versions[name] = now
        self.last[name] = self.last.get(name, 0) + 1
        starts = [None, 100.0, 200.0] if name.startswith("long") else [None]
        self.generations[name] = dict.fromkeys(starts, self.last[name])
        return True

    def items(self) -> list[dict[str, Any]]:
        """What is planned and counts."""
        lengths = {None: 100.0, 100.0: 100.0, 200.0: 50.0}
        return [
            {
                "recording_id": name,
                "start_s": start_s,
                "planned_s": lengths[start_s] if name.startswith("long") else 30.0,
                "byte_size": self.versions[name][0],
                "version": self.versions[name][1],
                "generation": generation,
            }
            for name, generations in self.generations.items()
            for start_s, generation in generations.items()
        ]

    # ---- what it does

    def finish(self, planned: Plan) -> None:
        summaries = publish(planned, failing=fails)
        remove_leftovers(planned.output, "transcripts", {s["shard_id"]: s for s in summaries})

    def dying(self, work: Any, death: str | None) -> bool:
        """Whether the work came to its end."""

        def die(code: int) -> None:
            raise Killed

        crash_points._passed.clear()
        real = os._exit
        os._exit = die  # type: ignore[assignment]
        if death is not None:
            os.environ["W2V_RAY_CRASH_AT"] = death
        try:
            work()
        except Killed:
            return False
        finally:
            os._exit = real
            os.environ.pop("W2V_RAY_CRASH_AT", None)
        return True


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=10, stateful_step_count=14, deadline=None)
