"""Vocabularies by language: whose letters the columns of an emission are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.made_languages import LETTERS, SPECIAL
from w2v_ray.errors import CheckpointError, LanguageError
from w2v_ray.text.languages import LanguageLabels, Tokenizers, check_head
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer


def tokenizer_of(folder: Path, special: list[str] = SPECIAL) -> Wav2Vec2CTCTokenizer:
    vocabulary = {
        language: {token: i for i, token in enumerate([*special, *letters])}
        for language, letters in LETTERS.items()
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return Wav2Vec2CTCTokenizer.from_pretrained(folder, target_lang="eng")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Wav2Vec2CTCTokenizer:
    return tokenizer_of(tmp_path)


def test_each_language_has_its_own_letters(tokenizer: Wav2Vec2CTCTokenizer, tmp_path: Path) -> None:
    tokenizers = Tokenizers(tokenizer)
    assert tokenizers.names == tuple(sorted(LETTERS))
    for language in [*LETTERS, *reversed(LETTERS)]:
        made = tokenizers(language)
        fresh = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path, target_lang=language)
        assert made.get_vocab() == fresh.get_vocab()
        assert made.encode(LETTERS[language]) == fresh.encode(LETTERS[language])
        assert made is tokenizers(language)
    assert tokenizer.target_lang == "eng"  # untouched
    assert tokenizers(None) is tokenizers("eng") is tokenizer


def test_labels_are_of_the_language(tokenizer: Wav2Vec2CTCTokenizer) -> None:
    labels = LanguageLabels(tokenizer)
    size = len(SPECIAL) + len(LETTERS["deu"])
    assert "".join(labels("deu", size).texts[5:]) == LETTERS["deu"]
    assert "".join(labels("nld", size).texts[5:]) == LETTERS["nld"]
    assert labels("deu", size) is labels("deu", size)
    with pytest.raises(
        CheckpointError, match="the model has 14 outputs and the tokenizer's vocabulary has ids up to"
    ):
        labels("fra", 14)


def test_an_unknown_language_names_those_there_are(tokenizer: Wav2Vec2CTCTokenizer) -> None:
    with pytest.raises(
        LanguageError, match=r"^language is 'spa', expected one of .*: deu, eng, fra, nld; correct"
    ):
        Tokenizers(tokenizer)("spa")


def test_one_vocabulary_for_all_languages(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(SPECIAL)}))
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
    tokenizers = Tokenizers(tokenizer)
    assert tokenizers.names is None
    assert tokenizers("fra") is tokenizers("anything") is tokenizer


@pytest.mark.parametrize("rows", [15, 17])
def test_a_head_with_too_few_or_many_rows_is_refused(tokenizer: Wav2Vec2CTCTokenizer, rows: int) -> None:
    french = Tokenizers(tokenizer)("fra")
    check_head(french, 16, "adapter.fra.safetensors", "fra")
    message = (
        rf"^the adapter of language 'fra' has {rows} rows in lm_head \(adapter\.fra\.safetensors\) and its "
        r"vocabulary 16 tokens; use"
    )
    with pytest.raises(CheckpointError, match=message):
        check_head(french, rows, "adapter.fra.safetensors", "fra")


def test_special_tokens_beyond_the_vocabulary_may_have_rows(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, special=["<pad>", "<unk>", "|"])
    assert len(tokenizer) == 14  # nine letters, three tokens, and <s> and </s>
    for rows in (12, 13, 14):
        check_head(tokenizer, rows, "a file", "eng")
    for rows in (11, 15):
        with pytest.raises(CheckpointError, match="its vocabulary 12 tokens"):
            check_head(tokenizer, rows, "a file", "eng")
