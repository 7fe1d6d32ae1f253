"""Modified Kneser-Ney: by hand on a small text, normalised for every context, and what it refuses."""

from __future__ import annotations

import gzip
import io
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from w2v_ray.errors import LanguageModelError
from w2v_ray.text.kneser_ney import FALLBACK_DISCOUNTS, KneserNeyModel, estimate, write_arpa
from w2v_ray.text.language_model import NgramModel, open_language_model
from w2v_ray.text.ngram_counts import TextCounts, count_ngrams, read_blocks

DATA = Path(__file__).resolve().parents[1] / "data" / "lm"


def counted(text: str, order: int) -> TextCounts:
    return count_ngrams([("text", text.encode())], order)


def spelled(counts: TextCounts, n: int) -> list[str]:
    """The n-grams of one order, row for row."""
    table = counts.tables[n - 1]
    words = [counts.words[word].decode() for word in table.first]
    if n == 1:
        return words
    below = spelled(counts, n - 1)
    return [f"{word} {below[row]}" for word, row in zip(words, table.suffix, strict=True)]


def by_ngram(model: KneserNeyModel) -> dict[str, tuple[float, float]]:
    """n-gram -> probability and backoff weight, of those that were not pruned."""
    return {
        ngram: (prob, backoff)
        for n, (probs, backoffs, kept) in enumerate(
            zip(model.probs, model.backoffs, model.kept, strict=True), 1
        )
        for ngram, prob, backoff, keep in zip(spelled(model.counts, n), probs, backoffs, kept, strict=True)
        if keep
    }


def opened(model: KneserNeyModel, folder: Path) -> NgramModel:
    write_arpa(model, folder / "model.arpa")
    found = open_language_model(folder / "model.arpa")
    assert isinstance(found, NgramModel)
    return found


def natural_text(num_lines: int) -> str:
    """Lines of words that are as frequent as words are, and that follow each other as words do."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(num_lines):
        words = [int(rng.zipf(1.5)) % 997]
        while rng.random() < 0.9:
            follows = rng.random() < 0.6
            words.append((words[-1] * 7 + int(rng.zipf(2.0)) if follows else int(rng.zipf(1.5))) % 997)
        lines.append(" ".join(f"w{word}" for word in words))
    return "\n".join(lines) + "\n"


def test_counts_by_hand() -> None:
    counts = counted("a b a\n\nb a\n  \na\n", 3)
    assert counts.words == [b"<unk>", b"<s>", b"</s>", b"a", b"b"]
    assert (counts.num_words, counts.num_sentences) == (6, 3)
    found = {
        ngram: count
        for n in (1, 2, 3)
        for ngram, count in zip(spelled(counts, n), counts.tables[n - 1].count.tolist(), strict=True)
    }
    assert found == {
        "<unk>": 0,
        "<s>": 3,
        "</s>": 3,
        "a": 4,
        "b": 2,
        "<s> a": 2,
        "<s> b": 1,
        "a b": 1,
        "b a": 2,
        "a </s>": 3,
        "<s> a b": 1,
        "<s> a </s>": 1,
        "<s> b a": 1,
        "a b a": 1,
        "b a </s>": 2,
    }
    for n in (2, 3):
        contexts = [spelled(counts, n - 1)[row] for row in counts.tables[n - 1].context]
        assert contexts == [ngram.rsplit(" ", 1)[0] for ngram in spelled(counts, n)]


def test_probabilities_by_hand() -> None:
    """A bigram model of "a b", "a b", "b"."""
    model = estimate(counted("a b\na b\nb\n", 2), discount_fallback=FALLBACK_DISCOUNTS)
    # One bigram counts once, two twice, one three times: Y is 1 / (1 + 2 * 2). No unigram counts three times.
    assert model.discounts == [FALLBACK_DISCOUNTS, pytest.approx((1 - 2 * 0.2 * 2, 2 - 3 * 0.2 / 2, 3))]
    # Different words before: </s> 1 (b), a 1 (<s>), b 2 (<s>, a), 4 in all. 0.5 + 0.5 + 1 of these are given up
    # and shared by the four words </s>, a, b and <unk>.
    share = 2 / 4 / 4
    end, a, b = 0.5 / 4 + share, 0.5 / 4 + share, 1 / 4 + share
    expected = {
        "<unk>": (share, 1.0),
        "<s>": (1.0, (1.7 + 0.2) / 3),
        "</s>": (end, 1.0),
        "a": (a, 1.7 / 2),
        "b": (b, 3 / 3),
        "<s> a": (0.3 / 3 + 1.9 / 3 * a, 1.0),
        "<s> b": (0.8 / 3 + 1.9 / 3 * b, 1.0),
        "a b": (0.3 / 2 + 1.7 / 2 * b, 1.0),
        "b </s>": (0 / 3 + 3 / 3 * end, 1.0),
    }
    found = by_ngram(model)
    assert found.keys() == expected.keys()
    for ngram, values in expected.items():
        assert found[ngram] == pytest.approx(values), ngram
    likelihood = 2 * math.log(expected["<s> a"][0] * expected["a b"][0] * expected["b </s>"][0])
    likelihood += math.log(expected["<s> b"][0] * expected["b </s>"][0])
    assert model.perplexity == pytest.approx(math.exp(-likelihood / 8))


def test_discounts_by_hand() -> None:
    # Unigrams alone, so counts in the text: five words once, three twice, two three times, one four times.
    text = "a b c d e f f g g h h i i i j j j k k k k\n"  # </s> is a sixth word that counts once
    (discounts,) = estimate(counted(text, 1)).discounts
    share = 6 / (6 + 2 * 3)
    assert discounts == pytest.approx((1 - 2 * share * 3 / 6, 2 - 3 * share * 2 / 3, 3 - 4 * share * 1 / 2))


def test_equal_to_lmplz() -> None:
    """tiny.arpa is what KenLM's lmplz makes of tiny.txt."""
    text = (DATA / "tiny.txt").read_text()
    found = by_ngram(estimate(counted(text, 3), discount_fallback=FALLBACK_DISCOUNTS))
    num_compared = 0
    for line in (DATA / "tiny.arpa").read_text().splitlines():
        fields = line.split("\t")
        if len(fields) >= 2:
            num_compared += 1
            prob, backoff = found.pop(fields[1])
            assert math.log10(prob) == pytest.approx(float(fields[0]), abs=1e-6)
            if len(fields) == 3:
                assert math.log10(backoff) == pytest.approx(float(fields[2]), abs=1e-6)
    assert num_compared == 74
    assert not found


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("prune", [[0], [0, 0, 1], [0, 1, 3]])
def test_every_context_sums_to_one(tmp_path: Path, order: int, prune: list[int]) -> None:
    model = estimate(counted(natural_text(400), order), prune=prune[:order])
    read = opened(model, tmp_path)
    assert read.num_ngrams == model.num_ngrams
    words = [word for word in read.words() if word != "<s>"] + ["<unk>"]
    states, total = {read.begin_state, read.null_state}, len(words)
    frontier = set(states)
    while frontier and len(states) < 400:
        after = {read.score(state, word)[1] for state in frontier for word in words}
        frontier = after - states
        states |= frontier
    assert total == len(model.counts.words) - 1
    for state in list(states)[:400]:
        assert sum(10 ** read.score(state, word)[0] for word in words) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("prune", [[0], [0, 1, 2]])
