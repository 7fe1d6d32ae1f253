"""Alignment on a real Ray: the job that `w2v-ray align` runs, and align() as a step of a Dataset."""

from __future__ import annotations

import io
import json
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray.data
import soundfile

from w2v_ray import AlignConfig, ConfigError, JobConfig, OutputError, RunSummary, align, demo, run, schema
from w2v_ray.cli import main
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


@dataclass(frozen=True, slots=True)
class Aligned:
    """What one job made of pairs of words, right and wrong texts, what is no text, and a long recording."""

    summary: RunSummary
    rows: dict[str, dict[str, Any]]
    rejects: dict[str, dict[str, Any]]
    spans: dict[str, list[tuple[float, float]]]
    """Where the words of each pair and of the long recording are."""
    long_text: list[str]


@pytest.fixture(scope="module")
def aligned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Aligned:
    folder = tmp_path_factory.mktemp("aligned")
    long, long_text, long_spans = long_recording(folder / "long")
    inputs, spans = [right_and_wrong_texts(folder / "texts.jsonl"), no_texts(folder / "none"), long], {}
    with suppress(pytest.skip.Exception):  # without real speech there are no pairs
        pairs, spans = pairs_of_words(folder / "pairs", request.getfixturevalue("shared_data"))
        inputs.append(pairs)
    output = folder / "out"
    settings: dict[str, Any] = {"text_key": "said", "shard_seconds": 10, "max_segment_seconds": 20}
    summary = run(AlignConfig(inputs=tuple(inputs), output=str(output), model=MODEL, **settings))
    tables = [rows_of(output, table) for table in ("alignments", "rejects")]
    rows, rejects = ({str(row["recording_id"]): row for row in table} for table in tables)
    return Aligned(summary, rows, rejects, spans | {"long": long_spans}, long_text)


