"""Beam search with and without a language model: pyctcdecode first, w2v_ray second, in one process.

One thread, unless it says two. The data are the real logits of one LibriSpeech utterance (7.4 s): as they
are, and noisy, three copies end to end, each logits / 2 + normal noise of 1.0. The model is a 3-gram of about
800,000 n-grams counted here from LJSpeech's sentences and from a random walk over their word pairs.

    python benchmarks/decode.py --ctc-data FOLDER --sentences ljspeech_sentences.tsv.gz
    python benchmarks/decode.py ... --flashlight   # needs flashlight-text, no part of the environment

"kenlm" is the same model held by the package kenlm, as its binary files are, and asked through Python.

Times are medians over utterances, each decoded once, and of ours also of the best of five. Prints one JSON
line.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import logging
import math
import os
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FRAME_S = 0.02


def write_model(path: Path, sentences: Path, wanted: int = 800_000) -> int:
    """A 3-gram with absolute discounting; returns how many n-grams it has."""
    text = gzip.decompress(sentences.read_bytes()).decode()
    kept = [
        "".join(c if c.isalpha() or c == "'" else " " for c in line.split("\t")[-1].lower()).split()
        for line in text.splitlines()
    ]
    kept = [["<s>", *words, "</s>"] for words in kept if words and all(w.isascii() for w in words)]
    follow: dict[str, list[str]] = {}
    for words in kept:
        for left, right in itertools.pairwise(words):
            follow.setdefault(left, []).append(right)
    counts: list[Counter[tuple[str, ...]]] = [Counter(), Counter(), Counter()]
    rng = random.Random(0)

    def add(words: list[str]) -> None:
        for n, counter in enumerate(counts, start=1):
            counter.update(zip(*(words[i:] for i in range(n)), strict=False))

    for words in kept:
        add(words)
    while sum(map(len, counts)) < wanted:
        walk = ["<s>"]
        while walk[-1] != "</s>" and len(walk) < 40:
            walk.append(rng.choice(follow[walk[-1]]))
        add(walk if walk[-1] == "</s>" else [*walk, "</s>"])
    contexts = [Counter(), Counter(), Counter()]  # type: list[Counter[tuple[str, ...]]]
    kinds = [Counter(), Counter(), Counter()]  # type: list[Counter[tuple[str, ...]]]
    for n, counter in enumerate(counts):
        for gram, number in counter.items():
            contexts[n][gram[:-1]] += number
            kinds[n][gram[:-1]] += 1
    with path.open("w") as file:
        sizes = [len(counts[0]) + 1, len(counts[1]), len(counts[2])]
        file.write("\\data\\\n" + "".join(f"ngram {n}={size}\n" for n, size in enumerate(sizes, start=1)))
        for n, counter in enumerate(counts):
            file.write(f"\n\\{n + 1}-grams:\n")
            if n == 0:
                file.write("-6\t<unk>\t0\n")
            for gram, number in counter.items():
                weight = math.log10((number - 0.5) / contexts[n][gram[:-1]])
                file.write(f"{weight:.6f}\t{' '.join(gram)}")
                if n < 2:
                    seen = contexts[n + 1][gram]
                    backoff = math.log10(0.5 * kinds[n + 1][gram] / seen) if seen else 0.0
                    file.write(f"\t{backoff:.6f}")
                file.write("\n")
        file.write("\n\\end\\\n")
    return sum(sizes)


def seconds(call: Callable[[Any], Any], emissions: list[Any], repeats: int) -> float:
    """The median over utterances of the best of ``repeats``."""
    found = []
    for emission in emissions:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            call(emission)
            times.append(time.perf_counter() - start)
        found.append(min(times))
    return statistics.median(found)


def compare(theirs: Any, ours: Any, emissions: list[Any], **options: Any) -> dict[str, float]:
    """Both on the same utterances; theirs first."""
    texts: list[list[str]] = [[], []]
    once = []
    for decoder, into in ((theirs, texts[0]), (ours, texts[1])):
        once.append(seconds(lambda x: into.append(decoder.decode(x, **options)), emissions, 1))  # noqa: B023
    if texts[0] != texts[1]:
        raise AssertionError("the decoders disagree")
    second = seconds(lambda x: ours.decode(x, **options), emissions, 5)
    audio = statistics.median(len(emission) for emission in emissions) * FRAME_S
    return {
        "pyctcdecode_ms": round(once[0] * 1e3, 2),
        "w2v_ray_ms": round(once[1] * 1e3, 3),
        "w2v_ray_best_ms": round(second * 1e3, 3),
        "ratio": round(once[0] / once[1], 1),
        "times_real_time": round(audio / once[1]),
    }


def measure_threads(ours: Any, emissions: list[Any]) -> float:
    """How much faster two threads are than one."""
    times = []
    for threads in (1, 2):
        runs = []
        for _ in range(5):
            start = time.perf_counter()
            ours.decode_batch(None, emissions * 4, num_threads=threads)
            runs.append(time.perf_counter() - start)
        times.append(min(runs))
    return round(times[0] / times[1], 2)


def measure_flashlight(labels: list[str], arpa: Path, emissions: list[Any]) -> dict[str, Any]:
    """flashlight-text's lexicon-free and lexicon decoders, beam 100, with the same pruning."""
    from flashlight.lib.text.decoder import (
        CriterionType,
        KenLM,
        LexiconDecoder,
        LexiconDecoderOptions,
        LexiconFreeDecoder,
        LexiconFreeDecoderOptions,
        SmearingMode,
        Trie,
        ZeroLM,
    )
    from flashlight.lib.text.dictionary import Dictionary

    space, blank = labels.index(" "), len(labels)
    logp = [x - np.log(np.exp(x).sum(1, keepdims=True)) for x in emissions]
    found: dict[str, Any] = {}
    free = LexiconFreeDecoder(
        LexiconFreeDecoderOptions(100, 100, 10.0, 0.0, 0.0, False, CriterionType.CTC),
        ZeroLM(),
        space,
        blank,
        [],
    )
    data = [np.ascontiguousarray(x, dtype=np.float32) for x in logp]
    found["no_model_ms"] = round(seconds(lambda x: free.decode(x.ctypes.data, *x.shape), data, 1) * 1e3, 2)
    with arpa.open() as file:
        words = sorted({line.split("\t")[1] for line in file if line.count("\t") == 2 and " " not in line})
    dictionary = Dictionary()
    for word in words:
        dictionary.add_entry(word)
    dictionary.add_entry("<unk>") if "<unk>" not in words else None
    model = KenLM(str(arpa), dictionary)
    trie = Trie(len(labels) + 1, space)
    start = model.start(False)
    for word in words:
        if set(word) <= set(labels):
            index = dictionary.get_index(word)
            trie.insert([*(labels.index(c) for c in word), space], index, model.score(start, index)[1])
    trie.smear(SmearingMode.MAX)
    options = LexiconDecoderOptions(100, 100, 10.0, 0.5, 1.5, -math.inf, 0.0, False, CriterionType.CTC)
    lexicon = LexiconDecoder(options, trie, model, space, blank, dictionary.get_index("<unk>"), [], False)
    found["model_and_lexicon_ms"] = round(
        seconds(lambda x: lexicon.decode(x.ctypes.data, *x.shape), data, 1) * 1e3, 2
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = Path(os.environ.get("W2V_RAY_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser.add_argument("--ctc-data", type=Path, default=shared / "misc" / "ctc", help="folder of the logits")
    parser.add_argument("--sentences", type=Path, default=shared / "text" / "ljspeech_sentences.tsv.gz")
    parser.add_argument("--model", type=Path, help="keep the language model here, or find it here")
    parser.add_argument("--flashlight", action="store_true", help="measure flashlight-text as well")
    parser.add_argument("--utterances", type=int, default=5)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    import pyctcdecode

    from w2v_ray.text import Alphabet, BeamSearchDecoderCTC, KenlmModel, LanguageModel, build_ctcdecoder

    clean = np.array(json.loads((arguments.ctc_data / "libri_logits.json").read_text()), dtype=np.float32)
    labels = json.loads((arguments.ctc_data / "libri_labels.json").read_text())
    noise = np.random.default_rng(0)
    noisy = [
        np.concatenate([clean / 2 + noise.normal(0, 1.0, clean.shape) for _ in range(3)]).astype(np.float32)
        for _ in range(arguments.utterances)
    ]
    found: dict[str, Any] = {"benchmark": "decode"}
    with tempfile.TemporaryDirectory() as folder:
        arpa = arguments.model or Path(folder) / "model.arpa"
        if not arpa.exists():
            write_model(arpa, arguments.sentences)
        with arpa.open() as file:
            found["ngrams"] = sum(int(line.split("=")[1]) for line in itertools.islice(file, 1, 4))
        pairs = {
            "no_model": (pyctcdecode.build_ctcdecoder(labels), build_ctcdecoder(labels)),
            "3gram": (
                pyctcdecode.build_ctcdecoder(labels, str(arpa)),
                build_ctcdecoder(labels, str(arpa)),
            ),
        }
        for name, (theirs, ours) in pairs.items():
            found[f"noisy_{name}"] = compare(theirs, ours, noisy)
            found[f"clean_{name}"] = compare(theirs, ours, [clean] * arguments.utterances)
        words = pairs["3gram"][1].language_model.unigrams.words()
        asked = BeamSearchDecoderCTC(Alphabet.build_alphabet(labels), LanguageModel(KenlmModel(arpa), words))
        found["noisy_kenlm"] = compare(pairs["3gram"][0], asked, noisy)
        found["two_threads"] = {name: measure_threads(ours, noisy) for name, (_, ours) in pairs.items()}
        if arguments.flashlight:
            found["flashlight"] = measure_flashlight(labels, arpa, noisy)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
