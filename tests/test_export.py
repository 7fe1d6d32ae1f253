"""Exports say what the tables say, to the millisecond, as independent readers of each format find it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from tests.export_outputs import Row, failed, item, made_output, metadata, segment, spoken
from w2v_ray import ConfigError, InputError, MissingExtraError, OutputError, cli, export, stores
from w2v_ray.exports import FORMATS, ExportSummary, _files, recording_id_of
from w2v_ray.exports.captions import CaptionSettings
from w2v_ray.exports.recordings import Recording, Segment, Word, read_recordings
from w2v_ray.exports.rows import read_planned
from w2v_ray.progress import Progress

LONG, UNICODE, BROKEN = "/archive/a/long.wav", "/archive/b/Über straße.wav", "/archive/b/broken.mp3"
PARTIAL, SILENT, MEMBER = "/archive/partial.ogg", "/archive/silent.flac", "/archive/x.tar#m/1.flac"
LATE = "/archive/z/late.wav"

# The plan: a long recording lies in three shards, with others beside it.
SHARDS: list[list[Row]] = [
    [
        item(LONG, [segment("it begins here", 0.0, 20.5), segment("and goes on", 20.5, 40.0)]),
        item(
            UNICODE,
            [segment('"naïve" <b>ÆØÅ</b> R&D -->', 0.0, 9.0)],
            metadata=metadata(speaker="Ada L", text="x"),
        ),
        item(BROKEN, [failed(None, None, "no codec here knows it")]),
    ],
    [
        item(LONG, [segment("in the middle", 40.0, 61.25)]),
        item(PARTIAL, [segment("first half", 0.0, 30.0, confidence=0.25), failed(30.0, 60.0, "too loud")]),
        item(SILENT, [segment("", 0.0, 12.0, confidence=None)]),
    ],
    [
        item(MEMBER, [segment("from a tar", 0.0, 5.0)], uri="/archive/x.tar", byte_offset=512, byte_size=9),
        item(LONG, [segment("the end", 61.25, 80.0)]),
    ],
    [item(LATE, [segment("not there", 0.0, 5.0)])],
]
EXPORTED = [LONG, UNICODE, PARTIAL, SILENT, MEMBER]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made_output(tmp_path_factory.mktemp("made") / "out", SHARDS, unpublished=[3])


def rows_of(recording_id: str) -> list[Row]:
    """What was made of a recording, in its order."""
    return [
        row
        for shard in SHARDS
        for entry in shard
        if entry["recording_id"] == recording_id
        for row in entry["rows"]
        if "error" not in row
    ]


def times_of(recording_id: str, *, factor: int = 1000) -> list[tuple[int, int, str]]:
    return [
        (round(word["start_s"] * factor), round(word["end_s"] * factor), word["word"])
        for row in rows_of(recording_id)
        for word in row["words"]
    ]


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---- formats with a file for each recording


@pytest.mark.parametrize("format", ["srt", "vtt", "txt", "tsv", "textgrid"])
def test_each_recording_has_a_file_in_the_tree_of_the_archive(made: str, tmp_path: Path, format: str) -> None:
    summary = export(made, format=format, output=str(tmp_path / "to"))
    extension = ".TextGrid" if format == "textgrid" else f".{format}"
    expected = ["a/long.wav", "b/Über straße.wav", "partial.ogg", "silent.flac", "x.tar#m/1.flac"]
    found = files_of(tmp_path / "to")
    assert sorted(found) == [name + extension for name in expected]
    assert {recording_id_of(name, summary.root, extension) for name in found} == set(EXPORTED)
    assert summary.num_files == 5
    assert not (tmp_path / "to" / "_tmp").exists()


def test_captions_hold_the_words_when_they_are_said(made: str, tmp_path: Path) -> None:
    export(made, format="srt", output=str(tmp_path), words=False)
    text = (tmp_path / "a" / "long.wav.srt").read_text(encoding="utf-8")
    assert text == (
        "1\n00:00:00,100 --> 00:00:01,200\nit begins here\n\n"
        "2\n00:00:20,600 --> 00:00:21,700\nand goes on\n\n"
        "3\n00:00:40,100 --> 00:00:41,200\nin the middle\n\n"
        "4\n00:01:01,350 --> 00:01:02,350\nthe end\n"
    )
    assert (tmp_path / "silent.flac.srt").read_bytes() == b""
    export(made, format="vtt", output=str(tmp_path), words=True, recordings=[LONG])
    text = (tmp_path / "a" / "long.wav.vtt").read_text(encoding="utf-8")
    starts = re.findall(r"(?:^|<)(\d\d):(\d\d):(\d\d)\.(\d\d\d)(?= -->|>)", text, re.MULTILINE)
    found = [((int(h) * 60 + int(m)) * 60 + int(s)) * 1000 + int(ms) for h, m, s, ms in starts]
    assert found == [start for start, _, _ in times_of(LONG)]


def test_text_and_segments_in_lines(made: str, tmp_path: Path) -> None:
    export(made, format="txt", output=str(tmp_path))
    assert (
        tmp_path / "a" / "long.wav.txt"
    ).read_text() == "it begins here and goes on in the middle the end\n"
    export(made, format="tsv", output=str(tmp_path))
    assert (tmp_path / "a" / "long.wav.tsv").read_text().splitlines() == [
        "start_ms\tend_ms\ttext",
        "0\t20500\tit begins here",
        "20500\t40000\tand goes on",
        "40000\t61250\tin the middle",
        "61250\t80000\tthe end",
    ]
    assert (tmp_path / "silent.flac.tsv").read_text() == "start_ms\tend_ms\ttext\n"


def parse_textgrid(text: str) -> dict[str, list[tuple[float, float, str]]]:
    """A strict reader of Praat's long text format: nothing may be missing, and tiers have no gaps."""
    lines = iter(text.splitlines())

    def value(name: str) -> str:
        line = next(lines)
        assert line.strip().startswith(f"{name} = "), line
        return line.split(" = ", 1)[1]

    def quoted(name: str) -> str:
        text = value(name)
        assert re.fullmatch(r'"(?:[^"]|"")*"', text), text
        return text[1:-1].replace('""', '"')

    assert next(lines) == 'File type = "ooTextFile"'
    assert next(lines) == 'Object class = "TextGrid"'
    assert next(lines) == ""
    assert float(value("xmin")) == 0
    end = float(value("xmax"))
    assert end > 0
    assert next(lines) == "tiers? <exists>"
    count = int(value("size"))
    assert next(lines) == "item []:"
    tiers: dict[str, list[tuple[float, float, str]]] = {}
    for number in range(1, count + 1):
        assert next(lines).strip() == f"item [{number}]:"
        assert quoted("class") == "IntervalTier"
        name = quoted("name")
        assert float(value("xmin")) == 0
        assert float(value("xmax")) == end
        size = int(value("intervals: size"))
        assert size > 0
        here, found = 0.0, []
        for index in range(1, size + 1):
            assert next(lines).strip() == f"intervals [{index}]:"
            start, stop = float(value("xmin")), float(value("xmax"))
            assert start == here < stop
            here = stop
            found.append((start, stop, quoted("text")))
        assert here == end
        tiers[name] = found
    assert not list(lines)
    return tiers


