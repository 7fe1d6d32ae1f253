"""Trains the demo's heads: ``python pipelines/train_demo_heads.py --output runs/heads``.

Both stand on the encoder of the demo checkpoint, which stays as it is, so that one pass of it serves
transcripts, speakers and keywords. It needs the folder of real speech (``--data``), no GPU and no network,
and takes some minutes on one core. It writes ``speaker/`` and ``keywords/``, each with the head's weights
and the whole model's config, and ``evaluation.json`` with the figures on speakers that neither encoder nor
head ever heard (the encoder never heard anyone of LibriSpeech).

The speaker head sees what goes into the first layer of the encoder, where voices differ most; what is above
was trained to make them alike. It takes the mean and the deviation of the positive and of the negative part
of each feature, and a linear map that linear discriminant analysis gives in closed form: it spreads the
speakers and shrinks what varies within one. Each speaker at another speed is taken for another speaker.

The keyword head is linear but for the mean over time, so it is trained on the means of all layers over many
variants of each clip, with the share of each layer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from speaker_clips import (
    cut_utterances,
    load_recordings,
    training_pieces,
    voices,
    whole_utterances,
)
from speaker_trials import verification
from speech_clips import (
    RATE_HZ,
    SPEEDS,
    Clip,
    at_speeds,
    augmented,
    evaluation_utterances,
    join,
    load_clips,
    split_of,
)
from torch.nn import functional as F

from w2v_ray import (
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2ForXVector,
    demo,
)
from w2v_ray.metrics import WordErrors, bootstrap_interval

PIECE_SECONDS = (3.0, 4.0, 2.5, 5.0)  # of each pass over the speakers
CLEAN_SHARE = 0.3  # of the pieces: they stay as they were recorded
EMBEDDING_DIM = 128
SHRINKAGE = 0.1  # added to the variances within speakers, which are 1 on average at most
KEYWORD_PASSES = 16
KEYWORD_EPOCHS = 8  # over all passes
KEYWORD_BATCH = 256
PEAK_LR = 2e-3
BATCH_SECONDS = 48.0


def batches(waves: list[np.ndarray]) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Which waves, their normalised and padded samples, and the mask; waves of like length go together."""
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    order = sorted(range(len(waves)), key=lambda i: len(waves[i]))
    while order:
        size = max(1, int(BATCH_SECONDS * RATE_HZ / len(waves[order[-1]])))
        rows, order = order[-size:], order[:-size]
        batch = extractor([waves[i] for i in rows], sampling_rate=RATE_HZ, padding=True, return_tensors="pt")
        yield rows, batch["input_values"], batch["attention_mask"]


def outputs(model: torch.nn.Module, waves: list[np.ndarray], name: str) -> torch.Tensor:
    """That field of a whole model's output, one row for each wave."""
    found: list[torch.Tensor | None] = [None] * len(waves)
    with torch.inference_mode():
        for rows, values, mask in batches(waves):
            for row, value in zip(rows, model(values, attention_mask=mask)[name], strict=True):
                found[row] = value
    return torch.stack([value for value in found if value is not None])


# ---- the speaker head


def first_states(encoder: torch.nn.Module, waves: list[np.ndarray]) -> Iterator[torch.Tensor]:
    """What goes into the first layer, for waves of one length, a batch at a time: (batch, frames, width)."""
    for rows, values, _ in batches(waves):
        assert len(values) == len(rows)
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            yield encoder(values, output_hidden_states=True).hidden_states[0].float()


