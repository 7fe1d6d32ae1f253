"""How often the beam search agrees with pyctcdecode, on random cases and on noisy real logits.

    python tests/native/equality_beam.py --fuzzed 2000 --noisy 500 --ctc-data FOLDER

Prints one JSON line. What is counted: the best text with its word frames and scores (within 1e-4), whole
lists of beams, and how many of the differences are beams of equal scores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import random
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyctcdecode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.native.beam_cases import compare, kenlm_path, random_case, write_arpa
from w2v_ray.text import build_ctcdecoder

KIND = {"cases": 0, "top": 0, "lists": 0, "top_ties": 0}


def count(
    into: dict[str, int], name: str, theirs: Any, ours: Any, logits: Any, options: dict[str, Any]
) -> None:
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy, about the mean of no frames
        expected = theirs.decode_beams(logits, **options)
        got = ours.decode_beams(logits, **options)
        found = compare(expected, got)
        into["cases"] += 1
        into["top"] += found.top
        into["lists"] += found.all
        if found.top:
            return
        is_tie = found.is_tie
        # Whether scores are equal, or equal to a limit, but for rounding, in the first frame that matters.
        for frames in range(1, len(logits) + 1):
            got_here = ours.decode_beams(logits[:frames], **options)
            if not compare(theirs.decode_beams(logits[:frames], **options), got_here).top:
                break
        noise = np.random.default_rng(0)
        for _ in range(16):
            near = logits[:frames].astype(np.float64) + noise.normal(0, 1e-6, logits[:frames].shape)
            is_tie |= compare(theirs.decode_beams(near, **options), got_here, tolerance=1e-3).top
    into["top_ties"] += is_tie
    if not is_tie:
        print(name, expected[0], got[0], sep="\n  ", file=sys.stderr)


def fuzzed(first: int, number: int) -> dict[str, int]:
    found = dict(KIND)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, first + number):
            case = random_case(seed, Path(folder))
            path = str(case.arpa) if case.arpa else None
            their_path = str(kenlm_path(case.arpa)) if case.arpa else None
            theirs = pyctcdecode.build_ctcdecoder(case.labels, their_path, **case.model)
            ours = build_ctcdecoder(case.labels, path, **case.model)
            count(found, f"seed {seed}", theirs, ours, case.logits, case.options)
            theirs.cleanup()
            if case.arpa:
                case.arpa.unlink()
    return found


def noisy(folder: Path, number: int) -> dict[str, int]:
    """Characters and pieces, noise of five sizes, three beams, history pruning, hotwords, a model or none."""
    logits = np.array(json.loads((folder / "libri_logits.json").read_text()), dtype=np.float32)
    labels = json.loads((folder / "libri_labels.json").read_text())
    pieces = [f"\u2581{label}" if label in "aiwuyhs" else label for label in labels]
    with tempfile.TemporaryDirectory() as made:
        words = [
            "i",
            "have",
            "a",
            "good",
            "deal",
            "of",
            "will",
            "you",
            "remember",
            "and",
            "what",
            "set",
            "my",
            "mind",
            "upon",
            "no",
            "doubt",
            "shall",
            "some",
            "day",
            "achieve",
        ]
        arpa = str(Path(made) / "libri.arpa")
        write_arpa(Path(arpa), random.Random(0), words=words, order=3)
        kinds = [(labels, None), (labels, arpa), (pieces, None), (pieces, arpa)]
        kinds = [
            (["<unk>" if label == " " and names is pieces else label for label in names], model)
            for names, model in kinds
        ]
        decoders = [
            (pyctcdecode.build_ctcdecoder(names, model), build_ctcdecoder(names, model))
            for names, model in kinds
        ]
        grid = itertools.product(
            (0.0, 0.3, 0.7, 1.0, 2.0), (1, 100, 500), (False, True), (None, ["achieve", "good deal"])
        )
        noise = np.random.default_rng(1)
        found = dict(KIND)
        for size, width, prune, hotwords in itertools.islice(
            itertools.cycle(list(grid)), number // len(decoders) + 1
        ):
            emission = (logits / 2 + noise.normal(0, size, logits.shape)).astype(np.float32)
            options: dict[str, Any] = {"beam_width": width, "prune_history": prune, "hotwords": hotwords}
            for kind, (theirs, ours) in enumerate(decoders):
                name = f"decoder {kind}, noise {size}, {options}"
                count(found, name, theirs, ours, emission, options)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fuzzed", type=int, default=2000, help="random cases")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--noisy", type=int, default=500, help="variants of the real logits")
    shared = Path(os.environ.get("W2V_RAY_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    parser.add_argument(
        "--ctc-data",
        type=Path,
        default=shared / "misc" / "ctc",
        help="folder of libri_logits.json and libri_labels.json; without it there are no noisy variants",
    )
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    found: dict[str, Any] = {
        "benchmark": "equality_beam",
        "fuzzed": fuzzed(arguments.first, arguments.fuzzed),
    }
    if arguments.ctc_data.is_dir():
        found["noisy"] = noisy(arguments.ctc_data, arguments.noisy)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
