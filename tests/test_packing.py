"""A shard as one row and back: every column type that is used, nulls, chunks, slices and nothing at all."""

from __future__ import annotations

import subprocess
import sys
import weakref
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import cloudpickle

from w2v_ray.packing import PackedStage, PackedTables, pack, unpack
from w2v_ray.schema import (
    ALIGNED_CHARACTER,
    ALIGNED_WORD,
    ALIGNMENT,
    CHARACTER,
    DECODED,
    ENCODED,
    ERROR,
    ITEM,
    KEPT,
    READ,
    SEGMENT,
    TRANSCRIPT,
    WORD,
)
from w2v_ray.stages.decode_audio import DecodeAudio, DecodeAudioConfig
from w2v_ray.stages.read_audio import ReadAudio
from w2v_ray.stages.segment_audio import SegmentAudio, SegmentAudioConfig

ERROR_VALUE = {"stage": "decode_audio", "error_class": "DecodeError", "message": "no audio"}

TIMES = {"start_s": 0.5, "end_s": 1.0}

# Two values of each type that travels in a shard, apart from null.
VALUES: dict[pa.DataType, list[Any]] = {
    pa.string(): ["", "näive 音"],
    pa.int32(): [-1, 2],
    pa.int64(): [0, 2**40],
    pa.float32(): [0.5, -2.0],
    pa.float64(): [1e300, -0.1],
    pa.bool_(): [True, False],
    pa.large_binary(): [b"", b"\x00\xff" * 50],
    ERROR: [ERROR_VALUE, {"stage": None, "error_class": "", "message": None}],
    pa.list_(pa.string()): [[], ["clipped", "silent"]],
    pa.list_(WORD): [[], [{"word": "a", "confidence": 0.25, "start_frame": 3} | TIMES] * 2],
    pa.list_(CHARACTER): [[{"char": "a", "confidence": 0.25, "end_frame": 4} | TIMES], []],
    pa.list_(ALIGNED_WORD): [[{"word": "a", "score": None, "aligned": False} | TIMES], []],
    pa.list_(ALIGNED_CHARACTER): [[], [{"char": "a", "score": 0.5, "aligned": True} | TIMES] * 2],
}
COLUMNS = [*ITEM, *READ, *DECODED, *SEGMENT, *ENCODED, *KEPT, *TRANSCRIPT, *ALIGNMENT]
TYPES = sorted({field.type for field in COLUMNS}, key=str)


def test_all_types_of_the_schema_are_tried() -> None:
    assert set(TYPES) == set(VALUES)


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_every_type_comes_back(type_: pa.DataType) -> None:
    first, second = VALUES[type_]
    table = pa.table({"x": pa.array([first, None, second, second, None], type_), "row": [0, 1, 2, 3, 4]})
    packed = pack(table)
    assert packed.num_rows == 1
    assert packed.schema.field("x").type == pa.large_list(type_)
    assert unpack(packed) == table
    assert unpack(packed)["x"].type == type_


def shard(name: str, rows: int) -> pa.Table:
    return pa.table(
        {
            "shard_id": pa.array([name] * rows, pa.string()),
            "samples": pa.array([f"{name}{i}".encode() * i for i in range(rows)], pa.large_binary()),
            "error": pa.array([None if i % 3 else ERROR_VALUE for i in range(rows)], ERROR),
            "words": pa.array([VALUES[pa.list_(WORD)][1][: i % 3] for i in range(rows)], pa.list_(WORD)),
        }
    )


def test_no_rows_keep_their_types() -> None:
    table = shard("a", 4).slice(0, 0)
    assert unpack(pack(table)) == table
    without_chunks = table.schema.empty_table()
    assert without_chunks["samples"].num_chunks in (0, 1)
    assert unpack(pack(without_chunks)).schema == table.schema
    none = pa.table({"x": pa.chunked_array([], pa.string())})
    assert unpack(pack(none)) == none


