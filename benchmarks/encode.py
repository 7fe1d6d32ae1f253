"""How fast the encoder is beside transformers' on the same clips, with the same weights and threads.

Everything runs in one process, transformers first and w2v_ray second, in turn, on clips of LibriSpeech that
span its lengths; each starts from samples in memory and includes its feature extraction, and the loading of
models is left out. Weights are random, of wav2vec2-base's, wav2vec2-large-lv60's and w2v-BERT-2.0's size.

- pipeline: transformers' pipeline, clips as they come, padded in batches of 8. It takes the likeliest
  token of each frame itself and spells it with the demo's tokenizer; nobody else here decodes.
- sorted_loop: a loop written by hand over batches of 8 clips, sorted by length, padded, with an attention
  mask where the feature extractor gives one, up to log-probabilities on the host as float16.
- one_by_one: the same, without batches: no padding.
- w2v_ray: the stage Encode called on one table of all clips, as in a job, up to the same log-probabilities.
- singles: each clip alone, one_by_one beside Encode on a table of one row: "worst" is the lowest of all
  clips' ratios, each the median over pairs of runs.

    python benchmarks/encode.py                                   # float32 and int8, two threads
    python benchmarks/encode.py --sizes base --clips 6 --repeats 1 --dtypes float32
    python benchmarks/encode.py --device cuda                     # bfloat16 on both sides

On a GPU transformers has the best of several attention kernels and batch sizes, found by two runs of each;
what does not fit is told. Under "gpu", of each size: milliseconds for a clip and the share of the GPU's dense
bfloat16 peak on all clips of 10 to 20 s (padding, and what is not a product of matrices or a convolution, not
counted), seconds for an hour of audio, and the memory of a batch beside what the warm-up found.

Log-probabilities are compared with those of one_by_one in float32 before anything is timed: float32 fails
beyond 1e-3 and half a step of float16, and of other types the largest difference is told. Rates are seconds
of audio per second of the clock, medians over the repeats; ratios are quotients of these. Prints one JSON
line.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported; nothing here is on a hub

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import soundfile
import torch
import transformers
from gpu_figures import measure_gpu  # beside this file

import w2v_ray
from w2v_ray.demo import CHECKPOINT
from w2v_ray.errors import W2vRayError
from w2v_ray.schema import EMISSION_DTYPE, ENCODED, ERROR, SAMPLE_RATE_HZ
from w2v_ray.stages.encode import Encode
from w2v_ray.stages.encode_config import EncodeConfig

Array = npt.NDArray[Any]
Call = Callable[[], object]
Contender = Callable[[Sequence[Array]], Call]  # what has waves in hand and only waits for the clock

SIZES = ("base", "large", "bert")
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def write_checkpoint(size: str, folder: Path) -> None:
    """Random weights of that size and a processor with the demo's vocabulary, as both libraries load them."""
    torch.manual_seed(0)
    tokenizer = w2v_ray.Wav2Vec2CTCTokenizer.from_pretrained(CHECKPOINT)
    if size == "bert":
        config = w2v_ray.Wav2Vec2BertConfig(vocab_size=len(tokenizer))
        w2v_ray.Wav2Vec2BertForCTC(config).save_pretrained(folder)
        w2v_ray.Wav2Vec2BertProcessor(w2v_ray.SeamlessM4TFeatureExtractor(), tokenizer).save_pretrained(
            folder
        )
        return
    values: dict[str, Any] = {"vocab_size": len(tokenizer), **(LARGE if size == "large" else {})}
    w2v_ray.Wav2Vec2ForCTC(w2v_ray.Wav2Vec2Config.from_dict(values)).save_pretrained(folder)
    extractor = w2v_ray.Wav2Vec2FeatureExtractor(return_attention_mask=size == "large")
    w2v_ray.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)


def read_clips(folder: Path) -> list[Array]:
    """All clips of a folder, the shortest first."""
    waves = []
    for path in sorted(folder.glob("*.flac")):
        samples, rate = soundfile.read(path, dtype="float32")
        assert rate == SAMPLE_RATE_HZ, f"{path} has {rate} Hz"
        waves.append(samples)
    return sorted(waves, key=len)


def choose_clips(waves: Sequence[Array], number: int) -> list[Array]:
    """One clip of each of ``number`` equal shares of the lengths, in an order that is the same always."""
    rng = random.Random(0)
    bounds = [round(i * len(waves) / number) for i in range(number + 1)]
    chosen = [waves[rng.randrange(low, high)] for low, high in itertools.pairwise(bounds)]
    rng.shuffle(chosen)
    return chosen


