"""Writes the language model of the demo: ``python pipelines/make_demo_lm.py``.

It knows the 35 words that the demo checkpoint was trained on, each as likely as the recipe draws it, in any
order: a prior of the vocabulary and nothing else. It is made of the training speakers' labels alone, so no
test sentence is in it. As a model of bigrams it says besides that an utterance has at least one word, and
about six; KenLM reads no model of unigrams.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import Counter
from pathlib import Path

from speech_clips import split_of

END = 1 / 7  # the chance that an utterance ends after a word
EMPTY = 1e-4  # the chance that it ends before one


def training_words(data: Path) -> Counter[tuple[str, str]]:
    """How many training clips there are of each word, by collection."""
    counts: Counter[tuple[str, str]] = Counter()
    for source, column in (("commands", "word"), ("digits", "label")):
        with (data / source / "manifest.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                if row[column] and split_of(source, row["speaker"]) == "train":
                    counts[source, row[column].upper()] += 1
    return counts


def arpa(prior: dict[str, float]) -> str:
    """A bigram model in ARPA format in which words follow each other as the prior says."""
    unigrams = [f"-99\t<s>\t{math.log10(EMPTY / END):.6f}", f"{math.log10(END):.6f}\t</s>", "-7\t<unk>\t0"]
    bigrams = []
    for word, share in sorted(prior.items()):
        unigrams.append(f"{math.log10(share * (1 - END)):.6f}\t{word}\t0")
        bigrams.append(f"{math.log10(share * (1 - EMPTY)):.6f}\t<s> {word}")
    counts = f"ngram 1={len(unigrams)}\nngram 2={len(bigrams)}"
    lines = [
        "",
        "\\data\\",
        counts,
        "",
        "\\1-grams:",
        *unigrams,
        "",
        "\\2-grams:",
        *bigrams,
        "",
        "\\end\\",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=root.parent / "shared" / "data")
    parser.add_argument("--output", type=Path, default=root / "w2v_ray" / "demo" / "lm.arpa")
    args = parser.parse_args()
    counts = training_words(args.data)
    weights = {word: 0.0 for _, word in counts}
    for (_, word), count in counts.items():
        weights[word] += count
    weights = {word: math.sqrt(weight) for word, weight in weights.items()}  # as the recipe draws words
    total = sum(weights.values())
    args.output.write_text(arpa({word: weight / total for word, weight in weights.items()}), encoding="utf-8")
    print(f"{len(weights)} words, {args.output.stat().st_size} bytes in {args.output}")


if __name__ == "__main__":
    main()
