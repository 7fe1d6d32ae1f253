"""Time and peak memory of loading wav2vec2-large-sized random weights, here and in transformers.

Each load is a process of its own, in turn, so that neither profits from what the other has imported;
the file is read once before, so that both find it in the page cache. The clock runs from the call of
from_pretrained until every weight has been read once, as both map the file and could leave the reading
to the first batch. Memory is the largest resident size of the process less what it was before the call.

    python benchmarks/loading.py                    # float32, as stored
    python benchmarks/loading.py --dtype float16    # cast while loading
    python benchmarks/loading.py --format bin       # pytorch_model.bin
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LOADERS = ("w2v_ray", "transformers")
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}


def write_checkpoint(folder: Path, file_format: str) -> None:
    """wav2vec2-large-960h-lv60-self's shape with random weights: 315 million of them."""
    import torch

    from w2v_ray import Wav2Vec2Config, Wav2Vec2ForCTC

    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(Wav2Vec2Config.from_dict({**LARGE, "model_type": "wav2vec2"}))
    model.save_pretrained(folder)
    if file_format == "bin":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()


def resident_mib(key: str) -> float:
    """VmRSS, what is resident now, or VmHWM, the most that has been since the mark was last set back."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1]) / 1024


def load_once(loader: str, folder: str, dtype: str, load_in_8bit: bool) -> None:
    """Loads in this process and prints one JSON line."""
    import torch

    if loader == "w2v_ray":
        from w2v_ray import Wav2Vec2ForCTC
    else:
        from transformers import Wav2Vec2ForCTC
    options = {"load_in_8bit": True} if load_in_8bit else {}
    Path("/proc/self/clear_refs").write_text("5")  # what the imports took does not count
    before = resident_mib("VmRSS")
    began = time.perf_counter()
    model = Wav2Vec2ForCTC.from_pretrained(folder, dtype=getattr(torch, dtype), **options)
    loaded_s = time.perf_counter() - began
    checksum = sum(float(weight.float().sum()) for weight in model.state_dict().values())
    result = {
        "s": time.perf_counter() - began,
        "from_pretrained_s": loaded_s,
        "peak_mib": resident_mib("VmHWM") - before,
        "checksum": checksum,
    }
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--format", choices=("safetensors", "bin"), default="safetensors")
    parser.add_argument("--load-in-8bit", action="store_true", help="w2v_ray alone")
    parser.add_argument("--once", nargs=2, metavar=("LOADER", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        load_once(*args.once, args.dtype, args.load_in_8bit)
        return

    loaders = LOADERS[:1] if args.load_in_8bit else LOADERS
    runs: dict[str, list[dict[str, float]]] = {loader: [] for loader in loaders}
    with tempfile.TemporaryDirectory() as scratch:
        write_checkpoint(Path(scratch), args.format)
        for file in Path(scratch).iterdir():
            file.read_bytes()
        again = [sys.executable, __file__, "--dtype", args.dtype, *["--load-in-8bit"] * args.load_in_8bit]
        for _ in range(args.repeats):
            for loader in loaders:
                done = subprocess.run(
                    [*again, "--once", loader, scratch],
                    check=True,
                    capture_output=True,
                    text=True,
                    env={**os.environ, "HF_HUB_OFFLINE": "1"},
                )
                runs[loader].append(json.loads(done.stdout.splitlines()[-1]))
    median = {
        loader: {
            key: round(statistics.median(run[key] for run in runs[loader]), 3) for key in runs[loader][0]
        }
        for loader in loaders
    }
    ratios = {
        f"{key}_ratio": round(median[LOADERS[0]][key] / median[loaders[-1]][key], 3)
        for key in ("s", "from_pretrained_s", "peak_mib")
    }
    print(
        json.dumps(
            {
                "benchmark": "loading",
                "format": args.format,
                "dtype": args.dtype,
                "load_in_8bit": args.load_in_8bit,
                "repeats": args.repeats,
                **median,
                **(ratios if len(loaders) > 1 else {}),
                "all_s": {loader: [round(run["s"], 3) for run in runs[loader]] for loader in loaders},
            }
        )
    )


if __name__ == "__main__":
    main()
