"""The code on the pages about speakers and turns runs, and the commands on them are those that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.speaker_outputs import embedded, embeddings_output, utterances
from w2v_ray.cli import _parser
from w2v_ray.rttm import Turn, rttm_line

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = ["speakers.md", "frames.md"]


def blocks(page: str, kind: str) -> list[str]:
    found = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"))
    return [text for name, text in found if name == kind]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_understood(page: str) -> None:
    lines = [line for block in blocks(page, "") for line in block.splitlines() if line]
    assert len(lines) >= 4
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "w2v-ray"
        _parser().parse_args(arguments)  # exits where it is not


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
    examples = blocks(page, "python")
    assert len(examples) >= 2
    for example in examples:
        exec(example, known)
    if page == "speakers.md":
        assert known["table"].num_rows == known["segments"].num_rows == 5
        assert known["drop"] == {"/in/1.wav", "/in/4.wav"}
    else:
        assert known["errors"].rate == 0
        assert known["report"].accuracy == 0.5
