"""Stores that fail: once, and the bytes are right; always, and one item is rejected in bounded time."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from tests.faults.faulty_server import Fault, FaultyServer, faulty_server
from w2v_ray import stores
from w2v_ray.errors import InputError, OutputError, ReadError
from w2v_ray.inputs import list_inputs
from w2v_ray.schema import ITEM
from w2v_ray.stages.read_audio import ReadAudio
from w2v_ray.store_config import StoreConfig
from w2v_ray.stores import answers, ranges, requests

DATA = bytes(range(256)) * 200
LIMITS = {"attempts": 3, "connect_timeout_s": 1, "read_timeout_s": 0.4, "deadline_s": 2}
PASSING: list[Fault] = ["500", "503", "reset", "stall", "truncate", "corrupt"]


def ask(server: FaultyServer, **limits: object) -> None:
    """From now on stores are asked through the server."""
    options = LIMITS | limits
    s3 = {"endpoint_url": server.url, **options}
    stores.use(StoreConfig(allow_http=True, options={"s3": s3, "http": options}))


@pytest.fixture(scope="module")
def one_server(s3_server: None) -> Iterator[FaultyServer]:
    """One for all tests, as it takes half a second to make the client of another endpoint."""
    with faulty_server(os.environ["AWS_ENDPOINT_URL"]) as server:
        yield server


@pytest.fixture
def server(one_server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> FaultyServer:
    """A faulty server in front of the S3 server, which all stores ask; waits between tries are short."""
    monkeypatch.setattr(requests, "_CONNECTION_WAIT_S", 0.02)
    monkeypatch.setattr(requests, "_BUSY_WAIT_S", 0.04)
    monkeypatch.setattr(requests, "_config", None)
    monkeypatch.setattr(answers, "_etags_are_md5", {})
    one_server.reset()
    ask(one_server)
    return one_server


@pytest.fixture
def bucket(server: FaultyServer, s3: str) -> str:
    return s3


@pytest.fixture(params=["s3", "http"])
def root(request: pytest.FixtureRequest, server: FaultyServer) -> str:
    """Where the same three files are, on either kind of server."""
    names = ("a.wav", "b.wav", "c.wav")
    if request.param == "s3":
        root = str(request.getfixturevalue("bucket"))
        for name in names:
            stores.publish(stores.join(root, name), name.encode() + DATA)
        return root
    server.files |= {f"/{name}": name.encode() + DATA for name in names}
    return server.url


def read(uris: list[str], **columns: object) -> list[tuple[bytes | None, str]]:
    """Bytes and error message of each, as the stage reads them."""
    rows = [
        {"shard_id": "s", "item_index": i, "recording_id": uri, "uri": uri, "byte_size": len(DATA) + 5}
        | columns
        for i, uri in enumerate(uris)
    ]
    result = ReadAudio()(pa.Table.from_pylist(rows, ITEM))
    for error in result["error"].to_pylist():
        assert error is None or (error["stage"], error["error_class"]) == ("read_audio", "ReadError")
    messages = [error["message"] if error else "" for error in result["error"].to_pylist()]
    return list(zip(result["audio_bytes"].to_pylist(), messages, strict=True))


# ---- reading


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_not_noticed(server: FaultyServer, root: str, fault: Fault) -> None:
    if fault == "corrupt" and root.startswith("http"):
        pytest.skip("a web server says nothing that wrong bytes could be known by")
    server.fail(fault, at="b.wav")
    names = ["a.wav", "b.wav", "c.wav"]
    found = read([stores.join(root, name) for name in names])
    assert found == [(name.encode() + DATA, "") for name in names]
    asked = [path for method, path in server.requests if method == "GET" and "b.wav" in path]
    assert len(asked) == 2


@pytest.mark.parametrize("fault", [*PASSING, "trickle"])
def test_a_fault_that_stays_costs_one_item(server: FaultyServer, root: str, fault: Fault) -> None:
    if fault == "corrupt" and root.startswith("http"):
        pytest.skip("a web server says nothing that wrong bytes could be known by")
    server.fail(fault, at="b.wav", times=None)
    began = time.monotonic()
    found = read([stores.join(root, name) for name in ("a.wav", "b.wav", "c.wav")])
    assert time.monotonic() - began < LIMITS["deadline_s"] + 2
    assert [data for data, _ in found] == [b"a.wav" + DATA, None, b"c.wav" + DATA]
    assert "b.wav' cannot be read (" in found[1][1]
    said = {
        "500": "internalerror" if root.startswith("s3") else "500",
        "503": "slowdown" if root.startswith("s3") else "503",
        "trickle": "no whole answer within 2 s",
        "corrupt": "checksum",
    }
    assert said.get(fault, "") in found[1][1]


@pytest.mark.parametrize("fault", ["500", "reset", "truncate"])
def test_a_part_of_a_file_is_tried_again_too(server: FaultyServer, root: str, fault: Fault) -> None:
    uri = stores.join(root, "a.wav")
    server.fail(fault, at="a.wav")
    assert stores.read_range(uri, 1000, 300) == (b"a.wav" + DATA)[1000:1300]
    server.fail(fault, at="a.wav")
    with stores.open_range(uri, None, len(DATA) + 5, block_bytes=512) as file:
        assert file.seek(20_000) == 20_000
        assert file.read(700) == (b"a.wav" + DATA)[20_000:20_700]


def test_wrong_bytes_that_stay_the_same_are_known_where_etags_are_checksums(
    server: FaultyServer, bucket: str
) -> None:
    server.gives_checksums = False
    for name in ("a.wav", "b.wav"):
        stores.publish(f"{bucket}/{name}", name.encode() + DATA)
    server.fail("corrupt_alike", at="b.wav", times=None)
    assert read([f"{bucket}/a.wav"])[0][1] == ""
    assert "not those of its etag" in read([f"{bucket}/b.wav"])[0][1]


def test_a_store_whose_etags_are_no_checksums_is_believed(server: FaultyServer, bucket: str) -> None:
    server.gives_checksums = False
    stores.publish(f"{bucket}/b.wav", b"b.wav" + DATA)
    server.fail("corrupt_alike", at="b.wav", times=None)  # as if the etag were of something else
    found = [read([f"{bucket}/b.wav"])[0] for _ in range(2)]
    assert [message for _, message in found] == ["", ""]
    assert found[0][0] == found[1][0] != b"b.wav" + DATA
    asked = [path for method, path in server.requests if method == "GET"]
    assert len(asked) == 3  # the first was asked twice


def test_a_large_file_comes_in_pieces_each_tried_by_itself(
    server: FaultyServer, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "_PIECE_BYTES", 10_000)
    server.fail("truncate", at="a.wav", times=2)
    assert read([stores.join(root, "a.wav")]) == [(b"a.wav" + DATA, "")]
    asked = [path for method, path in server.requests if method == "GET" and "a.wav" in path]
    assert len(asked) == 6 + 2


def test_no_more_requests_are_in_flight_than_allowed(server: FaultyServer) -> None:
    ask(server, max_requests=2, attempts=1)
    server.fail("trickle", times=None)
    server.files |= {f"/{n}.bin": b"xy" * 3 for n in range(8)}
    uris = [f"{server.url}/{n}.bin" for n in range(8)]
    read(uris, byte_size=6)
    assert server.most_in_flight == 2


def test_a_dead_endpoint_is_named_at_once(server: FaultyServer, s3_server: None) -> None:
    stores.use(StoreConfig(options={"s3": {"endpoint_url": "http://127.0.0.1:9", "connect_timeout_s": 1}}))
    began = time.monotonic()
    with pytest.raises(ReadError, match=r"the endpoint http://127\.0\.0\.1:9 cannot be reached"):
        stores.read_range("s3://bucket/a.wav", None, 10)
    with pytest.raises(OutputError, match=r"the endpoint http://127\.0\.0\.1:9 cannot be reached"):
        stores.check_writable("s3://bucket/out")
    assert time.monotonic() - began < 4


# ---- size and version


@pytest.mark.parametrize("size", [len(DATA) + 4, len(DATA) + 6])
def test_another_size_is_known_before_the_body_is_read(server: FaultyServer, root: str, size: int) -> None:
    server.fail("stall", at="a.wav", times=None)  # whoever waits for the body waits long
    began = time.monotonic()
    found = read([stores.join(root, "a.wav")], byte_size=size)
    assert time.monotonic() - began < LIMITS["read_timeout_s"]
    assert f"has {len(DATA) + 5} bytes from byte 0 where {size} were planned" in found[0][1]


def test_another_version_of_the_same_size_is_refused(server: FaultyServer, root: str) -> None:
    uri = stores.join(root, "a.wav")
    before = stores.info(uri)
    assert before is not None
    assert read([uri], version=before.version)[0][1] == ""
    part = {"byte_offset": 10, "byte_size": 20}
    assert read([uri], version=before.version, **part)[0][1] == ""
    if root.startswith("s3"):
        stores.publish(uri, b"A.wav" + DATA)
    else:
        server.files["/a.wav"] = b"A.wav" + DATA
    num_requests = len(server.requests)
    for columns in ({}, part):
        message = read([uri], version=before.version, **columns)[0][1]
        assert f"has changed since it was planned ({before.version} -> etag:" in message
    assert len(server.requests) == num_requests + 2  # it is the answer that says so


def test_a_file_that_changes_while_it_is_open_is_refused(server: FaultyServer, root: str) -> None:
    uri = stores.join(root, "a.wav")
    with stores.open_range(uri, None, len(DATA) + 5, block_bytes=100) as file:
        file.read(10)
        if root.startswith("s3"):
            stores.publish(uri, b"A.wav" + DATA)
        else:
            server.files["/a.wav"] = b"A.wav" + DATA
        file.seek(30_000)
        with pytest.raises(ReadError, match="has changed"):
            file.read(10)


def test_a_local_file_of_another_time_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"a.wav" + DATA)
    found = stores.info(str(path))
    assert found is not None
    assert read([str(path)], version=found.version) == [(b"a.wav" + DATA, "")]
    os.utime(path, ns=(1, 1))
    assert "has changed since it was planned" in read([str(path)], version=found.version)[0][1]


# ---- publishing


@pytest.mark.parametrize("fault", ["500", "503", "reset", "lost_answer"])
@pytest.mark.parametrize("exclusive", [False, True])
def test_a_fault_that_passes_does_not_hinder_publishing(
    server: FaultyServer, bucket: str, fault: Fault, exclusive: bool
) -> None:
    server.fail(fault, method="PUT", at="part")
    assert stores.publish(f"{bucket}/part", DATA, exclusive=exclusive)
    assert stores.read_bytes(f"{bucket}/part") == DATA
    server.fail(fault, method="PUT", at="part")
    assert stores.publish(f"{bucket}/part", DATA[::-1], exclusive=exclusive) is not exclusive
    assert stores.read_bytes(f"{bucket}/part") == (DATA if exclusive else DATA[::-1])


@pytest.mark.parametrize("fault", ["500", "503", "reset"])
@pytest.mark.parametrize("exclusive", [False, True])
def test_a_fault_that_stays_leaves_no_half_file(
    server: FaultyServer, bucket: str, fault: Fault, exclusive: bool
) -> None:
    server.fail(fault, method="PUT", at="part", times=None)
    began = time.monotonic()
    with pytest.raises(OutputError, match=r"part' cannot be written"):
        stores.publish(f"{bucket}/part", DATA, exclusive=exclusive)
    assert time.monotonic() - began < LIMITS["deadline_s"] + 2
    assert stores.list_names(bucket) == []


def test_many_parts_of_which_one_fails_leave_no_half_file(
    server: FaultyServer, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = requests.filesystem("s3")
    monkeypatch.setattr(store, "pipe_file", partial(store.pipe_file, chunksize=1000))  # as if it were large
    server.fail("500", method="PUT", at="partNumber=2", times=None)
    with pytest.raises(OutputError, match="cannot be written"):
        stores.publish(f"{bucket}/part", DATA)
    assert any("partNumber=2" in path for _, path in server.requests)
    assert stores.list_names(bucket) == []
    uploads = store.call_s3("list_multipart_uploads", Bucket=bucket.removeprefix("s3://"))
    assert not uploads.get("Uploads")


@pytest.mark.parametrize("fault", ["500", "reset"])
def test_a_store_that_fails_while_it_is_listed_is_named(
    server: FaultyServer, bucket: str, fault: Fault
) -> None:
    for name in ("a.wav", "b/c.wav"):
        stores.publish(f"{bucket}/in/{name}", b"audio")
    server.fail(fault, at="prefix=in%2Fb%2F", times=None)
    with pytest.raises(InputError, match=f"'{bucket}/in' cannot be listed"):
        list(list_inputs([f"{bucket}/in"], skipped=Counter()))


# ---- the web


def test_the_web_is_read_only_where_that_is_allowed(server: FaultyServer) -> None:
    server.files["/a b.wav"] = b"x" * 100
    uri = f"{server.url}/a b.wav"
    found = stores.info(uri)
    assert found is not None
    assert (found.kind, found.size) == ("file", 100)
    assert stores.info(f"{server.url}/none.wav") is None
    assert stores.read_range(uri, None, 100) == stores.read_bytes(uri) == b"x" * 100
    (entry,) = list_inputs([uri], skipped=Counter())
    assert (entry.uri, entry.byte_size, entry.version) == (uri, 100, found.version)
    stores.use(StoreConfig())
    num_requests = len(server.requests)
    with pytest.raises(ReadError, match=r"read only with --allow-http \(in a job file `allow_http: true`\)"):
        stores.read_range(uri, None, 100)
    with pytest.raises(InputError, match="read only with --allow-http"):
        list(list_inputs([uri], skipped=Counter()))
    assert len(server.requests) == num_requests


def test_a_server_without_ranges_gives_whole_files_and_beginnings(server: FaultyServer) -> None:
    server.files["/a.wav"] = DATA
    server.fail("ignore_range", times=None)
    uri = f"{server.url}/a.wav"
    assert stores.read_range(uri, None, len(DATA)) == DATA
    with stores.open_range(uri, None, len(DATA), block_bytes=100) as file:
        assert file.read(50) == DATA[:50]
        file.seek(1000)
        with pytest.raises(ReadError, match="gives no parts of files; copy it"):
            file.read(10)


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("http://169.254.169.254/latest/meta-data/", "link-local or metadata address"),
        ("http://metadata.google.internal/", "machine's own metadata"),
        ("file:///etc/passwd", "no web address"),
        ("http://[fe80::1]/", "link-local or metadata address"),
    ],
)
def test_redirects_lead_nowhere_that_is_refused(server: FaultyServer, target: str, complaint: str) -> None:
    server.fail("redirect", times=None)
    server.redirect_to = target
    with pytest.raises(ReadError, match=complaint):
        stores.read_range(f"{server.url}/a.wav", None, 10)


def test_redirects_are_followed_but_not_in_circles(server: FaultyServer) -> None:
    server.files["/b.wav"] = DATA
    server.redirect_to = "/b.wav"
    server.fail("redirect", at="a.wav", times=None)
    assert stores.read_range(f"{server.url}/a.wav", None, len(DATA)) == DATA
    server.redirect_to = "/a.wav"
    with pytest.raises(ReadError, match="redirects more than 5 times"):
        stores.read_range(f"{server.url}/a.wav", None, len(DATA))


def test_a_redirect_to_a_signed_link_is_followed_and_never_said(server: FaultyServer) -> None:
    server.files["/b.wav"] = DATA
    server.redirect_to = f"{server.url}/b.wav?X-Amz-Signature=canary&sig=canary"
    server.fail("redirect", at="a.wav", times=None)
    assert stores.read_range(f"{server.url}/a.wav", None, len(DATA)) == DATA
    server.fail("500", at="b.wav", times=None)
    with pytest.raises(ReadError, match="cannot be read") as caught:
        stores.read_range(f"{server.url}/a.wav", None, len(DATA))
    assert "/b.wav" in str(caught.value)
    assert "canary" not in str(caught.value)
    server.redirect_to = "http://me:canary@169.254.169.254/?sig=canary"
    with pytest.raises(ReadError, match="link-local") as caught:
        stores.read_range(f"{server.url}/a.wav", None, len(DATA))
    assert "canary" not in str(caught.value)


def test_a_name_that_means_a_link_local_address_is_not_asked(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def getaddrinfo(host: str, port: int, *args: object, **kwargs: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    began = time.monotonic()
    with pytest.raises(ReadError, match="link-local or metadata address"):
        stores.read_range("http://harmless.example/a.wav", None, 10)
    assert time.monotonic() - began < 1
