from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from w2v_ray import stores
from w2v_ray.errors import ConfigError, OutputError
from w2v_ray.parts import content_sha256
from w2v_ray.schema import ERROR, ITEM, REJECT, SCHEMA_VERSION, TRANSCRIPT
from w2v_ray.stages.write_parquet import WriteParquet, WriteParquetConfig

KEPT = [ITEM.field(name) for name in ("byte_size", "planned_s", "generation")]
SCHEMA = pa.schema([*TRANSCRIPT, *KEPT, pa.field("error", ERROR)])
NO = {"stage": "decode_audio", "error_class": "DecodeError", "message": "no audio"}


def segment(item: int, index: int | None, **changes: Any) -> dict[str, Any]:
    """A row as decode_text gives it; without an index, of an item that failed as a whole."""
    row: dict[str, Any] = {
        "shard_id": "abc123",
        "recording_id": f"/r{item}.wav",
        "uri": f"/r{item}.wav",
        "item_index": item,
        "byte_size": 1000 + item,
        "planned_s": 60.0,
        "generation": 2,
        "metadata": '{"speaker": "x"}',
    }
    if index is None:
        return row | {"error": NO} | changes
    word = {"word": "yes", "start_s": 0.5, "end_s": 0.9, "confidence": 0.75}
    words = [word | {"start_frame": 25, "end_frame": 45}]
    row |= {
        "segment_id": f"/r{item}.wav@{index}",
        "segment_index": index,
        "start_s": 20.0 * index,
        "end_s": 20.0 * index + 20,
        "duration_s": 20.0,
        "text": "yes",
        "confidence": 0.75,
        "words": words,
        "characters": None,
        "logit_score": -1.5,
        "lm_score": -2.5,
        "language": "fra",
        "num_frames": 999,
        "sample_rate_hz": 8000,
        "num_channels": 2,
        "codec": "wav/pcm_s16le",
        "channel": 1,
        "decode_status": "ok",
        "audio_notes": ["clipped"],
        "speech_ratio": 0.5,
    }
    return row | changes


ROWS = [
    segment(0, 0),
    segment(0, 1),
    segment(1, None),
    segment(2, 0),
    segment(2, 1, error={"stage": "encode", "error_class": "EncodeError", "message": "failed"}),
    segment(3, 0, text="", confidence=None, words=[]),
]


def write(output: str | Path, rows: list[dict[str, Any]] = ROWS, fingerprint: str = "job1") -> dict[str, Any]:
    table = pa.Table.from_pylist(rows, SCHEMA)
    stage = WriteParquet(WriteParquetConfig(output=str(output), job_fingerprint=fingerprint))
    (summary,) = stage(table).to_pylist()
    assert isinstance(summary, dict)
    return summary


def rejects_of(output: Path) -> Path:
    """The rejects of the shard: the file that its rows name."""
    record = json.loads(footer(output / "transcripts" / "part-abc123.parquet")["w2v_ray.shard"])
    return output / str(record["rejects_file"])


def footer(path: Path) -> dict[str, Any]:
    metadata = {key.decode(): value.decode() for key, value in pq.read_metadata(path).metadata.items()}
    return {key: value for key, value in metadata.items() if key.startswith("w2v_ray.")}


def test_a_shard_is_published_as_rows_and_rejects(tmp_path: Path) -> None:
    summary = write(tmp_path / "out")
    written = list((tmp_path / "out").rglob("*.parquet"))
    assert summary.pop("num_bytes") == sum(path.stat().st_size for path in written)
    quality = json.loads(summary.pop("quality"))
    assert quality["num_words"] == 3
    assert quality["speech_s"] == 40.0  # half of four segments of 20 s
    assert sum(quality["segment_s"]) == 4
    assert quality["confidence"] == [0] * 14 + [3] + [0] * 5  # 0.75 is the end of its bin
    assert summary == {
        "shard_id": "abc123",
        "num_items": 4,
        "num_items_rejected": 2,
        "num_rows": 4,
        "num_rejects": 2,
        "audio_s": 80.0,
        "rejected_s": 80.0,
        "rejects_by_reason": '{"DecodeError": 1, "EncodeError": 1}',
    }
    assert sorted(os.listdir(tmp_path / "out")) == ["_tmp", "rejects", "transcripts"]
    rows = pq.read_table(tmp_path / "out" / "transcripts" / "part-abc123.parquet")
    assert rows.schema.equals(TRANSCRIPT)
    assert rows["segment_id"].to_pylist() == ["/r0.wav@0", "/r0.wav@1", "/r2.wav@0", "/r3.wav@0"]
    expected = {name: value for name, value in ROWS[0].items() if name in TRANSCRIPT.names}
    assert rows.to_pylist()[0] == expected
    rejects = pq.read_table(rejects_of(tmp_path / "out"))
    assert rejects.schema.equals(REJECT)
    assert rejects.to_pylist() == [
        {
            "shard_id": "abc123",
            "item_index": 1,
            "recording_id": "/r1.wav",
            "segment_id": None,
            "channel": None,
            "uri": "/r1.wav",
            "start_s": None,
            "end_s": None,
            "planned_s": 60.0,
            "byte_size": 1001,
            "stage": "decode_audio",
            "error_class": "DecodeError",
            "message": "no audio",
            "attempt": 2,
            "metadata": '{"speaker": "x"}',
        },
        {
            "shard_id": "abc123",
            "item_index": 2,
            "recording_id": "/r2.wav",
            "segment_id": "/r2.wav@1",
            "channel": 1,
            "uri": "/r2.wav",
            "start_s": 20.0,
            "end_s": 40.0,
            "planned_s": 20.0,
            "byte_size": 1002,
            "stage": "encode",
            "error_class": "EncodeError",
            "message": "failed",
            "attempt": 2,
            "metadata": '{"speaker": "x"}',
        },
    ]


