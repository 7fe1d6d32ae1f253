"""The processor with a language model, against transformers with pyctcdecode."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyctcdecode
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from w2v_ray.audio.features import Wav2Vec2FeatureExtractor
from w2v_ray.audio.seamless import SeamlessM4TFeatureExtractor
from w2v_ray.errors import CheckpointError, OutputError
from w2v_ray.processors import (
    AutoProcessor,
    Wav2Vec2DecoderWithLMOutput,
    Wav2Vec2Processor,
    Wav2Vec2ProcessorWithLM,
)
from w2v_ray.text import BeamSearchDecoderCTC, build_ctcdecoder
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

RATE = 16_000
TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINSHRDLU'"]
WORDS = ["A", "AN", "ANT", "TEA", "EAT", "NOTE", "NOT", "ONE", "SO", "SOON", "THIS", "IT'S", "HEARD"]
FAMILIES = ["wav2vec2", "wav2vec2-bert"]
FIELDS = ("text", "logit_score", "lm_score", "word_offsets")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """pyctcdecode warns of every small model."""
    logging.getLogger("pyctcdecode").setLevel(logging.ERROR)
    yield
    logging.getLogger("pyctcdecode").setLevel(logging.NOTSET)


def write_arpa(path: Path, seed: int, order: int) -> Path:
    """A model of random n-grams, with all of their beginnings and ends, as KenLM would have them."""
    draw = random.Random(seed)
    words = draw.sample(WORDS, draw.randint(2, len(WORDS)))
    of_order: list[list[tuple[str, ...]]] = [[(word,) for word in ("<unk>", "<s>", "</s>", *words)]]
    chain: tuple[str, ...] = ("<s>",)  # there is at least this one of each order
    for _ in range(order - 1):
        chain = (*chain, words[0])
        longer = {
            (*context, draw.choice([*words, "</s>"]))
            for context in of_order[-1]
            if not {"<unk>", "</s>"} & set(context) and draw.random() < 0.7
        }
        of_order.append(sorted(longer | {chain}))
    for shorter, longer_ones in zip(of_order[-2:0:-1], of_order[:1:-1], strict=True):
        shorter[:] = sorted({*shorter, *(gram[1:] for gram in longer_ones)})
    counts = "".join(f"ngram {n + 1}={len(grams)}\n" for n, grams in enumerate(of_order))
    sections = [f"\\data\\\n{counts}"]
    for n, grams in enumerate(of_order):
        lines = []
        for gram in grams:
            score = -99 if gram == ("<s>",) else -round(draw.uniform(0.1, 3), 4)
            back_off = f"\t{-round(draw.uniform(0, 1), 4)}" if n < order - 1 else ""
            lines.append(f"{score}\t{' '.join(gram)}{back_off}\n")
        sections.append(f"\\{n + 1}-grams:\n{''.join(lines)}")
    path.write_text("\n".join([*sections, "\\end\\\n"]), encoding="utf-8")
    return path


def write_vocabulary(folder: Path) -> Path:
    path = folder / "given-vocab.json"
    path.write_text(json.dumps({token: index for index, token in enumerate(TOKENS)}))
    return path


def made(folder: Path, family: str = "wav2vec2", **search: Any) -> tuple[Any, Wav2Vec2ProcessorWithLM]:
    """The oracle's processor and ours."""
    path = write_vocabulary(folder)
    if family == "wav2vec2":
        extractors: tuple[Any, Any] = (
            transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True),
            Wav2Vec2FeatureExtractor(return_attention_mask=True),
        )
    else:
        extractors = (
            transformers.SeamlessM4TFeatureExtractor(padding_value=1),
            SeamlessM4TFeatureExtractor(padding_value=1),
        )
    return (
        transformers.Wav2Vec2ProcessorWithLM(
            extractors[0],
            transformers.Wav2Vec2CTCTokenizer(str(path)),
            pyctcdecode.build_ctcdecoder(TOKENS, **search),
        ),
        Wav2Vec2ProcessorWithLM(
            extractors[1], Wav2Vec2CTCTokenizer(path), build_ctcdecoder(TOKENS, **search)
        ),
    )


