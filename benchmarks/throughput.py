"""How much of a bare loop's rate the whole pipeline keeps, on this machine's CPUs.

The bare loop opens each clip with soundfile, resamples it, runs the same model with the same number
of threads on one clip at a time and decodes greedily: the least that anybody would do. The pipeline
plans, reads, decodes, segments, encodes, decodes text and publishes Parquet. Both run in turn, in one
process on one Ray; the ratio is that of the medians. Ray's own start is left out of it and reported
beside it.

    python benchmarks/throughput.py                      # wav2vec2-base size, random weights
    python benchmarks/throughput.py --model demo         # the demo checkpoint, 3 million parameters
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import ray
import soundfile
import torch
import torchaudio.functional

from w2v_ray import (
    AutoProcessor,
    JobConfig,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
    run,
)
from w2v_ray.demo import CHECKPOINT


def base_size_checkpoint(folder: Path) -> Path:
    """wav2vec2-base-960h's shape with random weights."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(extra={})
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    tokenizer: Wav2Vec2CTCTokenizer = processor.tokenizer
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(return_attention_mask=False), tokenizer).save_pretrained(
        folder
    )
    return folder


def bare_loop(clips: list[Path], model_folder: Path) -> tuple[float, float]:
    """Seconds of audio and seconds of the clock, the model's loading left out."""
    model = Wav2Vec2ForCTC.from_pretrained(model_folder)
    processor = AutoProcessor.from_pretrained(model_folder)
    began, audio_s = time.perf_counter(), 0.0
    with torch.inference_mode():
        for clip in clips:
            samples, rate = soundfile.read(clip, dtype="float32", always_2d=True)
            wave = torchaudio.functional.resample(torch.from_numpy(samples.mean(1)), rate, 16_000)
            audio_s += len(wave) / 16_000
            inputs = processor(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
            processor.decode(model(inputs["input_values"]).logits[0].argmax(-1).tolist())
    return audio_s, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--model", choices=("base", "demo"), default="base")
    parser.add_argument("--clips", type=int, help="how many clips of the LibriSpeech folder (default: all)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shard-seconds", type=float, default=300)
    args = parser.parse_args()

    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    clips = sorted((args.data / "libri" / "librispeech").glob("*.flac"))[: args.clips]
    rates: dict[str, list[float]] = {"bare": [], "pipeline": []}
    with tempfile.TemporaryDirectory() as scratch:
        model = CHECKPOINT if args.model == "demo" else base_size_checkpoint(Path(scratch) / "model")
        listing = Path(scratch) / "clips.txt"
        listing.write_text("".join(f"{clip}\n" for clip in clips))
        began = time.perf_counter()
        ray.init(include_dashboard=False, log_to_driver=False)
        ray_start_s = time.perf_counter() - began
        for repeat in range(args.repeats):
            audio_s, wall_s = bare_loop(clips, model)
            rates["bare"].append(audio_s / wall_s)
            job = JobConfig(
                inputs=(str(listing),),
                output=str(Path(scratch) / f"out{repeat}"),
                model=str(model),
                shard_seconds=args.shard_seconds,
                encoder_threads=threads,
            )
            began = time.perf_counter()
            summary = run(job)
            rates["pipeline"].append(summary.audio_s / (time.perf_counter() - began))
            assert summary.num_rejects == 0
        ray.shutdown()
    bare, pipeline = (statistics.median(rates[name]) for name in ("bare", "pipeline"))
    result = {
        "benchmark": "throughput",
        "model": args.model,
        "threads": threads,
        "clips": len(clips),
        "audio_s": round(audio_s, 1),
        "bare_x_real_time": round(bare, 2),
        "pipeline_x_real_time": round(pipeline, 2),
        "ratio": round(pipeline / bare, 3),
        "ray_start_s": round(ray_start_s, 1),
        "all": {name: [round(rate, 2) for rate in values] for name, values in rates.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
