"""A thousand recordings, and a worker of the job killed every few seconds: are the rows those of a quiet run?

    python benchmarks/soak.py --minutes 10

The recordings are the demo's clips, over and over, each with another speed so that no two are equal. The
quiet run comes first. Then the same job runs anew, into an output of its own, and again as soon as it is
done, until the time is up; its workers are killed at random, whatever they do. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile

from w2v_ray import JobConfig, W2vRayError, demo, run
from w2v_ray.execution import running_ray

RATE = 16_000
STAGE = re.compile("PackedStage|EncodeShard|TextShard|WriteShard|Attempts")


def make_recordings(folder: Path, count: int) -> None:
    clips = [soundfile.read(path, dtype="float32")[0] for path in sorted(demo.ARCHIVE.glob("*.flac"))]
    folder.mkdir()
    for index in range(count):
        clip = clips[index % len(clips)]
        positions = np.arange(0, len(clip) - 1, 0.9 + 0.2 * index / count)
        samples = np.interp(positions, np.arange(len(clip)), clip)
        soundfile.write(folder / f"{index:04}.flac", samples, RATE)


def workers() -> list[tuple[int, str]]:
    """Process id and title of the workers that this process's Ray started."""
    found, parents = [], {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if title.startswith("ray::") and STAGE.search(title):  # Ray itself ends where one of its own dies
                found.append((int(entry.name), title))

    def is_ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [(pid, title) for pid, title in found if is_ours(pid)]


def kill_now_and_then(every_s: float, stop: threading.Event, killed: Counter[str]) -> None:
    chance = random.Random(1)
    while not stop.wait(chance.uniform(0.5, 1.5) * every_s):
        there = workers()
        if there:
            pid, title = chance.choice(there)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            match = STAGE.search(title)
            assert match
            killed[match[0]] += 1


def rows_of(output: Path) -> list[dict[str, object]]:
    table = pq.read_table(output / "transcripts")
    return table.sort_by([("segment_id", "ascending")]).to_pylist()


def num_rejects(output: Path) -> int:
    folder = output / "rejects"
    return pq.read_table(folder).num_rows if folder.exists() and any(folder.iterdir()) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--recordings", type=int, default=1000)
    parser.add_argument("--every", type=float, default=4.0, help="seconds between kills, on average")
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    killed: Counter[str] = Counter()
    runs: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as place, running_ray():
        folder = Path(place)
        make_recordings(folder / "in", args.recordings)

        def job(output: Path) -> JobConfig:
            return JobConfig(
                inputs=(str(folder / "in"),),
                output=str(output),
                model=str(demo.CHECKPOINT),
                shard_seconds=60.0,
                encoder_threads=1,
            )

        quiet = run(job(folder / "quiet"))
        expected = rows_of(folder / "quiet")
        stop = threading.Event()
        killer = threading.Thread(target=kill_now_and_then, args=(args.every, stop, killed), daemon=True)
        began = time.monotonic()
        killer.start()
        failed = 0
        while time.monotonic() - began < args.minutes * 60:
            output = folder / f"killed-{len(runs)}"
            try:
                summary = run(job(output))
            except W2vRayError as error:  # the same job again goes on, as a person would
                failed += 1
                print(error, file=sys.stderr)
                continue
            is_equal = rows_of(output) == expected
            runs.append({"equal": is_equal, "rejects": num_rejects(output), "wall_s": round(summary.wall_s)})
            print(runs[-1], dict(killed), file=sys.stderr, flush=True)
        stop.set()
        killer.join()
        elapsed_s = time.monotonic() - began
    result = {
        "benchmark": "soak",
        "recordings": args.recordings,
        "rows": len(expected),
        "quiet_s": round(quiet.wall_s),
        "minutes": round(elapsed_s / 60, 1),
        "killed": dict(killed),
        "num_killed": sum(killed.values()),
        "runs": runs,
        "runs_that_ended_with_an_error": failed,
        "all_equal": bool(runs) and all(found["equal"] and not found["rejects"] for found in runs),
    }
    print(json.dumps(result))
    return 0 if result["all_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