def some_logits(seed: int, num_frames: int = 30, noise: float = 1.0) -> np.ndarray:
    """Frames that spell words, under noise."""
    draw = random.Random(seed)
    letters = "|".join(draw.choices(WORDS, k=num_frames))
    logits = np.random.default_rng(seed).normal(0, noise, (num_frames, len(TOKENS))).astype(np.float32)
    frame = 0
    for letter in letters:
        for index in [0] * draw.randint(1, 2) + [TOKENS.index(letter)] * draw.randint(1, 2):
            if frame == num_frames:
                return logits
            logits[frame, index] += 4
            frame += 1
    return logits


def beams_of(output: Any) -> list[tuple[Any, ...]]:
    """The beams of what decode returned, best first."""
    columns = [getattr(output, name) for name in FIELDS]
    if isinstance(columns[0], str):
        columns = [None if column is None else [column] for column in columns]
    return list(zip(*(column or [None] * len(columns[0]) for column in columns), strict=True))


def assert_same(found: Any, expected: Any) -> None:
    """The same beams in the same order, but for those whose scores tie."""
    assert (found.word_offsets is None) == (expected.word_offsets is None)
    assert type(found.text) is type(expected.text)
    ours, theirs = beams_of(found), beams_of(expected)
    assert len(ours) == len(theirs)
    for (text, logit_score, lm_score, words), other in zip(ours, theirs, strict=True):
        assert lm_score == pytest.approx(other[2], abs=1e-4)
        if text == other[0]:
            assert logit_score == pytest.approx(other[1], abs=1e-4)
            assert words == other[3]
        else:
            assert any(text == beam[0] and abs(lm_score - beam[2]) < 1e-4 for beam in theirs)


def split(output: Any, index: int) -> Wav2Vec2DecoderWithLMOutput:
    """What a batch's output says of one recording."""
    values = (getattr(output, name) for name in FIELDS)
    return Wav2Vec2DecoderWithLMOutput(*(None if value is None else value[index] for value in values))


LOGITS = st.builds(some_logits, st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([0.2, 1.0, 2.0]))
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "beam_width": st.sampled_from([1, 3, 20, 100]),
        "beam_prune_logp": st.sampled_from([-3.0, -10.0, -30.0]),
        "token_min_logp": st.sampled_from([-2.0, -5.0, -9.0]),
        "hotwords": st.lists(st.sampled_from([*WORDS, "TEA NOTE", "ROSE", ""]), max_size=3),
        "hotword_weight": st.sampled_from([0.0, 3.5, 10.0]),
        "alpha": st.sampled_from([0.0, 0.3, 1.2]),
        "beta": st.sampled_from([-1.0, 0.0, 2.0]),
        "unk_score_offset": st.sampled_from([-20.0, -3.0, 0.0]),
        "lm_score_boundary": st.booleans(),
        "output_word_offsets": st.booleans(),
        "n_best": st.sampled_from([1, 2, 5, 1000]),
    },
)
# A seed, and the order: 0 is no model. pyctcdecode finds no words in those of order 1.
MODELS = st.tuples(st.integers(0, 10_000), st.sampled_from([0, 2, 3, 4]))
GENERATED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def made_of(folder: Path, model: tuple[int, int]) -> tuple[Any, Wav2Vec2ProcessorWithLM]:
    seed, order = model
    path = str(write_arpa(folder / f"{seed}-{order}.arpa", seed, order)) if order else None
    return made(folder, kenlm_model_path=path)


@GENERATED
@given(model=MODELS, calls=st.lists(st.tuples(LOGITS, OPTIONS), min_size=1, max_size=3))
def test_decoding_equals_transformers(tmp_path: Path, model: Any, calls: list[Any]) -> None:
    theirs, ours = made_of(tmp_path, model)
    for logits, options in calls:  # weights that one call sets stay for the next
        assert_same(ours.decode(logits, **options), theirs.decode(logits, **options))


