"""Jobs that embed, classify and label frames: their rows beside the models applied by hand."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from tests.head_checkpoints import LABELS, add_head
from w2v_ray import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    AutoModelForCTC,
    CheckpointError,
    ConfigError,
    JobConfig,
    Wav2Vec2CTCTokenizer,
    demo,
    read_output,
    run,
)
from w2v_ray.head_config import HeadConfig
from w2v_ray.heads import Head, find_heads
from w2v_ray.job import prepare
from w2v_ray.output import audit, current_rows
from w2v_ray.processors import AutoFeatureExtractor
from w2v_ray.schema import ERROR
from w2v_ray.stages.encode import Encode
from w2v_ray.stages.encode_config import EncodeConfig
from w2v_ray.stages.encoder_heads import EncoderHeads


@pytest.fixture(scope="module")
def heads(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("heads")
    return {task: add_head(tiny_checkpoint, folder / task, task) for task in ("embed", "classify", "frames")}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five recordings: four of the demo's, and one too short for the head for speakers."""
    folder = tmp_path_factory.mktemp("clips")
    for path in sorted(demo.ARCHIVE.rglob("*.flac"))[:4]:
        shutil.copy(path, folder)
    noise = np.random.default_rng(0).normal(0, 0.1, 2_000)
    soundfile.write(folder / "short.wav", noise, 16_000)
    return folder


@pytest.fixture(scope="module")
def together(
    clips: Path,
    tiny_checkpoint: Path,
    heads: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    ray_session: None,
) -> str:
    """The output of one pass with all heads, which no test may change."""
    output = str(tmp_path_factory.mktemp("together") / "out")
    job = JobConfig(
        inputs=(str(clips),),
        output=output,
        model=str(tiny_checkpoint),
        also=tuple(f"{task}={folder}" for task, folder in heads.items()),
        top_k=2,
        onset=0.6,
        offset=0.3,
        shard_seconds=10,
    )
    summary = run(job)
    assert (summary.num_rows, summary.num_rejects) == (5, 0)
    return output


def rows_of(output: str, table: str) -> dict[str, dict[str, Any]]:
    """The rows of a table by the name of their recording's file."""
    found = pa.concat_tables(current_rows(output, table)).to_pylist()
    return {Path(row["uri"]).name: row for row in found}


def by_hand(clips: Path, model: Any, folder: Path) -> Iterator[tuple[str, Any, float]]:
    """Each recording through a model alone."""
    extract = AutoFeatureExtractor.from_pretrained(folder)
    for path in sorted(clips.iterdir()):
        samples, rate = soundfile.read(path, dtype="float32")
        assert rate == 16_000
        features = extract([samples], sampling_rate=rate, return_attention_mask=True, return_tensors="pt")
        with torch.inference_mode():
            yield path.name, model(features["input_values"], features["attention_mask"]), len(samples) / rate


def test_every_table_equals_the_models_applied_by_hand(
    together: str, clips: Path, tiny_checkpoint: Path, heads: dict[str, Path]
) -> None:
    embeddings, labels, frames = (rows_of(together, name) for name in ("embeddings", "labels", "frames"))
    for name, output, _ in by_hand(
        clips, AutoModelForAudioXVector.from_pretrained(heads["embed"]), heads["embed"]
    ):
        if name == "short.wav":
            assert embeddings[name]["embedding"] is None
        else:
            expected = torch.nn.functional.normalize(output.embeddings[0], dim=0)
            np.testing.assert_allclose(embeddings[name]["embedding"], expected, atol=1e-4)
            assert np.linalg.norm(embeddings[name]["embedding"]) == pytest.approx(1, abs=1e-5)
    model = AutoModelForAudioClassification.from_pretrained(heads["classify"])
    for name, output, _ in by_hand(clips, model, heads["classify"]):
        scores = output.logits[0].softmax(-1).numpy()
        best = np.argsort(-scores)[:2]
        row = labels[name]
        assert [entry["label"] for entry in row["labels"]] == [LABELS[i] for i in best]
        np.testing.assert_allclose([entry["score"] for entry in row["labels"]], scores[best], atol=1e-4)
        assert (row["label"], row["score"]) == tuple(row["labels"][0].values())
    model = AutoModelForAudioFrameClassification.from_pretrained(heads["frames"])
    num_turns = 0
    for name, output, seconds in by_hand(clips, model, heads["frames"]):
        scores = output.logits[0].sigmoid().numpy()
        row = frames[name]
        assert (row["num_frames"], row["seconds_per_frame"]) == (len(scores), 0.02)
        assert row["classes"] == LABELS
        np.testing.assert_allclose(np.array(row["activity"], np.float32), scores, atol=1e-3)
        expected = turns_by_hand(np.float32(np.float16(scores)), seconds)
        assert [(t["label"], t["start_s"], t["end_s"]) for t in row["turns"]] == [
            (label, pytest.approx(start), pytest.approx(end)) for label, start, end in expected
        ]
        num_turns += len(expected)
    assert num_turns > 5
    assert AutoModelForCTC.from_pretrained(tiny_checkpoint).config.vocab_size == 32
    assert rows_of(together, "transcripts").keys() == embeddings.keys() == labels.keys() == frames.keys()


def turns_by_hand(scores: np.ndarray, seconds: float) -> list[tuple[str, float, float]]:
    """Frame by frame: on from 0.6, off below 0.3."""
    turns = []
    for index, label in enumerate(LABELS):
        start = None
        for frame, score in enumerate([*scores[:, index], 0.0]):
            if start is None and score >= 0.6 and frame < len(scores):
                start = frame
            elif start is not None and score < 0.3:
                turns.append((label, start * 0.02, min(frame * 0.02, seconds)))
                start = None
    return sorted(turns, key=lambda turn: turn[1])


