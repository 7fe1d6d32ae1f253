"""The clips that the demo checkpoint is trained on and judged by, and how they become utterances.

It reads ``commands/`` (Speech Commands) and ``digits/`` (Free Spoken Digit Dataset), splits them by
speaker, and joins single words into connected utterances. It knows nothing of models.
"""

from __future__ import annotations

import csv
import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional

RATE_HZ = 16_000
DIGIT_TEST_SPEAKER = "nicolas"  # the last name in the alphabet, fixed before any training
SPEEDS = (0.8, 0.9, 1.0, 1.1, 1.22)


@dataclass(frozen=True)
class Clip:
    """One spoken word: mono float32 samples at 16 kHz, and where in them the word is."""

    source: str
    speaker: str
    word: str
    samples: np.ndarray
    start: int
    end: int


@dataclass(frozen=True)
class Utterance:
    """Words in a row: samples, their text in capitals, and the (start, end, word) spans in samples."""

    speaker: str
    samples: np.ndarray
    words: tuple[str, ...]
    spans: tuple[tuple[int, int, str], ...]


def split_of(source: str, speaker: str) -> str:
    """ "train", "dev" or "test", by speaker: a speaker is never in two of them."""
    if source == "digits":
        return "test" if speaker == DIGIT_TEST_SPEAKER else "train"
    bucket = int(hashlib.sha256(speaker.encode()).hexdigest(), 16) % 100
    return "test" if bucket < 15 else "dev" if bucket < 20 else "train"


def load_clips(data: Path) -> tuple[list[Clip], list[np.ndarray]]:
    """All single-word clips below ``data``, and the clips of background noise."""
    clips, noises = [], []
    for source, word_column in (("commands", "word"), ("digits", "label")):
        folder = data / source
        with (folder / "manifest.csv").open(newline="") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: (row["shard"], row["path"]))
        members: dict[tuple[str, str], np.ndarray] = {}
        for shard in sorted({row["shard"] for row in rows}):
            with tarfile.open(folder / shard) as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    assert file is not None
                    samples, rate = soundfile.read(io.BytesIO(file.read()), dtype="float32")
                    assert rate == RATE_HZ, f"{member.name} is at {rate} Hz"
                    members[shard, member.name] = samples
        for row in rows:
            samples = members[row["shard"], row["path"]]
            if not row[word_column]:
                noises.append(samples)
                continue
            start, end = word_span(samples)
            clips.append(Clip(source, row["speaker"], row[word_column].upper(), samples, start, end))
    return clips, noises