def seconds_of(waves: Sequence[Array]) -> float:
    return sum(map(len, waves)) / SAMPLE_RATE_HZ


class Reference:
    """A model of transformers, and the three ways to run it."""

    def __init__(self, folder: Path, *, device: str, dtype: str, kernel: str) -> None:
        model: Any = transformers.AutoModelForCTC
        self._model = model.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation=kernel
        ).to(device)
        extractor: Any = transformers.AutoFeatureExtractor
        self._extract = extractor.from_pretrained(folder)
        make_pipeline: Any = transformers.pipeline
        self._pipeline = make_pipeline(
            "automatic-speech-recognition",
            model=self._model,
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
            feature_extractor=self._extract,
            device=device,
        )

    @torch.inference_mode()
    def log_probs(self, waves: Sequence[Array]) -> torch.Tensor:
        """(batch, frames, vocabulary) in float32, where the model is."""
        features = self._extract(
            list(waves), sampling_rate=SAMPLE_RATE_HZ, padding=True, return_tensors="pt"
        ).to(self._model.device, dtype=self._model.dtype)
        return torch.log_softmax(self._model(**features).logits, -1, dtype=torch.float32)

    def exact_log_probs(self, waves: Sequence[Array]) -> list[Array]:
        """Of each clip, alone: (frames, vocabulary), not rounded to float16."""
        return [self.log_probs([wave])[0].cpu().numpy() for wave in waves]

    def run_batches(self, waves: Sequence[Array], batch_size: int) -> list[Array]:
        return [
            self.log_probs(waves[i : i + batch_size]).to(torch.float16).cpu().numpy()
            for i in range(0, len(waves), batch_size)
        ]

    def pipeline(self, waves: Sequence[Array], batch_size: int) -> Call:
        return partial(self._pipeline, list(waves), batch_size=batch_size)

    def sorted_loop(self, waves: Sequence[Array], batch_size: int) -> Call:
        return lambda: self.run_batches(sorted(waves, key=len), batch_size)

    def one_by_one(self, waves: Sequence[Array]) -> Call:
        return partial(self.run_batches, waves, 1)


def table_of(waves: Sequence[Array]) -> pa.Table:
    """The segments of a shard, with what the encoder looks at."""
    samples = pa.array([wave.tobytes() for wave in waves], pa.large_binary())
    names = [f"clip{i}@0-{len(wave) * 1000 // SAMPLE_RATE_HZ}" for i, wave in enumerate(waves)]
    return pa.table({"segment_id": names, "samples": samples, "error": pa.nulls(len(waves), ERROR)})


def encoded(encode: Encode, waves: Sequence[Array]) -> list[Array]:
    """The log-probabilities of each clip: (frames, vocabulary)."""
    table = encode(table_of(waves))
    failed = [error["message"] for error in table.column("error").to_pylist() if error]
    if failed:
        raise AssertionError(f"{len(failed)} of {len(waves)} clips failed, the first: {failed[0]}")
    columns = (table.column(column.name).to_pylist() for column in ENCODED)
    return [np.frombuffer(b, EMISSION_DTYPE).reshape(n, -1) for b, n in zip(*columns, strict=True)]


def largest_difference(found: Sequence[Array], expected: Sequence[Array]) -> tuple[float, float]:
    """The largest of all values, and the largest beyond what rounding to float16 explains."""
    largest, beyond = 0.0, 0.0
    for ours, theirs in zip(found, expected, strict=True):
        # transformers pads an odd number of mel frames, and may give a last frame that is padding in part.
        theirs = theirs[: len(ours)] if len(theirs) == len(ours) + 1 else theirs
        if ours.shape != theirs.shape:
            raise AssertionError(f"log-probabilities have shape {ours.shape}, expected {theirs.shape}")
        apart = np.abs(ours.astype(np.float32) - theirs)
        half_step = np.spacing(np.abs(theirs).astype(np.float16)).astype(np.float32) / 2
        largest, beyond = max(largest, float(apart.max())), max(beyond, float((apart - half_step).max()))
    return round(largest, 5), beyond


