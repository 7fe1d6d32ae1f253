"""The beam search: beside pyctcdecode, beside a reference from the definitions, and its own surface."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import pickle
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.native.beam_cases import compare, kenlm_path, random_case, random_words, write_arpa
from tests.oracles import Fusion, search_beams
from w2v_ray.errors import ConfigError, LanguageModelError
from w2v_ray.text import (
    Alphabet,
    BeamSearchDecoderCTC,
    KenlmModel,
    LanguageModel,
    NgramModel,
    build_ctcdecoder,
    open_language_model,
)
from w2v_ray.text._beam import set_order

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pyctcdecode

LABELS = ["", " ", "a", "b", "c"]
WORDS = ["a", "ab", "abc", "b", "ba", "cab"]


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.arpa"
    write_arpa(path, random.Random(3), words=WORDS, order=3)
    return path


def emissions(number: int, *, frames: int = 25, labels: int = len(LABELS)) -> list[NDArray[Any]]:
    noise = np.random.default_rng(5)
    return [noise.normal(0, 2, (frames, labels)).astype(np.float32) for _ in range(number)]


# 109: two labels are blanks; 5094: one text is words in several ways, through labels that hold a space.
@pytest.mark.parametrize("seed", [*range(120), 5094])
def test_beams_are_pyctcdecodes(seed: int, tmp_path: Path) -> None:
    case = random_case(seed, tmp_path)
    path, their_path = (str(case.arpa), str(kenlm_path(case.arpa))) if case.arpa else (None, None)
    theirs = pyctcdecode.build_ctcdecoder(case.labels, their_path, **case.model)
    ours = build_ctcdecoder(case.labels, path, **case.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of NumPy in there, for no frames and for -inf
        expected = theirs.decode_beams(case.logits, **case.options)
    theirs.cleanup()
    got = ours.decode_beams(case.logits, **case.options)
    found = compare(expected, got)
    assert found.all or found.is_tie, (expected[0], got[0])


def test_noisy_speech_is_decoded_as_pyctcdecode_does(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "misc" / "ctc"
    logits = np.array(json.loads((folder / "libri_logits.json").read_text()), dtype=np.float32)
    labels = json.loads((folder / "libri_labels.json").read_text())
    arpa = tmp_path / "model.arpa"
    words = ["i", "a", "have", "good", "deal", "will", "what", "mind", "upon", "doubt", "shall", "day"]
    write_arpa(arpa, random.Random(0), words=words, order=3)
    noise = np.random.default_rng(1)
    lists = 0
    for path in (None, str(arpa)):
        theirs, ours = pyctcdecode.build_ctcdecoder(labels, path), build_ctcdecoder(labels, path)
        for size, width, hotwords in itertools.product((0.0, 0.5, 1.0), (1, 100), (None, ["good deal"])):
            emission = (logits / 2 + noise.normal(0, size, logits.shape)).astype(np.float32)
            options: dict[str, Any] = {"beam_width": width, "hotwords": hotwords}
            found = compare(theirs.decode_beams(emission, **options), ours.decode_beams(emission, **options))
            assert found.top or found.is_tie
            lists += found.all
            assert ours.decode(emission, **options) == theirs.decode(emission, **options)
    assert lists >= 23


@pytest.mark.parametrize("seed", range(40))
def test_beams_are_those_of_the_definition(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    words = random_words(rng, "abc")
    write_arpa(tmp_path / "model.arpa", rng, words=words, order=3)
    model = open_language_model(tmp_path / "model.arpa")
    weights: dict[str, Any] = {
        "alpha": rng.random(),
        "beta": rng.random(),
        "score_boundary": rng.random() < 0.5,
    }
    use_model = rng.random() < 0.7
    options: dict[str, Any] = {
        "beam_width": rng.choice([1, 3, 10]),
        "prune_history": rng.random() < 0.5,
        "hotwords": ("ab", "b ca") if rng.random() < 0.4 else (),
    }
    logits = np.random.default_rng(seed).normal(0, 2, (12, len(LABELS)))
    fusion = Fusion(model, frozenset(words), **weights) if use_model else None
    expected = search_beams(logits, LABELS, fusion=fusion, **options)
    language_model = LanguageModel(model, words, **weights) if use_model else None
    got = BeamSearchDecoderCTC(Alphabet(LABELS, False), language_model).decode_beams(logits, **options)
    assert [(text, spans) for text, _, spans, _, _ in got] == [
        (text, spans) for text, spans, _, _ in expected
    ]
    for (*_, logit_score, score), (*_, expected_logit, expected_score) in zip(got, expected, strict=True):
        assert logit_score == pytest.approx(expected_logit, abs=1e-9)
        assert score == pytest.approx(expected_score, abs=1e-5)  # the model's own scores are float32


def test_columns_come_in_the_order_of_a_set() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        size = rng.choice([8, 29, 64, 100, 1000, 5000])
        columns = sorted(rng.sample(range(size), min(size, rng.choice([0, 1, 4, 5, 18, 19, 30, 80, 200]))))
        best = rng.choice(columns) if columns and rng.random() < 0.8 else rng.randrange(size)
        assert set_order(columns, best) == list(set(columns) | {best})


def test_kenlm_model_gives_what_the_native_one_gives(arpa: Path) -> None:
    native = build_ctcdecoder(LABELS, str(arpa))
    asked = BeamSearchDecoderCTC(native.alphabet, LanguageModel(KenlmModel(arpa), WORDS))
    for emission in emissions(5):
        expected = native.decode_beams(emission)
        got = asked.decode_beams(emission)
        assert [(b[0], b[2], b[3], b[4]) for b in got] == [(b[0], b[2], b[3], b[4]) for b in expected]
        following = [
            decoder.decode_beams(emission, lm_start_state=beams[0][1])
            for decoder, beams in ((native, expected), (asked, got))
        ]
        assert [b[4] for b in following[0]] == [b[4] for b in following[1]]
    batch = asked.decode_batch(None, emissions(9), num_threads=3)
    assert batch == [native.decode(emission) for emission in emissions(9)]


def test_model_goes_on_from_a_state(arpa: Path) -> None:
    ours, theirs = build_ctcdecoder(LABELS, str(arpa)), pyctcdecode.build_ctcdecoder(LABELS, str(arpa))
    first, second = emissions(2)
    mine = ours.decode_beams(second, lm_start_state=ours.decode_beams(first)[0][1])
    other = theirs.decode_beams(second, lm_start_state=theirs.decode_beams(first)[0][1])
    assert compare(other, mine).all
    assert mine[0][4] != ours.decode_beams(second)[0][4]


def test_batches_pools_and_threads_agree(arpa: Path) -> None:
    decoder = build_ctcdecoder(LABELS, str(arpa))
    data = emissions(40)
    expected = [decoder.decode(emission) for emission in data]
    assert decoder.decode_batch(None, data) == expected
    assert decoder.decode_batch(None, data, num_threads=4) == expected
    with multiprocessing.pool.ThreadPool(2) as pool:
        assert decoder.decode_batch(pool, data) == expected
        beams = decoder.decode_beams_batch(pool, data, beam_width=5)
    assert [[(b[0], b[2], b[3], b[4]) for b in decoder.decode_beams(x, beam_width=5)] for x in data] == beams
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(decoder.decode, data * 3)) == expected * 3
    assert decoder.decode_batch(None, []) == []


def test_pickled_and_saved_decoders_decode_alike(arpa: Path, tmp_path: Path) -> None:
    decoder = build_ctcdecoder(LABELS, str(arpa), alpha=0.7, beta=0.1)
    data = emissions(3)
    expected = [decoder.decode_beams(emission) for emission in data]
    copied = pickle.loads(pickle.dumps(decoder))
    assert [copied.decode_beams(emission) for emission in data] == expected
    decoder.save_to_dir(str(tmp_path))
    loaded = BeamSearchDecoderCTC.load_from_dir(str(tmp_path))
    assert [loaded.decode_beams(emission) for emission in data] == expected
    theirs = pyctcdecode.BeamSearchDecoderCTC.load_from_dir(str(tmp_path))
    assert [theirs.decode(emission) for emission in data] == [beams[0][0] for beams in expected]
    (tmp_path / "language_model" / "unigrams.txt").unlink()
    with pytest.raises(LanguageModelError, match=r"expected attrs\.json, unigrams\.txt and one model"):
        BeamSearchDecoderCTC.load_from_dir(str(tmp_path))


def test_what_pyctcdecode_saved_is_read(arpa: Path, tmp_path: Path) -> None:
    theirs = pyctcdecode.build_ctcdecoder(LABELS, str(arpa), alpha=0.3)
    theirs.save_to_dir(str(tmp_path))
    ours = BeamSearchDecoderCTC.load_from_dir(str(tmp_path))
    assert ours.language_model is not None
    assert ours.language_model.alpha == 0.3
    for emission in emissions(3):
        assert compare(theirs.decode_beams(emission), ours.decode_beams(emission)).all


def test_weights_change_for_a_call_or_for_good(arpa: Path) -> None:
    decoder = build_ctcdecoder(LABELS, str(arpa))
    emission = emissions(1)[0]
    before = decoder.decode_beams(emission)
    once = decoder.decode_beams(emission, alpha=2.0, beta=0.0, lm_score_boundary=False)
    assert once != before
    assert decoder.decode_beams(emission) == before
    decoder.reset_params(alpha=2.0, beta=0.0, lm_score_boundary=False)
    assert decoder.decode_beams(emission) == once
    with pytest.raises(ConfigError, match="alpha is 'high', expected a number"):
        decoder.reset_params(alpha="high")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "labels", [LABELS, ["<pad>", "<unk>", "\u2581a", "\u2581b", "a", "b", "\u2581", "c"]]
)
def test_tokens_spell_the_text_and_their_frames_rise(labels: list[str]) -> None:
    decoder = build_ctcdecoder(labels)
    for emission in emissions(20, labels=len(labels)):
        beams = decoder.decode_beams(emission)
        hypotheses = decoder.decode_hypotheses([emission], n_best=7)[0]
        assert [(h.text, h.words, h.logit_score, h.lm_score) for h in hypotheses] == [
            (b[0], b[2], b[3], b[4]) for b in beams[:7]
        ]
        for hypothesis in hypotheses:
            spelled = "".join(token.label for token in hypothesis.tokens)
            if not decoder.alphabet.is_bpe:
                assert spelled == hypothesis.text
            edges = [edge for token in hypothesis.tokens for edge in (token.start, token.end)]
            assert edges == sorted(edges)
            for index, (word, (start, end)) in enumerate(hypothesis.words):
                tokens = [token for token in hypothesis.tokens if token.word == index]
                assert "".join(token.label for token in tokens).replace("\u2581", "") == word
                letters = [token for token in tokens if token.label.strip("\u2581")]
                assert (
                    tokens[0].start <= start <= letters[0].start
                )  # a lone U+2581 is in the word or before it
                assert letters[-1].end == end
            assert all(decoder.alphabet.labels[token.column] == token.label for token in hypothesis.tokens)


def test_layout_and_type_of_the_logits_do_not_matter() -> None:
    decoder = build_ctcdecoder(LABELS)
    emission = np.round(emissions(1)[0] * 4) / 4
    expected = decoder.decode(emission)
    for other in (
        np.asfortranarray(emission),
        emission.astype(np.float64),
        emission.astype(">f4"),
        emission.astype(np.float16),
    ):
        assert decoder.decode(other) == expected
    assert decoder.decode((emission * 4).astype(np.int32)) == decoder.decode(emission * 4)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.zeros((3, 4)), r"shape \(3, 4\), expected \(frames, 5\)"),
        (np.zeros(5), r"shape \(5,\), expected"),
        (np.full((3, 5), np.nan), "frame 0 of the logits holds NaN"),
        (np.vstack([np.zeros(5), [0, 0, np.inf, 0, 0]]), "frame 1 of the logits holds inf"),
        (np.full((1, 5), -np.inf), "frame 0 of the logits holds nothing but -inf"),
        (np.zeros((3, 5), dtype=complex), "type complex128, expected float16"),
    ],
)
def test_logits_that_cannot_be_are_refused(logits: NDArray[Any], message: str) -> None:
    decoder = build_ctcdecoder(LABELS)
    with pytest.raises(ValueError, match=message):
        decoder.decode(logits)
    with pytest.raises(ValueError, match=message):
        decoder.decode_batch(None, [np.zeros((2, 5)), logits], num_threads=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_width": 0}, "beam_width is 0, expected a whole number of at least 1"),
        ({"beam_width": 2.5}, r"beam_width is 2\.5, expected a whole number"),
        ({"beam_prune_logp": 1.0}, r"beam_prune_logp is 1\.0, expected a number of at most 0"),
        ({"beam_prune_logp": float("nan")}, "beam_prune_logp is nan, expected a number of at most 0"),
    ],
)
def test_options_out_of_bounds_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_ctcdecoder(LABELS).decode(np.zeros((2, 5)), **options)
    with pytest.raises(TypeError, match="gamma"):
        build_ctcdecoder(LABELS).decode(np.zeros((2, 5)), gamma=1.0)  # type: ignore[call-arg]


def test_a_model_of_nan_is_an_error(arpa: Path) -> None:
    decoder = build_ctcdecoder(LABELS, str(arpa), alpha=float("nan"))
    with pytest.raises(ValueError, match="no beam has a score"):
        decoder.decode(emissions(1)[0])


def test_nothing_is_decoded_from_no_frames_or_no_labels(arpa: Path) -> None:
    assert build_ctcdecoder(LABELS).decode_beams(np.zeros((0, 5))) == [("", None, [], 0.0, 0.0)]
    assert build_ctcdecoder(LABELS, str(arpa)).decode(np.zeros((0, 5))) == ""
    assert build_ctcdecoder([]).decode(np.zeros((4, 1))) == ""
    with pytest.raises(ValueError, match="the alphabet has no labels"):
        BeamSearchDecoderCTC(Alphabet([], False)).decode(np.zeros((4, 0)))


def test_words_without_unigrams(arpa: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is known: the words an ARPA file lists with a backoff, or all of a compiled model."""
    model = open_language_model(arpa)
    assert isinstance(model, NgramModel)
    model.save(tmp_path / "model.w2vlm")
    listed, compiled = (
        build_ctcdecoder(LABELS, str(arpa)),
        build_ctcdecoder(LABELS, str(tmp_path / "model.w2vlm")),
    )
    assert listed.language_model is not None
    assert compiled.language_model is not None
    assert listed.language_model.unigrams is not None
    assert compiled.language_model.unigrams is not None
    assert listed.language_model.unigrams.words() == sorted(["</s>", "<s>", *WORDS])
    assert listed.language_model.unigrams.words() == compiled.language_model.unigrams.words()
    for emission in emissions(3):
        assert [b[4] for b in listed.decode_beams(emission)] == [
            b[4] for b in compiled.decode_beams(emission)
        ]
    with caplog.at_level(logging.WARNING):
        LanguageModel(KenlmModel(arpa))
    assert "no unigrams are given" in caplog.text
