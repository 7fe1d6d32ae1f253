"""The code on the pages about speakers and turns, speakers.md and frames.md, runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.speaker_outputs import embedded, embeddings_output, utterances
from w2v_ray.rttm import Turn, rttm_line

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = ["speakers.md", "frames.md"]


def examples_of(page: str) -> list[str]:
    return re.findall(r"(?ms)^```python\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES)
def test_every_example_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    vectors = utterances([0, 0, 1, 2, 2], noise=0.02)
    rows = {f"/in/{n}.wav": [embedded(0, 2, vector)] for n, vector in enumerate(vectors)}
    embeddings_output(tmp_path / "out", rows)
    for name in ("reference", "hypothesis"):
        (tmp_path / f"{name}.rttm").write_text(rttm_line("a", Turn("x", 0, 5)))
    known: dict[str, Any] = {
        "scores": np.array([0.9, 0.1, 0.4]),
        "targets": [True, False, True],
        "references": ["yes", "no"],
        "predictions": ["yes", None],
    }
    examples = examples_of(page)
    assert len(examples) >= 2
    for example in examples:
        exec(example, known)
    if page == "speakers.md":
        assert known["table"].num_rows == known["segments"].num_rows == 5
        assert known["drop"] == {"/in/1.wav", "/in/4.wav"}
    else:
        assert known["errors"].rate == 0
        assert known["report"].accuracy == 0.5
