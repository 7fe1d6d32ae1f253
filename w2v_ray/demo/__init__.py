"""The checkpoint and the archive that come with the package, and what a demo run made of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from w2v_ray.errors import OutputError

__all__ = ["ARCHIVE", "CHECKPOINT", "INPUTS", "LANGUAGE_MODEL", "clear", "redecoded", "results"]

CHECKPOINT = Path(__file__).parent / "checkpoint"
LANGUAGE_MODEL = Path(__file__).parent / "lm.arpa"
ARCHIVE = Path(__file__).parent / "archive"
INPUTS = (str(ARCHIVE / "manifest.jsonl"), str(ARCHIVE / "more.tar"))


def clear(output: str) -> None:
    """Removes what an earlier demo left in ``output``.

    Raises:
        OutputError: The folder holds something else.
    """
    folder = Path(output)
    if not folder.exists():
        return
    own = {"_plan", "_tmp", "transcripts", "rejects", "log_probs", Path(redecoded(output)).name}
    strangers = {path.name for path in folder.iterdir()} - own
    if strangers or not (folder / "_plan" / "job.json").is_file():
        raise OutputError(f"{output!r} exists and is not a demo's output; name another folder with --output")
    shutil.rmtree(folder)


def redecoded(output: str) -> str:
    """The output inside a demo's that is decoded with the language model."""
    return str(Path(output) / "with-lm")


def results(output: str) -> Iterator[tuple[str, str, float | None]]:
    """What was said, what was recognised and how sure, for each recording of a demo's output, in order."""
    table = pq.read_table(Path(output) / "transcripts")
    rows = table.sort_by([("uri", "ascending"), ("recording_id", "ascending"), ("start_s", "ascending")])
    for row in rows.select(["metadata", "text", "confidence"]).to_pylist():
        yield json.loads(row["metadata"])["text"], row["text"], row["confidence"]
