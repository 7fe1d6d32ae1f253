"""The local pipeline against transformers' pipeline, on the same small random checkpoints and sounds."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.errors import (
    CheckpointError,
    ConfigError,
    EmptyAudioError,
    TooShortError,
)
from w2v_ray.inference import (
    AudioClassificationPipeline,
    AutomaticSpeechRecognitionPipeline,
    pipeline,
)

ASR, CLASSIFICATION = "automatic-speech-recognition", "audio-classification"
VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
LABELS = ["angry", "calm", "glad", "sad", "weary", "wild"]
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "classifier_proj_size": 12,
    "vocab_size": len(VOCABULARY),
    "id2label": dict(enumerate(LABELS)),
    "label2id": {label: index for index, label in enumerate(LABELS)},
}
WAVES: dict[str, Any] = SMALL | {
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
FAMILIES: dict[str, dict[str, Any]] = {
    "group": WAVES,
    "layer": WAVES | LAYER,
    "adapter": WAVES | LAYER | {"add_adapter": True, "num_adapter_layers": 1},
    "bert": SMALL | {"position_embeddings_type": "relative_key"},
    "bert-adapter": SMALL | {"add_adapter": True, "num_adapter_layers": 1, "adapter_stride": 2},
}
CALLS: list[dict[str, Any]] = [
    {},
    {"return_timestamps": "char"},
    {"return_timestamps": "word"},
    {"chunk_length_s": 1},
    {"chunk_length_s": 1.3, "stride_length_s": (0.3, 0.1), "return_timestamps": "char"},
    {"chunk_length_s": 0.9, "stride_length_s": 0.2, "return_timestamps": "word", "batch_size": 3},
    {"chunk_length_s": 1, "stride_length_s": [0, 0]},
    {"chunk_length_s": 30.0},
]


def save_checkpoint(folder: Path, family: str, head: str, **changes: Any) -> Path:
    """A random checkpoint with its processor, all written by transformers."""
    name = "Wav2Vec2Bert" if family.startswith("bert") else "Wav2Vec2"
    config = getattr(transformers, f"{name}Config")(**(FAMILIES[family] | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = getattr(transformers, f"{name}For{head}")(config).eval()
        if head == "CTC":  # so that frames differ in what they spell, with spaces often enough for words
            torch.nn.init.normal_(model.lm_head.weight, std=0.5)
            with torch.no_grad():
                model.lm_head.bias[[0, 4]] = torch.tensor([1.0, 1.0])
        else:
            torch.nn.init.normal_(model.classifier.weight, std=0.5)
    model.save_pretrained(folder)
    vocab = folder / "vocab.json"
    vocab.write_text(json.dumps({token: index for index, token in enumerate(VOCABULARY)}), encoding="utf-8")
    extractor = (
        transformers.SeamlessM4TFeatureExtractor()
        if name == "Wav2Vec2Bert"
        else transformers.Wav2Vec2FeatureExtractor(return_attention_mask=family != "group")
    )
    extractor.save_pretrained(folder)
    transformers.Wav2Vec2CTCTokenizer(str(vocab)).save_pretrained(folder)
    return folder


@functools.cache
def sound(seconds: float, rate: int = 16_000) -> np.ndarray:
    """Noise whose loudness and pitch move, so that frames differ."""
    random = np.random.default_rng(round(seconds * 1000))
    time = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * time * (200 + 900 * np.sin(5 * time)))
    return ((tone + random.standard_normal(len(time))) * np.sin(9 * time) * 0.2).astype(np.float32)


@pytest.fixture(scope="module", params=["group", "layer", "bert", "bert-adapter"])
def recognisers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The pipeline of this package and that of transformers, for one checkpoint."""
    folder = save_checkpoint(tmp_path_factory.mktemp("ctc"), request.param, "CTC")
    return pipeline(ASR, folder, device="cpu"), transformers.pipeline(ASR, str(folder), device="cpu")


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory: pytest.TempPathFactory) -> AutomaticSpeechRecognitionPipeline:
    folder = save_checkpoint(tmp_path_factory.mktemp("ctc"), "group", "CTC")
    return pipeline(ASR, folder, device="cpu")


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_recognition_equals_transformers(recognisers: tuple[Any, Any], call: dict[str, Any]) -> None:
    ours, theirs = recognisers
    one_by_one = {name: value for name, value in call.items() if name != "batch_size"}
    # Of an odd number of mel frames the last is half a step, which transformers masks, and lets into the
    # convolutions of an adapter all the same: there the last tokens differ.
    odd, even = (3.37, 0.812, 2.0), (3.38, 0.822, 2.0)
    for seconds in even if ours.model.config.add_adapter else odd + even:
        expected = theirs(sound(seconds), **one_by_one)
        assert ours(sound(seconds), **call) == expected
        assert len(set(expected["text"])) > 3, "a text of one letter would prove nothing"


