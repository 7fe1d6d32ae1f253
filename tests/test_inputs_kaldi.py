"""Kaldi data folders."""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from w2v_ray import stores
from w2v_ray.errors import InputError
from w2v_ray.inputs import Entry, list_inputs


def listed(*inputs: str | Path) -> list[Entry]:
    return list(list_inputs([str(text) for text in inputs], skipped=Counter()))


def said(entry: Entry) -> Any:
    return json.loads(entry.metadata or "null")


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A data folder of two recordings, at a place that needs no `..`."""
    root = str(tmp_path / "data") if request.param == "local" else request.getfixturevalue("s3")
    for name, text in {
        "wav.scp": "call-1 wav/one.wav\ncall-2   wav/two words.flac\n",
        "text": "call-1 hello there\nutt-1 hello\nutt-2 there again\n",
        "utt2spk": "call-1 anna\nutt-1 anna\nutt-2 bert\n",
        "wav/one.wav": "1",
        "wav/two words.flac": "22",
    }.items():
        stores.publish(stores.join(root, name), text.encode())
    return root


def test_a_folder_gives_its_recordings(folder: str) -> None:
    one, two = listed(folder)
    assert listed(stores.join(folder, "wav.scp")) == [one, two]
    assert (one.recording_id, one.uri, one.byte_size) == ("call-1", stores.join(folder, "wav/one.wav"), 1)
    assert (two.recording_id, two.uri, two.byte_size) == (
        "call-2",
        stores.join(folder, "wav/two words.flac"),
        2,
    )
    assert said(one) == {"text": "hello there", "speaker": "anna"}
    assert two.metadata is None


def test_segments_are_ranges(folder: str) -> None:
    segments = "utt-1 call-1 0.5 2.25\nutt-2 call-2 3 -1 1\n"
    stores.publish(stores.join(folder, "segments"), segments.encode())
    one, two = listed(folder)
    assert (one.recording_id, one.uri) == ("utt-1", stores.join(folder, "wav/one.wav"))
    assert (one.start_s, one.end_s, one.duration_s, one.channel) == (0.5, 2.25, 1.75, None)
    assert (two.start_s, two.end_s, two.duration_s, two.channel) == (3, None, None, 1)
    assert [said(entry) for entry in (one, two)] == [
        {"text": "hello", "speaker": "anna"},
        {"text": "there again", "speaker": "bert"},
    ]


def test_recordings_in_an_archive_are_parts_of_it(tmp_path: Path) -> None:
    sounds = [b"RIFF" + struct.pack("<I", 4 + size) + b"WAVE" + bytes(size) for size in (10, 20)]
    (tmp_path / "raw.ark").write_bytes(b"a " + sounds[0] + b"b " + sounds[1])
    second = 2 + len(sounds[0]) + 2
    (tmp_path / "wav.scp").write_text(f"a raw.ark:2\nb raw.ark:{second}\n")
    entries = listed(tmp_path)
    assert [stores.read_range(entry.uri, entry.byte_offset, entry.byte_size) for entry in entries] == sounds
    for offset, complaint in [(3, "points to no WAV at byte 3"), (9_999, "points behind the end")]:
        (tmp_path / "wav.scp").write_text(f"a raw.ark:{offset}\n")
        with pytest.raises(InputError, match=complaint):
            listed(tmp_path)


@pytest.mark.parametrize(
    ("name", "line", "complaint"),
    [
        ("wav.scp", "b touch executed |", "line 2 of .*wav.scp' is a command, which is never run"),
        ("wav.scp", "b |touch executed", "is a command"),
        ("wav.scp", "b", "line 2 of .*wav.scp' has an id and no file"),
        ("wav.scp", "b http://169.254.169.254/a", "link-local or metadata address"),
        ("segments", "u a 1", "line 2 of .*segments' is not 'utterance recording start end'"),
        ("segments", "u a one 2", "is not 'utterance recording start end'"),
        ("segments", "u nobody 1 2", "names the recording 'nobody', which wav.scp lacks"),
        ("segments", "u a 2 1", "is the range from 2 to 1"),
        ("segments", "u a nan 1", "is the range from nan to 1"),
        ("segments", "u a 0 1 -3", "is the range"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, name: str, line: str, complaint: str) -> None:
    (tmp_path / "a.wav").write_bytes(b"1")
    (tmp_path / "wav.scp").write_text("a a.wav\n")
    if name == "segments":
        (tmp_path / "segments").write_text("u0 a 0 1\n")
    with (tmp_path / name).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=complaint):
        listed(tmp_path)
    assert not (tmp_path / "executed").exists()
    assert not Path("executed").exists()
