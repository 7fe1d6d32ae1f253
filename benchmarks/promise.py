"""Rows per second of CPU time that planning, publishing and auditing made-up outputs of three sizes take.

Prints a table on standard error and one JSON line. Two segments an item, forty items a shard; neither audio
nor models. CPU time, as it does not depend on what else a machine does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from w2v_ray.output import audit
from w2v_ray.plan import Plan, make_plan
from w2v_ray.schema import ERROR, ITEM, TRANSCRIPT
from w2v_ray.stages.write_parquet import WriteParquet, WriteParquetConfig

SEGMENTS = 2
ITEM_S = 30.0
SHARD_S = 1200.0
SCHEMA = pa.schema(
    [
        *TRANSCRIPT,
        *(ITEM.field(name) for name in ("byte_size", "planned_s", "generation")),
        pa.field("error", ERROR),
    ]
)
WORD = {"word": "word", "start_s": 0.1, "end_s": 0.3, "confidence": 0.9, "start_frame": 5, "end_frame": 15}


def write_manifest(folder: Path, count: int) -> Path:
    """A manifest of ranges of one small file, so that no time goes into the archive itself."""
    (folder / "a.wav").write_bytes(b"RIFF")
    path = folder / "manifest.jsonl"
    with path.open("w") as file:
        for number in range(count):
            entry = {"audio_filepath": "a.wav", "id": f"recording-{number:07}", "duration": ITEM_S}
            file.write(json.dumps(entry) + "\n")
    return path


def publish(planned: Plan) -> tuple[int, float]:
    """Publishes every shard with rows as a job would write them; their number, and the seconds it took."""
    write = WriteParquet(WriteParquetConfig(output=planned.output, job_fingerprint=planned.job_fingerprint))
    num_rows, seconds = 0, 0.0
    for items in planned.pending_tables():
        rows = [
            {name: item[name] for name in SCHEMA.names if name in item}
            | {
                "segment_id": f"{item['recording_id']}@{index * 15000}",
                "segment_index": index,
                "start_s": index * 15.0,
                "end_s": index * 15.0 + 15.0,
                "duration_s": 15.0,
                "text": "some words that somebody said",
                "words": [WORD] * 30,
            }
            for item in items.to_pylist()
            for index in range(SEGMENTS)
        ]
        table = pa.Table.from_pylist(rows, SCHEMA)
        began = time.process_time()
        num_rows += write(table).column("num_rows")[0].as_py()
        seconds += time.process_time() - began
    return num_rows, seconds


def measure(count: int) -> dict[str, Any]:
    """Rows per second of each step at a size, the best of three runs where these are short."""
    best: dict[str, float] = {}
    for _ in range(3 if count < 100_000 else 1):
        with tempfile.TemporaryDirectory() as name:
            manifest = str(write_manifest(Path(name), count))
            output = str(Path(name) / "out")
            seconds = {}
            began = time.process_time()
            planned = make_plan([manifest], output, shard_seconds=SHARD_S, job={"model": "m"})
            seconds["plan"] = time.process_time() - began
            num_rows, seconds["publish"] = publish(planned)
            began = time.process_time()
            found = audit(output)
            seconds["audit"] = time.process_time() - began
            assert found.is_complete
            assert found.num_rows == num_rows == count * SEGMENTS
        best = {step: min(value, best.get(step, value)) for step, value in seconds.items()}
    return {"items": count} | {f"{step}_rows_per_s": count * SEGMENTS / value for step, value in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    sizes = parser.parse_args().items
    measure(min(sizes))  # what is loaded at the first use is no part of it
    results = [measure(count) for count in sizes]
    steps = ("plan", "publish", "audit")
    print(f"{'items':>9}" + "".join(f"{step + ' rows/s':>16}" for step in steps), file=sys.stderr)
    for result in results:
        figures = "".join(f"{result[f'{step}_rows_per_s']:16,.0f}" for step in steps)
        print(f"{result['items']:9,}{figures}", file=sys.stderr)
    print(json.dumps({"benchmark": "promise", "segments_per_item": SEGMENTS, "results": results}))


if __name__ == "__main__":
    main()
