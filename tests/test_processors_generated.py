"""Both processors on generated input, against transformers: every option of padding and truncation drawn."""

from __future__ import annotations

import itertools
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.utils import PaddingStrategy, TensorType

from w2v_ray.audio.fbank import log_mel
from w2v_ray.audio.features import Wav2Vec2FeatureExtractor
from w2v_ray.audio.seamless import SeamlessM4TFeatureExtractor
from w2v_ray.processors import Wav2Vec2BertProcessor, Wav2Vec2Processor
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

RATE = 16_000
VOCABULARY = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINSHRDLU'"])}
FAMILIES = ["wav2vec2", "wav2vec2-bert"]
SIDES = ["right", "left"]
STRIDES = [2, 3]  # mel frames of a step; none of wav2vec 2.0


class Pairs(dict[tuple[str, str, int], tuple[Any, Any]]):
    """The oracle's processor and ours, by family, the tokenizer's side of padding and the stride."""

    def __repr__(self) -> str:
        return "Pairs()"  # hypothesis shows the arguments of what failed, and these are long


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    path = tmp_path_factory.mktemp("vocabulary") / "given-vocab.json"
    path.write_text(json.dumps(VOCABULARY))
    made = Pairs()
    for side, stride in itertools.product(SIDES, STRIDES):
        tokenizers = (
            transformers.Wav2Vec2CTCTokenizer(str(path), padding_side=side, truncation_side=side),
            Wav2Vec2CTCTokenizer(path, padding_side=side, truncation_side=side),
        )
        made["wav2vec2", side, stride] = (
            transformers.Wav2Vec2Processor(
                transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True), tokenizers[0]
            ),
            Wav2Vec2Processor(Wav2Vec2FeatureExtractor(return_attention_mask=True), tokenizers[1]),
        )
        made["wav2vec2-bert", side, stride] = (
            transformers.Wav2Vec2BertProcessor(
                transformers.SeamlessM4TFeatureExtractor(padding_value=1, stride=stride), tokenizers[0]
            ),
            Wav2Vec2BertProcessor(SeamlessM4TFeatureExtractor(padding_value=1, stride=stride), tokenizers[1]),
        )
    return made


@contextmanager
def quietly() -> Iterator[None]:
    """Hypothesis draws options that are worth a warning; hundreds of them are noise."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def assert_same(found: Any, expected: Any, atol: float) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert type(found[name]) is type(expected[name]), name
        if isinstance(expected[name], int):
            assert found[name] == expected[name]
            continue
        assert len(found[name]) == len(expected[name])
        for row, wanted in zip(found[name], expected[name], strict=True):
            if isinstance(wanted, np.ndarray | torch.Tensor):
                assert row.dtype == wanted.dtype
            np.testing.assert_allclose(np.asarray(row), np.asarray(wanted), rtol=1e-5, atol=atol)


def rounding(waves: list[np.ndarray]) -> float:
    """Of the oracle, which scales in float32: what rounding moves is divided by the deviation of a bin."""
    bins = log_mel([torch.from_numpy(wave) for wave in waves], num_mel_bins=80, sampling_rate=RATE)
    return 5e-6 / min(float((row.var(0) + 1e-7).sqrt().min()) for row in bins)


PADDING = {
    "padding": st.sampled_from([True, False, "longest", "max_length", "do_not_pad", *PaddingStrategy]),
    "max_length": st.one_of(st.none(), st.integers(1, 40)),
    "pad_to_multiple_of": st.sampled_from([None, 1, 2, 8]),
    "return_attention_mask": st.sampled_from([None, True, False]),
    "return_tensors": st.sampled_from([None, "np", "pt", TensorType.NUMPY, TensorType.PYTORCH]),
}
FOR_TEXT = {
    "padding_side": st.sampled_from(SIDES),
    "return_length": st.booleans(),
    "return_special_tokens_mask": st.booleans(),
    "return_token_type_ids": st.booleans(),
    "add_special_tokens": st.booleans(),
    "stride": st.integers(0, 3),  # of what is cut off, which is not asked for
}


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Options of a call, given beside it or for one kind of input, none of them twice."""
    given_options = draw(
        st.fixed_dictionaries({}, optional=PADDING | {"truncation": st.booleans()} | FOR_TEXT)
    )
    for where, choices in (("text_kwargs", PADDING | FOR_TEXT), ("audio_kwargs", PADDING)):
        if draw(st.booleans()):
            alone = draw(st.fixed_dictionaries({}, optional=choices))
            given_options[where] = {k: v for k, v in alone.items() if k not in given_options}
    if draw(st.booleans()):
        given_options["common_kwargs"] = draw(st.fixed_dictionaries({}, optional=PADDING))
    return given_options


def ragged_without_enforcement(error: ValueError) -> bool:
    """Whether transformers could make no array of rows beyond a max_length that cuts none."""
    return "setting an array element" in str(error)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=1450, deadline=None)