def test_the_footer_is_a_record_that_can_be_checked(tmp_path: Path) -> None:
    summary = write(tmp_path)
    found = footer(tmp_path / "transcripts" / "part-abc123.parquet")
    assert found["w2v_ray.schema_version"] == str(SCHEMA_VERSION)
    assert found["w2v_ray.job_fingerprint"] == "job1"
    record = json.loads(found["w2v_ray.shard"])
    sha256 = hashlib.sha256(rejects_of(tmp_path).read_bytes()).hexdigest()
    assert record.pop("rejects_sha256") == sha256
    assert record.pop("rejects_file") == f"rejects/part-abc123-{sha256[:12]}.parquet"
    rows = pq.read_table(tmp_path / "transcripts" / "part-abc123.parquet")
    assert record.pop("rows_sha256") == content_sha256(rows)
    del summary["num_bytes"]
    objects = {name: json.loads(summary[name]) for name in ("rejects_by_reason", "quality")}
    assert record == summary | objects


def test_a_flipped_bit_in_a_published_file_is_found(tmp_path: Path) -> None:
    write(tmp_path, [segment(0, index, text=f"some words {index}" * 20) for index in range(200)])
    path = tmp_path / "transcripts" / "part-abc123.parquet"
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(TRANSCRIPT.names.index("text"))
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match=r"(?i)crc|checksum"):
        pq.read_table(path, page_checksum_verification=True)


def test_the_order_of_the_rows_does_not_depend_on_how_they_come(tmp_path: Path) -> None:
    write(tmp_path / "one")
    shuffled = list(ROWS)
    random.Random(3).shuffle(shuffled)
    write(tmp_path / "other", shuffled)
    paths = [tmp_path / folder / "transcripts" / "part-abc123.parquet" for folder in ("one", "other")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    rejects = [rejects_of(tmp_path / folder) for folder in ("one", "other")]
    assert rejects[0].name == rejects[1].name
    assert rejects[0].read_bytes() == rejects[1].read_bytes()


def test_columns_may_come_in_other_types_and_more_of_them(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS, SCHEMA)
    for name in ("text", "metadata"):
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.large_string()))
    table = table.append_column("samples", pa.nulls(table.num_rows, pa.large_binary()))
    table = table.select(sorted(table.column_names))
    WriteParquet(WriteParquetConfig(output=str(tmp_path / "a"), job_fingerprint="job1"))(table)
    write(tmp_path / "b")
    parts = [tmp_path / name / "transcripts" / "part-abc123.parquet" for name in "ab"]
    assert pq.read_table(parts[0]).equals(pq.read_table(parts[1]))


def test_a_shard_without_rows_is_published_all_the_same(tmp_path: Path) -> None:
    summary = write(tmp_path, [segment(0, None), segment(1, None)])
    assert (summary["num_rows"], summary["num_rejects"], summary["audio_s"]) == (0, 2, 0.0)
    assert pq.read_table(tmp_path / "transcripts").num_rows == 0


def test_a_shard_without_rejects_names_no_rejects_file(tmp_path: Path) -> None:
    summary = write(tmp_path, [segment(0, 0)])
    assert (summary["num_rejects"], summary["rejected_s"], summary["rejects_by_reason"]) == (0, 0.0, "{}")
    record = json.loads(footer(tmp_path / "transcripts" / "part-abc123.parquet")["w2v_ray.shard"])
    assert record["num_rejects"] == 0
    assert "rejects_file" not in record
    assert not (tmp_path / "rejects").exists()


