from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import time
from collections import Counter
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from w2v_ray import stores
from w2v_ray.errors import InputError
from w2v_ray.inputs import Entry, list_inputs
from w2v_ray.inputs.entries import encodable, escape
from w2v_ray.schema import DAMAGE_KEY


def listed(*inputs: str | Path, skipped: Counter[str] | None = None) -> list[Entry]:
    return list(
        list_inputs([str(text) for text in inputs], skipped=Counter() if skipped is None else skipped)
    )


def names(entries: list[Entry], root: str | Path) -> list[str]:
    return [entry.recording_id.removeprefix(f"{root}/") for entry in entries]


def write_tar(path: Path, members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format, encoding="utf-8", errors="surrogateescape") as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def damage(entry: Entry) -> str:
    assert entry.metadata is not None
    return str(json.loads(entry.metadata)[DAMAGE_KEY])


# ---- folders, globs, files


def test_a_folder_gives_what_looks_like_audio_and_counts_the_rest(tmp_path: Path) -> None:
    for name in [
        "b.WAV",
        "a/z.mp3",
        "a.flac",
        "talk.sph",
        "film.mp4",
        "x.raw",
        "notes.txt",
        "a/y.TXT",
        "README",
    ]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    (tmp_path / ".git").mkdir()
    (tmp_path / "_tmp.wav").write_bytes(b"")
    skipped: Counter[str] = Counter()
    entries = listed(tmp_path, skipped=skipped)
    assert names(entries, tmp_path) == ["a.flac", "a/z.mp3", "b.WAV", "film.mp4", "talk.sph", "x.raw"]
    assert skipped == {
        ".txt files": 2,
        "files without an extension": 1,
        "names that begin with . or _": 1,
        "folders whose names begin with . or _, and all below": 1,
    }
    file = stores.info(str(tmp_path / "a.flac"))
    assert file is not None
    assert entries[0] == Entry(file.uri, file.uri, byte_size=2, version=file.version)


