from __future__ import annotations

import gzip
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from w2v_ray import stores
from w2v_ray.errors import ConfigError
from w2v_ray.schema import DAMAGE_KEY, ITEM, READ
from w2v_ray.stages.decode_audio import DecodeAudio, DecodeAudioConfig
from w2v_ray.stages.read_audio import ReadAudio, ReadAudioConfig

DATA = bytes(range(256)) * 8


def items(*rows: dict[str, Any]) -> pa.Table:
    named = [{"shard_id": "s", "item_index": i, "recording_id": str(i)} for i in range(len(rows))]
    return pa.Table.from_pylist([name | row for name, row in zip(named, rows, strict=True)], ITEM)


def read(table: pa.Table, **changes: Any) -> list[tuple[bytes | None, str | None]]:
    """The bytes and the error message of each row."""
    result = ReadAudio(ReadAudioConfig(**changes))(table)
    assert result.select(table.column_names).equals(table)
    assert [result.schema.field(field.name) for field in READ] == READ
    for error in result["error"].to_pylist():
        assert error is None or (error["stage"], error["error_class"]) == ("read_audio", "ReadError")
    errors = [error and error["message"] for error in result["error"].to_pylist()]
    return list(zip(result["audio_bytes"].to_pylist(), errors, strict=True))


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("s3")


def test_every_item_gets_its_bytes_or_its_reason(root: str) -> None:
    uri = stores.join(root, "a.wav")
    stores.publish(uri, DATA)
    results = read(
        items(
            {"uri": uri, "byte_size": len(DATA)},
            {"uri": uri, "byte_offset": 100, "byte_size": 50},
            {"uri": uri},
            {"uri": stores.join(root, "gone.wav"), "byte_size": 10},
            {"uri": stores.join(root, "never.wav")},
            {"uri": uri, "byte_size": len(DATA) - 1},
            {"uri": uri, "byte_size": len(DATA) + 1},
            {"uri": uri, "byte_offset": len(DATA) - 10, "byte_size": 20},
            {"uri": "http://169.254.169.254/secret", "byte_size": 1},
            {"uri": "http://host/a.wav", "byte_size": 1},
        )
    )
    assert [data for data, _ in results] == [DATA, DATA[100:150], DATA, *[None] * 7]
    complaints = [
        "gone.wav' does not",
        "never.wav' does not",
        "2047 were",
        "2049 were",
        "20 were",
        "link-local",
        "only with --allow-http",
    ]
    for (_, message), complaint in zip(results[3:], complaints, strict=True):
        assert complaint in (message or "")
        assert "\n" not in (message or "")
    assert [message for _, message in results[:3]] == [None] * 3


