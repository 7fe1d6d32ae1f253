"""The recordings that the demo's speaker head is trained on and judged by, and how they are parted.

It reads ``libri/`` (LibriSpeech, VCTK, LJSpeech) and ``commands/`` (Speech Commands), splits them by
speaker, and cuts or joins them into pieces of one speaker each. It knows nothing of models.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional
from speech_clips import RATE_HZ, Clip, join
from speech_clips import split_of as split_of_clips

# All speakers of LibriSpeech with more than one file of enough length: only these can be tested with
# utterances that are no neighbours in one file. None of them is trained on.
LIBRI_TEST_SPEAKERS = ("1089", "1688", "2412", "2414", "3005", "3331", "533")
CORPORA = ("librispeech", "vctk", "ljspeech")  # the others do not say who speaks, or may be readers of these


@dataclass(frozen=True)
class Recording:
    """One file of one speaker: mono float32 samples at 16 kHz."""

    corpus: str
    speaker: str
    samples: np.ndarray


@dataclass(frozen=True)
class Piece:
    """A few seconds of one speaker, who is named with the corpus."""

    speaker: str
    samples: np.ndarray


def split_of(corpus: str, speaker: str) -> str:
    """ "train", "dev" or "test", by speaker: a speaker is never in two of them.

    Speakers of Speech Commands are parted as for the transcription checkpoint, whose encoder heard those
    of "train": what is "test" here was heard by neither.
    """
    if corpus == "commands":
        return split_of_clips(corpus, speaker)
    if corpus != "librispeech":
        return "train"
    if speaker in LIBRI_TEST_SPEAKERS:
        return "test"
    bucket = int(hashlib.sha256(speaker.encode()).hexdigest(), 16) % 100
    return "test" if bucket < 20 else "dev" if bucket < 35 else "train"


def load_recordings(data: Path) -> list[Recording]:
    """The files of ``libri/`` whose speakers are known, in the order of their paths."""
    folder = data / "libri"
    with (folder / "manifest.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["path"])
    recordings = []
    for row in rows:
        if row["corpus"] not in CORPORA:
            continue
        samples, rate = soundfile.read(folder / row["path"], dtype="float32")
        if rate != RATE_HZ:
            samples = torchaudio.functional.resample(torch.from_numpy(samples), rate, RATE_HZ).numpy()
        recordings.append(Recording(row["corpus"], row["speaker"], samples))
    return recordings


def voices(recordings: list[Recording], clips: list[Clip], split: str) -> dict[str, list[Recording | Clip]]:
    """What each speaker of a split said, by corpus and speaker; without the few speakers of the digits."""
    found: dict[str, list[Recording | Clip]] = {}
    for recording in recordings:
        if split_of(recording.corpus, recording.speaker) == split:
            found.setdefault(f"{recording.corpus}/{recording.speaker}", []).append(recording)
    for clip in clips:
        if clip.source == "commands" and split_of(clip.source, clip.speaker) == split:
            found.setdefault(f"{clip.source}/{clip.speaker}", []).append(clip)
    return found


def training_pieces(
    spoken: list[Recording | Clip], seconds: float, speed: float, rng: np.random.Generator, *, most: int = 12
) -> list[np.ndarray]:
    """What a speaker said, in a random order and at a speed, cut into pieces of one length.

    Single words are joined first, as ``speech_clips.join`` does. The first piece begins at random.
    """
    length = round(seconds * RATE_HZ)
    order = [spoken[i] for i in rng.permutation(len(spoken))]
    clips = [said for said in order if isinstance(said, Clip)]
    waves = [said.samples for said in order if isinstance(said, Recording)]
    whole = np.concatenate([*waves, *([join(clips, rng).samples] if clips else [])])
    if speed != 1.0:
        whole = torchaudio.functional.resample(torch.from_numpy(whole), round(speed * 100), 100).numpy()
    if len(whole) < length:
        return []
    start = int(rng.integers(len(whole) % length + 1))
    starts = range(start, len(whole) - length + 1, length)[:most]
    return [whole[at : at + length] for at in starts]


def whole_utterances(recordings: list[Recording], split: str, seconds: float) -> list[Piece]:
    """Utterances of one length of the speakers of LibriSpeech, no file in two of them.

    Files of a speaker are joined in order until they are long enough, then cut.
    """
    length = round(seconds * RATE_HZ)
    pieces = []
    for name, spoken in voices(recordings, [], split).items():
        if not name.startswith("librispeech/"):
            continue
        held: list[np.ndarray] = []
        for recording in spoken:
            held.append(recording.samples)
            if sum(map(len, held)) >= length:
                pieces.append(Piece(name, np.concatenate(held)[:length]))
                held = []
    return pieces


def cut_utterances(recordings: list[Recording], split: str, seconds: float) -> list[Piece]:
    """All pieces of one length of the speakers of LibriSpeech, side by side in each file."""
    length = round(seconds * RATE_HZ)
    return [
        Piece(f"librispeech/{recording.speaker}", recording.samples[at : at + length])
        for recording in recordings
        if recording.corpus == "librispeech" and split_of(recording.corpus, recording.speaker) == split
        for at in range(0, len(recording.samples) - length + 1, length)
    ]