def seconds(call: Call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def take_turns(calls: dict[str, Call], repeats: int) -> dict[str, list[float]]:
    """The seconds that each took, all of them in turn, again and again."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            taken[name].append(seconds(call))
    return taken


def compare_singles(
    theirs: Contender, ours: dict[str, Contender], waves: Sequence[Array], repeats: int
) -> dict[str, dict[str, float]]:
    """How many times as fast each of ours is on each clip alone: the worst of the clips, and the median."""
    ratios: dict[str, list[float]] = {name: [] for name in ours}
    clip_ms: dict[str, list[float]] = {name: [] for name in ("theirs", *ours)}
    for wave in waves:
        calls = {"theirs": theirs([wave]), **{name: make([wave]) for name, make in ours.items()}}
        for call in calls.values():
            call()
        taken = take_turns(calls, repeats)
        for name, taken_s in taken.items():
            clip_ms[name].append(statistics.median(taken_s) * 1e3)
        for name in ours:
            pairs = zip(taken["theirs"], taken[name], strict=True)
            ratios[name].append(statistics.median(a / b for a, b in pairs))
    return {
        name: {
            "worst": round(min(found), 3),
            "worst_clip_s": round(len(waves[found.index(min(found))]) / SAMPLE_RATE_HZ, 2),
            "median": round(statistics.median(found), 3),
            "median_clip_ms": round(statistics.median(clip_ms[name]), 2),
            "their_median_clip_ms": round(statistics.median(clip_ms["theirs"]), 2),
            "more_than_3_percent_slower": sum(ratio < 0.97 for ratio in found),
        }
        for name, found in ratios.items()
    }


def padding_share(waves: Sequence[Array], batch_size: int) -> float:
    lengths = [len(wave) for wave in waves]
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return round(1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches), 3)


def load_encoders(folder: Path, args: argparse.Namespace, refused: dict[str, str]) -> dict[str, Encode]:
    """The stage with each dtype; what is refused is told in ``refused``."""
    options = {"attn_implementation": args.attn_implementation} if args.attn_implementation else {}
    found = {}
    for dtype in args.dtypes:
        try:
            config = EncodeConfig(
                model=str(folder), device=args.device, dtype=dtype, num_threads=args.threads, **options
            )
            found[f"w2v_ray_{dtype}"] = Encode(config)
        except W2vRayError as error:
            refused[f"w2v_ray_{dtype}"] = str(error)
    return found


def load_references(folder: Path, args: argparse.Namespace, refused: dict[str, str]) -> dict[str, Reference]:
    """transformers with each attention kernel; what cannot be loaded is told in ``refused``."""
    found = {}
    for kernel in args.kernels:
        try:
            found[kernel] = Reference(folder, device=args.device, dtype=args.reference_dtype, kernel=kernel)
        except (ImportError, ValueError, OSError) as error:
            refused[f"transformers with {kernel}"] = str(error).strip().split("\n")[0]
    if not found:
        raise SystemExit(f"transformers has no attention kernel here: {refused}")
    return found


def choose_fastest(
    calls: dict[tuple[str, int], Call], refused: dict[str, str]
) -> dict[tuple[str, int], float]:
    """The seconds of the better of two runs of each, the fastest first; one that is alone need not run."""
    if len(calls) == 1:
        return dict.fromkeys(calls, 0.0)
    taken = {}
    for name, call in calls.items():
        try:
            taken[name] = min(seconds(call), seconds(call))
        except torch.OutOfMemoryError:
            refused[f"transformers with {name[0]}, batches of {name[1]}"] = "out of memory"
    if not taken:
        raise SystemExit(f"no batch of transformers fits: {refused}; give smaller --batch-sizes")
    return dict(sorted(taken.items(), key=lambda item: item[1]))


def measure(
    size: str, folder: Path, waves: Sequence[Array], everything: Sequence[Array], args: argparse.Namespace
) -> dict[str, Any]:
    """The figures of one size."""
    audio_s = seconds_of(waves)
    refused: dict[str, str] = {}
    references = load_references(folder, args, refused)
    exact = Reference(folder, device=args.device, dtype="float32", kernel="sdpa")
    expected = exact.exact_log_probs(waves)
    del exact
    encoders = load_encoders(folder, args, refused)
    differences = {}
    if args.reference_dtype != "float32":
        found = next(iter(references.values())).exact_log_probs(waves)
        differences[f"transformers_{args.reference_dtype}"] = largest_difference(found, expected)[0]
    for name, encode in encoders.items():
        differences[name], beyond = largest_difference(encoded(encode, waves), expected)
        if name == "w2v_ray_float32" and beyond > 1e-3:
            raise AssertionError(f"{size}: log-probabilities are {beyond:.2g} off, expected 1e-3 at most")

    pairs = list(itertools.product(references, args.batch_sizes))
    calls: dict[str, Call] = {}
    result: dict[str, Any] = {"padding_share": {}, "chosen": {}}
    for way, order in (("pipeline", waves), ("sorted_loop", sorted(waves, key=len))):
        tried = {(k, n): getattr(references[k], way)(waves, n) for k, n in pairs}
        taken = choose_fastest(tried, refused)
        kernel, batch_size = next(iter(taken))
        calls[way] = tried[kernel, batch_size]
        result["chosen"][way] = f"{kernel}, batches of {batch_size}"
        result["padding_share"][way] = padding_share(order, batch_size)
        if len(taken) > 1:
            tried_x = {f"{k}, {n}": round(audio_s / s, 1) for (k, n), s in taken.items()}
            result["chosen"][f"{way}_x_real_time"] = tried_x
        if way == "pipeline":
            best = references[kernel]
    calls["one_by_one"] = best.one_by_one(waves)
    ours: dict[str, Contender] = {
        name: lambda waves, encode=encode: partial(encode, table_of(waves))  # type: ignore[misc]
        for name, encode in encoders.items()
    }
    calls |= {name: make(waves) for name, make in ours.items()}
    all_s = take_turns(calls, args.repeats)
    rates = {name: audio_s / statistics.median(taken_s) for name, taken_s in all_s.items()}
    peers = [name for name in rates if name not in ours]
    result |= {
        "x_real_time": {name: round(rate, 2) for name, rate in rates.items()},
        "ratios": {name: {peer: round(rates[name] / rates[peer], 3) for peer in peers} for name in ours},
        "all_s": {name: [round(s, 3) for s in taken_s] for name, taken_s in all_s.items()},
        "largest_difference": differences,
        "not_measured": refused,
    }
    if args.single_repeats and ours:
        result["singles"] = compare_singles(best.one_by_one, ours, waves, args.single_repeats)
    if args.device != "cpu" and "w2v_ray_bfloat16" in encoders:
        encode = encoders["w2v_ray_bfloat16"]
        result["gpu"] = measure_gpu(
            folder,
            encode,
            everything,
            table_of=table_of,
            repeats=args.repeats,
            peak_tflops=args.peak_tflops,
        )
    return result


def machine(args: argparse.Namespace) -> dict[str, Any]:
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    cpu = {name.strip(): value.strip() for name, _, value in lines}
    flags = set(cpu.get("flags", "").split())
    return {
        "cpu": cpu.get("model name", "unknown"),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "device": args.device if args.device == "cpu" else torch.cuda.get_device_name(),
        "threads": args.threads,
        "versions": {lib.__name__: lib.__version__ for lib in (w2v_ray, transformers, torch)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    shared = Path(os.environ.get("W2V_RAY_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser.add_argument("--clips-folder", type=Path, default=shared / "libri" / "librispeech")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--clips", type=int, help="default: 24, on a GPU 96")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--single-repeats", type=int, default=5, help="of each clip alone; 0: leave it out")
    parser.add_argument("--threads", type=int, help="of torch; default: 2, on a GPU all cores")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--dtypes", nargs="+", help="of w2v_ray; default: float32 int8, on a GPU bfloat16")
    parser.add_argument("--attn-implementation", help="of w2v_ray; default: that of EncodeConfig")
    parser.add_argument("--reference-dtype", help="of transformers; default: float32, on a GPU bfloat16")
    parser.add_argument("--kernels", nargs="+", help="of transformers; default: sdpa, on a GPU three")
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="default: 8, on a GPU 8, 16 and 32")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak of a GPU not known here")
    args = parser.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(f"--device is {args.device!r} and torch sees no GPU here; leave it out for the CPU")
    if args.device == "cpu":
        usual = {"clips": 24, "threads": 2, "dtypes": ["float32", "int8"], "reference_dtype": "float32"}
        usual |= {"kernels": ["sdpa"], "batch_sizes": [8]}
    else:
        usual = {"clips": 96, "threads": os.cpu_count() or 1, "dtypes": ["bfloat16"]}
        usual |= {"reference_dtype": "bfloat16", "kernels": ["sdpa", "eager", "flash_attention_2"]}
        usual |= {"batch_sizes": [8, 16, 32]}
    vars(args).update({name: value for name, value in usual.items() if getattr(args, name) is None})

    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # or float32 on a GPU would be no float32 in convolutions
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    everything = read_clips(args.clips_folder)
    waves = choose_clips(everything, min(args.clips, len(everything)))
    found: dict[str, Any] = {
        "benchmark": "encode",
        **machine(args),
        "clips": len(waves),
        "audio_s": round(seconds_of(waves), 1),
        "shortest_and_longest_s": [round(seconds_of([f(waves, key=len)]), 2) for f in (min, max)],
        "repeats": args.repeats,
    }
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(size, Path(folder))
            found[size] = measure(size, Path(folder), waves, everything, args)
        gc.collect()  # the models of this size, before those of the next are loaded
        print(f"{size}: {json.dumps(found[size])}", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