def word_span(samples: np.ndarray) -> tuple[int, int]:
    """Where the word is in a clip: the loud part, with 50 ms around it."""
    hop = RATE_HZ // 100
    frames = samples[: len(samples) // hop * hop].reshape(-1, hop)
    energy_db = 10 * np.log10(np.square(frames).mean(-1) + 1e-9)
    energy_db = np.convolve(np.pad(energy_db, 1, mode="edge"), np.ones(3) / 3, mode="valid")
    floor, peak = np.percentile(energy_db, 10), energy_db.max()
    loud = np.flatnonzero(energy_db > floor + 0.3 * (peak - floor))
    margin = 5
    return max(0, (loud[0] - margin) * hop), min(len(samples), (loud[-1] + 1 + margin) * hop)


def at_speeds(clips: list[Clip]) -> list[list[Clip]]:
    """Each clip at each of SPEEDS; pitch moves with speed, as with another speaker."""
    variants = []
    for clip in clips:
        of_clip = []
        for speed in SPEEDS:
            if speed == 1.0:
                of_clip.append(clip)
                continue
            samples = torchaudio.functional.resample(
                torch.from_numpy(clip.samples), round(speed * 100), 100
            ).numpy()
            start, end = int(clip.start / speed), min(len(samples), int(clip.end / speed))
            of_clip.append(Clip(clip.source, clip.speaker, clip.word, samples, start, end))
        variants.append(of_clip)
    return variants


def join(clips: list[Clip], rng: np.random.Generator, *, level_jitter_db: float = 3.0) -> Utterance:
    """Joins clips into one utterance, with pauses of up to half a second between words.

    A pause is what the clips hold around their words; where one was cut close, as the digits are, noise
    at the level of its own quietest 20 ms goes on. Clips are brought to a common level first, as the
    words of one breath would have, and cross-faded over 10 ms where they meet.
    """
    fade = RATE_HZ // 100
    pieces: list[np.ndarray] = []
    spans = []
    position = 0
    for clip in clips:
        before, after = (int(pause) for pause in rng.integers(0, RATE_HZ // 4 + 1, size=2))
        piece = _with_margins(clip, before, after, rng)
        level = np.sqrt(np.square(clip.samples[clip.start : clip.end]).mean()) + 1e-5
        piece *= 0.05 / level * 10 ** (rng.normal(0, level_jitter_db) / 20)
        ramp = np.linspace(0, 1, fade, dtype=np.float32)
        piece[:fade] *= ramp
        piece[-fade:] *= ramp[::-1]
        overlap = fade if pieces else 0
        position -= overlap
        spans.append((position + before, position + before + clip.end - clip.start, clip.word))
        if overlap:
            pieces[-1][-fade:] += piece[:fade]
            piece = piece[fade:]
            position += fade
        pieces.append(piece)
        position += len(piece)
    samples = np.concatenate(pieces)
    return Utterance(clips[0].speaker, samples, tuple(c.word for c in clips), tuple(spans))


def _with_margins(clip: Clip, before: int, after: int, rng: np.random.Generator) -> np.ndarray:
    """The word with that many samples before and after it: the clip's own as far as they go."""
    own_before, own_after = min(before, clip.start), min(after, len(clip.samples) - clip.end)
    own = clip.samples[clip.start - own_before : clip.end + own_after]
    frames = clip.samples[: len(clip.samples) // 320 * 320].reshape(-1, 320)
    floor = np.sqrt(np.square(frames).mean(-1).min())
    noise = (floor * rng.standard_normal(before - own_before + after - own_after)).astype(np.float32)
    return np.concatenate([noise[: before - own_before], own, noise[before - own_before :]])


def augmented(
    samples: np.ndarray, noises: list[np.ndarray], rng: np.random.Generator, *, lowest_snr_db: float = 3.0
) -> np.ndarray:
    """The same speech in another place: often with noise, often through another microphone or line."""
    level = np.sqrt(np.square(samples).mean()) + 1e-6
    if rng.random() < 0.6:
        noise = np.resize(noises[rng.integers(len(noises))], len(samples))
        if rng.random() < 0.5:
            noise = rng.standard_normal(len(samples)).astype(np.float32)
        snr_db = rng.uniform(lowest_snr_db, 35)
        noise_level = np.sqrt(np.square(noise).mean()) + 1e-6
        samples = samples + noise * (level / noise_level * 10 ** (-snr_db / 20))
    if rng.random() < 0.7:
        samples = _filtered(samples, rng)
    return samples.astype(np.float32)


def _filtered(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As another microphone and line would have it: a smooth random curve, often a telephone's band."""
    spectrum = np.fft.rfft(samples)
    frequencies = np.linspace(0, RATE_HZ / 2, len(spectrum))
    knots = np.array([0, 150, 300, 600, 1000, 1700, 2600, 3600, 5000, 8000])
    gains_db = rng.normal(0, 5, size=len(knots)) + np.linspace(0, rng.normal(0, 6), len(knots))
    spectrum *= 10 ** (np.interp(frequencies, knots, gains_db) / 20)
    if rng.random() < 0.5:
        spectrum[frequencies > rng.uniform(3300, 4000)] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def evaluation_utterances(clips: list[Clip], split: str, source: str, *, seed: int = 7) -> list[Utterance]:
    """Connected utterances of 2 to 12 words of one speaker each; every clip of the split is used once.

    A speaker with a single clip gives none.
    """
    by_speaker: dict[str, list[Clip]] = {}
    for clip in clips:
        if clip.source == source and split_of(source, clip.speaker) == split:
            by_speaker.setdefault(clip.speaker, []).append(clip)
    utterances = []
    for speaker, own in sorted(by_speaker.items()):
        rng = np.random.default_rng([seed, int(hashlib.sha256(speaker.encode()).hexdigest()[:8], 16)])
        left = [own[i] for i in rng.permutation(len(own))]
        while len(left) >= 2:
            num_words = int(rng.integers(2, 13))
            if len(left) - num_words == 1:
                num_words += 1 if num_words < 12 else -1
            utterances.append(join(left[:num_words], rng))
            left = left[num_words:]
    return utterances
