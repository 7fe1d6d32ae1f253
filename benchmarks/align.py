"""How fast texts are aligned beside torchaudio and torch, how exactly, and how well wrong texts are told.

Speed: ``forced_align_batch`` and torchaudio's ``forced_align`` on one item after another, in turn in one
process on one thread; torch's ``ctc_loss`` is what the loss would cost besides. The items are random
emissions of 32 columns in three lengths, and those of the utterances below.

Exactness and wrong texts: connected utterances of spoken commands by speakers that the demo checkpoint never
heard, whose words lie at known places. The area under the ROC curve is the chance that a wrong text has a
higher loss per label than a right one; wrong is the text of another utterance, or the right one with one word
replaced, or with one word left out.

    python benchmarks/align.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchaudio.functional

from w2v_ray import AutoProcessor, Wav2Vec2ForCTC
from w2v_ray.demo import CHECKPOINT
from w2v_ray.text import CTCLabels, Spelling, TextAlignment, align_texts, forced_align_batch, frame_times

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipelines"))
from speech_clips import RATE_HZ, Utterance, evaluation_utterances, load_clips

Items = list[tuple[np.ndarray, np.ndarray]]


def emissions_of(utterances: list[Utterance]) -> list[np.ndarray]:
    """The demo checkpoint's log-probabilities of each."""
    model = Wav2Vec2ForCTC.from_pretrained(CHECKPOINT)
    extract = AutoProcessor.from_pretrained(CHECKPOINT).feature_extractor
    emissions = []
    for utterance in utterances:
        features = extract(utterance.samples, sampling_rate=RATE_HZ, return_tensors="pt")
        with torch.inference_mode():
            logits = model(features["input_values"]).logits
        emissions.append(logits[0].float().log_softmax(-1).numpy())
    return emissions


def random_items(number: int, frames: int, length: int) -> Items:
    rng = np.random.default_rng(frames)
    logits = torch.from_numpy(3 * rng.standard_normal((number, frames, 32)).astype(np.float32))
    return [(e, rng.integers(1, 32, length).astype(np.int32)) for e in logits.log_softmax(-1).numpy()]


def speed(items: Items, repeats: int) -> dict[str, float]:
    """Medians of milliseconds an item, and of the ratios of each round."""
    emissions, targets = [e for e, _ in items], [t for _, t in items]
    tensors = [(torch.from_numpy(e)[None], torch.from_numpy(t)[None]) for e, t in items]

    def theirs() -> None:
        for emission, target in tensors:
            torchaudio.functional.forced_align(emission, target, blank=0)

    def loss() -> None:
        for emission, target in tensors:
            lengths = torch.tensor([emission.shape[1]]), torch.tensor([target.shape[1]])
            torch.nn.functional.ctc_loss(emission.transpose(0, 1), target, *lengths, reduction="sum")

    rounds: dict[str, Callable[[], object]] = {
        "torchaudio": theirs,
        "path": lambda: forced_align_batch(emissions, targets, with_loss=False),
        "path_and_loss": lambda: forced_align_batch(emissions, targets),
        "ctc_loss": loss,
    }
    seconds: dict[str, list[float]] = {name: [] for name in rounds}
    for _ in range(repeats):
        for name, call in rounds.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    zipped = list(zip(*seconds.values(), strict=True))
    result = {f"{name}_ms": 1e3 * statistics.median(values) / len(items) for name, values in seconds.items()}
    result["x_torchaudio"] = statistics.median(theirs / path for theirs, path, _, _ in zipped)
    result["with_loss_x_both"] = statistics.median((a + loss) / both for a, _, both, loss in zipped)
    return {name: round(value, 3) for name, value in result.items()}


def area(right: list[float], wrong: list[float]) -> float:
    """The chance that a value of ``wrong`` is above one of ``right``; half of ties."""
    a, b = np.array(right)[:, None], np.array(wrong)[None]
    return round(float(((b > a) + 0.5 * (b == a)).mean()), 4)


def align(emissions: list[np.ndarray], texts: list[str], spelling: Spelling) -> list[TextAlignment]:
    times = [frame_times(len(emission), 0.02) for emission in emissions]
    results = align_texts(emissions, texts, times, spelling=spelling)
    assert all(isinstance(result, TextAlignment) for result in results), results
    return [result for result in results if isinstance(result, TextAlignment)]


def wrong_texts(utterances: list[Utterance]) -> dict[str, list[str]]:
    rng = np.random.default_rng(3)
    vocabulary = sorted({word for utterance in utterances for word in utterance.words})
    texts: dict[str, list[str]] = {"another_text": [], "one_word_replaced": [], "one_word_missing": []}
    for i, utterance in enumerate(utterances):
        words = list(utterance.words)
        others = [u.words for j, u in enumerate(utterances) if j != i and len(u.words) <= len(words) + 1]
        others = [other for other in others if other != utterance.words]
        texts["another_text"].append(" ".join(others[rng.integers(len(others))]))
        place = int(rng.integers(len(words)))
        other_word = rng.choice([word for word in vocabulary if word != words[place]])
        texts["one_word_replaced"].append(" ".join([*words[:place], other_word, *words[place + 1 :]]))
        texts["one_word_missing"].append(" ".join([*words[:place], *words[place + 1 :]]))
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--repeats", type=int, default=11)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torchaudio's, that functions will move

    clips, _ = load_clips(args.data)
    utterances = evaluation_utterances(clips, "test", "commands")
    emissions = emissions_of(utterances)
    spelling = Spelling(CTCLabels(AutoProcessor.from_pretrained(CHECKPOINT).tokenizer, emissions[0].shape[1]))
    right = align(emissions, [" ".join(u.words) for u in utterances], spelling)

    errors_s = []
    for utterance, result in zip(utterances, right, strict=True):
        for (start, end, _), word in zip(utterance.spans, result.words, strict=True):
            errors_s.append((word.start_s - start / RATE_HZ, word.end_s - end / RATE_HZ))
    errors = np.array(errors_s)
    losses = {"right": [result.loss_per_label or 0.0 for result in right]}
    for kind, texts in wrong_texts(utterances).items():
        losses[kind] = [result.loss_per_label or 0.0 for result in align(emissions, texts, spelling)]

    spelled = [[c for w in u.words for _, cs in spelling.spell(w) for c in cs] for u in utterances]
    items = [(e, np.array(t, np.int32)) for e, t in zip(emissions, spelled, strict=True)]
    result = {
        "benchmark": "align",
        "utterances": len(utterances),
        "words": len(errors),
        "median_start_error_s": round(float(np.median(np.abs(errors[:, 0]))), 3),
        "median_end_error_s": round(float(np.median(np.abs(errors[:, 1]))), 3),
        "within_0.1_s": round(float((np.abs(errors) <= 0.1).mean()), 3),
        "within_0.2_s": round(float((np.abs(errors) <= 0.2).mean()), 3),
        "median_loss_per_label": {kind: round(statistics.median(v), 3) for kind, v in losses.items()},
        "area_under_roc": {kind: area(losses["right"], v) for kind, v in losses.items() if kind != "right"},
        "speed": {
            "utterances": speed(items, args.repeats),
            "16 of 500 frames, 150 labels": speed(random_items(16, 500, 150), args.repeats),
            "16 of 1500 frames, 450 labels": speed(random_items(16, 1500, 450), args.repeats),
            "2 of 6000 frames, 1800 labels": speed(random_items(2, 6000, 1800), args.repeats),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
