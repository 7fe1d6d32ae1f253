"""Outputs of rows that a test says, published by what publishes those of a job."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from w2v_ray.plan import records
from w2v_ray.schema import ERROR, ITEM, TABLE_OF_TASK, TABLES
from w2v_ray.stages.write_parquet import WriteParquet, WriteParquetConfig

Row = dict[str, Any]

WORD_S = 0.3


def spoken(text: str, start_s: float, *, confidence: float = 0.75) -> list[Row]:
    """Words of a third of a second, and a gap of a tenth between them."""
    return [
        {
            "word": word,
            "start_s": start_s + number * (WORD_S + 0.1),
            "end_s": start_s + number * (WORD_S + 0.1) + WORD_S,
            "confidence": confidence,
        }
        for number, word in enumerate(text.split())
    ]


def segment(text: str, start_s: float, end_s: float, **values: Any) -> Row:
    """A row of transcripts whose words begin a tenth of a second after it does."""
    confidence = values.get("confidence", 0.75)
    words = spoken(text, start_s + 0.1, confidence=confidence or 0.0)
    row = {"text": text, "start_s": start_s, "end_s": end_s, "words": words, "confidence": confidence}
    return {"duration_s": end_s - start_s} | row | values


def failed(start_s: float | None, end_s: float | None, message: str = "no audio") -> Row:
    """A row that failed; without times, an item that did."""
    error = {"stage": "decode_audio", "error_class": "DecodeError", "message": message}
    return {"start_s": start_s, "end_s": end_s, "error": error}


def item(recording_id: str, rows: Sequence[Row], **values: Any) -> Row:
    """An item of the plan, with the rows that it became."""
    known = {"recording_id": recording_id, "uri": recording_id, "planned_s": 60.0, "generation": 1}
    return known | values | {"rows": rows}


def made_output(
    output: Path | str,
    shards: Sequence[Sequence[Row]],
    *,
    table: str = "transcripts",
    also: tuple[str, ...] = (),
    unpublished: Sequence[int] = (),
    number: int = 1,
    types: Mapping[str, pa.DataType] | None = None,
) -> str:
    """Plans shards of items, in their order, publishes all but some, and returns the output.

    Another plan of the same output has another number. Types are of columns whose type is the model's.
    Rows are of the tasks in ``also`` as well.
    """
    (task,) = [task for task, name in TABLE_OF_TASK.items() if name == table]
    job: dict[str, records.Json] = {"model": "m"} | ({} if task == "transcribe" else {"task": task})
    if also:
        job["also"] = list(also)
    beside = tuple(TABLE_OF_TASK[name] for name in also)
    fingerprint = records.claim_output(str(output), job)
    names = [f"{number - 1:010x}{place:010x}" for place in range(len(shards))]
    planned = [
        entry | {"shard_id": name, "item_index": index, "fingerprint": f"{name}-{index}"}
        for name, items in zip(names, shards, strict=True)
        for index, entry in enumerate(items)
    ]
    assert records.publish_plan(str(output), pa.Table.from_pylist(planned, ITEM), number)
    columns = [field for name in (table, *beside) for field in TABLES[name]]
    needed = [pa.field("segment_id", pa.string()), pa.field("segment_index", pa.int32())]
    fields = {field.name: field for field in [*ITEM, *needed, *columns, pa.field("error", ERROR)]}
    fields |= {name: pa.field(name, type_) for name, type_ in (types or {}).items()}
    config = WriteParquetConfig(output=str(output), job_fingerprint=fingerprint, table=table, also=beside)
    write = WriteParquet(config)
    for place, name in enumerate(names):
        if place in unpublished:
            continue
        rows = [
            entry
            | {"start_s": None, "end_s": None}
            | row
            | {"segment_index": index, "segment_id": segment_id}
            for entry in planned
            if entry["shard_id"] == name
            for index, row in enumerate(entry["rows"])
            for segment_id in [
                f"{entry['recording_id']}@{row['start_s']}" if row["start_s"] is not None else None
            ]
        ]
        write(pa.Table.from_pylist(rows, pa.schema(list(fields.values()))))
    return str(output)


def metadata(**values: object) -> str:
    return json.dumps(values, ensure_ascii=False)


LONG, UNICODE, BROKEN = "/archive/a/long.wav", "/archive/b/Über straße.wav", "/archive/b/broken.mp3"
PARTIAL, SILENT, MEMBER = "/archive/partial.ogg", "/archive/silent.flac", "/archive/x.tar#m/1.flac"
LATE = "/archive/z/late.wav"

# An example. The plan: a long recording lies in three shards, with others beside it.
SHARDS: list[list[Row]] = [
    [
        item(LONG, [segment("it begins here", 0.0, 20.5), segment("and goes on", 20.5, 40.0)]),
        item(
            UNICODE,
            [segment('"naïve" <b>ÆØÅ</b> R&D -->', 0.0, 9.0)],
            metadata=metadata(speaker="Ada L", text="x"),
        ),
        item(BROKEN, [failed(None, None, "no codec here knows it")]),
    ],
    [
        item(LONG, [segment("in the middle", 40.0, 61.25)]),
        item(PARTIAL, [segment("first half", 0.0, 30.0, confidence=0.25), failed(30.0, 60.0, "too loud")]),
        item(SILENT, [segment("", 0.0, 12.0, confidence=None)]),
    ],
    [
        item(MEMBER, [segment("from a tar", 0.0, 5.0)], uri="/archive/x.tar", byte_offset=512, byte_size=9),
        item(LONG, [segment("the end", 61.25, 80.0)]),
    ],
    [item(LATE, [segment("not there", 0.0, 5.0)])],
]
EXPORTED = [LONG, UNICODE, PARTIAL, SILENT, MEMBER]


def rows_of(recording_id: str) -> list[Row]:
    """What was made of a recording, in its order."""
    return [
        row
        for shard in SHARDS
        for entry in shard
        if entry["recording_id"] == recording_id
        for row in entry["rows"]
        if "error" not in row
    ]


def times_of(recording_id: str, *, factor: int = 1000) -> list[tuple[int, int, str]]:
    return [
        (round(word["start_s"] * factor), round(word["end_s"] * factor), word["word"])
        for row in rows_of(recording_id)
        for word in row["words"]
    ]


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
