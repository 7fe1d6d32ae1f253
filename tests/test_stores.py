from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from w2v_ray import stores
from w2v_ray.errors import OutputError, ReadError
from w2v_ray.store_config import StoreConfig

DATA = bytes(range(256)) * 40


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that can be written: a folder, and a bucket."""
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("s3")


# ---- names


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("zip://a.wav::s3://bucket/x.zip", "chained URL"),
        ("filecache::s3://bucket/x.wav", "chained URL"),
        ("s3://bucket/x::http://169.254.169.254/latest", "chained URL"),
        ("http://host/x.wav", "read only with --allow-http"),
        ("ftp://host/x.wav", "protocol that is not read"),
        ("file://host/x.wav", "without an absolute path"),
        ("a\0b.wav", "NUL"),
    ],
)
def test_places_that_are_refused_say_why(uri: str, complaint: str) -> None:
    assert complaint in (stores.refusal(uri) or "")
    with pytest.raises(ReadError, match=complaint):
        stores.open_range(uri, None, None)


def test_a_store_without_its_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert stores.refusal("gs://bucket/x") == "needs the package gcsfs; pip install gcsfs"
    monkeypatch.setitem(sys.modules, "adlfs", None)
    assert stores.refusal("az://bucket/x") == "needs the package adlfs; pip install adlfs"
    with pytest.raises(OutputError, match="'gs://bucket/x' needs the package gcsfs; pip install gcsfs"):
        stores.check_writable("gs://bucket/x")


@pytest.mark.parametrize(
    "uri", ["a::b.wav", "/x/c:d.wav", "s3://bucket/a::b.wav", "s3a://bucket/x", "memory://x"]
)
def test_names_with_colons_are_only_names(uri: str) -> None:
    assert stores.refusal(uri) is None


def test_one_file_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert {
        stores.canonical(uri) for uri in ("x.wav", "./a/../x.wav", "~/x.wav", f"file://{tmp_path}/x.wav")
    } == {f"{tmp_path}/x.wav"}
    assert stores.canonical("s3a://bucket/folder/") == "s3://bucket/folder"
    assert stores.canonical("file:///a%20b") == "/a b"


@given(name=st.binary(min_size=1, max_size=20).filter(lambda name: not set(name) & set(b"\0/.")))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_can_be_written_as_text_and_opened(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    Path(os.fsdecode(path)).write_bytes(name)
    uri = stores.canonical(os.fsdecode(path))
    uri.encode()
    assert stores.canonical(uri) == uri
    assert stores.read_range(uri, None, len(name)) == name


# ---- reading


@given(offset=st.integers(0, len(DATA)), size=st.integers(0, len(DATA)), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_part_reads_like_a_file_of_its_own(
    tmp_path: Path, offset: int, size: int, data: st.DataObject
) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    size = min(size, len(DATA) - offset)
    part = DATA[offset : offset + size]
    assert stores.read_range(str(path), offset, size) == part
    with stores.open_range(str(path), offset, size, block_bytes=data.draw(st.integers(1, 300))) as file:
        assert file.seek(0, 2) == size
        for _ in range(5):
            at, count = data.draw(st.integers(0, size + 5)), data.draw(st.integers(-1, size + 5))
            assert file.seek(at) == at
            assert file.read(count) == (part[at:] if count < 0 else part[at : at + count])


def test_reading_is_the_same_in_every_store(root: str) -> None:
    uri = stores.join(root, "deep", "file.bin")
    stores.publish(uri, DATA)
    assert stores.read_bytes(uri) == DATA
    assert stores.read_range(uri, None, len(DATA)) == stores.read_range(uri, None, None) == DATA
    assert stores.read_range(uri, 100, 300) == DATA[100:400]
    with stores.open_range(uri, 100, 300, block_bytes=64) as file:
        assert (file.read(5), file.seek(-10, 2), file.read()) == (DATA[100:105], 290, DATA[390:400])
    with stores.open_range(uri, 200, None) as file:
        assert file.read() == DATA[200:]
    stores.publish(stores.join(root, "empty"), b"")
    assert stores.read_range(stores.join(root, "empty"), None, 0) == b""


@pytest.mark.parametrize(
    ("offset", "size"),
    [(None, len(DATA) - 1), (None, len(DATA) + 1), (100, len(DATA)), (len(DATA) + 600, 100), (None, 0)],
)
def test_a_file_of_another_size_than_planned_is_refused(root: str, offset: int | None, size: int) -> None:
    uri = stores.join(root, "file.bin")
    stores.publish(uri, DATA)
    with pytest.raises(ReadError, match=r"file\.bin"):
        stores.read_range(uri, offset, size)
    with pytest.raises(ReadError, match=r"file\.bin"), stores.open_range(uri, offset, size) as file:
        file.read()


def test_a_file_that_is_cut_while_open_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with stores.open_range(str(path), None, len(DATA), block_bytes=16) as file:
        file.read(16)
        path.write_bytes(b"")
        with pytest.raises(ReadError, match="has changed"):
            file.read()


def test_what_cannot_be_read_says_so(root: str, tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"nothing\.wav' does not exist"):
        stores.read_range(stores.join(root, "nothing.wav"), None, None)
    with pytest.raises(ReadError, match="is not a regular file"):
        stores.read_range(str(tmp_path), None, None)
    os.mkfifo(tmp_path / "pipe.wav")  # opening it for reading would wait for a writer
    with pytest.raises(ReadError, match="is not a regular file"):
        stores.read_range(str(tmp_path / "pipe.wav"), None, None)


def test_errors_of_a_store_without_answers_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from w2v_ray.stores import requests

    monkeypatch.setattr(requests, "_wait_s", lambda error, number: 0.001)
    store = requests.filesystem("memory")
    store.pipe_file("/file.bin", DATA)
    original, failures = store.cat_file, [OSError(16, "slow down"), ConnectionResetError("reset")]

    def flaky(*args: object, **kwargs: object) -> bytes:
        if failures:
            raise failures.pop()
        return bytes(original(*args, **kwargs))

    monkeypatch.setattr(store, "cat_file", flaky)
    uri = "memory://file.bin"
    assert stores.read_range(uri, None, len(DATA)) == DATA
    failures += [OSError(16, "slow down")] * 5
    with pytest.raises(ReadError, match=r"file\.bin.*slow down"):
        stores.read_range(uri, None, len(DATA))
    assert not failures
    failures += [PermissionError("forbidden")] * 2  # will not pass
    with pytest.raises(ReadError, match="may not be read"):
        stores.read_range(uri, None, len(DATA))
    assert len(failures) == 1
    for size in (len(DATA) - 1, len(DATA) + 1):
        failures.clear()
        with pytest.raises(ReadError, match=f"has .* bytes from byte 0 where {size} were planned"):
            stores.read_range(uri, None, size)


@pytest.mark.parametrize(
    ("manifest", "path", "place"),
    [
        ("/lists/x.jsonl", "a.wav", "/lists/a.wav"),
        ("/lists/x.jsonl", "../a.wav", "/a.wav"),
        ("/lists/x.jsonl", "/other/a.wav", "/other/a.wav"),
        ("/lists/x.jsonl", "s3://bucket/a.wav", "s3://bucket/a.wav"),
        ("s3://bucket/lists/x.jsonl", "a.wav", "s3://bucket/lists/a.wav"),
        ("s3://bucket/lists/x.jsonl", "../audio/a.wav", "s3://bucket/audio/a.wav"),
        ("s3://bucket/lists/x.jsonl", "s3a://other/a.wav", "s3://other/a.wav"),
        ("https://host/lists/x.jsonl?a=b", "../a b#1.wav", "https://host/a%20b%231.wav"),
        ("https://host/lists/x.jsonl", "http://other/a.wav", "http://other/a.wav"),
    ],
)
def test_a_list_names_places_as_seen_from_where_it_lies(manifest: str, path: str, place: str) -> None:
    stores.use(StoreConfig(allow_http=True))
    try:
        assert stores.place_named_in(manifest, path) == place
    finally:
        stores.use(StoreConfig())


@pytest.mark.parametrize(
    ("manifest", "path", "complaint"),
    [
        ("s3://bucket/x.jsonl", "../a.wav", "is outside 'bucket'"),
        ("s3://bucket/lists/x.jsonl", "../../other/a.wav", "is outside 'bucket'"),
        ("s3://bucket/x.jsonl", "/etc/passwd", "is a local path"),
        ("s3://bucket/x.jsonl", "~/.ssh/id_rsa", "is a local path"),
        ("s3://bucket/x.jsonl", "file:///etc/passwd", "is a local path"),
        ("s3://bucket/x.jsonl", "http://host/a.wav", "read only with --allow-http"),
        ("/lists/x.jsonl", "http://host/a.wav", "read only with --allow-http"),
        ("/lists/x.jsonl", "http://169.254.169.254/a.wav", "link-local"),
        ("/lists/x.jsonl", "filecache::s3://bucket/a.wav", "chained"),
        ("https://host/x.jsonl", "s3://bucket/a.wav", "may only name web addresses"),
        ("https://host/x.jsonl", "/etc/passwd", "is a local path"),
        ("https://host/x.jsonl", "../../a.wav", "is outside 'host'"),
    ],
)
def test_a_list_names_nothing_outside_its_root(manifest: str, path: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        stores.place_named_in(manifest, path)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.1.1:8080",
        "2852039166",
        "0xA9FEA9FE",
        "0251.0376.0251.0376",
        "169.254.43518",
        "[fe80::1]",
        "[fe80::1%25eth0]",
        "[::ffff:169.254.169.254]",
        "[fd00:ec2::254]",
        "100.100.100.200",
        "metadata.google.internal",
        "METADATA.google.internal.",
        "metadata",
        "instance-data",
        "0.0.0.0",
    ],
)
def test_addresses_of_metadata_are_refused_however_they_are_written(host: str) -> None:
    stores.use(StoreConfig(allow_http=True))
    try:
        assert "never read" in (stores.refusal(f"http://{host}/latest") or "") or "no single host" in (
            stores.refusal(f"http://{host}/latest") or ""
        )
        assert stores.refusal("http://10.0.0.1/a.wav") is None
    finally:
        stores.use(StoreConfig())


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("https://user:canary@host/a.wav", "holds a user or password"),
        ("https://token@host/a.wav", "holds a user or password"),
        ("https://host/a.wav?X-Amz-Credential=a&X-Amz-Signature=canary", "is a signed link"),
        ("https://host/a.wav?sv=2020&sig=canary", "is a signed link"),
        ("https:///a.wav", "without a host"),
        ("https://host:port/a.wav", "not a valid web address"),
    ],
)
def test_web_addresses_hold_no_secrets(url: str, complaint: str) -> None:
    assert complaint in (stores.refusal(url) or "")


# ---- listing


def test_folders_list_the_same_in_every_store(root: str) -> None:
    names = ["b.wav", "a/z.wav", "a.wav", "a/b/c.wav", "_x/y.wav", ".hidden.wav", "a/_skip.wav", "a0.wav"]
    for name in names:
        stores.publish(stores.join(root, name), name.encode())
    found = [file for file in stores.list_files(root) if "/_tmp" not in file.uri]
    files = [file for file in found if file.kind == "file"]
    plain = ["a.wav", "a/b/c.wav", "a/z.wav", "a0.wav", "b.wav"]
    assert [file.uri for file in files] == [stores.join(stores.canonical(root), name) for name in plain]
    assert [file.size for file in files] == [len(name) for name in plain]
    assert all(file == stores.info(file.uri) for file in files)
    assert {file.kind for file in found} == {"file", "hidden", "hidden folder"}
    assert set(stores.list_names(root)) - {"_tmp"} == {"b.wav", "a", "a.wav", "_x", ".hidden.wav", "a0.wav"}
    assert [file.uri for file in stores.list_glob(stores.join(root, "a", "**", "*.wav"))][-1] == files[2].uri


def test_many_folders_are_listed_in_the_order_of_their_paths(root: str) -> None:
    names = [f"{a}/{b:02}/{c}.wav" for a in ("x", "x-y") for b in range(20) for c in ("0", "z")]
    names += ["x.wav", "x/05.wav", "x/05/deep/er/f.wav", "x/_hidden/a.wav"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: stores.publish(stores.join(root, name), b"audio"), names))
    found = [file.uri for file in stores.list_files(root) if file.kind == "file"]
    base = stores.canonical(root)
    assert found == [stores.join(base, name) for name in sorted(names) if "_hidden" not in name]


def test_names_with_empty_parts_are_listed(s3: str) -> None:
    names = ["/top.wav", "in//b.wav", "in///c.wav", "in/a.wav", "in/d//e.wav", "in/d/f.wav", "in/_x//g.wav"]
    for name in names:
        stores.publish(f"{s3}/{name}", b"audio")
    plain = sorted(f"{s3}/{name}" for name in names if "_x" not in name)
    assert sorted(file.uri for file in stores.list_files(s3) if file.kind == "file") == plain
    inside = [file.uri for file in stores.list_files(f"{s3}/in") if file.kind == "file"]
    assert inside == plain[1:]
    assert {stores.read_bytes(uri) for uri in plain} == {b"audio"}


def test_another_content_is_another_version(root: str) -> None:
    uri = stores.join(root, "x.wav")
    stores.publish(uri, b"one")
    before = stores.info(uri)
    time.sleep(0.02)
    stores.publish(uri, b"two")
    after = stores.info(uri)
    assert before is not None
    assert after is not None
    assert (before.size, before.uri) == (after.size, after.uri)
    assert before.version != after.version


def test_nothing_is_nothing(root: str) -> None:
    missing = stores.join(root, "missing")
    assert not stores.exists(missing)
    assert stores.info(missing) is None
    assert list(stores.list_files(missing)) == stores.list_names(missing) == []
    assert stores.list_glob(stores.join(missing, "*")) == []


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.wav").write_bytes(b"1")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.wav")
    found = {
        (file.uri.removeprefix(f"{tmp_path}/"), file.kind, file.size)
        for file in stores.list_files(str(tmp_path))
    }
    assert found == {
        ("a/up", "special", None),
        ("a/x.wav", "file", 1),
        ("b/up", "special", None),
        ("b/x.wav", "file", 1),
        ("gone.wav", "file", None),
        ("pipe.wav", "special", None),
    }


# ---- publishing


def test_publishing_replaces_and_removes(root: str) -> None:
    uri = stores.join(root, "out", "x")
    assert stores.publish(uri, b"one", root=root)
    assert stores.publish(uri, b"two", root=root)
    assert not stores.publish(uri, b"three", root=root, exclusive=True)
    assert stores.read_bytes(uri) == b"two"
    stores.remove(uri)
    stores.remove(uri)
    assert not stores.exists(uri)
    assert stores.publish(uri, b"four", root=root, exclusive=True)
    assert stores.read_bytes(uri) == b"four"
    assert stores.list_names(stores.join(root, "_tmp")) == []


def test_of_many_exclusive_writers_one_succeeds(root: str) -> None:
    uri = stores.join(root, "claim")
    with ThreadPoolExecutor(8) as pool:
        texts = [f"writer {number}".encode() for number in range(8)]
        won = list(pool.map(lambda text: stores.publish(uri, text, root=root, exclusive=True), texts))
    assert won.count(True) == 1
    assert stores.read_bytes(uri) == texts[won.index(True)]


def test_a_store_without_conditions_is_asked_first(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from w2v_ray.stores import requests

    store = requests.filesystem("s3")
    real = store.pipe_file

    def pipe_file(path: str, data: bytes, *, timeout: float, **options: str) -> None:
        if options:
            raise OSError(38, "not implemented")
        real(path, data)

    monkeypatch.setattr(store, "pipe_file", pipe_file)
    assert stores.publish(f"{s3}/x", b"one", exclusive=True)
    assert not stores.publish(f"{s3}/x", b"two", exclusive=True)
    assert stores.read_bytes(f"{s3}/x") == b"one"


def test_readers_see_one_writer_or_the_other(tmp_path: Path) -> None:
    script = (
        "import sys; from w2v_ray import stores\n"
        "for _ in range(12): stores.publish(sys.argv[1], sys.argv[2].encode() * 300_000)"
    )
    path = tmp_path / "x"
    stores.publish(str(path), b"a" * 300_000)
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), letter]) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        assert path.read_bytes() in (b"a" * 300_000, b"b" * 300_000)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert os.listdir(tmp_path / "_tmp") == []


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_killed_writer_leaves_no_visible_file(tmp_path: Path, exclusive: bool) -> None:
    script = (
        "import sys; from w2v_ray import stores; data = b'x' * (128 << 20); print('ready', flush=True)\n"
        f"stores.publish(sys.argv[1], data, root=sys.argv[2], exclusive={exclusive})"
    )
    target = tmp_path / "transcripts" / "part-1.parquet"
    command = [sys.executable, "-c", script, str(target), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        while not (begun := list((tmp_path / "_tmp").glob("*"))) or begun[0].stat().st_size == 0:
            assert writer.poll() is None
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
    assert begun[0].exists()  # it was killed in the middle
    assert list(target.parent.iterdir()) == []
    assert stores.publish(str(target), b"whole", root=str(tmp_path), exclusive=exclusive)
    assert target.read_bytes() == b"whole"


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("in_the_way", ["rejects", "_tmp"])
def test_a_file_where_a_folder_has_to_be_stops_publishing(
    tmp_path: Path, in_the_way: str, exclusive: bool
) -> None:
    (tmp_path / in_the_way).write_bytes(b"mine")
    with pytest.raises(OutputError, match="Not a directory"):
        stores.publish(
            str(tmp_path / "rejects" / "part.parquet"), b"rows", root=str(tmp_path), exclusive=exclusive
        )
    assert (tmp_path / in_the_way).read_bytes() == b"mine"


def test_outputs_that_cannot_be_written_are_found_out_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for output, complaint in [
        (str(tmp_path / "file"), "is a file; name a folder"),
        (str(tmp_path / "file" / "below"), "cannot be written"),
        ("/proc/nothing/out", "cannot be written"),
        ("memory://out", "is memory"),
        ("zip://x::s3://bucket/y", "chained"),
        ("https://host/out", "where nothing is written"),
    ]:
        with pytest.raises(OutputError, match=complaint) as caught:
            stores.check_writable(output)
        assert repr(output) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_output_that_can_be_written_is_made(root: str) -> None:
    output = stores.join(root, "new", "out")
    stores.check_writable(output)
    stores.check_writable(output)
    assert [name for name in stores.list_names(output) if name != "_tmp"] == []


def test_a_bucket_that_does_not_exist_is_no_output(s3: str) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        stores.check_writable("s3://no-such-bucket-at-all/out")