def test_the_first_writer_wins_and_a_slower_one_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stores.publish
    faster = [[segment(0, 0), segment(1, None, error=NO | {"message": "another"})]]

    def publish(path: str, data: bytes, **options: Any) -> bool:
        if "transcripts" in path and faster:
            write(tmp_path, faster.pop())
        return real(path, data, **options)

    monkeypatch.setattr(stores, "publish", publish)
    summary = write(tmp_path)
    assert (summary["num_items"], summary["num_rows"], summary["num_rejects"]) == (2, 1, 1)
    assert pq.read_table(tmp_path / "transcripts").num_rows == 1
    assert [path.name for path in (tmp_path / "rejects").iterdir()] == [rejects_of(tmp_path).name]
    assert pq.read_table(tmp_path / "rejects")["message"].to_pylist() == ["another"]


def test_rows_go_to_the_folder_of_their_partition(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS, SCHEMA)
    config = {"output": str(tmp_path), "job_fingerprint": "job1"}
    for key, folder in [("speaker", "speaker=x"), ("a/b", "a%2Fb=__HIVE_DEFAULT_PARTITION__")]:
        WriteParquet(WriteParquetConfig(**config, partition_by=key))(table)
        assert (tmp_path / "transcripts" / folder / "part-abc123.parquet").exists()


def test_a_published_shard_is_left_as_it_is(tmp_path: Path) -> None:
    first = write(tmp_path)
    path = tmp_path / "transcripts" / "part-abc123.parquet"
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    assert write(tmp_path, [segment(0, 0, text="late")]) == first | {"num_bytes": 0}
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    with pytest.raises(OutputError, match="is of job job1, this is job2"):
        write(tmp_path, fingerprint="job2")
    path.write_bytes(b"PAR1")
    with pytest.raises(OutputError, match="is no part of this output"):
        write(tmp_path)


def test_rejects_are_there_before_the_shard_counts_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = stores.publish

    def publish(path: str, data: bytes, **options: Any) -> bool:
        order.append(Path(path).parent.name)
        if len(order) == 2:
            raise OutputError("the disk is full")
        return real(path, data, **options)

    monkeypatch.setattr(stores, "publish", publish)
    with pytest.raises(OutputError, match="disk is full"):
        write(tmp_path)
    assert order == ["rejects", "transcripts"]
    assert not (tmp_path / "transcripts").exists()
    monkeypatch.undo()
    assert write(tmp_path)["num_rejects"] == 2


def test_writers_at_once_leave_one_shard(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        summaries = list(pool.map(lambda _: write(tmp_path), range(8)))
    assert all(summary | {"num_bytes": 0} == summaries[0] | {"num_bytes": 0} for summary in summaries)
    assert os.listdir(tmp_path / "transcripts") == ["part-abc123.parquet"]
    assert pa.dataset.dataset(tmp_path / "transcripts").to_table().num_rows == 4
    assert os.listdir(tmp_path / "_tmp") == []


def test_stores_take_shards_like_folders(s3: str, tmp_path: Path) -> None:
    assert write(f"{s3}/out") == write(tmp_path / "out")
    rejects = f"rejects/{rejects_of(tmp_path / 'out').name}"
    for name in ("transcripts/part-abc123.parquet", rejects):
        assert stores.read_bytes(f"{s3}/out/{name}") == (tmp_path / "out" / name).read_bytes()
    assert write(f"{s3}/out", [segment(0, 0)])["num_rows"] == 4


def test_outputs_are_found_from_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    stage = WriteParquet(WriteParquetConfig(output="out", job_fingerprint="job1"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    stage(pa.Table.from_pylist(ROWS, SCHEMA))
    assert os.listdir(tmp_path / "out" / "transcripts") == ["part-abc123.parquet"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda rows: [*rows, segment(4, 0, shard_id="other")], "rows of 2 shards"),
        (lambda rows: [], "rows of 0 shards"),
        (lambda rows: [row for row in rows if row["item_index"] != 1], "lacks some of its items"),
    ],
)
def test_a_shard_that_is_not_whole_is_a_bug(
    tmp_path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], complaint: str
) -> None:
    with pytest.raises(AssertionError, match=complaint):
        write(tmp_path, change(ROWS))
    assert not (tmp_path / "transcripts").exists()


def test_settings_are_needed() -> None:
    with pytest.raises(ConfigError, match="output is ''"):
        WriteParquetConfig(output="", job_fingerprint="x")
