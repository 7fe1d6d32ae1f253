"""Checks of what models compute on: GPUs and their driver, the CPU's numbers, attention kernels."""

from __future__ import annotations

import glob
import importlib
import math
import os
import re
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from w2v_ray.doctor.finding import Finding, note, ok, problem, reason_of

__all__ = ["check_attention", "check_cpu", "check_gpus"]

_TRIES = 7
_ROWS, _INPUTS, _OUTPUTS = 128, 768, 3072  # of a product in the layers of a base model


def check_gpus() -> Iterator[Finding]:
    """Whether torch can compute on the GPUs that the driver shows."""
    import torch

    seen, driver, complaint = _driver()
    build = torch.version.cuda
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available:
        for index in range(torch.cuda.device_count()):
            yield _gpu(torch, index, f"CUDA {build}{driver}")
        return
    if complaint:
        fix = "load the driver again, or start the container with its GPUs (docker run --gpus all)"
        yield problem("gpu", complaint, fix)
    elif not seen:
        yield ok("gpu", f"none here; encoders run on the CPU (torch is built for CUDA {build or 'none'})")
    elif build is None:
        text = f"{seen} are here, and torch {torch.__version__} is built without CUDA"
        yield problem("gpu", text, "install torch and torchaudio from an index with CUDA builds")
    elif (shown := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None and shown.strip() in ("", "-1"):
        yield note("gpu", f"{seen} are hidden by CUDA_VISIBLE_DEVICES={shown!r}", "unset it to use them")
    else:
        why = f": {' '.join(str(said[-1].message).split())[:300]}" if said else ""
        text = f"{seen} are here{driver}, and torch, built for CUDA {build}, cannot use them{why}"
        fix = f"install a driver that knows CUDA {build}, or torch and torchaudio built for the driver's CUDA"
        yield problem("gpu", text, fix)


def _driver() -> tuple[str, str, str]:
    """The GPUs that are seen beside torch, what the driver says of itself, and what is wrong with it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        devices = glob.glob("/dev/nvidia[0-9]*")
        return (f"{len(devices)} GPUs" if devices else ""), "", ""
    try:
        ran = subprocess.run([tool], capture_output=True, text=True, timeout=30, check=False)
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", "", f"nvidia-smi does not run ({reason_of(error)})"
    if ran.returncode:
        words = " ".join((ran.stdout + ran.stderr).split())[:200]
        return "", "", f"nvidia-smi fails: {words}"
    count = listed.stdout.count("UUID")
    version = re.search(r"Driver Version:\s*([\d.]+)", ran.stdout)
    newest = re.search(r"CUDA Version:\s*([\d.]+)", ran.stdout)
    driver = f", driver {version[1]}" if version else ""
    driver += f" for CUDA up to {newest[1]}" if newest else ""
    return (f"{count} GPUs" if count else ""), driver, ""


def _gpu(torch: Any, index: int, versions: str) -> Finding:
    try:
        name = torch.cuda.get_device_name(index)
        major, minor = torch.cuda.get_device_capability(index)
        free, total = torch.cuda.mem_get_info(index)
        ones = torch.ones(64, 64, device=f"cuda:{index}", dtype=torch.float16)
        total_of_ones = float((ones @ ones).sum())
    except Exception as error:
        fix = "install a torch built for this GPU, or take it out of CUDA_VISIBLE_DEVICES if it is broken"
        return problem("gpu", f"GPU {index} cannot compute, {versions} ({reason_of(error)})", fix)
    text = (
        f"GPU {index}: {name}, sm_{major}{minor}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, {versions}; "
        "float16 halves the memory of the model"
    )
    if total_of_ones != 64.0**3:
        fix = "take this GPU out of CUDA_VISIBLE_DEVICES and have it tested"
        return problem("gpu", f"GPU {index} ({name}) computes wrong sums", fix)
    if free < 4e9 < total:
        return note("gpu", text, "see with nvidia-smi who else uses it")
    return ok("gpu", text)


def check_cpu() -> Iterator[Finding]:
    """Which instructions the CPU has, and how fast a layer's product is in each type of numbers."""
    import torch

    from w2v_ray.models.products import has_fast_int8, make_product

    cpu: Any = torch.cpu
    asked = {
        "VNNI": "_is_vnni_supported",
        "BF16": "_is_avx512_bf16_supported",
        "AMX": "_is_amx_tile_supported",
    }
    has = [name for name, function in asked.items() if getattr(cpu, function, bool)()]
    matrix = torch.randn(_OUTPUTS, _INPUTS)
    rows = torch.randn(_ROWS, _INPUTS)
    products = {
        "float32": (partial(make_product, matrix), rows),
        "bfloat16": (partial(make_product, matrix.bfloat16()), rows.bfloat16()),
    }
    fast_int8 = has_fast_int8(torch.device("cpu"))
    if fast_int8:
        products["int8"] = partial(make_product, matrix, int8=True), rows
    took_s = dict.fromkeys(products, math.inf)
    with torch.inference_mode():
        made = {name: (make(None), given) for name, (make, given) in products.items()}
        for _ in range(_TRIES):  # in turn, so that what else goes on here slows down all of them
            for name, (product, given) in made.items():
                began = time.perf_counter()
                product(given)
                took_s[name] = min(took_s[name], time.perf_counter() - began)
    speeds = [f"{name} {took_s['float32'] / took_s[name]:.1f} times" for name in took_s if name != "float32"]
    onednn = "oneDNN" if torch._C._has_mkldnn else "no oneDNN"
    text = (
        f"{torch.backends.cpu.get_cpu_capability()}, {', '.join(has) or 'no VNNI, BF16 or AMX'}, {onednn}; a "
        f"product of a base model's layer: {', '.join(speeds)} as fast as float32"
    )
    if not fast_int8:
        text += ", int8 has no instructions here"
    best = min(took_s, key=lambda name: took_s[name])
    yield ok("cpu", f"{text}; fastest here: --dtype {best}")


def check_attention(model: str | None = None, *, revision: str | None = None) -> Iterator[Finding]:
    """Which attention kernels are there, and what `auto` would choose for a model."""
    import torch

    from w2v_ray.models.attention import KERNELS, adds_bias, choose_attention

    broken = None
    names = [name for name in KERNELS if name != "flash_attention_2"]
    if find_spec("flash_attn") is not None:
        try:
            importlib.import_module("flash_attn")
            names.append("flash_attention_2")
        except Exception as error:
            broken = f"flash_attention_2 cannot be imported ({reason_of(error)})"
    bias = False
    if model is not None:
        from w2v_ray.errors import CheckpointError
        from w2v_ray.hub import checkpoint_file, read_json_file

        try:
            path = checkpoint_file(model, "config.json", revision=revision)
            assert path is not None
            config = read_json_file(path)
        except CheckpointError as error:
            yield problem(
                "model", str(error), "give a folder with config.json, or a hub id that can be reached"
            )
            return
        bias = adds_bias(SimpleNamespace(**config))
        yield ok("model", f"{model}: {config.get('model_type')}, {(config.get('architectures') or ['?'])[0]}")
    has_gpu = torch.cuda.is_available()
    _, reason = choose_attention(
        "auto",
        bias=bias,
        dtype=torch.float16 if has_gpu else torch.float32,
        device="cuda" if has_gpu else "cpu",
    )
    text = f"{', '.join(names)}; auto takes {reason}"
    if broken is None:
        yield ok("attention", text)
    else:
        again = "pip install --force-reinstall --no-build-isolation flash-attn"
        fix = f"build flash-attn for this torch, {again}, or remove it"
        yield problem("attention", f"{text}; {broken}", fix)
