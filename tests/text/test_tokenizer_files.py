"""Added tokens, languages, and the files of a tokenizer in every layout that transformers wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.errors import CheckpointError, OutputError
from w2v_ray.text import AddedToken, Wav2Vec2CTCTokenizer

ENGLISH = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINSHRDLU'"])}
ODD = {"<pad>": 0, "|": 1, "a": 2, "<unk>": 3, "sch": 4, " ": 5, "A": 9, "\u00e4": 7}  # gaps, a space, no <s>
SPACED = {token: index for index, token in enumerate(["<pad>", "|", "a", "<unk>", "sch", " ", "A", "\u00e4"])}
NESTED = {
    "eng": {"[PAD]": 0, "|": 1, "a": 2, "[UNK]": 3, "b": 4},
    "deu": {"[PAD]": 0, "|": 1, "sch": 2, "[UNK]": 3, "a": 4, "\u00e4": 5},
}
NAMES = ["bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "mask_token"]
Facts = Callable[[Any], dict[str, Any]]


def saved_and_loaded(facts: Facts, theirs: Any, ours: Wav2Vec2CTCTokenizer, folder: Path) -> dict[str, Any]:
    """Each saves and both load each: what all four say of themselves, which has to be the same."""
    said = []
    for saved in (theirs, ours):
        shutil.rmtree(folder, ignore_errors=True)
        saved.save_pretrained(folder)
        said += [facts(type(loader).from_pretrained(folder)) for loader in (theirs, ours)]
    assert said[0] == said[1] == said[2] == said[3]
    return said[0]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_added_tokens_equal_the_oracles(
    facts: Facts, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "added-vocab.json"
    path.write_text(json.dumps(ODD))
    theirs, ours = transformers.Wav2Vec2CTCTokenizer(str(path)), Wav2Vec2CTCTokenizer(path)
    contents = st.sampled_from(["a", "wd", "w", "wda", "<x>", "sch", "\u00e9\u00e9", "a b"])
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    named = []
    for content in data.draw(st.lists(contents, min_size=1, max_size=4, unique=True)):
        named.append(AddedToken(content, **{name: data.draw(st.booleans(), label=name) for name in names}))
        their_token = transformers.AddedToken(**asdict(named[-1]))
        assert ours.add_tokens(named[-1:]) == theirs.add_tokens([their_token])
    assert facts(ours) == facts(theirs)
    pieces = ["a", "wd", "w", "wda", "<x>", "sch", "\u00e9", " ", "  ", "b", "<pad>"]
    for text in data.draw(st.lists(st.lists(st.sampled_from(pieces), max_size=8).map("".join), max_size=3)):
        assert ours.tokenize(text) == theirs.tokenize(text)
        assert ours(text) == dict(theirs(text))
    ids = data.draw(st.lists(st.integers(0, len(ours) + 1), max_size=8))
    assert ours.decode(ids) == theirs.decode(ids)
    loaded = saved_and_loaded(facts, theirs, ours, tmp_path_factory.getbasetemp() / "added")
    # Loading makes entries of several characters take white space again, whatever was said of them before.
    if not any(token.content in ODD and len(token.content) > 1 for token in named):
        assert loaded == facts(ours)


FLAGS = st.fixed_dictionaries(
    {name: st.booleans() for name in ("single_word", "lstrip", "rstrip", "normalized")}
)
CONTENTS = st.sampled_from(["<s>", "</s>", "[PAD]", "[UNK]", "[CLS]", "a", "sch"])


def write_layout(folder: Path, data: st.DataObject) -> None:
    """A tokenizer's files as one of the older versions left them, or without some of them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    nested = data.draw(st.booleans(), label="nested")
    vocabulary = NESTED if nested else data.draw(st.sampled_from([SPACED, NESTED["eng"], NESTED["deu"]]))
    names = data.draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=5))
    tokens = {name: data.draw(CONTENTS) for name in names}
    config: dict[str, Any] = {"do_lower_case": data.draw(st.booleans()), "word_delimiter_token": "|"}
    if nested:
        config["target_lang"] = data.draw(st.sampled_from(sorted(NESTED)))
    config |= {name: token for name, token in tokens.items() if data.draw(st.booleans())}
    files: dict[str, Any] = {"vocab.json": vocabulary, "tokenizer_config.json": config}
    if data.draw(st.booleans(), label="special_tokens_map.json"):
        files["special_tokens_map.json"] = {
            name: {"content": token, **data.draw(FLAGS)} if data.draw(st.booleans()) else token
            for name, token in tokens.items()
        }
    if data.draw(st.booleans(), label="added_tokens.json"):
        beyond = data.draw(
            st.lists(st.sampled_from(["<s>", "</s>", "yes", "[CLS]"]), unique=True, max_size=3)
        )
        # Numbered on from the vocabulary, as every version did: of other ids one may be given twice.
        first = len(vocabulary[config["target_lang"]] if nested else vocabulary)
        files["added_tokens.json"] = {token: first + i for i, token in enumerate(beyond)}
    if data.draw(st.booleans(), label="tokenizer_class"):
        config["tokenizer_class"] = "Wav2Vec2CTCTokenizer"
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_older_layouts_load_and_save_as_in_the_oracle(
    facts: Facts, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "layout"
    write_layout(folder, data)
    theirs = transformers.Wav2Vec2CTCTokenizer.from_pretrained(folder)
    ours = Wav2Vec2CTCTokenizer.from_pretrained(folder)
    assert facts(ours) == facts(theirs)
    text = data.draw(st.lists(st.sampled_from(["a", "sch", "yes", "<s>", " ", "b", "[PAD]"]), max_size=6))
    assert ours.tokenize("".join(text)) == theirs.tokenize("".join(text))
    ids = data.draw(st.lists(st.integers(0, 14), max_size=8))
    assert ours.decode(ids) == theirs.decode(ids)
    assert saved_and_loaded(facts, theirs, ours, folder / "saved") == facts(ours)


def test_adding_tokens_equals_the_oracles(facts: Facts, tmp_path: Path) -> None:
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
    check_files(facts, theirs, ours, tmp_path)


def test_special_tokens_that_have_names_are_the_oracles(facts: Facts, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(ODD))
    path, named = tmp_path / "tokenizer_config.json", {"image_token": "<i>", "begin": "<b>"}
    theirs = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), extra_special_tokens=named)
    ours = Wav2Vec2CTCTokenizer(tmp_path / "vocab.json", extra_special_tokens=named)
    # There the delimiter comes after them, and before them once the files are loaded.
    assert facts(ours)["added"] == facts(theirs)["added"]
    assert sorted(ours.all_special_tokens) == sorted(theirs.all_special_tokens)
    assert ours.convert_tokens_to_ids(["<i>", "<b>"]) == theirs.convert_tokens_to_ids(["<i>", "<b>"])
    theirs.save_pretrained(tmp_path / "saved")
    for setting in (
        {"extra_special_tokens": named},
        {"model_specific_special_tokens": named},
        {"extra_special_tokens": ["<e>"], "image_token": "<i>"},
        json.loads((tmp_path / "saved" / path.name).read_text()),
    ):
        path.write_text(json.dumps(setting))
        theirs = transformers.Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
        ours = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
        assert facts(ours)["added"] == facts(theirs)["added"]
        assert sorted(ours.all_special_tokens) == sorted(theirs.all_special_tokens)
        assert ours.tokenize("a<i>a<b><e>") == theirs.tokenize("a<i>a<b><e>")
        assert "<i>" in ours.all_special_tokens
    with pytest.raises(ValueError, match=r"extra_special_tokens is given \{'x': 'y'\}, expected"):
        ours.add_special_tokens({"extra_special_tokens": {"x": "y"}})


