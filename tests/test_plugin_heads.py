"""embed(), classify() and label_frames() in somebody's own Ray Data pipeline, and stages one by one."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.data
import soundfile
import torch
from ray.data.expressions import col

from tests.head_checkpoints import LABELS, add_head
from w2v_ray import (
    AutoModelForAudioClassification,
    AutoModelForAudioXVector,
    CheckpointError,
    ConfigError,
    align,
    classify,
    demo,
    embed,
    label_frames,
    stages,
    transcribe,
)
from w2v_ray.encoder_config import ENCODER_FIELDS
from w2v_ray.head_config import HeadConfig
from w2v_ray.heads import find_heads
from w2v_ray.plugin_heads import Options
from w2v_ray.processors import AutoFeatureExtractor
from w2v_ray.schema import EMISSION_DTYPE

pytestmark = pytest.mark.usefixtures("ray_session")
RATE_HZ = 16_000


@pytest.fixture(scope="module")
def heads(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("heads")
    return {task: add_head(tiny_checkpoint, folder / task, task) for task in ("embed", "classify", "frames")}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Two recordings, one of two segments, and one that is no audio."""
    paths = sorted(demo.ARCHIVE.glob("*.flac"))
    samples = [soundfile.read(path, dtype="float32")[0] for path in paths]
    long = np.concatenate([*samples, np.zeros(8_000, np.float32), *samples])
    assert len(long) > 4 * RATE_HZ
    return [
        {"key": "clip", "bytes": paths[0].read_bytes(), "score": 1, "said": "A"},
        {"key": "long", "bytes": wav(long), "score": 2, "said": "A"},
        {"key": "bad", "bytes": b"no audio", "score": 3, "said": "A"},
    ]


def test_every_setting_of_the_encoder_is_an_argument_of_every_function() -> None:
    for names in (signature(transcribe).parameters, signature(align).parameters, Options.__annotations__):
        assert set(ENCODER_FIELDS) - set(names) == set()


@pytest.mark.parametrize("function", [transcribe, align, embed])
def test_settings_of_the_encoder_are_checked_at_once(function: Any) -> None:
    ds = ray.data.from_items([{"uri": "a.wav", "text": "A"}])
    with pytest.raises(ConfigError, match=r"stride_length_s is \(3, 3\), expected .* less than chunk_length"):
        function(ds, model=str(demo.CHECKPOINT), prefix="x_", chunk_length_s=5, stride_length_s=(3, 3))


