"""Long segments in overlapping windows, against pipelines with the same settings and against hand work."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.encoder_cases import assert_near, checkpoint, sound, table_of, values_of
from w2v_ray import AutoFeatureExtractor, AutoModelForCTC, Wav2Vec2CTCTokenizer
from w2v_ray.errors import ConfigError
from w2v_ray.heads import Head
from w2v_ray.inference import pipeline
from w2v_ray.stages import encode as encode_module
from w2v_ray.stages.encode import Encode
from w2v_ray.stages.encode_config import EncodeConfig

ASR = "automatic-speech-recognition"
CHUNKS: list[dict[str, Any]] = [
    {"chunk_length_s": 1.0},
    {"chunk_length_s": 1.3, "stride_length_s": (0.3, 0.1)},
    {"chunk_length_s": 0.9, "stride_length_s": 0.2},
    {"chunk_length_s": 1.0, "stride_length_s": (0.0, 0.0)},
    {"chunk_length_s": 30.0},
]


@pytest.fixture(scope="module", params=["wav2vec2", "bert"])
def folder(request: pytest.FixtureRequest, tiny_checkpoint: Path, tiny_bert_checkpoint: Path) -> Path:
    return tiny_checkpoint if request.param == "wav2vec2" else tiny_bert_checkpoint


def stage(folder: Path, **options: Any) -> Encode:
    return Encode(EncodeConfig(model=str(folder), num_threads=1, **options))


def head_of(folder: Path) -> Head:
    return Head(task="transcribe", model=str(folder))


@pytest.mark.parametrize("options", CHUNKS, ids=str)
def test_windows_are_those_of_the_pipelines(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whole pairs of mel frames: of half a pair transformers makes a frame that its attention mask leaves out.
    waves = [sound(length, seed) for seed, length in enumerate((52_180, 16_000, 17_000, 30_080, 4_850))]
    table = stage(folder, **options)(table_of(waves))
    paths = [found.argmax(-1) for found in values_of(table, head_of(folder)) if found is not None]
    ours, theirs = pipeline(ASR, folder, device="cpu"), transformers.pipeline(ASR, str(folder), device="cpu")
    read = Wav2Vec2CTCTokenizer.from_pretrained(folder)
    seen: list[np.ndarray] = []
    decode = theirs.tokenizer.decode

    def decode_seen(tokens: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(np.asarray(tokens))
        return decode(tokens, *args, **kwargs)

    monkeypatch.setattr(theirs.tokenizer, "decode", decode_seen)
    for wave, path in zip(waves, paths, strict=True):
        text = theirs(wave.copy(), **options)["text"]
        assert read.decode(path) == text == ours(wave, **options)["text"]
        assert (path == seen[-1].reshape(-1)).all()  # of every frame, and as many of them


@cache
def loaded(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCTC.from_pretrained(folder).eval(), AutoFeatureExtractor.from_pretrained(folder)


@torch.no_grad()
def in_windows(folder: Path, wave: np.ndarray, frames: tuple[int, int, int], *, whole: bool) -> np.ndarray:
    """Log-probabilities of windows of so many frames, with so many heard on the left and on the right."""
    model, extract = loaded(folder)
    length, left, right = frames
    name = model.main_input_name

    def features(samples: np.ndarray) -> torch.Tensor:
        found = extract(samples, sampling_rate=16_000, return_attention_mask=True, return_tensors="pt")
        values: torch.Tensor = found[name][0][: int(found["attention_mask"].sum())]
        return values

    per_frame = 320 if name == "input_values" else 1
    everything, parts, start = features(wave), [], 0
    while True:
        is_last = (start + length) * 320 >= len(wave)
        if whole:
            piece = everything[start * per_frame : (start + length) * per_frame]
        else:
            piece = features(wave[start * 320 : (start + length) * 320])
        logits = model(piece[None]).logits[0].log_softmax(-1)
        parts.append(logits[left if start else 0 : None if is_last else length - right])
        if is_last:
            return torch.cat(parts).numpy()
        start += length - left - right


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    extra=st.integers(-2_000, 20_000), normalize=st.sampled_from(["chunk", "segment"]), seed=st.integers(0, 9)
)
def test_segments_of_every_length_about_a_window(folder: Path, extra: int, normalize: str, seed: int) -> None:
    """A window of 40 frames, of which 6 on the left and 4 on the right are heard and not kept."""
    wave = sound(40 * 320 + extra, seed)
    wave[: len(wave) // 2] *= 3
    options = {"chunk_length_s": 0.8, "stride_length_s": (0.12, 0.08), "normalize": normalize}
    head = head_of(folder)
    (found,) = values_of(made(folder, **options)(table_of([wave])), head)
    (whole,) = values_of(made(folder)(table_of([wave])), head)
    assert found is not None
    assert whole is not None
    assert len(found) == len(whole)
    if extra <= 0:
        assert (found == whole).all()
    else:
        assert_near(found, in_windows(folder, wave, (40, 6, 4), whole=normalize == "segment"), head)


@pytest.mark.parametrize("extra", [1, 319, 399])
def test_what_is_left_and_too_short_for_a_frame_is_heard_by_the_window_before(
    folder: Path, extra: int
) -> None:
    wave, head = sound(40 * 320 + extra), head_of(folder)
    (found,) = values_of(made(folder, chunk_length_s=0.8, stride_length_s=0.0)(table_of([wave])), head)
    (whole,) = values_of(made(folder)(table_of([wave])), head)
    assert found is not None
    assert whole is not None
    assert (found == whole).all()


@cache
def made(folder: Path, **options: Any) -> Encode:
    return stage(folder, **options)


def test_what_is_normalized_matters(folder: Path) -> None:
    wave = sound(40_000)
    wave[:20_000] *= 10
    chunk, segment = (
        values_of(made(folder, chunk_length_s=0.8, normalize=name)(table_of([wave])), head_of(folder))[0]
        for name in ("chunk", "segment")
    )
    assert chunk is not None
    assert segment is not None
    assert len(chunk) == len(segment)
    assert not np.allclose(chunk, segment, atol=0.05)


@pytest.mark.parametrize("family", ["adapter", "bert-adapter"])
@pytest.mark.parametrize("normalize", ["chunk", "segment"])
def test_frames_of_an_adapter_are_as_many_as_those_of_the_whole(
    tmp_path: Path, family: str, normalize: str
) -> None:
    model = str(checkpoint(tmp_path / "model", family, "transcribe", num_adapter_layers=2))
    pooled = Head(task="embed", model=model, pooling="mean", size=32, layer=1)
    heads = (Head(task="transcribe", model=model), pooled)
    whole, cut = (
        Encode(EncodeConfig(heads=heads, num_threads=1, normalize=normalize, **options))
        for options in ({}, {"chunk_length_s": 1.0, "stride_length_s": 0.16})
    )
    table = table_of([sound(40_000 + 157 * step, step) for step in range(12)])
    assert cut(table)["num_frames"].to_pylist() == whole(table)["num_frames"].to_pylist()
    assert cut(table)["embedding"].null_count == 0


def test_long_segments_are_windowed_where_nothing_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_module, "_LONGEST_S", 2.0)
    monkeypatch.setattr(encode_module, "_WINDOW_S", 1.2)
    waves = [sound(31_000, 1), sound(33_000, 2)]
    short, long = values_of(stage(folder)(table_of(waves)), head_of(folder))
    assert short is not None
    assert long is not None
    assert_near(short, loaded_alone(folder, waves[0]), head_of(folder))
    assert_near(long, in_windows(folder, waves[1], (60, 10, 10), whole=False), head_of(folder))


def loaded_alone(folder: Path, wave: np.ndarray) -> np.ndarray:
    return in_windows(folder, wave, (10_000, 0, 0), whole=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"chunk_length_s": 1.0, "stride_length_s": 0.5},
            r"stride_length_s is 0\.5, .*less than chunk_length_s \(1\)",
        ),
        ({"chunk_length_s": 0.02, "stride_length_s": 0}, r"chunk_length_s is 0\.02, expected 0\.5 to 300"),
        ({"chunk_length_s": 0.0}, r"chunk_length_s is 0, expected 0\.5 to 300"),
        ({"stride_length_s": 1.0}, r"stride_length_s is 1\.0 without windows; set chunk_length_s"),
    ],
)
def test_windows_that_cannot_be(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stage(folder, **options)
