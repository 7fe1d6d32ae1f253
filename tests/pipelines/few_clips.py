"""A small copy of the real speech that the recipes read, so that a test can run one from end to end."""

from __future__ import annotations

import csv
import shutil
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pipelines"))

import speaker_clips as sp  # they lie beside the recipes, not in the package
import speech_clips as sc


def few_clips(source: Path, target: Path) -> None:
    """A small copy of the two collections: some clips of each split, a tar each."""
    for name, most in (("commands", 8), ("digits", 30)):  # clips of a speaker
        with (source / name / "manifest.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        by_speaker: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            by_speaker.setdefault(row["speaker"], []).append(row)
        kept, speakers = [], dict.fromkeys(("train", "dev", "test"), 0)
        for speaker, own in by_speaker.items():
            split = sc.split_of(name, speaker)
            if speaker == "":  # the background noise
                kept += own[:2]
            elif len(own) >= most and speakers[split] < 4:
                speakers[split] += 1
                kept += own[:most]
        (target / name).mkdir(parents=True)
        with tarfile.open(target / name / "few.tar", "w") as few:
            for shard in sorted({row["shard"] for row in kept}):
                wanted = {row["path"] for row in kept if row["shard"] == shard}
                with tarfile.open(source / name / shard) as tar:
                    for member in tar:
                        if member.name in wanted:
                            few.addfile(member, tar.extractfile(member))
        with (target / name / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(row | {"shard": "few.tar"} for row in kept)


def few_recordings(source: Path, target: Path) -> None:
    """A small copy of ``libri/``: the files of three speakers of each split."""
    with (source / "libri" / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    chosen: dict[str, list[str]] = {"train": [], "dev": [], "test": list(sp.LIBRI_TEST_SPEAKERS[:3])}
    for row in rows:
        split, long = sp.split_of(row["corpus"], row["speaker"]), float(row["duration_s"]) > 12
        if row["corpus"] == "librispeech" and long and len(chosen[split]) < 3:
            chosen[split].append(row["speaker"])
    kept = [row for row in rows if row["speaker"] in {s for own in chosen.values() for s in own}]
    for row in kept:
        path = target / "libri" / row["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / "libri" / row["path"], path)
    with (target / "libri" / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(kept)
