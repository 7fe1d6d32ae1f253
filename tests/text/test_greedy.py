"""Greedy decoding: the text is the tokenizer's, words lie where their tokens do, confidences are sane."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.errors import CheckpointError, EncodeError
from w2v_ray.text import CTCLabels, Wav2Vec2CTCTokenizer, Word, decode_greedy

ENGLISH = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINSHRDLU'"])}
KINDS: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "english": (ENGLISH, {}),
    "lower case": (ENGLISH, {"do_lower_case": True}),
    "long tokens and gaps": (
        {"[P]": 3, "_": 1, "a": 2, "sch": 4, " ": 5, "\t": 7},
        {"pad_token": "[P]", "word_delimiter_token": "_"},
    ),
    "no delimiter": ({"<pad>": 0, "\u4e2d": 1, "\u56fd": 2, "\u4eba": 3}, {"word_delimiter_token": None}),
    "another space": (ENGLISH, {"replace_word_delimiter_char": "-", "clean_up_tokenization_spaces": True}),
    "nothing for a space": (ENGLISH, {"replace_word_delimiter_char": ""}),
    "blank as delimiter": (ENGLISH, {"word_delimiter_token": "<pad>"}),
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Wav2Vec2CTCTokenizer]:
    made = {}
    for name, (vocabulary, options) in KINDS.items():
        path = tmp_path_factory.mktemp("vocabulary") / "vocab.json"
        path.write_text(json.dumps(vocabulary))
        made[name] = Wav2Vec2CTCTokenizer(path, **options)
    return made


def emission(path: list[int], size: int, probabilities: list[float] | float = 0.9) -> np.ndarray:
    """Log-probabilities whose best path is ``path``, with these probabilities on it."""
    likely = np.broadcast_to(np.asarray(probabilities, dtype=np.float64), (len(path),))
    values = np.repeat(((1 - likely) / (size - 1))[:, None], size, axis=1)
    values[np.arange(len(path)), path] = likely
    return np.log(values)


def spell(path: str) -> list[int]:
    return [ENGLISH[{"_": "<pad>"}.get(character, character)] for character in path]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_text_is_the_tokenizers(
    tokenizers: dict[str, Wav2Vec2CTCTokenizer], kind: str, data: st.DataObject
) -> None:
    tokenizer = tokenizers[kind]
    size = max(tokenizer.decoder) + 1 + data.draw(st.integers(0, 3))  # some models have outputs to spare
    runs = data.draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(1, 3)), max_size=20))
    path = [index for index, frames in runs for _ in range(frames)]
    seed = data.draw(st.integers(0, 100))
    scores = np.random.default_rng(seed).normal(size=(len(path), size)).astype(np.float16)
    if path:
        scores[np.arange(len(path)), path] = scores.max() + 1
        scores -= np.float16(scores.max() + data.draw(st.sampled_from([0, 1, 100])))
    result = decode_greedy(scores, labels=CTCLabels(tokenizer, size))

    assert result.text == tokenizer.decode(path)
    words = tokenizer.decode(path, output_word_offsets=True).word_offsets
    words = [word for word in words if word["word"].strip()]
    lower = str.lower if tokenizer.do_lower_case else str
    assert [word.word for word in result.words] == [lower(word["word"].strip()) for word in words]
    assert [word.start_frame for word in result.words] == [w["start_offset"] for w in words]
    assert [word.end_frame for word in result.words] == [w["end_offset"] for w in words]
    assert all(0 <= word.confidence <= 1 and word.start_frame < word.end_frame for word in result.words)
    assert all(a.end_frame <= b.start_frame for a, b in itertools.pairwise(result.words))
    assert (result.confidence is None) == (not result.words)
    assert result.confidence is None or 0 <= result.confidence <= 1


def test_words_lie_where_their_tokens_do(tokenizers: dict[str, Wav2Vec2CTCTokenizer]) -> None:
    labels = CTCLabels(tokenizers["english"], len(ENGLISH))
    path = "__SS_OO_||__TT_TE__|"
    result = decode_greedy(emission(spell(path), labels.size), labels=labels, characters=True)
    assert result.text == "SO TTE"
    assert [(word.word, word.start_frame, word.end_frame) for word in result.words] == [
        ("SO", 2, 7),
        ("TTE", 12, 17),
    ]
    assert result.characters is not None
    assert [(char.char, char.start_frame, char.end_frame) for char in result.characters] == [
        ("S", 2, 4),
        ("O", 5, 7),
        ("T", 12, 14),
        ("T", 15, 16),
        ("E", 16, 17),
    ]


def test_confidence_of_the_text_is_the_mean_of_its_words(tokenizers: dict[str, Wav2Vec2CTCTokenizer]) -> None:
    labels = CTCLabels(tokenizers["english"], len(ENGLISH))
    likely = [0.9, 0.8, 0.6, 0.3, 0.5]  # blank, S, O, delimiter, T: each word can be spelled in one way
    result = decode_greedy(emission(spell("_SO|T"), labels.size, likely), labels=labels)
    first, second = (0.8 * 0.6) ** 0.5, 0.5
    assert [word.confidence for word in result.words] == pytest.approx([first, second])
    assert result.confidence == pytest.approx((first * second) ** 0.5)


@pytest.mark.parametrize("path", ["", "____", "||_|", "_|_"])
def test_nothing_recognised(tokenizers: dict[str, Wav2Vec2CTCTokenizer], path: str) -> None:
    labels = CTCLabels(tokenizers["english"], len(ENGLISH))
    result = decode_greedy(emission(spell(path), labels.size), labels=labels)
    assert (result.text, result.confidence, result.words) == ("", None, [])


def test_without_a_delimiter_the_text_is_one_word(tokenizers: dict[str, Wav2Vec2CTCTokenizer]) -> None:
    labels = CTCLabels(tokenizers["no delimiter"], 4)
    result = decode_greedy(emission([0, 1, 1, 2, 0, 3], 4, 1 - 1e-7), labels=labels)
    (word,) = result.words
    assert (word.word, word.start_frame, word.end_frame) == (result.text, 1, 6)
    assert word.confidence == pytest.approx(1)


def test_extreme_scores_stay_in_bounds(tokenizers: dict[str, Wav2Vec2CTCTokenizer]) -> None:
    labels = CTCLabels(tokenizers["english"], len(ENGLISH))
    scores = np.full((3, labels.size), -np.inf)
    scores[0, ENGLISH["S"]], scores[2, ENGLISH["O"]] = 60_000.0, -60_000.0  # and a frame of nothing: a blank
    result = decode_greedy(scores, labels=labels)
    assert result.words == [Word(word="SO", start_frame=0, end_frame=3, confidence=0.0)]
    assert result.confidence == 0.0


def test_numbers_that_are_none_fail_alone(tokenizers: dict[str, Wav2Vec2CTCTokenizer]) -> None:
    labels = CTCLabels(tokenizers["english"], len(ENGLISH))
    scores = emission(spell("SO"), labels.size)
    scores[1, 3] = np.nan
    with pytest.raises(EncodeError, match="holds NaN in 1 of 2 frames"):
        decode_greedy(scores, labels=labels)
    with pytest.raises(EncodeError, match=r"shape \(2, 16\), expected \(frames, 18\)"):
        decode_greedy(scores[:, :16], labels=labels)


def test_a_model_with_too_few_outputs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({"a": 0, "b": 5, "<pad>": 1}))
    tokenizer = Wav2Vec2CTCTokenizer(path)
    assert CTCLabels(tokenizer, 6).size == 6  # <s>, </s>, <unk> and | got ids of which it has none: no matter
    with pytest.raises(CheckpointError, match="5 outputs and the tokenizer's vocabulary has ids up to 5"):
        CTCLabels(tokenizer, 5)
    path.write_text(json.dumps({"a": 0, "b": 1}))
    with pytest.raises(CheckpointError, match="pad_token '<pad>', the CTC blank, is none of the model's 2"):
        CTCLabels(Wav2Vec2CTCTokenizer(path), 2)


def test_a_real_emission(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "misc" / "ctc"
    letters = json.loads((folder / "libri_labels.json").read_text())
    scores = np.array(json.loads((folder / "libri_logits.json").read_text()), dtype=np.float16)
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate([*letters, "<pad>"])}))
    tokenizer = Wav2Vec2CTCTokenizer(tmp_path / "vocab.json", word_delimiter_token=" ")
    result = decode_greedy(scores, labels=CTCLabels(tokenizer, scores.shape[1]))
    assert result.text == tokenizer.decode(scores.argmax(axis=1))
    assert result.text == (
        "i have a good deal of will you remember and what i have set my mind upon "
        "no doubt i shall some day achieve"
    )
    assert [word.word for word in result.words] == result.text.split()
    assert result.confidence is not None
    assert result.confidence > 0.5
