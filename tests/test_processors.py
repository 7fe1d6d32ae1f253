"""The processor, against transformers; and which processor a checkpoint's files ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from w2v_ray.audio.features import Wav2Vec2FeatureExtractor
from w2v_ray.audio.seamless import SeamlessM4TFeatureExtractor
from w2v_ray.errors import CheckpointError, OutputError
from w2v_ray.processors import (
    AutoFeatureExtractor,
    AutoProcessor,
    AutoTokenizer,
    Wav2Vec2BertProcessor,
    Wav2Vec2Processor,
)
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

RATE = 16_000
VOCABULARY = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINSHRDLU'"])}
TEXTS = ["NOTE THIS", "SO"]
WAVES = [np.linspace(-0.5, 0.7, n, dtype=np.float32) ** 3 for n in (400, 560)]


FAMILIES = ["wav2vec2", "wav2vec2-bert"]


def made(family: str, folder: Path) -> tuple[Any, Any]:
    """The oracle's processor and ours."""
    path = folder / "given-vocab.json"
    path.write_text(json.dumps(VOCABULARY))
    if family == "wav2vec2":
        extractors: tuple[Any, Any] = (
            transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True),
            Wav2Vec2FeatureExtractor(return_attention_mask=True),
        )
        classes: tuple[Any, Any] = (transformers.Wav2Vec2Processor, Wav2Vec2Processor)
    else:
        extractors = (
            transformers.SeamlessM4TFeatureExtractor(padding_value=1),
            SeamlessM4TFeatureExtractor(padding_value=1),
        )
        classes = (transformers.Wav2Vec2BertProcessor, Wav2Vec2BertProcessor)
    return (
        classes[0](extractors[0], transformers.Wav2Vec2CTCTokenizer(str(path))),
        classes[1](extractors[1], Wav2Vec2CTCTokenizer(path)),
    )


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Any, Wav2Vec2Processor]:
    return made("wav2vec2", tmp_path)


