"""The public surface: what ``w2v_ray`` offers, that each name is described, and that naming it is free."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import w2v_ray
from w2v_ray import errors

ROOT = Path(__file__).resolve().parents[1]


def test_names_are_sorted_and_listed_by_dir() -> None:
    assert w2v_ray.__all__ == sorted(w2v_ray.__all__)
    assert set(w2v_ray.__all__) <= set(dir(w2v_ray))


def test_every_exception_is_public() -> None:
    assert set(errors.__all__) <= set(w2v_ray.__all__)


@pytest.mark.parametrize("name", [name for name in w2v_ray.__all__ if not name.startswith("__")])
def test_every_name_loads_and_is_described(name: str) -> None:
    value = getattr(w2v_ray, name)
    assert value.__name__ == name
    docstring = (
        vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    )  # not an inherited one
    assert docstring
    assert not docstring.startswith(f"{name}("), (
        "a dataclass without a docstring describes itself by its fields"
    )


def test_type_checkers_and_the_late_import_know_the_same_names() -> None:
    (branch,) = [
        node
        for node in ast.parse((ROOT / "w2v_ray" / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.If)
    ]
    for_checkers = {
        alias.name: node.module
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert for_checkers == w2v_ray._MODULE_OF
    assert set(w2v_ray.__all__) == for_checkers.keys() | set(errors.__all__) | {"__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Wav2Vec3'"):
        _ = w2v_ray.Wav2Vec3


def test_importing_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, w2v_ray; w2v_ray.JobConfig; "
        "print(sorted({'torch', 'ray', 'pyarrow', 'numpy'} & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
