"""The tokenizer on chosen texts and ids, against transformers, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from w2v_ray.text import Wav2Vec2CTCTokenizer


def test_vocabulary_equals_the_oracles(facts: Any, pairs: dict[str, Any], kind: str) -> None:
    theirs, ours = pairs[kind]
    assert facts(ours) == facts(theirs)
    tokens = [*ours.get_vocab(), "nowhere"]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    for skip in (False, True):
        ids = list(range(len(ours) + 4))
        assert ours.convert_ids_to_tokens(ids, skip) == theirs.convert_ids_to_tokens(ids, skip)


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


def test_labels_and_words_equal_the_oracles(plain: Any, pairs: dict[str, Any]) -> None:
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
    with pytest.raises(ValueError, match="labels has 1 rows, expected 2, as many as input_ids"):
        ours.pad({"input_ids": [[1], [2, 3]], "labels": [[1]]})
    with pytest.raises(ValueError, match="encoding 1 has no labels, expected input_ids, labels as in the"):
        ours.pad([{"input_ids": [1], "labels": [1]}, {"input_ids": [2, 3]}])
    with pytest.raises(
        TypeError, match=r"padding has no option 'truncation'; it knows max_length, .* verbose"
    ):
        ours.pad(encodings, truncation=True)


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
    with pytest.raises(TypeError, match=r"the tokenizer has no option 'paddding'; it knows add_special_"):
        ours("SO", paddding=True)


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
