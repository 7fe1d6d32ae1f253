"""The alignment stages: the segments of an item become one row, and what fails costs its item alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from w2v_ray.errors import CheckpointError, ConfigError, ReadError
from w2v_ray.schema import ALIGNMENT, ENCODED, ERROR, ITEM, SEGMENT, error_value
from w2v_ray.stages.align_text import AlignText, AlignTextConfig, TakeText

VOCABULARY = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINSHRDLU'"])}
SIZE = len(VOCABULARY)
FRAME_S = 0.5
SCHEMA = pa.schema(
    [
        *(field for field in ITEM if field.name in ("item_index", "start_s", "end_s", "metadata")),
        *SEGMENT,
        ALIGNMENT.field("duration_s"),
        ALIGNMENT.field("text"),
        *ENCODED,
        pa.field("error", ERROR),
        pa.field("mine", pa.int64()),
    ]
)


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "vocab.json").write_text(json.dumps(VOCABULARY))
    return str(tmp_path)


def emission(path: str, probability: float = 0.9) -> bytes:
    """float16 log-probabilities whose best path is ``path``; an underscore is the blank."""
    ids = [VOCABULARY[{"_": "<pad>"}.get(letter, letter)] for letter in path]
    values = np.full((len(ids), SIZE), (1 - probability) / (SIZE - 1))
    values[np.arange(len(ids)), ids] = probability
    return np.log(values).astype("<f2").tobytes()


def segment(
    item: int, index: int, path: str, start_s: float, text: str | None, **changes: Any
) -> dict[str, Any]:
    seconds = len(path) * FRAME_S + 0.1  # some samples after the last frame
    return {
        "item_index": item,
        "segment_id": f"{item}@{index}",
        "segment_index": index,
        "start_s": start_s,
        "end_s": start_s + seconds,
        "duration_s": seconds,
        "text": text,
        "log_probs": emission(path),
        "num_frames": len(path),
        "mine": item,
    } | changes


def align(model: str, rows: list[dict[str, Any]], **options: Any) -> pa.Table:
    stage = AlignText(AlignTextConfig(model=model, seconds_per_frame=FRAME_S, **options))
    return stage(pa.Table.from_pylist(rows, SCHEMA))


def test_the_segments_of_an_item_are_aligned_as_one(model: str) -> None:
    rows = [
        segment(1, 0, "NO", 0.0, "no"),
        segment(0, 1, "_T_|_E_", 12.1, "so no ET te"),
        segment(0, 0, "SO|NO_|E", 8.0, "so no ET te"),
        segment(0, 2, "_", 15.7, "so no ET te"),
        segment(0, 3, "_T_|TE", 16.3, "so no ET te"),
    ]
    table = align(model, rows)
    for name in (
        "text",
        "words",
        "characters",
        "score",
        "ctc_loss",
        "loss_per_label",
        "start_s",
        "num_frames",
    ):
        assert table.schema.field(name) == ALIGNMENT.field(name), name
    assert "log_probs" not in table.column_names
    assert table.column("item_index").to_pylist() == [0, 1]
    assert table.column("mine").to_pylist() == [0, 1]
    first, second = table.to_pylist()
    assert first["error"] is None
    assert (first["start_s"], first["end_s"], first["num_frames"]) == (8.0, pytest.approx(19.4), 22)
    assert first["duration_s"] == pytest.approx(0.1 * 4 + 22 * FRAME_S)
    assert (first["segment_id"], first["segment_index"]) == (None, 0)
    assert [word["word"] for word in first["words"]] == ["so", "no", "ET", "te"]
    assert first["words"][0] == {
        "word": "so",
        "start_s": 8.0,
        "end_s": 9.0,
        "score": pytest.approx(0.9, abs=1e-3),
        "aligned": True,
    }
    # its letters lie in two segments, a gap of some samples between them
    assert (first["words"][2]["start_s"], first["words"][2]["end_s"]) == (11.5, pytest.approx(13.1))
    assert [c["char"] for c in first["characters"]] == list("sonoETte")
    edges = [edge for c in first["characters"] for edge in (c["start_s"], c["end_s"])]
    assert edges == sorted(edges)
    assert second["words"][0]["end_s"] == 1.0
    assert second["loss_per_label"] == pytest.approx(second["ctc_loss"] / 2)
    one_by_one = [align(model, [row for row in rows if row["item_index"] == i]) for i in (0, 1)]
    assert pa.concat_tables(one_by_one).to_pylist() == table.to_pylist()
    assert align(model, rows, num_threads=4).to_pylist() == table.to_pylist()


def test_a_frame_ends_with_its_segment(model: str) -> None:
    row = segment(0, 0, "NO", 2.0, "NO", end_s=2.8)
    (item,) = align(model, [row]).to_pylist()
    assert [c["end_s"] for c in item["characters"]] == [2.5, 2.8]


def test_what_fails_costs_its_item_alone(model: str) -> None:
    failed = error_value("read_audio", ReadError("the file is gone"))
    nothing = {"log_probs": None, "num_frames": None}
    whole = nothing | {
        "error": failed,
        "segment_index": None,
        "start_s": None,
        "end_s": None,
        "duration_s": None,
    }
    table = align(
        model,
        [
            segment(0, 0, "NO", 0.0, "NO"),
            segment(1, 0, "NO", 0.0, "NO SO"),
            segment(1, 1, "SO", 1.1, "NO SO", **nothing, error=failed),
            segment(2, 0, "", 0.0, "NO") | whole,
            segment(3, 0, "NO", 0.0, "NO SO NO"),
            segment(4, 0, "NO", 0.0, "NO", log_probs=b"123"),
            segment(5, 0, "NO", 0.0, "NO", log_probs=None),
            segment(6, 0, "NO", 0.0, "NO", log_probs=np.full((2, SIZE), np.nan, "<f2").tobytes()),
            segment(7, 0, "__", 0.0, ""),
            segment(8, 0, "", 0.0, "NO", log_probs=b"", num_frames=0),
        ],
    )
    errors = table.column("error").to_pylist()
    assert [error and error["error_class"] for error in errors] == [
        None,
        "ReadError",
        "ReadError",
        "AlignError",
        "EncodeError",
        "EncodeError",
        "AlignError",
        None,
        "AlignError",
    ]
    assert "found no speech to align the text with" in errors[8]["message"]
    assert "2 frames and 8 tokens" in errors[3]["message"]
    assert errors[3]["stage"] == "align_text"
    rows = table.to_pylist()
    assert (rows[1]["start_s"], rows[1]["end_s"]) == (0.0, pytest.approx(1.1 + 1.1))
    assert rows[1]["words"] is None
    assert (rows[7]["words"], rows[7]["characters"], rows[7]["score"]) == ([], [], None)
    assert table.schema.equals(align(model, []).schema)


def test_a_tokenizer_of_another_model_stops_the_job(model: str) -> None:
    few = np.zeros((4, SIZE - 1), "<f2").tobytes()
    with pytest.raises(CheckpointError, match=f"the model has {SIZE - 1} outputs"):
        align(model, [segment(0, 0, "NO_S", 0.0, "NO", log_probs=few)])


def items(*metadata: str | None) -> pa.Table:
    return pa.Table.from_pylist([{"item_index": i, "metadata": m} for i, m in enumerate(metadata)], ITEM)


def test_texts_come_from_the_metadata() -> None:
    table = TakeText("said")(
        items('{"said": "yes"}', '{"said": ""}', '{"text": "no"}', '{"said": 7}', '{"said": null}', None)
    )
    assert table.column("text").to_pylist() == ["yes", "", None, None, None, None]
    errors = table.column("error").to_pylist()
    assert [error is None for error in errors] == [True, True, False, False, False, False]
    for error, named in zip(errors[2:5], ("only text", "7", "None"), strict=True):
        assert error["error_class"] == "AlignError"
        assert f"no text under 'said' but {named};" in error["message"]
    assert "no text under 'said' came with this recording; add it" in errors[5]["message"]
    assert TakeText("said")(items()).num_rows == 0


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="seconds_per_frame is nan"):
        AlignTextConfig(model="m", seconds_per_frame=float("nan"))
    with pytest.raises(ConfigError, match="model is ''"):
        AlignTextConfig(model="", seconds_per_frame=0.02)
    with pytest.raises(ConfigError, match="num_threads is 0"):
        AlignTextConfig(model="m", seconds_per_frame=0.02, num_threads=0)


def test_it_needs_no_torch() -> None:
    code = "import sys, w2v_ray.stages.align_text; print('torch' in sys.modules, 'ray' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "False"]