def test_the_order_is_that_of_the_inputs_and_then_of_the_paths(tmp_path: Path) -> None:
    for name in ["2.wav", "1.wav", "sub/3.wav"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert names(listed(tmp_path / "sub", tmp_path), tmp_path) == ["sub/3.wav", "1.wav", "2.wav", "sub/3.wav"]
    assert names(listed(tmp_path / "*.wav"), tmp_path) == ["1.wav", "2.wav"]
    assert names(listed(tmp_path / "**"), tmp_path) == ["1.wav", "2.wav", "sub/3.wav"]
    assert names(listed(tmp_path / "*"), tmp_path) == ["1.wav", "2.wav", "sub/3.wav"]


def test_a_file_that_is_named_is_taken_whatever_its_name(tmp_path: Path) -> None:
    for name in ["take1", "take2.weird", "take[3].wav", "_take4.wav", "take5.weird"]:
        (tmp_path / name).write_bytes(b"")
    for name in ["take1", "take2.weird", "take[3].wav", "_take4.wav"]:
        assert names(listed(tmp_path / name), tmp_path) == [name]
    assert names(listed(tmp_path / "*.weird"), tmp_path) == ["take2.weird", "take5.weird"]
    skipped: Counter[str] = Counter()
    assert names(listed(tmp_path / "take*", skipped=skipped), tmp_path) == ["take[3].wav"]
    assert skipped == {"files without an extension": 1, ".weird files": 2}


def test_inputs_that_give_nothing_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    (tmp_path / "sheet.zip").write_text("a")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    os.mkfifo(tmp_path / "pipe.wav")
    began = time.monotonic()
    for text, complaint in [
        (tmp_path / "nowhere", "does not exist; check the path"),
        (tmp_path / "*.wave", "matches nothing; check the pattern"),
        (tmp_path / "empty", r"holds no audio \(it is empty\)"),
        (tmp_path / "texts", r"holds no audio \(1 .txt files\)"),
        (tmp_path / "empty.jsonl", "holds no audio"),
        (tmp_path / "sheet.zip", "is a .zip file, which is not read"),
        (tmp_path / "pipe.wav", "is not a regular file"),
        ("zip://a::s3://b/c", "chained URL"),
        ("http://host/a.wav", "read only with --allow-http"),
    ]:
        with pytest.raises(InputError, match=complaint) as caught:
            listed(text)
        assert str(text) in str(caught.value)
    with pytest.raises(InputError, match="no inputs"):
        listed()
    assert time.monotonic() - began < 2


def test_names_that_are_not_utf8_are_listed_and_read(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    (tmp_path / name).write_bytes(b"sound")
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.wav\n")
    (tmp_path / "list.jsonl").write_bytes(b'{"audio_filepath": "caf\xe9.wav", "speaker": "Andr\xe9"}\n')
    (entry,), (same,), (also,) = (
        listed(tmp_path),
        listed(tmp_path / "list.txt"),
        listed(tmp_path / "list.jsonl"),
    )
    assert entry.uri == entry.recording_id == f"file://{tmp_path}/caf%E9.wav"
    assert entry == same == also._replace(metadata=None)
    assert json.loads(also.metadata or "") == {"speaker": "Andr\udce9"}
    assert stores.read_range(entry.uri, None, entry.byte_size) == b"sound"
    for text in entry[:2] + also[:2] + (also.metadata,):
        str(text).encode()


# ---- lists and manifests


def test_a_list_names_files_relative_to_itself(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ["a b.wav", "sub/c.xyz"]:
        (tmp_path / name).write_bytes(b"1")
    write_tar(tmp_path / "t.tar", {"m.wav": b"2"})
    text = f"\ufeffa b.wav\r\n\n  sub/c.xyz  \n{tmp_path}/sub/../a b.wav\nt.tar\nmissing.wav\n"
    (tmp_path / "list.txt").write_text(text, encoding="utf-8")
    entries = listed(tmp_path / "list.txt")
    assert names(entries, tmp_path) == ["a b.wav", "sub/c.xyz", "a b.wav", "t.tar#m.wav", "missing.wav"]
    assert [entry.byte_size for entry in entries] == [1, 1, 1, 1, None]


def test_a_manifest_gives_ranges_ids_durations_and_metadata(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"1")
    objects: list[dict[str, object]] = [
        {"audio_filepath": "a.wav", "duration": 7.5, "text": "höre", "speaker": {"id": 3}},
        {"audio_filepath": "a.wav", "offset": 1.25, "duration": 2},
        {"audio_filepath": "a.wav", "offset": 3.5, "duration": None, "id": "rest"},
        {"audio_filepath": "a.wav", "offset": 0.1, "duration": 0.2, "utt_id": 17, "id": None},
        {"audio_filepath": "a.wav", "duration": 0, "score": float("nan"), "snr": [0.5, 31337]},
    ]
    text = json.dumps(objects, indent=2).replace("31337", "1e999")
    (tmp_path / "m.json").write_text(text)
    lines = "\n".join(map(json.dumps, objects)) + "\n"
    (tmp_path / "m.jsonl").write_text(lines.replace("31337", "1e999"))
    entries = listed(tmp_path / "m.jsonl")
    assert entries == listed(tmp_path / "m.json")
    assert names(entries, tmp_path) == ["a.wav", "a.wav#t=1.25,3.25", "rest", "17", "a.wav"]
    assert [(entry.start_s, entry.end_s, entry.duration_s) for entry in entries] == [
        (None, None, 7.5),
        (1.25, 3.25, 2),
        (3.5, None, None),
        (0.1, 0.3, 0.2),
        (None, None, None),
    ]
    (tmp_path / "mixed.jsonl").write_text('{"path": "a.wav", "offset": 1.25, "end": 3}\n')
    (mixed,) = listed(tmp_path / "mixed.jsonl")
    assert (mixed.start_s, mixed.end_s, mixed.duration_s, mixed.metadata) == (1.25, 3, 1.75, None)
    assert json.loads(entries[0].metadata or "") == {"text": "höre", "speaker": {"id": 3}}
    assert "höre" in (entries[0].metadata or "")
    last = '{"score": null, "snr": [0.5, null]}'
    assert [entry.metadata for entry in entries[1:]] == [None, None, '{"id": null}', last]
    assert {entry.byte_size for entry in entries} == {1}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"audio_filepath": "a.wav"', "line 2 of .* is not JSON"),
        ('["a.wav"]', "line 2 of .* is .'a.wav'.; write one JSON object"),
        ('{"sound": "a.wav"}', r"line 2 of .* has no text under 'audio_filepath' \(its keys: sound\)"),
        ('{"audio": {"path": "a.wav"}}', "line 2 of .* has no text under 'audio'"),
        ('{"path": "a.wav", "channel": -1}', "has -1 as 'channel'; give its number"),
        ('{"path": "a.wav", "start": 2, "end": 1}', "ends at 1 s, not after its start"),
        ('{"audio_filepath": "a.wav", "offset": -1}', "has -1 as 'offset'; give seconds"),
        ('{"audio_filepath": "a.wav", "duration": "3"}', "has '3' as 'duration'; give seconds"),
        ('{"audio_filepath": "a.wav", "duration": true}', "has True as 'duration'; give seconds"),
        ('{"audio_filepath": "a.wav", "id": ["x"]}', r"has \['x'\] as 'id'; give text"),
        ('{"audio_filepath": "http://169.254.169.254/a.wav"}', "line 2 of .* link-local or metadata"),
        ('{"audio_filepath": "filecache::s3://b/a.wav"}', "line 2 of .* chained URL"),
        ('{"audio_filepath": "."}', "names the folder"),
    ],
)
def test_a_manifest_line_that_is_wrong_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "a.wav").write_bytes(b"1")
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "a.wav"}\n' + line + "\n")
    with pytest.raises(InputError, match=complaint):
        listed(tmp_path / "m.jsonl")


