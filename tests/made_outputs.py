"""Archives and outputs: real speech; made-up rows in real plans and shards that the real stage publishes."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from w2v_ray import JobConfig, demo, stores
from w2v_ray.parts import parquet_table
from w2v_ray.plan import Plan, make_plan
from w2v_ray.schema import ERROR, ITEM, KEPT, LABEL, TRANSCRIPT
from w2v_ray.stages.write_parquet import WriteParquet, WriteParquetConfig

JOB: dict[str, Any] = {"model": "m", "shard_seconds": 100.0}
Failing = Collection[str] | Callable[[Mapping[str, Any]], bool]
SCHEMA = pa.schema(
    [
        *TRANSCRIPT,
        *(ITEM.field(name) for name in ("byte_size", "planned_s", "generation")),
        *KEPT,
        *(LABEL.field(name) for name in ("label", "score", "labels")),
        pa.field("error", ERROR),
    ]
)


def write_archive(folder: Path, contents: Mapping[str, str], *, seconds: float = 30.0) -> str:
    """Silence with these texts after it, and a manifest with the length of each: of ``long...`` 250 s."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, content in contents.items():
        length = 250.0 if name.startswith("long") else seconds
        data = silence(length, content.encode())
        if not (folder / name).exists() or (folder / name).stat().st_size != len(data):
            (folder / name).write_bytes(data)
        lines.append({"audio_filepath": name, "id": name, "duration": length, "kind": name[:1]})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    return str(manifest)


def write_speech(
    folder: Path | str, names: Iterable[str], *, seconds: float = 2.0, broken: Iterable[str] = ()
) -> str:
    """The beginning of some clip of real speech for each name, as FLAC, in a folder that may lie in a store.

    Returns:
        The manifest of them, in the order of the names, and of those whose files are ``broken``.
    """
    import soundfile

    clips = [clip for clip in sorted(demo.ARCHIVE.glob("*.flac")) if soundfile.info(clip).duration >= seconds]
    lines = []
    for name in names:
        clip = clips[zlib.crc32(name.encode()) % len(clips)]
        samples, rate = soundfile.read(
            clip, frames=round(seconds * soundfile.info(clip).samplerate), dtype="int16"
        )
        file = io.BytesIO()
        soundfile.write(file, samples, rate, format="FLAC")
        stores.publish(stores.join(str(folder), f"{name}.flac"), file.getvalue())
        lines.append({"audio_filepath": f"{name}.flac", "id": name, "duration": len(samples) / rate})
    for name in broken:
        stores.publish(stores.join(str(folder), f"{name}.flac"), b"nothing that decodes")
        lines.append({"audio_filepath": f"{name}.flac", "id": name, "duration": seconds})
    manifest = stores.join(str(folder), "manifest.jsonl")
    stores.publish(manifest, "\n".join(map(json.dumps, lines)).encode())
    return manifest


def rows_of(output: Path | str, table: str = "transcripts") -> list[dict[str, Any]]:
    """What plain Parquet readers see of a table, in the order of recordings; nothing where there is none."""
    folder = stores.join(str(output), table)
    parts = [
        parquet_table(stores.read_bytes(stores.join(folder, name))) for name in stores.list_names(folder)
    ]
    if not parts:
        return []
    order = [("recording_id", "ascending"), ("start_s", "ascending")]
    return pa.concat_tables(parts).sort_by(order).to_pylist()


def without_places(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows without what depends on shards and on where files lie; of ids the last part stays."""
    names = ("recording_id", "segment_id", "uri")
    return [
        {name: value for name, value in row.items() if name not in ("shard_id", "item_index")}
        | {name: row[name] and row[name].rpartition("/")[2] for name in names}
        for row in rows
    ]


def silence(seconds: float, rest: bytes = b"") -> bytes:
    """A WAV file of 8 bits at 1 kHz."""
    size = round(seconds * 1000)
    header = (
        b"RIFF"
        + struct.pack("<I", 36 + size)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, 1000, 1000, 1, 8)
    )
    return header + b"data" + struct.pack("<I", size) + bytes(size) + rest


def plan(inputs: str, output: Path | str, *, on_change: str = "refuse", **changes: Any) -> Plan:
    job = JOB | changes
    seconds = float(job["shard_seconds"])
    return make_plan([inputs], str(output), shard_seconds=seconds, job=job, on_change=on_change)


def made_rows(item: Mapping[str, Any], *, failing: Failing = ()) -> list[dict[str, Any]]:
    """One to three segments for an item, a function of the item; of those in ``failing`` the last fails."""
    kept = {name: item[name] for name in SCHEMA.names if name in item}
    begin_s = item["start_s"] or 0.0
    count = 1 + zlib.crc32(f"{item['recording_id']}{begin_s}{item['byte_size']}".encode()) % 3
    count = count if item["planned_s"] else 1
    length_s = item["planned_s"] / count
    rows = []
    for index in range(count):
        start_s = begin_s + index * length_s
        rows.append(
            kept
            | {
                "segment_id": f"{item['recording_id']}@{round(start_s * 1000)}",
                "segment_index": index,
                "start_s": start_s,
                "end_s": start_s + length_s,
                "duration_s": length_s,
                "text": f"{item['recording_id']} {item['byte_size']} {item['version']}",
                "words": [],
                "label": f"label of {index}",
            }
        )
    if failing(item) if callable(failing) else item["recording_id"] in failing:
        error = {"stage": "encode", "error_class": "EncodeError", "message": "failed"}
        rows[-1] |= {"text": None, "words": None, "error": error}
    return rows


def publish(
    planned: Plan,
    shard_ids: Iterable[str] | None = None,
    *,
    failing: Failing = (),
    table: str = "transcripts",
    also: tuple[str, ...] = (),
    keeps_log_probs: bool = False,
) -> list[dict[str, Any]]:
    """Publishes shards of a plan, all that are pending by default, as the pipeline would."""
    write = WriteParquet(
        WriteParquetConfig(
            output=planned.output,
            job_fingerprint=planned.job_fingerprint,
            table=table,
            also=also,
            keeps_log_probs=keeps_log_probs,
            partition_by=planned.partition_by,
        )
    )
    summaries = []
    for items in planned.shard_tables(list(planned.pending if shard_ids is None else shard_ids)):
        rows = [row for item in items.to_pylist() for row in made_rows(item, failing=failing)]
        summaries += write(pa.Table.from_pylist(rows, SCHEMA)).to_pylist()
    return summaries


def demo_job() -> JobConfig:
    """What the demo does first, into a folder of no meaning."""
    return JobConfig(
        inputs=demo.INPUTS,
        output="out",
        model=str(demo.CHECKPOINT),
        shard_seconds=30,
        keep_log_probs=8,
        also=(f"embed={demo.speaker_checkpoint()}",),
    )
