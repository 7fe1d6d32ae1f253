"""How fast this machine is with a model and audio: each stage by itself, and the whole on Ray.

Each name below is loaded when it is first used: only a measurement needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from w2v_ray.benchmark.report import BenchReport, EncoderReport, StageReport, WholeReport

__all__ = ["BenchReport", "EncoderReport", "StageReport", "WholeReport", "run_bench"]

if TYPE_CHECKING:
    from w2v_ray.benchmark.bench import run_bench
else:
    # Hidden from type checkers, which would take a module's __getattr__ to mean that any name exists.

    def __getattr__(name: str) -> object:
        if name != "run_bench":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from w2v_ray.benchmark.bench import run_bench

        return run_bench