def test_columns_of_nulls_come_back() -> None:
    for type_ in TYPES:
        table = pa.table({"x": pa.nulls(3, type_)})
        assert unpack(pack(table)) == table


def test_several_chunks() -> None:
    table = pa.concat_tables([shard("a", 3), shard("b", 1), shard("c", 0), shard("d", 5)])
    assert table["samples"].num_chunks == 4
    assert unpack(pack(table)) == table


def test_a_slice_packs_its_own_rows() -> None:
    table = shard("a", 20)
    for part in (table.slice(5, 7), table.slice(19), table.slice(20)):
        assert unpack(pack(part)) == part
    many = pa.concat_tables([table, table]).slice(15, 10)
    assert unpack(pack(many)) == many


def test_one_row_of_a_block_of_packed_shards() -> None:
    shards = [shard("a", 3), shard("b", 0), shard("c", 6)]
    block = pa.concat_tables([pack(table) for table in shards])
    for combined in (block, block.combine_chunks()):
        for row, table in enumerate(shards):
            assert unpack(combined.slice(row, 1)) == table


@pytest.mark.parametrize("rows", [0, 2])
def test_another_number_of_rows_is_refused(rows: int) -> None:
    with pytest.raises(
        ValueError, match=f"a packed table has one row, this one has {rows}; pass rows one at a"
    ):
        unpack(pa.concat_tables([pack(shard("a", 2))] * 2).slice(0, rows))


@settings(max_examples=50, deadline=None)
@given(
    data=st.data(),
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    types=st.lists(st.sampled_from(TYPES), min_size=1, max_size=5),
)
def test_any_table_comes_back(data: st.DataObject, lengths: list[int], types: list[pa.DataType]) -> None:
    chunks = []
    for length in lengths:
        columns = {}
        for number, type_ in enumerate(types):
            values = st.lists(st.sampled_from([None, *VALUES[type_]]), min_size=length, max_size=length)
            columns[f"c{number}"] = pa.array(data.draw(values), type_)
        chunks.append(pa.table(columns))
    table = pa.concat_tables(chunks)
    start = data.draw(st.integers(0, table.num_rows))
    table = table.slice(start, data.draw(st.integers(0, table.num_rows)))
    assert unpack(pack(table)) == table


def test_a_packed_stage_does_what_the_stage_does() -> None:
    table = shard("a", 5)
    longer = PackedStage(lambda rows: pa.concat_tables([rows, rows]))(pack(table))
    assert longer.num_rows == 1
    assert unpack(longer) == pa.concat_tables([table, table])


def test_unpacking_one_chunk_copies_nothing() -> None:
    packed = pack(pa.table({"samples": pa.array([b"x" * 1_000_000] * 8, pa.large_binary())}))
    before = pa.total_allocated_bytes()
    table = unpack(packed)
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert table.num_rows == 8


@pytest.mark.parametrize(
    "stage",
    [ReadAudio(), DecodeAudio(DecodeAudioConfig()), SegmentAudio(SegmentAudioConfig())],
    ids=lambda stage: type(stage).__name__,
)
def test_workers_before_the_encoder_do_not_import_torch(stage: Any) -> None:
    load = "import pickle, sys; pickle.load(sys.stdin.buffer); print('torch' in sys.modules)"
    pickled = cloudpickle.dumps(PackedStage(stage))
    result = subprocess.run([sys.executable, "-c", load], input=pickled, capture_output=True, check=True)
    assert result.stdout.decode().strip() == "False"


def test_packed_tables_are_made_one_at_a_time_and_again() -> None:
    tables = PackedTables(lambda: (pa.table({"number": [number, number]}) for number in range(5)))
    for _ in range(2):  # as Ray does
        seen: list[weakref.ref[pa.Table]] = []
        numbers = []
        for packed in tables:
            seen.append(weakref.ref(packed))
            numbers.append(unpack(packed)["number"].to_pylist())
            assert sum(ref() is not None for ref in seen) == 1
        assert numbers == [[number, number] for number in range(5)]
