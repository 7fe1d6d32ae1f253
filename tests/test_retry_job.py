"""Rejected items done again on a real Ray: what was mended becomes rows, what is broken is rejected again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.made_outputs import rows_of, write_speech
from w2v_ray.cli import main
from w2v_ray.output import audit, current_rows


def rows(output: Path, table: str) -> list[dict[str, Any]]:
    return [row for part in current_rows(str(output), table) for row in part.to_pylist()]


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_what_was_mended_becomes_rows_and_what_is_broken_is_rejected_again(
    ray_session: None, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    write_speech(folder, ["good", "cut"], broken=["broken"])
    (folder / "manifest.jsonl").unlink()  # the files themselves are the input, with their own ids
    whole = (folder / "cut.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    settings = ["--model", str(tiny_checkpoint), "--on-truncated", "reject", "--encoder-threads", "1"]
    assert main(["transcribe", str(folder), "--output", str(output), *settings]) == 0
    assert {row["uri"].rpartition("/")[2]: row["error_class"] for row in rows_of(output, "rejects")} == {
        "broken.flac": "DecodeError",
        "cut.flac": "TruncatedError",
    }
    (folder / "cut.flac").write_bytes(whole)
    before = files(tmp_path)
    capsys.readouterr()

    assert main(["retry-errors", str(output), "--dry-run"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        f"retry-errors of transcribe {tiny_checkpoint}",
        "again 2 of 3 items: 1 DecodeError, 1 TruncatedError",
        "1 recording changed since and taken as the file is now, whole",
        "1 published, 2 to do (2 new)",
        "nothing was written; leave out --dry-run to run it",
    ):
        assert text in shown, shown
    assert main(["retry-errors", str(output), "--dry-run", "--json", "--reason", "TruncatedError"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["retried"], told["num_changed"], told["num_mended"]) == ({"TruncatedError": 1}, 1, 1)
    assert main(["retry-errors", str(output), "--dry-run", "--stage", "encode"]) == 0
    assert "again none of 3 items" in " ".join(capsys.readouterr().out.split())
    assert main(["retry-errors", str(output), "--rate", "3"]) == 2
    assert "give --dry-run too" in capsys.readouterr().err
    assert files(tmp_path) == before

    assert main(["retry-errors", str(output)]) == 0
    assert "planned 2 rejected items again: 1 DecodeError, 1 TruncatedError" in capsys.readouterr().err
    after = files(tmp_path)
    assert {name: after[name] for name in before} == before, "what was published stays as it was"
    found = {row["uri"].rpartition("/")[2]: row for row in rows(output, "transcripts")}
    assert found.keys() == {"good.flac", "cut.flac"}
    assert found["cut.flac"]["duration_s"] == pytest.approx(2.0)
    assert found["cut.flac"]["decode_status"] == found["good.flac"]["decode_status"]
    (reject,) = rows(output, "rejects")
    assert (reject["uri"].rpartition("/")[2], reject["error_class"], reject["attempt"]) == (
        "broken.flac",
        "DecodeError",
        2,
    )
    proved = audit(str(output))
    assert (proved.is_complete, proved.num_items_ok, proved.num_items_rejected) == (True, 2, 1)
    assert proved.num_items_superseded == 2
    assert main(["audit", str(output)]) == 0
    capsys.readouterr()
    assert main(["retry-errors", str(output), "--reason", "TruncatedError"]) == 0
    assert "planned 0 rejected items again\n" in capsys.readouterr().err
