"""Outputs of made-up transcripts by the hundred thousand, and records of runs that never were."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from w2v_ray.plan import records
from w2v_ray.schema import ERROR, ITEM, TRANSCRIPT, WORD
from w2v_ray.stages.write_parquet import WriteParquet, WriteParquetConfig

WORDS = [
    "about", "after", "again", "all", "and", "are", "because", "been", "but", "come", "could", "do", "down",
    "first", "for", "from", "go", "good",
]  # fmt: skip
ROWS_PER_RECORDING = 4


def large_output(output: Path, num_rows: int, *, rows_per_shard: int = 5000, seed: int = 0) -> str:
    """Publishes transcripts of recordings in four segments each, of which every hundredth fails.

    The metadata of each says who speaks, one of 60, and what: about one word of fourteen is recognised wrong.
    """
    fingerprint = records.claim_output(str(output), {"model": "m"})
    generator = np.random.default_rng(seed)
    shards = [_shard(place, rows_per_shard, generator) for place in range(num_rows // rows_per_shard)]
    firsts = [shard.filter(pc.equal(shard.column("segment_index"), 0)) for shard in shards]
    assert records.publish_plan(str(output), _in_schema(pa.concat_tables(firsts), ITEM), 1)
    write = WriteParquet(WriteParquetConfig(output=str(output), job_fingerprint=fingerprint))
    schema = pa.schema(
        [
            *TRANSCRIPT,
            *(ITEM.field(name) for name in ("byte_size", "planned_s", "generation")),
            pa.field("error", ERROR),
        ]
    )
    for shard in shards:
        write(_in_schema(shard, schema))
    return str(output)


def _in_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema; null where the table has none."""
    arrays = [
        table.column(field.name) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(arrays, names=schema.names).cast(schema)


def _shard(place: int, num_rows: int, generator: np.random.Generator) -> pa.Table:
    """The rows of a shard, with all that a plan says of each row's recording."""
    size = num_rows // ROWS_PER_RECORDING
    item = np.repeat(np.arange(size), ROWS_PER_RECORDING)
    index = np.tile(np.arange(ROWS_PER_RECORDING), size)
    seconds = np.round(generator.gamma(4.0, 1.3, num_rows) + 0.4, 3)
    start_s = index * 20.0
    num_words = (seconds * np.maximum(generator.normal(2.4, 0.4, num_rows), 0)).astype(int)
    offsets = np.concatenate([[0], np.cumsum(num_words)])
    said = generator.integers(len(WORDS), size=offsets[-1])
    is_wrong = generator.random(offsets[-1]) < 0.07
    heard = np.where(is_wrong, generator.integers(len(WORDS), size=offsets[-1]), said)
    sure = np.where(is_wrong, generator.beta(5, 3, offsets[-1]), generator.beta(14, 0.8, offsets[-1]))
    row_of = np.repeat(np.arange(num_rows), num_words)
    word_start_s = start_s[row_of] + 0.4 * (np.arange(offsets[-1]) - offsets[row_of])
    words = {
        "word": pa.array(np.array(WORDS)[heard]),
        "start_s": pa.array(word_start_s),
        "end_s": pa.array(word_start_s + 0.3),
        "confidence": pa.array(sure.astype(np.float32)),
    }
    spans = pa.StructArray.from_arrays(
        [words.get(field.name, pa.nulls(len(sure), field.type)) for field in WORD], fields=list(WORD)
    )
    sums = np.concatenate([[0.0], np.cumsum(sure)])
    confidence = (sums[offsets[1:]] - sums[offsets[:-1]]) / np.maximum(num_words, 1)
    names = [f"/archive/{place:05}/{number:05}.flac" for number in item]
    spoken = [
        " ".join(WORDS[word] for word in said[offsets[first] : offsets[first + ROWS_PER_RECORDING]])
        for first in range(0, num_rows, ROWS_PER_RECORDING)
    ]
    is_failed = (item % 25 == 7) & (index == 3)
    reasons = np.where(item % 3 == 0, "TooShortError", "EncodeError")
    error = [pa.array(np.full(num_rows, "encode")), pa.array(reasons), pa.array(np.full(num_rows, "made to"))]
    columns: dict[str, Any] = {
        "shard_id": np.full(num_rows, f"{place:020x}"),
        "item_index": item,
        "recording_id": names,
        "uri": names,
        "fingerprint": [f"{place:016x}{number:016x}" for number in item],
        "metadata": [json.dumps({"speaker": f"s{number % 60}", "text": spoken[number]}) for number in item],
        "planned_s": np.add.reduceat(seconds, np.arange(0, num_rows, ROWS_PER_RECORDING))[item],
        "generation": np.ones(num_rows),
        "segment_id": [f"{name}@{where}" for name, where in zip(names, index, strict=True)],
        "segment_index": index,
        "start_s": start_s,
        "end_s": start_s + seconds,
        "duration_s": seconds,
        "text": [" ".join(WORDS[word] for word in heard[begin:end]) for begin, end in pairwise(offsets)],
        "words": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), spans),
        "confidence": pa.array(confidence.astype(np.float32), mask=num_words == 0),
        "codec": np.where(item % 3 == 0, "FLAC/PCM_16", "mp3/mp3"),
        "sample_rate_hz": np.full(num_rows, 16_000),
        "decode_status": np.full(num_rows, "ok"),
        "audio_notes": pa.array([["clipped"] if number % 97 == 0 else [] for number in item]),
        "error": pa.StructArray.from_arrays(error, fields=list(ERROR), mask=pa.array(~is_failed)),
    }
    return pa.table(columns)


