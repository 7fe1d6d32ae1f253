"""The recipe of the demo's heads: who is heard when, what is cut and joined, how pairs are counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from w2v_ray import demo

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
sys.path.insert(0, str(PIPELINES))

import speaker_clips as sp  # noqa: E402  # they lie beside the recipes, not in the package
import speaker_trials as st  # noqa: E402
import train_demo_heads as th  # noqa: E402

from tests.pipelines.few_clips import few_clips, few_recordings  # noqa: E402


def recording(speaker: str, seconds: float, value: float = 0.0, corpus: str = "librispeech") -> sp.Recording:
    return sp.Recording(corpus, speaker, np.full(round(seconds * 16_000), value, dtype=np.float32))


def test_no_speaker_of_the_archive_is_trained_on() -> None:
    lines = (demo.ARCHIVE / "manifest.jsonl").read_text().splitlines()
    speakers = {json.loads(line)["speaker"] for line in lines}
    with tarfile.open(demo.ARCHIVE / "more.tar") as tar:
        speakers |= {name[3:11] for name in tar.getnames()}
    assert len(speakers) >= 15
    assert {sp.split_of("commands", speaker) for speaker in speakers} == {"test"}


def test_speakers_of_librispeech_with_several_files_are_for_testing() -> None:
    assert {sp.split_of("librispeech", s) for s in sp.LIBRI_TEST_SPEAKERS} == {"test"}
    splits = [sp.split_of("librispeech", str(i)) for i in range(1000)]
    assert {split: splits.count(split) > 100 for split in ("train", "dev", "test")} == {
        "train": True,
        "dev": True,
        "test": True,
    }


def test_whole_utterances_share_no_file() -> None:
    files = [recording("1688", 4.0, i) for i in range(6)] + [recording("1688", 12.0, 6.0)]
    found = sp.whole_utterances([*files, recording("1", 30.0, corpus="vctk")], "test", 10.0)
    assert [len(piece.samples) for piece in found] == [160_000] * 3
    assert [set(piece.samples.tolist()) for piece in found] == [{0, 1, 2}, {3, 4, 5}, {6}]


def test_pieces_have_one_length_and_begin_anywhere() -> None:
    rng = np.random.default_rng(0)
    said = [sp.Recording("vctk", "p1", np.arange(100_000, dtype=np.float32))]
    pieces = sp.training_pieces(said, 2.0, 1.0, rng)
    assert [len(p) for p in pieces] == [32_000] * 3
    assert pieces[1][0] == pieces[0][-1] + 1
    assert len(sp.training_pieces(said, 2.0, 1.0, rng, most=1)) == 1
    assert len(sp.training_pieces(said, 2.0, 0.8, rng)[0]) == 32_000
    assert sp.training_pieces(said, 7.0, 1.0, rng) == []


def test_verification_counts_all_pairs() -> None:
    unit = np.eye(3)[[0, 0, 1, 1, 2]] + 0.01 * np.random.default_rng(0).standard_normal((5, 3))
    found = st.verification(unit, list("aabbc"))
    assert (found["eer"], found["min_dcf"]) == (0, 0)
    assert (found["num_target_pairs"], found["num_other_pairs"]) == (2, 8)
    assert (found["num_speakers"], found["num_speakers_with_pairs"]) == (3, 2)


@pytest.mark.parametrize("seed", range(20))
def test_equal_error_rate_is_where_the_curve_crosses_the_diagonal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.random(200) < 0.3
    scores = rng.standard_normal(200) + targets
    order = np.argsort(-scores)
    rate, cost, _ = st._rates(targets[order], np.ones(200))
    thresholds = [*scores, np.inf]
    misses = np.array([np.mean(scores[targets] < t) for t in thresholds])
    alarms = np.array([np.mean(scores[~targets] >= t) for t in thresholds])
    assert cost == pytest.approx((0.05 * misses + 0.95 * alarms).min() / 0.05)
    assert np.maximum(misses, alarms).min() >= rate - 1e-9
    assert np.minimum(misses, alarms).max() <= rate + 1e-9
    doubled = st._rates(np.repeat(targets[order], 2), np.ones(400))
    assert doubled[:2] == pytest.approx(st._rates(targets[order], np.full(200, 2.0))[:2])


def test_discriminants_find_what_tells_classes_apart() -> None:
    torch.manual_seed(0)
    labels = torch.arange(40).repeat_interleave(20)
    centres = torch.randn(40, 2)
    x = torch.cat([centres[labels] + 0.1 * torch.randn(800, 2), 10 * torch.randn(800, 6) + 5], dim=1)
    weight, bias = th.discriminants(x, labels, 2)
    assert (weight[:, :2].abs().max() / weight[:, 2:].abs().max()) > 20
    assert (x @ weight.T + bias).mean(0).abs().max() < 1e-3


def test_pooling_is_that_of_the_model() -> None:
    x = torch.randn(3, 20, 4)
    found = th.pooled(x, torch.zeros(4), torch.ones(4))
    assert torch.allclose(found[:, :4], x.clamp(min=0).mean(1))
    assert torch.allclose(found[:, 12:], (-x).clamp(min=0).std(1))


@pytest.mark.slow
def test_it_trains_both_heads_and_judges_what_it_wrote(shared_data: Path, tmp_path: Path) -> None:
    few_clips(shared_data, tmp_path / "data")
    few_recordings(shared_data, tmp_path / "data")
    command = [sys.executable, str(PIPELINES / "train_demo_heads.py"), "--data", str(tmp_path / "data")]
    command += ["--output", str(tmp_path / "heads"), "--speaker-passes", "1", "--keyword-passes", "1"]
    environment = os.environ | {"W2V_RAY_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "heads" / "speaker" / "evaluation.json").read_text())
    assert {"test LibriSpeech, 10 s", "test LibriSpeech, 5 s", "dev LibriSpeech, 5 s"} < set(results)
    assert results["test LibriSpeech, 10 s"]["num_speakers"] == 3
    assert results["test LibriSpeech, 5 s"]["eer"] < 0.4
    results = json.loads((tmp_path / "heads" / "keywords" / "evaluation.json").read_text())
    assert results["test Speech Commands"]["num_clips"] > 20
    whole = demo.with_encoder(tmp_path / "heads" / "keywords")
    assert {path.name for path in whole.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
