"""A driver that takes its time: a command of its own to be killed, with a Ray of its own.

``python slow_driver.py GO MODEL INPUT OUTPUT [INPUT OUTPUT ...]`` starts Ray, waits for the file GO, and
transcribes each INPUT to its OUTPUT, the one after the other, with a file GO.N.done after each. It takes more
options of `w2v-ray transcribe` from SLOW_OPTIONS.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from w2v_ray import pipeline, stages
from w2v_ray.cli import main

SHARD_SECONDS = 10.0


def slow(base: type) -> type:
    """An encoder that needs at least SLOW_S for a shard, 0.4 s, so that a short run can be met on its way.

    With SLOW_ON_CPU it encodes there, on machines that have GPUs only in name. With SLOW_UNTIL, the name of a
    file, each does one shard and then waits until the file is there.
    """
    seconds, on_cpu = float(os.environ.get("SLOW_S", "0.4")), "SLOW_ON_CPU" in os.environ
    file = os.environ.get("SLOW_UNTIL")

    class Slow(base):  # type: ignore[misc]
        def __init__(self, config: Any, **options: Any) -> None:
            super().__init__(replace(config, device="cpu", num_threads=1) if on_cpu else config, **options)
            self._is_first = True

        def __call__(self, table: pa.Table) -> pa.Table:
            while file and not self._is_first and not Path(file).exists():
                time.sleep(0.1)
            self._is_first = False
            time.sleep(seconds)
            return super().__call__(table)

    return Slow


def drive(go: str, model: str, *places: str) -> int:
    stages.Encode = slow(stages.Encode)  # type: ignore[misc]
    # One thread in all runs: how sums are split between threads shows in the last digits of a confidence.
    settings: list[Any] = ["--model", model, "--shard-seconds", str(SHARD_SECONDS), "--encoder-threads", "1"]
    settings += os.environ.get("SLOW_OPTIONS", "").split()
    with pipeline.running_ray():
        while not Path(go).exists():
            time.sleep(0.02)
        for number, (source, output) in enumerate(zip(places[::2], places[1::2], strict=True)):
            if code := main(["transcribe", source, "--output", output, *settings]):
                return code
            Path(f"{go}.{number}.done").touch()
    return 0


if __name__ == "__main__":
    sys.exit(drive(*sys.argv[1:]))
