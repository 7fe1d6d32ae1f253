"""Checks of what is installed: Python, the packages that are required, the native module, the extras."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from typing import NamedTuple

from w2v_ray.doctor.finding import Finding, note, ok, problem, reason_of

__all__ = [
    "EXTRAS",
    "Extra",
    "check_beam_search",
    "check_columns",
    "check_extras",
    "check_kenlm",
    "check_python",
    "check_requirements",
    "check_torch",
]

_NAME = "w2v-ray"
_REINSTALL = "reinstall it: pip install --force-reinstall"


class Extra(NamedTuple):
    """An optional package: its module and distribution, the extra that installs it, and who needs it."""

    module: str
    distribution: str
    extra: str
    needed_by: str


EXTRAS = (
    Extra("flash_attn", "flash-attn", "flash", "--attn-implementation flash_attention_2"),
    Extra("sklearn", "scikit-learn", "speakers", "w2v-ray cluster"),
    Extra("scipy", "scipy", "speakers", "w2v-ray der"),
    Extra("faiss", "faiss-cpu", "search", "w2v-ray nearest --index faiss"),
    Extra("datasets", "datasets", "datasets", "w2v-ray export --format hf, and datasets as inputs"),
    Extra("h5py", "h5py", "tf", "checkpoints in tf_model.h5"),
    Extra("msgpack", "msgpack", "flax", "checkpoints in flax_model.msgpack"),
    Extra("pyctcdecode", "pyctcdecode", "pyctcdecode", "comparing with that decoder; no command"),
)


def check_python() -> Iterator[Finding]:
    """Whether this Python is one that the package takes."""
    from packaging.specifiers import SpecifierSet

    found = platform.python_version()
    try:
        wanted = metadata(_NAME)["Requires-Python"]
    except PackageNotFoundError:
        yield note("python", f"{found}; w2v-ray itself is not installed", "install it: pip install .")
        return
    text = f"{platform.python_implementation()} {found} where {wanted} is asked for"
    if SpecifierSet(wanted).contains(found, prereleases=True):
        yield ok("python", text)
    else:
        yield problem("python", text, f"install w2v-ray into a Python {wanted}")


def check_requirements() -> Iterator[Finding]:
    """Whether every package that is required is there, in a version that fits."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in requires(_NAME) or []]
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    fits = []
    for one in wanted:
        try:
            found = version(one.name)
        except PackageNotFoundError:
            if one.name != "kenlm":  # which has a check of its own
                yield problem("packages", f"{one.name} is not installed", f"pip install '{one}'")
            continue
        if one.specifier.contains(found, prereleases=True):
            fits.append(f"{one.name} {found}")
        else:
            text = f"{one.name} {found} where {one.specifier} is asked for"
            yield problem("packages", text, f"pip install '{one}'")
    if fits:
        yield ok("packages", f"{len(fits)} of {len(wanted)} as required: {', '.join(sorted(fits))}")


def check_torch() -> Iterator[Finding]:
    """Whether torch and torchaudio load, and are a pair."""
    found = []
    for name in ("torch", "torchaudio"):
        try:
            found.append(str(importlib.import_module(name).__version__))
        except Exception as error:  # a package that is broken raises anything
            fix = f"{_REINSTALL} 'torch==2.11.*' 'torchaudio==2.11.*', the two as a pair"
            yield problem("torch", f"{name} cannot be imported ({reason_of(error)})", fix)
            return
    text = f"torch {found[0]} and torchaudio {found[1]}"
    minors = [".".join(one.split(".")[:2]) for one in found]
    if minors[0] != minors[1]:
        yield problem("torch", f"{text} are no pair", f"pip install 'torchaudio=={minors[0]}.*'")
        return
    builds = {one.partition("+")[2] for one in found} - {""}
    if len(builds) > 1:
        fix = "install both from one index, with the same build behind the plus"
        yield problem("torch", f"{text} are of two builds", fix)
        return
    yield ok("torch", text)


def check_columns() -> Iterator[Finding]:
    """Whether NumPy and pyarrow load and understand each other."""
    try:
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"x": np.arange(3, dtype=np.float32)}), sink)
        back = pq.read_table(pa.BufferReader(sink.getvalue())).column("x").to_numpy()
    except Exception as error:
        text = f"NumPy and pyarrow do not work together ({reason_of(error)})"
        yield problem("columns", text, f"{_REINSTALL} numpy pyarrow")
        return
    text = f"numpy {np.__version__} and pyarrow {pa.__version__}"
    if back.tolist() != [0.0, 1.0, 2.0]:
        yield problem("columns", f"{text} change what is written", f"{_REINSTALL} numpy pyarrow")
    else:
        yield ok("columns", f"{text} write and read Parquet")


def check_beam_search() -> Iterator[Finding]:
    """Whether the one native module loads and searches."""
    try:
        import numpy as np

        from w2v_ray.text import build_ctcdecoder

        logits = np.log(np.array([[0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]], np.float32))
        text = build_ctcdecoder(["", "a", "b"]).decode(logits)
    except Exception as error:
        fix = "build it again with a C++17 compiler: pip install --force-reinstall --no-deps . in a clone"
        yield problem("beam search", f"the native module does not work ({reason_of(error)})", fix)
        return
    if text == "ab":
        yield ok("beam search", "the native module works")
    else:
        yield problem("beam search", f"the native module finds {text!r}, not 'ab'", f"{_REINSTALL} w2v-ray")


def check_kenlm() -> Iterator[Finding]:
    """Whether KenLM's own files can be read."""
    needed_by = "only language models in KenLM's binary format need it"
    try:
        importlib.import_module("kenlm")
    except Exception as error:
        text = f"kenlm cannot be imported ({reason_of(error)}); {needed_by}"
        yield note("kenlm", text, "pip install kenlm, which needs cmake and a C++ compiler")
        return
    yield ok("kenlm", _version("kenlm"))


def check_extras(extras: Sequence[Extra] = EXTRAS) -> Iterator[Finding]:
    """Which optional packages are there and load, and who needs them."""
    for one in extras:
        name = f"extra {one.extra}"
        install = f"pip install 'w2v-ray[{one.extra}]'" + " --no-build-isolation" * (one.extra == "flash")
        if find_spec(one.module) is None:
            yield note(name, f"{one.distribution} is not installed; for {one.needed_by}", install)
            continue
        try:
            importlib.import_module(one.module)
        except Exception as error:
            text = f"{one.distribution} is there but cannot be imported ({reason_of(error)})"
            yield problem(
                name, f"{text}; for {one.needed_by}", f"{_REINSTALL} {one.distribution}, or remove it"
            )
        else:
            yield ok(name, f"{one.distribution} {_version(one.distribution)}, for {one.needed_by}")


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "of an unknown version"