def assert_same(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert type(found[name]) is type(expected[name])
        for row, wanted in zip(found[name], expected[name], strict=True):
            np.testing.assert_allclose(np.asarray(row), np.asarray(wanted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["np", "pt", None])
def test_calls_equal_the_oracles(pair: tuple[Any, Wav2Vec2Processor], kind: str | None) -> None:
    theirs, ours = pair
    shared = {"padding": True, "return_tensors": kind}
    for call in (
        {"audio": WAVES, "sampling_rate": RATE},
        {"audio": WAVES, "sampling_rate": RATE, "return_attention_mask": False},
        {"audio": WAVES[0], "text": "SO", "sampling_rate": RATE},
        {"audio": WAVES, "text": TEXTS, "sampling_rate": RATE, "pad_to_multiple_of": 16},
        {"audio": WAVES, "text": TEXTS, "sampling_rate": RATE, "add_special_tokens": False},
        {"text": TEXTS},
        {"text": "SO", "padding": "max_length", "max_length": 12},
        {"text": TEXTS, "text_kwargs": {"padding_side": "left"}},
    ):
        assert_same(ours(**(shared | call)), theirs(**(shared | call)))
    audio_first = ours(WAVES, sampling_rate=RATE, **shared)
    assert_same(audio_first, theirs(WAVES, sampling_rate=RATE, **shared))
    assert set(audio_first) <= set(ours.model_input_names)
    assert ours.model_input_names == theirs.model_input_names


def test_padding_equals_the_oracles(pair: tuple[Any, Wav2Vec2Processor]) -> None:
    theirs, ours = pair
    features = [{"input_values": wave} for wave in WAVES]
    labels = [{"input_ids": ours.tokenizer.encode(text)} for text in TEXTS]
    for options in ({"return_tensors": "pt"}, {"padding": "longest", "pad_to_multiple_of": 64}):
        assert_same(
            ours.pad(features, labels=labels, **options), theirs.pad(features, labels=labels, **options)
        )
        assert_same(ours.pad(features, **options), theirs.pad(features, **options))
        assert_same(ours.pad(labels=labels, **options), theirs.pad(labels=labels, **options))


def test_paths_are_read_as_by_the_oracle(pair: tuple[Any, Wav2Vec2Processor]) -> None:
    theirs, ours = pair
    logits = torch.randn(2, 40, len(VOCABULARY), generator=torch.Generator().manual_seed(0))
    ids = logits.argmax(-1)
    assert ours.batch_decode(ids) == theirs.batch_decode(ids)
    assert ours.decode(ids[0]) == theirs.decode(ids[0])
    found, expected = (p.decode(ids[0], output_word_offsets=True) for p in (ours, theirs))
    assert found.word_offsets == expected.word_offsets


def test_what_cannot_be_is_refused(pair: tuple[Any, Wav2Vec2Processor], tmp_path: Path) -> None:
    ours = pair[1]
    with pytest.raises(ValueError, match="neither audio nor text"):
        ours()
    with pytest.raises(ValueError, match="neither input_features nor labels"):
        ours.pad()
    with pytest.raises(ValueError, match="8000 Hz, expected 16000"):
        ours(WAVES[0], sampling_rate=8000)
    with pytest.raises(TypeError, match=r"no option 'paddding'; it knows add_special_tokens, .* verbose"):
        ours(WAVES[0], sampling_rate=RATE, paddding=True)
    with pytest.raises(TypeError, match="no option 'device'"):
        ours(WAVES[0], sampling_rate=RATE, common_kwargs={"device": "cpu"})
    with pytest.raises(ValueError, match="padding is given twice, in audio_kwargs and beside it"):
        ours(WAVES[0], sampling_rate=RATE, padding=True, audio_kwargs={"padding": False})
    with pytest.raises(TypeError, match="feature_extractor is a Wav2Vec2CTCTokenizer, expected a"):
        Wav2Vec2Processor(ours.tokenizer, ours.feature_extractor)
    with pytest.raises(TypeError, match="tokenizer is a Wav2Vec2FeatureExtractor, expected a Wav2Vec2CTC"):
        Wav2Vec2BertProcessor(ours.feature_extractor, ours.feature_extractor)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        ours.save_pretrained(tmp_path / "file")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("saved_by", ["theirs", "ours", "theirs, then ours"])
def test_files_go_both_ways(family: str, saved_by: str, tmp_path: Path) -> None:
    theirs, ours = made(family, tmp_path)
    if "then" in saved_by:  # what an older processor left in the folder is replaced
        transformers.Wav2Vec2Processor(
            transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000), theirs.tokenizer
        ).save_pretrained(tmp_path / "saved")
    (theirs if saved_by == "theirs" else ours).save_pretrained(tmp_path / "saved")

    waves = [np.tile(wave, 3) for wave in WAVES]
    for loader in (AutoProcessor, type(ours)):
        loaded = loader.from_pretrained(tmp_path / "saved")
        assert type(loaded) is type(ours)
        assert type(loaded.feature_extractor) is type(ours.feature_extractor)
        assert loaded.feature_extractor.to_dict() == ours.feature_extractor.to_dict()
        assert loaded.tokenizer.get_vocab() == ours.tokenizer.get_vocab()
        found, expected = (
            processor(waves, TEXTS, sampling_rate=RATE, padding=True) for processor in (loaded, theirs)
        )
        assert found["labels"] == expected["labels"]
        np.testing.assert_array_equal(
            np.asarray(found["attention_mask"]), np.asarray(expected["attention_mask"])
        )
    for loader, part in ((AutoFeatureExtractor, "feature_extractor"), (AutoTokenizer, "tokenizer")):
        assert type(loader.from_pretrained(tmp_path / "saved")) is type(getattr(ours, part))
    back = transformers.AutoProcessor.from_pretrained(tmp_path / "saved")
    assert type(back) is type(theirs)
    assert back.feature_extractor.to_dict() == theirs.feature_extractor.to_dict()
    assert back.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
    assert back.decode([11, 8, 0, 8]) == loaded.decode([11, 8, 0, 8]) == "SOO"


def test_options_of_one_family_are_known_to_it(tmp_path: Path) -> None:
    ours = made("wav2vec2-bert", tmp_path)[1]
    wave = np.tile(WAVES[0], 5)
    features = ours(wave, sampling_rate=RATE, do_normalize_per_mel_bins=False, device="cpu")
    extractor = ours.feature_extractor
    np.testing.assert_array_equal(
        features.input_features,
        extractor(wave, sampling_rate=RATE, do_normalize_per_mel_bins=False).input_features,
    )
    assert ours.model_input_names == ["input_features", "attention_mask", "labels"]


def test_what_is_saved_serves_transformers_4_too(pair: tuple[Any, Wav2Vec2Processor], tmp_path: Path) -> None:
    theirs, ours = pair
    ours.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").unlink()  # which it does not look into
    for loader in (AutoProcessor, transformers.AutoProcessor):
        loaded = loader.from_pretrained(tmp_path)
        assert loaded.feature_extractor.to_dict() == theirs.feature_extractor.to_dict()


@pytest.mark.parametrize("family", FAMILIES)
def test_older_checkpoints_are_told_by_their_config(family: str, tmp_path: Path) -> None:
    # The first checkpoints name no class of a processor or a tokenizer anywhere.
    theirs, ours = made(family, tmp_path)
    ours.feature_extractor.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(VOCABULARY))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    assert type(AutoProcessor.from_pretrained(tmp_path)) is type(ours)
    assert type(transformers.AutoProcessor.from_pretrained(tmp_path)) is type(theirs)
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is Wav2Vec2CTCTokenizer
    # Nor one of a feature extractor; transformers takes that of waveforms for both families.
    (tmp_path / "preprocessor_config.json").write_text("{}")
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path)) is type(ours.feature_extractor)
    assert type(AutoProcessor.from_pretrained(tmp_path).feature_extractor) is type(ours.feature_extractor)