@settings(GENERATED, max_examples=15)
@given(model=MODELS, rows=st.lists(LOGITS, min_size=1, max_size=4), padded=st.booleans(), options=OPTIONS)
def test_batches_equal_transformers(
    tmp_path: Path, model: Any, rows: list[np.ndarray], padded: bool, options: dict[str, Any]
) -> None:
    theirs, ours = made_of(tmp_path, model)
    batch: Any = rows
    if padded:
        batch = np.full((len(rows), max(map(len, rows)), len(TOKENS)), -100.0, np.float32)
        for row, logits in zip(batch, rows, strict=True):
            row[: len(logits)] = logits
    found, expected = (
        ours.batch_decode(batch, **options),
        theirs.batch_decode(batch, num_processes=1, **options),
    )
    assert len(found.text) == len(expected.text) == len(rows)
    for index, logits in enumerate(rows):
        assert_same(split(found, index), split(expected, index))
        assert_same(split(found, index), ours.decode(logits, **options))


@GENERATED
@given(model=MODELS, logits=LOGITS, options=OPTIONS)
def test_a_decoder_of_pyctcdecode_is_used_as_it_is(
    tmp_path: Path, model: Any, logits: np.ndarray, options: dict[str, Any]
) -> None:
    theirs, ours = made_of(tmp_path, model)
    mixed = Wav2Vec2ProcessorWithLM(ours.feature_extractor, ours.tokenizer, theirs.decoder)
    assert mixed.decoder is theirs.decoder
    assert mixed.language_model is theirs.language_model
    found, expected = mixed.decode(logits, **options), theirs.decode(logits, **options)
    assert [getattr(found, name) for name in FIELDS] == [getattr(expected, name) for name in FIELDS]
    batch = mixed.batch_decode([logits, logits], **options)
    assert split(batch, 1) == found


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Any, Wav2Vec2ProcessorWithLM]:
    return made(tmp_path, kenlm_model_path=str(write_arpa(tmp_path / "model.arpa", 0, 3)))


def test_pools_threads_and_processes_give_the_same(
    pair: tuple[Any, Wav2Vec2ProcessorWithLM], caplog: pytest.LogCaptureFixture
) -> None:
    theirs, ours = pair
    mixed = Wav2Vec2ProcessorWithLM(ours.feature_extractor, ours.tokenizer, theirs.decoder)
    rows = [some_logits(seed, 25) for seed in range(5)]
    expected = theirs.batch_decode(rows, num_processes=1, output_word_offsets=True)
    with get_context("fork").Pool(2) as pool:
        found = [p.batch_decode(rows, pool, output_word_offsets=True) for p in (ours, mixed)]
        assert caplog.messages == []
        ours.batch_decode(rows, pool, num_processes=2)
        assert caplog.messages == ["num_processes is ignored: the pool that was passed has its own number"]
    found += [p.batch_decode(rows, num_processes=2, output_word_offsets=True) for p in (ours, mixed)]
    for output in found:
        for index in range(len(rows)):
            assert_same(split(output, index), split(expected, index))


def test_tensors_are_decoded_like_arrays(pair: tuple[Any, Wav2Vec2ProcessorWithLM]) -> None:
    logits = torch.from_numpy(some_logits(3))
    assert pair[1].decode(logits) == pair[1].decode(logits.numpy())
    batch = pair[1].batch_decode(logits[None])
    assert split(batch, 0) == pair[1].decode(logits)