def said_in(tier: list[tuple[float, float, str]]) -> list[tuple[int, int, str]]:
    return [(round(start * 1000), round(end * 1000), text) for start, end, text in tier if text]


def test_textgrids_are_as_praat_has_them(made: str, tmp_path: Path) -> None:
    export(made, format="textgrid", output=str(tmp_path))
    for recording_id, name in {
        LONG: "a/long.wav",
        UNICODE: "b/Über straße.wav",
        SILENT: "silent.flac",
    }.items():
        tiers = parse_textgrid((tmp_path / f"{name}.TextGrid").read_text(encoding="utf-8"))
        assert list(tiers) == ["words"]
        assert said_in(tiers["words"]) == times_of(recording_id)
        assert tiers["words"][-1][1] == rows_of(recording_id)[-1]["end_s"]


def test_textgrids_hold_what_takes_no_time() -> None:
    words = [Word("a", 0.5, 0.5), Word("b", 0.5, 0.5), Word('"', 0.5, 0.9), Word("late", 0.8, 1.4)]
    characters = [Word("a", 0.5, 0.5)]
    render = FORMATS["textgrid"].render
    assert render
    text = render(
        recording_of([Segment("s", None, 0.0, 1.2, "", None, words, characters)]), CaptionSettings()
    )
    tiers = parse_textgrid(text)
    assert said_in(tiers["words"]) == [(500, 501, "a"), (501, 502, "b"), (502, 900, '"'), (900, 1400, "late")]
    assert said_in(tiers["characters"]) == [(500, 501, "a")]