def test_a_processor_takes_the_extractor_that_the_files_name(tmp_path: Path) -> None:
    ours = made("wav2vec2-bert", tmp_path)[1]
    Wav2Vec2Processor(ours.feature_extractor, ours.tokenizer).save_pretrained(tmp_path / "saved")
    loaded = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert type(loaded) is Wav2Vec2Processor
    assert type(loaded.feature_extractor) is SeamlessM4TFeatureExtractor
    back = transformers.AutoProcessor.from_pretrained(tmp_path / "saved")
    assert type(back.feature_extractor) is transformers.SeamlessM4TFeatureExtractor


def test_overrides_reach_the_part_that_knows_them(tmp_path: Path) -> None:
    made("wav2vec2", tmp_path)[1].save_pretrained(tmp_path)
    nested = {"eng": VOCABULARY, "fra": VOCABULARY | {"\u00e9": len(VOCABULARY)}}
    (tmp_path / "vocab.json").write_text(json.dumps(nested))
    for loader in (AutoProcessor, Wav2Vec2Processor):
        loaded = loader.from_pretrained(tmp_path, target_lang="fra", return_attention_mask=False)
        assert loaded.tokenizer.convert_ids_to_tokens(len(VOCABULARY)) == "\u00e9"
        assert not loaded.feature_extractor.return_attention_mask
    assert AutoTokenizer.from_pretrained(tmp_path, target_lang="eng").target_lang == "eng"
    assert not AutoFeatureExtractor.from_pretrained(tmp_path, do_normalize=False).do_normalize
    with pytest.raises(TypeError, match=r"no setting 'target'; it knows .*do_normalize, .*target_lang"):
        AutoProcessor.from_pretrained(tmp_path, target="fra")


@pytest.mark.parametrize(
    ("loader", "files", "reason"),
    [
        (AutoFeatureExtractor, {"config.json": {}}, "has no preprocessor_config.json"),
        (
            AutoFeatureExtractor,
            {"preprocessor_config.json": {"feature_extractor_type": "WhisperFeatureExtractor"}},
            "preprocessor_config.json says feature_extractor_type 'WhisperFeatureExtractor', expected",
        ),
        (AutoFeatureExtractor, {"preprocessor_config.json": {}}, "says which feature extractor it needs"),
        (
            AutoFeatureExtractor,
            {"preprocessor_config.json": {}, "config.json": {"model_type": "whisper"}},
            "model_type of .*config.json says 'whisper', expected wav2vec2 or wav2vec2-bert",
        ),
        (AutoTokenizer, {"vocab.json": {"a": 0}}, "says which tokenizer it needs"),
        (AutoTokenizer, {"config.json": {"model_type": "wav2vec2"}}, "has no vocab.json"),
        (AutoTokenizer, {"config.json": {"model_type": "bert"}}, "config.json says 'bert'"),
        (AutoTokenizer, {"config.json": {"tokenizer_class": "BertTokenizer"}}, "says tokenizer_class 'Bert"),
        (
            AutoTokenizer,
            {"vocab.json": {"a": 0}, "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}},
            "tokenizer_config.json says tokenizer_class 'BertTokenizer'",
        ),
    ],
)
def test_parts_of_other_checkpoints_are_refused_by_what_was_found(
    tmp_path: Path, loader: Any, files: dict[str, object], reason: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=reason) as caught:
        loader.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "no file of model .* says which processor it needs"),
        ({"config.json": {"model_type": "whisper"}}, "model_type of .*config.json says 'whisper', expected"),
        (
            {
                "processor_config.json": {"processor_class": "WhisperProcessor"},
                "config.json": {"model_type": "wav2vec2"},
            },
            "processor_class of .*processor_config.json says 'WhisperProcessor'",
        ),
        (
            {"preprocessor_config.json": {"processor_class": "Speech2TextProcessor"}},
            "processor_class of .*preprocessor_config.json says 'Speech2TextProcessor'",
        ),
        ({"tokenizer_config.json": {"processor_class": 3}}, "tokenizer_config.json says 3"),
        ({"tokenizer_config.json": {"processor_class": ["a"]}}, r"tokenizer_config.json says \['a'\]"),
        ({"config.json": {"model_type": "wav2vec2"}}, "has no preprocessor_config.json"),
    ],
)
def test_other_checkpoints_are_refused_by_what_was_found(
    tmp_path: Path, files: dict[str, object], reason: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=reason) as caught:
        AutoProcessor.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)
