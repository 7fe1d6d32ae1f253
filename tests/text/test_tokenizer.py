"""The tokenizer, against transformers and against files that are not what they should be."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.errors import CheckpointError, OutputError
from w2v_ray.text import AddedToken, Wav2Vec2CTCTokenizer

ENGLISH = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINSHRDLU'"])}
ODD = {"<pad>": 0, "|": 1, "a": 2, "<unk>": 3, "sch": 4, " ": 5, "A": 9, "\u00e4": 7}  # gaps, a space, no <s>
UNDERSCORED = {"<pad>": 0, "_": 1, "a": 2, "b": 3, "<unk>": 4}
NESTED = {
    "eng": {"<pad>": 0, "|": 1, "a": 2, "<unk>": 3, "b": 4},
    "deu": {"<pad>": 0, "|": 1, "sch": 2, "<unk>": 3, "a": 4, "\u00e4": 5},
}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "english": (ENGLISH, {}),
    "lower case": (ENGLISH, {"do_lower_case": True}),
    "odd": (ODD, {}),
    "another delimiter": (UNDERSCORED, {"word_delimiter_token": "_"}),
    "another space": (ODD, {"replace_word_delimiter_char": "-", "clean_up_tokenization_spaces": True}),
    "nested": (NESTED, {"target_lang": "deu"}),
    "extra": (ODD, {"cls_token": "[CLS]", "extra_special_tokens": ["<e>"], "pad_token": "[PAD]"}),
    "sides": (ENGLISH, {"padding_side": "left", "truncation_side": "left", "model_max_length": 7}),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Wav2Vec2CTCTokenizer]]:
    """Each kind of tokenizer, the oracle's and ours."""
    made = {}
    for name, (vocabulary, options) in KINDS.items():
        path = tmp_path_factory.mktemp("vocabulary") / "vocab.json"
        path.write_text(json.dumps(vocabulary))
        made[name] = (
            transformers.Wav2Vec2CTCTokenizer(str(path), **options),
            Wav2Vec2CTCTokenizer(path, **options),
        )
    return made


def facts(tokenizer: Any) -> dict[str, Any]:
    """What a tokenizer says of itself."""
    return {
        "vocab": tokenizer.get_vocab(),
        "size": (len(tokenizer), tokenizer.vocab_size),
        "special": (tokenizer.all_special_tokens, tokenizer.all_special_ids),
        "added": {
            index: (t.content, t.lstrip, t.rstrip, t.single_word, t.normalized, t.special)
            for index, t in tokenizer.added_tokens_decoder.items()
        },
        "ids": [
            getattr(tokenizer, f"{name}_token_id")
            for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask", "word_delimiter")
        ],
    }


def plain(encoding: Any) -> dict[str, Any]:
    return {name: listed(value) for name, value in encoding.items()}


def listed(value: Any) -> Any:
    if isinstance(value, np.ndarray | torch.Tensor):
        value = value.tolist()  # the rows of a ragged array are arrays still
    return [listed(item) for item in value] if isinstance(value, list | tuple) else value


def texts_of(kind: str) -> st.SearchStrategy[str]:
    vocabulary = KINDS[kind][0]
    tokens = [
        token for entry in vocabulary.values() if isinstance(entry, dict) for token in entry
    ] or vocabulary
    pieces = [*tokens, " ", "  ", "a", "E", "\u00e9", "<s>", "<e>", "[CLS]", "\t"]
    return st.lists(st.sampled_from(pieces), max_size=12).map("".join)


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_equals_the_oracles(pairs: dict[str, Any], kind: str) -> None:
    theirs, ours = pairs[kind]
    assert facts(ours) == facts(theirs)
    tokens = [*ours.get_vocab(), "nowhere"]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    for skip in (False, True):
        ids = list(range(len(ours) + 4))
        assert ours.convert_ids_to_tokens(ids, skip) == theirs.convert_ids_to_tokens(ids, skip)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=130, deadline=None)