def write_manifest(path: Path, lines: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def pairs_of_words(folder: Path, shared_data: Path) -> tuple[str, dict[str, list[tuple[float, float]]]]:
    """Clips of one spoken word each, whose borders are known, two of them end to end."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    clips: dict[str, list[np.ndarray]] = {}
    for word in ("yes", "stop", "left", "right"):
        clips[word] = []
        with tarfile.open(shared_data / "commands" / f"sc-v0.02-test-{word}.tar") as tar:
            for member in [m for m in tar if m.name.endswith(".flac")][:6]:
                file = tar.extractfile(member)
                assert file is not None
                clips[word].append(soundfile.read(io.BytesIO(file.read()), dtype="float32")[0])
    truth, lines = {}, []
    for index in range(6):
        chosen = rng.permutation(sorted(clips))[:2]
        parts = [clips[word][index] for word in chosen]
        spans = [speech_span(part) for part in parts]
        shift = len(parts[0]) / RATE
        truth[f"pair {index}"] = [spans[0], (spans[1][0] + shift, spans[1][1] + shift)]
        soundfile.write(folder / f"{index}.flac", np.concatenate(parts), RATE)
        said = " ".join(chosen).upper()
        lines.append({"audio_filepath": f"{index}.flac", "id": f"pair {index}", "said": said})
    return write_manifest(folder / "manifest.jsonl", lines), truth


def right_and_wrong_texts(path: Path) -> str:
    """Each recording of the archive with its own text and with that of another, under two names."""
    entries = [json.loads(line) for line in (demo.ARCHIVE / "manifest.jsonl").read_text().splitlines()]
    lines = []
    for index, entry in enumerate(entries):
        other = next(e["text"] for e in entries[index + 1 :] + entries if e["text"] != entry["text"])
        file = str(demo.ARCHIVE / entry["audio_filepath"])
        for kind, text in (("right", entry["text"]), ("wrong", other)):
            lines.append({"audio_filepath": file, "id": f"{kind} {index}", "said": text})
    return write_manifest(path, lines)


def no_texts(folder: Path) -> str:
    """One text that can be aligned, an empty one, and what cannot be."""
    folder.mkdir()
    good = str(demo.ARCHIVE / "00_0b57a6ed.flac")
    (folder / "broken.wav").write_bytes(b"nothing that decodes")
    lines: list[dict[str, object]] = [
        {"audio_filepath": good, "id": "good", "said": "OFF ON"},
        {"audio_filepath": good, "id": "empty", "said": ""},
        {"audio_filepath": good, "id": "no text", "text": "OFF ON"},
        {"audio_filepath": good, "id": "number", "said": 5},
        {"audio_filepath": good, "id": "too long", "said": "OFF ON " * 500},
        {"audio_filepath": "broken.wav", "id": "broken", "said": "OFF"},
    ]
    return write_manifest(folder / "list.jsonl", lines)


def test_words_of_two_clips_end_to_end_lie_in_their_clips(shared_data: Path, aligned: Aligned) -> None:
    """Every word is found within 0.1 s of its own."""
    for name in (f"pair {index}" for index in range(6)):
        spans = aligned.spans[name]
        for word, (start, end) in zip(aligned.rows[name]["words"], spans, strict=True):
            assert start - 0.1 <= word["start_s"] < word["end_s"] <= end + 0.1


def test_wrong_texts_have_a_higher_loss_than_right_ones(aligned: Aligned) -> None:
    losses: dict[str, list[float]] = {"right": [], "wrong": []}
    for name, row in aligned.rows.items():
        if (kind := name.split()[0]) in losses:
            losses[kind].append(row["loss_per_label"])
    rejected = [name for name in aligned.rejects if name.split()[0] in losses]
    assert all(name.startswith("wrong") for name in rejected)  # too long for their audio
    pairs = [(right, wrong) for right in losses["right"] for wrong in losses["wrong"]]
    assert len(losses["right"]) == 16
    assert len(losses["wrong"]) + len(rejected) == 16
    assert np.mean([right < wrong for right, wrong in pairs]) > 0.95


def long_recording(folder: Path) -> tuple[str, list[str], list[tuple[float, float]]]:
    """One of 100 s: the words that are said in it, and when."""
    pieces, said, edges = [], [], []
    rng = np.random.default_rng(5)
    samples, text = clip_with_text("05_")
    while sum(map(len, pieces)) < 100 * RATE:
        start = sum(map(len, pieces)) / RATE
        pieces += [samples, 1e-4 * rng.standard_normal(RATE // 2).astype(np.float32)]
        said += text.split()
        edges += [(start, start + len(samples) / RATE)] * len(text.split())
    folder.mkdir()
    soundfile.write(folder / "long.flac", np.concatenate(pieces), RATE)
    lines: list[dict[str, object]] = [
        {"audio_filepath": "long.flac", "id": "long", "said": " ".join(said)},
    ]
    return write_manifest(folder / "long.jsonl", lines), said, edges


def test_a_recording_longer_than_a_shard_is_aligned_as_a_whole(aligned: Aligned) -> None:
    row = aligned.rows["long"]
    assert [name for name, other in aligned.rows.items() if other["shard_id"] == row["shard_id"]] == ["long"]
    assert aligned.summary.num_shards > 5
    assert row["end_s"] - row["start_s"] > 100
    assert [word["word"] for word in row["words"]] == aligned.long_text
    for word, (start, end) in zip(row["words"], aligned.spans["long"], strict=True):
        assert start - 0.1 <= word["start_s"] < word["end_s"] <= end + 0.1


def test_recordings_without_a_text_or_audio_are_rejected_with_the_reason(aligned: Aligned) -> None:
    rows, rejects = aligned.rows, aligned.rejects
    assert aligned.summary.num_items == len(aligned.spans) + 2 * 16 + 6
    assert (aligned.summary.num_rows, aligned.summary.num_rejects) == (len(rows), len(rejects))
    assert len(rows) + len(rejects) == aligned.summary.num_items
    assert [word["word"] for word in rows["good"]["words"]] == ["OFF", "ON"]
    assert rows["empty"]["words"] == []
    assert rows["empty"]["score"] is rows["empty"]["loss_per_label"] is None
    assert rows["empty"]["ctc_loss"] is not None
    assert {name: row["error_class"] for name, row in rejects.items() if not name.startswith("wrong")} == {
        "no text": "AlignError",
        "number": "AlignError",
        "too long": "AlignError",
        "broken": "DecodeError",
    }
    assert "no text under 'said'" in rejects["no text"]["message"]
    assert rejects["too long"]["segment_id"] is None
    assert rejects["too long"]["planned_s"] == pytest.approx(0.853, abs=1e-3)


def test_the_command_aligns_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*more: str) -> tuple[int, str, str]:
        arguments = ["align", str(demo.ARCHIVE / "manifest.jsonl"), "--output", str(tmp_path / "out")]
        code = main([*arguments, "--model", MODEL, *more])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    code, _, said = command("--text-key", "")
    assert (code, said.startswith("w2v-ray: text_key is ''")) == (2, True)
    code, printed, said = command("--json", "--encoder-threads", "1")
    assert code == 0, said
    assert json.loads(printed)["num_rows"] == 16
    code, _, said = command("--text-key", "speaker")
    assert code == 2
    assert "text_key 'text' -> 'speaker'" in said
    assert json.loads(command("--json")[1])["num_shards_before"] == 1


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
