"""Alignment on a real Ray: the job that `w2v-ray align` runs, and align() as a step of a Dataset."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from w2v_ray import AlignConfig, JobConfig, OutputError, demo, run, schema
from w2v_ray.plan import status

MODEL = str(demo.CHECKPOINT)
RATE = schema.SAMPLE_RATE_HZ

pytestmark = pytest.mark.usefixtures("ray_session")


def rows_of(output: Path, table: str = "alignments") -> list[dict[str, object]]:
    if not (output / table).exists():
        return []
    return pq.read_table(output / table).sort_by("recording_id").to_pylist()


def clip_with_text(prefix: str) -> tuple[np.ndarray, str]:
    """Speech of the demo's archive whose file name begins so, and what is said in it."""
    lines = (demo.ARCHIVE / "manifest.jsonl").read_text().splitlines()
    (entry,) = [e for e in map(json.loads, lines) if e["audio_filepath"].startswith(prefix)]
    samples, rate = soundfile.read(demo.ARCHIVE / entry["audio_filepath"], dtype="float32")
    assert rate == RATE
    return samples, entry["text"]


def speech_span(samples: np.ndarray) -> tuple[float, float]:
    """Where a clip is louder than a twentieth of its loudest 25 ms, in seconds."""
    hop = RATE // 100
    frames = samples[: len(samples) // hop * hop].reshape(-1, hop)
    level = np.sqrt((frames**2).mean(1))
    loud = np.flatnonzero(level > 0.05 * level.max())
    return loud[0] / 100, (loud[-1] + 1) / 100


def test_the_demo_archive_is_aligned(tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = AlignConfig(inputs=demo.INPUTS, output=str(output), model=MODEL, shard_seconds=30)
    summary = run(job)
    assert (summary.num_items, summary.num_rows, summary.num_rejects) == (24, 24, 0)
    assert sorted(path.name for path in output.iterdir()) == ["_plan", "_tmp", "alignments"]
    for file in (output / "alignments").iterdir():
        assert pq.read_schema(file).names == schema.ALIGNMENT.names
        assert pq.read_schema(file).types == schema.ALIGNMENT.types
    for row in rows_of(output):
        said = json.loads(str(row["metadata"]))["text"]
        words = row["words"]
        assert isinstance(words, list)
        assert row["text"] == said
        assert [word["word"] for word in words] == said.split()
        assert all(word["aligned"] and 0 <= word["score"] <= 1 for word in words)
        edges = [edge for word in words for edge in (word["start_s"], word["end_s"])]
        assert edges == sorted(edges)
        assert row["start_s"] <= edges[0] < edges[-1] <= row["end_s"]

    again = run(job)
    assert (again.num_rows, again.num_shards_before) == (0, summary.num_shards)
    before = rows_of(output)
    lost = sorted((output / "alignments").iterdir())[0]
    lost.unlink()
    assert status(str(output)).num_shards_pending == 1
    assert 0 < run(job).num_rows < 24
    assert rows_of(output) == before
    with pytest.raises(OutputError, match=r"table 'alignments' -> None"):
        run(JobConfig(inputs=demo.INPUTS, output=str(output), model=MODEL, shard_seconds=30))


def test_words_of_two_clips_end_to_end_lie_in_their_clips(tmp_path: Path, shared_data: Path) -> None:
    """Clips of one spoken word each, whose borders are known: every word is found within 0.1 s of its own."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "in"
    folder.mkdir()
    clips: dict[str, list[np.ndarray]] = {}
    for word in ("yes", "stop", "left", "right"):
        clips[word] = []
        with tarfile.open(shared_data / "commands" / f"sc-v0.02-test-{word}.tar") as tar:
            for member in [m for m in tar if m.name.endswith(".flac")][:6]:
                file = tar.extractfile(member)
                assert file is not None
                clips[word].append(soundfile.read(io.BytesIO(file.read()), dtype="float32")[0])
    truth = {}
    with (folder / "manifest.jsonl").open("w") as manifest:
        for index in range(6):
            chosen = rng.permutation(sorted(clips))[:2]
            parts = [clips[word][index] for word in chosen]
            spans = [speech_span(part) for part in parts]
            shift = len(parts[0]) / RATE
            truth[f"{index}"] = [spans[0], (spans[1][0] + shift, spans[1][1] + shift)]
            soundfile.write(folder / f"{index}.flac", np.concatenate(parts), RATE)
            entry = {"audio_filepath": f"{index}.flac", "id": f"{index}", "said": " ".join(chosen).upper()}
            manifest.write(json.dumps(entry) + "\n")
    output = tmp_path / "out"
    run(
        AlignConfig(
            inputs=(str(folder / "manifest.jsonl"),), output=str(output), model=MODEL, text_key="said"
        )
    )
    for row in rows_of(output):
        words = row["words"]
        assert isinstance(words, list)
        for word, (start, end) in zip(words, truth[str(row["recording_id"])], strict=True):
            assert start - 0.1 <= word["start_s"] < word["end_s"] <= end + 0.1
