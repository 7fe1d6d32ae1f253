"""transcribe() as a step in somebody's own Ray Data pipeline."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import ray.data
import soundfile
from ray.data.expressions import col

from w2v_ray import CheckpointError, ConfigError, DecoderConfig, demo, transcribe
from w2v_ray.stages import DecodeAudio, ReadAudio, TakeAudio

MODEL = str(demo.CHECKPOINT)
SECONDS = 5.0  # of a segment
pytestmark = pytest.mark.usefixtures("ray_session")


def clips() -> list[Path]:
    return sorted(demo.ARCHIVE.glob("*.flac"))


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    """What transcribe() makes of clips in each struct of Hugging Face datasets, and of what is no clip."""
    samples = np.concatenate([np.pad(soundfile.read(clip, dtype="float32")[0], 8000) for clip in clips()])
    audio = {clip.name: {"bytes": clip.read_bytes(), "path": clip.name} for clip in clips()}
    audio |= {clip.name + " by path": {"bytes": None, "path": str(clip)} for clip in clips()}
    audio |= {
        "long": {"bytes": wav(samples), "path": None},
        "bad": {"bytes": b"not audio", "path": None},
        "short": {"bytes": wav(np.zeros(100, np.float32)), "path": None},
        "absent": {"bytes": None, "path": str(demo.ARCHIVE / "absent.wav")},
        "dropped": {"bytes": b"", "path": ""},
    }
    ran: list[int] = []

    def count(batch: pa.Table) -> pa.Table:
        ran.append(1)
        return batch

    rows = [{"key": key, "audio": a, "text": "said", "tags": ["a", "b"]} for key, a in audio.items()]
    ds = ray.data.from_items(rows).map_batches(count, batch_format="pyarrow")
    ds = transcribe(ds, model=MODEL, prefix="asr_", max_segment_seconds=SECONDS)
    ds = ds.filter(expr=col("key") != "dropped")
    assert not ran, "it is lazy"
    result = {row["key"]: row for row in ds.take_all()}
    assert result.keys() == audio.keys() - {"dropped"}
    return result


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def test_uris_bytes_structs_and_arrays_give_the_same_text(rows: dict[str, dict[str, Any]]) -> None:
    """The same samples, which all functions make their results of."""
    arrays = {clip.name: soundfile.read(clip, dtype="float32") for clip in clips()}
    audio = datasets.Dataset.from_dict({"key": list(arrays), "audio": list(map(str, clips()))})
    forms = {
        "bytes": [{"key": clip.name, "bytes": clip.read_bytes()} for clip in clips()],
        "uri": [{"key": clip.name, "uri": str(clip)} for clip in clips()],
        "dataset": audio.cast_column("audio", datasets.Audio()),
        "struct with array": [
            {"key": n, "audio": {"array": samples, "sampling_rate": rate}}
            for n, (samples, rate) in arrays.items()
        ],
        "array": [
            {"key": n, "audio": samples, "sampling_rate": rate} for n, (samples, rate) in arrays.items()
        ],
        "two channels": [
            {"key": n, "amplitude": np.stack([s, s]), "sample_rate": rate} for n, (s, rate) in arrays.items()
        ],
    }
    for form, items in forms.items():
        ds = ray.data.from_items(items) if isinstance(items, list) else ray.data.from_huggingface(items)
        for stage in (TakeAudio(keep=["key"]), ReadAudio(), DecodeAudio()):
            ds = ds.map_batches(stage, batch_format="pyarrow", batch_size=16)
        found = {row["key"]: np.frombuffer(row["samples"], np.float32) for row in ds.take_all()}
        assert found.keys() == arrays.keys(), form
        for key, (samples, _) in arrays.items():
            np.testing.assert_array_equal(found[key], samples, err_msg=form)
    for clip in clips():
        assert rows[clip.name]["asr_text"]
        assert rows[clip.name]["asr_text"] == rows[clip.name + " by path"]["asr_text"]


def test_it_keeps_columns_and_adds_its_own(rows: dict[str, dict[str, Any]]) -> None:
    for row in rows.values():
        assert row["text"] == "said"
        assert list(row["tags"]) == ["a", "b"]
    for clip in clips():
        row = rows[clip.name]
        assert row["asr_error"] is None
        assert row["asr_words"][0]["start_s"] >= 0
        assert 0 < row["asr_confidence"] <= 1
        assert row["asr_duration_s"] == pytest.approx(soundfile.info(clip).duration)


def test_a_bad_row_is_an_error_in_its_row_alone(rows: dict[str, dict[str, Any]]) -> None:
    errors = {key: row["asr_error"]["error_class"] for key, row in rows.items() if row["asr_error"]}
    assert errors == {"bad": "DecodeError", "short": "TooShortError", "absent": "ReadError"}
    assert [rows[key]["asr_text"] for key in errors] == [None] * 3


def test_a_long_row_is_cut_and_joined_again(rows: dict[str, dict[str, Any]]) -> None:
    row = rows["long"]
    seconds = sum(soundfile.info(clip).duration + 1 for clip in clips())
    assert row["asr_duration_s"] == pytest.approx(seconds)
    assert [word["word"] for word in row["asr_words"]] == row["asr_text"].split()
    times = [t for word in row["asr_words"] for t in (word["start_s"], word["end_s"])]
    assert times == sorted(times)
    assert times[-1] > 2 * SECONDS


def detect(samples: np.ndarray, rate: int) -> list[tuple[float, float]]:
    """All of a long recording is speech, half a second of a short one, and nothing of silence."""
    seconds = len(samples) / rate
    return [(0.0, seconds if seconds > 1 else 0.5)] if samples.any() else []


def test_a_channel_and_a_detector_can_be_named(rows: dict[str, dict[str, Any]]) -> None:
    items = []
    for clip in clips():
        samples, rate = soundfile.read(clip, dtype="float32")
        other = np.random.default_rng(0).standard_normal(len(samples)).astype(np.float32)
        items.append({"key": clip.name, "audio": np.stack([other, samples]), "sampling_rate": rate})
    items.append({"key": "quiet", "audio": np.zeros((2, 32_000), np.float32), "sampling_rate": 16_000})
    ds = transcribe(
        ray.data.from_items(items),
        model=MODEL,
        channel="right",
        vad=f"{__name__}:detect",
        keep_non_speech=False,
        max_segment_seconds=SECONDS,
        rows_per_batch=4,
    )
    found = {row["key"]: row for row in ds.take_all()}
    assert [row["error"] for row in found.values()] == [None] * len(items)
    quiet, short = found.pop("quiet"), found.pop(clips()[0].name)
    assert (quiet["text"], quiet["duration_s"]) == ("", 0)
    assert short["duration_s"] == pytest.approx(0.7, abs=0.01)
    assert len(found) == 3
    assert {key: row["text"] for key, row in found.items()} == {key: rows[key]["asr_text"] for key in found}


def test_a_language_model_decodes_and_is_checked_at_once(tmp_path: Path) -> None:
    (clip,) = demo.ARCHIVE.glob("03_*.m4a")  # of which greedy decoding makes a word that is none
    ds = ray.data.from_items([{"uri": str(clip)}])
    (row,) = transcribe(ds, model=MODEL, decoder=DecoderConfig(lm=str(demo.LANGUAGE_MODEL))).take_all()
    known = demo.LANGUAGE_MODEL.read_text().split()
    assert all(word in known for word in row["text"].split())
    assert [word["word"] for word in row["words"]] == row["text"].split()
    assert "start_frame" not in row["words"][0]
    with pytest.raises(ConfigError, match=r"gone\.arpa' does not exist"):
        transcribe(ds, model=MODEL, decoder=DecoderConfig(lm=str(tmp_path / "gone.arpa")))
    with pytest.raises(ConfigError, match=r"decoder is .*\(a mapping\), expected a DecoderConfig; write"):
        transcribe(ds, model=MODEL, decoder={"lm": "lm.arpa"})  # type: ignore[arg-type]


def test_mistakes_are_told() -> None:
    ds = ray.data.from_items([{"sound": b""}])
    with pytest.raises(ConfigError, match="no audio column"):
        transcribe(ds, model=MODEL)
    with pytest.raises(Exception, match="no audio column"):  # Ray's own, with ours in its text
        ds.map_batches(TakeAudio(), batch_format="pyarrow").take_all()
    taken = ray.data.from_items([{"bytes": clips()[0].read_bytes(), "text": "mine"}])
    with pytest.raises(ConfigError, match="prefix="):
        transcribe(taken, model=MODEL)
    with pytest.raises(CheckpointError, match="no_model"):
        transcribe(ds, model="./no_model")
    with pytest.raises(ConfigError, match="channel is 'split', which would make several rows of one"):
        transcribe(ds, model=MODEL, channel="split")
    with pytest.raises(ConfigError, match="channel is 'top', expected"):
        transcribe(ds, model=MODEL, channel="top")
    with pytest.raises(ConfigError, match="vad is 'speech'"):
        transcribe(ds, model=MODEL, vad="speech")
    with pytest.raises(ConfigError, match="rows_per_batch"):
        transcribe(ds, model=MODEL, rows_per_batch=0)
    with pytest.raises(ConfigError, match="num_encoders is 0, expected at least 1"):
        transcribe(ds, model=MODEL, num_encoders=0)