def test_outputs_are_read_by_name_key_and_position(pair: tuple[Any, Wav2Vec2ProcessorWithLM]) -> None:
    theirs, ours = pair
    for options in ({}, {"output_word_offsets": True, "n_best": 2}):
        found, expected = ours.decode(some_logits(1), **options), theirs.decode(some_logits(1), **options)
        assert list(found) == found.keys() == list(expected.keys())
        assert found[0] == found["text"] == found.text == expected[0]
        assert found[:2] == found.to_tuple()[:2] == (found.text, found.logit_score)
        assert len(found.to_tuple()) == len(expected.to_tuple())


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_and_padding_equal_transformers(family: str, tmp_path: Path) -> None:
    theirs, ours = made(tmp_path, family)
    waves = [np.sin(np.arange(n) ** 1.3).astype(np.float32) for n in (1600, 2000)]
    texts = ["NOTE THIS", "SO"]

    def assert_equal(found: Any, expected: Any) -> None:
        assert found.keys() == expected.keys()
        for name in expected:
            for row, wanted in zip(found[name], expected[name], strict=True):
                np.testing.assert_allclose(np.asarray(row), np.asarray(wanted), rtol=1e-5, atol=1e-4)

    for call in (
        {"audio": waves, "sampling_rate": RATE, "padding": True, "return_tensors": "pt"},
        {"audio": waves[0], "sampling_rate": RATE, "text": "SO"},
        {"audio": waves, "sampling_rate": RATE, "text": texts, "padding": True},
        {"text": texts, "padding": True, "return_tensors": "np"},
        {"text": "SO"},
    ):
        assert_equal(ours(**call), theirs(**call))
    assert_equal(
        ours(waves, sampling_rate=RATE, padding=True), theirs(waves, sampling_rate=RATE, padding=True)
    )
    name = ours.model_input_names[0]
    rows = [{name: row} for row in ours(waves, sampling_rate=RATE)[name]]
    labels = [{"input_ids": ours.tokenizer(text).input_ids} for text in texts]
    assert_equal(ours.pad(list(rows), return_tensors="np"), theirs.pad(list(rows), return_tensors="np"))
    assert_equal(ours.pad(labels=labels), theirs.pad(labels=labels))
    assert_equal(
        ours.pad(list(rows), labels=labels, return_tensors="pt"),
        theirs.pad(list(rows), labels=labels, return_tensors="pt"),
    )
    with pytest.raises(ValueError, match="neither audio nor text"):
        ours()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("saved_by", ["theirs", "ours", "ours, twice", "ours, with theirs inside"])
def test_files_go_both_ways(family: str, saved_by: str, tmp_path: Path) -> None:
    arpa = write_arpa(tmp_path / "model.arpa", 0, 3)
    theirs, ours = made(tmp_path, family, kenlm_model_path=str(arpa), alpha=0.7, beta=0.3)
    saver: Any = theirs if saved_by == "theirs" else ours
    if "inside" in saved_by:
        saver = Wav2Vec2ProcessorWithLM(ours.feature_extractor, ours.tokenizer, theirs.decoder)
    folder = tmp_path / "saved"
    written = saver.save_pretrained(folder)
    if "twice" in saved_by:
        written = AutoProcessor.from_pretrained(folder).save_pretrained(folder)  # over what it reads
    files = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    assert written is None or sorted(written) == files
    assert sorted(path.name for path in (folder / "language_model").iterdir()) == [
        "attrs.json",
        "model.arpa",
        "unigrams.txt",
    ]
    found: list[Any] = [loader.from_pretrained(folder) for loader in (AutoProcessor, Wav2Vec2ProcessorWithLM)]
    back = transformers.AutoProcessor.from_pretrained(str(folder))
    assert type(back) is transformers.Wav2Vec2ProcessorWithLM
    assert back.feature_extractor.to_dict() == theirs.feature_extractor.to_dict()
    assert back.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
    for loaded in found:
        assert type(loaded) is Wav2Vec2ProcessorWithLM
        assert type(loaded.decoder) is BeamSearchDecoderCTC
        assert type(loaded.feature_extractor) is type(ours.feature_extractor)
        assert loaded.feature_extractor.to_dict() == ours.feature_extractor.to_dict()
        assert loaded.tokenizer.get_vocab() == ours.tokenizer.get_vocab()
    for loaded in (*found, back):
        assert (loaded.language_model.alpha, loaded.language_model.beta) == (0.7, 0.3)
        for seed in range(3):
            assert_same(
                loaded.decode(some_logits(seed), n_best=3, output_word_offsets=True),
                theirs.decode(some_logits(seed), n_best=3, output_word_offsets=True),
            )