@pytest.mark.parametrize("order", [1, 3, 4])
def test_the_perplexity_is_that_of_the_model_read_back(tmp_path: Path, order: int, prune: list[int]) -> None:
    text = natural_text(300)
    model = estimate(counted(text, order), prune=prune[:order])
    total, words, sentences, _, num_unknown = opened(model, tmp_path).score_text(text.encode())
    assert (words, sentences, num_unknown) == (model.counts.num_words, model.counts.num_sentences, 0)
    assert 10 ** (-total / (words + sentences)) == pytest.approx(model.perplexity, rel=1e-4)


def test_pruning_drops_what_is_rare() -> None:
    text = natural_text(300)
    whole = estimate(counted(text, 3))
    model = estimate(counted(text, 3), prune=[0, 0, 1])
    assert model.num_ngrams[:2] == whole.num_ngrams[:2]
    assert model.num_ngrams[2] == np.count_nonzero(whole.counts.tables[2].count > 1) < whole.num_ngrams[2]
    assert model.perplexity > whole.perplexity


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"prune": [1]}, "begin with 0"),
        ({"prune": [0, 2, 1]}, "never fall"),
        ({"prune": []}, "1 to 3"),
        ({"prune": [0, 0, 0, 0]}, "1 to 3"),
        ({"discount_fallback": [0.5, 1]}, "0.5 1 1.5"),
        ({"discount_fallback": [0.5, 1, 4]}, "0.5 1 4"),
        ({}, "discount-fallback"),
    ],
)
def test_settings_and_texts_that_cannot_be_used(settings: dict[str, list[float]], reason: str) -> None:
    with pytest.raises(LanguageModelError, match=reason):
        estimate(counted("a b c\n", 3), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no words"),
        ("\n \n", "no words"),
        ("a\n", "no 4-grams"),
        ("a <s> b\n", "reserve"),
        ("</s>\n", "reserve"),
    ],
)
def test_texts_without_ngrams(text: str, reason: str) -> None:
    with pytest.raises(LanguageModelError, match=reason):
        counted(text, 4)


def test_a_word_may_contain_a_reserved_one() -> None:
    assert counted("a<s> </s>b\n", 1).words[3:] == [b"a<s>", b"</s>b"]


def test_blocks_are_whole_lines_of_files_of_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2v_ray.text.ngram_counts._BLOCK_BYTES", 5)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b"from\nstdin"))))
    plain, packed, empty = (str(tmp_path / name) for name in ("plain.txt", "packed", "empty"))
    Path(plain).write_bytes(b"a bb ccc dddd\ne\r\nf")
    Path(packed).write_bytes(gzip.compress(b"g\nhhhhhhhhhh\n\xff\n"))
    Path(empty).write_bytes(b"")
    blocks = list(read_blocks([plain, packed, "-", empty]))
    assert all(block.endswith(b"\n") for _, block in blocks)
    assert b"".join(block for path, block in blocks if path == plain) == b"a bb ccc dddd\ne\r\nf\n"
    assert b"".join(block for path, block in blocks if path == packed) == b"g\nhhhhhhhhhh\n\xff\n"
    assert b"".join(block for path, block in blocks if path == "-") == b"from\nstdin\n"


def test_texts_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"a b c\n" * 1000)[:-9])
    for name in ("none.txt", "cut.gz", ""):
        with pytest.raises(LanguageModelError, match=name or str(tmp_path)):
            list(read_blocks([str(tmp_path / name)]))


def test_nothing_is_left_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = estimate(counted("a b\n", 2), discount_fallback=FALLBACK_DISCOUNTS)
    monkeypatch.setattr("w2v_ray.text.kneser_ney._lines", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_arpa(model, tmp_path / "model.arpa")
    assert not list(tmp_path.iterdir())


def test_words_that_are_not_utf8(tmp_path: Path) -> None:
    counts = count_ngrams([("text", b"\xe4 b\n")], 2)
    read = opened(estimate(counts, discount_fallback=FALLBACK_DISCOUNTS), tmp_path)
    assert "\udce4" in read