def test_a_list_of_nothing_that_exists_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("x/a.wav\nx/b.wav\n")
    with pytest.raises(
        InputError, match=rf"none of the 2 files .* exists \(the first: '{tmp_path}/x/a.wav'\)"
    ):
        listed(tmp_path / "list.txt")


def test_stores_give_the_same_as_folders(s3: str, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "t.tar", {"m.flac": b"3" * 700, "m.json": b'{"text": "hi"}'}).read_bytes()
    manifest = b'{"audio_filepath": "../a.wav", "id": "x"}\n{"audio_filepath": "gone.wav", "duration": 3}\n'
    contents = {"a.wav": b"1", "sub/b.mp3": b"22", "t.tar": tar, "lists/m.jsonl": manifest, "n.txt": b"no"}
    for name, data in contents.items():
        stores.publish(stores.join(s3, name), data)
    skipped: Counter[str] = Counter()
    entries = listed(s3, skipped=skipped)
    assert names(entries, s3) == ["a.wav", "sub/b.mp3", "t.tar#m.flac"]
    assert [entry.byte_size for entry in entries] == [1, 2, 700]
    assert all((entry.version or "").startswith("etag:") for entry in entries)
    assert entries[2].metadata == '{"text": "hi"}'
    assert stores.read_range(entries[2].uri, entries[2].byte_offset, 700) == b"3" * 700
    assert skipped == {".txt files": 1, ".jsonl files": 1}
    one, gone = listed(f"{s3}/lists/m.jsonl")
    assert (one.recording_id, one.uri, one.version) == ("x", f"{s3}/a.wav", entries[0].version)
    assert (gone.uri, gone.byte_size, gone.duration_s) == (f"{s3}/lists/gone.wav", None, 3)
    assert names(listed(f"{s3}/*/*.mp3"), s3) == ["sub/b.mp3"]
    for text, complaint in [
        ("nothing", "does not exist"),
        ("*.flac", "matches nothing"),
        ("n.txt", "none of the 1"),
    ]:
        with pytest.raises(InputError, match=complaint):
            listed(f"{s3}/{text}")
    stores.publish(f"{s3}/local.txt", b"/etc/passwd\n")
    with pytest.raises(InputError, match="names '/etc/passwd', which is a local path"):
        listed(f"{s3}/local.txt")


# ---- tars


MEMBERS = {f"{number:02}.wav": bytes([number]) * (300 * number) for number in range(1, 11)}


def test_a_tar_gives_its_audio_members_with_what_is_said_about_them(tmp_path: Path) -> None:
    long = "folder/" + "x" * 120 + ".opus"
    members = {
        "a.b.json": b'{"text": "from json", "cls": 1}',
        "a.b.flac": b"1" * 1000,
        "a.b.txt": "über\n".encode(),
        "c.mp3": b"2",
        "c.cls": b"7\n",
        "c.json": b"[1, 2]",
        long: b"3" * 513,
        "d.wav": b"",
        "._d.wav": b"4",
        "e.npy": b"5",
        "f.txt": b"of nothing",
        "README": b"6",
    }
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        skipped: Counter[str] = Counter()
        tar = write_tar(tmp_path / "t.tar", members, format)
        entries = listed(tmp_path, skipped=skipped)
        assert names(entries, tar).__len__() == 4
        assert [entry.recording_id for entry in entries] == [
            f"{tar}#{n}" for n in ("a.b.flac", "c.mp3", long, "d.wav")
        ]
        for entry, name in zip(entries, ("a.b.flac", "c.mp3", long, "d.wav"), strict=True):
            assert stores.read_range(entry.uri, entry.byte_offset, entry.byte_size) == members[name]
            assert entry.version == stores.info(str(tar)).version  # type: ignore[union-attr]
        said = [json.loads(entry.metadata or "null") for entry in entries]
        assert said == [{"text": "über", "cls": 1}, {"cls": "7", "json": [1, 2]}, None, None]
        assert skipped == {
            "hidden members of tars": 1,
            ".npy members of tars": 1,
            ".txt members of tars": 1,
            "members of tars without an extension": 1,
        }


