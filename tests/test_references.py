"""``der`` and ``accuracy`` over outputs, RTTM and UEM files, and the exports of frames and labels."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyannote.core import Annotation, Timeline
from pyannote.database.util import load_rttm, load_uem
from pyannote.metrics.diarization import DiarizationErrorRate
from sklearn import metrics as oracle

from tests.export_outputs import Row, failed, item, made_output, metadata
from w2v_ray import ConfigError, InputError, OutputError, export
from w2v_ray.cli import main
from w2v_ray.references import compare_labels, compare_turns, read_labels
from w2v_ray.rttm import Turn, read_rttm, read_uem, rttm_line

FRAME_S = 0.02


def turn(label: str, start_s: float, end_s: float, score: float = 0.75) -> Row:
    return {"label": label, "start_s": start_s, "end_s": end_s, "score": score}


def frames(start_s: float, end_s: float, turns: list[Row] | None, **values: object) -> Row:
    """A row of frames/, whose last frame ends before the segment does."""
    num_frames = int((end_s - start_s) / FRAME_S) - 1
    row = {"start_s": start_s, "end_s": end_s, "duration_s": end_s - start_s, "turns": turns}
    return row | {"num_frames": num_frames, "seconds_per_frame": FRAME_S} | values


def labels(start_s: float, end_s: float, scores: dict[str, float] | None, **values: object) -> Row:
    """A row of labels/."""
    ranked = sorted((scores or {}).items(), key=lambda entry: -entry[1])
    row = {"start_s": start_s, "end_s": end_s, "duration_s": end_s - start_s}
    if scores is not None:
        row |= {"labels": [{"label": label, "score": score} for label, score in ranked]}
        row |= {"label": ranked[0][0], "score": ranked[0][1]} if ranked else {"score": 0.25}
    return row | values


CALL, LONG, BROKEN = "/archive/call.wav", "/archive/b c/long.wav", "/archive/broken.wav"
FRAMES = [
    [
        item(LONG, [frames(0, 20, [turn("ada", 1, 5), turn("bob", 4, 19.98, 0.5)])]),
        item(
            CALL,
            [
                frames(0, 10, [turn("voice", 0, 4)], channel=0),
                frames(0, 10, [turn("voice", 3, 9)], channel=1),
            ],
            metadata=metadata(kind="call"),
        ),
    ],
    [
        item(LONG, [frames(20, 30, [turn("bob", 20, 25, 0.8), turn("ada", 26, 28)]), frames(30, 31, None)]),
        item(BROKEN, [failed(None, None)]),
    ],
]
LONG_TURNS = [("ada", 1.0, 5.0), ("bob", 4.0, 25.0), ("ada", 26.0, 28.0)]


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> str:
    types = {"activity": pa.list_(pa.list_(pa.float16(), 2))}
    return made_output(tmp_path_factory.mktemp("frames") / "out", FRAMES, table="frames", types=types)


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main([str(arg) for arg in args])
    said = capsys.readouterr()
    return code, said.out, said.err


# ---- exports


def test_turns_are_exported_without_the_seams_of_segments(turned: str, tmp_path: Path) -> None:
    summary = export(turned, format="rttm", output=str(tmp_path))
    assert (summary.table, summary.num_recordings, summary.num_words) == ("frames", 2, 6)
    assert summary.num_recordings_rejected == 1
    assert (tmp_path / "turns.rttm").read_text() == (
        "SPEAKER /archive/b%20c/long.wav 1 1.000 4.000 <NA> <NA> ada <NA> <NA>\n"
        "SPEAKER /archive/b%20c/long.wav 1 4.000 21.000 <NA> <NA> bob <NA> <NA>\n"
        "SPEAKER /archive/b%20c/long.wav 1 26.000 2.000 <NA> <NA> ada <NA> <NA>\n"
        "SPEAKER /archive/call.wav 1 0.000 4.000 <NA> <NA> voice <NA> <NA>\n"
        "SPEAKER /archive/call.wav 2 3.000 6.000 <NA> <NA> voice <NA> <NA>\n"
    )
    assert read_rttm(str(tmp_path / "turns.rttm"))[LONG] == LONG_TURNS
    loaded = load_rttm(str(tmp_path / "turns.rttm"))["/archive/b%20c/long.wav"]
    assert [
        (label, span.start, span.end) for span, _, label in loaded.itertracks(yield_label=True)
    ] == LONG_TURNS

    export(turned, format="tsv", output=str(tmp_path / "tsv"))
    assert (tmp_path / "tsv" / "b c" / "long.wav.tsv").read_text().splitlines() == [
        "start_ms\tend_ms\tlabel\tscore",
        "1000\t5000\tada\t0.7500",
        f"4000\t25000\tbob\t{(16 * 0.5 + 5 * 0.8) / 21:.4f}",
        "26000\t28000\tada\t0.7500",
    ]
    assert (tmp_path / "tsv" / "call.wav.ch1.tsv").exists()

    export(turned, format="jsonl", output=str(tmp_path))
    found = [json.loads(line) for line in (tmp_path / "turns.jsonl").read_text().splitlines()]
    assert [(t["label"], t["start_s"], t["end_s"]) for t in found[0]["turns"]] == LONG_TURNS
    assert [t["channel"] for t in found[1]["turns"]] == [0, 1]
    assert found[1]["metadata"] == {"kind": "call"}


def test_the_command_exports_what_is_no_text(
    turned: str, labelled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for output, format, line in [
        (turned, "rttm", "exported   2 recordings with 6 turns in 5 segments"),
        (labelled, "jsonl", "exported   4 recordings with 4 labels in 6 segments"),
    ]:
        code, out, _ = run(capsys, "export", output, "--format", format, "--output", tmp_path)
        assert code == 0
        assert out.splitlines()[0] == line
    code, _, err = run(capsys, "export", turned, "--table", "labels", "--format", "tsv", "--output", tmp_path)
    assert code == 2
    assert "has no table 'labels'" in err


def test_a_pause_before_a_segment_ends_stays(tmp_path: Path) -> None:
    # The last frame ends a frame before the segment: what ends with it goes on, what ends earlier does not.
    later = [turn("a", 10, 12), turn("b", 10, 12)]
    rows = [frames(0, 10, [turn("a", 1, 9.98), turn("b", 1, 9.94)]), frames(10, 20, later)]
    made_output(tmp_path / "out", [[item("/x.wav", rows)]], table="frames")
    export(str(tmp_path / "out"), format="rttm", output=str(tmp_path))
    assert sorted(read_rttm(str(tmp_path / "turns.rttm"))["/x.wav"]) == [
        ("a", 1.0, 12.0),
        ("b", 1.0, 9.94),
        ("b", 10.0, 12.0),
    ]


LABELS = [
    [
        item("/a.wav", [labels(0, 1, {"yes": 0.6, "no": 0.4}), labels(1, 4, {"no": 0.7, "yes": 0.3})]),
        item("/b\t.wav", [labels(0, 2, {"yes": 0.9, "no": 0.1}), labels(2, 3, None)]),
    ],
    [item("/c.wav", [labels(0, 2, {})]), item("/d.wav", [labels(0, 2, {"no": 0.8, "maybe": 0.2})])],
]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made_output(tmp_path_factory.mktemp("labels") / "out", LABELS, table="labels")


def test_labels_are_exported_in_lines(labelled: str, tmp_path: Path) -> None:
    summary = export(labelled, format="tsv", output=str(tmp_path))
    assert (summary.num_segments, summary.num_words) == (6, 4)
    assert (tmp_path / "labels.tsv").read_text().splitlines() == [
        "recording_id\tchannel\tstart_ms\tend_ms\tlabel\tscore",
        "/a.wav\t\t0\t1000\tyes\t0.6000",
        "/a.wav\t\t1000\t4000\tno\t0.7000",
        "/b .wav\t\t0\t2000\tyes\t0.9000",
        "/b .wav\t\t2000\t3000\t\t",
        "/c.wav\t\t0\t2000\t\t0.2500",
        "/d.wav\t\t0\t2000\tno\t0.8000",
    ]
    summary = export(labelled, format="jsonl", output=str(tmp_path), min_confidence=0.65)
    assert (summary.num_segments, summary.num_segments_unsure) == (3, 3)
    lines = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert [(s["label"], s["start_s"]) for s in lines[0]["segments"]] == [("no", 1)]
    assert lines[0]["segments"][0]["labels"] == [
        {"label": "no", "score": 0.7},
        {"label": "yes", "score": 0.3},
    ]
    assert lines[2]["segments"] == []


def test_what_a_table_cannot_become_is_named(turned: str, labelled: str, tmp_path: Path) -> None:
    to = str(tmp_path / "to")
    with pytest.raises(ConfigError, match="format is 'srt', and frames have rttm, tsv, jsonl"):
        export(turned, format="srt", output=to)
    with pytest.raises(ConfigError, match="format is 'rttm', and labels have tsv, jsonl"):
        export(labelled, format="rttm", output=to)
    with pytest.raises(ConfigError, match="frames have none; run their job with a higher onset"):
        export(turned, format="rttm", output=to, min_confidence=0.5)
    with pytest.raises(OutputError, match="has no table 'labels'"):
        export(turned, format="tsv", output=to, table="labels")
    made_output(tmp_path / "vectors", [[item("/a.wav", [])]], table="embeddings", unpublished=[0])
    with pytest.raises(ConfigError, match=r"w2v_ray\.read_embeddings"):
        export(str(tmp_path / "vectors"), format="tsv", output=to)


# ---- RTTM and UEM files


def test_lines_are_read_as_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "x.rttm"
    turns = [Turn("ada l", 0.0004, 1.2345), Turn("bob", 1.0, 2.0)]
    lines = [rttm_line("a b%.wav", turn, channel=2) for turn in turns]
    other = ";; comment\nSPKR-INFO a 1 <NA> <NA> <NA> unknown ada <NA> <NA>\n\n"
    file.write_text(other + "".join(lines))
    assert read_rttm(str(file)) == {"a b%.wav": [("ada_l", 0.0, 1.234), ("bob", 1.0, 2.0)]}
    (tmp_path / "x.uem").write_text(";; comment\na%20b 1 0.5 20\na%20b 1 30 40\nc NA 0 1\n")
    assert read_uem(str(tmp_path / "x.uem")) == {"a b": [(0.5, 20.0), (30.0, 40.0)], "c": [(0.0, 1.0)]}


@pytest.mark.parametrize(
    ("read", "text", "complaint"),
    [
        (read_rttm, "", "has no SPEAKER lines"),
        (read_rttm, "\nSPEAKER a 1 0 1\n", r"x' line 2 has 5 fields"),
        (read_rttm, "SPEAKER a 1 zero 1 <NA> <NA> x", "line 1 has the start 'zero'"),
        (read_rttm, "SPEAKER a 1 0 -1 <NA> <NA> x", "line 1 has the duration '-1'"),
        (read_rttm, "SPEAKER a 1 nan 1 <NA> <NA> x", "line 1 has the start 'nan'"),
        (read_uem, "", "has no lines"),
        (read_uem, "a 1 0", "line 1 has 3 fields"),
        (read_uem, "a 1 5 2", "line 1 ends at 2.0, before it starts at 5.0"),
    ],
)
def test_lines_that_say_nothing_are_named(tmp_path: Path, read: object, text: str, complaint: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(InputError, match=complaint):
        read(str(tmp_path / "x"))  # type: ignore[operator]


# ---- diarization error rate


def write_rttm(path: Path, turns: dict[str, list[tuple[str, float, float]]]) -> str:
    path.write_text("".join(rttm_line(name, Turn(*turn)) for name, found in turns.items() for turn in found))
    return str(path)


def theirs(
    reference: str, hypothesis: str, *, uem: dict[str, Timeline] | None = None, **settings: float
) -> DiarizationErrorRate:
    metric = DiarizationErrorRate(**settings)
    right, given = load_rttm(reference), load_rttm(hypothesis)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name in uem or right:
            if name in right or name in given:
                empty = Annotation(uri=name)
                metric(right.get(name, empty), given.get(name, empty), uem=uem[name] if uem else None)
    return metric


@pytest.mark.parametrize("skip_overlap", [False, True])
@pytest.mark.parametrize("collar", [0.0, 0.5])
def test_files_are_compared_as_pyannote_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], collar: float, skip_overlap: bool
) -> None:
    generator = np.random.default_rng(0)

    def made(names: str, prefix: str) -> dict[str, list[tuple[str, float, float]]]:
        found: dict[str, list[tuple[str, float, float]]] = {}
        for name in names:
            starts = np.sort(generator.integers(0, 50_000, 12)) / 1000
            found[name] = [
                (f"{prefix}{generator.integers(3)}", s, s + generator.integers(1, 8000) / 1000)
                for s in starts
            ]
        return found

    reference = write_rttm(tmp_path / "ref.rttm", made("abcd", "r"))
    hypothesis = write_rttm(tmp_path / "hyp.rttm", made("abce", "h"))
    (tmp_path / "x.uem").write_text("a 1 3 20\na 1 25 60\nd 1 0 60\ne 1 5 6\nf 1 0 9\n")
    arguments = [
        "der",
        hypothesis,
        reference,
        "--collar",
        collar,
        *["--skip-overlap"] * skip_overlap,
        "--json",
    ]
    for uem in (None, load_uem(str(tmp_path / "x.uem"))):
        code, out, _ = run(capsys, *arguments, *(["--uem", tmp_path / "x.uem"] if uem else []))
        assert code == 0
        found = json.loads(out)
        expected = theirs(reference, hypothesis, uem=uem, collar=collar, skip_overlap=skip_overlap)
        assert found["der"] == pytest.approx(abs(expected), abs=1e-6)
        for ours, name in [
            ("total_s", "total"),
            ("correct_s", "correct"),
            ("missed_s", "missed detection"),
            ("false_alarm_s", "false alarm"),
            ("confusion_s", "confusion"),
        ]:
            assert found[ours] == pytest.approx(expected[name], abs=1e-5)
        report = expected.report()[("diarization error rate", "%")].drop("TOTAL") / 100
        rates = {row["recording"]: row["der"] for row in found["recordings"]}
        assert rates == pytest.approx(report.to_dict(), abs=1e-6)
        assert found["num_unknown"] == (2 if uem else 1)


def test_an_output_is_compared_by_the_ends_of_its_ids(
    turned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = write_rttm(
        tmp_path / "ref.rttm",
        {"long": [("A", 1.0, 5.0), ("B", 4.0, 26.0)], "call.wav": [("A", 0.0, 4.0), ("B", 3.0, 8.0)]},
    )
    found = compare_turns(turned, reference)
    # Of bob one second is missed, and the last turn of ada is made up; of the call, each channel is somebody.
    assert found.recordings["long"].missed_s == pytest.approx(1)
    assert found.recordings["long"].false_alarm_s == pytest.approx(2)
    assert found.recordings["call.wav"].correct_s == pytest.approx(9)
    assert found.total.rate == pytest.approx((1 + 2 + 1) / (26 + 9))
    assert (found.num_missing, found.num_unknown) == (0, 1)
    code, out, _ = run(capsys, "der", turned, reference)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["DER", "missed", "false", "confused", "speech"]
    assert lines[1].split() == ["11.43%", "2.86%", "8.57%", "0.00%", "35.0", "s", "all"]
    assert [line.split()[-1] for line in lines[2:4]] == ["long", "call.wav"]
    assert "left out: 1 recording that the reference does not name" in out


def test_recordings_without_rows_are_an_error_unless_skipped(
    turned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = {"call.wav": [("A", 0.0, 4.0)], "broken": [("A", 0.0, 1.0)]}
    reference = write_rttm(tmp_path / "ref.rttm", turns)
    code, _, err = run(capsys, "der", turned, reference)
    assert code == 2
    assert "1 of 2 recordings" in err
    assert "such as 'broken'" in err
    assert compare_turns(turned, reference, skip_missing=True).num_missing == 1
    assert list(compare_turns(turned, reference, skip_missing=True).recordings) == ["call.wav"]
    only = write_rttm(tmp_path / "only.rttm", {"gone": [("A", 0.0, 4.0)]})
    with pytest.raises(InputError, match="have no recording in common"):
        compare_turns(turned, only, skip_missing=True)
    twice = write_rttm(tmp_path / "twice.rttm", turns | {"call": [("A", 0.0, 4.0)]})
    with pytest.raises(InputError, match=r"calls '/archive/call.wav' both 'call.wav' and 'call'"):
        compare_turns(turned, twice)
    with pytest.raises(ConfigError, match="collar is -1"):
        compare_turns(turned, reference, collar=-1)
    with pytest.raises(OutputError):
        compare_turns(str(tmp_path), reference)


def test_meetings_are_compared_as_pyannote_compares(tmp_path: Path, shared_data: Path) -> None:
    reference, uem = (str(shared_data / "misc" / "ami" / f"debug.train.{kind}") for kind in ("rttm", "uem"))
    generator = np.random.default_rng(0)
    moved = {
        name: [
            (f"s{turn.label}", max(0.0, turn.start_s + move), max(0.1, turn.end_s - move))
            for turn, move in zip(turns, generator.uniform(-0.4, 0.1, len(turns)), strict=True)
        ]
        for name, turns in read_rttm(reference).items()
    }
    moved["trn01"] = [
        ("nobody" if number % 3 else label, *at) for number, (label, *at) in enumerate(moved["trn01"])
    ]
    hypothesis = write_rttm(tmp_path / "hyp.rttm", moved)
    for collar in (0.0, 0.25, 0.5):
        found = compare_turns(hypothesis, reference, uem=uem, collar=collar)
        expected = theirs(reference, hypothesis, uem=load_uem(uem), collar=collar)
        assert found.total.rate == pytest.approx(abs(expected), abs=1e-6)
        assert 0 < found.total.rate < 1
    assert compare_turns(reference, reference).total.rate == 0


# ---- accuracy


@pytest.mark.parametrize("case", range(50))
def test_labels_of_an_output_are_counted_as_scikit_learn_counts(tmp_path: Path, case: int) -> None:
    generator = np.random.default_rng(case)
    names = ["a", "b", "c", "d"][: generator.integers(2, 5)]
    scores = generator.dirichlet(np.ones(len(names)), size=int(generator.integers(2, 12))).astype(np.float32)
    said = generator.choice(names, len(scores)).tolist()
    entries = [
        item(f"/in/{n}.wav", [labels(0, 3, dict(zip(names, row.tolist(), strict=True)))])
        for n, row in enumerate(scores)
    ]
    output = made_output(tmp_path / "out", [entries], table="labels")
    lines = [json.dumps({"audio_filepath": f"in/{n}.wav", "label": label}) for n, label in enumerate(said)]
    (tmp_path / "ref.jsonl").write_text("\n".join(lines))
    found = compare_labels(output, str(tmp_path / "ref.jsonl"))
    given = [names[place] for place in scores.argmax(axis=1)]
    assert found.report.accuracy == pytest.approx(oracle.accuracy_score(said, given))
    labels_ = sorted({*said, *given})
    expected = oracle.precision_recall_fscore_support(said, given, labels=labels_, zero_division=0)
    assert np.array([found.report.labels[name] for name in labels_]) == pytest.approx(np.array(expected).T)
    if len(names) > 2:
        for k in range(1, len(names)):
            theirs = oracle.top_k_accuracy_score(said, scores, k=k, labels=names)
            assert found.top_k[k] == pytest.approx(theirs)
    assert found.top_k[len(names)] == 1


def test_the_label_of_a_recording_is_of_all_its_segments(
    labelled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.csv").write_text('file,language\na,no\n"b\t",yes\nc,no\nd,yes\n')
    arguments = ["accuracy", labelled, tmp_path / "r.csv", "--label-key", "language"]
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["num"], found["accuracy"]) == (4, 0.5)  # a: no in three seconds of four
    assert found["top_k"] == {"1": 0.5, "2": 0.5}
    assert found["confusions"] == [
        {"label": "no", "given": None, "count": 1},
        {"label": "yes", "given": "no", "count": 1},
    ]
    code, out, _ = run(capsys, *arguments)
    assert out.splitlines()[:2] == ["accuracy  50.00%, 2 of 4 recordings", "top 2     50.00%"]
    assert "     1  no as no label" in out
    code, out, _ = run(capsys, *arguments, "--per", "segment", "--json")
    assert json.loads(out)["num"] == 6
    assert json.loads(out)["accuracy"] == pytest.approx(2 / 6)


def test_references_that_cannot_be_used_are_named(
    labelled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "r.tsv"
    file.write_text("path\tlabel\na.wav\tno\ngone\tyes\n")
    code, _, err = run(capsys, "accuracy", labelled, file)
    assert code == 2
    assert "1 of 2 recordings" in err
    assert "such as 'gone'" in err
    code, out, _ = run(capsys, "accuracy", labelled, file, "--skip-missing")
    assert code == 0
    assert "missing   1 more recording, left out" in out
    file.write_text("path\tlabel\ngone\tyes\n")
    assert run(capsys, "accuracy", labelled, file, "--skip-missing")[0] == 2
    for name, text, complaint in [
        ("r.csv", "", "holds no labels"),
        ("r.csv", "path,class\na,b\n", "line 2 has path, class, expected 'label' and one of recording_id"),
        ("r.csv", "path,label\na,b\na,c\n", "line 3 gives 'a' the label 'c', and an earlier line 'b'"),
        ("r.jsonl", '{"path": "a"\n', "line 1 is not JSON"),
        ("r.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("r.txt", "a b\n", r"name a .csv, .tsv or .jsonl file"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=complaint):
            read_labels(str(tmp_path / name))
    for settings in ({"per": "frame"}, {"top": 0}):
        with pytest.raises(ConfigError, match=r"per is 'frame'|top is 0"):
            compare_labels(labelled, str(file), **settings)  # type: ignore[arg-type]