# ---- formats of one file


def test_json_lines_hold_everything(made: str, tmp_path: Path) -> None:
    export(made, format="jsonl", output=str(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "recordings.jsonl").read_text("utf-8").splitlines()]
    assert [line["recording_id"] for line in lines] == EXPORTED  # in the order of the plan
    for line in lines:
        rows = rows_of(line["recording_id"])
        assert line["text"] == " ".join(row["text"] for row in rows)
        assert [(s["start_s"], s["end_s"], s["text"], s["confidence"]) for s in line["segments"]] == [
            (row["start_s"], row["end_s"], row["text"], row["confidence"]) for row in rows
        ]
        found = [word for s in line["segments"] for word in s["words"]]
        assert [(w["word"], w["confidence"]) for w in found] == [
            (w["word"], w["confidence"]) for row in rows for w in row["words"]
        ]
        assert [(round(w["start_s"] * 1000), round(w["end_s"] * 1000), w["word"]) for w in found] == times_of(
            line["recording_id"]
        )
    assert lines[1]["metadata"] == {"speaker": "Ada L", "text": "x"}
    assert [(r["start_s"], r["end_s"], r["message"]) for r in lines[2]["rejects"]] == [
        (30.0, 60.0, "too loud")
    ]


def test_ctm_has_a_line_for_each_word(made: str, tmp_path: Path) -> None:
    export(made, format="ctm", output=str(tmp_path))
    lines = (tmp_path / "words.ctm").read_text("utf-8").splitlines()
    found: dict[str, list[tuple[int, int, str]]] = {}
    for line in lines:
        name, channel, start, duration, word, confidence = line.split(" ")
        assert channel == "1"
        assert 0 <= float(confidence) <= 1
        begin = round(float(start) * 1000)
        found.setdefault(name, []).append((begin, begin + round(float(duration) * 1000), word))
    names = {LONG: LONG, UNICODE: "/archive/b/Über%20straße.wav", PARTIAL: PARTIAL, MEMBER: MEMBER}
    assert found == {name: times_of(recording_id) for recording_id, name in names.items()}
    assert all(times == sorted(times) for times in found.values())


def test_rttm_has_a_speaker_for_each_segment_with_words(made: str, tmp_path: Path) -> None:
    export(made, format="rttm", output=str(tmp_path))
    lines = [line.split(" ") for line in (tmp_path / "segments.rttm").read_text("utf-8").splitlines()]
    assert {len(line) for line in lines} == {10}
    assert {(line[0], line[2], *line[5:7], *line[8:]) for line in lines} == {("SPEAKER", "1", *["<NA>"] * 4)}
    assert [line[1] for line in lines] == [LONG] * 4 + ["/archive/b/Über%20straße.wav", PARTIAL, MEMBER]
    assert [line[7] for line in lines] == ["speech"] * 4 + ["Ada_L"] + ["speech"] * 2
    spans = [(round(float(line[3]) * 1000), round(float(line[4]) * 1000)) for line in lines[:4]]
    expected = [
        [round(w[key] * 1000) for w in row["words"] for key in ("start_s", "end_s")] for row in rows_of(LONG)
    ]
    assert spans == [(times[0], times[-1] - times[0]) for times in expected]


