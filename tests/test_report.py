"""The numbers of a report are those that come out when they are worked out from the files in another way."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pyarrow as pa
import pytest

from tests.export_outputs import failed, item, made_output, metadata, segment
from tests.made_outputs import plan, publish, write_archive
from tests.made_outputs import rows_of as rows_of_table
from tests.report_outputs import large_output, run_record
from tests.speaker_outputs import embedded, embeddings_output, utterances
from w2v_ray import ConfigError, InputError, OutputError, audit, stores
from w2v_ray.cli import main
from w2v_ray.report import Report, report_place, summarize, write_report

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    return large_output(tmp_path_factory.mktemp("report") / "out", 2400, rows_per_shard=400)


@pytest.fixture(scope="module")
def rows(output: str) -> Rows:
    return rows_of_table(output)


@pytest.fixture(scope="module")
def report(output: str) -> Report:
    return summarize(output, text_key="text", speaker_key="speaker")


# ---- numbers


def test_totals_are_those_of_the_files(report: Report, rows: Rows) -> None:
    audio, speech = report.audio, report.speech
    assert speech is not None
    assert audio.num_rows == report.status.num_rows == len(rows)
    assert audio.num_recordings == len({row["recording_id"] for row in rows}) == 600
    assert audio.audio_s == pytest.approx(sum(row["duration_s"] for row in rows))
    assert speech.num_words == sum(len(row["words"]) for row in rows)
    assert speech.num_empty == sum(row["confidence"] is None for row in rows)
    assert audio.by_codec == dict(Counter(row["codec"] for row in rows).most_common())
    assert audio.by_sample_rate_hz == {"16000": len(rows)}
    assert audio.notes == {"clipped": sum(row["audio_notes"] == ["clipped"] for row in rows)}


@pytest.mark.parametrize("name", ["duration_s", "confidence", "word_confidence", "speech_rate_wps"])
def test_distributions_are_those_of_the_files(report: Report, rows: Rows, name: str) -> None:
    values = {
        "duration_s": [row["duration_s"] for row in rows],
        "confidence": [row["confidence"] for row in rows if row["confidence"] is not None],
        "word_confidence": [word["confidence"] for row in rows for word in row["words"]],
        "speech_rate_wps": [len(row["words"]) / row["duration_s"] for row in rows if row["words"]],
    }[name]
    found = report.audio.duration_s if name == "duration_s" else getattr(report.speech, name)
    assert found.count == len(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.min, found.max) == (min(values), max(values))
    for share in (10, 50, 90, 99):
        exact = np.quantile(values, share / 100, method="inverted_cdf")
        assert getattr(found, f"p{share}") == pytest.approx(exact, abs=found.resolution)
    assert sum(bin_.count for bin_ in found.bins) == len(values)
    edges = [bin_.start for bin_ in found.bins] + [found.bins[-1].end or np.inf]
    assert [bin_.count for bin_ in found.bins] == np.histogram(values, edges)[0].tolist()


def test_the_word_error_rate_is_that_of_jiwer(report: Report, rows: Rows) -> None:
    recordings: dict[str, Rows] = {}
    for row in sorted(rows, key=lambda row: row["start_s"]):
        recordings.setdefault(row["recording_id"], []).append(row)
    said = [json.loads(found[0]["metadata"])["text"] for found in recordings.values()]
    heard = [" ".join(row["text"] for row in found) for found in recordings.values()]
    expected = jiwer.process_words(said, heard)
    accuracy = report.accuracy
    assert accuracy is not None
    assert accuracy.rate == pytest.approx(expected.wer)
    counts = (accuracy.hits, accuracy.substitutions, accuracy.deletions, accuracy.insertions)
    assert counts == (expected.hits, expected.substitutions, expected.deletions, expected.insertions)
    assert accuracy.interval is not None
    assert accuracy.interval[0] < accuracy.rate < accuracy.interval[1]
    assert accuracy.num_recordings == 600
    lengths = [sum(row["duration_s"] for row in found) for found in recordings.values()]
    sure = [
        np.mean([w["confidence"] for row in found for w in row["words"]]) for found in recordings.values()
    ]
    for groups, values in ((accuracy.by_duration_s, lengths), (accuracy.by_confidence, sure)):
        assert sum(group.num_recordings for group in groups) == 600
        for group in groups:
            chosen = [
                place
                for place, value in enumerate(values)
                if group.start <= value and (group.end is None or value < group.end)
            ]
            assert len(chosen) == group.num_recordings
            if chosen:
                rate = jiwer.wer([said[place] for place in chosen], [heard[place] for place in chosen])
                assert group.rate == pytest.approx(rate)
    assert accuracy.worst[0].num_errors >= accuracy.worst[-1].num_errors > 0


def test_rejects_are_counted_by_reason_with_examples(report: Report, output: str) -> None:
    found = rows_of_table(output, "rejects")
    expected = Counter((row["error_class"], row["stage"]) for row in found)
    assert {(r.error_class, r.stage): r.num_rejects for r in report.rejects} == expected
    assert sum(r.num_rejects for r in report.rejects) == report.status.num_rejects == len(found) == 24
    seconds = sum(r.rejected_s for r in report.rejects)
    assert seconds == pytest.approx(sum(row["planned_s"] for row in found))
    assert [len(r.examples) for r in report.rejects] == [3, 3]
    ids = {row["recording_id"] for row in found}
    assert {example.recording_id for r in report.rejects for example in r.examples} <= ids


def test_the_sample_is_of_the_rows_and_the_same_each_time(report: Report, rows: Rows, output: str) -> None:
    by_place = {(row["recording_id"], row["start_s"]): row for row in rows}
    for sampled in report.sample:
        row = by_place[sampled.recording_id, sampled.start_s]
        assert " ".join(word for word, _ in sampled.words) == row["text"]
        assert sampled.confidence == row["confidence"]
    drawn = [row for row in report.sample if not row.is_least_sure]
    assert len(drawn) == 120
    least = sorted(row["confidence"] for row in rows if row["confidence"] is not None)[:40]
    shown = sorted(row.confidence for row in report.sample if row.confidence is not None)
    assert shown[:40] == least
    again = summarize(output, text_key="text", speaker_key="speaker")
    assert dataclasses.replace(again, made_at=report.made_at) == report


def test_rows_that_a_later_plan_superseded_do_not_count(tmp_path: Path) -> None:
    output = tmp_path / "out"
    archive = {"a.wav": "x", "b.wav": "y"}
    publish(plan(write_archive(tmp_path / "in", archive), output))
    archive["b.wav"] = "changed"
    publish(plan(write_archive(tmp_path / "in", archive), output, on_change="new"), failing={"b.wav"})
    found = summarize(str(output))
    newest = {row["shard_id"] for row in rows_of_table(output) if row["recording_id"] == "b.wav"}
    assert len(newest) == 2, "both generations are in the files"
    assert found.audio.num_rows == found.status.num_rows < len(rows_of_table(output))
    assert found.status.num_items_superseded == 1
    assert sum(reason.num_rejects for reason in found.rejects) == 1


def test_json_holds_the_numbers_by_name(output: str, report: Report, tmp_path: Path, capsys: Any) -> None:
    page = tmp_path / "page.html"
    arguments = ["--text-key", "text", "--speaker-key", "speaker", "--output", str(page), "--json"]
    assert main(["report", output, *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = json.loads(report.to_json())
    del found["made_at"], expected["made_at"]
    assert found == expected
    assert found["audio"]["duration_s"]["bins"][0].keys() == {"start", "end", "count"}
    assert "sample" not in found
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


# ---- references


TEXTS = {"/a/one.wav": "it begins here", "/a/two.wav": "and goes on"}


@pytest.fixture
def two(tmp_path: Path) -> str:
    entries = [
        item(name, [segment(text, 0.0, 9.0)], metadata=metadata(text=text.upper()))
        for name, text in TEXTS.items()
    ]
    entries.append(item("/a/three.wav", [segment("nobody knows", 0.0, 9.0)]))
    return made_output(tmp_path / "two", [entries])


def test_a_table_of_references_names_recordings_by_their_ends(two: str, tmp_path: Path) -> None:
    table = tmp_path / "said.csv"
    table.write_text("id,said\none,it begins there\ntwo.wav,and goes on\nfour.wav,lost\n")
    accuracy = summarize(two, reference=str(table), text_key="said").accuracy
    assert accuracy is not None
    assert (accuracy.num_recordings, accuracy.num_without_reference, accuracy.num_without_rows) == (2, 1, 1)
    assert (accuracy.hits, accuracy.substitutions) == (5, 1)
    assert accuracy.interval is None, "two recordings say nothing of how they vary"
    assert [wrong.recording_id for wrong in accuracy.worst] == ["/a/one.wav"]


def test_texts_are_compared_as_they_are(two: str) -> None:
    accuracy = summarize(two, text_key="text").accuracy
    assert accuracy is not None
    assert (accuracy.rate, accuracy.num_without_rows) == (1.0, None)


def test_without_a_reference_there_is_no_rate(two: str) -> None:
    assert summarize(two).accuracy is None
    assert summarize(two, text_key="nothing").accuracy is None


# ---- other tables


def test_embeddings_are_mapped_by_their_principal_components(tmp_path: Path) -> None:
    speakers = [number % 3 for number in range(60)]
    vectors = utterances(speakers, noise=0.1)
    recordings = {
        f"/archive/{number:02}.wav": [
            embedded(0.0, 2.0, vector, metadata=metadata(speaker=f"voice {speaker}"))
        ]
        for number, (vector, speaker) in enumerate(zip(vectors, speakers, strict=True))
    }
    recordings["/archive/short.wav"] = [embedded(0.0, 0.1, None)]
    output = embeddings_output(tmp_path / "out", recordings)
    found = summarize(output, speaker_key="speaker").embeddings
    assert found is not None
    assert (found.num_embeddings, found.num_without, found.dimension) == (60, 1, 16)
    assert found.map is not None
    assert found.map.groups == (("voice 0", 20), ("voice 1", 20), ("voice 2", 20))
    centred = vectors.astype(np.float32) - vectors.astype(np.float32).mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)  # another way to the same components
    shares = values**2 / (values**2).sum()
    assert found.map.explained == pytest.approx(shares[:2].tolist(), rel=1e-4)
    expected = left[:, :2] * values[:2]
    expected /= np.abs(expected).max()
    places = np.array([(point.x, point.y) for point in found.map.points])
    names = [point.name for point in found.map.points]
    assert names == [f"{name}@0.0" for name in list(recordings)[:60]]
    for axis in (0, 1):
        turned = expected[:, axis] * np.sign(expected[:, axis] @ places[:, axis])
        np.testing.assert_allclose(places[:, axis], turned, atol=2e-3)
    for point, speaker in zip(found.map.points, speakers, strict=True):
        assert point.group == speaker


def test_speakers_of_a_cluster_table_colour_the_map(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    vectors = utterances([0, 1] * 6)
    names = [f"/archive/{number:02}.wav" for number in range(12)]
    output = embeddings_output(
        tmp_path / "out", {name: [embedded(0, 1, v)] for name, v in zip(names, vectors, strict=True)}
    )
    table = pa.table(
        {
            "recording_id": names,
            "channel": pa.nulls(12, pa.int32()),
            "speaker": [None, *["speaker-0001"] * 5, *["speaker-0002"] * 6],
        }
    )
    path = str(tmp_path / "speakers.parquet")
    pq.write_table(table, path)
    found = summarize(output, clusters=path).embeddings
    assert found is not None
    assert found.map is not None
    assert found.map.groups == (("speaker-0002", 6), ("speaker-0001", 5))
    assert found.map.num_ungrouped == 1
    pq.write_table(table.select(["speaker"]), path)
    with pytest.raises(InputError, match="cannot be read as a table of speakers"):
        summarize(output, clusters=path)


def test_labels_and_turns_are_counted(tmp_path: Path) -> None:
    labels = [("yes", 0.9), ("no", 0.8), ("yes", 0.7), (None, None)]
    rows: Rows = [
        {"start_s": n, "end_s": n + 1.0, "duration_s": 1.0, "label": label, "score": score, "labels": []}
        for n, (label, score) in enumerate(labels)
    ]
    found = summarize(made_output(tmp_path / "labels", [[item("a.wav", rows)]], table="labels"))
    assert found.labels is not None
    assert (found.labels.by_label, found.labels.num_unnamed) == ({"yes": 2, "no": 1}, 1)
    turns = [
        {"label": "A", "start_s": 0.0, "end_s": 1.5, "score": 0.9},
        {"label": "B", "start_s": 1.0, "end_s": 1.25, "score": 0.9},
        {"label": "A", "start_s": 2.0, "end_s": 2.5, "score": 0.9},
    ]
    row = {"start_s": 0.0, "end_s": 3.0, "duration_s": 3.0, "turns": turns, "classes": ["A", "B"]}
    row |= {"seconds_per_frame": 0.02, "num_frames": 150, "activity": [[0.5, 0.5]] * 150}
    types = {"activity": pa.list_(pa.list_(pa.float16(), 2))}
    output = made_output(tmp_path / "frames", [[item("a.wav", [row])]], table="frames", types=types)
    found = summarize(output)
    assert found.turns is not None
    assert found.turns.by_class == {"A": 2, "B": 1}
    assert found.turns.seconds_by_class == {"A": 2.0, "B": 0.25}
    assert found.turns.num_turns == 3


def test_alignments_have_scores_and_words(tmp_path: Path) -> None:
    words = [
        {"word": "it", "start_s": 0.0, "end_s": 0.5, "score": 0.5, "aligned": True},
        {"word": "1", "start_s": 0.5, "end_s": 0.5, "score": None, "aligned": False},
    ]
    row = {"start_s": 0.0, "end_s": 2.0, "duration_s": 2.0, "text": "it 1", "score": 0.5, "words": words}
    output = made_output(tmp_path / "out", [[item("a.wav", [row])]], table="alignments")
    found = write_report(output)
    assert found.speech is not None
    assert found.speech.num_words == 2
    assert found.speech.confidence is not None
    assert found.speech.confidence.mean == 0.5
    assert [row.words for row in found.sample] == [(("it", 0.5), ("1", None))]


def test_an_output_without_rows_says_so(tmp_path: Path) -> None:
    output = made_output(tmp_path / "none", [[item("a.wav", [segment("x", 0, 1)])]], unpublished=[0])
    found = write_report(output)
    assert (found.audio.num_rows, found.audio.duration_s) == (0, None)
    page = (tmp_path / "none" / "report.html").read_text(encoding="utf-8")
    assert "Nothing is published yet of 1 min of audio that are planned." in page
    output = made_output(tmp_path / "all", [[item("a.wav", [failed(None, None)])]])
    assert write_report(output).status.num_rejects == 1


# ---- where it goes, and what is refused


def test_the_page_goes_into_a_folder_or_here(two: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_place("s3://bucket/out") == "report.html"
    assert main(["report", two]) == 0
    place = f"{two}/report.html"
    assert capsys.readouterr().out == f"written to {place}\n"
    assert Path(place).stat().st_size < 100_000
    assert main(["report", two]) == 0, "it takes the place of the earlier one"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": "speakers.parquet"}, "has no embeddings"),
        ({"reference": "nowhere.csv"}, "nowhere.csv"),
    ],
)
def test_what_cannot_be_shown_is_refused(two: str, options: dict[str, str], message: str) -> None:
    with pytest.raises((ConfigError, InputError), match=message):
        write_report(two, **options)  # type: ignore[arg-type]
    assert not (Path(two) / "report.html").exists()


def test_a_place_that_is_no_output_or_cannot_be_written_is_refused(two: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is not the output of a job"):
        write_report(str(tmp_path))
    with pytest.raises(OutputError, match="is not the output of a job"):  # and not: make its folder first
        write_report(str(tmp_path / "gone"))
    with pytest.raises(OutputError, match="make it first"):
        write_report(two, str(tmp_path / "no" / "report.html"))
    with pytest.raises(OutputError, match="protocol"):
        write_report("ftp://somewhere/out")
    labels = made_output(tmp_path / "labels", [[item("a.wav", [])]], table="labels", unpublished=[0])
    with pytest.raises(ConfigError, match="has no transcripts"):
        write_report(labels, text_key="text")


def test_outputs_in_a_store_are_read_and_pages_written_there(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = made_output(f"{s3}/out", [[item("a.wav", [segment("it is there", 0.0, 2.0)])]])
    record = run_record(3)
    stores.publish(f"{output}/_runs/{record['run']}.json", json.dumps(record).encode())
    found = write_report(output, f"{s3}/pages/report.html")
    assert (found.audio.num_rows, [run.run for run in found.runs]) == (1, [record["run"]])
    assert b">there</mark>" in stores.read_bytes(f"{s3}/pages/report.html")
    monkeypatch.chdir(tmp_path)
    write_report(output)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_neither_torch_nor_ray_is_loaded(two: str) -> None:
    code = (
        "import sys; from w2v_ray.cli import main; main(['report', sys.argv[1], '--text-key', 'text']); "
        "print(sorted({'torch', 'ray', 'rich', 'sklearn'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code, two], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_an_audit_does_not_mind_the_page(two: str) -> None:
    write_report(two)
    assert audit(two).is_complete
