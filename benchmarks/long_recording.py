"""A recording of hours or a day: the memory of every process that works on it, and whether a word is lost.

Real clips, connected with the pauses of their own, are tiled to one WAV file, which is transcribed by
parallel time ranges. As each clip comes many times, what it is usually recognised as is known: a clip beside
a border of two ranges must have these words, no fewer and no more, as often as clips elsewhere have. Then the
ranges are cut out of the recording, as files of their own, and transcribed again, unless --whole-only is
given: the words must be the same. Resident memory is sampled from /proc, for each process that the run
starts; memory shared with other processes (Ray's object store) is counted in each, so the figures are upper
bounds.

    python benchmarks/long_recording.py --hours 3
    python benchmarks/long_recording.py --hours 24 --whole-only
"""

from __future__ import annotations

import argparse
import difflib
import json
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import soundfile

from w2v_ray.demo import ARCHIVE, CHECKPOINT

RATE_HZ = 16_000


def tile(path: Path, hours: float, rate_hz: int) -> list[tuple[float, int]]:
    """Writes real connected words, over and over in changing order, and returns where which clip begins."""
    rng = np.random.default_rng(11)
    clips = [soundfile.read(file, dtype="float32")[0] for file in sorted(ARCHIVE.glob("*.flac"))]
    total = left = int(hours * 3600 * rate_hz)
    placed = []
    with soundfile.SoundFile(path, "w", rate_hz, 1, subtype="PCM_16") as file:
        while left > 0:
            number = int(rng.integers(len(clips)))
            placed.append(((total - left) / rate_hz, number))
            clip = clips[number]
            pause = 1e-4 * rng.standard_normal(int(rng.uniform(0.2, 1.0) * rate_hz)).astype(np.float32)
            piece = np.concatenate([clip, pause])[:left]
            file.write(piece)
            left -= len(piece)
    return placed


def words_at_borders(
    rows: list[dict[str, Any]], placed: list[tuple[float, int]], borders: list[float]
) -> dict[str, int]:
    """Of the clips on both sides of each border, and of all others: whose words are fewer, more or others."""
    starts = [start for start, _ in placed]
    texts: list[list[str]] = [[] for _ in placed]
    for row in rows:
        for word in row["words"]:
            texts[bisect_right(starts, (word["start_s"] + word["end_s"]) / 2) - 1].append(word["word"])
    usual = {
        clip: Counter(tuple(text) for text, (_, number) in zip(texts, placed, strict=True) if number == clip)
        for clip in {number for _, number in placed}
    }
    beside = {bisect_right(starts, border) - 1 + side for border in borders for side in (-1, 0, 1)}
    counts: Counter[str] = Counter()
    for index, (text, (_, clip)) in enumerate(
        zip(texts[:-1], placed[:-1], strict=True)
    ):  # the last is cut off
        place = "borders" if index in beside else "elsewhere"
        expected = usual[clip].most_common(1)[0][0]
        counts[f"clips_at_{place}"] += 1
        counts[f"fewer_words_at_{place}"] += len(text) < len(expected)
        counts[f"more_words_at_{place}"] += len(text) > len(expected)
        counts[f"other_words_at_{place}"] += len(text) == len(expected) and tuple(text) != expected
    return dict(counts)


def descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            yield child
            yield from descendants(child)


