"""Writes the archives that ``w2v-ray demo`` reads: words of speakers the checkpoints never heard.

``python pipelines/make_demo_archive.py`` needs the folder of real speech (``--data``) and writes
``w2v_ray/demo/archive``: files of five kinds with a manifest, and a WebDataset tar; beside it ``words.tar``
with single words. The clips are of Speech Commands (CC BY 4.0), joined as ``speech_clips.join`` does.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from pathlib import Path

import av
import numpy as np
import soundfile
from speech_clips import RATE_HZ, Utterance, evaluation_utterances, load_clips, split_of

NUM_UTTERANCES = 24
NUM_IN_TAR = 8
NUM_WORDS = 30
KINDS = ("flac", "mp3", "ogg", "m4a", "wav")


def encoded(samples: np.ndarray, kind: str) -> bytes:
    """Samples at 16 kHz as the bytes of a file of that kind."""
    file = io.BytesIO()
    if kind == "m4a":
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("aac", rate=RATE_HZ, layout="mono")
            stream.bit_rate = 48_000
            frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate = RATE_HZ
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
        return file.getvalue()
    subtype = {"ogg": "OPUS", "wav": "ULAW", "flac": "PCM_16", "mp3": "MPEG_LAYER_III"}[kind]
    soundfile.write(file, samples, RATE_HZ, format=kind.upper(), subtype=subtype)
    return file.getvalue()


def name_of(index: int, utterance: Utterance) -> str:
    return f"{index:02}_{utterance.speaker}"


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)  # its time is 0, so the tar is the same each time
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def main() -> None:
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=root.parent / "shared" / "data")
    parser.add_argument("--output", type=Path, default=root / "w2v_ray" / "demo" / "archive")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    clips, _ = load_clips(args.data)
    utterances = evaluation_utterances(clips, "test", "commands")
    chosen = [utterances[i] for i in np.linspace(0, len(utterances) - 1, NUM_UTTERANCES).astype(int)]
    lines = []
    for index, utterance in enumerate(chosen[:-NUM_IN_TAR]):
        kind = KINDS[index % len(KINDS)]
        file = args.output / f"{name_of(index, utterance)}.{kind}"
        file.write_bytes(encoded(utterance.samples, kind))
        lines.append(
            {"audio_filepath": file.name, "text": " ".join(utterance.words), "speaker": utterance.speaker}
        )
    (args.output / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    members = []
    for index, utterance in enumerate(chosen[-NUM_IN_TAR:], start=len(lines)):
        name = name_of(index, utterance)
        members.append((f"{name}.flac", encoded(utterance.samples, "flac")))
        members.append((f"{name}.txt", " ".join(utterance.words).encode()))
    write_tar(args.output / "more.tar", members)
    single = [
        clip for clip in clips if clip.source == "commands" and split_of("commands", clip.speaker) == "test"
    ]
    single = [single[i] for i in np.linspace(0, len(single) - 1, NUM_WORDS).astype(int)]
    members = []
    for index, clip in enumerate(single):
        name = f"{index:02}_{clip.speaker}"
        members.append((f"{name}.mp3", encoded(clip.samples, "mp3")))
        members.append((f"{name}.txt", clip.word.encode()))
    write_tar(args.output.parent / "words.tar", members)
    seconds = sum(len(u.samples) for u in chosen) / RATE_HZ
    size = sum(file.stat().st_size for file in args.output.iterdir())
    print(f"{len(chosen)} utterances, {seconds:.0f} s, {size / 1e6:.2f} MB in {args.output}")


if __name__ == "__main__":
    main()