def test_batches_and_iterables_equal_recordings_alone(recognisers: tuple[Any, Any]) -> None:
    ours, theirs = recognisers
    sounds = [sound(seconds) for seconds in (1.9, 0.3, 3.1, 0.7)]
    options = {"return_timestamps": "char", "chunk_length_s": 1.2}
    alone = [theirs(wave, **options) for wave in sounds]
    for batch_size in (1, 2, 3, 16):
        assert ours(sounds, batch_size=batch_size, **options) == alone
        assert list(ours((wave for wave in sounds), batch_size=batch_size, **options)) == alone
    whole = [theirs(wave) for wave in sounds]
    assert ours(tuple(sounds), batch_size=4) == whole


MAPPINGS: list[dict[str, Any]] = [
    {"raw": sound(2.0), "sampling_rate": 16_000},
    {"raw": sound(2.0, 8_000), "sampling_rate": 8_000},
    {"array": sound(2.0, 44_100).astype(np.float64), "sampling_rate": 44_100, "path": None},
    {"raw": torch.from_numpy(sound(2.0)), "sampling_rate": 16_000},
    {"raw": np.stack([sound(2.0), sound(2.0)[::-1]]), "sampling_rate": 16_000},
    {"raw": sound(2.0), "sampling_rate": 16_000, "stride": (3200, 1600)},
    {"raw": sound(2.0, 8_000), "sampling_rate": 8_000, "stride": (1600, 0)},
    {"raw": sound(2.0), "sampling_rate": 16_000, "name": "a", "speaker": 7},
]


@pytest.mark.parametrize("mapping", MAPPINGS, ids=lambda mapping: "-".join(map(str, mapping)))
def test_mappings_equal_transformers(recognisers: tuple[Any, Any], mapping: dict[str, Any]) -> None:
    ours, theirs = recognisers
    for options in ({}, {"chunk_length_s": 0.8}):
        given = dict(mapping)
        assert ours(given, **options) == theirs(dict(mapping), **options)
        assert given.keys() == mapping.keys(), "the caller's mapping is left as it is"


# What transformers raises of a recording, or of a last chunk, that is too short for a frame, and of the
# chunks of an empty one; the warning is numpy's, of a mean over nothing.
TOO_SHORT_THERE = (ValueError, RuntimeError, RuntimeWarning, StopIteration)


