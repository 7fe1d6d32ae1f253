"""What measuring a run costs: one job with metrics, record and progress, and without, in turn.

Both run on one Ray in one process, with the same clips, the demo checkpoint and outputs of their own. What is
compared lies between the first shard that is published and the last, so that the start of workers, which
differs more from run to run than anything here, is not in it: seconds of audio in a second of the clock, and
seconds of the CPU, of the driver and all its Ray, for an hour of audio. The second says the same of a machine
on which other work goes on. Each ratio is the median of those of pairs of runs next to each other in time;
which of the two goes first alternates. Above 1 for rates, and below for the CPU, measuring costs nothing.

    python benchmarks/overhead.py                # some minutes
    python benchmarks/overhead.py --hours 1 --repeats 7
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import ray
import soundfile

from w2v_ray import JobConfig, demo, run
from w2v_ray.console import progress_line
from w2v_ray.progress import Progress


def archive(folder: Path, hours: float) -> str:
    """A manifest that names the clips of the demo's archive again and again, and its path."""
    clips = sorted(demo.ARCHIVE.glob("*.flac"))
    lengths = [soundfile.info(clip).duration for clip in clips]
    lines, seconds = [], 0.0
    while seconds < hours * 3600:
        place = len(lines) % len(clips)
        lines.append(
            {"audio_filepath": str(clips[place]), "id": f"r{len(lines)}", "duration": lengths[place]}
        )
        seconds += lengths[place]
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    return str(manifest)


class Watch(threading.Thread):
    """Looks four times a second at what is published and at the CPU time of the tree of processes."""

    def __init__(self, output: Path) -> None:
        super().__init__(daemon=True)
        self._folder = output / "transcripts"
        self._ended = threading.Event()
        self._spent: dict[tuple[int, int], float] = {}  # a process and its start, so that no id counts twice
        self._seen: list[tuple[int, float, float]] = []  # shards, the clock, the CPU

    def run(self) -> None:
        while not self._ended.wait(0.25):
            self._spent.update(cpu_seconds())
            shards = len(os.listdir(self._folder)) if self._folder.exists() else 0
            self._seen.append((shards, time.perf_counter(), sum(self._spent.values())))

    def finish(self) -> tuple[int, float, float]:
        """Shards, seconds of the clock and of the CPU from the first shard that was seen to the last."""
        self._ended.set()
        self.join()
        first = next(seen for seen in self._seen if seen[0])
        last = next(seen for seen in self._seen if seen[0] == self._seen[-1][0])
        return last[0] - first[0], last[1] - first[1], last[2] - first[2]


def cpu_seconds() -> dict[tuple[int, int], float]:
    """What each process of this one's tree has spent, from /proc."""
    found: dict[int, tuple[int, int, float]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                spent = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                found[int(name)] = int(fields[1]), int(fields[19]), spent
    tree = {os.getpid()}
    for _ in range(10):  # generations
        tree |= {process for process, (parent, _, _) in found.items() if parent in tree}
    return {(process, found[process][1]): found[process][2] for process in tree if process in found}


def measured(manifest: str, output: Path, *, is_on: bool, shard_seconds: float) -> tuple[float, float]:
    """Seconds of audio in a second, and seconds of the CPU for an hour of audio."""
    os.environ["W2V_RAY_TELEMETRY"] = "on" if is_on else "off"
    job = JobConfig(
        inputs=(manifest,), output=str(output), model=str(demo.CHECKPOINT), shard_seconds=shard_seconds
    )
    shown: list[str] = []

    def show(progress: Progress) -> None:
        shown.append(progress_line(progress))

    watch = Watch(output)
    watch.start()
    summary = run(job, on_progress=show if is_on else None)
    num_shards, wall_s, cpu_s = watch.finish()
    assert summary.num_rejects == 0
    assert (output / "_runs").exists() == is_on
    assert bool(shown) == is_on
    audio_s = summary.audio_s * num_shards / summary.num_shards
    return audio_s / wall_s, cpu_s * 3600 / audio_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hours", type=float, default=0.5, help="of audio (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs (default: %(default)s)")
    parser.add_argument(
        "--shard-seconds",
        type=float,
        default=60,
        help="of audio a shard, where 1200 is usual: so many more messages (default: %(default)s)",
    )
    args = parser.parse_args()
    rates: dict[bool, list[float]] = {True: [], False: []}
    costs: dict[bool, list[float]] = {True: [], False: []}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        manifest = archive(Path(scratch), args.hours)
        ray.init(include_dashboard=False, log_to_driver=False)
        for repeat in range(args.repeats):
            for is_on in (True, False) if repeat % 2 else (False, True):
                output = Path(scratch) / f"out{repeat}{is_on}"
                rate, cost = measured(manifest, output, is_on=is_on, shard_seconds=args.shard_seconds)
                rates[is_on].append(rate)
                costs[is_on].append(cost)
                print(f"{'on' if is_on else 'off'}: {rate:.1f} x, {cost:.1f} s", file=sys.stderr)
        is_exported = any(node["MetricsExportPort"] > 0 for node in ray.nodes())
        ray.shutdown()
    ratios = {
        name: [on / off for on, off in zip(values[True], values[False], strict=True)]
        for name, values in (("rate", rates), ("cpu", costs))
    }
    result = {
        "benchmark": "overhead",
        "hours": args.hours,
        "shard_seconds": args.shard_seconds,
        "is_exported_to_prometheus": is_exported,
        "on_x_real_time": round(statistics.median(rates[True]), 1),
        "off_x_real_time": round(statistics.median(rates[False]), 1),
        "on_cpu_s_per_hour": round(statistics.median(costs[True]), 1),
        "off_cpu_s_per_hour": round(statistics.median(costs[False]), 1),
        "rate_ratio": round(statistics.median(ratios["rate"]), 4),
        "cpu_ratio": round(statistics.median(ratios["cpu"]), 4),
        "ratios": {name: [round(ratio, 4) for ratio in values] for name, values in ratios.items()},
        "seconds": round(time.perf_counter() - began),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
