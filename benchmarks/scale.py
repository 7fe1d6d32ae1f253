"""What a million shards and hundreds of workers would cost the driver, the store and the clock.

Real: planning and taking up again, with as many files published as shards in half of the plan (empty ones, as
only their names are read); publishing small shards to a folder and to a server of the S3 protocol on this
machine, and the status that a run ends with; and the flow of a job on Ray, with all of its stages but the
encoder, which sleeps as long as one of the given speed would take for six seconds of audio. Simulated: many
workers, each a number in a heap, with the dispatch cost that was measured, shards of different lengths, and
failures. Extrapolated: what of this grows with shards, to 30 million of them, in proportion.

    python benchmarks/scale.py                                    # half an hour or so
    python benchmarks/scale.py --parts simulate --workers 64 512
    python benchmarks/scale.py --parts plan --shards 10000 100000

Prints tables on standard error and one JSON line.
"""

from __future__ import annotations

import argparse
import heapq
import json
import logging
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

SHARD_S = 1200.0
TARGET = 30_000_000  # shards of twenty minutes: ten million hours
PARTS = ("plan", "publish", "dispatch", "simulate")
SHORT_S = 6.0  # of audio in the shards that go through the flow
Result = dict[str, Any]


def say(*texts: object) -> None:
    print(*texts, file=sys.stderr, flush=True)