def pooled(x: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Mean and deviation over the frames of the positive and the negative part of each feature."""
    x = (x - mean) / deviation
    x = torch.cat([x.relu(), (-x).relu()], dim=-1)
    return torch.cat([x.mean(1), x.std(1)], dim=-1)


def discriminants(x: torch.Tensor, labels: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The linear map (dim, features) and bias that linear discriminant analysis gives, every class alike."""
    x, mean, deviation = x.double(), x.double().mean(0), x.double().std(0) + 1e-6
    x = (x - mean) / deviation
    classes, labels = torch.unique(labels, return_inverse=True)
    counts = torch.bincount(labels)[:, None]
    centres = torch.zeros(len(classes), x.shape[1], dtype=x.dtype).index_add_(0, labels, x) / counts
    rest = x - centres[labels]
    within = rest.T @ rest / len(rest) + SHRINKAGE * torch.eye(x.shape[1])
    values, vectors = torch.linalg.eigh(within)
    whiten = vectors / values.sqrt()
    between = whiten.T @ (centres.T @ centres / len(centres)) @ whiten
    weight = (whiten @ torch.linalg.eigh(between).eigenvectors[:, -dim:]).T / deviation
    return weight.float(), -(weight @ mean).float()


def train_speakers(
    data: dict[str, list], noises: list[np.ndarray], passes: int, rng: np.random.Generator
) -> Wav2Vec2ForXVector:
    names = sorted(data)
    model = Wav2Vec2ForXVector.from_pretrained(
        demo.CHECKPOINT,
        ignore_mismatched_sizes=True,
        use_weighted_layer_sum=True,
        tdnn_dim=[384],
        tdnn_kernel=[1],
        tdnn_dilation=[1],
        xvector_output_dim=EMBEDDING_DIM,
        num_labels=len(names),
    ).eval()
    encoder = model.wav2vec2
    every_layer, encoder.encoder.layers = encoder.encoder.layers, encoder.encoder.layers[:1]
    plain = [piece for name in names for piece in training_pieces(data[name], 3.0, 1.0, rng, most=1)]
    frames = torch.cat([x.flatten(0, 1) for x in first_states(encoder, plain)])
    mean, deviation = frames.mean(0), frames.std(0)
    features, labels = [], []
    for seconds in PIECE_SECONDS[:passes]:
        waves = []
        for i, name in enumerate(names):
            for j, speed in enumerate(SPEEDS):
                pieces = training_pieces(data[name], seconds, speed, rng)
                waves += [p if rng.random() < CLEAN_SHARE else augmented(p, noises, rng) for p in pieces]
                labels += [i * len(SPEEDS) + j] * len(pieces)
        # All have one length, so batches come from the end of the list.
        states = [pooled(x, mean, deviation) for x in first_states(encoder, waves)]
        features.append(torch.cat(states[::-1]))
        print(f"{len(waves)} pieces of {seconds} s", flush=True)
    encoder.encoder.layers = every_layer
    weight, bias = discriminants(torch.cat(features), torch.tensor(labels), EMBEDDING_DIM)

    with torch.no_grad():
        model.layer_weights.copy_(torch.tensor([0.0] + [-30.0] * (len(model.layer_weights) - 1)))
        scale = torch.diag(1 / deviation)
        model.projector.weight.copy_(torch.cat([scale, -scale]))
        model.projector.bias.copy_(torch.cat([-mean / deviation, mean / deviation]))
        model.tdnn[0].kernel.weight.copy_(torch.eye(384))
        model.feature_extractor.weight.copy_(weight)
        model.feature_extractor.bias.copy_(bias)
        model.classifier.weight.copy_(torch.eye(EMBEDDING_DIM))
        # The loss compares with a vector for each speaker: the mean of what they said at their own speed.
        everything = F.normalize(torch.cat(features) @ weight.T + bias, dim=-1)
        own = SPEEDS.index(1.0)
        for i in range(len(names)):
            chosen = torch.tensor(labels) == i * len(SPEEDS) + own
            if chosen.any():
                model.objective.weight[:, i] = everything[chosen].mean(0)
    return model


# ---- the keyword head


def layer_means(model: torch.nn.Module, waves: list[np.ndarray], *, fast: bool) -> torch.Tensor:
    """The mean over time of what each layer gives: (waves, layers, width)."""
    found: list[torch.Tensor | None] = [None] * len(waves)
    for rows, values, mask in batches(waves):
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast):
            states = torch.stack(model(values, mask, output_hidden_states=True).hidden_states, 1).float()
        valid = model.frame_mask(mask, states.shape[2])[:, None, :, None]
        for row, mean in zip(rows, (states * valid).sum(2) / valid.sum(2), strict=True):
            found[row] = mean
    return torch.stack([mean for mean in found if mean is not None])


