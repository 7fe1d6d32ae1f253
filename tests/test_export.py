"""What is exported and what is not, to where, and what the command says of it."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.export_outputs import (
    BROKEN,
    EXPORTED,
    LATE,
    LONG,
    MEMBER,
    PARTIAL,
    SHARDS,
    UNICODE,
    failed,
    files_of,
    item,
    made_output,
    segment,
    times_of,
)
from w2v_ray import ConfigError, InputError, OutputError, cli, export, stores
from w2v_ray.exports import FORMATS, ExportSummary, files
from w2v_ray.exports.recordings import read_recordings
from w2v_ray.exports.rows import read_planned
from w2v_ray.progress import Progress


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made_output(tmp_path_factory.mktemp("made") / "out", SHARDS, unpublished=[3])


# ---- what is exported, and what is not


def test_the_summary_says_what_is_missing(made: str, tmp_path: Path) -> None:
    summary = export(made, format="ctm", output=str(tmp_path))
    assert summary == ExportSummary(
        output=str(tmp_path),
        table="transcripts",
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


def test_a_large_file_that_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_IN_MEMORY_BYTES", 1000)
    source = tmp_path / "large"
    source.write_bytes(bytes(range(256)) * 400)
    with files.Folder(str(tmp_path / "out")) as folder:
        folder.add_file("copy", source)
    assert (tmp_path / "out" / "copy").read_bytes() == source.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with files.Folder(str(tmp_path / "out")) as folder:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            with pytest.raises(OutputError, match="other' cannot be written \\(File too large\\)"):
                folder.add_file("other", source)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["copy"]


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
