"""Alignment on a real Ray: the job that `w2v-ray align` runs, and align() as a step of a Dataset."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray.data
import soundfile

from w2v_ray import AlignConfig, ConfigError, JobConfig, OutputError, align, demo, run, schema
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


@pytest.mark.slow
def test_the_demo_archive_is_aligned(tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = AlignConfig(inputs=demo.INPUTS, output=str(output), model=MODEL, shard_seconds=30)
    summary = run(job)
    assert (summary.num_items, summary.num_rows, summary.num_rejects) == (24, 24, 0)
    assert sorted(path.name for path in output.iterdir()) == ["_plan", "_runs", "_tmp", "alignments"]
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
    with pytest.raises(OutputError, match=r"task 'align' -> None"):
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


def test_wrong_texts_have_a_higher_loss_than_right_ones(tmp_path: Path) -> None:
    """Each recording of the archive with its own text and with that of another, under two names."""
    entries = [json.loads(line) for line in (demo.ARCHIVE / "manifest.jsonl").read_text().splitlines()]
    listing = tmp_path / "both.jsonl"
    with listing.open("w") as manifest:
        for index, entry in enumerate(entries):
            other = next(e["text"] for e in entries[index + 1 :] + entries if e["text"] != entry["text"])
            path = str(demo.ARCHIVE / entry["audio_filepath"])
            for kind, text in (("right", entry["text"]), ("wrong", other)):
                line = {"audio_filepath": path, "id": f"{kind} {index}", "text": text}
                manifest.write(json.dumps(line) + "\n")
    output = tmp_path / "out"
    run(AlignConfig(inputs=(str(listing),), output=str(output), model=MODEL))
    losses: dict[str, list[float]] = {"right": [], "wrong": []}
    for row in rows_of(output):
        losses[str(row["recording_id"]).split()[0]].append(float(str(row["loss_per_label"])))
    rejects = rows_of(output, "rejects")
    assert all(str(row["recording_id"]).startswith("wrong") for row in rejects)  # too long for their audio
    pairs = [(right, wrong) for right in losses["right"] for wrong in losses["wrong"]]
    assert len(losses["right"]) == len(entries)
    assert len(losses["wrong"]) + len(rejects) == len(entries)
    assert np.mean([right < wrong for right, wrong in pairs]) > 0.95


def test_a_recording_longer_than_a_shard_is_aligned_as_a_whole(tmp_path: Path) -> None:
    pieces, said, edges = [], [], []
    rng = np.random.default_rng(5)
    samples, text = clip_with_text("05_")
    while sum(map(len, pieces)) < 100 * RATE:
        start = sum(map(len, pieces)) / RATE
        pieces += [samples, 1e-4 * rng.standard_normal(RATE // 2).astype(np.float32)]
        said += text.split()
        edges += [(start, start + len(samples) / RATE)] * len(text.split())
    soundfile.write(tmp_path / "long.flac", np.concatenate(pieces), RATE)
    manifest = tmp_path / "long.jsonl"
    manifest.write_text(json.dumps({"audio_filepath": "long.flac", "text": " ".join(said)}))
    output = tmp_path / "out"
    summary = run(
        AlignConfig(
            inputs=(str(manifest),), output=str(output), model=MODEL, shard_seconds=10, max_segment_seconds=20
        )
    )
    assert (summary.num_items, summary.num_shards, summary.num_rows) == (1, 1, 1)
    (row,) = rows_of(output)
    words = row["words"]
    assert isinstance(words, list)
    assert [word["word"] for word in words] == said
    for word, (start, end) in zip(words, edges, strict=True):
        assert start - 0.1 <= word["start_s"] < word["end_s"] <= end + 0.1


def test_recordings_without_a_text_or_audio_are_rejected_with_the_reason(tmp_path: Path) -> None:
    good = str(demo.ARCHIVE / "00_0b57a6ed.flac")
    (tmp_path / "broken.wav").write_bytes(b"nothing that decodes")
    lines = [
        {"audio_filepath": good, "id": "good", "text": "OFF ON"},
        {"audio_filepath": good, "id": "empty", "text": ""},
        {"audio_filepath": good, "id": "no text"},
        {"audio_filepath": good, "id": "number", "text": 5},
        {"audio_filepath": good, "id": "too long", "text": "OFF ON " * 500},
        {"audio_filepath": "broken.wav", "id": "broken", "text": "OFF"},
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "out"
    job = AlignConfig(inputs=(str(tmp_path / "list.jsonl"),), output=str(output), model=MODEL)
    summary = run(job)
    assert (summary.num_rows, summary.num_rejects) == (2, 4)
    rows = {str(row["recording_id"]): row for row in rows_of(output)}
    assert [word["word"] for word in rows["good"]["words"]] == ["OFF", "ON"]  # type: ignore[attr-defined]
    assert rows["empty"]["words"] == []
    assert rows["empty"]["score"] is rows["empty"]["loss_per_label"] is None
    assert rows["empty"]["ctc_loss"] is not None
    rejects = {str(row["recording_id"]): row for row in rows_of(output, "rejects")}
    assert {name: row["error_class"] for name, row in rejects.items()} == {
        "no text": "AlignError",
        "number": "AlignError",
        "too long": "AlignError",
        "broken": "DecodeError",
    }
    assert "no text under 'text'" in str(rejects["no text"]["message"])
    assert rejects["too long"]["segment_id"] is None
    assert rejects["too long"]["planned_s"] == pytest.approx(0.853, abs=1e-3)


def test_the_command_aligns_and_says_what_is_wrong(tmp_path: Path) -> None:
    def command(*more: str) -> subprocess.CompletedProcess[str]:
        arguments = ["align", str(demo.ARCHIVE / "manifest.jsonl"), "--output", str(tmp_path / "out")]
        return subprocess.run(
            [sys.executable, "-m", "w2v_ray.cli", *arguments, "--model", MODEL, *more],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    wrong = command("--text-key", "")
    assert (wrong.returncode, wrong.stderr.startswith("w2v-ray: text_key is ''")) == (2, True)
    done = command("--json", "--encoder-threads", "1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_rows"] == 16
    other = command("--text-key", "speaker")
    assert other.returncode == 2
    assert "text_key 'text' -> 'speaker'" in other.stderr
    assert json.loads(command("--json").stdout)["num_shards_before"] == 1


def test_settings_of_an_alignment_job_are_checked() -> None:
    with pytest.raises(ConfigError, match="text_key is ''"):
        AlignConfig(inputs=("a",), output="b", model="c", text_key="")
    with pytest.raises(ConfigError, match="text_key is 5"):
        AlignConfig(inputs=("a",), output="b", model="c", text_key=5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="shard_seconds is 1"):
        AlignConfig(inputs=("a",), output="b", model="c", shard_seconds=1)


def test_a_dataset_keeps_its_rows_and_columns_and_gets_the_times() -> None:
    first, first_text = clip_with_text("00_")
    second, second_text = clip_with_text("05_")
    rows = [
        {"key": "one", "audio": first, "sampling_rate": RATE, "said": first_text},
        {"key": "other", "audio": second, "sampling_rate": RATE, "said": second_text.lower() + ", 1984!"},
        {"key": "none", "audio": first, "sampling_rate": RATE, "said": None},
        {"key": "short", "audio": first[:1600], "sampling_rate": RATE, "said": first_text},
        {"key": "no sound", "audio": first[:100], "sampling_rate": RATE, "said": first_text},
    ]
    ds = align(ray.data.from_items(rows), model=MODEL, text_column="said", prefix="a_", rows_per_batch=2)
    found = {row["key"]: row for row in ds.take_all()}
    assert [found[row["key"]]["said"] for row in rows] == [row["said"] for row in rows]
    errors = {key: row["a_error"] and row["a_error"]["error_class"] for key, row in found.items()}
    assert errors == {
        "one": None,
        "other": None,
        "none": "AlignError",
        "short": "AlignError",
        "no sound": "TooShortError",
    }
    one, other = found["one"], found["other"]
    assert [word["word"] for word in one["a_words"]] == first_text.split()
    assert all(word["aligned"] and 0 < word["score"] <= 1 for word in one["a_words"])
    assert "".join(c["char"] for c in one["a_characters"]) == first_text.replace(" ", "")
    assert one["a_duration_s"] == pytest.approx(len(first) / RATE)
    assert 0 < one["a_score"] <= 1
    assert one["a_loss_per_label"] < 1
    *spoken, year = other["a_words"]
    assert [word["word"] for word in spoken] == [*second_text.lower().split()[:-1], spoken[-1]["word"]]
    assert all(word["aligned"] for word in spoken)
    assert (year["word"], year["aligned"], year["score"]) == ("1984!", False, None)
    assert spoken[-1]["end_s"] <= year["start_s"] <= year["end_s"] <= other["a_duration_s"]
    assert found["none"]["a_words"] is None

    with pytest.raises(Exception, match="no text column 'text'"):
        align(ray.data.from_items(rows), model=MODEL).take_all()
    with pytest.raises(Exception, match=r"which align\(\) would add"):
        align(ray.data.from_items([{"text": "a", "bytes": b"", "words": 1}]), model=MODEL).take_all()