def run_record(number: int, *, drifted: bool = False, points: int = 80, **changes: Any) -> dict[str, Any]:
    """A record of the run of one night."""
    generator = np.random.default_rng(number)
    started = datetime(2026, 11, 1, 1, 30, tzinfo=UTC) + timedelta(days=number)
    wall_s = 1800.0
    times = np.linspace(0, wall_s, points)
    peak = 60.0 + 4 * generator.normal()
    delays = {
        "read_audio": 0,
        "decode_audio": 8,
        "segment_audio": 12,
        "encode": 60,
        "decode_text": 75,
        "write_parquet": 90,
    }
    wobble = np.cumsum(np.maximum(generator.normal(1.0, 0.25, len(times)), 0.05))
    done = {
        stage: np.interp(
            times - delay, times, (wobble - wobble[0]) / (wobble[-1] - wobble[0]) * wall_s * peak, left=0.0
        )
        for stage, delay in delays.items()
    }
    middle = 0.93 + 0.006 * generator.normal() - 0.08 * drifted
    record = {
        "schema_version": 1,
        "run": f"{started:%Y%m%dT%H%M%SZ}-{number:06x}",
        "state": "done",
        "command": "transcribe",
        "task": "transcribe",
        "started_at": started.isoformat(timespec="milliseconds"),
        "updated_at": (started + timedelta(seconds=wall_s)).isoformat(timespec="milliseconds"),
        "ended_at": (started + timedelta(seconds=wall_s)).isoformat(timespec="milliseconds"),
        "wall_s": wall_s,
        "error": None,
        "versions": {"w2v_ray": "0.1.0", "ray": "2.60.0", "torch": "2.11.0", "python": "3.12.3"},
        "totals": {
            "audio_s": wall_s * peak,
            "num_rows": 20_000 + number,
            "num_rejects": 80 + number,
            "rejected_s": 9.5,
        },
        "stages": {
            stage: {"busy_s": wall_s * share, "items": 20_000, "audio_s": wall_s * peak}
            for stage, share in zip(delays, (0.9, 2.1, 0.3, 7.7, 3.2, 0.4), strict=True)
        },
        "timeline": [
            {"t_s": float(t), "audio_s": {stage: float(values[n]) for stage, values in done.items()}}
            for n, t in enumerate(times)
        ],
        "quality": {
            "confidence": {
                "mean": middle - 0.01,
                "p10": middle - 0.1,
                "p50": middle,
                "p90": min(middle + 0.05, 1.0),
            },
            "speech_rate_wps": 2.4 + 0.05 * generator.normal(),
            "segment_s": {"mean": 5.5, "p50": 5.1 + 0.1 * generator.normal(), "p90": 9.6},
            "reject_rate": 0.004 + 0.0008 * generator.normal(),
        },
    }
    return record | changes


def write_runs(output: Path | str, found: list[dict[str, Any]]) -> None:
    """Puts records of runs beside the rows of an output."""
    folder = Path(output) / "_runs"
    folder.mkdir(exist_ok=True)
    for record in found:
        (folder / f"{record['run']}.json").write_text(json.dumps(record))


def table_of(output: Path | str, table: str) -> pa.Table:
    """What plain readers see of a table: all files of it."""
    return pq.ParquetDataset(Path(output) / table).read()
