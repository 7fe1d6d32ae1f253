"""The recipe of the demo checkpoint: no speaker on both sides, and it goes on where it stopped."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from w2v_ray import AutoModelForCTC, AutoProcessor, demo

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
sys.path.insert(0, str(PIPELINES))

import speech_clips as sc  # noqa: E402  # it lies beside the recipes, not in the package

from tests.pipelines.few_clips import few_clips  # noqa: E402


def clip(word: str, speaker: str = "a", seconds: float = 1.0, *, at: float = 0.3) -> sc.Clip:
    rng = np.random.default_rng(len(word))
    samples = (1e-4 * rng.standard_normal(int(seconds * sc.RATE_HZ))).astype(np.float32)
    start = int(at * sc.RATE_HZ)
    samples[start : start + 4800] += 0.2 * np.sin(np.arange(4800) * 0.3).astype(np.float32)
    return sc.Clip("commands", speaker, word, samples, *sc.word_span(samples))


def test_the_span_of_a_word_is_where_the_sound_is() -> None:
    found = clip("YES", at=0.3)
    assert found.start == pytest.approx(0.25 * sc.RATE_HZ, abs=0.03 * sc.RATE_HZ)
    assert found.end == pytest.approx(0.65 * sc.RATE_HZ, abs=0.03 * sc.RATE_HZ)


def test_joined_words_keep_their_order_and_places() -> None:
    clips = [clip("YES"), clip("NO", at=0.1), clip("STOP", at=0.5)]
    utterance = sc.join(clips, np.random.default_rng(0))
    assert utterance.words == ("YES", "NO", "STOP")
    for (start, end, word), source in zip(utterance.spans, clips, strict=True):
        assert word == source.word
        assert end - start == source.end - source.start
        inside = np.square(utterance.samples[start:end]).mean()
        assert inside > 100 * np.square(utterance.samples[: utterance.spans[0][0] // 2 + 1]).mean()
    starts = [start for start, _, _ in utterance.spans]
    assert starts == sorted(starts)
    assert utterance.spans[-1][1] <= len(utterance.samples)
    assert np.isfinite(utterance.samples).all()


def test_speakers_are_in_one_split_only_and_all_three_are_used(shared_data: Path) -> None:
    with (shared_data / "commands" / "manifest.csv").open(newline="") as file:
        speakers = {row["speaker"] for row in csv.DictReader(file) if row["speaker"]}
    splits = [sc.split_of("commands", speaker) for speaker in sorted(speakers)]
    assert {name: splits.count(name) for name in set(splits)} == {"train": 191, "dev": 10, "test": 27}
    assert sc.split_of("digits", sc.DIGIT_TEST_SPEAKER) == "test"
    assert sc.split_of("digits", "george") == "train"


def test_evaluation_uses_each_clip_once_and_one_speaker_at_a_time() -> None:
    names = [f"speaker{i}" for i in range(200) if sc.split_of("commands", f"speaker{i}") == "test"]
    clips = [clip(word, name) for name in names for word in ("ONE", "TWO", "THREE", "FOUR")]
    clips += [clip("ALONE", "speaker-x")]
    utterances = sc.evaluation_utterances(clips, "test", "commands")
    assert sum(len(u.words) for u in utterances) == 4 * len(names)
    assert all(2 <= len(u.words) <= 12 for u in utterances)
    assert [u.words for u in utterances] == [
        u.words for u in sc.evaluation_utterances(clips, "test", "commands")
    ]


def test_the_archive_of_the_demo_holds_unseen_speakers_only() -> None:
    names = [file.stem for file in demo.ARCHIVE.iterdir() if file.suffix not in (".jsonl", ".tar")]
    with tarfile.open(demo.ARCHIVE / "more.tar") as tar:
        names += [Path(member.name).stem for member in tar]
    assert len(names) == 16 + 2 * 8
    assert {sc.split_of("commands", name.split("_")[1]) for name in names} == {"test"}


@pytest.mark.slow
def test_it_trains_stops_goes_on_and_writes_a_checkpoint(shared_data: Path, tmp_path: Path) -> None:
    few_clips(shared_data, tmp_path / "data")
    command = [sys.executable, str(PIPELINES / "train_demo.py"), "--data", str(tmp_path / "data")]
    command += ["--output", str(tmp_path / "run"), "--device", "cpu", "--steps"]
    for steps, said in (("2", ["step 2/2"]), ("3", ["going on from step 2", "step 3/3"])):
        done = subprocess.run([*command, steps], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert all(text in done.stdout for text in said), done.stdout
    results = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert set(results) == {"dev commands", "test commands", "test digits", "test commands and digits"}
    assert all(result["num_words"] > 0 for result in results.values())
    checkpoint = tmp_path / "run" / "checkpoint"
    assert AutoModelForCTC.from_pretrained(checkpoint).config.hop_samples == 320
    assert AutoProcessor.from_pretrained(checkpoint).tokenizer.vocab_size == 32
