"""The local pipeline against transformers' pipeline, on the same small random checkpoints and sounds."""

from __future__ import annotations

import functools
import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers

from w2v_ray.errors import (
    CheckpointError,
    ConfigError,
    DecodeError,
    EmptyAudioError,
    ReadError,
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


def test_options_of_the_constructor_hold_for_all_calls(recogniser: Any) -> None:
    parts = (recogniser.model, recogniser.feature_extractor, recogniser.tokenizer)
    options: dict[str, Any] = {"chunk_length_s": 1, "stride_length_s": 0.1, "return_timestamps": "word"}
    chosen = AutomaticSpeechRecognitionPipeline(*parts, **options, batch_size=2)
    assert chosen(sound(2.5)) == recogniser(sound(2.5), **options)
    assert chosen(sound(2.5), return_timestamps="char") == recogniser(
        sound(2.5), **(options | {"return_timestamps": "char"})
    )


def test_an_iterator_takes_recordings_as_it_is_read(recogniser: Any) -> None:
    taken = []

    def sounds() -> Iterator[np.ndarray]:
        for seconds in (0.5, 0.6, 0.7):
            taken.append(seconds)
            yield sound(seconds)

    results = recogniser(sounds())
    assert taken == []
    next(results)
    assert taken == [0.5]
    assert len(list(results)) == 2


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


def test_files_and_their_bytes_equal_their_samples(recogniser: Any, tmp_path: Path) -> None:
    samples = np.round(sound(1.5) * 32767) / 32768  # what 16 bits hold
    expected = recogniser(samples)
    for name in ("a.wav", "a.flac"):
        path = tmp_path / name
        soundfile.write(path, samples, 16_000, subtype="PCM_16")
        encoded = path.read_bytes()
        for item in (path, str(path), encoded, {"bytes": encoded, "path": None}, {"path": str(path)}):
            assert recogniser(item) == expected


def test_files_of_another_rate_equal_their_samples_resampled(recogniser: Any) -> None:
    stereo = np.stack([sound(2.0, 22_050), sound(2.0, 22_050)[::-1]], axis=1)
    file = io.BytesIO()
    soundfile.write(file, stereo, 22_050, subtype="FLOAT", format="WAV")
    expected = recogniser({"raw": stereo.mean(axis=1), "sampling_rate": 22_050})
    assert recogniser(file.getvalue()) == expected


def test_urls_are_fetched(recogniser: Any, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(1.0), 16_000, subtype="FLOAT")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert recogniser(f"{address}/a.wav") == recogniser(sound(1.0))
        with pytest.raises(ReadError, match=r"b\.wav cannot be fetched .*404"):
            recogniser(f"{address}/b.wav")
        server.shutdown()


def test_times_with_an_adapter_are_those_of_its_longer_frames(tmp_path: Path) -> None:
    # transformers leaves the adapter's stride out of the ratio for wav2vec 2.0, and halves these times.
    folder = save_checkpoint(tmp_path, "adapter", "CTC")
    theirs = transformers.pipeline(ASR, str(folder), device="cpu")(sound(3.0), return_timestamps="char")
    ours = pipeline(ASR, folder, device="cpu")(sound(3.0), return_timestamps="char")
    assert ours["text"] == theirs["text"]
    for mine, other in zip(ours["chunks"], theirs["chunks"], strict=True):
        assert mine == {"text": other["text"], "timestamp": tuple(2 * t for t in other["timestamp"])}


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (np.zeros(300, np.float32), TooShortError, "300 samples, too few"),
        (np.zeros(0, np.float32), EmptyAudioError, "no samples"),
        (np.zeros((16_000, 3), np.float32), ValueError, r"\(16000, 3\), expected"),
        (np.zeros((2, 2, 9), np.float32), ValueError, r"\(2, 2, 9\), expected"),
        ({"raw": np.zeros(9, np.float32)}, ValueError, "without sampling_rate"),
        ({"text": "hello"}, ValueError, "mapping of text"),
        ({"path": "a.wav", "stride": (1, 1)}, ValueError, "mapping of path, stride"),
        ({"raw": np.zeros(9), "sampling_rate": 16_000, "stride": (5, 5)}, ValueError, "5 and 5 of 9"),
        ({"raw": 5, "sampling_rate": 16_000}, TypeError, "type int"),
        ("no/such.wav", ReadError, "no/such.wav cannot be read"),
        (b"no audio at all", DecodeError, "no audio was recognised"),
    ],
)
@pytest.mark.parametrize("chunk_length_s", [None, 1.0])
def test_recordings_that_cannot_be_used_are_errors(
    recogniser: Any, item: Any, error: type[Exception], message: str, chunk_length_s: float | None
) -> None:
    with pytest.raises(error, match=message):
        recogniser(item, chunk_length_s=chunk_length_s)
    with pytest.raises(error, match=message):
        recogniser([sound(0.5), item], chunk_length_s=chunk_length_s, batch_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_timestamps": "sentence"}, "return_timestamps is 'sentence'"),
        ({"return_timestamps": True}, "return_timestamps is True"),
        ({"chunk_length_s": 1, "stride_length_s": 0.5}, "chunk_length_s is 1"),
        ({"chunk_length_s": 1, "stride_length_s": (-0.1, 0)}, "stride_length_s -0.1"),
        ({"batch_size": -1}, "batch_size is -1"),
    ],
)
def test_options_that_cannot_be_used_are_errors(
    recogniser: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recogniser(sound(0.5), **options)


def test_a_chunk_too_short_for_a_frame_adds_nothing(recogniser: Any) -> None:
    rest = np.concatenate([sound(1.0), np.zeros(100, np.float32)])
    options: dict[str, Any] = {"chunk_length_s": 1, "stride_length_s": 0, "batch_size": 2}
    assert recogniser(rest, **options) == recogniser(sound(1.0), **options)


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
