"""The n-gram automaton: equal to kenlm to the last bit, clear about bad files, safe with damaged ones."""

from __future__ import annotations

import gzip
import os
import pickle
import random
import re
import struct
from pathlib import Path

import kenlm
import pytest

from w2v_ray.text._beam import NgramBuilder, NgramModel

TINY = Path(__file__).resolve().parents[1] / "data" / "lm" / "tiny.arpa"


def built(arpa: bytes | str, block: int | None = None) -> NgramModel:
    data = arpa.encode() if isinstance(arpa, str) else arpa
    builder = NgramBuilder()
    block = block or max(1, len(data))
    for start in range(0, len(data), block):
        builder.feed(data[start : start + block])
    return builder.finish()


def random_arpa(rng: random.Random, order: int) -> tuple[str, list[str]]:
    """A model without sense: contexts without extension, missing suffixes, repeated n-grams, odd numbers."""
    words = ["<s>", "</s>", *(f"w{i}" for i in range(rng.randint(1, 12)))]
    has_unk = rng.random() < 0.7
    rng.shuffle(words)
    if has_unk:
        words.insert(rng.randrange(len(words)), rng.choice(["<unk>", "<UNK>"]))
    if rng.random() < 0.1:
        words.append(rng.choice(words))

    def prob() -> str:
        odd = {0: "-99", 1: "0", 2: "-inf", 3: "-0", 4: "-1e-60", 5: "-1.5e+1"}
        return odd.get(rng.randrange(40)) or f"{-5 * rng.random():.{rng.randint(1, 12)}g}"

    def backoff() -> str:
        return rng.choice(["", "\t0", "\t-0.0", *[f"\t{rng.uniform(-3, 0.5):.7g}"] * 5])

    grams: list[list[tuple[str, ...]]] = [[(word,) for word in words]]
    for n in range(2, order + 1):
        before = sorted(set(grams[-1]))
        found: list[tuple[str, ...]] = []
        for _ in range(rng.randint(0, 40) if before else 0):
            context = rng.choice(before)
            known = [gram[-1] for gram in before if gram[:-1] == context[1:]]
            last = rng.choice(known if known and n > 2 and rng.random() < 0.6 else [*words, "<unk>"])
            if (*context, last) not in found or rng.random() < 0.05:
                found.append((*context, last))
        grams.append(found)
    lines = ["\\data\\", *(f"ngram {n}={len(found)}" for n, found in enumerate(grams, 1))]
    for n, found in enumerate(grams, 1):
        lines += ["", f"\\{n}-grams:"]
        lines += [f"{prob()}\t{' '.join(gram)}{backoff() if n < order else ''}" for gram in found]
    return "\n".join([*lines, "", "\\end\\", ""]), [*words, "<unk>", "stranger"]


def bits(number: float) -> bytes:
    return struct.pack("f", number)


def assert_equal_to_kenlm(
    model: NgramModel, oracle: kenlm.Model, words: list[str], rng: random.Random, num_queries: int
) -> int:
    """Equal scores to the last bit, and states that are equal where kenlm's are, on random walks."""
    assert model.order == oracle.order
    ours: dict[kenlm.State, int] = {}
    theirs: dict[int, kenlm.State] = {}
    done = 0
    while done < num_queries:
        before = kenlm.State()
        if rng.random() < 0.5:
            oracle.BeginSentenceWrite(before)
            state = model.begin_state
        else:
            oracle.NullContextWrite(before)
            state = model.null_state
        for _ in range(12):
            assert ours.setdefault(before, state) == state
            assert theirs.setdefault(state, before) == before
            word = rng.choice(words)
            after = kenlm.State()
            expected = oracle.BaseScore(before, word, after)
            found, state = model.score(state, word)
            assert bits(found) == bits(expected), (word, found, expected)
            before = after
            done += 1
    return done