def keyword_variant(clip: Clip, noises: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The word as another recording would have it: other pauses around it, another place, more noise."""
    if rng.random() < 0.5:
        samples = join([clip], rng).samples
    else:
        before, after = rng.integers(RATE_HZ // 2, size=2)
        samples = clip.samples[max(0, clip.start - before) : clip.end + after]
    return augmented(samples, noises, rng, lowest_snr_db=0.0)


def train_keywords(
    clips: list[Clip], noises: list[np.ndarray], passes: int, rng: np.random.Generator, seed: int
) -> Wav2Vec2ForSequenceClassification:
    words = sorted({clip.word for clip in clips})
    model = Wav2Vec2ForSequenceClassification.from_pretrained(
        demo.CHECKPOINT,
        ignore_mismatched_sizes=True,
        use_weighted_layer_sum=True,
        classifier_proj_size=192,
        num_labels=len(words),
    ).eval()
    model.config.id2label = dict(enumerate(words))
    model.config.label2id = {word: i for i, word in enumerate(words)}
    variants = at_speeds(clips)
    means = [layer_means(model.wav2vec2, [clip.samples for clip in clips], fast=True)]
    for i in range(passes):
        drawn = [of_clip[rng.integers(len(SPEEDS))] for of_clip in variants]
        waves = [keyword_variant(clip, noises, rng) for clip in drawn]
        means.append(layer_means(model.wav2vec2, waves, fast=True))
        print(f"pass {i + 1} of {passes} over {len(waves)} clips", flush=True)
    x = torch.cat(means)
    labels = torch.tensor([words.index(clip.word) for clip in clips]).repeat(passes + 1)
    # Between how often a word occurs and all alike: rare words must be learnt too.
    odds = torch.bincount(labels, minlength=len(words)).float().rsqrt()[labels].double()
    chances = torch.cumsum(odds, 0) / odds.sum()

    torch.manual_seed(seed)
    for layer in (model.projector, model.classifier):
        layer.reset_parameters()
    torch.nn.init.zeros_(model.layer_weights)
    trained = [model.layer_weights, *model.projector.parameters(), *model.classifier.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=PEAK_LR, weight_decay=0.1)
    num_steps = KEYWORD_EPOCHS * len(labels) // KEYWORD_BATCH
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * min(1.0, (step + 1) / 50) * (1 - step / num_steps)
        rows = torch.searchsorted(chances, torch.rand(KEYWORD_BATCH, dtype=torch.double))
        rows = rows.clamp(max=len(labels) - 1)
        mixed = torch.einsum("nle,l->ne", x[rows], torch.softmax(model.layer_weights, 0))
        loss = F.cross_entropy(model.classifier(model.projector(mixed)), labels[rows])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    print(f"keywords: loss {loss.item():.3f} after {num_steps} steps", flush=True)
    return model


# ---- what is shipped, and how good it is


def save_head(model: torch.nn.Module, folder: Path) -> None:
    """The config of the whole model, and the weights that are not the encoder's, in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.half().contiguous() for k, v in model.state_dict().items() if not k.startswith("wav2vec2.")}
    save_file(state, folder / "head.safetensors", metadata={"format": "pt"})
    model.save_pretrained(folder / "whole")
    config = json.loads((folder / "whole" / "config.json").read_text())
    config["dtype"] = "float16"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.rmtree(folder / "whole")


def evaluate_keywords(model: torch.nn.Module, clips: list[Clip], split: str) -> dict[str, object]:
    """Accuracy on single words of Speech Commands as they were recorded; the interval is over speakers."""
    own = [c for c in clips if c.source == "commands" and split_of(c.source, c.speaker) == split]
    logits = outputs(model, [clip.samples for clip in own], "logits")
    groups: dict[str, WordErrors] = {}
    for clip, guess in zip(own, logits.argmax(-1).tolist(), strict=True):
        right = model.config.id2label[guess] == clip.word
        groups[clip.speaker] = groups.get(clip.speaker, WordErrors()) + WordErrors(
            hits=int(right), substitutions=int(not right)
        )
    low, high = bootstrap_interval(list(groups.values()))
    total = sum(groups.values(), WordErrors())
    return {
        "accuracy": round(1 - total.rate, 4),
        "interval_95": [round(1 - high, 4), round(1 - low, 4)],
        "num_clips": total.num_reference,
        "num_speakers": len(groups),
        "num_words": len({clip.word for clip in own}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the two heads and their figures"
    )
    parser.add_argument(
        "--heads", nargs="+", choices=("speaker", "keywords"), default=["speaker", "keywords"]
    )
    parser.add_argument(
        "--splits", nargs="+", choices=("dev", "test"), default=["dev", "test"], help="speakers to judge by"
    )
    parser.add_argument("--speaker-passes", type=int, default=len(PIECE_SECONDS))
    parser.add_argument("--keyword-passes", type=int, default=KEYWORD_PASSES)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_flush_denormal(True)  # numbers below 1e-38 are slow on many CPUs
    began = time.monotonic()
    clips, noises = load_clips(args.data)
    recordings = load_recordings(args.data)

    if "speaker" in args.heads:
        spoken = voices(recordings, clips, "train")
        trained = train_speakers(spoken, noises, args.speaker_passes, np.random.default_rng(args.seed))
        save_head(trained, args.output / "speaker")
        model = Wav2Vec2ForXVector.from_pretrained(demo.with_encoder(args.output / "speaker")).eval()
        results = {"num_training_speakers": len(spoken)}
        for split in args.splits:
            words = evaluation_utterances(clips, split, "commands")
            trials = {
                "LibriSpeech, 10 s": whole_utterances(recordings, split, 10.0),
                "LibriSpeech, 5 s": cut_utterances(recordings, split, 5.0),
                "Speech Commands, 3 to 12 words": [u for u in words if len(u.words) >= 3],
            }
            for name, pieces in trials.items():
                if len({p.speaker for p in pieces}) == len(pieces):
                    continue  # no speaker has two
                embeddings = outputs(model, [p.samples for p in pieces], "embeddings").numpy()
                results[f"{split} {name}"] = verification(embeddings, [p.speaker for p in pieces])
        report(results, args.output / "speaker")
    if "keywords" in args.heads:
        train = [clip for clip in clips if split_of(clip.source, clip.speaker) == "train"]
        rng = np.random.default_rng(args.seed)
        trained = train_keywords(train, noises, args.keyword_passes, rng, args.seed)
        save_head(trained, args.output / "keywords")
        model = Wav2Vec2ForSequenceClassification.from_pretrained(
            demo.with_encoder(args.output / "keywords")
        ).eval()
        results = {"num_training_clips": len(train), "num_training_speakers": len({c.speaker for c in train})}
        results |= {
            f"{split} Speech Commands": evaluate_keywords(model, clips, split) for split in args.splits
        }
        report(results, args.output / "keywords")
    print(f"{time.monotonic() - began:.0f} s", flush=True)


def report(results: dict[str, object], folder: Path) -> None:
    text = json.dumps(results, indent=2)
    (folder / "evaluation.json").write_text(text + "\n")
    print(text, flush=True)


if __name__ == "__main__":
    main()
