"""What is here and what is amiss, check by check: what is installed, the machine, Ray, the places of a job.

A check yields findings. One that fails by itself is a finding too, and the others go on.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

from w2v_ray.doctor.finding import Finding, problem, reason_of

__all__ = ["Check", "Finding", "checks", "diagnose"]

Check = Callable[[], Iterable[Finding]]
"""Looks at one thing and says what it found."""


def checks(
    places: Iterable[str] = (),
    *,
    write: bool = False,
    address: str | None = None,
    model: str | None = None,
    revision: str | None = None,
) -> dict[str, Check]:
    """The checks by name, in the order in which they are made.

    Args:
        places: Paths and URLs that have to be readable.
        write: Whether they have to be writable too; a small file is written and removed.
        address: Of a Ray cluster to join; None: that of RAY_ADDRESS, or none.
        model: Checkpoint folder or hub id whose attention kernel is told; None: of a model without a bias.
        revision: Branch, tag or commit of a hub id.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    found: dict[str, Check] = {
        "python": _late("packages", "check_python"),
        "packages": _late("packages", "check_requirements"),
        "torch": _late("packages", "check_torch"),
        "columns": _late("packages", "check_columns"),
        "beam search": _late("packages", "check_beam_search"),
        "kenlm": _late("packages", "check_kenlm"),
        "codecs": _late("codecs", "check_codecs"),
        "gpu": _late("devices", "check_gpus"),
        "cpu": _late("devices", "check_cpu"),
        "attention": _late("devices", "check_attention", model, revision=revision),
        "extras": _late("packages", "check_extras"),
        "open files": _late("limits", "check_open_files"),
        "shared memory": _late("limits", "check_shared_memory"),
        "ray folder": _late("limits", "check_ray_folder"),
        "memory": _late("limits", "check_memory"),
        "cpus": _late("limits", "check_cpus"),
        "cache": _late("places", "check_caches"),
        "ray": _late("cluster", "check_ray", address),
    }
    if address is not None:
        found["cluster"] = _late("cluster", "check_cluster", address)
    for uri in places:
        found[f"place {uri}"] = _late("places", "check_place", uri, write=write)
    return found


def _late(module: str, function: str, *args: Any, **options: Any) -> Check:
    """A check that imports what it needs when it is made, so that a broken package breaks it alone."""

    def check() -> Iterable[Finding]:
        found: Iterable[Finding] = getattr(import_module(f"w2v_ray.doctor.{module}"), function)(
            *args, **options
        )
        return found

    return check


def diagnose(asked: dict[str, Check]) -> Iterator[Finding]:
    """Makes the checks, one after the other, and yields what each found as soon as it is done."""
    for name, check in asked.items():
        findings: list[Finding] = []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for finding in check():
                    findings.append(finding)
        except Exception as error:  # a broken package raises anything
            fix = "mend what the line names; if it names nothing, report it with the versions above"
            findings.append(
                problem(
                    name.split(" ")[0] if name.startswith("place ") else name,
                    f"the check failed ({reason_of(error)})",
                    fix,
                )
            )
        yield from findings