def test_random_models_are_equal_to_kenlm(tmp_path: Path) -> None:
    path = tmp_path / "random.arpa"
    num_queries = num_refused = 0
    for seed in range(700):
        rng = random.Random(seed)
        arpa, words = random_arpa(rng, rng.randint(2, 5))
        path.write_text(arpa)
        try:
            oracle = kenlm.Model(str(path))
        except OSError as error:
            num_refused += 1
            if "ProbingSizeException" in str(error):  # its hash table is too small: a limit of its own
                built(arpa)
                continue
            with pytest.raises(ValueError, match="line"):
                built(arpa)
            continue
        model = built(arpa, rng.choice([None, 1, 7, 100]))
        num_queries += assert_equal_to_kenlm(model, oracle, words, rng, 350)
    assert num_queries > 100_000
    assert num_refused < 450


def as_kenlm_wants(arpa: str) -> str:
    """The same model without text before it, and with tabs around the words."""
    lines = arpa.splitlines()
    lines = lines[lines.index("\\data\\") :]
    n = 0
    for number, line in enumerate(lines):
        if heading := re.fullmatch(r"\\(\d+)-grams:", line):
            n = int(heading[1])
        elif n and (fields := line.split()) and line != "\\end\\":
            lines[number] = "\t".join([fields[0], " ".join(fields[1 : n + 1]), *fields[n + 1 :]])
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", ["bugs_bunny_kenlm.arpa", "kenlm_test.arpa", "pocketsphinx_100.lm.gz"])
def test_real_models_are_equal_to_kenlm(shared_data: Path, tmp_path: Path, name: str) -> None:
    source = shared_data / "misc" / "ctc" / name
    data = gzip.decompress(source.read_bytes()) if name.endswith(".gz") else source.read_bytes()
    path = tmp_path / "model.arpa"
    path.write_text(as_kenlm_wants(data.decode()))
    model = built(data)
    words = [*model.words(), "<unk>", "stranger"]
    rng = random.Random(0)
    assert_equal_to_kenlm(model, kenlm.Model(str(path)), words, rng, 15_000)
    model.save(tmp_path / "model.w2vlm")
    mapped = NgramModel.map(tmp_path / "model.w2vlm")
    assert mapped.words() == model.words()
    assert_equal_to_kenlm(mapped, kenlm.Model(str(path)), words, rng, 1_000)


HEAD = (
    "\\data\\\nngram 1=4\nngram 2=2\n\n\\1-grams:\n-1 <unk>\n-1 <s> -0.5\n-1 </s>\n-1 a -0.3\n\n\\2-grams:\n"
)
SMALL = HEAD + "-0.2 <s> a\n-0.4 a </s>\n\n\\end\\\n"


def test_the_words_and_counts_of_a_model() -> None:
    model = built(SMALL)
    assert (model.order, model.num_ngrams, model.words()) == (2, [4, 2], ["<s>", "</s>", "a"])
    assert "a" in model
    assert "<unk>" not in model
    prob, state = model.score(model.begin_state, "a")
    assert prob == pytest.approx(-0.2)
    assert model.score(state, "</s>")[0] == pytest.approx(-0.4)
    assert model.score(state, "a")[0] == pytest.approx(-1.3)
    assert model.path is None
    assert model.is_intact()


@pytest.mark.parametrize(
    "same",
    [
        SMALL.replace("\n", "\r\n"),
        SMALL.replace(" ", "\t").replace("ngram\t", "ngram "),
        SMALL.replace(" ", " \t "),
        SMALL.rstrip("\n"),
        "\ufeff" + SMALL,
        "made by hand\nwith words before\n\n" + SMALL + "\n \n\n",
        SMALL.replace("ngram 1=4", "ngram  1 = 4"),
        SMALL.replace("-1 a -0.3", "-1.0 a -3e-1"),
    ],
)
def test_spellings_that_mean_the_same(same: str) -> None:
    assert pickle.dumps(built(same)) == pickle.dumps(built(SMALL))


def test_an_order_without_ngrams_may_be_left_out() -> None:
    empty = SMALL.replace("ngram 2=2", "ngram 2=2\nngram 3=0")
    for arpa in (empty, empty.replace("\\end\\", "\\3-grams:\n\n\\end\\")):
        model = built(arpa)
        assert model.num_ngrams == [4, 2, 0]
        assert model.score(model.begin_state, "a")[0] == pytest.approx(-0.2)


