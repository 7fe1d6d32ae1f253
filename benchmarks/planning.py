"""Time and peak memory of planning many entries, the first time and again.

Each plan is a process of its own, whose memory is the largest resident size that it had, all imports
included; a second run of the same command finds everything planned, as a scheduled job does. Nothing is
decoded: manifests and tables say how long recordings are, and files and members of tars, which are WAV here,
have a header to be looked at. On a machine with other work the CPU time says more than the wall time.

    python benchmarks/planning.py                             # a million rows of a manifest
    python benchmarks/planning.py --form files tar parquet    # other forms
    python benchmarks/planning.py --entries 100000 --form jsonl tar tar.gz files
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

FORMS = ("jsonl", "csv", "parquet", "tar", "tar.gz", "files")
NUM_FILES = 1000  # that rows of manifests are ranges of
ENTRIES_PER_FILE = 10_000  # of tars and Parquet files
ROWS_PER_GROUP = 1000


def silence(seconds: float) -> bytes:
    """A WAV of digital silence at 8 kHz, one byte a sample."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, [0.0] * int(seconds * 8000), 8000, format="WAV", subtype="PCM_U8")
    return file.getvalue()


def write_input(folder: Path, form: str, num_entries: int) -> str:
    """Writes an input of that many entries and returns what to name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if form in ("jsonl", "csv"):
        (folder / "audio").mkdir()
        for number in range(NUM_FILES):
            (folder / "audio" / f"{number:04}.wav").write_bytes(b"")
        path = folder / f"manifest.{form}"
        with path.open("w") as file:
            if form == "csv":
                file.write("path,offset,duration,text\n")
            for number in range(num_entries):
                name, start = f"audio/{number % NUM_FILES:04}.wav", number // NUM_FILES * 10
                text = f"this is the text of number {number}"
                row = {"audio_filepath": name, "offset": start, "duration": 9.5, "text": text}
                file.write(f"{name},{start},9.5,{text}\n" if form == "csv" else json.dumps(row) + "\n")
        return str(path)
    sound = silence(0.1)
    if form == "files":
        for number in range(num_entries):
            path = folder / f"{number // 1000:04}" / f"{number:07}.wav"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(sound)
    elif form == "parquet":
        schema = pa.schema({"audio": pa.binary(), "duration": pa.float64(), "text": pa.string()})
        for start in range(0, num_entries, ENTRIES_PER_FILE):
            rows = range(start, min(start + ENTRIES_PER_FILE, num_entries))
            texts = [f"this is the text of number {number}" for number in rows]
            values = {"audio": [sound[:100]] * len(rows), "duration": [9.5] * len(rows), "text": texts}
            path = folder / f"{start:07}.parquet"
            pq.write_table(pa.table(values, schema), path, row_group_size=ROWS_PER_GROUP)
    else:
        for start in range(0, num_entries, ENTRIES_PER_FILE):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for number in range(start, min(start + ENTRIES_PER_FILE, num_entries)):
                    for name, data in ((f"{number}.wav", sound), (f"{number}.txt", b"some text")):
                        header = tarfile.TarInfo(name)
                        header.size = len(data)
                        tar.addfile(header, io.BytesIO(data))
            data = file.getvalue()
            (folder / f"{start}.{form}").write_bytes(gzip.compress(data, 1) if form == "tar.gz" else data)
    return str(folder)


def plan_once(source: str, output: str) -> None:
    """Plans in this process and prints one JSON line."""
    from w2v_ray.plan import make_plan

    before = time.perf_counter(), time.process_time()
    plan = make_plan([source], output, shard_seconds=1200, job={})
    wall_s, cpu_s = time.perf_counter() - before[0], time.process_time() - before[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps({"new": plan.num_new, "items": plan.num_items, "wall": wall_s, "cpu": cpu_s, "peak": peak})
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--form", nargs="+", choices=FORMS, default=["jsonl"])
    parser.add_argument("--folder", help="where to write the inputs (default: a temporary folder)")
    parser.add_argument("--plan", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plan:
        return plan_once(*args.plan)
    print(f"| form | entries | run | wall s | CPU s | peak MB |  ({os.cpu_count()} CPUs)", file=sys.stderr)
    print("|---|---|---|---|---|---|", file=sys.stderr)
    results = []
    for form in args.form:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            source = Path(folder, "in")
            source.mkdir()
            named = write_input(source, form, args.entries)
            for run in ("first", "again"):
                command = [sys.executable, __file__, "--plan", named, str(Path(folder, "out"))]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found = json.loads(done.stdout)
                assert found["items"] == args.entries, found
                assert found["new"] == (args.entries if run == "first" else 0), found
                print(
                    f"| {form} | {args.entries} | {run} | {found['wall']:.1f} | {found['cpu']:.1f} "
                    f"| {found['peak']:.0f} |",
                    file=sys.stderr,
                )
                results.append({"form": form, "run": run} | found)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
