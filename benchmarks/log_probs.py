"""What it costs to keep K log-probabilities of each frame, in bytes and in exactness.

The demo checkpoint's emissions of its dev and test utterances are kept with K tokens a frame, brought back,
and decoded greedily and by a beam search with the demo's language model. Reported for each K: megabytes for
an hour of audio, compressed as in a file of ``log_probs/``, and the share of utterances whose text is not
that of the whole emission.

    python benchmarks/log_probs.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from confidence import ROOT, demo_emissions, demo_search

from w2v_ray import AutoProcessor, demo
from w2v_ray.text import CTCLabels, decode_greedy
from w2v_ray.text.top_tokens import keep_top_tokens, restore_emission

FRAMES_PER_S = 50


def megabytes_per_hour(columns: dict[str, list[bytes]], frames: int) -> float:
    sink = pa.BufferOutputStream()
    table = pa.table({name: pa.array(values, pa.large_binary()) for name, values in columns.items()})
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return float(sink.getvalue().size / 1e6 / (frames / FRAMES_PER_S / 3600))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    args = parser.parse_args()
    tokenizer = AutoProcessor.from_pretrained(demo.CHECKPOINT).tokenizer
    emissions = [emission.log_probs for emission in demo_emissions(args.data)]
    frames, size = sum(map(len, emissions)), emissions[0].shape[1]
    labels = CTCLabels(tokenizer, size)
    search = demo_search(labels)

    def texts(kept: list[np.ndarray]) -> dict[str, list[str]]:
        full = [emission.astype(np.float32) for emission in kept]
        return {
            "greedy": [decode_greedy(emission, labels=labels).text for emission in full],
            "search": [found.text for found in search.decode(full)],
        }

    whole = texts(emissions)
    dense = megabytes_per_hour({"log_probs": [emission.tobytes() for emission in emissions]}, frames)
    results = []
    for count in (2, 4, 8, 16, size):
        pairs = [keep_top_tokens(emission, count=count, blank=labels.blank) for emission in emissions]
        back = [
            restore_emission(*pair, num_frames=len(emission), num_columns=size, blank=labels.blank)
            for pair, emission in zip(pairs, emissions, strict=True)
        ]
        again = texts(back)
        ids, log_probs = (list(column) for column in zip(*pairs, strict=True))
        results.append(
            {
                "k": count,
                "mb_per_hour": round(megabytes_per_hour({"ids": ids, "log_probs": log_probs}, frames), 2),
                "changed": {
                    decoder: round(
                        float(np.mean([a != b for a, b in zip(own, whole[decoder], strict=True)])), 4
                    )
                    for decoder, own in again.items()
                },
            }
        )
    result = {
        "benchmark": "log_probs",
        "utterances": len(emissions),
        "audio_s": round(frames / FRAMES_PER_S),
        "whole_mb_per_hour": round(dense, 2),
        "kept": results,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
