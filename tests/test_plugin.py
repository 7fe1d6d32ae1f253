"""transcribe() as a step in somebody's own Ray Data pipeline."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray.data
import soundfile
from ray.data.expressions import col

from w2v_ray import CheckpointError, ConfigError, DecoderConfig, demo, transcribe

MODEL = str(demo.CHECKPOINT)
pytestmark = pytest.mark.usefixtures("ray_session")


def clips() -> list[Path]:
    return sorted(demo.ARCHIVE.glob("*.flac"))


def texts(ds: ray.data.Dataset, key: str = "key", prefix: str = "") -> dict[object, object]:
    return {row[key]: row[prefix + "text"] for row in ds.take_all()}


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    """What the model says of each clip when its bytes are given."""
    ds = ray.data.from_items([{"key": clip.name, "bytes": clip.read_bytes()} for clip in clips()])
    result = texts(transcribe(ds, model=MODEL))
    assert all(result.values())
    return result  # type: ignore[return-value]


def test_uris_bytes_structs_and_arrays_give_the_same_text(expected: dict[str, str]) -> None:
    arrays = {clip.name: soundfile.read(clip, dtype="float32") for clip in clips()}
    forms = {
        "uri": [{"key": clip.name, "uri": str(clip)} for clip in clips()],
        "struct with bytes": [
            {"key": c.name, "audio": {"bytes": c.read_bytes(), "path": c.name}} for c in clips()
        ],
        "struct with path": [{"key": c.name, "audio": {"bytes": None, "path": str(c)}} for c in clips()],
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
    for form, rows in forms.items():
        assert texts(transcribe(ray.data.from_items(rows), model=MODEL)) == expected, form


def test_it_is_lazy_keeps_columns_and_composes(expected: dict[str, str]) -> None:
    rows = [{"key": clip.name, "uri": str(clip), "text": "said", "tags": ["a", "b"]} for clip in clips()]
    ran: list[int] = []

    def count(batch: pa.Table) -> pa.Table:
        ran.append(1)
        return batch

    ds = ray.data.from_items(rows).map_batches(count, batch_format="pyarrow")
    ds = transcribe(ds, model=MODEL, prefix="asr_").filter(expr=col("asr_confidence") > 0)
    assert not ran
    result = ds.take_all()
    assert {row["key"]: row["asr_text"] for row in result} == expected
    for row in result:
        assert row["text"] == "said"
        assert list(row["tags"]) == ["a", "b"]
        assert row["asr_error"] is None
        assert row["asr_words"][0]["start_s"] >= 0
        assert 0 < row["asr_confidence"] <= 1


def test_a_bad_row_is_an_error_in_its_row_alone(expected: dict[str, str], tmp_path: Path) -> None:
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(100, np.float32), 16_000, format="WAV")
    rows = [{"key": clip.name, "bytes": clip.read_bytes()} for clip in clips()]
    rows += [{"key": "bad", "bytes": b"not audio"}, {"key": "short", "bytes": silence.getvalue()}]
    result = {row["key"]: row for row in transcribe(ray.data.from_items(rows), model=MODEL).take_all()}
    assert result["bad"]["error"]["error_class"] == "DecodeError"
    assert result["bad"]["text"] is None
    assert result["short"]["error"]["error_class"] == "TooShortError"
    assert {key: result[key]["text"] for key in expected} == expected

    absent = ray.data.from_items([{"key": "absent", "uri": str(tmp_path / "absent.wav")}])
    (row,) = transcribe(absent, model=MODEL).take_all()
    assert row["error"]["error_class"] == "ReadError"


def test_a_long_row_is_cut_and_joined_again() -> None:
    samples = np.concatenate([np.pad(soundfile.read(clip, dtype="float32")[0], 8000) for clip in clips()])
    ds = ray.data.from_items([{"audio": samples, "sampling_rate": 16_000}])
    (row,) = transcribe(ds, model=MODEL, max_segment_seconds=5).take_all()
    assert row["duration_s"] == pytest.approx(len(samples) / 16_000)
    assert [word["word"] for word in row["words"]] == row["text"].split()
    times = [t for word in row["words"] for t in (word["start_s"], word["end_s"])]
    assert times == sorted(times)
    assert times[-1] > 5


def first_half_second(samples: np.ndarray, rate: int) -> list[tuple[float, float]]:
    return [(0.0, 0.5)] if samples.any() else []


def test_a_channel_and_a_detector_can_be_named(expected: dict[str, str]) -> None:
    rows = []
    for clip in clips()[:3]:
        samples, rate = soundfile.read(clip, dtype="float32")
        other = np.random.default_rng(0).standard_normal(len(samples)).astype(np.float32)
        rows.append({"key": clip.name, "audio": np.stack([other, samples]), "sampling_rate": rate})
    rows.append({"key": "quiet", "audio": np.zeros((2, 32_000), np.float32), "sampling_rate": 16_000})
    ds = ray.data.from_items(rows)
    found = texts(transcribe(ds, model=MODEL, channel="right", rows_per_batch=4))
    assert {key: text for key, text in found.items() if key != "quiet"} == {
        clip.name: expected[clip.name] for clip in clips()[:3]
    }
    vad = f"{__name__}:first_half_second"
    some = transcribe(ds, model=MODEL, channel=1, vad=vad, keep_non_speech=False, rows_per_batch=4)
    for row in some.take_all():
        assert row["duration_s"] == (0 if row["key"] == "quiet" else pytest.approx(0.7, abs=0.01))
        assert row["error"] is None
        assert (row["key"] != "quiet") or row["text"] == ""


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
    with pytest.raises(Exception, match="no audio column"):
        transcribe(ds, model=MODEL).take_all()
    taken = ray.data.from_items([{"bytes": clips()[0].read_bytes(), "text": "mine"}])
    with pytest.raises(Exception, match="prefix="):
        transcribe(taken, model=MODEL).take_all()
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