@pytest.fixture(scope="module")
def found(
    tiny_checkpoint: Path, heads: dict[str, Path], rows: list[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What four functions in one Dataset make of the rows, with operations of Ray Data between them."""
    options: dict[str, Any] = {"max_segment_seconds": 3.0, "num_cpus": 0.1, "deterministic": True}
    ran: list[int] = []

    def count(batch: pa.Table) -> pa.Table:
        ran.append(1)
        return batch

    ds = ray.data.from_items([row | {"said": "A", "key": "gone"} for row in rows[:1]] + rows)
    ds = ds.map_batches(count, batch_format="pyarrow")
    ds = embed(ds, model=str(heads["embed"]), prefix="v_", **options)
    ds = classify(ds, model=str(heads["classify"]), prefix="c_", top_k=2, **options)
    ds = ds.filter(expr=col("key") != "gone")
    ds = label_frames(ds, model=str(heads["frames"]), prefix="f_", **options)
    align_options = {"text_column": "said", "prefix": "a_"}
    ds = align(ds, model=str(tiny_checkpoint), num_cpus=0.1, **align_options).drop_columns(["bytes"])
    assert not ran, "it is lazy"
    found = {row["key"]: row for row in ds.take_all()}
    assert found.keys() == {"clip", "long", "bad"}
    return found


def test_every_column_stays_and_failures_are_told_by_each(found: dict[str, dict[str, Any]]) -> None:
    assert {key: (row["score"], row["said"]) for key, row in found.items()} == {
        "clip": (1, "A"),
        "long": (2, "A"),
        "bad": (3, "A"),
    }
    for prefix in ("v_", "c_", "f_", "a_"):
        assert found["clip"][prefix + "error"] is None
        assert found["bad"][prefix + "error"]["error_class"] == "DecodeError"
        assert found["clip"][prefix + "duration_s"] > 0
        assert found["bad"][prefix + "duration_s"] is None
    assert [word["word"] for word in found["long"]["a_words"]] == ["A"]
    assert found["bad"]["a_words"] is None


def wav(samples: np.ndarray) -> bytes:
    import io

    file = io.BytesIO()
    soundfile.write(file, samples, RATE_HZ, format="WAV", subtype="FLOAT")
    return file.getvalue()


def features_of(samples: np.ndarray, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    extract = AutoFeatureExtractor.from_pretrained(folder)
    found = extract([samples], sampling_rate=RATE_HZ, return_attention_mask=True, return_tensors="pt")
    return found["input_values"], found["attention_mask"]


def segments_of(data: bytes) -> list[tuple[float, np.ndarray]]:
    """The pieces that the encoder takes, by the stages that find them."""
    table = pa.table({"bytes": [data]})
    for stage in (
        stages.TakeAudio(),
        stages.ReadAudio(),
        stages.DecodeAudio(),
        stages.SegmentAudio(stages.SegmentAudioConfig(max_segment_seconds=3.0)),
    ):
        table = stage(table)
    pieces = table.select(["duration_s", "samples"]).to_pylist()
    return [(piece["duration_s"], np.frombuffer(piece["samples"], np.float32)) for piece in pieces]


def test_vectors_are_those_of_the_segments_together(
    heads: dict[str, Path], rows: list[dict[str, Any]], found: dict[str, dict[str, Any]]
) -> None:
    model = AutoModelForAudioXVector.from_pretrained(heads["embed"])
    for row in rows[:2]:
        pieces = segments_of(row["bytes"])
        assert len(pieces) > (row["key"] == "long")
        total = torch.zeros(12)
        for seconds, samples in pieces:
            with torch.inference_mode():
                vector = model(*features_of(samples, heads["embed"])).embeddings[0]
            total += torch.nn.functional.normalize(vector, dim=0) * seconds
        expected = torch.nn.functional.normalize(total, dim=0)
        np.testing.assert_allclose(found[row["key"]]["v_embedding"], expected, atol=1e-4)
        assert found[row["key"]]["v_duration_s"] == pytest.approx(sum(seconds for seconds, _ in pieces))
    assert found["bad"]["v_embedding"] is None


def test_labels_are_those_of_the_mean_score(
    heads: dict[str, Path], rows: list[dict[str, Any]], found: dict[str, dict[str, Any]]
) -> None:
    model = AutoModelForAudioClassification.from_pretrained(heads["classify"])
    total, scores = 0.0, np.zeros(3)
    for seconds, samples in segments_of(rows[1]["bytes"]):
        with torch.inference_mode():
            logits = model(*features_of(samples, heads["classify"])).logits[0]
        scores += logits.softmax(-1).numpy() * seconds
        total += seconds
    best = np.argsort(-scores)[:2]
    assert [entry["label"] for entry in found["long"]["c_labels"]] == [LABELS[i] for i in best]
    np.testing.assert_allclose(
        [entry["score"] for entry in found["long"]["c_labels"]], scores[best] / total, atol=1e-4
    )
    assert found["long"]["c_label"] == LABELS[best[0]]
    assert (found["bad"]["c_label"], found["bad"]["c_labels"]) == (None, None)


def test_turns_are_in_the_time_of_the_recording(
    heads: dict[str, Path], rows: list[dict[str, Any]], found: dict[str, dict[str, Any]]
) -> None:
    (head,) = find_heads(HeadConfig(task="frames"), str(heads["frames"]))
    encode = stages.Encode(stages.EncodeConfig(heads=(head,)))
    for row in rows[:2]:
        pieces = segments_of(row["bytes"])
        starts = np.cumsum([0.0, *(seconds for seconds, _ in pieces)])
        scores = []
        for _, samples in pieces:
            table = pa.table({"samples": pa.array([samples.tobytes()], pa.large_binary()), "error": [None]})
            buffer = encode(table)["frame_scores"][0].as_buffer()
            scores.append(np.frombuffer(buffer, EMISSION_DTYPE).reshape(-1, 3))
        result = found[row["key"]]
        activity = np.array(list(map(list, result["f_activity"])))
        np.testing.assert_allclose(activity, np.concatenate(scores), atol=1e-3)
        assert list(result["f_classes"]) == LABELS
        times = [turn["start_s"] for turn in result["f_turns"]]
        assert times == sorted(times)
        assert times[-1] > starts[-2]
        assert all(turn["end_s"] <= starts[-1] + 1e-6 for turn in result["f_turns"])
        for turn in result["f_turns"]:
            piece = int(np.searchsorted(starts, turn["start_s"] + 1e-6, side="right")) - 1
            frame = round((turn["start_s"] - starts[piece]) / 0.02)
            assert scores[piece][frame, LABELS.index(turn["label"])] > 0.499
    assert found["bad"]["f_turns"] is None
    assert found["bad"]["f_activity"] is None


def test_stages_can_be_used_one_at_a_time(tiny_checkpoint: Path, rows: list[dict[str, Any]]) -> None:
    ds = ray.data.from_items(rows).map_batches(
        stages.TakeAudio(keep=["key"]), batch_size=2, batch_format="pyarrow"
    )
    ds = ds.map_batches(stages.ReadAudio(), batch_format="pyarrow", batch_size=2)
    ds = ds.map_batches(stages.DecodeAudio(), batch_format="pyarrow", batch_size=2)
    seconds = {row["key"]: row["duration_s"] for row in ds.take_all()}
    assert seconds["clip"] > 0
    assert seconds["long"] > 4
    assert seconds["bad"] is None
    ds = ds.map_batches(
        stages.SegmentAudio(stages.SegmentAudioConfig(max_segment_seconds=3.0)),
        batch_format="pyarrow",
        batch_size=2,
    )
    assert [row["key"] for row in ds.take_all()].count("long") > 1


def test_mistakes_are_told_at_once(tiny_checkpoint: Path, heads: dict[str, Path]) -> None:
    ds = ray.data.from_items([{"bytes": b""}])
    with pytest.raises(TypeError, match=r"embed\(\) has no option 'modle'; it has revision"):
        embed(ds, model=str(heads["embed"]), modle="x")  # type: ignore[call-arg]
    with pytest.raises(CheckpointError, match="ForSequenceClassification"):
        classify(ds, model=str(tiny_checkpoint))
    with pytest.raises(ConfigError, match="channel is 'split'"):
        embed(ds, model=str(heads["embed"]), channel="split")
    with pytest.raises(ConfigError, match="onset is 2, expected 0 to 1"):
        label_frames(ds, model=str(heads["frames"]), onset=2.0)
