"""An n-gram model of some 800,000 n-grams: size, time to open, memory of each process, queries per second.

The text is drawn at random, with words as frequent as words are. Each way of opening the model is a process
of its own, which scores a text of new sentences, so that all of the model has been touched, and then says
what is private to it (smaps_rollup), less what the same process had before; meanwhile another process has the
compiled model open, as the first decoder of a machine has. Times are of the CPU, so that other work on the
machine matters less. kenlm reads the same ARPA file, and a binary file as well where one is named.

    python benchmarks/language_model.py
    python benchmarks/language_model.py --arpa model.arpa --kenlm-binary model.bin
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WAYS = ("mapped", "arpa", "kenlm_arpa", "kenlm_binary")


def random_text(num_words: int, seed: int) -> bytes:
    """Sentences of 12 words; each word follows from the one before in three of four cases."""
    rng = np.random.default_rng(seed)
    fresh = np.minimum(rng.zipf(1.25, num_words), 40_000)
    steps = rng.zipf(1.7, num_words)
    follows = rng.random(num_words) < 0.75
    words = fresh.copy()
    for i in range(1, num_words):
        if follows[i]:
            words[i] = (words[i - 1] * 31 + steps[i]) % 40_000
    lines = [" ".join(f"w{word}" for word in words[i : i + 12]) for i in range(0, num_words, 12)]
    return ("\n".join(lines) + "\n").encode()


def private_kib() -> int:
    """What this process shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def measure(way: str, model_path: str, text_path: str) -> None:
    """Opens the model one way, scores the text five times, and prints one JSON line."""
    text = Path(text_path).read_bytes()
    lines = text.decode().splitlines()
    num_queries = len(text.split()) + len(lines)
    if way.startswith("kenlm"):
        import kenlm

        before = private_kib()  # without the package's own code
        start = time.process_time()
        model = kenlm.Model(model_path)
        opened = time.process_time() - start

        def score() -> float:
            return sum(map(model.score, lines))
    else:
        from w2v_ray.text.language_model import open_language_model

        before = private_kib()
        start = time.process_time()
        ours = open_language_model(model_path)
        opened = time.process_time() - start

        def score() -> float:
            return float(ours.score_text(text)[0])

    seconds = []
    for _ in range(5):
        start = time.process_time()
        total = score()
        seconds.append(time.process_time() - start)
    found = {
        "open_ms": round(opened * 1000, 2),
        "private_mb": round((private_kib() - before) / 1000, 2),
        "queries_per_s": round(num_queries / statistics.median(seconds)),
        "log10_prob": round(total, 2),
    }
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arpa", help="measure this model (default: one of a random text)")
    parser.add_argument("--text", help="score this text (default: random)")
    parser.add_argument("--kenlm-binary", help="the same model as KenLM's build_binary writes it")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(*args.measure)
        return

    from w2v_ray.text.kneser_ney import estimate, write_arpa
    from w2v_ray.text.language_model import NgramModel, open_language_model
    from w2v_ray.text.ngram_counts import count_ngrams

    with tempfile.TemporaryDirectory() as folder:
        arpa = args.arpa or f"{folder}/model.arpa"
        text = args.text or f"{folder}/text.txt"
        if not args.text:
            Path(text).write_bytes(random_text(600_000, seed=1))
        if not args.arpa:
            counts = count_ngrams([("random", random_text(800_000, seed=0))], 3)
            write_arpa(estimate(counts), arpa)
        start = time.process_time()
        model = open_language_model(arpa)
        assert isinstance(model, NgramModel)
        read_s = time.process_time() - start
        compiled = f"{folder}/model.w2vlm"
        model.save(compiled)
        num_ngrams = sum(model.num_ngrams)
        paths = {"mapped": compiled, "arpa": arpa, "kenlm_arpa": arpa, "kenlm_binary": args.kenlm_binary}
        found: dict[str, object] = {
            "num_ngrams": model.num_ngrams,
            "compiled_mb": round(model.nbytes / 1e6, 2),
            "bytes_per_ngram": round(model.nbytes / num_ngrams, 1),
            "read_arpa_s": round(read_s, 2),
        }
        del model
        first = open_language_model(compiled)
        assert isinstance(first, NgramModel)
        first.score_text(Path(text).read_bytes())
        assert first.is_intact()
        for way in WAYS:
            if paths[way]:
                command = [sys.executable, __file__, "--measure", way, paths[way], text]
                process = subprocess.run(command, check=True, capture_output=True, text=True)
                found[way] = json.loads(process.stdout)
        mapped = found["mapped"]
        assert isinstance(mapped, dict)
        found["mapped_private_share"] = round(mapped["private_mb"] * 1e6 / Path(compiled).stat().st_size, 4)
        print(json.dumps(found))


if __name__ == "__main__":
    main()
