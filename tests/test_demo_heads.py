"""The demo's speaker and keyword checkpoints: whole models on the encoder of the one that transcribes."""

from __future__ import annotations

import io
import itertools
import json
import re
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.numpy import load_file

from w2v_ray import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    AutoModelForAudioXVector,
    OutputError,
    demo,
)
from w2v_ray.inference import pipeline

HEADS = ("speaker", "keywords")
WHOLE = {"speaker": demo.speaker_checkpoint, "keywords": demo.keyword_checkpoint}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp() / "demo-cache"
    monkeypatch.setenv("W2V_RAY_CACHE", str(folder))
    return folder


def lossless_clips() -> list[tuple[str, str, np.ndarray]]:
    """Speaker, text and samples of the archive's recordings that need no decoder but libsndfile."""
    clips = []
    for line in (demo.ARCHIVE / "manifest.jsonl").read_text().splitlines():
        row = json.loads(line)
        if Path(row["audio_filepath"]).suffix in (".flac", ".wav"):
            samples, rate = soundfile.read(demo.ARCHIVE / row["audio_filepath"], dtype="float32")
            clips.append((row["speaker"], row["text"], samples))
            assert rate == 16_000
    with tarfile.open(demo.ARCHIVE / "more.tar") as tar:
        contents = {name: tar.extractfile(name).read() for name in tar.getnames()}
    for name in sorted(contents):
        if name.endswith(".flac"):
            samples, rate = soundfile.read(io.BytesIO(contents[name]), dtype="float32")
            assert rate == 16_000
            clips.append((name[3:-5], contents[name.replace(".flac", ".txt")].decode().strip(), samples))
    return clips


@pytest.mark.parametrize("head", HEADS)
def test_the_encoder_is_that_of_the_transcription_checkpoint_bit_for_bit(head: str) -> None:
    whole = load_file(WHOLE[head]() / "model.safetensors")
    transcribing = load_file(demo.CHECKPOINT / "model.safetensors")
    encoder = {name for name in transcribing if name.startswith("wav2vec2.")}
    assert {name for name in whole if name.startswith("wav2vec2.")} == encoder
    for name in encoder:
        assert whole[name].dtype == transcribing[name].dtype
        assert whole[name].tobytes() == transcribing[name].tobytes(), name
    own = load_file(demo.HEADS / head / "head.safetensors")
    assert whole.keys() == encoder | own.keys()
    assert not any(name.startswith("wav2vec2.") for name in own)


def test_what_ships_is_small() -> None:
    files = [path for path in demo.HEADS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_500_000
    assert {path.name for path in files} == {
        "config.json",
        "evaluation.json",
        "head.safetensors",
        "README.md",
    }


def test_speakers_of_the_archive_are_told_apart() -> None:
    folder = demo.speaker_checkpoint()
    model = AutoModelForAudioXVector.from_pretrained(folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    clips = lossless_clips()
    inputs = extractor(
        [samples for _, _, samples in clips], sampling_rate=16_000, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        embeddings = torch.nn.functional.normalize(model(**inputs).embeddings, dim=-1)
    same, other = [], []
    for (i, first), (j, second) in itertools.combinations(enumerate(clips), 2):
        (same if first[0] == second[0] else other).append(float(embeddings[i] @ embeddings[j]))
    assert len(same) >= 4
    assert np.mean(same) > np.mean(other) + 0.3
    assert np.mean(np.array(other) > np.median(same)) < 0.1


def test_a_keyword_is_recognised() -> None:
    recognise = pipeline("audio-classification", model=str(demo.keyword_checkpoint()), top_k=1)
    (samples,) = (samples for _, text, samples in lossless_clips() if text == "NO YES OFF")
    found = [recognise({"raw": word, "sampling_rate": 16_000})[0]["label"] for word in words_of(samples)]
    assert found == ["NO", "YES", "OFF"]


def words_of(samples: np.ndarray) -> list[np.ndarray]:
    """The loud parts, with 0.1 s around each."""
    frames = samples[: len(samples) // 1600 * 1600].reshape(-1, 1600)
    loud = np.sqrt(np.square(frames).mean(-1)) > 0.1 * np.sqrt(np.square(frames).mean(-1).max())
    edges = np.flatnonzero(np.diff(np.concatenate([[0], loud, [0]])))
    return [samples[max(0, a - 1) * 1600 : (b + 1) * 1600] for a, b in edges.reshape(-1, 2)]


def test_the_classifier_names_its_words() -> None:
    config = AutoModelForAudioClassification.from_pretrained(demo.keyword_checkpoint()).config
    assert len(config.id2label) == 35
    assert config.label2id == {word: i for i, word in config.id2label.items()}
    assert {"YES", "NO", "ZERO", "MARVIN"} <= set(config.label2id)


@pytest.mark.parametrize("head", HEADS)
def test_the_card_has_the_figures_that_were_measured(head: str) -> None:
    card = (demo.HEADS / head / "README.md").read_text()
    measured = json.loads((demo.HEADS / head / "evaluation.json").read_text())
    rows = 0
    for figures in measured.values():
        if not isinstance(figures, dict):
            continue
        name = "eer" if "eer" in figures else "accuracy"
        low, high = figures[f"{name}_interval_95" if name == "eer" else "interval_95"]
        interval = f"{100 * low:.1f} to {100 * high:.1f}%"
        row = f"| {figures['num_speakers']} | {100 * figures[name]:.1f}% | {interval} |"
        assert row in card, row
        rows += 1
    assert rows == len(re.findall(r"\| [\d.]+% \| [\d.]+ to [\d.]+% \|", card)) >= 2


def test_it_is_put_together_once(own_cache: Path) -> None:
    first = demo.speaker_checkpoint()
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert demo.speaker_checkpoint() == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert first.parent == own_cache / "demo"


def test_several_at_once_leave_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2V_RAY_CACHE", str(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        found = {future.result() for future in [pool.submit(demo.keyword_checkpoint) for _ in range(4)]}
    assert list((tmp_path / "demo").iterdir()) == list(found)


def test_another_head_has_another_folder(tmp_path: Path) -> None:
    head = tmp_path / "keywords"
    head.mkdir()
    for name in ("config.json", "head.safetensors"):
        (head / name).write_bytes((demo.HEADS / "keywords" / name).read_bytes())
    assert demo.with_encoder(head) == demo.keyword_checkpoint()
    config = json.loads((head / "config.json").read_text())
    (head / "config.json").write_text(json.dumps(config | {"problem_type": "regression"}))
    assert demo.with_encoder(head) != demo.keyword_checkpoint()


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("W2V_RAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="set W2V_RAY_CACHE to a folder with room"):
        demo.speaker_checkpoint()


def test_neither_import_nor_assembly_loads_torch(tmp_path: Path) -> None:
    code = "import sys; from w2v_ray import demo; demo.speaker_checkpoint(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"W2V_RAY_CACHE": str(tmp_path)})