def test_overrides_of_loading_reach_the_search(tmp_path: Path) -> None:
    ours = made(tmp_path, kenlm_model_path=str(write_arpa(tmp_path / "model.arpa", 0, 3)))[1]
    ours.save_pretrained(tmp_path / "saved")
    search = {"alpha": 2, "beta": -0.5, "unk_score_offset": -4.0, "score_boundary": False}
    found = AutoProcessor.from_pretrained(
        tmp_path / "saved", **search, return_attention_mask=False, unigram_encoding="utf-8"
    )
    expected = transformers.AutoProcessor.from_pretrained(str(tmp_path / "saved"), **search)
    for name, value in search.items():
        assert getattr(found.language_model, name) == getattr(expected.language_model, name) == value
    assert not found.feature_extractor.return_attention_mask
    for seed in range(3):
        assert_same(found.decode(some_logits(seed)), expected.decode(some_logits(seed)))
    with pytest.raises(TypeError, match=r"no setting 'gamma'; it knows added_.*, alpha, beta, .*do_norm"):
        AutoProcessor.from_pretrained(tmp_path / "saved", gamma=1)


def test_words_of_another_encoding(tmp_path: Path) -> None:
    ours = made(tmp_path, kenlm_model_path=str(write_arpa(tmp_path / "model.arpa", 0, 2)))[1]
    ours.save_pretrained(tmp_path / "saved")
    words = tmp_path / "saved" / "language_model" / "unigrams.txt"
    words.write_text(words.read_text(), encoding="utf-16")
    found, expected, misread = (
        auto.from_pretrained(str(tmp_path / "saved"), unigram_encoding=encoding)
        for auto, encoding in (
            (AutoProcessor, "utf-16"),
            (transformers.AutoProcessor, "utf-16"),
            (AutoProcessor, "latin-1"),
        )
    )
    for seed in range(3):
        assert_same(found.decode(some_logits(seed)), expected.decode(some_logits(seed)))
        assert found.decode(some_logits(seed)) == ours.decode(some_logits(seed))
        assert misread.decode(some_logits(seed)) != ours.decode(some_logits(seed))


def test_a_search_without_a_language_model_is_saved_too(tmp_path: Path) -> None:
    with_one = made(tmp_path, kenlm_model_path=str(write_arpa(tmp_path / "model.arpa", 0, 2)))[1]
    with_one.save_pretrained(tmp_path / "saved")
    ours = made(tmp_path)[1]
    ours.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "language_model").exists()
    loaded = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert loaded.language_model is ours.language_model is None
    assert loaded.decode(some_logits(0)) == ours.decode(some_logits(0))


