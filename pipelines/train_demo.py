"""Trains the demo checkpoint from scratch: ``python pipelines/train_demo.py --output runs/demo``.

It needs the folder of real speech (``--data``), no GPU and no network. It can be stopped at any time;
the same command goes on where it stopped. At the end it writes the checkpoint in Hugging Face
layout, with ``evaluation.json`` beside it: word error rates on speakers it never heard.

The recipe: words are joined into utterances of 1 to 12 with the pauses that their clips hold, made
faster or slower, louder or softer, and noisier. The loss is CTC on characters, plus a frame-wise
classification of the words from a middle layer, since where each word lies is known from the
joining; that second head finds the words long before CTC would, and is thrown away at the end. The
first convolution starts as a bank of band-pass filters in four phases.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from speech_clips import (
    DIGIT_TEST_SPEAKER,
    RATE_HZ,
    SPEEDS,
    Clip,
    Utterance,
    at_speeds,
    augmented,
    evaluation_utterances,
    join,
    load_clips,
    split_of,
)
from torch import nn
from torch.nn import functional as F

from w2v_ray import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)
from w2v_ray.metrics import WordErrors, bootstrap_interval, word_errors

CONFIG = Wav2Vec2Config(
    vocab_size=32,
    hidden_size=192,
    num_hidden_layers=6,
    num_attention_heads=4,
    intermediate_size=768,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    conv_dim=(192, 192, 192),
    conv_kernel=(400, 3, 3),  # 25 ms windows, as the first filters are band-pass filters
    conv_stride=(160, 1, 2),  # 20 ms from frame to frame, as all published models have
    conv_bias=True,
    num_conv_pos_embeddings=32,
    num_conv_pos_embedding_groups=8,
    hidden_dropout=0.1,
    attention_dropout=0.0,
    activation_dropout=0.0,
    feat_proj_dropout=0.0,
    final_dropout=0.0,
    layerdrop=0.05,
    mask_time_prob=0.12,
    mask_time_length=6,
    mask_time_min_masks=0,
    mask_feature_prob=0.08,
    mask_feature_length=12,
    ctc_loss_reduction="mean",
    ctc_zero_infinity=True,
)
LETTERS = "ETAONIHSRDLUMWCFGYPBVK'XJQZ"
VOCABULARY = {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS])}
BATCH_SECONDS = 48.0
PEAK_LR = 1.5e-3
WARMUP_STEPS = 400
DECAY_SHARE = 0.4  # the last part of the run, in which the learning rate falls to zero
WORD_LOSS_LAYER = 4  # of 6: what is below it learns words, what is above it learns to spell
CURRICULUM = ((0.05, 1, 1), (0.12, 1, 2), (0.25, 1, 5), (1.0, 2, 12))  # until this share: words per utterance


class ClipSource:
    """Draws training batches; one ``random.Random`` state is all there is to resume."""

    def __init__(self, clips: list[Clip], noises: list[np.ndarray], rng: np.random.Generator) -> None:
        self.rng = rng
        self.noises = noises
        self.variants = at_speeds(clips)
        self.words = sorted({clip.word for clip in clips})
        # The spoken digits come from few speakers in one collection, from many in the other: of each as many.
        self.of_word = [
            [
                own
                for s in ("commands", "digits")
                if (own := [i for i, c in enumerate(clips) if (c.source, c.word) == (s, w)])
            ]
            for w in self.words
        ]
        self.of_speaker: dict[str, list[int]] = {}
        for i, clip in enumerate(clips):
            self.of_speaker.setdefault(clip.speaker, []).append(i)
        self.speakers = [s for s, own in self.of_speaker.items() if len(own) >= 5]
        # Between how often a word occurs and all alike: rare words must be learnt too.
        weights = np.sqrt([sum(map(len, sources)) for sources in self.of_word])
        self.word_weights = weights / weights.sum()

    def batch(self, fewest_words: int, most_words: int) -> list[Utterance]:
        """Utterances of about BATCH_SECONDS in all, of like length so that little is padding."""
        num_words = int(self.rng.integers(fewest_words, most_words + 1))
        num_utterances = max(1, round(BATCH_SECONDS / (0.75 * num_words)))
        utterances = (join(self._draw(num_words), self.rng) for _ in range(num_utterances))
        return [replace(u, samples=augmented(u.samples, self.noises, self.rng)) for u in utterances]

    def _draw(self, num_words: int) -> list[Clip]:
        rng = self.rng
        if rng.random() < 0.3:
            own = self.of_speaker[self.speakers[rng.integers(len(self.speakers))]]
            chosen = [own[i] for i in rng.integers(len(own), size=num_words)]
        else:
            kinds = rng.choice(len(self.words), size=num_words, p=self.word_weights)
            pools = [self.of_word[k][rng.integers(len(self.of_word[k]))] for k in kinds]
            chosen = [pool[rng.integers(len(pool))] for pool in pools]
        return [self.variants[i][rng.integers(len(SPEEDS))] for i in chosen]


def collate(utterances: list[Utterance], words: list[str], hop: int) -> dict[str, torch.Tensor]:
    """A batch: normalised waveforms, character labels, and the word of each frame (0: none).

    What is left after a shorter utterance is filled with faint noise and is silence to be recognised
    as such: without a padding mask, attention takes a faster kernel.
    """
    longest = max(len(u.samples) for u in utterances)
    waves = 0.003 * torch.randn(len(utterances), longest)
    frame_words = torch.zeros(len(utterances), longest // hop + 1, dtype=torch.long)
    targets = []
    for row, utterance in enumerate(utterances):
        samples = torch.from_numpy(utterance.samples)
        waves[row, : len(samples)] = (samples - samples.mean()) / torch.sqrt(
            samples.var(unbiased=False) + 1e-7
        )
        for start, end, word in utterance.spans:
            frame_words[row, start // hop : end // hop] = words.index(word) + 1
        targets.append([VOCABULARY[c] for c in "|".join(utterance.words)])
    labels = torch.full((len(targets), max(map(len, targets))), -100)
    for row, target in enumerate(targets):
        labels[row, : len(target)] = torch.tensor(target)
    return {"input_values": waves, "labels": labels, "frame_words": frame_words}


def filter_bank_start(model: Wav2Vec2ForCTC, clips: list[Clip]) -> None:
    """Makes the first convolution a bank of mel-spaced band-pass filters, four phases of each.

    Each filter is scaled so that over speech it gives the same power as the others.
    """
    layer = model.wav2vec2.feature_extractor.conv_layers[0]
    channels, _, size = layer.conv.weight.shape
    bands = channels // 4
    mel = np.linspace(2595 * math.log10(1 + 80 / 700), 2595 * math.log10(1 + 7600 / 700), bands)
    centre_hz = torch.from_numpy(700 * (10 ** (mel / 2595) - 1)).float()
    t = (torch.arange(size) - size / 2) / RATE_HZ
    width_hz = 0.12 * centre_hz + 60.0
    envelope = torch.exp(-0.5 * (t[None] * width_hz[:, None] * 2.0) ** 2) * torch.hann_window(size)[None]
    phases = torch.arange(4) * (math.pi / 2)
    filters = envelope[:, None] * torch.cos(
        2 * math.pi * centre_hz[:, None, None] * t + phases[None, :, None]
    )
    filters = filters.reshape(channels, 1, size)
    sample = np.concatenate([c.samples[c.start : c.end] for c in clips[::40]])
    with torch.no_grad():
        power = (
            F.conv1d(torch.from_numpy(sample)[None, None] / sample.std(), filters, stride=80)
            .square()
            .mean(-1)
        )
        layer.conv.weight.copy_(filters / power[0].sqrt()[:, None, None])
        layer.conv.bias.zero_()
        layer.layer_norm.weight.fill_(3.0)  # far enough from zero that GELU rectifies


def transcribe(
    model: Wav2Vec2ForCTC, tokenizer: Wav2Vec2CTCTokenizer, utterances: list[Utterance]
) -> list[str]:
    texts = []
    for utterance in utterances:
        batch = collate([utterance], list(dict.fromkeys(utterance.words)), model.config.hop_samples)
        with torch.inference_mode():
            logits = model(batch["input_values"].to(next(model.parameters()).device)).logits
        texts.append(tokenizer.decode(logits[0].argmax(-1).tolist()))
    return texts


def evaluate(
    model: Wav2Vec2ForCTC, tokenizer: Wav2Vec2CTCTokenizer, clips: list[Clip], split: str, *sources: str
) -> dict[str, float | int | list[float]]:
    """Greedy word error rate over connected utterances of a split, with a 95% interval over speakers."""
    model.eval()
    utterances = [u for source in sources for u in evaluation_utterances(clips, split, source)]
    texts = transcribe(model, tokenizer, utterances)
    groups: dict[str, WordErrors] = {}
    for i, (utterance, text) in enumerate(zip(utterances, texts, strict=True)):
        # The digits have one test speaker, so there the utterances are what is drawn again.
        group = utterance.speaker if utterance.speaker != DIGIT_TEST_SPEAKER else str(i)
        errors = word_errors(" ".join(utterance.words), text)
        groups[group] = groups[group] + errors if group in groups else errors
    total = sum(groups.values(), WordErrors(0, 0, 0, 0))
    low, high = bootstrap_interval(list(groups.values()))
    model.train()
    return {
        "wer": round(total.rate, 4),
        "interval_95": [round(low, 4), round(high, 4)],
        "num_words": total.num_reference,
        "num_utterances": len(utterances),
        "num_speakers": len({u.speaker for u in utterances}),
    }


def learning_rate(step: int, num_steps: int) -> float:
    decay_steps = max(1, int(DECAY_SHARE * num_steps))
    return (
        PEAK_LR * min(1.0, (step + 1) / WARMUP_STEPS) * min(1.0, max(0.0, (num_steps - step) / decay_steps))
    )


def save_state(path: Path, state: dict[str, object]) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--output", type=Path, required=True, help="folder for the state and the checkpoint")
    parser.add_argument("--steps", type=int, default=14_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--evaluate-every", type=int, default=1000)
    args = parser.parse_args()
    torch.set_flush_denormal(True)  # numbers below 1e-38 are slow on many CPUs
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)

    clips, noises = load_clips(args.data)
    train = [clip for clip in clips if split_of(clip.source, clip.speaker) == "train"]
    source = ClipSource(train, noises, np.random.default_rng(args.seed))
    print(
        f"{len(train)} clips of {len({c.speaker for c in train})} speakers, {len(source.words)} words",
        flush=True,
    )

    (args.output / "vocab.json").write_text(json.dumps(VOCABULARY))
    tokenizer = Wav2Vec2CTCTokenizer(str(args.output / "vocab.json"))
    model = Wav2Vec2ForCTC(CONFIG)
    filter_bank_start(model, train)
    model.to(args.device).train()
    word_head = nn.Linear(CONFIG.hidden_size, len(source.words) + 1).to(args.device)
    parameters = [*model.parameters(), *word_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.02)
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters on {args.device}",
        flush=True,
    )

    state_path, step = args.output / "state.pt", 0
    if state_path.exists():
        state = torch.load(state_path, map_location=args.device, weights_only=True)
        model.load_state_dict(state["model"])
        word_head.load_state_dict(state["word_head"])
        optimizer.load_state_dict(state["optimizer"])
        source.rng.bit_generator.state = state["rng"]
        step = state["step"]
        print(f"going on from step {step}", flush=True)

    # bfloat16 products pay on a GPU and on CPUs that have instructions for them; elsewhere they crawl.
    bf16 = args.device != "cpu" or "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    began, heard_s, losses = time.monotonic(), 0.0, []
    while step < args.steps:
        fewest, most = next((a, b) for share, a, b in CURRICULUM if step < share * args.steps)
        batch = collate(source.batch(fewest, most), source.words, CONFIG.hop_samples)
        heard_s += batch["input_values"].numel() / RATE_HZ
        batch = {name: value.to(args.device) for name, value in batch.items()}
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps)
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=bf16):
            out = model(batch["input_values"], labels=batch["labels"], output_hidden_states=True)
            word_logits = word_head(out.hidden_states[WORD_LOSS_LAYER])
        frame_words = batch["frame_words"][:, : word_logits.shape[1]]
        word_loss = F.cross_entropy(word_logits.float().flatten(0, 1), frame_words.flatten())
        (out.loss + word_loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append((out.loss.item(), word_loss.item()))
        step += 1
        if step % 100 == 0 or step == args.steps:
            ctc, word = np.mean(losses, axis=0)
            elapsed = time.monotonic() - began
            step_s = elapsed / len(losses)
            print(
                f"step {step}/{args.steps}  ctc {ctc:.3f}  word {word:.3f}  {step_s:.2f} s/step  "
                f"{heard_s / elapsed:.0f} x real time  {(args.steps - step) * step_s / 60:.0f} min left",
                flush=True,
            )
            began, heard_s, losses = time.monotonic(), 0.0, []
        if step % 500 == 0 or step == args.steps:
            save_state(
                state_path,
                {
                    "model": model.state_dict(),
                    "word_head": word_head.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "rng": source.rng.bit_generator.state,
                    "step": step,
                },
            )
        if step % args.evaluate_every == 0 and step < args.steps:
            print(f"  dev commands {evaluate(model, tokenizer, clips, 'dev', 'commands')}", flush=True)

    checkpoint = args.output / "checkpoint"
    model.half().save_pretrained(checkpoint)
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(return_attention_mask=True), tokenizer).save_pretrained(
        checkpoint
    )
    model = Wav2Vec2ForCTC.from_pretrained(checkpoint)  # what is judged is what is shipped: float16 on disk
    results = {
        f"{split} {' and '.join(sources)}": evaluate(model, tokenizer, clips, split, *sources)
        for split, *sources in (
            ("dev", "commands"),
            ("test", "commands"),
            ("test", "digits"),
            ("test", "commands", "digits"),
        )
    }
    (args.output / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
    for name, result in results.items():
        print(f"{name}: {result}", flush=True)


if __name__ == "__main__":
    main()
