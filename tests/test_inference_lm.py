"""The local pipeline with a language model, against transformers' pipeline on the same checkpoints."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyctcdecode
import pytest
import torch
import transformers

from w2v_ray.inference import AutomaticSpeechRecognitionPipeline, pipeline
from w2v_ray.text import BeamSearchDecoderCTC

ASR = "automatic-speech-recognition"
TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": len(TOKENS),
}
WAVES = SMALL | {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
CALLS: list[dict[str, Any]] = [
    {},
    {"return_timestamps": "word"},
    {"chunk_length_s": 1.3, "stride_length_s": (0.3, 0.1), "return_timestamps": "word"},
    {"chunk_length_s": 0.9, "decoder_kwargs": {"beam_width": 5, "hotwords": ["ETA"], "hotword_weight": 4.0}},
    {"decoder_kwargs": {"beam_prune_logp": -3.0, "token_min_logp": -2.0}, "return_timestamps": "word"},
]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """pyctcdecode warns of every small model."""
    logging.getLogger("pyctcdecode").setLevel(logging.ERROR)
    yield
    logging.getLogger("pyctcdecode").setLevel(logging.NOTSET)


def write_arpa(path: Path) -> Path:
    """All words of two letters of a few, some likelier than others, and a few pairs."""
    random = np.random.default_rng(0)
    words = [first + second for first in "ETAONIHSR" for second in "ETAONIHSR"] + list("ETAO")
    pairs = [(*random.choice(words, 2),) for _ in range(200)]
    unigrams = "".join(f"{-random.uniform(1, 3):.4f}\t{word}\t-0.3\n" for word in words)
    bigrams = "".join(f"{-random.uniform(0.1, 1):.4f}\t{a} {b}\n" for a, b in sorted(set(pairs)))
    path.write_text(
        f"\\data\\\nngram 1={len(words) + 3}\nngram 2={len(set(pairs))}\n\n"
        f"\\1-grams:\n-2\t<unk>\t0\n-99\t<s>\t-0.2\n-1\t</s>\t0\n{unigrams}\n"
        f"\\2-grams:\n{bigrams}\n\\end\\\n"
    )
    return path


def save_checkpoint(folder: Path, family: str) -> Path:
    """A random checkpoint with a language model, all written by transformers."""
    name = "Wav2Vec2Bert" if family == "bert" else "Wav2Vec2"
    config = getattr(transformers, f"{name}Config")(**(SMALL if family == "bert" else WAVES))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = getattr(transformers, f"{name}ForCTC")(config).eval()
        torch.nn.init.normal_(model.lm_head.weight, std=0.5)
        with torch.no_grad():
            model.lm_head.bias[[0, 4]] = 1.0
    model.save_pretrained(folder)
    (folder / "given.json").write_text(json.dumps({token: index for index, token in enumerate(TOKENS)}))
    extractor = (
        transformers.SeamlessM4TFeatureExtractor()
        if family == "bert"
        else transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False)
    )
    decoder = pyctcdecode.build_ctcdecoder(TOKENS, str(write_arpa(folder / "words.arpa")))
    transformers.Wav2Vec2ProcessorWithLM(
        extractor, transformers.Wav2Vec2CTCTokenizer(str(folder / "given.json")), decoder
    ).save_pretrained(folder)
    return folder


def as_saved_by_transformers_4(folder: Path) -> Path:
    """Moves the extractor's settings to where transformers' pipeline looks for the processor's class."""
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    path.unlink()
    settings = settings["feature_extractor"] | {"processor_class": settings["processor_class"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def sound(seconds: float) -> np.ndarray:
    """Noise whose loudness and pitch move, so that frames differ."""
    random = np.random.default_rng(round(seconds * 1000))
    time = np.arange(round(seconds * 16_000)) / 16_000
    tone = np.sin(2 * np.pi * time * (200 + 900 * np.sin(5 * time)))
    return ((tone + random.standard_normal(len(time))) * np.sin(9 * time) * 0.2).astype(np.float32)


@pytest.fixture(scope="module", params=["group", "bert"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_saved_by_transformers_4(save_checkpoint(tmp_path_factory.mktemp("lm"), request.param))


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_recognition_equals_transformers(folder: Path, call: dict[str, Any]) -> None:
    ours, theirs = (make(ASR, str(folder), device="cpu") for make in (pipeline, transformers.pipeline))
    assert ours.type == theirs.type == "ctc_with_lm"
    assert type(ours.decoder) is BeamSearchDecoderCTC
    greedy = AutomaticSpeechRecognitionPipeline(ours.model, ours.feature_extractor, ours.tokenizer)
    for seconds in (3.37, 0.82, 2.0):
        expected = theirs(sound(seconds), **call)
        assert ours(sound(seconds), **call) == expected
        assert expected["text"] != greedy(sound(seconds))["text"], "the language model changes nothing"
    waves = [sound(seconds) for seconds in (1.9, 0.3, 3.1)]
    assert ours(waves, batch_size=2, **call) == [theirs(wave, **call) for wave in waves]


def test_files_of_transformers_5_are_enough(folder: Path, tmp_path: Path) -> None:
    """transformers' pipeline overlooks the language model of what transformers 5 saves."""
    family = "bert" if "bert" in (folder / "config.json").read_text() else "group"
    newer = save_checkpoint(tmp_path, family)
    assert not (newer / "preprocessor_config.json").exists()
    found, expected = (pipeline(ASR, path, device="cpu") for path in (newer, folder))
    assert found.type == "ctc_with_lm"
    assert found(sound(2.0)) == expected(sound(2.0))


def test_options_of_the_search_may_be_given_for_all_calls(folder: Path) -> None:
    options = {"beam_width": 3, "hotwords": ["ETA"], "hotword_weight": 20.0}
    found = pipeline(ASR, folder, device="cpu", decoder_kwargs=options)
    plain = pipeline(ASR, folder, device="cpu")
    assert found(sound(2.0)) == plain(sound(2.0), decoder_kwargs=options) != plain(sound(2.0))
    assert found(sound(2.0), decoder_kwargs={}) == plain(sound(2.0))


def test_another_decoder_is_used_instead(folder: Path) -> None:
    theirs = pyctcdecode.BeamSearchDecoderCTC.load_from_dir(str(folder))
    found = pipeline(ASR, folder, device="cpu", decoder=theirs)
    assert found.decoder is theirs
    assert found(sound(2.0)) == pipeline(ASR, folder, device="cpu")(sound(2.0))


def test_a_loaded_feature_extractor_leaves_the_language_model_out(folder: Path) -> None:
    """As in transformers: it is how text is decoded greedily all the same."""
    extractor = pipeline(ASR, folder, device="cpu").feature_extractor
    found = pipeline(ASR, folder, device="cpu", feature_extractor=extractor)
    assert (found.type, found.decoder) == ("ctc", None)
    by_name = pipeline(ASR, folder, device="cpu", feature_extractor=str(folder))
    assert by_name.type == "ctc_with_lm"


def test_what_a_search_cannot_do_is_refused(folder: Path) -> None:
    found = pipeline(ASR, folder, device="cpu")
    with pytest.raises(
        ValueError, match="return_timestamps is 'char', expected 'word' or null: a beam search"
    ):
        found(sound(0.8), return_timestamps="char")
    greedy = AutomaticSpeechRecognitionPipeline(found.model, found.feature_extractor, found.tokenizer)
    with pytest.raises(ValueError, match=r"decoder_kwargs is \{'beam_width': 3\}, but there is no decoder"):
        greedy(sound(0.8), decoder_kwargs={"beam_width": 3})


def test_a_language_model_that_no_file_asks_for_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_checkpoint(tmp_path, "group")
    for name in ("processor_config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        settings.pop("processor_class", None)
        (folder / name).write_text(json.dumps(settings))
    caplog.clear()
    found = pipeline(ASR, folder, device="cpu")
    assert caplog.messages == [
        f"the language model of {folder} is not used: no processor_class says Wav2Vec2ProcessorWithLM"
    ]
    assert found.type == "ctc"
