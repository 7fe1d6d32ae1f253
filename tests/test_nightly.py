"""Three nights of ``pipelines/nightly.yaml``: each does only the new work, and a report tells them apart."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.made_outputs import publish
from w2v_ray import demo
from w2v_ray.config import JobConfig
from w2v_ray.forecast import forecast
from w2v_ray.job import prepare
from w2v_ray.job_file import load_job
from w2v_ray.plan import Plan
from w2v_ray.quality import CONFIDENCE_EDGES, SECONDS_EDGES

ROOT = Path(__file__).resolve().parents[1]


def archive(folder: Path, names: list[str]) -> Path:
    """Clips of the demo under these names."""
    folder.mkdir(exist_ok=True)
    clips = sorted(demo.ARCHIVE.glob("*.flac"))
    for name in names:
        shutil.copy(clips[sum(name.encode()) % len(clips)], folder / f"{name}.flac")
    return folder


def nights(tmp_path: Path) -> tuple[Path, list[Callable[[], object]]]:
    """An archive, and what happens to it before each of three nights."""
    folder = archive(tmp_path / "archive", ["a", "b", "c"])

    def second() -> None:
        archive(folder, ["d"])  # added
        shutil.copy(demo.ARCHIVE / "04_37dca74f.wav", folder / "b.flac")  # changed
        (folder / "a.flac").unlink()  # removed

    def third() -> None:
        archive(folder, ["e", "f"])
        shutil.copy(demo.ARCHIVE / "04_37dca74f.wav", folder / "d.flac")
        (folder / "c.flac").unlink()

    return folder, [lambda: None, second, third]


def test_three_nights_plan_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, changes = nights(tmp_path)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("W2V_RAY_INPUTS", str(folder))
    monkeypatch.setenv("W2V_RAY_OUTPUT", str(tmp_path / "out"))
    seen = []
    for change in changes:
        change()
        job = load_job(ROOT / "pipelines" / "nightly.yaml")
        assert isinstance(job, JobConfig)
        told = forecast(job)
        planned: Plan = prepare(job)
        assert (told.num_new, told.num_changed, told.num_gone, told.num_items) == (
            planned.num_new - planned.num_changed,
            planned.num_changed,
            planned.num_gone,
            planned.num_items,
        )
        assert (
            told.pending_s
            == planned.pending_s
            == pytest.approx(sum(planned.shard_seconds[s] for s in planned.pending))
        )
        names = sorted(
            Path(uri).stem for table in planned.pending_tables() for uri in table.column("uri").to_pylist()
        )
        seen.append((told.num_new, told.num_changed, told.num_gone, told.num_published_shards, names))
        publish(planned)
    assert seen == [
        (3, 0, 0, 0, ["a", "b", "c"]),
        (1, 1, 1, 1, ["b", "d"]),
        (2, 1, 2, 2, ["d", "e", "f"]),
    ]


class Night:
    """What a night left in the output, as plain readers of files find it."""

    def __init__(self, output: Path, before: Mapping[Path, Any]) -> None:
        self.files = {
            path: (path.stat().st_mtime_ns, path.read_bytes())
            for path in output.rglob("*")
            if path.is_file() and path.name != "report.html"
        }
        self.untouched = {path: self.files.get(path) for path in before}
        self.new: dict[str, list[Path]] = {}
        for path in sorted(self.files.keys() - before.keys()):
            self.new.setdefault(path.relative_to(output).parts[0], []).append(path)

    def rows(self, table: str) -> list[dict[str, Any]]:
        return [row for path in self.new.get(table, []) for row in pq.read_table(path).to_pylist()]

    def record(self) -> dict[str, Any]:
        (path,) = (path for path in self.new["_runs"] if path.suffix == ".json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def stems(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted(Path(row["uri"]).stem for row in rows)


def check_percentile(told: float, values: Sequence[float], percent: float, edges: Sequence[float]) -> None:
    """Told is in the bin of the value that so many percent of all are at most."""
    wanted = sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
    low, high = ((0.0, *edges)[place] for place in (place_of(wanted, edges), place_of(wanted, edges) + 1))
    assert low <= told <= high, (told, wanted)


def place_of(value: float, edges: Sequence[float]) -> int:
    return sum(edge < value for edge in edges)


@pytest.mark.slow
def test_three_nights_from_a_clean_clone_do_only_the_new_work(tmp_path: Path) -> None:
    """As a scheduler starts them: three processes of the command, each with a Ray of its own."""
    clone = tmp_path / "clone"
    for name in ("w2v_ray", "pipelines"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    folder, changes = nights(clone)
    output = clone / "out" / "nightly"

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "w2v_ray.cli", *arguments]
        return subprocess.run(words, cwd=clone, capture_output=True, text=True, timeout=300, check=False)

    done: list[Night] = []
    work = [["a", "b", "c"], ["b", "d"], ["d", "e", "f", "x"]]
    for number, change in enumerate(changes):
        change()
        if number == 2:
            (folder / "x.flac").write_bytes(b"nothing that decodes")
        result = command("run", "pipelines/nightly.yaml", "--json", f"inputs=[{folder.name}]")
        # One of seven recordings is more than the share that the file allows.
        assert result.returncode == (3 if number == 2 else 0), result.stderr
        before = done[-1].files if done else {}
        night = Night(output, before)
        done.append(night)
        assert night.untouched == before, "what earlier nights wrote stays, byte for byte"
        rows, rejects, record = night.rows("transcripts"), night.rows("rejects"), night.record()
        assert stems(rows) + stems(rejects) == work[number]
        assert stems(rejects) == (["x"] if number == 2 else [])
        summary = json.loads(result.stdout)
        assert (summary["num_shards_before"], summary["num_shards"]) == (number, number + 1)
        assert (summary["num_rows"], summary["num_rejects"]) == (len(rows), len(rejects))
        # What the stages had in hand: the new and the changed, and not a second of anything else.
        audio_s = math.fsum(row["duration_s"] for row in rows)
        assert record["totals"]["num_items"] == len(work[number])
        assert record["totals"]["audio_s"] == pytest.approx(audio_s)
        size = sum((folder / f"{name}.flac").stat().st_size for name in work[number])
        assert record["totals"]["bytes_read"] == size
        assert record["stages"]["read_audio"]["items"] == len(work[number])
        assert record["stages"]["encode"]["items"] == len(work[number])
        assert record["stages"]["encode"]["audio_s"] == pytest.approx(audio_s)
        assert record["stages"]["write_parquet"]["rows"] == len(rows)

    again = command("run", "pipelines/nightly.yaml", "--json", f"inputs=[{folder.name}]")
    assert (again.returncode, json.loads(again.stdout)["num_rows"]) == (3, 0), "nothing new, nothing done"
    assert Night(output, done[-1].files).new == {}

    # All is as documented: what is gone keeps its rows, and what has changed has those of its last version.
    told = json.loads(command("status", str(output), "--json").stdout)
    assert (told["num_items"], told["num_items_done"], told["num_items_superseded"]) == (7, 7, 2)
    assert (told["num_items_rejected"], told["rejects_by_reason"]) == (1, {"DecodeError": 1})
    counted = done[0].rows("transcripts") + done[1].rows("transcripts") + done[2].rows("transcripts")
    last = {Path(row["uri"]).stem: row for row in counted}  # the later takes the place of the earlier
    assert sorted(last) == ["a", "b", "c", "d", "e", "f"]
    assert told["num_rows"] == 6
    assert told["done_s"] == pytest.approx(math.fsum(row["duration_s"] for row in last.values()))
    assert command("audit", str(output)).returncode == 0
    exported = command("export", str(output), "--format", "jsonl", "--output", str(tmp_path / "lines"))
    assert exported.returncode == 0, exported.stderr
    lines = map(json.loads, (tmp_path / "lines" / "recordings.jsonl").read_text().splitlines())
    assert {Path(line["uri"]).stem: line["text"] for line in lines} == {
        name: row["text"] for name, row in last.items()
    }

    check_report(command("report", str(output), "--json"), output, done)
    default = command("run", "pipelines/nightly.yaml", "--dry-run", "--json", "output=out/other")
    assert json.loads(default.stdout)["num_new"] == 24  # the archive of the project, as nothing else is named


def check_report(result: subprocess.CompletedProcess[str], output: Path, done: Sequence[Night]) -> None:
    """Its drift over the runs is what their Parquet files say."""
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    records = [night.record() for night in done]
    assert [run["run"] for run in found["runs"]] == [record["run"] for record in records]
    drift = {entry["name"]: entry["points"] for entry in found["drift"]}
    assert drift.keys() == {
        "confidence",
        "speech rate",
        "share of rejects",
        "length of a segment",
        "throughput",
    }
    for points in drift.values():
        assert [point["run"] for point in points] == [record["run"] for record in records]
    for number, (night, record) in enumerate(zip(done, records, strict=True)):
        rows = night.rows("transcripts")
        point = {name: points[number] for name, points in drift.items()}
        sure = [row["confidence"] for row in rows]
        for percent, key in ((10, "low"), (50, "value"), (90, "high")):
            check_percentile(point["confidence"][key], sure, percent, CONFIDENCE_EDGES)
        assert record["quality"]["confidence"]["mean"] == pytest.approx(sum(sure) / len(sure))
        lengths = [row["duration_s"] for row in rows]
        check_percentile(point["length of a segment"]["value"], lengths, 50, SECONDS_EDGES)
        words = sum(len(row["words"]) for row in rows)
        speech_s = math.fsum(row["speech_ratio"] * row["duration_s"] for row in rows)
        assert point["speech rate"]["value"] == pytest.approx(words / speech_s)
        rejects = stems(night.rows("rejects"))
        assert point["share of rejects"]["value"] == pytest.approx(
            len(rejects) / (len(rejects) + len({row["recording_id"] for row in rows}))
        )
        assert point["throughput"]["value"] == pytest.approx(math.fsum(lengths) / record["wall_s"])
    page = (output / "report.html").read_text()
    assert 'id="drift"' in page
    for name, points in drift.items():
        for point in points:
            value = point["value"]
            assert (f"{value:.2%}" if name == "share of rejects" else f"{value:,.2f}") in page
