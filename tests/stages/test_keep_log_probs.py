"""Kept log-probabilities: text decoded from what was kept is the text, and failures stay what they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from w2v_ray.errors import OutputError, ReadError
from w2v_ray.parts import log_probs_files
from w2v_ray.schema import DECODED_TEXT, ENCODED, ERROR, ITEM, KEPT, LOG_PROBS, TRANSCRIPT, error_value
from w2v_ray.stages.decode_text import DecodeText, DecodeTextConfig
from w2v_ray.stages.keep_log_probs import KeepLogProbs, ReadLogProbs, ReadLogProbsConfig
from w2v_ray.stages.write_parquet import WriteParquet, WriteParquetConfig
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

VOCABULARY = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINSHRDLU'"])}
SIZE = len(VOCABULARY)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Wav2Vec2CTCTokenizer:
    (tmp_path / "vocab.json").write_text(json.dumps(VOCABULARY))
    return Wav2Vec2CTCTokenizer(tmp_path / "vocab.json")


def encoded(num_rows: int) -> pa.Table:
    """Segments of noise as encode gives them; one with a NaN, and one that failed before."""
    generator = np.random.default_rng(2)
    rows: list[dict[str, Any]] = []
    for item in range(num_rows):
        frames = int(generator.integers(1, 90))
        scores = generator.normal(size=(frames, SIZE)) * 3
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        if item == 1:
            scores[0] = np.nan
        rows.append(
            {
                "shard_id": "abc123",
                "item_index": item,
                "recording_id": f"r{item}",
                "segment_id": f"r{item}@0",
                "segment_index": 0,
                "start_s": 1.0,
                "end_s": 1.0 + frames / 50,
                "duration_s": frames / 50,
                "planned_s": 2.0,
                "log_probs": scores.astype("<f2").tobytes(),
                "num_frames": frames,
            }
        )
    failed = error_value("read_audio", ReadError("gone"))
    rows.append({"shard_id": "abc123", "item_index": num_rows, "recording_id": "x", "error": failed})
    rows = [row | {"generation": 1} for row in rows]
    names = [*(name for name in TRANSCRIPT.names if name not in (*DECODED_TEXT, "num_frames"))]
    fields = [TRANSCRIPT.field(name) for name in names]
    fields += [ITEM.field(name) for name in ("byte_size", "planned_s", "generation")]
    return pa.Table.from_pylist(rows, pa.schema([*fields, *ENCODED, pa.field("error", ERROR)]))


def publish(output: Path, tokenizer: Wav2Vec2CTCTokenizer, *, count: int) -> pa.Table:
    decode = DecodeText(DecodeTextConfig(tokenizer=tokenizer, seconds_per_frame=0.02))
    table = decode(KeepLogProbs(tokenizer, count=count)(encoded(6)))
    config = WriteParquetConfig(output=str(output), job_fingerprint="job1", keeps_log_probs=True)
    WriteParquet(config)(table)
    return table


def read(output: Path, tokenizer: Wav2Vec2CTCTokenizer, job: str = "job1") -> pa.Table:
    config = ReadLogProbsConfig(source=str(output), job_fingerprint=job, tokenizer=tokenizer)
    return ReadLogProbs(config)(pa.table({"log_probs_file": [kept_file(output)]}))


def kept_file(output: Path) -> str:
    """The file that the shard's rows name, as decoding again finds it."""
    (name,) = log_probs_files(str(output), ["abc123"])
    return name


def test_what_is_read_back_decodes_to_the_same(tmp_path: Path, tokenizer: Wav2Vec2CTCTokenizer) -> None:
    before = publish(tmp_path / "out", tokenizer, count=SIZE).to_pylist()
    again = DecodeText(DecodeTextConfig(tokenizer=tokenizer, seconds_per_frame=0.02))(
        read(tmp_path / "out", tokenizer)
    )
    assert set(LOG_PROBS.names) - {field.name for field in KEPT} <= set(again.column_names)
    for row, other in zip(before, again.to_pylist(), strict=True):
        assert {n: other[n] for n in ("text", "error", "segment_id", "item_index", "num_frames")} == {
            n: row[n] for n in ("text", "error", "segment_id", "item_index", "num_frames")
        }
        times = [[(w["word"], w["start_s"], w["end_s"]) for w in r["words"] or []] for r in (row, other)]
        assert times[0] == times[1]
        assert other["confidence"] == pytest.approx(row["confidence"], abs=1e-3)
    errors = [row["error"] and row["error"]["stage"] for row in again.to_pylist()]
    assert errors == [None, "decode_text", None, None, None, None, "read_audio"]


def test_few_tokens_keep_the_greedy_text(tmp_path: Path, tokenizer: Wav2Vec2CTCTokenizer) -> None:
    before = publish(tmp_path / "out", tokenizer, count=2)
    decode = DecodeText(DecodeTextConfig(tokenizer=tokenizer, seconds_per_frame=0.02))
    again = decode(read(tmp_path / "out", tokenizer))
    assert again.column("text").to_pylist() == before.column("text").to_pylist()


def test_empty_tables(tokenizer: Wav2Vec2CTCTokenizer) -> None:
    kept = KeepLogProbs(tokenizer, count=4)(encoded(3).slice(0, 0))
    assert kept.num_rows == 0
    assert [kept.schema.field(field.name) for field in KEPT] == KEPT


def test_files_that_are_gone_or_of_another_job_are_refused(
    tmp_path: Path, tokenizer: Wav2Vec2CTCTokenizer
) -> None:
    publish(tmp_path / "out", tokenizer, count=4)
    with pytest.raises(OutputError, match="is of job job1, expected job2"):
        read(tmp_path / "out", tokenizer, "job2")
    file = tmp_path / "out" / kept_file(tmp_path / "out")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(OutputError, match=r"part-abc123-\w+\.parquet' cannot be read"):
        read(tmp_path / "out", tokenizer)
    file.unlink()
    with pytest.raises(OutputError, match="delete that shard's transcripts and run the job"):
        read(tmp_path / "out", tokenizer)
