"""Files named after recordings: below their folder, back to the id, and never two of one name."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray import stores
from w2v_ray.exports.names import FileNames, common_root, recording_id_of

HOSTILE = [
    "../../etc/passwd",
    "..",
    ".",
    "",
    "/",
    "/etc/passwd",
    "a/../../b",
    "a//b",
    "a/",
    "nul\0byte",
    "new\nline",
    "%2e%2e/%2F",
    "%",
    "%~",
    "back\\slash",
    "C:\\con",
    "s3://bucket/a.wav",
    "s3://bucket/a.wav?versionId=1",
    "file:///data/%FF%FE.wav",
    "a.srt/b",
    "a",
    "A.SRT/b",
    "b.ch1",
    "b",
    "Straße",
    "STRASSE",
    "é",
    "e\u0301",
    "ﬁ",
    "_tmp/x",
    "-rf",
    "x" * 5000,
    "x" * 4999 + "y",
    "d/" * 600 + "z",
    "ü" * 150,
    "/data/tar.tar#a/../b.flac",
]


def as_a_careless_file_system_sees(name: str) -> str:
    return unicodedata.normalize("NFD", unicodedata.normalize("NFC", name).casefold())


def check(ids: list[str], extension: str = ".srt") -> None:
    names = FileNames(ids, extension)
    made = {recording_id: names.name(recording_id) for recording_id in ids}
    made |= {f"{recording_id} ch": names.name(recording_id, 0) for recording_id in ids}
    seen = {as_a_careless_file_system_sees(name) for name in made.values()}
    assert len(seen) == len(made)
    folders = {as_a_careless_file_system_sees(str(p)) for name in made.values() for p in Path(name).parents}
    assert not folders & seen  # no file where a folder must be
    for name in made.values():
        assert not name.startswith("/")
        parts = name.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert max(len(part.encode()) for part in parts) <= 220
        assert len(name.encode()) <= 950
        assert not any(ord(char) < 32 for char in name)
    for recording_id in ids:
        for name in (made[recording_id], made[f"{recording_id} ch"]):
            found = recording_id_of(name, names.root, extension)
            assert found == recording_id or (found is None and len(recording_id) > 60)


def test_hostile_ids_stay_inside_apart_and_readable() -> None:
    check(HOSTILE)
    for recording_id in HOSTILE:
        check([recording_id])


def test_hostile_ids_make_files(tmp_path: Path) -> None:
    names = FileNames(HOSTILE, ".srt")
    for recording_id in HOSTILE:
        path = stores.join(str(tmp_path / "out"), names.name(recording_id))
        stores.publish(path, recording_id.encode(), root=str(tmp_path / "out"))
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(path.read_bytes() for path in files) == sorted(map(str.encode, HOSTILE))
    assert os.listdir(tmp_path) == ["out"]


TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("/.%aA\\:_"), max_size=12)


@given(st.lists(TEXT, unique=True, max_size=8), st.sampled_from([".srt", ".TextGrid"]))
@settings(deadline=None)
def test_any_ids_stay_inside_apart_and_readable(ids: list[str], extension: str) -> None:
    check(ids, extension)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["/data/a/x.wav", "/data/b/x.wav"], ["a/x.wav.srt", "b/x.wav.srt"]),
        (["/data/a/x.wav"], ["x.wav.srt"]),
        (["/data/ab/x.wav", "/data/ac/y.wav"], ["ab/x.wav.srt", "ac/y.wav.srt"]),
        (["s3://bucket/in/x.wav", "s3://bucket/in/deep/y.wav"], ["x.wav.srt", "deep/y.wav.srt"]),
        (["s3://one/x.wav", "/data/x.wav"], ["s3%3A/%/one/x.wav.srt", "%/data/x.wav.srt"]),
        (["utt1", "utt2"], ["utt1.srt", "utt2.srt"]),
        (["/d/x.wav#t=0,5.5", "/d/more.tar#a b.flac"], ["x.wav#t=0,5.5.srt", "more.tar#a b.flac.srt"]),
        (["/d/A.wav", "/d/a.wav", "/d/Other.wav"], ["%41.wav.srt", "a.wav.srt", "Other.wav.srt"]),
        (["/d/a.wav", "file:///d/%FF.wav"], ["a.wav.srt", "%FF.wav.srt"]),
        (["/d/Größe.wav", "/d/日本.wav"], ["Größe.wav.srt", "日本.wav.srt"]),
    ],
)
def test_names_keep_the_tree(ids: list[str], expected: list[str]) -> None:
    names = FileNames(ids, ".srt")
    assert [names.name(recording_id) for recording_id in ids] == expected


def test_a_name_does_not_depend_on_what_else_is_exported_now() -> None:
    ids = ["/data/a/x.wav", "/data/b/y.wav"]
    assert FileNames(ids, ".srt").name(ids[0]) == FileNames(ids[::-1], ".srt").name(ids[0])


def test_the_common_root_ends_between_folders() -> None:
    assert common_root(["/a/bc/x", "/a/bd/x"]) == "/a/"
    assert common_root(["/a/b", "/a/b/c"]) == "/a/"
    assert common_root(["x", "/x"]) == ""
    assert common_root([]) == ""