def test_text_is_that_of_the_model_alone(together: str, clips: Path, tiny_checkpoint: Path) -> None:
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(tiny_checkpoint)
    rows = rows_of(together, "transcripts")
    for name, output, _ in by_hand(clips, AutoModelForCTC.from_pretrained(tiny_checkpoint), tiny_checkpoint):
        assert rows[name]["text"] == tokenizer.decode(output.logits[0].argmax(-1).tolist())
    assert any(row["text"] for row in rows.values())


def test_the_mean_of_the_last_layer(clips: Path, tiny_checkpoint: Path) -> None:
    settings = HeadConfig(task="embed")
    encode = Encode(EncodeConfig(heads=find_heads(settings, str(tiny_checkpoint))))
    paths = sorted(clips.iterdir())
    samples = [soundfile.read(path, dtype="float32")[0].tobytes() for path in paths]
    segments = pa.table(
        {"samples": pa.array(samples, pa.large_binary()), "error": pa.nulls(len(paths), ERROR)}
    )
    found = encode(segments)["embedding"].to_pylist()
    for vector, (_, output, _) in zip(
        found, by_hand(clips, AutoModel.from_pretrained(tiny_checkpoint), tiny_checkpoint), strict=True
    ):
        expected = torch.nn.functional.normalize(output.last_hidden_state[0].mean(0), dim=0)
        np.testing.assert_allclose(vector, expected, atol=1e-4)


def test_a_layer_is_pooled_over_the_frames_of_each_recording(
    clips: Path, tiny_checkpoint: Path, tmp_path: Path, ray_session: None
) -> None:
    output = str(tmp_path / "out")
    job = JobConfig(
        inputs=(str(clips),),
        output=output,
        model=str(tiny_checkpoint),
        task="embed",
        pooling="mean+std",
        layer=1,
        embedding_dtype="float16",
    )
    assert run(job).num_rows == 5
    model = AutoModel.from_pretrained(tiny_checkpoint)
    model.config.output_hidden_states = True
    rows = rows_of(output, "embeddings")
    for name, found, _ in by_hand(clips, model, tiny_checkpoint):
        hidden = found.hidden_states[1][0]
        vector = torch.cat([hidden.mean(0), hidden.std(0, unbiased=False)])
        np.testing.assert_allclose(
            rows[name]["embedding"], torch.nn.functional.normalize(vector, dim=0), atol=2e-3
        )
    (part,) = (Path(output) / "embeddings").iterdir()
    assert pq.read_schema(part).field("embedding").type == pa.list_(pa.float16(), 64)
    assert audit(output).is_complete
    assert read_output(output).count() == 5


def test_the_audit_sees_every_table(together: str, tmp_path: Path) -> None:
    found = audit(together)
    assert found.is_complete
    assert found.num_files == 4 * found.num_shards
    output = tmp_path / "out"
    shutil.copytree(together, output)
    one, other = sorted((output / "embeddings").iterdir())[:2]
    one.unlink()
    other.write_bytes(other.read_bytes()[:-1])
    (output / "labels" / one.name).write_bytes(b"of a writer that died")
    findings = {(finding.kind, Path(finding.name).name) for finding in audit(str(output)).findings}
    assert findings == {("missing", one.name), ("damaged", other.name)}
    assert audit(str(output)).num_leftovers == 1


def test_tables_are_read_by_name(together: str, ray_session: None) -> None:
    ds = read_output(together, "labels")
    assert {row["label"] for row in ds.take_all()} <= set(LABELS)
    assert "embedding" in read_output(together, "embeddings").schema().names


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"task": "classify"}, CheckpointError, "needs one whose name ends in ForSequenceClassification"),
        (
            {"task": "embed", "pooling": "xvector"},
            CheckpointError,
            "pooling xvector needs one whose name ends",
        ),
        ({"task": "embed", "pooling": "mean", "layer": 3}, ConfigError, "layer is 3, and model .* has 2"),
        ({"also": ("classify=DEMO",)}, CheckpointError, "ForSequenceClassification"),
        ({"also": ("embed=DEMO",)}, CheckpointError, "another encoder .*hidden_size is 192, not 32"),
    ],
)
def test_what_cannot_be_is_refused_before_any_worker(
    changes: dict[str, Any],
    error: type[Exception],
    words: str,
    clips: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    also = tuple(text.replace("DEMO", str(demo.CHECKPOINT)) for text in changes.pop("also", ()))
    job = JobConfig(
        inputs=(str(clips),), output=str(tmp_path), model=str(tiny_checkpoint), also=also, **changes
    )
    with pytest.raises(error, match=words):
        prepare(job)


def test_other_weights_of_the_same_shape_are_refused(heads: dict[str, Path], tmp_path: Path) -> None:
    model = AutoModelForAudioClassification.from_pretrained(heads["classify"])
    with torch.no_grad():
        model.wav2vec2.encoder.layers[1].feed_forward.output_dense.bias[0] += 1e-3
    model.save_pretrained(tmp_path)
    both = [Head(task="frames", model=str(heads["frames"])), Head(task="classify", model=str(tmp_path))]
    with pytest.raises(CheckpointError, match=r"another encoder than .*output_dense.bias differs"):
        EncoderHeads(both, device=torch.device("cpu"))