@given(
    side=st.sampled_from(SIDES),
    stride=st.sampled_from(STRIDES),
    lengths=st.lists(st.integers(0, 1400), min_size=1, max_size=3),
    # None is empty: of a batch that begins with an empty row transformers makes a tensor without any token.
    texts=st.lists(st.text("ETAO ' <s>\u00e9", min_size=1, max_size=9), min_size=1, max_size=3),
    what=st.sampled_from(["audio", "text", "both", "one audio", "one text", "one of both"]),
    second=st.sampled_from([None, None, "text_kwargs", "beside"]),
    rate=st.sampled_from([None, *[RATE] * 10, 8000]),
    options=calls(),
)
def test_calls_equal_the_oracles(
    pairs: Pairs,
    family: str,
    side: str,
    stride: int,
    lengths: list[int],
    texts: list[str],
    what: str,
    second: str | None,
    rate: int | None,
    options: dict[str, Any],
) -> None:
    theirs, ours = pairs[family, side, stride]
    shortest = 3 if family == "wav2vec2" else 560
    generator = np.random.default_rng(0)
    waves = [
        # Louder from frame to frame, so that no mel bin is as good as constant: rounding would show.
        (generator.normal(size=shortest + n) * np.geomspace(0.001, 1, shortest + n)).astype("float32")
        for n in lengths
    ]
    if family == "wav2vec2":
        waves = [wave[: 3 + len(wave) // 30] for wave in waves]
    one = what.startswith("one")
    if "audio" in what or "both" in what:
        options["audio"] = waves[0] if one else waves
        if rate is not None:
            options["sampling_rate"] = rate
    if "text" in what or "both" in what:
        options["text"] = texts[0] if one else texts
        if second is not None:
            where = options if second == "beside" else options.setdefault("text_kwargs", {})
            where["text_pair"] = texts[-1] if one else texts[::-1]
    try:
        with quietly():
            expected = theirs(**options)
    except ValueError as error:
        if not ragged_without_enforcement(error):
            with quietly(), pytest.raises(ValueError):
                ours(**options)
        return
    with quietly():
        found = ours(**options)
    assert_same(found, expected, atol=1e-6 if family == "wav2vec2" else 1e-5 + rounding(waves))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=1250, deadline=None)
@given(
    side=st.sampled_from(SIDES),
    lengths=st.lists(st.integers(1, 12), max_size=4),
    labels=st.lists(st.lists(st.integers(0, 16), min_size=1, max_size=9), max_size=4),
    convert=st.sampled_from([np.asarray, torch.from_numpy, np.ndarray.tolist]),
    options=st.fixed_dictionaries({}, optional=PADDING),
)
def test_padding_equals_the_oracles(
    pairs: Pairs,
    family: str,
    side: str,
    lengths: list[int],
    labels: list[list[int]],
    convert: Any,
    options: dict[str, Any],
) -> None:
    assume(lengths or labels)
    theirs, ours = pairs[family, side, 2]
    name, shape = ("input_values", ()) if family == "wav2vec2" else ("input_features", (5,))
    generator = np.random.default_rng(0)
    features = [{name: convert(generator.normal(size=(n, *shape)).astype("float32"))} for n in lengths]
    batch: dict[str, Any] = {"input_features": features} if features else {}
    if labels:
        batch["labels"] = [{"input_ids": row} for row in labels]
    try:
        with quietly():
            expected = theirs.pad(**json_copy(batch), **options)
    except ValueError:
        with quietly(), pytest.raises(ValueError):
            ours.pad(**batch, **options)
        return
    with quietly():
        assert_same(ours.pad(**batch, **options), expected, atol=0)


def json_copy(batch: dict[str, Any]) -> dict[str, Any]:
    """The same rows in new lists and dicts, as the oracle changes those it is given."""
    return {name: [dict(row) for row in rows] for name, rows in batch.items()}


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=1020, deadline=None)
@given(
    paths=st.lists(st.lists(st.integers(0, 19), max_size=12), min_size=1, max_size=3),
    names=st.sets(
        st.sampled_from(
            [
                "skip_special_tokens",
                "output_char_offsets",
                "output_word_offsets",
                "spaces_between_special_tokens",
            ]
        )
    ),
)
def test_paths_are_read_as_by_the_oracle(
    pairs: Pairs, family: str, paths: list[list[int]], names: set[str]
) -> None:
    theirs, ours = pairs[family, "right", 2]
    options = dict.fromkeys(names, True)
    letters = [[*path, 6] for path in paths]  # transformers cannot join the offsets of a path of none
    for expected, found in (
        (theirs.batch_decode(letters, **options), ours.batch_decode(letters, **options)),
        (theirs.decode(paths[0], **options), ours.decode(paths[0], **options)),
    ):
        if isinstance(expected, list | str):
            assert found == expected
            continue
        assert (found.text, found.char_offsets, found.word_offsets) == (
            expected.text,
            expected.get("char_offsets"),
            expected.get("word_offsets"),
        )
