"""What becomes of tars that are cut, broken, lying or hostile, plain and gzipped."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2v_ray import stores
from w2v_ray.containers import StreamDamage
from w2v_ray.inputs import Entry, list_inputs, tars
from w2v_ray.plan import make_plan
from w2v_ray.schema import DAMAGE_KEY
from w2v_ray.stages.read_audio import ReadAudio

MEMBERS = {f"{number:02}.wav": bytes([number]) * (300 * number) for number in range(1, 11)}
KINDS = ["t.tar", "t.tar.gz", "t.tgz"]


def tar_bytes(members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(
        fileobj=file, mode="w", format=format, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return file.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data if path.suffix == ".tar" else gzip.compress(data, 1))
    return path


def listed(*inputs: str | Path, skipped: Counter[str] | None = None) -> list[Entry]:
    counts = Counter() if skipped is None else skipped
    return list(list_inputs([str(text) for text in inputs], skipped=counts))


def outcomes(output: Path, *inputs: Path) -> dict[str, bytes | str]:
    """The bytes of every planned item, or the reason of its reject, by its id."""
    plan = make_plan([str(path) for path in inputs], str(output), shard_seconds=100, job={})
    found: dict[str, bytes | str] = {}
    for table in plan.shard_tables():
        for row in ReadAudio()(table).to_pylist():
            found[row["recording_id"]] = row["error"]["message"] if row["error"] else row["audio_bytes"]
    assert len(found) == plan.num_items
    return found


def header_at(number: int) -> int:
    """Where the header of the member with this number begins, from 1."""
    return sum(512 + -(-len(data) // 512) * 512 for data in list(MEMBERS.values())[: number - 1])


SIXTH = header_at(6)


@given(st.data())
def test_headers_mean_what_they_mean_to_tarfile(data: st.DataObject) -> None:
    header = tarfile.TarInfo(data.draw(st.sampled_from(["a.wav", "d/" * 70 + "x.wav", "é" * 20, "folder/"])))
    header.size = data.draw(st.sampled_from([0, 5, 1 << 33, 1 << 62]))
    header.type = data.draw(st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.SYMTYPE]))
    format = tarfile.USTAR_FORMAT if header.size < 1 << 33 else tarfile.GNU_FORMAT
    block = bytearray(header.tobuf(format, "utf-8")[-512:])
    changed = [*range(100), *range(124, 136), 148, 150, 154, 156, *range(345, 500)]
    for place in data.draw(st.lists(st.sampled_from(changed), max_size=3)):
        block[place] = data.draw(st.sampled_from([0, 32, 47, 48, 55, 57, 128, 200, 255]))
    if data.draw(st.booleans()):
        rest = block[:148] + block[156:]
        block[148:156] = b"%06o\0 " % (
            256 + sum(rest) - data.draw(st.sampled_from([0, 256])) * sum(b > 127 for b in rest)
        )
    try:
        expected = tarfile.TarInfo.frombuf(bytes(block), "utf-8", "surrogateescape")
        found = (expected.name, expected.size, expected.type)
    except tarfile.HeaderError:
        found = ("", -1, b"")
    if found[1] < 0 or found[2] == tarfile.GNUTYPE_SPARSE:
        with pytest.raises(StreamDamage):
            tars._header(bytes(block), 0)
    else:
        ours = tars._header(bytes(block), 0)
        assert (ours.name.rstrip("/"), ours.size, ours.type) == (found[0].rstrip("/"), *found[1:])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("damaged", "num_members", "complaint"),
    [
        (lambda data: data[:SIXTH], 5, f"ends without its end mark, at byte {SIXTH}"),
        (lambda data: data[: SIXTH + 700], 5, "is cut off inside its member '06.wav'"),
        (lambda data: data[: SIXTH + 100], 5, "is cut off inside a header"),
        (lambda data: data[: SIXTH + 3] + b"\xff" + data[SIXTH + 4 :], 5, "has a broken header at byte"),
        (lambda data: data[:SIXTH] + bytes(1024) + data[SIXTH:], 5, "goes on at byte"),
        (lambda data: data + data, 10, "goes on at byte"),
        (lambda data: b"<html>not found</html>" * 100, 0, "has a broken header at byte 0"),
        (lambda data: b"", 0, "is empty"),
    ],
)
def test_what_is_before_the_damage_is_read_and_the_damage_is_a_reject(
    tmp_path: Path, name: str, damaged: Any, num_members: int, complaint: str
) -> None:
    tar = write(tmp_path / name, damaged(tar_bytes(MEMBERS)))
    found = outcomes(tmp_path / "out", tar)
    reason = found.pop(str(tar))
    assert isinstance(reason, str)
    assert complaint in reason
    assert f"only the {num_members} recordings before that" in reason
    assert found == {f"{tar}#{name}": data for name, data in list(MEMBERS.items())[:num_members]}


def test_a_whole_gzipped_tar_is_read_like_a_plain_one(tmp_path: Path) -> None:
    members = MEMBERS | {"a.b.json": b'{"text": "hi"}', "a.b.flac": b"dotted", "a.b.txt": b"there"}
    plain, packed = (write(tmp_path / name, tar_bytes(members)) for name in KINDS[:2])
    skipped: Counter[str] = Counter()
    one, other = listed(plain), listed(packed, skipped=skipped)
    assert [entry._replace(recording_id="", uri="", version=None, container=None) for entry in one] == [
        entry._replace(recording_id="", uri="", version=None, container=None) for entry in other
    ]
    assert {entry.container for entry in other} == {"gzip"}
    assert json.loads(other[-1].metadata or "") == {"text": "there"}
    found = outcomes(tmp_path / "out", tmp_path)  # both, as a folder gives them
    assert len(found) == 22
    assert {found[f"{path}#a.b.flac"] for path in (plain, packed)} == {b"dotted"}
    assert make_plan([str(tmp_path)], str(tmp_path / "out"), shard_seconds=100, job={}).num_new == 0


def test_the_stream_is_unpacked_once_for_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = write(tmp_path / "t.tgz", tar_bytes(MEMBERS))
    plan = make_plan([str(tar)], str(tmp_path / "out"), shard_seconds=100, job={})
    opened = []
    gzip_file = gzip.GzipFile

    def counting(*args: Any, **options: Any) -> gzip.GzipFile:
        opened.append(args)
        return gzip_file(*args, **options)

    monkeypatch.setattr(gzip, "GzipFile", counting)
    (items,) = plan.shard_tables()
    assert ReadAudio()(items)["audio_bytes"].to_pylist() == list(MEMBERS.values())
    assert len(opened) == 1


@pytest.mark.parametrize(("share", "count"), [(0.45, 4), (0.99, 9)])
def test_a_gzip_stream_that_is_cut_off_is_a_reject(tmp_path: Path, share: float, count: int) -> None:
    noise = {f"{n}.wav": os.urandom(20_000) for n in range(10)}
    tar = write(tmp_path / "t.tar.gz", tar_bytes(noise))
    whole = tar.read_bytes()
    tar.write_bytes(whole[: int(len(whole) * share)])
    found = outcomes(tmp_path / "out", tar)
    reason = found.pop(str(tar))
    assert isinstance(reason, str)
    assert "is cut off: its gzip stream ends within" in reason
    assert len(found) == count
    assert found == {f"{tar}#{name}": noise[name] for name in list(noise)[: len(found)]}


@pytest.mark.parametrize(
    ("damaged", "num_members", "complaint"),
    [
        (lambda data: data[:-8] + bytes(4) + data[-4:], 10, "is no whole gzip stream"),  # its checksum
        (lambda data: data[:100_000] + bytes(2000) + data[102_000:], 4, "bytes; repair|broken header"),
        (lambda data: b"\x1f\x8b" + bytes(100), 0, "is no whole gzip stream"),
        (lambda data: data + b"and more", 10, "is no whole gzip stream"),
    ],
)
def test_a_gzip_stream_that_is_broken_is_a_reject(
    tmp_path: Path, damaged: Any, num_members: int, complaint: str
) -> None:
    noise = {f"{n}.wav": os.urandom(20_000) for n in range(10)}
    tar = write(tmp_path / "t.tar.gz", tar_bytes(noise))
    tar.write_bytes(damaged(tar.read_bytes()))
    entries = listed(tar)
    assert re.search(complaint, json.loads(entries[-1].metadata or "")[DAMAGE_KEY])
    assert len(entries) - 1 in (num_members, num_members + 1)


def test_a_gzipped_tar_that_changed_costs_its_items_only(tmp_path: Path) -> None:
    tar = write(tmp_path / "t.tgz", tar_bytes(MEMBERS))
    plan = make_plan([str(tar)], str(tmp_path / "out"), shard_seconds=100, job={})
    (items,) = plan.shard_tables()
    write(tar, tar_bytes({"01.wav": b"other"}))
    errors = ReadAudio()(items)["error"].to_pylist()
    versions = f"{items['version'][0]} -> mtime:{tar.stat().st_mtime_ns}"
    assert {error["message"] for error in errors} == {
        f"{str(tar)!r} has changed since it was planned ({versions}); plan it again into a new output"
    }
    unversioned = items.set_column(items.column_names.index("version"), "version", [[None] * 10])
    errors = ReadAudio()(unversioned)["error"].to_pylist()
    assert all("ends after 10240 unpacked bytes" in error["message"] for error in errors[5:])


@pytest.mark.parametrize("name", KINDS[:2])
def test_a_member_that_claims_eight_gib_ends_the_tar(tmp_path: Path, name: str) -> None:
    header = tarfile.TarInfo("big.wav")
    header.size = 8 << 30
    tar = write(tmp_path / name, header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    ((identity, reason),) = outcomes(tmp_path / "out", tar).items()
    assert identity == str(tar)
    assert isinstance(reason, str)
    assert "is cut off inside its member 'big.wav'" in reason


@pytest.mark.parametrize("name", KINDS[:2])
def test_names_stay_inside_and_nothing_is_extracted(tmp_path: Path, name: str) -> None:
    raw = [
        b"../../etc/x.wav",
        b"/abs.wav",
        b"caf\xe9.wav",
        b"line\nfeed.wav",
        b"a..b/c..wav",
    ]
    data = tar_bytes({os.fsdecode(one): one for one in raw}, tarfile.GNU_FORMAT)
    (tmp_path / "in").mkdir()
    tar = write(tmp_path / "in" / name, data)
    found = outcomes(tmp_path / "out", tar)
    assert list(found.values()) == raw
    assert [unquote_to_bytes(one.removeprefix(f"{tar}#")) for one in found] == raw
    assert not any(".." in one.removeprefix(f"{tar}#").split("/") for one in found)
    assert [path.name for path in (tmp_path / "in").iterdir()] == [name]
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


@pytest.mark.parametrize("name", KINDS[:2])
def test_members_of_one_name_are_all_there_and_links_are_not(tmp_path: Path, name: str) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for data in (b"one", b"two"):
            header = tarfile.TarInfo("a.wav")
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            header = tarfile.TarInfo("link.wav")
            header.type, header.linkname = kind, "/etc/passwd"
            tar.addfile(header)
    path = write(tmp_path / name, file.getvalue())
    skipped: Counter[str] = Counter()
    assert len(listed(path, skipped=skipped)) == 2
    assert skipped == {"links in tars": 2}
    assert outcomes(tmp_path / "out", path) == {f"{path}#a.wav": b"one", f"{path}#a.wav#2": b"two"}


def test_a_bomb_is_refused_within_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("silence.wav")
    header.size = 2 << 30
    bomb = tmp_path / "bomb.tar.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(20):
            file.write(bytes(16 << 20))
    assert bomb.stat().st_size < 2 << 20
    code = (
        "import resource, sys; from collections import Counter\n"
        "from w2v_ray.inputs import list_inputs\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "entries = list(list_inputs(sys.argv[1:], skipped=Counter()))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        "print(*[entry.metadata for entry in entries])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, bomb], capture_output=True, text=True, check=True)
    grown_kib, metadata = done.stdout.splitlines()
    assert int(grown_kib) < 64 << 10
    assert "unpacks to more than 100 times its size" in json.loads(metadata)[DAMAGE_KEY]


def test_digital_silence_is_no_bomb(tmp_path: Path) -> None:
    silence = bytes(20 << 20)  # ten minutes at 16 kHz
    tar = write(tmp_path / "t.tgz", tar_bytes({"a.wav": silence, "b.wav": silence}))
    assert tar.stat().st_size < 1 << 20
    assert [entry.byte_size for entry in listed(tar)] == [20 << 20] * 2


def test_gzipped_tars_in_a_store(s3: str, tmp_path: Path) -> None:
    stores.publish(f"{s3}/in/t.tar.gz", gzip.compress(tar_bytes(MEMBERS)))
    plan = make_plan([f"{s3}/in"], str(tmp_path / "out"), shard_seconds=100, job={})
    (items,) = plan.shard_tables()
    assert ReadAudio()(items)["audio_bytes"].to_pylist() == list(MEMBERS.values())