@given(data=st.data())
def test_encoding_equals_the_oracles(pairs: dict[str, Any], kind: str, data: st.DataObject) -> None:
    theirs, ours = pairs[kind]
    text = data.draw(st.one_of(texts_of(kind), st.lists(texts_of(kind), min_size=1, max_size=4)))
    options = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "padding": st.sampled_from([True, False, "longest", "max_length", "do_not_pad"]),
                "truncation": st.sampled_from(
                    [True, False, None, "longest_first", "only_first", "do_not_truncate"]
                ),
                "max_length": st.integers(1, 12),
                "pad_to_multiple_of": st.sampled_from([1, 2, 4]),
                "padding_side": st.sampled_from(["left", "right"]),
                "return_attention_mask": st.booleans(),
                "return_token_type_ids": st.booleans(),
                "return_special_tokens_mask": st.booleans(),
                "return_length": st.booleans(),
            },
        )
    )
    try:
        with logging_off():
            expected = plain(theirs(text, verbose=False, **options))
    except ValueError:
        with pytest.raises(ValueError):
            ours(text, **options)
        return
    with logging_off():
        assert plain(ours(text, **options)) == expected
    if isinstance(text, str):
        assert ours.tokenize(text) == theirs.tokenize(text)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=130, deadline=None)
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
            "clean_up_tokenization_spaces",
        )
    }
    expected, found = theirs.decode(ids, **options), ours.decode(ids, **options)
    if isinstance(expected, str):
        assert found == expected
    else:
        assert found.text == expected.text
        assert found.char_offsets == expected.char_offsets
        assert found.word_offsets == expected.word_offsets


@pytest.mark.parametrize("kind", ["english", "odd", "sides"])
@settings(max_examples=350, deadline=None)
@given(data=st.data())
def test_pairs_words_and_cuts_equal_the_oracles(
    pairs: dict[str, Any], kind: str, data: st.DataObject
) -> None:
    theirs, ours = pairs[kind]
    # Of a batch that begins with an empty row transformers makes a tensor without any token.
    text = texts_of(kind).filter(bool)
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
                "padding": st.sampled_from([True, "longest", "max_length"]),
                "truncation": st.sampled_from(
                    [True, None, "longest_first", "only_first", "only_second", "do_not_truncate"]
                ),
                "max_length": st.integers(1, 12),
                "stride": st.integers(0, 5),
                "return_overflowing_tokens": st.booleans(),
                "add_special_tokens": st.booleans(),
                "return_token_type_ids": st.booleans(),
                "return_special_tokens_mask": st.booleans(),
                "return_length": st.booleans(),
                "return_tensors": st.sampled_from(["np", "pt"]),
            },
        )
    )
    try:
        with logging_off():
            expected = plain(theirs(**copy.deepcopy(given_texts), verbose=False, **options))
    except AssertionError:
        # transformers cannot make a batch of which some rows alone were cut.
        with logging_off():
            found = ours(**given_texts, verbose=False, **options)
        assert (
            len(found["overflowing_tokens"]) == len(found["num_truncated_tokens"]) == len(found["input_ids"])
        )
        return
    except ValueError:
        with pytest.raises(ValueError):
            ours(**given_texts, verbose=False, **options)
        return
    with logging_off():
        assert plain(ours(**given_texts, verbose=False, **options)) == expected


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
def test_batches_of_any_kind_decode(pairs: dict[str, Any], convert: Any) -> None:
    theirs, ours = pairs["english"]
    ids = convert([[11, 11, 0, 5, 4, 6, 0], [6, 0, 6, 4, 4, 8, 8]])
    assert ours.batch_decode(ids) == theirs.batch_decode(ids) == ["SE T", "TT O"]
    expected = theirs.batch_decode(ids, output_word_offsets=True)
    found = ours.batch_decode(ids, output_word_offsets=True)
    assert (found.text, found["word_offsets"]) == (expected.text, expected["word_offsets"])
    assert found.char_offsets is None
    assert ours.batch_decode([]) == []
    assert ours.decode(5) == "E"


