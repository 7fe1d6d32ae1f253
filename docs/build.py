"""Rewrites the parts of docs/*.md that repeat what the code says: columns, exceptions and metrics.

    python docs/build.py

A part stands between ``<!-- generated: NAME -->`` and ``<!-- /generated -->``. The modules that are
repeated are run as files, so that this needs pyarrow alone and never the installed package.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- /generated -->)", re.DOTALL)


def column_table(fields: Any) -> str:
    """One line per column: ``fields`` is anything that yields pyarrow fields."""
    rows = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    for field in fields:
        notes = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        rows.append(
            f"| `{field.name}` | `{field.type}` | {notes.get('unit', '')} | {notes.get('meaning', '')} |"
        )
    return "\n".join(rows)


def metric_table(metrics: Any) -> str:
    """One line per metric."""
    rows = ["| metric | kind | labels | unit | meaning |", "|---|---|---|---|---|"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.unit} | {metric.meaning} |")
    return "\n".join(rows)


def parts() -> dict[str, str]:
    """Every generated part: its name in the pages, and its text."""
    schema = runpy.run_path(str(ROOT / "w2v_ray" / "schema.py"))
    errors = runpy.run_path(str(ROOT / "w2v_ray" / "errors.py"))
    metrics = runpy.run_path(str(ROOT / "w2v_ray" / "metric_names.py"))
    tree = re.search(r"(?m)^(?:    .*\n)+", errors["__doc__"])
    assert tree, "the docstring of errors.py draws the tree, indented by four spaces"
    columns = ["ITEM", "READ", "DECODED", "SEGMENT", "ENCODED", "TOP_TOKENS", "KEPT", "TRANSCRIPT", "REJECT"]
    columns += ["ERROR", "WORD", "ALIGNMENT", "ALIGNED_WORD", "EMBEDDING", "LABEL", "FRAME", "TURN"]
    meanings = [f"| `{name}` | {errors[name].__doc__} |" for name in errors["__all__"]]
    return {name.lower(): column_table(schema[name]) for name in columns} | {
        "error_tree": "```text\n" + re.sub(r"(?m)^    ", "", tree[0]) + "```",
        "metrics": metric_table(metrics["METRICS"]),
        "error_classes": "\n".join(["| class | when |", "|---|---|", *meanings]),
    }


def render(page: str) -> str:
    """``page`` with every generated part as the code has it now."""
    texts = parts()
    return PART.sub(lambda match: f"{match[1]}{texts[match[2]]}\n{match[3]}", page)


def main() -> None:
    for path in sorted((ROOT / "docs").glob("*.md")):
        old = path.read_text(encoding="utf-8")
        new = render(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(f"rewrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
