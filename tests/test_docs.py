"""The documentation tells the truth: its links resolve and what it repeats equals the code."""

from __future__ import annotations

import re
import runpy
from importlib import import_module
from pathlib import Path

import pytest

import w2v_ray
from w2v_ray import demo
from w2v_ray.config import JobConfig
from w2v_ray.models.attention import KERNELS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BUILD = runpy.run_path(str(ROOT / "docs" / "build.py"))


def without_code(text: str) -> str:
    return re.sub(r"(?ms)^```.*?^```", "", text)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"(?m)^#+ (.+)$", without_code(text))
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    broken = []
    for link in LINK.findall(without_code(text)):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path
        if path and not target.exists():
            broken.append(link)
            continue
        if anchor and anchor not in anchors(target.read_text(encoding="utf-8") if path else text):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_resolves(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_and_a_broken_anchor_are_found() -> None:
    text = (
        "# Here\n[a](gone.md) [b](docs/index.md#gone) [c](#there) [d](https://x.org) [e](#here) [](LICENSE)"
    )
    assert broken_links(ROOT / "README.md", text) == ["gone.md", "docs/index.md#gone", "#there"]


def test_the_index_links_every_page() -> None:
    linked = set(LINK.findall((ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    assert {page.name for page in PAGES if page.parent == ROOT / "docs"} - {"index.md"} <= linked


@pytest.mark.parametrize("name", ["data-flow.md", "errors.md", "monitoring.md"])
def test_generated_parts_equal_the_code(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert BUILD["PART"].search(text), "the page has a generated part"
    assert BUILD["render"](text) == text, "run `make docs`"


def test_every_generated_part_is_shown_somewhere() -> None:
    shown = {name for page in PAGES for _, name, _ in BUILD["PART"].findall(page.read_text(encoding="utf-8"))}
    assert shown == BUILD["parts"]().keys()


def test_the_operations_page_names_every_setting_with_its_default() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"(?m)^\| `(\w+)` \| ([^|]+?) \|", text))
    job = JobConfig(inputs=("a",), output="b", model="c")
    defaults = {name: getattr(job, name) for name in JobConfig.__dataclass_fields__}
    defaults |= dict.fromkeys(["inputs", "output", "model"], "required")
    written = {"None": "null", "()": "[]", "False": "false", "True": "true"}  # as in a job file
    assert rows == {name: written.get(str(value), str(value)) for name, value in defaults.items()}


def test_the_readme_tree_names_what_exists() -> None:
    (tree,) = re.findall(
        r"(?ms)^## File tree\n+```text\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8")
    )
    folder, missing = Path(), []
    for line in tree.splitlines():
        name = line.split()[0]
        if name.endswith("/") and not line.startswith(" "):
            folder = Path(name)
        else:
            name = str(folder / name) if line.startswith(" ") else name
        if not (ROOT / name).exists():
            missing.append(name)
    assert missing == []
    package = [path for path in (ROOT / "w2v_ray").iterdir() if not path.name.startswith("__")]
    modules = {path.name for path in package if path.suffix == ".py"}
    folders = {f"{path.name}/" for path in package if path.is_dir()}
    assert [name for name in sorted(modules | folders) if name not in tree] == []


# Modules that are for users besides w2v_ray itself; each of their names stands once in the reference.
PUBLIC = ["benchmark", "embeddings", "exports", "inference", "metrics", "output", "rttm", "stages", "text"]


def test_the_reference_names_every_public_name_once() -> None:
    pages = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/api*.md"))]
    named = [name for page in pages for name in re.findall(r"(?m)^::: (\S+)$", page)]
    top = set(w2v_ray.__all__) - {"__version__"}
    expected = {f"w2v_ray.{name}" for name in top}
    for module in PUBLIC:
        names = import_module(f"w2v_ray.{module}").__all__
        expected |= {f"w2v_ray.{module}.{name}" for name in names if name not in top}
    assert sorted(named) == sorted(expected)


def test_the_attention_page_names_every_kernel() -> None:
    text = (ROOT / "docs" / "attention.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| `(\w+)` \|", text)
    assert sorted(rows) == sorted(["attn_implementation", *KERNELS])


def test_the_snippet_for_those_who_know_the_pipeline_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"(?ms)^```python\n(.*?)^```", text)
    code = code.replace("facebook/wav2vec2-base-960h", str(demo.CHECKPOINT))
    exec(code.replace("a.flac", str(demo.ARCHIVE / "00_0b57a6ed.flac")), {})
    assert "OFF ON" in capsys.readouterr().out
