"""Hostile input for the native module: each case ends in a result or in a clear error, and never in a crash.

    python tests/native/fuzz_beam.py --minutes 10

Meant to be run under sanitizers: see the target `sanitize` of the Makefile. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.native.beam_cases import ALPHABETS, random_case
from w2v_ray.text import (
    Alphabet,
    BeamSearchDecoderCTC,
    LanguageModel,
    NgramModel,
    build_alphabet,
    open_language_model,
)

EXPECTED = (ValueError,)  # LanguageModelError and ConfigError are


def spoil_logits(rng: random.Random, logits: Any) -> Any:
    """NaN, infinities, huge values, other layouts and types, other numbers of dimensions."""
    kind = rng.randrange(10)
    if kind < 4 and logits.size:
        logits = logits.copy()
        value = [np.nan, np.inf, -np.inf, 3e38][kind]
        for _ in range(rng.choice([1, 5, logits.size])):
            logits[rng.randrange(logits.shape[0]), rng.randrange(logits.shape[1])] = value
        return logits
    return {
        4: lambda: logits[:0],
        5: lambda: logits[:1],
        6: lambda: np.asfortranarray(logits)[::-1],
        7: lambda: logits.astype(rng.choice([np.int32, ">f4", np.longdouble, bool, complex])),
        8: lambda: logits[..., None] if rng.random() < 0.5 else logits.ravel(),
    }.get(kind, lambda: logits)()


def spoil_model(rng: random.Random, path: Path) -> None:
    """A file that is cut, has wrong counts, other line ends, foreign bytes, or bytes changed at random."""
    content = bytearray(path.read_bytes())
    kind = rng.randrange(8)
    if kind == 0:
        del content[rng.randrange(len(content)) :]
    elif kind == 1:
        content = content.replace(b"ngram 1=", rng.choice([b"ngram 1=9", b"ngram 1=-", b"ngram 7=", b""]))
    elif kind == 2:
        content = content.replace(b"\n", b"\r\n")
    elif kind == 3:
        content = content.replace(b"a", b"\xff\xc3", rng.randint(1, 9))
    elif kind == 4:
        content = content.replace(b"<unk>", b"<nothing>").replace(b"<s>", b"<t>", rng.randint(0, 9))
    elif kind == 5:
        content = content.replace(b"-", rng.choice([b"", b"-1e39", b"nan", b"inf", b"- "]), rng.randint(1, 5))
    elif kind == 6:
        for _ in range(rng.choice([1, 3, 30])):
            content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)


def many_labels(rng: random.Random) -> tuple[Alphabet, Any]:
    size = rng.choice([0, 1, 2, 63, 64, 65, 129, 1000, 10_000])
    names = [chr(0x4E00 + i % 20000) * (1 + i // 20000) for i in range(size)]
    if size and rng.random() < 0.5:
        names[rng.randrange(size)] = rng.choice(["", " ", "\u2581", "\u2581x"])
    alphabet = build_alphabet(names) if rng.random() < 0.5 else Alphabet(names, rng.random() < 0.3)
    frames = rng.choice([0, 1, 5, 30])
    noise = np.random.default_rng(rng.getrandbits(32))
    return alphabet, noise.normal(0, 3, (frames, len(alphabet.labels))).astype(np.float32)


def decode_one(rng: random.Random, seed: int, folder: Path) -> str:
    case = random_case(seed, folder)
    alphabet, logits = build_alphabet(case.labels), case.logits
    if rng.random() < 0.2:
        alphabet, logits = many_labels(rng)
    elif rng.random() < 0.1:
        alphabet = Alphabet(rng.choice(list(ALPHABETS.values())), rng.random() < 0.5)
    model = None
    if case.arpa:
        if rng.random() < 0.6:
            spoil_model(rng, case.arpa)
        opened = open_language_model(str(case.arpa))
        assert isinstance(opened, NgramModel)
        if rng.random() < 0.4:
            compiled = folder / "model.w2vlm"
            opened.save(compiled)
            if rng.random() < 0.6:
                spoil_model(rng, compiled)
            opened = NgramModel.map(compiled)
        words = case.model.pop("unigrams")
        weights = dict(case.model, score_boundary=case.model.pop("lm_score_boundary"))
        weights.pop("lm_score_boundary", None)
        if rng.random() < 0.1:
            weights["alpha"] = rng.choice([float("nan"), float("inf"), -3.0, 1e300])
        model = (
            LanguageModel(opened, words, **weights)
            if words
            else LanguageModel.of_all_words(opened, **weights)
        )
    options = dict(case.options)
    if rng.random() < 0.1:
        name = rng.choice(["beam_width", "beam_prune_logp", "token_min_logp", "hotword_weight"])
        # Not huge: beams without bound need memory without bound.
        wrong = [0, -1, 1.5, None] if name == "beam_width" else [0, -1, float("nan"), float("inf"), 1.5]
        options[name] = rng.choice(wrong)
    if rng.random() < 0.1:
        options["lm_start_state"] = rng.choice([0, 1, 2**40, 2**63])
    decoder = BeamSearchDecoderCTC(alphabet, model)
    if rng.random() < 0.5:
        logits = spoil_logits(rng, logits)
    if rng.random() < 0.3:
        options.pop("lm_start_state", None)
        decoder.decode_hypotheses(
            [logits] * rng.randint(0, 4), num_threads=rng.randint(1, 3), n_best=9, **options
        )
    else:
        decoder.decode_beams(logits, **options)
    return "result"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    counts: Counter[str] = Counter()
    end = time.monotonic() + 60 * arguments.minutes
    seed = arguments.first
    while time.monotonic() < end:
        with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
            print(seed, end="\r", file=sys.stderr, flush=True)  # what a crash leaves behind
            try:
                counts[decode_one(random.Random(seed), seed, Path(folder))] += 1
            except EXPECTED as error:
                counts["error" if str(error) else "error without a message"] += 1
        seed += 1
    print(
        json.dumps(
            {
                "benchmark": "fuzz_beam",
                "minutes": arguments.minutes,
                "cases": seed - arguments.first,
                **counts,
            }
        )
    )


if __name__ == "__main__":
    main()