def test_nemo_manifests_name_the_audio_of_each_segment_with_text(made: str, tmp_path: Path) -> None:
    export(made, format="nemo", output=str(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text("utf-8").splitlines()]
    assert [line["audio_filepath"] for line in lines] == [LONG] * 4 + [UNICODE, PARTIAL, MEMBER]
    assert [(line["offset"], line["duration"], line["text"]) for line in lines[:4]] == [
        (row["start_s"], row["end_s"] - row["start_s"], row["text"]) for row in rows_of(LONG)
    ]
    assert lines[4] == {
        "audio_filepath": UNICODE,
        "offset": 0.0,
        "duration": 9.0,
        "text": '"naïve" <b>ÆØÅ</b> R&D -->',
        "speaker": "Ada L",
        "input_text": "x",
    }


def test_a_dataset_is_loaded_from_the_disk(made: str, tmp_path: Path) -> None:
    summary = export(made, format="hf", output=str(tmp_path / "to"))
    assert summary.num_files == 3
    loaded = datasets.load_from_disk(str(tmp_path / "to"))
    assert loaded.features["audio"] == datasets.Audio(decode=False)
    assert loaded["id"][:] == EXPORTED
    assert loaded["audio"][0] == {"path": LONG, "bytes": None}
    assert loaded["audio"][4] == {"path": MEMBER, "bytes": None}
    for row in loaded:
        assert row["text"] == " ".join(made_row["text"] for made_row in rows_of(row["id"]))
        words = [(round(w["start_s"] * 1000), round(w["end_s"] * 1000), w["word"]) for w in row["words"]]
        assert words == times_of(row["id"])
    assert not datasets.are_progress_bars_disabled()


def test_a_dataset_needs_its_package(made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"w2v-ray\[datasets\]"):
        export(made, format="hf", output=str(tmp_path / "to"))
    assert not (tmp_path / "to").exists()


# ---- what is exported, and what is not


def test_the_summary_says_what_is_missing(made: str, tmp_path: Path) -> None:
    summary = export(made, format="ctm", output=str(tmp_path))
    assert summary == ExportSummary(
        output=str(tmp_path),
        format="ctm",
        root="",
        num_files=1,
        num_recordings=5,
        num_segments=8,
        num_words=sum(len(times_of(recording_id)) for recording_id in EXPORTED),
        num_segments_unsure=0,
        num_recordings_rejected=1,
        num_recordings_partial=1,
        num_recordings_pending=1,
        incomplete=[
            {"recording_id": BROKEN, "start_s": None, "end_s": None, "reason": "no codec here knows it"},
            {"recording_id": PARTIAL, "start_s": 30.0, "end_s": 60.0, "reason": "too loud"},
            {"recording_id": LATE, "start_s": None, "end_s": None, "reason": "not done yet"},
        ],
    )
    assert not summary.is_complete
    assert json.loads(summary.to_json())["num_recordings"] == 5


def test_some_recordings_and_only_what_is_sure(made: str, tmp_path: Path) -> None:
    summary = export(made, format="txt", output=str(tmp_path), recordings=[MEMBER, LONG])
    assert sorted(files_of(tmp_path)) == ["a/long.wav.txt", "x.tar#m/1.flac.txt"]  # named as among all
    assert summary.is_complete
    summary = export(made, format="ctm", output=str(tmp_path), min_confidence=0.5)
    assert PARTIAL not in (tmp_path / "words.ctm").read_text("utf-8")
    assert summary.num_segments_unsure == 2  # that of low confidence, and that where nothing was said
    assert summary.num_recordings == 5


def test_rejects_of_a_shard_that_is_not_done_are_none_yet(tmp_path: Path) -> None:
    output = made_output(
        tmp_path / "out", [[item("a", [failed(None, None)])], [item("b", [segment("x", 0, 1)])]]
    )
    (table,) = (tmp_path / "out" / "transcripts").glob("*0.parquet")
    table.unlink()
    summary = export(output, format="txt", output=str(tmp_path / "to"))
    assert (summary.num_recordings_rejected, summary.num_recordings_pending) == (0, 1)


def test_what_is_planned_meanwhile_comes_with_the_next_export(tmp_path: Path) -> None:
    output = made_output(
        tmp_path / "out", [[item("a", [segment("one", 0, 5)])], [item("b", [failed(None, None)])]]
    )
    planned = read_planned(output)
    made_output(output, [[item("c", [segment("new", 0, 5)]), item("d", [failed(None, None)])]], number=2)
    found = list(read_recordings(planned, None, min_confidence=None))
    assert [recording.recording_id for recording in found] == ["a", "b"]
    assert export(output, format="txt", output=str(tmp_path / "to")).num_recordings == 2


def test_recordings_far_apart_in_the_plan_are_joined(tmp_path: Path) -> None:
    """More shards than are held at once, each with a piece of the first recording."""
    shards = [
        [
            item("whole", [segment(f"piece{n}", 10.0 * n, 10.0 * n + 10)]),
            item(f"other{n}", [segment("x", 0, 1)]),
        ]
        for n in range(40)
    ]
    output = made_output(
        tmp_path / "out", [*shards[20:], *shards[:20]]
    )  # also not in the order of their times
    export(output, format="txt", output=str(tmp_path / "to"))
    found = files_of(tmp_path / "to")
    assert found["whole.txt"].split() == [f"piece{n}" for n in range(40)]
    assert len(found) == 41


def test_alignments_are_exported_with_their_characters(tmp_path: Path) -> None:
    def aligned(name: str, spans: list[Row]) -> list[Row]:
        values = [{"score": span["confidence"], "aligned": True} for span in spans]
        return [
            {name: s["word"], "start_s": s["start_s"], "end_s": s["end_s"]} | v
            for s, v in zip(spans, values, strict=True)
        ]

    words, characters = spoken("sure thing", 0.5), spoken("s u r e t h i n g", 0.5)
    row = {"start_s": 0.0, "end_s": 9.0, "duration_s": 9.0, "text": "sure thing", "score": 0.75}
    row |= {"words": aligned("word", words), "characters": aligned("char", characters)}
    row["words"][1]["score"] = None  # not in the vocabulary
    output = made_output(tmp_path / "out", [[item("a.wav", [row])]], table="alignments")
    export(output, format="textgrid", output=str(tmp_path / "to"))
    tiers = parse_textgrid((tmp_path / "to" / "a.wav.TextGrid").read_text())
    for name, spans in {"words": words, "characters": characters}.items():
        expected = [(round(s["start_s"] * 1000), round(s["end_s"] * 1000), s["word"]) for s in spans]
        assert said_in(tiers[name]) == expected
    export(output, format="ctm", output=str(tmp_path / "to"))
    assert (
        tmp_path / "to" / "words.ctm"
    ).read_text() == "a.wav 1 0.500 0.300 sure 0.7500\na.wav 1 0.900 0.300 thing\n"
    export(output, format="jsonl", output=str(tmp_path / "to"))
    (line,) = (json.loads(line) for line in (tmp_path / "to" / "recordings.jsonl").read_text().splitlines())
    assert [c["char"] for c in line["segments"][0]["characters"]] == list("surething")
    assert line["segments"][0]["confidence"] == 0.75


# ---- channels


def recording_of(segments: list[Segment], **values: Any) -> Recording:
    return Recording("call.wav", "call.wav", False, values, segments, [], False)


CALL = recording_of(
    [
        Segment("l", 0, 0.0, 5.0, "hello", 0.5, [Word("hello", 1.0, 1.5, 0.5)], None),
        Segment(
            "r",
            1,
            0.0,
            5.0,
            "who is it",
            0.5,
            [Word("who", 1.2, 1.4), Word("is", 1.4, 1.6), Word("it", 1.6, 2.0)],
            None,
        ),
    ]
)


def rendered(format: str, recording: Recording) -> str:
    render = FORMATS[format].render
    assert render
    return render(recording, CaptionSettings())


@pytest.mark.parametrize("format", ["srt", "vtt", "txt", "tsv"])
def test_channels_have_files_of_their_own(format: str) -> None:
    files = [(channel, rendered(format, part)) for channel, part in _files(FORMATS[format], CALL)]
    assert [channel for channel, _ in files] == [0, 1]
    assert ["hello" in text for _, text in files] == [True, False]
    assert ["who is it" in text for _, text in files] == [False, True]
    one = recording_of(CALL.segments[1:])
    assert [channel for channel, _ in _files(FORMATS[format], one)] == [None]


def test_channels_are_named_in_formats_of_one_file() -> None:
    assert rendered("ctm", CALL).splitlines() == [
        "call.wav 1 1.000 0.500 hello 0.5000",
        "call.wav 2 1.200 0.200 who",
        "call.wav 2 1.400 0.200 is",
        "call.wav 2 1.600 0.400 it",
    ]
    assert [line.split()[2] for line in rendered("rttm", CALL).splitlines()] == ["1", "2"]
    assert [json.loads(line)["channel"] for line in rendered("nemo", CALL).splitlines()] == [0, 1]
    assert list(parse_textgrid(rendered("textgrid", CALL))) == ["words of channel 1", "words of channel 2"]


def test_fields_of_a_line_stay_fields() -> None:
    words = [Word("a b", 0.0, 0.5), Word("c\u00a0d", 0.5, 1.0), Word("e\nf", 1.0, 1.5)]
    odd = recording_of([Segment("s", None, 0.0, 2.0, "a b\tc\nd", None, words, None)], speaker=" ")
    odd = Recording(";; 100%\n", *[getattr(odd, name) for name in odd.__slots__[1:]])
    assert [line.split()[0] for line in rendered("ctm", odd).splitlines()] == ["%3B;%20100%25%0A"] * 3
    assert [line.split()[4] for line in rendered("ctm", odd).splitlines()] == ["a_b", "c_d", "e_f"]
    assert rendered("rttm", odd).split()[7] == "speech"
    assert rendered("tsv", odd).splitlines()[1] == "0\t2000\ta b c d"
    assert rendered("txt", odd) == "a b c d\n"


# ---- places


@pytest.mark.parametrize("format", ["srt", "jsonl", "hf"])
def test_stores_are_read_and_written(s3: str, tmp_path: Path, format: str) -> None:
    there = made_output(f"{s3}/out", SHARDS, unpublished=[3])
    here = made_output(tmp_path / "out", SHARDS, unpublished=[3])
    summary = export(there, format=format, output=f"{s3}/to/deep")
    export(here, format=format, output=str(tmp_path / "to"))
    found = {
        file.uri.removeprefix(f"{s3}/to/deep/"): stores.read_bytes(file.uri)
        for file in stores.list_files(f"{s3}/to")
    }
    expected = {name: (tmp_path / "to" / name).read_bytes() for name in found}
    expected.pop("state.json", None)  # datasets signs each with a number of its own
    assert expected
    assert {name: found[name] for name in expected} == expected
    assert len(found) == summary.num_files  # and nothing else


def test_an_export_can_be_made_again_over_itself(made: str, tmp_path: Path) -> None:
    for format in ("srt", "jsonl", "hf"):
        first = export(made, format=format, output=str(tmp_path))
        before = {
            path: path.read_bytes()
            for path in tmp_path.rglob("*")
            if path.is_file() and path.name != "state.json"
        }
        assert export(made, format=format, output=str(tmp_path)) == first
        assert {path: path.read_bytes() for path in before} == before


def test_what_cannot_be_exported_is_refused(made: str, tmp_path: Path) -> None:
    to = str(tmp_path / "to")
    with pytest.raises(ConfigError, match=r"'ass'.*srt, vtt"):
        export(made, format="ass", output=to)
    with pytest.raises(ConfigError, match=r"min_confidence is 1\.5"):
        export(made, format="srt", output=to, min_confidence=1.5)
    with pytest.raises(ConfigError, match="words"):
        export(made, format="srt", output=to, words=True)
    with pytest.raises(InputError, match=r"'/no\.wav'.*such as '/archive/a/long\.wav'"):
        export(made, format="srt", output=to, recordings=["/no.wav"])
    for inside in (made, f"{made}/srt", f"{made}/x/../transcripts"):
        with pytest.raises(OutputError, match="name another folder"):
            export(made, format="srt", output=inside)
    with pytest.raises(OutputError, match="not the output of a job"):
        export(str(tmp_path / "nothing"), format="srt", output=to)
    assert not os.path.exists(to)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        export(made, format="srt", output=str(tmp_path / "file"))


def test_a_damaged_part_stops_the_export(tmp_path: Path) -> None:
    output = made_output(tmp_path / "out", SHARDS)
    (part,) = (tmp_path / "out" / "transcripts").glob("*2.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(OutputError, match=f"{part.name}.*run again"):
        export(output, format="ctm", output=str(tmp_path / "to"))
    assert not (tmp_path / "to" / "words.ctm").exists()


# ---- the command


def test_the_command_says_what_it_did_and_what_is_missing(
    made: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", made, "--format", "vtt", "--words", "--output", str(tmp_path / "to")]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "exported   5 recordings with 20 words in 8 segments",
        "rejected   1 recording in full, and not exported",
        "partial    1 recording exported without what was rejected",
        "not done   1 recording exported without what is not published yet",
        f"  {BROKEN}: no codec here knows it",
        f"  {PARTIAL} from 30 s to 60 s: too loud",
        f"  {LATE}: not done yet",
        f"written to {tmp_path / 'to'}: 5 files",
    ]
    assert cli.main([*arguments, "--strict", "--json"]) == 3
    found = capsys.readouterr()
    assert json.loads(found.out)["num_recordings_partial"] == 1
    assert "--strict" in found.err
    assert cli.main([*arguments, "--recording", LONG, "--recording", UNICODE, "--strict"]) == 0
    assert cli.main([*arguments, "--max-line-chars", "3"]) == 2
    assert "max_line_chars is 3" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--format", "ass"])
    assert "textgrid" in capsys.readouterr().err


def test_the_help_is_complete_and_narrow_enough(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        cli.main(["export", "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 110
    (choices,) = re.findall(r"--format\s+\{([^}]+)\}\s+what", text)
    assert set(choices.split(",")) == set(FORMATS)
    (described,) = re.findall(r"formats:\n(.*?)\n\n", text, re.DOTALL)
    named = {name for line in described.splitlines() for name in re.split(r"\s{2,}", line.strip())[0].split()}
    assert named == set(FORMATS)


# ---- the demo


def test_the_real_command_exports_the_demo(demo_run: tuple[Path, list[Progress]], tmp_path: Path) -> None:
    script = (
        "import sys; from w2v_ray.cli import main; source, to = sys.argv[1:]; "
        "print([main(['export', source, '--format', name, '--output', f'{to}/{name}']) "
        "for name in ('srt', 'ctm', 'hf')], {'torch', 'ray'} & sys.modules.keys())"
    )
    arguments = [sys.executable, "-c", script, str(demo_run[0]), str(tmp_path)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[0, 0, 0] set()", result.stdout + result.stderr
    table = pq.read_table(demo_run[0] / "transcripts").to_pylist()
    words = {
        (row["recording_id"], round(word["start_s"] * 1000), word["word"])
        for row in table
        for word in row["words"]
    }
    lines = [line.split(" ") for line in (tmp_path / "ctm" / "words.ctm").read_text().splitlines()]
    assert {(line[0], round(float(line[2]) * 1000), line[4]) for line in lines} == words
    assert len(lines) == sum(len(row["words"]) for row in table) > 100
    assert len(list((tmp_path / "srt").rglob("*.srt"))) == 24


PAGE = Path(__file__).resolve().parents[1] / "docs" / "export.md"


def without_digits(text: str) -> str:
    return re.sub(r"\d+", "0", text)


def test_the_page_tells_the_truth(
    demo_run: tuple[Path, list[Progress]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands run on the demo's output, and its examples are lines of what they write."""
    page = PAGE.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").symlink_to(demo_run[0])
    commands = re.findall(r"(?m)^w2v-ray (export out .*)$", page)
    assert len(commands) >= 2
    for command in commands:
        assert cli.main(command.split()) == 0, command
    root = export("out", format="txt", output="names").root
    rows = re.findall(r"(?m)^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| `(.+)` \|$", page)
    assert {row[0] for row in rows} == set(FORMATS)
    for format, _, _, example in rows:
        if format == "hf":
            continue
        export("out", format=format, output=str(tmp_path / format))
        lines = {
            without_digits(line).strip()
            for text in files_of(tmp_path / format).values()
            for line in text.splitlines()
        }
        start = without_digits(example.removesuffix(" ...").replace("ARCHIVE/", root))
        assert any(
            line == start or (example.endswith(" ...") and line.startswith(start)) for line in lines
        ), example