def test_the_index_agrees_with_tarfile(shared_data: Path) -> None:
    tars = sorted((shared_data / "commands").glob("*.tar"))
    entries = listed(*tars)
    with tarfile.open(tars[0]) as tar:
        expected = [
            (member.name, member.offset_data, member.size) for member in tar if member.name.endswith(".flac")
        ]
    ours = [
        (e.recording_id.partition("#")[2], e.byte_offset, e.byte_size)
        for e in entries
        if e.uri == str(tars[0])
    ]
    assert ours == expected
    assert len(entries) == 3500


def encoded(container: str, subtype: str, num_frames: int = 1600) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(num_frames), 16_000, format=container, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz"])
def test_the_index_has_the_lengths_that_plain_headers_tell(tmp_path: Path, name: str) -> None:
    flac = encoded("FLAC", "PCM_16", 3200)
    members = {
        "a.wav": encoded("WAV", "PCM_16", 8000),
        "b.FLAC": flac,
        "c.flac": flac[:45],  # its next block would be behind its end
        "d.ogg": encoded("OGG", "VORBIS"),
        "e.wav": encoded("WAV", "IMA_ADPCM"),
        "f.wav": b"",
        "g.flac": flac,
    }
    data = write_tar(tmp_path / "whole", members).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    found = {entry.recording_id.rpartition("#")[2]: entry.duration_s for entry in listed(tmp_path / name)}
    plain = {"a.wav": 0.5, "b.FLAC": 0.2, "g.flac": 0.2} if name == "t.tar" else {}
    assert found == dict.fromkeys(members) | plain


