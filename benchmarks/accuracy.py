"""How near the demo's checkpoint comes to its archive's references in each type of numbers.

The clips of the package's archive run through the stage Encode on this machine, and the likeliest token of
each frame is read as text. "wer" and "cer" are word and character error rates against what was said, and
"wer_changed" is the word error rate against what float32 reads: what the type alone does. Prints one JSON
line.

    python benchmarks/accuracy.py
    python benchmarks/accuracy.py --dtypes float32 int8 --threads 1
    python benchmarks/accuracy.py --device cuda
"""

from __future__ import annotations

import argparse
import json
import tarfile
import time

import numpy as np
import pyarrow as pa
import torch

from w2v_ray import Wav2Vec2CTCTokenizer, demo
from w2v_ray.audio.recordings import read_recording
from w2v_ray.metrics import character_error_rate, word_error_rate
from w2v_ray.schema import DECODED, EMISSION_DTYPE, ERROR, SAMPLE_RATE_HZ
from w2v_ray.stages.encode import Encode
from w2v_ray.stages.encode_config import EncodeConfig


def read_archive() -> tuple[pa.Table, list[str]]:
    """The segments of the archive, one a clip, and what is said in each."""
    manifest, archive = demo.INPUTS
    with open(manifest, encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
    clips: list[tuple[object, str]] = [
        (demo.ARCHIVE / entry["audio_filepath"], entry["text"]) for entry in entries
    ]
    with tarfile.open(archive) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    clips += [
        (data, files[f"{name.rpartition('.')[0]}.txt"].decode().strip())
        for name, data in files.items()
        if not name.endswith(".txt")
    ]
    waves = [read_recording(clip, SAMPLE_RATE_HZ).samples for clip, _ in clips]
    samples = pa.array([wave.tobytes() for wave in waves], DECODED[0].type)
    table = pa.table({"samples": samples, "error": pa.array([None] * len(waves), ERROR)})
    return table, [text for _, text in clips]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    table, said = read_archive()
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(demo.CHECKPOINT)
    audio_s = sum(value.as_buffer().size for value in table["samples"]) / 4 / SAMPLE_RATE_HZ
    exact: list[str] = []
    found = {}
    for dtype in ["float32", *(name for name in args.dtypes if name != "float32")]:
        config = EncodeConfig(
            model=str(demo.CHECKPOINT), device=args.device, dtype=dtype, num_threads=args.threads
        )
        encode = Encode(config)
        encode(table.slice(0, 2))  # kernels are loaded
        began = time.perf_counter()
        encoded = encode(table)
        took_s = time.perf_counter() - began
        assert encoded["error"].null_count == len(said), "every clip of the archive can be encoded"
        paths = [
            np.frombuffer(data, EMISSION_DTYPE).reshape(frames, -1).argmax(-1)
            for data, frames in zip(
                encoded["log_probs"].to_pylist(), encoded["num_frames"].to_pylist(), strict=True
            )
        ]
        texts = [tokenizer.decode(path) for path in paths]
        exact = exact or texts
        pairs = list(zip(said, texts, strict=True))
        found[dtype] = {
            "wer": round(word_error_rate(pairs), 4),
            "cer": round(character_error_rate(pairs), 4),
            "wer_changed": round(word_error_rate(list(zip(exact, texts, strict=True))), 4),
            "clips_changed": sum(text != other for text, other in zip(exact, texts, strict=True)),
            "seconds": round(took_s, 2),
        }
    device = args.device if args.device == "cpu" else torch.cuda.get_device_name(args.device)
    settings = {"device": device, "threads": args.threads, "torch": torch.__version__}
    size = {
        "clips": len(said),
        "words": sum(len(text.split()) for text in said),
        "audio_s": round(audio_s, 1),
    }
    print(json.dumps({**settings, **size, "dtypes": found}))


if __name__ == "__main__":
    main()