def test_a_damaged_tar_is_rejected_with_what_planning_found(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(DATA)
    plain = {"uri": str(tmp_path / "t.tar"), "byte_size": len(DATA)}
    said = {"text": f"we talk of {DAMAGE_KEY} here"}
    results = read(
        items(
            plain | {"metadata": json.dumps({DAMAGE_KEY: "'t.tar' is cut off; repair it"})},
            plain | {"metadata": json.dumps(said)},
        )
    )
    assert results == [(None, "'t.tar' is cut off; repair it"), (DATA, None)]


def test_what_is_large_or_shared_stays_in_place(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(DATA)
    a, b = ({"uri": str(tmp_path / name), "byte_size": len(DATA)} for name in ("a.wav", "b.wav"))
    unknown = b | {"byte_size": None}
    ranges = items(a | {"start_s": 0.0, "end_s": 1.0}, a | {"start_s": 1.0}, b | {"end_s": 1.0}, unknown)
    assert read(ranges) == [(None, None), (None, None), (None, None), (DATA, None)]
    assert read(ranges.slice(1, 2)) == [(DATA, None), (DATA, None)]
    assert read(items(a), whole_read_bytes=len(DATA)) == [(DATA, None)]
    assert read(items(a, a | {"byte_size": None}), whole_read_bytes=len(DATA) - 1) == [(None, None)] * 2
    member = a | {"byte_offset": 5, "byte_size": 6}
    assert read(items(a, member), whole_read_bytes=100) == [(None, None), (DATA[5:11], None)]


def test_bytes_and_errors_that_are_there_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(DATA)
    error = {"stage": "elsewhere", "error_class": "ReadError", "message": "no"}
    table = items({"uri": str(tmp_path / "a.wav")}, {"uri": ""}, {"uri": str(tmp_path / "a.wav")})
    table = table.append_column(READ[0], pa.array([None, b"given", None], READ[0].type))
    table = table.append_column(READ[1], pa.array([None, None, error], READ[1].type)).append_column(
        "extra", pa.array([1, 2, 3])
    )
    result = ReadAudio()(table)
    assert result["audio_bytes"].to_pylist() == [DATA, b"given", None]
    assert result["error"].to_pylist() == [None, None, error]
    assert result["extra"].to_pylist() == [1, 2, 3]


def test_no_rows_are_no_rows() -> None:
    result = ReadAudio()(items())
    assert result.num_rows == 0
    assert result.schema.field("audio_bytes") == READ[0]


def test_items_are_fetched_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(4, timeout=10)  # breaks unless four wait for each other

    def read_range(uri: str, offset: int | None, size: int | None, *, version: str | None) -> bytes:
        together.wait()
        return uri.encode()

    monkeypatch.setattr(stores, "read_range", read_range)
    rows = [{"uri": f"/{number}.wav", "byte_size": 1} for number in range(8)]
    assert read(items(*rows), num_threads=4) == [(f"/{number}.wav".encode(), None) for number in range(8)]


def test_an_unforeseen_error_costs_one_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_range(uri: str, offset: int | None, size: int | None, *, version: str | None) -> bytes:
        if uri == "/1.wav":
            raise RuntimeError("a\nsurprise")
        return b"x"

    monkeypatch.setattr(stores, "read_range", read_range)
    results = read(items(*({"uri": f"/{number}.wav", "byte_size": 1} for number in range(3))))
    assert [data for data, _ in results] == [b"x", None, b"x"]
    assert "'/1.wav' cannot be read (RuntimeError: a surprise)" in (results[1][1] or "")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(DATA)
    (tmp_path / "a.wav").chmod(0)
    assert "may not be read" in (read(items({"uri": str(tmp_path / "a.wav"), "byte_size": 1}))[0][1] or "")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_threads": 0}, "num_threads is 0, expected 1 to 256; try 8"),
        ({"whole_read_bytes": -1}, "whole_read_bytes is -1, expected from 0"),
        ({"whole_read_bytes": 2 << 30}, "whole_read_bytes is 2147483648"),
    ],
)
def test_settings_have_bounds(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        ReadAudioConfig(**changes)


@pytest.mark.parametrize("kind", ["wav", "flac", "aiff"])
def test_a_range_costs_its_own_bytes(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(1).normal(0, 0.1, 16_000 * 600).astype(np.float32)
    soundfile.write(tmp_path / f"a.{kind}", noise, 16_000)
    uri, size = str(tmp_path / f"a.{kind}"), (tmp_path / f"a.{kind}").stat().st_size
    num_bytes = 0
    pread = os.pread

    def counting(descriptor: int, wanted: int, offset: int) -> bytes:
        nonlocal num_bytes
        data = pread(descriptor, wanted, offset)
        num_bytes += len(data)
        return data

    monkeypatch.setattr(os, "pread", counting)
    row = {"uri": uri, "byte_size": size, "start_s": 300.0, "end_s": 302.0}
    result = DecodeAudio(DecodeAudioConfig())(ReadAudio()(items(row)))
    assert result["error"].to_pylist() == [None]
    samples = np.frombuffer(result["samples"][0].as_py(), np.float32)
    np.testing.assert_allclose(samples, noise[16_000 * 300 : 16_000 * 302], atol=1e-4)
    assert size > 15 << 20
    assert num_bytes <= 4 << 20  # a MiB at the header and at each place that is looked for


def test_values_of_tables_and_files_are_read_together(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sound": [b"one", None, b"three"]}), tmp_path / "t.parquet")
    (tmp_path / "a.wav").write_bytes(DATA)
    value = {"uri": str(tmp_path / "t.parquet"), "container": "parquet:sound"}
    rows = [
        value | {"row": 2},
        {"uri": str(tmp_path / "a.wav"), "byte_size": len(DATA)},
        value | {"row": 0},
        value | {"row": 1},
        value | {"row": 7},
        value | {"row": 0, "container": "zip:sound"},
        value | {"row": 0, "container": "parquet:noise"},
    ]
    results = read(items(*rows))
    assert [data for data, _ in results] == [b"three", DATA, b"one", None, None, None, None]
    complaints = [
        "row 1 of .* has no audio in its column 'sound'",
        "has 3 rows where row 7 was planned: it has changed",
        "is planned as 'zip:sound', which is not read here",
        "has no column 'noise'",
    ]
    for (_, message), complaint in zip(results[3:], complaints, strict=True):
        assert re.search(complaint, message or "")


def test_a_value_that_is_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2v_ray.containers.reading.MAX_VALUE_BYTES", 4)
    pq.write_table(pa.table({"sound": [b"four", b"fives"]}), tmp_path / "t.parquet")
    value = {"uri": str(tmp_path / "t.parquet"), "container": "parquet:sound"}
    (data, _), (none, message) = read(items(value | {"row": 0}, value | {"row": 1}))
    assert (data, none) == (b"four", None)
    assert "has 5 bytes where at most 4 are read; give it a file of its own" in (message or "")
    (tmp_path / "t.tgz").write_bytes(gzip.compress(b"0123456789"))
    member = {"uri": str(tmp_path / "t.tgz"), "container": "gzip", "byte_offset": 0}
    results = read(items(member | {"byte_size": 4}, member | {"byte_size": 9}))
    assert results[0] == (b"0123", None)
    assert "has 9 bytes" in (results[1][1] or "")