def test_a_normalized_token_is_lowered_as_in_the_oracle(facts: Facts, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(ENGLISH))
    theirs = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), do_lower_case=True)
    ours = Wav2Vec2CTCTokenizer(tmp_path / "vocab.json", do_lower_case=True)
    theirs.add_tokens([transformers.AddedToken("THE", normalized=True), "SHE"])
    ours.add_tokens([AddedToken("THE", normalized=True), "SHE"])
    assert facts(ours) == facts(theirs)
    assert ours.tokenize("the THE SHE") == theirs.tokenize("the THE SHE")


# Not of another delimiter, which transformers loses: see below.
@pytest.mark.parametrize(
    "kind", ["english", "lower case", "odd", "another space", "nested", "extra", "sides"]
)
def test_files_go_both_ways(facts: Facts, pairs: dict[str, Any], kind: str, tmp_path: Path) -> None:
    check_files(facts, *pairs[kind], tmp_path)


def check_files(facts: Facts, theirs: Any, ours: Wav2Vec2CTCTokenizer, folder: Path) -> None:
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


def test_files_of_older_versions_load_as_in_the_oracle(facts: Facts, tmp_path: Path) -> None:
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
        (
            ENGLISH,
            {"extra_special_tokens": "<e>"},
            "extra_special_tokens '<e>', expected list or dict",
        ),
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