def test_tensors_and_arrays_equal_the_oracles(pairs: dict[str, Any]) -> None:
    theirs, ours = pairs["english"]
    for text in ("SO", ["SO", "NOT"], ["", ""]):
        for kind in ("np", "pt"):
            expected, found = (t(text, padding=True, return_tensors=kind) for t in (theirs, ours))
            for name in expected:
                assert type(found[name]) is type(expected[name])
                assert found[name].dtype == expected[name].dtype
                np.testing.assert_array_equal(found[name], expected[name])
    ragged = ours(["SO", "NOT"], return_tensors="np").input_ids
    assert [row.tolist() for row in ragged] == ours(["SO", "NOT"])["input_ids"]
    with pytest.raises(ValueError, match="input_ids has rows of different lengths; pass padding=True"):
        ours(["SO", "NOT"], return_tensors="pt")
    assert ours("SO", return_tensors="pt").to("cpu").input_ids.tolist() == [ours.encode("SO")]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_changing_languages_equals_the_oracle(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
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


def test_labels_and_words_equal_the_oracles(pairs: dict[str, Any]) -> None:
    theirs, ours = pairs["odd"]
    for calls in (
        {"text": "a sch", "text_target": "a"},
        {"text_target": ["a a", "A"]},
        {"text": ["a", "sch a"], "is_split_into_words": True},
        {"text": [["a", "sch a"], ["A"]], "is_split_into_words": True, "padding": True},
    ):
        assert plain(ours(**calls)) == plain(theirs(**calls))
    assert ours([]) == {"input_ids": [], "attention_mask": []}
    both = {"text": "a", "text_pair": "sch", "text_target": "A", "text_pair_target": "a a"}
    assert plain(ours(**both)) == plain(theirs(**both))
    assert ours("a", "sch").input_ids == theirs("a", "sch").input_ids
    for wrong, reason in (
        ({"text": ["a", "b"], "text_pair": ["a"]}, "text_pair is 1 texts for 2"),
        ({"text": ["a", "b"], "text_pair": "a"}, "text_pair is one text for 2"),
        ({"text": [["a", "b", "c"]]}, "a row has 3 texts, expected one or a pair"),
        ({"text": [[["a"], 1.5]]}, r"a row is 1.5, expected a text"),
        (
            {"text": "a a", "text_pair": "a", "max_length": 2, "return_overflowing_tokens": True},
            "tokens cut from both texts of a pair cannot be returned",
        ),
    ):
        with pytest.raises(ValueError, match=reason):
            ours(**wrong)
    with pytest.raises(ValueError, match="neither text nor text_target"):
        ours()


@settings(max_examples=1000, deadline=None)
@given(data=st.data())
def test_padding_encodings_equals_the_oracles(pairs: dict[str, Any], data: st.DataObject) -> None:
    theirs, ours = pairs[data.draw(st.sampled_from(["english", "sides"]))]
    row = st.lists(st.integers(0, 16), max_size=9)
    rows = data.draw(st.one_of(row, st.lists(row, min_size=1, max_size=4)))
    as_list = bool(rows) and isinstance(rows[0], list) and data.draw(st.booleans())
    given_ids: Any = [{"input_ids": ids} for ids in rows] if as_list else {"input_ids": rows}
    options = {
        "padding": data.draw(st.sampled_from([True, False, "longest", "max_length"])),
        "max_length": data.draw(st.one_of(st.none(), st.integers(1, 12))),
        "pad_to_multiple_of": data.draw(st.sampled_from([None, 4])),
        "padding_side": data.draw(st.sampled_from([None, "left", "right"])),
        "return_attention_mask": data.draw(st.sampled_from([None, True, False])),
    }
    with logging_off():
        expected = theirs.pad(json.loads(json.dumps(given_ids)), verbose=False, **options)
        found = ours.pad(given_ids, **options)
    assert found["input_ids"] == expected["input_ids"]
    assert found.get("attention_mask", []) == expected.get("attention_mask", [])


def test_padding_gives_back_what_it_got(pairs: dict[str, Any]) -> None:
    ours = pairs["english"][1]
    encodings = ours(["SO", "NOT"])
    assert ours.pad(encodings)["attention_mask"] == [[1, 1, 0], [1, 1, 1]]
    assert ours.pad(
        [{"input_ids": torch.tensor([1, 2])}, {"input_ids": torch.tensor([1])}]
    ).input_ids.tolist() == [
        [1, 2],
        [1, 0],
    ]
    assert isinstance(ours.pad({"input_ids": np.array([[1, 2]])})["input_ids"], np.ndarray)
    with pytest.raises(ValueError, match="expected input_ids to pad"):
        ours.pad({"labels": [1]})


def test_adding_tokens_equals_the_oracles(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(ODD))
    theirs = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    ours = Wav2Vec2CTCTokenizer(tmp_path / "vocab.json")
    their_token = transformers.AddedToken("wd", single_word=True, lstrip=True, normalized=False)
    our_token = AddedToken("wd", single_word=True, lstrip=True)
    assert ours.add_tokens(["aa", "a", "new", our_token]) == 3
    assert theirs.add_tokens(["aa", "a", "new", their_token]) == 3
    named = {"mask_token": "[M]", "extra_special_tokens": ["<x>", "a"]}
    assert ours.add_special_tokens(named) == theirs.add_special_tokens(named) == 2
    assert ours.add_tokens("<y>", special_tokens=True) == theirs.add_tokens("<y>", special_tokens=True)
    assert facts(ours) == facts(theirs)
    for text in ("aaa new<x> [M]", "wd a wd", "awd wda  wd", "a wd", "<y>a|sch"):
        assert ours.tokenize(text) == theirs.tokenize(text)
        assert ours(text) == dict(theirs(text))
    with pytest.raises(ValueError, match="pet_token is given 'x', expected a token for one of bos_token"):
        ours.add_special_tokens({"pet_token": "x"})
    check_files(theirs, ours, tmp_path)


def test_a_normalized_token_is_lowered_as_in_the_oracle(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(ENGLISH))
    theirs = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), do_lower_case=True)
    ours = Wav2Vec2CTCTokenizer(tmp_path / "vocab.json", do_lower_case=True)
    theirs.add_tokens([transformers.AddedToken("THE", normalized=True), "SHE"])
    ours.add_tokens([AddedToken("THE", normalized=True), "SHE"])
    assert facts(ours) == facts(theirs)
    assert ours.tokenize("the THE SHE") == theirs.tokenize("the THE SHE")