def test_older_checkpoints_name_the_class_beside_the_extractor(tmp_path: Path) -> None:
    ours = made(tmp_path, kenlm_model_path=str(write_arpa(tmp_path / "model.arpa", 0, 2)))[1]
    ours.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "processor_config.json").unlink()
    for loader in (AutoProcessor, transformers.AutoProcessor):
        assert type(loader.from_pretrained(tmp_path / "saved")).__name__ == "Wav2Vec2ProcessorWithLM"
    settings_of = tmp_path / "saved" / "preprocessor_config.json"
    kept = json.loads(settings_of.read_text())
    del kept["feature_extractor_type"]
    settings_of.write_text(json.dumps(kept))
    (tmp_path / "saved" / "config.json").write_text('{"model_type": "wav2vec2"}')
    loaded = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert type(loaded.feature_extractor) is Wav2Vec2FeatureExtractor
    (tmp_path / "saved" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="says which feature extractor it needs"):
        AutoProcessor.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    "labels",
    [
        TOKENS,
        TOKENS[4:],
        [token for token in TOKENS if token != "U"],
        ["[PAD]", "<s>", "</s>", "[UNK]", " ", *TOKENS[5:]],
        ["_", *TOKENS[1:]],
        [*TOKENS, "\u00e9"],
    ],
    ids=str,
)
def test_missing_tokens_are_those_of_transformers(labels: list[str], tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path)
    expected = transformers.Wav2Vec2ProcessorWithLM.get_missing_alphabet_tokens(
        pyctcdecode.build_ctcdecoder(labels), transformers.Wav2Vec2CTCTokenizer(str(path))
    )
    tokenizer = Wav2Vec2CTCTokenizer(path)
    for decoder in (build_ctcdecoder(labels), pyctcdecode.build_ctcdecoder(labels)):
        assert Wav2Vec2ProcessorWithLM.get_missing_alphabet_tokens(decoder, tokenizer) == expected
        if expected:
            with pytest.raises(ValueError, match=r"the decoder's alphabet lacks .*, which the tokenizer has"):
                Wav2Vec2ProcessorWithLM(Wav2Vec2FeatureExtractor(), tokenizer, decoder)


def test_word_pieces_fit_their_tokenizer(tmp_path: Path) -> None:
    pieces = ["<pad>", "<s>", "</s>", "<unk>", "\u2581A", "NT", "\u2581TEA"]
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({token: index for index, token in enumerate(pieces)}))
    tokenizer, decoder = Wav2Vec2CTCTokenizer(path), build_ctcdecoder(pieces)
    processor = Wav2Vec2ProcessorWithLM(Wav2Vec2FeatureExtractor(), tokenizer, decoder)
    logits = 9 * np.eye(len(pieces), dtype=np.float32)[[4, 0, 5, 6]]
    assert processor.decode(logits).text == "ANT TEA"


def test_what_cannot_be_is_refused(pair: tuple[Any, Wav2Vec2ProcessorWithLM], tmp_path: Path) -> None:
    ours = pair[1]
    parts = ours.feature_extractor, ours.tokenizer
    with pytest.raises(TypeError, match="decoder is a str, expected a BeamSearchDecoderCTC of"):
        Wav2Vec2ProcessorWithLM(*parts, "decoder")
    with pytest.raises(TypeError, match="feature_extractor is a Wav2Vec2CTCTokenizer, expected a"):
        Wav2Vec2ProcessorWithLM(ours.tokenizer, ours.tokenizer, ours.decoder)
    with pytest.raises(TypeError, match="tokenizer is a Wav2Vec2FeatureExtractor, expected a"):
        Wav2Vec2ProcessorWithLM(ours.feature_extractor, ours.feature_extractor, ours.decoder)
    for decode in (ours.decode, lambda logits, **options: ours.batch_decode([logits], **options)):
        with pytest.raises(ValueError, match="n_best is 0, expected at least 1"):
            decode(some_logits(0), n_best=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        ours.save_pretrained(tmp_path / "file")

    Wav2Vec2Processor(*parts).save_pretrained(tmp_path / "plain")
    with pytest.raises(CheckpointError, match=r"plain has no alphabet\.json \(it holds "):
        Wav2Vec2ProcessorWithLM.from_pretrained(tmp_path / "plain")
    for content in ("{", '{"labels": []}'):
        (tmp_path / "plain" / "alphabet.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"the decoder in .*plain cannot be read"):
            Wav2Vec2ProcessorWithLM.from_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "alphabet.json").write_text('{"labels": ["", "A"], "is_bpe": false}')
    with pytest.raises(
        CheckpointError, match=r"alphabet\.json of model .*plain' does not fit: the decoder's"
    ):
        Wav2Vec2ProcessorWithLM.from_pretrained(tmp_path / "plain")
