"""A job that splits channels and drops what is no speech: every item keeps its outcome in the tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from w2v_ray import ConfigError, JobConfig, demo, run

RATE = 16_000
VAD = f"{__name__}:louder_than_hiss"


def louder_than_hiss(samples: np.ndarray, rate: int) -> list[tuple[float, float]]:
    """Frames of 100 ms with a sample above 1% of full scale, as spans."""
    frame = rate // 10
    peaks = np.abs(samples[: len(samples) // frame * frame]).reshape(-1, frame).max(axis=1, initial=0)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], peaks > 0.01, [0]])))
    return [(a / 10, b / 10) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def words(number: int) -> np.ndarray:
    files = sorted(demo.ARCHIVE.glob("*.flac"))
    samples, rate = soundfile.read(files[number], dtype="float32")
    assert rate == RATE
    return samples


def test_channels_and_silent_items_have_their_rows(ray_session: None, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    hiss = (1e-3 * np.random.default_rng(0).standard_normal(30 * RATE)).astype(np.float32)
    left, right = hiss.copy(), hiss.copy()
    left[: len(words(0))] += words(0)
    right[20 * RATE : 20 * RATE + len(words(1))] += words(1)[: 10 * RATE]
    soundfile.write(folder / "call.wav", np.stack([left, right], 1), RATE)
    soundfile.write(folder / "left.wav", left, RATE)
    soundfile.write(folder / "quiet.wav", hiss, RATE)
    cut = (folder / "left.wav").read_bytes()
    (folder / "cut.wav").write_bytes(cut[: len(cut) * 3 // 4])
    job = JobConfig(
        inputs=(str(folder),),
        output=str(tmp_path / "out"),
        model=str(demo.CHECKPOINT),
        channel="split",
        vad=VAD,
        keep_non_speech=False,
        keep_log_probs=4,
    )
    summary = run(job)
    assert (summary.num_items, summary.num_rejects) == (4, 0)
    rows = pq.read_table(tmp_path / "out" / "transcripts").to_pylist()
    found = {}
    for row in rows:
        found.setdefault((Path(row["uri"]).name, row["channel"]), []).append(row)
    assert found.keys() == {
        ("call.wav", 0),
        ("call.wav", 1),
        ("left.wav", 0),
        ("quiet.wav", 0),
        ("cut.wav", 0),
    }
    texts = {key: " ".join(row["text"] for row in rows) for key, rows in found.items()}
    assert texts["call.wav", 0] == texts["left.wav", 0] == texts["cut.wav", 0] != ""
    assert texts["call.wav", 1] not in ("", texts["call.wav", 0])
    assert found["call.wav", 1][0]["start_s"] > 19
    assert "#c1@" in found["call.wav", 1][0]["segment_id"]
    (quiet,) = found["quiet.wav", 0]
    assert (quiet["text"], quiet["confidence"], quiet["words"]) == ("", None, [])
    assert (quiet["num_frames"], quiet["speech_ratio"], quiet["duration_s"]) == (0, 0.0, 0.0)
    assert (quiet["start_s"], quiet["end_s"]) == (0.0, 30.0)
    assert {row["decode_status"] for row in found["cut.wav", 0]} == {"truncated"}
    assert {row["decode_status"] for row in rows if "cut" not in row["uri"]} == {"ok"}
    assert len({row["segment_id"] for row in rows}) == len(rows)


def test_a_detector_that_is_not_there_stops_the_job_before_it_starts(tmp_path: Path) -> None:
    job = JobConfig(
        inputs=(str(demo.ARCHIVE),),
        output=str(tmp_path / "out"),
        model=str(demo.CHECKPOINT),
        vad=f"{__name__}:absent",
    )
    with pytest.raises(ConfigError, match=r"vad '.*test_audio_job:absent' cannot be imported"):
        run(job)
