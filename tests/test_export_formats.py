"""Each format says what the tables say, to the millisecond, as an independent reader of it finds."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.export_outputs import (
    EXPORTED,
    LONG,
    MEMBER,
    PARTIAL,
    SHARDS,
    SILENT,
    UNICODE,
    Row,
    files_of,
    item,
    made_output,
    rows_of,
    spoken,
    times_of,
)
from w2v_ray import MissingExtraError, export
from w2v_ray.exports import FORMATS, _files, recording_id_of
from w2v_ray.exports.captions import CaptionSettings
from w2v_ray.exports.recordings import Recording, Segment, Word


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made_output(tmp_path_factory.mktemp("made") / "out", SHARDS, unpublished=[3])


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