def header_at(number: int) -> int:
    """Where the header of the member with this number begins, from 1."""
    return sum(512 + -(-len(data) // 512) * 512 for data in list(MEMBERS.values())[: number - 1])


@pytest.mark.parametrize(
    ("damaged", "num_members", "complaint"),
    [
        (lambda data: data[: header_at(6) + 700], 5, "is cut off inside its member '06.wav'"),
        (lambda data: data[: header_at(6)], 5, f"ends without its end mark, at byte {header_at(6)}"),
        (lambda data: data[: header_at(6) + 100], 5, "is cut off inside a header"),
        (
            lambda data: data[: header_at(6) + 3] + b"\xff" + data[header_at(6) + 4 :],
            5,
            f"has a broken header at byte {header_at(6)}",
        ),
        (
            lambda data: data[: header_at(6)] + bytes(1024) + data[header_at(6) :],
            5,
            f"goes on at byte {header_at(6) + 1024}, after its end mark",
        ),
        (lambda data: data + data, 10, "goes on at byte 30720, after its end mark"),
        (lambda data: b"<html>not found</html>" * 100, 0, "has a broken header at byte 0"),
        (lambda data: b"", 0, "is empty"),
        (lambda data: data[:-600], 10, None),  # short of zeros at the very end only
        (lambda data: data + bytes(99_999), 10, None),
    ],
)
def test_a_damaged_tar_gives_what_is_before_and_says_what_is_wrong(
    tmp_path: Path, damaged: object, num_members: int, complaint: str | None
) -> None:
    tar = write_tar(tmp_path / "t.tar", MEMBERS)
    assert callable(damaged)
    tar.write_bytes(damaged(tar.read_bytes()))
    entries = listed(tmp_path)
    members = entries if complaint is None else entries[:-1]
    for (name, data), entry in zip(list(MEMBERS.items())[:num_members], members, strict=True):
        assert entry.recording_id == f"{tar}#{name}"
        assert stores.read_range(entry.uri, entry.byte_offset, entry.byte_size) == data
    if complaint is not None:
        last = entries[-1]
        assert (last.recording_id, last.uri, last.byte_offset) == (str(tar), str(tar), None)
        assert complaint in damage(last)
        assert f"only the {num_members} recordings before that" in damage(last)
        assert last.duration_s == 0


def test_members_may_have_any_name(tmp_path: Path) -> None:
    raw = [
        b"../../etc/x.wav",
        b"/abs.wav",
        b"caf\xe9.wav",
        b"a%E9.wav",
        b"line\nfeed.wav",
        b"a..b/c..wav",
        b"//y.wav",
    ]
    tar = write_tar(tmp_path / "t.tar", {os.fsdecode(name): name for name in raw}, tarfile.GNU_FORMAT)
    entries = listed(tar)
    ids = [entry.recording_id.removeprefix(f"{tar}#") for entry in entries]
    assert ids == [
        "%2E%2E/%2E%2E/etc/x.wav",
        "%2Fabs.wav",
        "caf%E9.wav",
        "a%25E9.wav",
        "line%0Afeed.wav",
        "a..b/c..wav",
        "%2F/y.wav",
    ]
    assert [unquote_to_bytes(text) for text in ids] == raw
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.tar"]  # nothing is extracted
    for entry, name in zip(entries, raw, strict=True):
        assert stores.read_range(entry.uri, entry.byte_offset, entry.byte_size) == name


def test_members_of_one_name_are_all_there_and_links_are_not(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        for data in (b"one", b"two", b"three"):
            header = tarfile.TarInfo("a.wav")
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            header = tarfile.TarInfo("link.wav")
            header.type, header.linkname = kind, "/etc/passwd"
            tar.addfile(header)
        header = tarfile.TarInfo("folder.wav")
        header.type = tarfile.DIRTYPE
        tar.addfile(header)
    skipped: Counter[str] = Counter()
    entries = listed(path, skipped=skipped)
    assert [entry.recording_id for entry in entries] == [
        f"{path}#a.wav",
        f"{path}#a.wav#2",
        f"{path}#a.wav#3",
    ]
    assert [entry.byte_size for entry in entries] == [3, 3, 5]
    assert skipped == {"links in tars": 2}


def test_headers_that_lie_about_sizes_end_the_tar(tmp_path: Path) -> None:
    for size in (8 << 30, -512):
        header = tarfile.TarInfo("a.wav")
        header.size = 8 << 30
        block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
        if size < 0:
            block[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
            block[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]
        (tmp_path / "t.tar").write_bytes(bytes(block) + bytes(2048))
        (entry,) = listed(tmp_path)
        assert "broken header" in damage(entry) if size < 0 else "cut off inside its member" in damage(entry)


def test_pax_headers_that_lie_end_the_tar(tmp_path: Path) -> None:
    for record in (b"99999 path=a.wav\n", b"x path=a.wav\n", b"0 path=a\n", b"13 size=-512\n", b"9" * 5000):
        header = tarfile.TarInfo("pax")
        header.type, header.size = tarfile.XHDTYPE, len(record)
        padding = bytes(-len(record) % 512)
        (tmp_path / "t.tar").write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + record + padding + bytes(1024))
        (entry,) = listed(tmp_path)
        assert "has a broken extended header at byte 0" in damage(entry)


def test_tars_among_files_keep_their_place(tmp_path: Path) -> None:
    for number in range(0, 30, 3):
        (tmp_path / f"{number:02}.wav").write_bytes(b"1")
        write_tar(tmp_path / f"{number + 1:02}.tar", MEMBERS)
    entries = listed(tmp_path)
    assert [entry.uri for entry in entries] == sorted(entry.uri for entry in entries)
    assert len(entries) == 10 + 10 * len(MEMBERS)


def test_planned_tars_are_not_looked_into(tmp_path: Path) -> None:
    tar = stores.info(str(write_tar(tmp_path / "t.tar", MEMBERS)))
    assert tar is not None
    assert list(list_inputs([tar.uri], skipped=Counter(), planned={(tar.uri, tar.version, None)})) == []
    assert len(list(list_inputs([tar.uri], skipped=Counter(), planned={(tar.uri, "mtime:1", None)}))) == 10


@given(st.text(st.sampled_from("a.%/2E\u00e9\n\x7f\udc80 ")))
def test_escaped_names_are_safe_and_come_back(name: str) -> None:
    escaped = escape(name)
    escaped.encode()
    assert unquote_to_bytes(escaped) == name.encode("utf-8", "surrogateescape")
    assert not escaped.startswith("/")
    assert ".." not in escaped.split("/")
    encodable(f"{name}\ud800").encode()
    assert ("\udc80" in name) or encodable(name) == name
