"""The tokenizer on drawn texts, ids and options, against transformers."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils import PaddingStrategy, TensorType

from w2v_ray.text import Wav2Vec2CTCTokenizer

PADDING = [True, False, "longest", "max_length", "do_not_pad", *PaddingStrategy]
TRUNCATION = [True, False, None, "longest_first", "only_first", "do_not_truncate", *TruncationStrategy]
TENSORS = [None, "np", "pt", TensorType.NUMPY, TensorType.PYTORCH]


@pytest.fixture(scope="module", autouse=True)
def no_log() -> Iterator[None]:
    """Options are drawn that are worth a log line; hundreds of them are noise."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def texts_of(tokenizer: Wav2Vec2CTCTokenizer) -> st.SearchStrategy[str]:
    """Texts of the tokens that a tokenizer knows, and of some that it does not."""
    pieces = [*tokenizer.encoder, " ", "  ", "a", "E", "\u00e9", "<s>", "<e>", "[CLS]", "\t"]
    return st.lists(st.sampled_from(pieces), max_size=12).map("".join)


@settings(max_examples=140, deadline=None)
@given(data=st.data())
def test_encoding_equals_the_oracles(
    plain: Any, pairs: dict[str, Any], kind: str, data: st.DataObject
) -> None:
    theirs, ours = pairs[kind]
    text = data.draw(st.one_of(texts_of(ours), st.lists(texts_of(ours), min_size=1, max_size=4)))
    options = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "padding": st.sampled_from(PADDING),
                "truncation": st.sampled_from(TRUNCATION),
                "max_length": st.one_of(st.none(), st.integers(1, 12)),
                "pad_to_multiple_of": st.sampled_from([None, 1, 2, 4]),
                "padding_side": st.sampled_from([None, "left", "right"]),
                "return_attention_mask": st.sampled_from([None, True, False]),
                "add_special_tokens": st.booleans(),
                "return_token_type_ids": st.booleans(),
                "return_special_tokens_mask": st.booleans(),
                "return_length": st.booleans(),
            },
        )
    )
    try:
        expected = plain(theirs(text, verbose=False, **options))
    except ValueError:
        with pytest.raises(ValueError):
            ours(text, **options)
        return
    assert plain(ours(text, **options)) == expected
    if isinstance(text, str):
        assert ours.tokenize(text) == theirs.tokenize(text)


@settings(max_examples=140, deadline=None)
@given(data=st.data())
def test_decoding_equals_the_oracles(pairs: dict[str, Any], kind: str, data: st.DataObject) -> None:
    theirs, ours = pairs[kind]
    runs = data.draw(st.lists(st.tuples(st.integers(0, len(ours) + 3), st.integers(1, 3)), max_size=15))
    ids = [index for index, frames in runs for _ in range(frames)]
    options = {
        name: data.draw(st.booleans(), label=name)
        for name in (
            "skip_special_tokens",
            "output_char_offsets",
            "output_word_offsets",
            "group_tokens",
            "spaces_between_special_tokens",
        )
    }
    options["clean_up_tokenization_spaces"] = data.draw(st.sampled_from([None, True, False]))
    convert = data.draw(st.sampled_from([list, lambda row: np.array(row, int), torch.LongTensor]))
    assert_same_reading(ours.decode(convert(ids), **options), theirs.decode(convert(ids), **options))
    # Of rows without a token transformers has both offsets, whatever was asked for, and joins none of them.
    letter = ours.encoder.get("a", 5)
    rows = [[*ids, letter], [letter, letter, 0, letter]][: data.draw(st.integers(1, 2))]
    rows = [convert(row) for row in rows]
    assert_same_reading(ours.batch_decode(rows, **options), theirs.batch_decode(rows, **options))


def assert_same_reading(found: Any, expected: Any) -> None:
    if isinstance(expected, str | list):
        assert found == expected
        return
    assert (found.text, found.char_offsets, found.word_offsets) == (
        expected.text,
        expected.get("char_offsets"),
        expected.get("word_offsets"),
    )