def table(title: str, rows: Sequence[Result]) -> None:
    say(f"\n{title}")
    cells = [
        list(rows[0]),
        *([f"{v:,.4g}" if isinstance(v, float) else f"{v}" for v in r.values()] for r in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        say("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


@contextmanager
def timed(result: Result, name: str, per: int = 1) -> Iterator[None]:
    """Adds the wall clock and the CPU time of the block, divided by ``per``, to the result."""
    before = time.perf_counter(), time.process_time()
    yield
    result[f"{name}_s"] = (time.perf_counter() - before[0]) / per
    result[f"{name}_cpu_s"] = (time.process_time() - before[1]) / per


def write_manifest(folder: Path, count: int, duration_s: float) -> str:
    """A manifest of that many entries of one file; each fills a shard."""
    path = folder / "manifest.jsonl"
    with path.open("w") as file:
        for number in range(count):
            entry = {"audio_filepath": "a.wav", "id": f"recording-{number:08}", "duration": duration_s}
            file.write(json.dumps(entry) + "\n")
    return str(path)


def in_a_process(step: str, *values: object) -> Result:
    """What a step prints in a process of its own, and the largest resident size that it had."""
    command = [sys.executable, __file__, "--step", step, *map(str, values)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Result = json.loads(done.stdout.splitlines()[-1])
    return found


def plan_once(folder: Path) -> Result:
    from w2v_ray.parts import list_parts
    from w2v_ray.plan import make_plan

    result: Result = {}
    with timed(result, "plan"):
        plan = make_plan(
            [str(folder / "manifest.jsonl")], str(folder / "out"), shard_seconds=SHARD_S, job={"model": "m"}
        )
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result |= {"shards": plan.num_shards, "pending": plan.num_pending}
    with timed(result, "list"):
        result["published"] = len(list_parts(plan.output, "transcripts").files)
    if not result["published"]:
        made = folder / "out" / "transcripts"
        made.mkdir()
        for shard_id in plan.pending[::2]:
            (made / f"part-{shard_id}.parquet").touch()
    return result


def measure_plans(sizes: Sequence[int]) -> list[Result]:
    results = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "a.wav").write_bytes(b"RIFF")
            write_manifest(folder, size, SHARD_S)
            first = in_a_process("plan", folder)
            again = in_a_process("plan", folder)
            assert first["shards"] == first["pending"] == size
            assert again["pending"] == size - again["published"] == size // 2
            plan_mb = sum(path.stat().st_size for path in (folder / "out" / "_plan").iterdir()) / 1e6
        found: Result = {"shards": size} | {name: first[name] for name in ("plan_cpu_s", "plan_s", "peak_mb")}
        found |= {"plan_file_mb": plan_mb, "listed": again["published"], "list_s": again["list_s"]}
        found |= {f"again_{name.removeprefix('plan_')}": again[name] for name in ("plan_cpu_s", "peak_mb")}
        results.append(found)
    table("real: the planner, first and again with half of the shards published (seconds, MB)", results)
    return results


def publish_to(folder: Path, output: str, count: int) -> Result:
    """Publishes shards of one row, and looks at all of them as a run does at its end."""
    from promise import SCHEMA, WORD

    from w2v_ray import stores
    from w2v_ray.parts import list_parts
    from w2v_ray.plan import make_plan, status
    from w2v_ray.stages.write_parquet import WriteParquet, WriteParquetConfig

    manifest = write_manifest(folder, count, SHARD_S)
    plan = make_plan([manifest], output, shard_seconds=SHARD_S, job={"model": "m"})
    tables = []
    for items in plan.pending_tables():
        row = {name: value for name, value in items.to_pylist()[0].items() if name in SCHEMA.names}
        row |= {
            "segment_id": f"{row['recording_id']}@0",
            "segment_index": 0,
            "text": "some words that were said",
        }
        row |= {"words": [WORD] * 30, "start_s": 0.0, "end_s": 15.0, "duration_s": 15.0}
        tables.append(pa.Table.from_pylist([row], SCHEMA))
    write = WriteParquet(WriteParquetConfig(output=output, job_fingerprint=plan.job_fingerprint))
    result: Result = {"place": "s3" if "://" in output else "folder", "shards": count}
    write(tables.pop())  # what is loaded at the first use is no part of it
    with timed(result, "publish", count - 1):
        for made in tables:
            write(made)
    with timed(result, "list", count):
        assert len(list_parts(output, "transcripts").files) == count
    with timed(result, "status", count):
        assert status(output).num_shards_done == count
    part = stores.join(output, "transcripts", f"part-{plan.pending[0]}.parquet")
    result["file_bytes"] = len(stores.read_bytes(part))
    return result


@contextmanager
def s3_server() -> Iterator[str]:
    """A bucket on a server of the S3 protocol, in a process of its own."""
    program = (
        "from moto.server import ThreadedMotoServer as S; import logging, sys, time;"
        "logging.getLogger('werkzeug').setLevel(logging.ERROR);"
        "s = S(ip_address='127.0.0.1', port=0, verbose=False); s.start();"
        "print(s.get_host_and_port()[1], flush=True); sys.stdin.read()"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.stdout.readline().strip()}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        import fsspec

        fsspec.filesystem("s3").mkdir("scale")
        yield "s3://scale/out"
    finally:
        server.kill()
        server.wait()


def measure_publishing(counts: tuple[int, int]) -> list[Result]:
    results = []
    with tempfile.TemporaryDirectory() as name, s3_server() as bucket:
        for output, count in ((str(Path(name) / "out"), counts[0]), (bucket, counts[1])):
            (Path(name) / "a.wav").write_bytes(b"RIFF")
            found = publish_to(Path(name), output, count)
            results.append(found | {"published_per_s": 1 / found["publish_s"]})
    table("real: one writer, one row a shard; listing; the status of all (seconds a shard)", results)
    return results


class FakeEncode:
    """In the place of the encoder: sleeps for as long as the audio would take, and hears nothing."""

    speed = 3000.0

    def __init__(self, config: object, *, before: object = None, report: Any = None) -> None:
        self._report = report

    def __call__(self, segments: pa.Table) -> pa.Table:
        from w2v_ray.schema import ENCODED

        seconds = sum(segments.column("duration_s").to_pylist())
        time.sleep(seconds / self.speed)
        self._report(seconds)
        errors, count = segments.column("error"), segments.num_rows
        return (
            segments.drop_columns(["samples", "error"])
            .append_column(ENCODED[0], pa.array([b""] * count, ENCODED[0].type))
            .append_column(ENCODED[1], pa.array([0] * count, ENCODED[1].type))
            .append_column("error", errors)
        )


def cpu_of(name: str) -> float:
    """CPU seconds so far of the processes of that name that this one has started."""
    import psutil  # comes with Ray

    found = [child.cpu_times() for child in psutil.Process().children() if name in child.name()]
    return float(sum(times.user + times.system for times in found))


def flow_once(folder: Path, count: int, speed: float) -> Result:
    """A job of that many shards on a Ray of this process, and what the driver spent on it."""
    import ray
    import ray.data
    import soundfile

    import w2v_ray.stages
    from w2v_ray import JobConfig, demo
    from w2v_ray.job import prepare
    from w2v_ray.packing import PackedTables
    from w2v_ray.pipeline import run_plan

    FakeEncode.speed = speed
    w2v_ray.stages.Encode = FakeEncode  # type: ignore[assignment,misc]  # `build` takes it from there
    soundfile.write(folder / "a.wav", [0.0] * int(SHORT_S * 8000), 8000)
    manifest = write_manifest(folder, count, SHORT_S)
    job = JobConfig(
        inputs=(manifest,), output=str(folder / "out"), model=str(demo.CHECKPOINT), shard_seconds=10.0
    )
    plan = prepare(job)
    assert plan.num_pending == count
    result: Result = {"shards": count}
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    before = ray.available_resources()["object_store_memory"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with timed(result, "source", count):
        source = ray.data.from_blocks(PackedTables(plan.pending_tables))  # as `build` does
    result["source_driver_kb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / count
    time.sleep(2)  # as Ray tells what is in its store now and then
    result["source_store_kb"] = (before - ray.available_resources()["object_store_memory"]) / count / 1024
    del source
    began = time.monotonic()
    seen: list[tuple[float, int]] = []
    daemons = {name: cpu_of(name) for name in ("raylet", "gcs_server")}
    with timed(result, "driver", count):
        run_plan(job, plan, on_progress=lambda p: seen.append((time.monotonic() - began, p.num_shards_done)))
    for name, earlier in daemons.items():
        result[f"{name}_cpu_s"] = (cpu_of(name) - earlier) / count
    (first_s, first), *_ = [found for found in seen if found[1]]
    last_s = next(at_s for at_s, done in seen if done == count)
    result["shards_per_s"] = (count - first) / max(1e-9, last_s - first_s)
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ray.shutdown()
    return result


def measure_flow(counts: Sequence[int], speed: float) -> Result:
    """What each further shard costs the driver, apart from its start and from the time that passes."""
    results = []
    for count, at_speed in [(min(counts) // 4, SHORT_S), *((count, speed) for count in sorted(counts))]:
        with tempfile.TemporaryDirectory() as name:
            results.append(in_a_process("dispatch", name, count, at_speed))
    table("real: the flow on Ray; the encoder sleeps a second, then hardly (seconds a shard)", results)
    known = np.array([[1.0, run["shards"], run["driver_s"] * run["shards"]] for run in results])
    spent = np.array([run["driver_cpu_s"] * run["shards"] for run in results])
    start_s, shard_s, each_s = np.linalg.lstsq(known, spent, rcond=None)[0].tolist()
    say(f"driver's CPU: {start_s:.2f} s once, {shard_s * 1e3:.1f} ms a shard, {each_s:.3f} s each second")
    return {"runs": results, "start_cpu_s": start_s, "shard_cpu_s": shard_s, "share_of_a_core": each_s}


def simulate(
    num_workers: int,
    hours: float,
    *,
    speed: float,
    dispatch_s: float,
    shard_s: float = SHARD_S,
    longest_first: bool = False,
    mtbf_h: float | None = None,
    restart_s: float = 60.0,
) -> Result:
    """A run of many workers on the clock of a simulation.

    Shards are of 0.7 to 1 times ``shard_s``, and one in twenty of up to half as much again, as a recording
    that is little longer than a shard is not cut. The driver hands out one after another. Workers differ in
    speed (5%, normal), and fail after ``mtbf_h`` hours on average (exponential): the shard is done again by
    whoever is free next, and the worker is back ``restart_s`` later.
    """
    chance = random.Random(1)
    shards: list[float] = []
    total_s = 0.0
    while total_s < hours * 3600:
        shards.append(
            shard_s * (chance.uniform(1, 1.5) if chance.random() < 0.05 else chance.uniform(0.7, 1))
        )
        total_s += shards[-1]
    if longest_first:
        shards.sort()  # and are taken from the end
    speeds = [speed * max(0.5, chance.gauss(1, 0.05)) for _ in range(num_workers)]
    fails = [chance.expovariate(1 / (mtbf_h * 3600)) if mtbf_h else float("inf") for _ in speeds]
    free = [(0.0, worker) for worker in range(num_workers)]
    back: list[tuple[float, float]] = []  # shards of workers that failed, by when that was
    busy_s = driver_s = end_s = 0.0
    first_idle_s: float | None = None
    num_failed = 0
    while shards or back:
        now, worker = heapq.heappop(free)
        if back and (back[0][0] <= now or not shards):
            since, seconds = heapq.heappop(back)
            now = max(now, since)
        else:
            seconds = shards.pop()
        driver_s = max(now, driver_s) + dispatch_s
        work_s = seconds / speeds[worker]
        done_s = driver_s + work_s
        if fails[worker] < done_s:
            failed_s = max(fails[worker], now)
            heapq.heappush(back, (failed_s, seconds))
            heapq.heappush(free, (failed_s + restart_s, worker))
            fails[worker] = failed_s + restart_s + chance.expovariate(1 / ((mtbf_h or 1) * 3600))
            num_failed += 1
        else:
            busy_s += work_s
            end_s = max(end_s, done_s)
            heapq.heappush(free, (done_s, worker))
        if not shards and first_idle_s is None:
            first_idle_s = free[0][0]
    ideal_s = total_s / sum(speeds)
    return {
        "workers": num_workers,
        "hours": hours,
        "shard_s": shard_s,
        "order": "longest" if longest_first else "plan",
        "mtbf_h": mtbf_h or "-",
        "run_h": end_s / 3600,
        "over_ideal_%": 100 * (end_s / ideal_s - 1),
        "tail_s": end_s - (first_idle_s or end_s),
        "idle_%": 100 * (1 - busy_s / (end_s * num_workers)),
        "failed": num_failed,
    }


def measure_simulated(workers: Sequence[int], shards: int, speed: float, dispatch_s: float) -> list[Result]:
    hours = shards * SHARD_S / 3600
    common: dict[str, Any] = {"speed": speed, "dispatch_s": dispatch_s}
    results = [simulate(count, hours, **common, mtbf_h=24) for count in workers]
    few, most = min(hours, 10_000.0), max(workers)
    kinds = [(shard_s, is_first) for shard_s in (300.0, 1200.0, 3600.0, 7200.0) for is_first in (False, True)]
    results += [simulate(most, few, **common, shard_s=s, longest_first=is_first) for s, is_first in kinds]
    results += [simulate(most, few, **common, shard_s=s, mtbf_h=1) for s in (1200.0, 7200.0)]
    table(f"simulated: encoders of {speed:g} times real time, {dispatch_s * 1e3:.1f} ms to dispatch", results)
    return results


def extrapolate(found: Result, speed: float) -> Result:
    """What would be at 30 million shards, where each further one costs what it does at the largest sizes."""
    whole: Result = {"shards": TARGET, "audio_h": TARGET * SHARD_S / 3600}
    if plans := found.get("plan"):
        small, large = plans[-2:] if len(plans) > 1 else ({}, plans[-1])

        def at_target(name: str) -> float:
            each = (large[name] - small.get(name, 0.0)) / (large["shards"] - small.get("shards", 0))
            return float(large[name] + each * (TARGET - large["shards"]))

        for name in ("plan", "again"):
            whole[f"{name}_cpu_h"] = at_target(f"{name}_cpu_s") / 3600
        whole["plan_peak_gb"] = at_target("peak_mb") / 1e3
        whole["plan_again_peak_gb"] = at_target("again_peak_mb") / 1e3
        whole["plan_file_gb"] = at_target("plan_file_mb") / 1e3
        whole["list_h"] = large["list_s"] / large["listed"] * TARGET / 3600
    for place in found.get("publish", ()):
        name = place["place"]
        whole[f"publish_{name}_writer_h"] = place["publish_s"] * TARGET / 3600
        whole[f"status_{name}_h"] = place["status_s"] * TARGET / 3600
    if flow := found.get("dispatch"):
        run = flow["runs"][-1]
        whole["source_h"] = run["source_cpu_s"] * TARGET / 3600
        whole["source_store_gb"] = run["source_store_kb"] * TARGET / 1e6
        whole["driver_cpu_h"] = flow["shard_cpu_s"] * TARGET / 3600
        whole["most_encoders"] = (1 - flow["share_of_a_core"]) / flow["shard_cpu_s"] * SHARD_S / speed
    say("\nextrapolated in proportion:")
    for name, value in whole.items():
        say(f"  {name:>24} {value:,.4g}" if isinstance(value, float) else f"  {name:>24} {value:,}")
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--shards", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--speed", type=float, default=3000.0, help="of an encoder, times real time")
    parser.add_argument(
        "--published", type=int, nargs=2, default=[2000, 300], help="in a folder; on the server"
    )
    parser.add_argument("--run", type=int, nargs="+", default=[100, 500], help="shards through the flow")
    parser.add_argument("--dispatch-ms", type=float, help="of the driver's time, where it is not measured")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if args.step:
        step, folder, *values = args.step
        place = Path(folder)
        made = plan_once(place) if step == "plan" else flow_once(place, int(values[0]), float(values[1]))
        return print(json.dumps(made))
    found: Result = {}
    if "plan" in args.parts:
        found["plan"] = measure_plans(sorted(args.shards))
    if "publish" in args.parts:
        found["publish"] = measure_publishing(tuple(args.published))
    if "dispatch" in args.parts:
        found["dispatch"] = measure_flow(args.run, args.speed)
    measured_s = found.get("dispatch", {}).get("shard_cpu_s", 0.01)
    dispatch_s = measured_s if args.dispatch_ms is None else args.dispatch_ms / 1e3
    if "simulate" in args.parts:
        found["simulated"] = measure_simulated(args.workers, max(args.shards), args.speed, dispatch_s)
    if set(args.parts) & {"plan", "publish", "dispatch"}:
        found["extrapolated"] = extrapolate(found, args.speed)
    print(json.dumps({"benchmark": "scale", "speed": args.speed, "dispatch_s": dispatch_s} | found))


if __name__ == "__main__":
    main()