@pytest.mark.parametrize("kind", [name for name in KINDS if name != "another delimiter"])
def test_files_go_both_ways(pairs: dict[str, Any], kind: str, tmp_path: Path) -> None:
    check_files(*pairs[kind], tmp_path)


def check_files(theirs: Any, ours: Wav2Vec2CTCTokenizer, folder: Path) -> None:
    """Each saves, the other loads: all four know the same."""
    theirs.save_pretrained(folder / "theirs")
    ours.save_pretrained(folder / "ours")
    for saved in ("theirs", "ours"):
        loaded = Wav2Vec2CTCTokenizer.from_pretrained(folder / saved)
        assert facts(loaded) == facts(ours)
        assert vars(loaded) | {"_added": 0} == vars(ours) | {"_added": 0}
    assert facts(transformers.Wav2Vec2CTCTokenizer.from_pretrained(folder / "ours")) == facts(theirs)
    for name in ("vocab.json", "added_tokens.json"):
        files = [folder / saved / name for saved in ("theirs", "ours")]
        assert len({path.exists() and path.read_text() for path in files}) == 1


def test_another_delimiter_survives_saving(pairs: dict[str, Any], tmp_path: Path) -> None:
    # transformers 5.23 loses it: what it loads reads "_" as a letter.
    theirs, ours = pairs["another delimiter"]
    theirs.save_pretrained(tmp_path)
    loaded = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
    assert loaded.decode([2, 1, 3]) == ours.decode([2, 1, 3]) == theirs.decode([2, 1, 3]) == "a b"


def test_a_space_without_a_delimiter_is_itself(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "a": 1, " ": 2}))
    tokenizer = Wav2Vec2CTCTokenizer(tmp_path / "vocab.json", word_delimiter_token=None)
    assert tokenizer.encode("a a") == [1, 2, 1]
    assert tokenizer.decode([1, 1, 2, 0, 1]) == "a a"
    tokenizer.save_pretrained(tmp_path)
    assert Wav2Vec2CTCTokenizer.from_pretrained(tmp_path).word_delimiter_token is None


def test_files_of_older_versions_load_as_in_the_oracle(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"[PAD]": 1, "|": 2, "[UNK]": 0, "a": 3}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {"do_lower_case": False, "do_normalize": True, "word_delimiter_token": "|", "pad_token": "[PAD]"}
        )
    )
    unknown = {"content": "[UNK]", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"unk_token": unknown, "bos_token": "<s>"}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<s>": 4, "</s>": 5, "yes": 6}))
    theirs = transformers.Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
    ours = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
    assert ours.unk_token == "[UNK]"
    assert facts(ours) == facts(theirs)
    for text in ("a yes a", "b a", "<s>a"):
        assert ours(text) == dict(theirs(text))
    assert ours.decode([3, 1, 3, 2, 0]) == theirs.decode([3, 1, 3, 2, 0]) == "aa [UNK]"


def test_overrides_win_over_the_files(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(ENGLISH))
    Wav2Vec2CTCTokenizer(tmp_path / "vocab.json").save_pretrained(tmp_path / "saved")
    loaded = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "saved", do_lower_case=True)
    assert loaded.decode(loaded.encode("note")) == "note"


