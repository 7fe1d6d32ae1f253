"""How well confidences tell right words from wrong ones, on speakers the demo checkpoint never heard.

Connected utterances of the test split of the model card, decoded greedily and by a beam search with the
demo's language model. For each candidate the area under the ROC curve of "this word is right" (0.5: it says
nothing, 1: it orders all words), a word being right where the alignment with what was said pairs it with
itself. The candidates:

    mean_max        mean of the highest probability of each frame of the word (what is often done)
    geometric       geometric mean over tokens of the highest probability of each
    minimum         the least of these
    tsallis         1 - normalised Tsallis entropy (1/3), mean over the frames of tokens
    posterior       share of the search's n-best scores that has the word at its place (search only)
    forward         probability of the word in its frames, all ways to spell it added up
    per_token       the n-th root of that for n tokens: what transcripts hold

The word error rates of both are printed beside them.

    python benchmarks/confidence.py
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from w2v_ray import AutoModelForCTC, AutoProcessor, demo
from w2v_ray.metrics import word_error_rate
from w2v_ray.text import CTCLabels, Transcript, decode_greedy
from w2v_ray.text.lm_source import find_language_model, load_language_model
from w2v_ray.text.search import BeamSearch, SearchOptions

ROOT = Path(__file__).resolve().parents[1]
MIN_LOG = -50.0


@dataclass(frozen=True)
class Emission:
    """What the demo checkpoint makes of an utterance, as float16, and what was said."""

    split: str
    source: str
    words: tuple[str, ...]
    log_probs: np.ndarray


def demo_emissions(data: Path) -> list[Emission]:
    """Every utterance of the dev and test splits through the demo checkpoint, one at a time."""
    sys.path.insert(0, str(ROOT / "pipelines"))
    from speech_clips import evaluation_utterances, load_clips

    clips, _ = load_clips(data)
    model = AutoModelForCTC.from_pretrained(demo.CHECKPOINT, dtype="float32").eval()
    processor = AutoProcessor.from_pretrained(demo.CHECKPOINT)
    found = []
    for split, source in (("dev", "commands"), ("test", "commands"), ("test", "digits")):
        for utterance in evaluation_utterances(clips, split, source):
            inputs = processor(utterance.samples, sampling_rate=16_000, return_tensors="pt")
            with torch.inference_mode():
                log_probs = torch.log_softmax(model(inputs["input_values"]).logits[0], -1)
            found.append(Emission(split, source, utterance.words, log_probs.to(torch.float16).numpy()))
    return found


def demo_search(labels: CTCLabels) -> BeamSearch:
    """The search that the demo runs."""
    model = load_language_model(find_language_model(str(demo.LANGUAGE_MODEL)))
    return BeamSearch(labels, language_model=model, options=SearchOptions())


def are_right(said: tuple[str, ...], heard: list[str]) -> list[bool]:
    """Which of the words heard an alignment of fewest errors pairs with the same word."""
    errors = np.zeros((len(said) + 1, len(heard) + 1), int)
    errors[:, 0], errors[0] = range(len(said) + 1), range(len(heard) + 1)
    for i, word in enumerate(said):
        for j, other in enumerate(heard):
            options = (errors[i, j] + (word != other), errors[i, j + 1] + 1, errors[i + 1, j] + 1)
            errors[i + 1, j + 1] = min(options)
    right = [False] * len(heard)
    i, j = len(said), len(heard)
    while i and j:
        if errors[i, j] == errors[i - 1, j - 1] + (said[i - 1] != heard[j - 1]):
            i, j = i - 1, j - 1
            right[j] = said[i] == heard[j]
        elif errors[i, j] == errors[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1
    return right


def area_under_roc(scores: list[float], right: list[bool]) -> float:
    """The chance that a right word has a higher score than a wrong one; half where they tie."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    is_right = np.array(right)
    ones, zeros = is_right.sum(), (~is_right).sum()
    return float((ranks[is_right].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def candidates(
    log_probs: np.ndarray, transcript: Transcript, beams: list[Any] | None
) -> list[dict[str, float]]:
    """Every candidate for every word."""
    assert transcript.characters is not None
    best = log_probs.max(1)
    power = 1 / 3
    mass = (np.exp(log_probs * power)).sum(1)
    certainty = 1 - (mass - 1) / (log_probs.shape[1] ** (1 - power) - 1)
    characters = iter(transcript.characters)
    rows = []
    for word in transcript.words:
        own = [next(characters) for _ in word.word]
        peaks = np.array([max(c.confidence, 1e-20) for c in own])
        frames = [t for c in own for t in range(c.start_frame, c.end_frame)]
        row = {
            "mean_max": float(np.exp(best[word.start_frame : word.end_frame]).mean()),
            "geometric": float(np.exp(np.log(peaks).mean())),
            "minimum": float(peaks.min()),
            "tsallis": float(certainty[frames].mean()) if frames else 0.0,
            "forward": float(word.confidence ** len(own)),
            "per_token": word.confidence,
        }
        if beams is not None:
            scores = np.array([beam.lm_score for beam in beams])
            shares = np.exp(scores - scores.max())
            row["posterior"] = sum(
                share
                for share, beam in zip(shares / shares.sum(), beams, strict=True)
                if any(
                    text == word.word and start < word.end_frame and end > word.start_frame
                    for text, (start, end) in beam.words
                )
            )
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    args = parser.parse_args()
    tokenizer = AutoProcessor.from_pretrained(demo.CHECKPOINT).tokenizer
    emissions = demo_emissions(args.data)
    labels = CTCLabels(tokenizer, emissions[0].log_probs.shape[1])
    search = demo_search(labels)
    right: dict[str, list[bool]] = defaultdict(list)
    texts: dict[str, list[tuple[str, str]]] = defaultdict(list)
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for emission in emissions:
        log_probs = np.maximum(emission.log_probs.astype(np.float32), MIN_LOG)
        (found,) = search.decode([log_probs], characters=True)
        beams = search.hypotheses(log_probs, n_best=100)
        greedy = decode_greedy(log_probs, labels=labels, characters=True)
        for decoder, transcript, n_best in (("greedy", greedy, None), ("search", found, beams)):
            key = f"{emission.split} {decoder}"
            for name in (key, f"{key} {emission.source}"):
                texts[name].append((" ".join(emission.words), transcript.text))
            right[key] += are_right(emission.words, [word.word for word in transcript.words])
            for row in candidates(log_probs, transcript, n_best):
                for name, score in row.items():
                    scores[key][name].append(score)
    areas = {
        key: {name: round(area_under_roc(values, right[key]), 4) for name, values in sorted(own.items())}
        for key, own in scores.items()
    }
    for key in ("test greedy", "test search"):
        assert areas[key]["per_token"] > areas[key]["mean_max"], areas
    counts = {key: [sum(values), len(values)] for key, values in right.items()}
    rates = {name: round(word_error_rate(pairs), 4) for name, pairs in texts.items()}
    print(json.dumps({"benchmark": "confidence", "right_of_all": counts, "wer": rates, "auc": areas}))


if __name__ == "__main__":
    main()