def resident(pid: int) -> tuple[str, int, int]:
    """Name of a process, its resident bytes, and how many of these it does not share."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    size = {name: int(status.get(name, "0 kB").split()[0]) * 1024 for name in ("VmRSS", "RssShmem")}
    return title or status["Name"].strip(), size["VmRSS"], size["VmRSS"] - size["RssShmem"]


def transcribe(
    source: Path, output: Path, shard_seconds: float
) -> tuple[dict[str, int], dict[str, int], dict[str, object]]:
    """Runs the command and watches its processes: peaks by name (all, unshared), and its summary."""
    command = [
        sys.executable,
        "-m",
        "w2v_ray.cli",
        "transcribe",
        str(source),
        "--output",
        str(output),
        "--json",
    ]
    command += ["--model", str(CHECKPOINT), "--shard-seconds", str(shard_seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peaks: dict[str, int] = {}
    unshared: dict[str, int] = {}
    while process.poll() is None:
        for pid in [process.pid, *descendants(process.pid)]:
            try:
                name, size, own = resident(pid)
            except (OSError, KeyError, ValueError):
                continue
            name = name if name.startswith("ray::") else Path(name).name
            peaks[name] = max(peaks.get(name, 0), size)
            unshared[name] = max(unshared.get(name, 0), own)
        time.sleep(0.1)
    assert process.stdout is not None
    assert process.returncode == 0
    return peaks, unshared, json.loads(process.stdout.read())


def rows_of(output: Path) -> list[dict[str, Any]]:
    columns = ["uri", "shard_id", "start_s", "end_s", "text", "words"]
    table = pq.read_table(output / "transcripts", columns=columns)
    return table.sort_by([("uri", "ascending"), ("start_s", "ascending")]).to_pylist()


def compare_apart(
    root: Path, recording: Path, rows: list[dict[str, Any]], shards: list[str]
) -> dict[str, object]:
    """Transcribes each range as a file of its own: whether its words are those of the range."""
    whole = []
    for index, shard in enumerate(shards):
        own = [row for row in rows if row["shard_id"] == shard]
        whole.append(" ".join(row["text"] for row in own).split())
        start, stop = round(own[0]["start_s"] * RATE_HZ), round(own[-1]["end_s"] * RATE_HZ)
        samples, _ = soundfile.read(recording, dtype="float32", start=start, stop=stop)
        soundfile.write(root / "pieces" / f"{index:04}.wav", samples, RATE_HZ, subtype="PCM_16")
    transcribe(root / "pieces", root / "apart", 7200)
    apart: dict[str, list[str]] = {}
    for row in rows_of(root / "apart"):
        apart.setdefault(row["uri"], []).extend(row["text"].split())
    common = total = 0
    for ours, theirs in zip(whole, (apart[uri] for uri in sorted(apart)), strict=True):
        match = difflib.SequenceMatcher(a=ours, b=theirs, autojunk=False)
        common += sum(block.size for block in match.get_matching_blocks())
        total += len(theirs)
    return {
        "words_equal_to_separate_files": whole == [apart[uri] for uri in sorted(apart)],
        "share_of_words_in_common": round(common / max(1, total), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--shard-seconds", type=float, default=1200)
    parser.add_argument("--whole-only", action="store_true", help="do not transcribe the ranges again")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "in").mkdir()
        (root / "pieces").mkdir()
        recording = root / "in" / "day.wav"
        placed = tile(recording, args.hours, RATE_HZ)
        peaks, unshared, summary = transcribe(root / "in", root / "whole", args.shard_seconds)
        rows = rows_of(root / "whole")
        gaps = [abs(b["start_s"] - a["end_s"]) for a, b in pairwise(rows)]
        borders = [b["start_s"] for a, b in pairwise(rows) if a["shard_id"] != b["shard_id"]]
        at_borders = words_at_borders(rows, placed, borders)
        shards = list(dict.fromkeys(row["shard_id"] for row in rows))
        same = {} if args.whole_only else compare_apart(root, recording, rows, shards)
    workers = {name: size for name, size in peaks.items() if name.startswith("ray::")}
    result = {
        "benchmark": "long_recording",
        "hours": args.hours,
        "shards": len(shards),
        "words": sum(len(row["words"]) for row in rows),
        **at_borders,
        **same,
        "largest_gap_s": max(gaps),
        "peak_worker_gb": round(max(workers.values()) / 1e9, 3),
        "peak_worker_unshared_gb": round(max(unshared[name] for name in workers) / 1e9, 3),
        "peaks_gb": {name: round(size / 1e9, 3) for name, size in sorted(peaks.items())},
        "x_real_time": round(summary["audio_s"] / summary["wall_s"], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
