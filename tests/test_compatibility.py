"""The table of docs/compatibility.md tells the truth: its files, tests and names exist."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
from pathlib import Path
from typing import NamedTuple

import pytest

import w2v_ray
from w2v_ray import inference
from w2v_ray.models.attention import KERNELS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
CHECKLIST = ROOT.parent / "shared" / "reference" / "CHECKLIST.md"
STATES = ("works", "differs", "not built", "nothing to build")
NUM_ROWS = 296

# `Name`, `Name.attribute`, `Name.method(argument=)` and `Name(argument=)`, with text behind them or not.
NAME = re.compile(r"([A-Z]\w+)(?:\.(\w+))?(?:\((\w+)=\))?(?!\w)")
# Rows that name no part of the package: how something is used, and what is fetched from elsewhere.
NAMELESS = re.compile(
    r"[\w-]+/|pip |BetterTransformer|datasets|position embed|causal|Conformer|cosine|torch\.|PreTrained"
    r"|pyctcdecode\.|batch_decode\("
)


class Row(NamedTuple):
    number: int
    item: str
    files: list[str]
    tests: list[str]
    state: str
    remark: str


def read_table(text: str) -> list[Row]:
    """The rows of a page whose table has the columns number, item, where, test, state."""
    rows = []
    for line in text.splitlines():
        if found := re.match(r"\| (\d+) \| `(.+?)` \| (.*?) \| (.*?) \| (.*) \|$", line):
            number, item, files, tests, state = found.groups()
            word, _, remark = state.partition(": ")
            rows.append(
                Row(
                    int(number),
                    item,
                    re.findall(r"`([^`]+)`", files),
                    re.findall(r"`([^`]+)`", tests),
                    word,
                    remark,
                )
            )
    return rows


ROWS = read_table(PAGE.read_text(encoding="utf-8"))
BUILT = [row for row in ROWS if row.state in ("works", "differs")]


@functools.cache
def functions_of(path: Path) -> set[str]:
    """The names of the test functions of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def missing_name(item: str) -> str | None:
    """What an item names and the package lacks; None where it lacks nothing."""
    if item.startswith("attn_implementation="):
        name = item.split('"')[1]
        return None if name in KERNELS else name
    if item.startswith("pipeline("):
        # not in w2v_ray itself, where the name is that of the module with the data flow
        return None if callable(getattr(inference, "pipeline", None)) else "pipeline"
    found = NAME.match(item)
    if found is None or not hasattr(w2v_ray, found[1]):
        return found[1] if found else item
    owner, (_, attribute, argument) = getattr(w2v_ray, found[1]), found.groups()
    called = owner
    if attribute is not None:
        is_field = dataclasses.is_dataclass(owner) and attribute in {
            f.name for f in dataclasses.fields(owner)
        }
        called = getattr(owner, attribute, None)
        if attribute == "__call__":  # type has one, so that asking for it finds it in every class
            called = next((vars(c)[attribute] for c in owner.__mro__ if attribute in vars(c)), None)
        if not is_field and not callable(called):
            return f"{found[1]}.{attribute}"
    if argument is not None and argument not in inspect.signature(called).parameters:
        return f"{argument} of {item}"
    return None


def options_of_loading(item: str) -> str | None:
    """The argument of from_pretrained that an item of that section names."""
    found = re.match(r"(torch_dtype|device_map|load_in_8bit)=", item)
    return found[1] if found else None


def test_the_table_has_every_row_in_order() -> None:
    assert [row.number for row in ROWS] == list(range(1, NUM_ROWS + 1))
    assert {row.state for row in ROWS} <= set(STATES)
    assert all(row.remark for row in ROWS if row.state != "works"), "a row that does not work says why"


def test_the_page_counts_its_rows() -> None:
    counts = [sum(row.state == state for row in ROWS) for state in STATES]
    sentence = "Of the {} rows {} work, {} differ, {} are not built, and for {} there is nothing to build."
    assert sentence.format(NUM_ROWS, *counts) in PAGE.read_text(encoding="utf-8")


def test_the_table_has_the_items_of_the_checklist() -> None:
    if not CHECKLIST.is_file():
        pytest.skip(f"no checklist at {CHECKLIST}")
    listed = re.findall(r"(?m)^\| (\d+) \| `(.+?)` \|", CHECKLIST.read_text(encoding="utf-8"))
    assert [(str(row.number), row.item) for row in ROWS] == listed


def test_every_built_row_names_a_file_and_a_test() -> None:
    assert [row.number for row in BUILT if not row.files or not row.tests] == []


def test_every_file_of_the_table_exists() -> None:
    assert sorted({name for row in ROWS for name in row.files if not (ROOT / name).is_file()}) == []


def test_every_test_of_the_table_exists() -> None:
    wrong = set()
    for name in {name for row in ROWS for name in row.tests}:
        path, _, function = name.partition("::")
        if not (ROOT / path).is_file() or function not in functions_of(ROOT / path):
            wrong.add(name)
    assert sorted(wrong) == []


def test_every_name_of_the_table_is_in_the_package() -> None:
    named = [row.item for row in BUILT if not NAMELESS.match(row.item) and not options_of_loading(row.item)]
    assert len(named) > 250
    assert [lack for item in named if (lack := missing_name(item)) is not None] == []


def test_every_option_of_loading_is_taken() -> None:
    options = {option for row in BUILT if (option := options_of_loading(row.item))}
    assert options == {"torch_dtype", "device_map", "load_in_8bit"}
    for name in ("Wav2Vec2ForCTC", "Wav2Vec2BertForCTC", "AutoModelForCTC"):
        taken = inspect.signature(getattr(w2v_ray, name).from_pretrained).parameters
        assert options <= taken.keys() or any(p.kind is p.VAR_KEYWORD for p in taken.values())


def test_what_is_not_built_is_not_in_the_package() -> None:
    absent = {row.item.split(".")[0].split("(")[0] for row in ROWS if row.state == "not built"}
    assert [name for name in absent if hasattr(w2v_ray, name)] == []


def test_a_missing_name_is_found() -> None:
    lacks = {
        "Wav2Vec2Nothing": "Wav2Vec2Nothing",
        "Wav2Vec2Config.no_option": "Wav2Vec2Config.no_option",
        "Wav2Vec2ForCTC.no_method": "Wav2Vec2ForCTC.no_method",
        "Wav2Vec2Config.__call__": "Wav2Vec2Config.__call__",
        "Wav2Vec2CTCTokenizer(no_argument=)": "no_argument of Wav2Vec2CTCTokenizer(no_argument=)",
        "Wav2Vec2ForCTC.forward(no_argument=)": "no_argument of Wav2Vec2ForCTC.forward(no_argument=)",
        "something": "something",
        "Wav2Vec2Config.vocab_size": None,
        "Wav2Vec2ForCTC.forward(labels=)": None,
        "Wav2Vec2CTCTokenizer.__call__": None,
    }
    assert {item: missing_name(item) for item in lacks} == lacks


def test_a_line_of_the_table_is_read() -> None:
    line = '| 7 | `a.b(c="d")` | `x.py`, `y.py` | `tests/t.py::f` | differs: because: it is so |'
    (row,) = read_table(f"| # | item |\n|---|---|\n{line}\n")
    assert row == Row(7, 'a.b(c="d")', ["x.py", "y.py"], ["tests/t.py::f"], "differs", "because: it is so")
