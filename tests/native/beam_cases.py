"""Random alphabets, language models, logits and options for the beam search, and how to compare beams."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALPHABETS: dict[str, list[str]] = {
    "characters": ["<pad>", "<unk>", "|", "a", "b", "c", "'"],
    "unicode": ["", " ", "\u00e9", "\u00df", "\u6f22", "\U0001f600", "e", "\u0301", "a"],
    "digraphs": [" ", "a", "b", "ab", "ba", "c", "abc", "_"],
    "spaces": [" ", "a", "b", "a b", "b a", "c\u00a0", "\t", ""],
    "two blanks": ["<pad>", "[PAD]", "|", "a", "b", "c"],
    "pieces": ["<unk>", "\u2581a", "\u2581b", "\u2581ab", "a", "b", "ab", "c", "\u2581c"],
    "pieces with boundary": ["<pad>", "<unk>", "\u2581", "\u2581a", "a", "b", "\u2581b", "b\u2581", "c"],
    "inner pieces": ["[PAD]", "[UNK]", "a", "b", "ab", "##a", "##b", "##c", "c"],
    "many": ["", " ", *map(chr, range(0x4E00, 0x4E00 + 90))],
}


@dataclass
class Case:
    """One utterance with everything that decodes it."""

    labels: list[str]
    logits: NDArray[Any]
    options: dict[str, Any]
    arpa: Path | None = None
    model: dict[str, Any] = field(default_factory=dict)


def write_arpa(path: Path, rng: random.Random, *, words: Sequence[str], order: int) -> None:
    """A model of the n-grams of random sentences, with random weights."""
    grams: list[dict[tuple[str, ...], None]] = [{} for _ in range(order)]
    for word in ("<s>", "</s>", *words):
        grams[0][word,] = None
    for _ in range(rng.randint(1, 30)):
        sentence = ["<s>", *rng.choices(words, k=rng.randint(1, 6)), "</s>"]
        for n in range(2, order + 1):
            for start in range(len(sentence) - n + 1):
                grams[n - 1][tuple(sentence[start : start + n])] = None
    lines = ["\\data\\"]
    if rng.random() < 0.9:
        grams[0] = {("<unk>",): None, **grams[0]}
    lines += [f"ngram {n}={len(grams[n - 1])}" for n in range(1, order + 1)]
    for n in range(1, order + 1):
        lines += ["", f"\\{n}-grams:"]
        for gram in grams[n - 1]:
            weight = "-99" if gram == ("<s>",) else f"{-rng.random() * 4:.4f}"
            backoff = rng.choice(["0", f"{-rng.random() * 2:.4f}", f"{rng.random() * 0.3:.4f}"])
            lines.append(f"{weight}\t{' '.join(gram)}" + (f"\t{backoff}" if n < order else ""))
    text = "\n".join([*lines, "", "\\end\\", ""])
    path.write_text(text, encoding="utf-8")
    if order == 1:  # which kenlm cannot read: for it, one bigram that nothing spells
        text = text.replace("\n\n\\1-grams", "\nngram 2=1\n\n\\1-grams").replace(
            "\n\n\\end", "\n\n\\2-grams:\n-1\t</s> </s>\n\n\\end"
        )
        kenlm_path(path).write_text(text, encoding="utf-8")


def kenlm_path(path: Path) -> Path:
    """The model as kenlm can read it: of at least order 2."""
    other = path.with_suffix(".kenlm.arpa")
    return other if other.exists() or path.read_text(encoding="utf-8").count("-grams:") == 1 else path


def random_words(rng: random.Random, letters: Sequence[str]) -> list[str]:
    """Words that the letters can spell, and some that they cannot."""
    words = {
        "".join(rng.choices(letters, k=rng.choice([1, 1, 2, 2, 3, 4, 9]))) for _ in range(rng.randint(1, 25))
    }
    words |= {"zz", "a"} if rng.random() < 0.3 else set()
    return sorted(word for text in words for word in text.split())


def random_logits(rng: random.Random, num_labels: int) -> NDArray[Any]:
    """Flat, peaked, tied or with impossible labels; sometimes probabilities; of any float type."""
    noise = np.random.default_rng(rng.getrandbits(32))
    frames = rng.choice([0, 1, 2, 5, 10, 20, 30])
    logits = noise.normal(0, rng.choice([0.5, 1.0, 2.0, 4.0]), (frames, num_labels))
    peaks = noise.integers(0, num_labels, frames)
    if rng.random() < 0.5:
        peaks[noise.random(frames) < 0.5] = 0
    logits[np.arange(frames), peaks] += rng.choice([0.0, 2.0, 5.0, 12.0])
    kind = rng.random()
    if kind < 0.1:
        logits = np.round(logits)
    elif kind < 0.2:
        logits[noise.random(logits.shape) < 0.2] = -np.inf
        logits[:, 0] = 0.0
    elif kind < 0.35:
        logits = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return logits.astype(rng.choice([np.float32, np.float32, np.float64, np.float16]))


def random_case(seed: int, folder: Path) -> Case:
    """The case of a seed; its language model is written into the folder."""
    rng = random.Random(seed)
    labels = ALPHABETS[rng.choice(list(ALPHABETS))]
    letters = [c for label in labels for c in label.strip("#\u2581 ") if not label.startswith(("<", "["))]
    letters = [c for c in letters if c.strip()] or ["a"]
    words = random_words(rng, letters)
    options: dict[str, Any] = {
        "beam_width": rng.choice([1, 2, 3, 10, 100, 500]),
        "beam_prune_logp": rng.choice([-10.0, -10.0, -2.0, -30.0]),
        "token_min_logp": rng.choice([-5.0, -5.0, -1.0, -9.3]),
        "prune_history": rng.random() < 0.5,
    }
    if rng.random() < 0.4:
        phrases = [
            " ".join(rng.choices([*words, "qq"], k=rng.choice([1, 1, 2]))) for _ in range(rng.randint(1, 4))
        ]
        options["hotwords"] = phrases
        options["hotword_weight"] = rng.choice([10.0, 1.5, -3.0, 5])
    blank = 0 if any(label in ("", "_", "<pad>", "[PAD]", "[pad]") for label in labels) else 1
    case = Case(labels, random_logits(rng, len(labels) + blank), options)
    if rng.random() < 0.7:
        order = rng.randint(1, 5)
        case.arpa = folder / f"{seed}.arpa"
        write_arpa(case.arpa, rng, words=words, order=order)
        unigrams = rng.choice([words[: len(words) // 2 + 1], [*words, "unheard"], ["unheard"]])
        case.model = {
            "unigrams": unigrams if order == 1 or rng.random() < 0.4 else None,
            "alpha": rng.choice([0.5, 0.5, 0.0, 1.3, 2.0]),
            "beta": rng.choice([1.5, 0.0, -1.0, 5.0]),
            "unk_score_offset": rng.choice([-10.0, -10.0, -1.0, 0.0]),
            "lm_score_boundary": rng.random() < 0.7,
        }
    return case


@dataclass
class Agreement:
    """How far two lists of beams agree."""

    top: bool
    all: bool
    is_tie: bool
    """Where they do not, whether equal scores explain it."""


def compare(theirs: list[Any], ours: list[Any], *, tolerance: float = 1e-4) -> Agreement:
    """Text and word frames of beams, in order, and scores within the tolerance."""

    def same(a: Any, b: Any) -> bool:
        near = all(
            abs(float(x) - y) <= tolerance * max(1, abs(y) / 100) or x == y
            for x, y in zip(a[3:5], b[3:5], strict=True)
        )
        return bool(a[0] == b[0] and a[2] == b[2] and near)

    every = len(theirs) == len(ours) and all(map(same, theirs, ours))
    scores = [float(beam[4]) for beam in theirs[:2]]
    tie = len(scores) > 1 and abs(scores[0] - scores[1]) <= 1e-9 * max(1.0, abs(scores[0]))
    return Agreement(same(theirs[0], ours[0]), every, tie)