def test_languages_change_as_in_the_oracle(tmp_path: Path) -> None:
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(NESTED))
    theirs = transformers.Wav2Vec2CTCTokenizer(str(path), target_lang="eng")
    ours = Wav2Vec2CTCTokenizer(path, target_lang="eng")
    for language in ("deu", "eng", "deu"):
        theirs.set_target_lang(language)
        ours.set_target_lang(language)
        assert ours.get_vocab() == theirs.get_vocab()
        assert ours.target_lang == language
        for text in ("a sch b", "\u00e4<s>"):
            assert ours.tokenize(text) == theirs.tokenize(text)
        assert ours.decode([2, 4, 1, 5]) == theirs.decode([2, 4, 1, 5])
    with pytest.raises(ValueError, match=r"target_lang is 'fra', expected one of .* deu, eng"):
        ours.set_target_lang("fra")
    (saved,) = ours.save_vocabulary(tmp_path, "all")
    assert Path(saved).name == "all-vocab.json"
    assert json.loads(Path(saved).read_text()) == NESTED
    with pytest.raises(OutputError, match="is not a folder"):
        ours.save_vocabulary(path)


@pytest.mark.parametrize(
    ("vocabulary", "settings_file", "reason"),
    [
        (None, {}, "has no vocab.json"),
        ("{", {}, "vocab.json is not readable as JSON"),
        (["a"], {}, "vocab.json holds a JSON list"),
        ({}, {}, "vocab.json holds no tokens"),
        ({"eng": {}, "deu": {"a": 0}}, {"target_lang": "eng"}, "vocab.json holds no tokens"),
        ({"a": "1"}, {}, "vocab.json gives token 'a' the id '1'"),
        ({"a": True}, {}, "the id True"),
        ({"a": -1}, {}, "the id -1"),
        ({"a": 0, "eng": {"b": 1}}, {}, "gives 'a' a int beside vocabularies"),
        ({"eng": {"b": 1.5}}, {"target_lang": "eng"}, "language 'eng', gives token 'b' the id 1.5"),
        (NESTED, {}, "target_lang is None, expected one of .* deu, eng"),
        (NESTED, {"target_lang": "fra"}, "target_lang is 'fra'"),
        (ENGLISH, {"target_lang": "eng"}, "target_lang is 'eng', expected none"),
        (ENGLISH, "[]", "tokenizer_config.json holds a JSON list"),
        (ENGLISH, {"do_lower_case": "yes"}, "tokenizer_config.json says do_lower_case 'yes', expected bool"),
        (ENGLISH, {"pad_token": 0}, "says pad_token 0, expected text"),
        (ENGLISH, {"added_tokens_decoder": {"x": {}}}, "says added_tokens_decoder 'x'"),
        (ENGLISH, {"added_tokens_decoder": []}, "says added_tokens_decoder"),
        (
            ENGLISH,
            {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"},
            "'Wav2Vec2PhonemeCTCTokenizer', expected",
        ),
    ],
)
def test_malformed_files_name_the_file_and_the_reason(
    tmp_path: Path, vocabulary: object, settings_file: object, reason: str
) -> None:
    for name, value in (("vocab.json", vocabulary), ("tokenizer_config.json", settings_file)):
        if value is not None:
            (tmp_path / name).write_text(value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(CheckpointError, match=reason) as caught:
        Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert any(name in message for name in ("vocab.json", "tokenizer_config.json")), message


def test_options_that_cannot_be_are_refused(pairs: dict[str, Any]) -> None:
    ours = pairs["english"][1]
    wrong: Sequence[tuple[dict[str, Any], str]] = (
        ({"padding": "widest"}, "padding is 'widest'"),
        ({"truncation": "middle"}, "truncation is 'middle'"),
        ({"padding_side": "top"}, "padding_side is 'top'"),
        ({"return_tensors": "tf"}, "return_tensors is 'tf'"),
        ({"padding": True, "truncation": True, "max_length": 5, "pad_to_multiple_of": 4}, "not a multiple"),
    )
    for options, reason in wrong:
        with pytest.raises(ValueError, match=reason):
            ours("SO", **options)


def test_a_character_that_has_no_id_is_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "a": 1}))
    tokenizer = Wav2Vec2CTCTokenizer(tmp_path / "vocab.json")
    with pytest.raises(ValueError, match="'b' is not in the vocabulary and neither is unk_token '<unk>'"):
        tokenizer("ab")


def test_an_unused_max_length_is_logged(pairs: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    pairs["english"][1]("SO", padding=True, max_length=5)
    assert "max_length 5 is not used" in caplog.text


def test_text_needs_no_torch() -> None:
    code = "import sys, w2v_ray.text; print('torch' in sys.modules, 'ray' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "False"]


class logging_off:
    """Hypothesis draws options that are worth a log line; hundreds of them are noise."""

    def __enter__(self) -> None:
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(logging.NOTSET)