def test_a_unigram_model_has_no_context() -> None:
    model = built("\\data\\\nngram 1=3\n\n\\1-grams:\n-1 <s>\n-2 </s>\n-0.5 a\n\n\\end\\\n")
    assert model.score(model.begin_state, "a") == (-0.5, model.null_state)
    assert model.score(model.null_state, "b") == (-100.0, model.null_state)


def test_words_keep_their_bytes() -> None:
    arpa = (
        SMALL.replace("a", "\u00e4")
        .encode("latin-1")
        .replace(b"\\d\xe4t\xe4", b"\\data")
        .replace(b"gr\xe4m", b"gram")
    )
    model = built(arpa)
    assert model.words()[2].encode(errors="surrogateescape") == b"\xe4"
    assert "\udce4" in model
    assert model.score(model.begin_state, "\udce4")[0] == pytest.approx(-0.2)
    assert "\u00e4" not in model


WRONG = {
    "nothing": ("", "no line"),
    "no model": ("some text\n" * 10, "no line"),
    "much that is no model": ("x" * 100 + "\n") * 20_000,
    "one endless line": "x" * (1 << 21),
    "only a heading": ("\\data\\\n", "cut short"),
    "cut in the counts": (SMALL[:16], "cut short"),
    "cut in the unigrams": (SMALL[: SMALL.index("-1 </s>")], "cut short"),
    "cut in a number": (SMALL[: SMALL.index("-0.4 a") + 2], "line 13"),
    "cut before the end": (SMALL.replace("\\end\\", ""), "cut short"),
    "something after the end": (SMALL + SMALL, "line 16"),
    "too many": (SMALL.replace("2=2", "2=1"), "2 2-grams.*ngram 2=1"),
    "too few": (SMALL.replace("1=4", "1=18446744073709551615"), "4 1-grams"),
    "a count that is none": (SMALL.replace("1=4", "1=x"), "line 2"),
    "a count too large": (SMALL.replace("1=4", "1=99999999999999999999"), "line 2"),
    "counts out of order": (SMALL.replace("ngram 2", "ngram 3"), "order 2"),
    "no counts": ("\\data\\\n\\1-grams:\n", "count"),
    "an order too high": ("\\data\\\n" + "".join(f"ngram {n}=0\n" for n in range(1, 20)), "order 17"),
    "a section too many": (SMALL.replace("\\end\\", "\\3-grams:\n\\end\\"), "3-grams"),
    "a section missing": (SMALL.replace("\\2-grams:", "\\end\\"), "2-grams"),
    "sections out of order": (SMALL.replace("\\1-grams:", "\\2-grams:"), "1"),
    "no unigrams": ("\\data\\\nngram 1=0\nngram 2=0\n\\2-grams:\n\\end\\\n", "order 1"),
    "a heading that is none": (SMALL.replace("\\2-grams:", "\\2-gram:"), "2-gram:"),
    "no sentence begin": (SMALL.replace("1 <s>", "1 <S>"), "without <s>"),
    "no sentence end": (SMALL.replace("1 </s>", "1 <\\s>"), "without </s>"),
    "a word not listed": (SMALL.replace("-0.4 a", "-0.4 b"), 'line 13.*"b".*not among'),
    "a context not listed": (
        SMALL.replace("2=2", "2=2\nngram 3=1").replace("\\end\\", "\\3-grams:\n-1 a a </s>\n\\end\\"),
        '"a a"',
    ),
    "a positive probability": (SMALL.replace("-0.4 a", "0.4 a"), "above 0"),
    "nan": (SMALL.replace("-0.4 a", "nan a"), '"nan"'),
    "no number": (SMALL.replace("-0.4 a", "-0.4x a"), '"-0.4x"'),
    "an infinite backoff": (SMALL.replace("a -0.3", "a -inf"), "infinite"),
    "a backoff at the highest order": (SMALL.replace("a </s>", "a </s> -1"), "highest"),
    "too few fields": (SMALL.replace("-0.4 a </s>", "-0.4 a"), "line 13"),
    "too many fields": (SMALL.replace("-0.4 a </s>", "-0.4 a </s> 0 0 0 0"), "line 13"),
    "bytes of all kinds": (b"\\data\\\n\xff\xfe\x00\x1b[31m", r"\\xff\\xfe\\x00\\x1b\[31m"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("block", [None, 3])
def test_wrong_files_are_refused_with_the_reason(name: str, block: int | None) -> None:
    case = WRONG[name]
    data, reason = case if isinstance(case, tuple) else (case, "ARPA")
    with pytest.raises(ValueError, match=f"(?s){reason}") as caught:
        built(data, block and max(block, len(data) // 1000))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 450


def test_every_shorter_file_is_refused() -> None:
    for length in range(len(SMALL) - len("\\\n")):
        with pytest.raises(ValueError):
            built(SMALL[:length])


def test_a_builder_serves_once() -> None:
    builder = NgramBuilder()
    with pytest.raises(ValueError):
        builder.finish()
    for use in (builder.finish, lambda: builder.feed(b"x")):
        with pytest.raises(ValueError, match="new one"):
            use()


def test_a_state_of_another_model_is_refused() -> None:
    model = built(SMALL)
    for state in (model.num_states, 2**64 - 1):
        with pytest.raises(ValueError, match="state"):
            model.score(state, "a")


def test_a_saved_model_is_mapped_and_pickled_as_its_path(tmp_path: Path) -> None:
    model = built(TINY.read_bytes())
    path = tmp_path / "tiny.w2vlm"
    model.save(path)
    assert os.listdir(tmp_path) == ["tiny.w2vlm"]
    mapped = NgramModel.map(str(path))
    assert mapped.path == str(path)
    assert mapped.is_intact()
    assert path.stat().st_size == mapped.nbytes == model.nbytes
    assert len(pickle.dumps(mapped)) < 200 + len(str(path))
    for other in (mapped, pickle.loads(pickle.dumps(mapped)), pickle.loads(pickle.dumps(model))):
        assert other.words() == model.words()
        assert other.score(other.begin_state, "the") == model.score(model.begin_state, "the")
    path.unlink()
    assert mapped.score(mapped.begin_state, "the") == model.score(model.begin_state, "the")


def test_saving_where_nothing_can_be_written(tmp_path: Path) -> None:
    model = built(SMALL)
    with pytest.raises(FileNotFoundError):
        model.save(tmp_path / "none" / "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        model.save(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]
    with pytest.raises(FileNotFoundError):
        NgramModel.map(tmp_path / "none")


def test_damaged_files_are_refused_or_safe(tmp_path: Path) -> None:
    good = tmp_path / "good"
    built(TINY.read_bytes()).save(good)
    data = good.read_bytes()
    bad = tmp_path / "bad"
    for length in range(0, len(data), 7):
        bad.write_bytes(data[:length])
        with pytest.raises(ValueError):
            NgramModel.map(bad)
    bad.write_bytes(data + b"\0" * 8)
    with pytest.raises(ValueError, match="bytes"):
        NgramModel.map(bad)
    for position in range(240):  # the header
        bad.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(ValueError):
            NgramModel.map(bad)
    rng = random.Random(0)
    for _ in range(300):  # the body: only the checksum tells, and nothing is read elsewhere
        harmed = bytearray(data)
        for _ in range(rng.choice([1, 10, 1000])):
            harmed[rng.randrange(240, len(data) - 300)] = rng.randrange(256)
        try:
            model = NgramModel(bytes(harmed))
        except ValueError:
            continue
        model.words()
        state = model.begin_state
        for word in ("the", "cat", "sat", "stranger", "</s>"):
            prob, state = model.score(state, word)
            assert prob == prob
        if harmed != data:
            assert not model.is_intact()


def test_scoring_text() -> None:
    model = built(TINY.read_bytes())
    oracle = kenlm.Model(str(TINY))
    lines = ["the cat sat", "a stranger  sat\ton the log", "", "   ", "dog"]
    total, words, sentences, unknown, num_unknown = model.score_text("\n".join(lines).encode())
    assert total == pytest.approx(sum(oracle.score(line) for line in lines if line.strip()), abs=1e-4)
    assert (words, sentences, num_unknown) == (10, 3, 1)
    assert unknown < 0