@pytest.mark.parametrize("kind", ["english", "odd", "sides"])
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_pairs_words_and_cuts_equal_the_oracles(
    plain: Any, pairs: dict[str, Any], kind: str, data: st.DataObject
) -> None:
    theirs, ours = pairs[kind]
    # Of a batch that begins with an empty row transformers makes a tensor without any token.
    text = texts_of(ours).filter(bool)
    ids = st.lists(st.integers(0, 16), min_size=1, max_size=12)
    words = st.lists(text, min_size=1, max_size=4)
    form = data.draw(st.sampled_from(["pair", "pairs", "tuples", "words", "word pairs", "ids", "id rows"]))
    given_texts: dict[str, Any] = {}
    if form == "pair":
        given_texts = {"text": data.draw(text), "text_pair": data.draw(text)}
    elif form == "pairs":
        rows = data.draw(st.lists(st.tuples(text, text), min_size=1, max_size=3))
        given_texts = {"text": [row[0] for row in rows], "text_pair": [row[1] for row in rows]}
    elif form == "tuples":
        given_texts = {"text": data.draw(st.lists(st.tuples(text, text), min_size=1, max_size=3))}
    elif form == "words":
        given_texts = {"text": data.draw(st.one_of(words, st.lists(words, min_size=1, max_size=3)))}
    elif form == "word pairs":
        given_texts = {"text": data.draw(words), "text_pair": data.draw(words)}
    else:
        given_texts = {"text": data.draw(ids if form == "ids" else st.lists(ids, min_size=1, max_size=3))}
    options = data.draw(
        st.fixed_dictionaries(
            {"is_split_into_words": st.just("word" in form)},
            optional={
                "padding": st.sampled_from([True, "longest", "max_length", *PaddingStrategy]),
                "truncation": st.sampled_from([*TRUNCATION, "only_second"]),
                "max_length": st.integers(1, 12),
                "stride": st.integers(0, 5),
                "return_overflowing_tokens": st.booleans(),
                "add_special_tokens": st.booleans(),
                "return_token_type_ids": st.booleans(),
                "return_special_tokens_mask": st.booleans(),
                "return_length": st.booleans(),
                "return_attention_mask": st.sampled_from([None, True, False]),
                "return_tensors": st.sampled_from(TENSORS),
            },
        )
    )
    try:
        expected = plain(theirs(**copy.deepcopy(given_texts), verbose=False, **options))
    except AssertionError:
        # transformers cannot make a batch of which some rows alone were cut.
        found = ours(**given_texts, verbose=False, **options)
        assert (
            len(found["overflowing_tokens"]) == len(found["num_truncated_tokens"]) == len(found["input_ids"])
        )
        return
    except ValueError:
        with pytest.raises(ValueError):
            ours(**given_texts, verbose=False, **options)
        return
    assert plain(ours(**given_texts, verbose=False, **options)) == expected


@settings(max_examples=1150, deadline=None)
@given(data=st.data())
def test_padding_encodings_equals_the_oracles(plain: Any, pairs: dict[str, Any], data: st.DataObject) -> None:
    theirs, ours = pairs[data.draw(st.sampled_from(["english", "sides"]))]
    row = st.lists(st.integers(0, 16), max_size=9)
    rows = data.draw(st.one_of(row, st.lists(row, min_size=1, max_size=4)))
    several = bool(rows) and isinstance(rows[0], list)
    columns: dict[str, Any] = {"input_ids": rows}
    for name in data.draw(
        st.sets(st.sampled_from(["attention_mask", "token_type_ids", "special_tokens_mask"]))
    ):
        columns[name] = [[1] * len(ids) for ids in rows] if several else [1] * len(rows)
    given_ids: Any = columns
    if several and data.draw(st.booleans()):
        given_ids = [
            dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
        ]
    options = {
        "padding": data.draw(st.sampled_from(PADDING)),
        "max_length": data.draw(st.one_of(st.none(), st.integers(1, 12))),
        "pad_to_multiple_of": data.draw(st.sampled_from([None, 4])),
        "padding_side": data.draw(st.sampled_from([None, "left", "right"])),
        "return_attention_mask": data.draw(st.sampled_from([None, True, False])),
    }
    if "attention_mask" in columns:
        options["return_attention_mask"] = True  # there it would be left unpadded otherwise
    # Of a batch that begins with an empty row transformers makes a tensor without any token.
    if several and rows[0]:
        options["return_tensors"] = data.draw(st.sampled_from(TENSORS))
    before = copy.deepcopy(given_ids)
    try:
        expected = theirs.pad(copy.deepcopy(given_ids), verbose=False, **options)
    except ValueError:
        with pytest.raises(ValueError):
            ours.pad(given_ids, **options)
        return
    found = ours.pad(given_ids, **options)
    assert given_ids == before
    if rows:  # of nothing transformers gives an empty mask, asked for or not
        assert plain(found) == plain(expected)
        assert {name: type(value) for name, value in found.items()} == {
            name: type(value) for name, value in expected.items()
        }


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_changing_languages_equals_the_oracle(
    facts: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    token = st.text("ab\u00e9| ", min_size=1, max_size=2)
    names = ["eng", "deu", "fra"]
    nested = {
        name: {token: i for i, token in enumerate(data.draw(st.lists(token, unique=True, max_size=6)) + tail)}
        for name, tail in zip(names, (["<pad>", "<unk>"], ["<pad>", "x"], ["<unk>", "yy"]), strict=True)
    }
    path = tmp_path_factory.getbasetemp() / "drawn-vocab.json"
    path.write_text(json.dumps(nested))
    theirs = transformers.Wav2Vec2CTCTokenizer(str(path), target_lang="eng")
    ours = Wav2Vec2CTCTokenizer(path, target_lang="eng")
    for language in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)):
        theirs.set_target_lang(language)
        ours.set_target_lang(language)
        assert facts(ours) == facts(theirs)
        text = data.draw(st.text("ab\u00e9x y<pad>", max_size=8))
        assert ours.tokenize(text) == theirs.tokenize(text)
        ids = data.draw(st.lists(st.integers(0, 12), max_size=8))
        assert ours.decode(ids) == theirs.decode(ids)