@settings(max_examples=80, deadline=None, derandomize=True)  # a near tie of two letters may fall either way
@given(
    hundredths=st.lists(st.integers(0, 260), min_size=1, max_size=3),
    rate=st.sampled_from([16_000, 16_000, 8_000, 22_050]),
    form=st.sampled_from(["array", "float64", "mapping", "stereo", "stride", "path", "bytes"]),
    batch_size=st.integers(1, 4),
    options=st.fixed_dictionaries(
        {},
        optional={
            "chunk_length_s": st.sampled_from([0, 0.5, 0.83, 1, 30]),
            "stride_length_s": st.sampled_from([0, 0.1, 0.2, (0.2, 0.05), [0, 0.15]]),
            "return_timestamps": st.sampled_from(["char", "word"]),
        },
    ),
)
def test_drawn_calls_equal_transformers(
    recognisers: tuple[Any, Any],
    tmp_path_factory: pytest.TempPathFactory,
    hundredths: list[int],
    rate: int,
    form: str,
    batch_size: int,
    options: dict[str, Any],
) -> None:
    ours, theirs = recognisers
    if ours.model.config.add_adapter:  # an odd number of mel frames, or a whole one: see above
        rate, hundredths = 16_000, [2 * (n // 2) + 2 for n in hundredths]
    items, expected = [], []
    for n in hundredths:
        item, samples = drawn(n, rate, form, tmp_path_factory.getbasetemp())
        try:
            expected.append(theirs(samples, **options))
        except TOO_SHORT_THERE:
            if n == 0 or not options.get("chunk_length_s"):
                with pytest.raises(EmptyAudioError if n == 0 else TooShortError):
                    ours(item, **options)
            continue  # a last chunk too short for a frame adds nothing here
        assert ours(item, batch_size=batch_size, **options) == expected[-1]
        items.append(item)
    assert ours(items, batch_size=batch_size, **options) == expected


def drawn(hundredths: int, rate: int, form: str, folder: Path) -> tuple[Any, Any]:
    """A recording in one of the forms, and what transformers takes for the same."""
    as_mapping = form in ("mapping", "stereo", "stride")
    samples = sound(hundredths / 100, rate if as_mapping else 16_000)
    if form == "float64":
        samples = samples.astype("float64")
    if as_mapping:
        raw = np.stack([samples, samples[::-1]]) if form == "stereo" else samples
        mapping = {"raw": raw, "sampling_rate": rate}
        if form == "stride":
            mapping["stride"] = (len(samples) // 5, len(samples) // 7)
        return mapping, dict(mapping)
    if form in ("path", "bytes"):
        path = folder / f"{hundredths}.wav"
        soundfile.write(path, samples, 16_000, subtype="FLOAT")
        return path.read_bytes() if form == "bytes" else path, samples
    return samples, samples


def test_real_speech_equals_transformers(recognisers: tuple[Any, Any], shared_data: Path) -> None:
    ours, theirs = recognisers
    path = min((shared_data / "libri").rglob("*.flac"), key=lambda path: path.stat().st_size)
    samples = soundfile.read(path, dtype="float32")[0]
    samples = samples[: 160 * ((len(samples) - 240) // 320) * 2 + 240]  # an even number of mel frames
    for options in ({}, {"chunk_length_s": 1.5, "return_timestamps": "word"}):
        assert ours(samples, **options) == theirs(samples, **options)


def test_times_with_an_adapter_are_those_of_its_longer_frames(tmp_path: Path) -> None:
    # transformers leaves the adapter's stride out of the ratio for wav2vec 2.0, and halves these times.
    folder = save_checkpoint(tmp_path, "adapter", "CTC")
    theirs = transformers.pipeline(ASR, str(folder), device="cpu")(sound(3.0), return_timestamps="char")
    ours = pipeline(ASR, folder, device="cpu")(sound(3.0), return_timestamps="char")
    assert ours["text"] == theirs["text"]
    for mine, other in zip(ours["chunks"], theirs["chunks"], strict=True):
        assert mine == {"text": other["text"], "timestamp": tuple(2 * t for t in other["timestamp"])}


CLASSIFIERS = [
    ("group", {}),
    ("layer", {"problem_type": "multi_label_classification"}),
    ("layer", {"problem_type": "regression", "use_weighted_layer_sum": True}),
    ("bert", {"problem_type": "single_label_classification"}),
]


@pytest.mark.parametrize(("family", "changes"), CLASSIFIERS, ids=str)
def test_classification_equals_transformers(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, family, "SequenceClassification", **changes)
    ours = pipeline(CLASSIFICATION, folder, device="cpu")
    theirs = transformers.pipeline(CLASSIFICATION, str(folder), device="cpu")
    sounds = [sound(seconds) for seconds in (1.9, 0.3, 3.1)]
    calls: list[dict[str, Any]] = [
        {},
        {"top_k": 2},
        {"top_k": 99},
        {"function_to_apply": "none", "top_k": 1},
        {"function_to_apply": "sigmoid"},
        {"function_to_apply": "softmax", "top_k": 3},
    ]
    for call in calls:
        expected = [theirs(wave, **call) for wave in sounds]
        for found in (
            [ours(wave, **call) for wave in sounds],
            ours(sounds, batch_size=3, **call),
            list(ours(iter(sounds), batch_size=2, **call)),
        ):
            assert_same_labels(found, expected)


@pytest.fixture(scope="module", params=["group", "bert"])
def classifiers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The classifier of this package and that of transformers, for one checkpoint."""
    folder = save_checkpoint(tmp_path_factory.mktemp("cls"), request.param, "SequenceClassification")
    theirs = transformers.pipeline(CLASSIFICATION, str(folder), device="cpu")
    return pipeline(CLASSIFICATION, folder, device="cpu"), theirs


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    hundredths=st.lists(st.integers(0, 260), min_size=1, max_size=3),
    rate=st.sampled_from([16_000, 16_000, 8_000, 22_050]),
    form=st.sampled_from(["array", "float64", "mapping", "path", "bytes"]),
    batch_size=st.integers(1, 4),
    options=st.fixed_dictionaries(
        {},
        optional={
            "top_k": st.integers(1, len(LABELS) + 1),
            "function_to_apply": st.sampled_from(["softmax", "sigmoid", "none"]),
        },
    ),
)
def test_drawn_classification_equals_transformers(
    classifiers: tuple[Any, Any],
    tmp_path_factory: pytest.TempPathFactory,
    hundredths: list[int],
    rate: int,
    form: str,
    batch_size: int,
    options: dict[str, Any],
) -> None:
    ours, theirs = classifiers
    items, expected = [], []
    for n in hundredths:
        item, samples = drawn(n, rate, form, tmp_path_factory.getbasetemp())
        try:
            expected.append(theirs(samples, **options))
        except TOO_SHORT_THERE:
            with pytest.raises(EmptyAudioError if n == 0 else TooShortError):
                ours(item, **options)
            continue
        items.append(item)
    assert_same_labels(ours(items, batch_size=batch_size, **options), expected)


def assert_same_labels(found: list[Any], expected: list[Any]) -> None:
    for mine, other in zip(found, expected, strict=True):
        assert [row["label"] for row in mine] == [row["label"] for row in other]
        scores = [row["score"] for row in other]
        np.testing.assert_allclose([row["score"] for row in mine], scores, atol=1e-4)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> AudioClassificationPipeline:
    folder = save_checkpoint(tmp_path_factory.mktemp("cls"), "group", "SequenceClassification")
    return pipeline(CLASSIFICATION, folder, device="cpu", top_k=2, function_to_apply="none")


def test_options_of_a_classifier_hold_unless_a_call_says_otherwise(classifier: Any) -> None:
    assert len(classifier(sound(0.5))) == 2
    assert len(classifier(sound(0.5), top_k=3)) == 3
    rows = classifier(sound(0.5), top_k=99, function_to_apply="softmax")
    assert len(rows) == len(LABELS)
    assert sum(row["score"] for row in rows) == pytest.approx(1)


def test_a_classifier_refuses_what_it_cannot_use(classifier: Any) -> None:
    with pytest.raises(ValueError, match="function_to_apply is 'tanh'"):
        classifier(sound(0.5), function_to_apply="tanh")
    with pytest.raises(ValueError, match="top_k is 0"):
        classifier(sound(0.5), top_k=0)
    with pytest.raises(TooShortError, match="120 samples, too few"):
        classifier(sound(0.5)[:120])


def test_parts_may_be_given_loaded(recogniser: Any, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, "layer", "CTC")
    named = pipeline(ASR, recogniser.model, feature_extractor=folder, tokenizer=folder)
    assert named(sound(0.8)) == recogniser(sound(0.8))
    parts = {"feature_extractor": recogniser.feature_extractor, "tokenizer": recogniser.tokenizer}
    assert pipeline(ASR, recogniser.model, **parts)(sound(0.8)) == recogniser(sound(0.8))


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", torch.bfloat16])
def test_dtype_and_kernel_are_the_models(tmp_path: Path, dtype: Any) -> None:
    folder = save_checkpoint(tmp_path, "layer", "CTC")
    found = pipeline(ASR, folder, device=-1, dtype=dtype, model_kwargs={"attn_implementation": "eager"})
    expected = torch.bfloat16 if "bfloat16" in str(dtype) else torch.float32
    assert next(found.model.parameters()).dtype == expected
    assert found.model.attn_implementation == "eager"
    assert isinstance(found(sound(0.8))["text"], str)


def test_what_cannot_be_loaded_is_an_error(recogniser: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="task is 'translation'"):
        pipeline("translation", "somewhere")
    with pytest.raises(ConfigError, match="give one of the two"):
        pipeline(ASR, "somewhere", device="cpu", device_map="auto")
    with pytest.raises(ConfigError, match="pass feature_extractor and tokenizer"):
        pipeline(ASR, recogniser.model)
    folder = save_checkpoint(tmp_path, "group", "SequenceClassification")
    with pytest.raises(CheckpointError, match="lm_head"):
        pipeline(ASR, folder, device="cpu")
