"""Texts in their place: every word once and in order, whatever the vocabulary has of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_ray.errors import AlignError
from w2v_ray.text import (
    AlignedSpan,
    CTCLabels,
    Spelling,
    TextAlignment,
    Wav2Vec2CTCTokenizer,
    align_texts,
    frame_times,
)

ENGLISH = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINSHRDLU'"])}
KINDS: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "english": (ENGLISH, {}),
    "small letters": ({t if t.startswith("<") else t.lower(): i for t, i in ENGLISH.items()}, {}),
    "blank last": ({"a": 0, "b": 1, "\u00e9": 2, "|": 3, "<pad>": 4}, {}),
    "spaces": ({"<pad>": 0, " ": 1, "a": 2, "b": 3}, {"word_delimiter_token": None}),
    "no delimiter": ({"<pad>": 0, "\u4e2d": 1, "\u56fd": 2, "\u4eba": 3}, {"word_delimiter_token": None}),
    "long tokens": ({"<pad>": 0, "|": 1, "s": 2, "c": 3, "h": 4, "sch": 5, "ch": 6}, {}),
    "devanagari": ({"<pad>": 0, "|": 1, "\u0915": 2, "\u094d": 3, "\u0937": 4}, {}),
}


@pytest.fixture(scope="module")
def spellings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Spelling]:
    made = {}
    for name, (vocabulary, options) in KINDS.items():
        path = tmp_path_factory.mktemp("vocabulary") / "vocab.json"
        path.write_text(json.dumps(vocabulary))
        made[name] = Spelling(CTCLabels(Wav2Vec2CTCTokenizer(path, **options), len(vocabulary)))
    return made


def emission(path: str, probability: float = 0.9) -> np.ndarray:
    """Log-probabilities whose best path is ``path``; an underscore is the blank."""
    ids = [ENGLISH[{"_": "<pad>"}.get(letter, letter)] for letter in path]
    values = np.full((len(ids), len(ENGLISH)), (1 - probability) / (len(ENGLISH) - 1))
    values[np.arange(len(ids)), ids] = probability
    return np.log(values).astype(np.float32)


def align(path: str, text: str, spelling: Spelling) -> TextAlignment:
    (result,) = align_texts([emission(path)], [text], [frame_times(len(path), 1.0)], spelling=spelling)
    assert isinstance(result, TextAlignment)
    return result


def places(spans: list[AlignedSpan]) -> list[tuple[str, float, float, bool]]:
    return [(span.text, span.start_s, span.end_s, span.aligned) for span in spans]


def test_words_and_characters_lie_where_they_are(spellings: dict[str, Spelling]) -> None:
    found = align("__NN_O_|_SSO__", "no so", spellings["english"])
    assert places(found.words) == [("no", 2, 6, True), ("so", 9, 12, True)]
    assert places(found.characters) == [
        ("n", 2, 4, True),
        ("o", 5, 6, True),
        ("s", 9, 11, True),
        ("o", 11, 12, True),
    ]
    assert found.num_labels == 5
    assert found.score == pytest.approx(0.9, rel=1e-5)
    assert found.words[0].score == pytest.approx(0.9, rel=1e-5)
    assert found.loss_per_label == pytest.approx(found.ctc_loss / 5)


def test_a_word_scores_the_geometric_mean_of_its_characters_frames(spellings: dict[str, Spelling]) -> None:
    log_probs = np.concatenate([emission("NN", 0.9), emission("_"), emission("O", 0.4)])
    (found,) = align_texts([log_probs], ["NO"], [frame_times(4, 0.02)], spelling=spellings["english"])
    assert isinstance(found, TextAlignment)
    assert [c.score for c in found.characters] == pytest.approx([0.9, 0.4], rel=1e-5)
    assert found.words[0].score == found.score == pytest.approx(0.6, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "words", "characters"),
    [
        # a mark at the edge of a word has no length
        ("NO, SO", [("NO,", 1, 3, True), ("SO", 5, 7, True)], [(",", 3, 3, False)]),
        ("NO (SO)", [("NO", 1, 3, True), ("(SO)", 5, 7, True)], [("(", 5, 5, False), (")", 7, 7, False)]),
        # inside a word it has what is left for it
        ("N\u2019O SO", [("N\u2019O", 1, 3, True), ("SO", 5, 7, True)], [("\u2019", 2, 2, False)]),
        # a number is said somewhere between its neighbours
        ("NO 3 SO", [("NO", 1, 3, True), ("3", 3, 5, False), ("SO", 5, 7, True)], [("3", 3, 5, False)]),
        (
            "NO 34, SO",
            [("NO", 1, 3, True), ("34,", 3, 5, False), ("SO", 5, 7, True)],
            [("3", 3, 4, False), ("4", 4, 5, False), (",", 5, 5, False)],
        ),
        ("2 NO SO", [("2", 0, 1, False), ("NO", 1, 3, True), ("SO", 5, 7, True)], [("2", 0, 1, False)]),
        ("NO SO 9", [("NO", 1, 3, True), ("SO", 5, 7, True), ("9", 7, 9, False)], [("9", 7, 9, False)]),
        # the start of this word was not found
        ("NO 5SO", [("NO", 1, 3, True), ("5SO", 3, 7, False)], [("5", 3, 5, False)]),
        # a mark that is a word takes the time that nothing else takes
        ("NO - SO", [("NO", 1, 3, True), ("-", 3, 5, False), ("SO", 5, 7, True)], [("-", 3, 5, False)]),
        (
            "NO - 3 SO",
            [("NO", 1, 3, True), ("-", 3, 3, False), ("3", 3, 5, False), ("SO", 5, 7, True)],
            [("-", 3, 3, False), ("3", 3, 5, False)],
        ),
    ],
)
def test_what_the_vocabulary_lacks_gets_a_place(
    spellings: dict[str, Spelling],
    text: str,
    words: list[tuple[str, float, float, bool]],
    characters: list[tuple[str, float, float, bool]],
) -> None:
    found = align("_NO_|SO__", text, spellings["english"])
    assert places(found.words) == words
    assert [place for place in places(found.characters) if not place[3]] == characters
    assert all((span.score is None) == (not span.aligned) for span in found.characters)


def test_a_text_of_which_nothing_is_in_the_vocabulary(spellings: dict[str, Spelling]) -> None:
    found = align("______", "\u0434\u0430 42 !", spellings["english"])
    assert places(found.words) == [("\u0434\u0430", 0, 3, False), ("42", 3, 6, False), ("!", 6, 6, False)]
    assert found.score is found.words[0].score is found.loss_per_label is None
    assert found.ctc_loss == pytest.approx(-6 * np.log(0.9), rel=1e-4)
    only_marks = align("____", "? !", spellings["english"])
    assert places(only_marks.words) == [("?", 0, 2, False), ("!", 2, 4, False)]


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_an_empty_text_has_no_words(spellings: dict[str, Spelling], text: str) -> None:
    found = align("__NO", text, spellings["english"])
    assert found.words == found.characters == []
    assert found.score is None
    assert found.ctc_loss > 0


def test_too_short_an_emission_is_the_items_error(spellings: dict[str, Spelling]) -> None:
    results = align_texts(
        [emission("NO"), emission("NO|SO")],
        ["NO SO", "NO SO"],
        [frame_times(2, 1.0), frame_times(5, 1.0)],
        spelling=spellings["english"],
    )
    assert isinstance(results[0], AlignError)
    assert "2 frames and 5 tokens" in str(results[0])
    assert isinstance(results[1], TextAlignment)


@pytest.mark.parametrize(
    ("kind", "word", "pieces"),
    [
        ("english", "Tea's", [("T", 1), ("e", 1), ("a", 1), ("'", 1), ("s", 1)]),
        ("english", "<pad>", [("<", 0), ("p", 0), ("a", 1), ("d", 1), (">", 0)]),
        ("english", "a|b", [("a", 1), ("|", 0), ("b", 0)]),
        ("english", "\u00df\ufb01", [("\u00df", 2), ("\ufb01", 0)]),  # SS; there is no F for fi
        ("small letters", "NO", [("N", 1), ("O", 1)]),
        ("blank last", "e\u0301E\u0301a\u0301", [("e\u0301", 1), ("E\u0301", 1), ("a", 1), ("\u0301", 0)]),
        ("no delimiter", "\u4e2d\u56fdA", [("\u4e2d", 1), ("\u56fd", 1), ("A", 0)]),
        ("long tokens", "schachS", [("sch", 1), ("a", 0), ("ch", 1), ("S", 1)]),
        ("devanagari", "\u0915\u094d\u0937", [("\u0915", 1), ("\u094d", 1), ("\u0937", 1)]),
    ],
)
def test_words_are_spelled_as_the_vocabulary_can(
    spellings: dict[str, Spelling], kind: str, word: str, pieces: list[tuple[str, int]]
) -> None:
    found = list(spellings[kind].spell(word))
    assert [(piece, len(columns)) for piece, columns in found] == pieces
    assert spellings[kind].blank not in [column for _, columns in found for column in columns]


def test_delimiters_are_the_tokenizers(spellings: dict[str, Spelling]) -> None:
    assert {kind: spelling.delimiter for kind, spelling in spellings.items()} == {
        "english": 4,
        "small letters": 4,
        "blank last": 3,
        "spaces": 1,
        "no delimiter": None,
        "long tokens": 1,
        "devanagari": 1,
    }
    assert spellings["blank last"].blank == 4


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_word_is_there_once_in_order_and_times_never_go_back(
    spellings: dict[str, Spelling], kind: str, data: st.DataObject
) -> None:
    letters = "".join(t for t in KINDS[kind][0] if len(t) == 1) + " 12,.(\u0434\u00dfe\u0301\U0001f600"
    text = data.draw(st.text(st.sampled_from(letters), max_size=25))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    frames = data.draw(st.integers(60, 150))
    spelling = spellings[kind]
    log_probs = rng.standard_normal((frames, spelling.labels.size)) * 4
    log_probs -= np.log(np.exp(log_probs).sum(1, keepdims=True))
    times = frame_times(frames, 0.02) + 100
    (found,) = align_texts([log_probs], [text], [times], spelling=spelling)
    assert isinstance(found, TextAlignment)
    assert [word.text for word in found.words] == text.split()
    assert "".join(character.text for character in found.characters) == "".join(text.split())
    for spans in (found.words, found.characters):
        edges = [edge for span in spans for edge in (span.start_s, span.end_s)]
        assert edges == sorted(edges)
        assert all(times[0, 0] <= edge <= times[-1, 1] for edge in edges)
        assert all(span.score is None or 0 <= span.score <= 1 for span in spans)
    assert (found.score is None) == (found.num_labels == 0)
