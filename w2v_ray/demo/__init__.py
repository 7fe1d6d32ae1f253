"""The checkpoints and the archive that come with the package, and what a demo run made of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from w2v_ray.errors import OutputError

__all__ = [
    "ARCHIVE",
    "CHECKPOINT",
    "HEADS",
    "INPUTS",
    "LANGUAGE_MODEL",
    "WORDS",
    "clear",
    "held_out",
    "keyword_checkpoint",
    "keywords",
    "named_words",
    "redecoded",
    "results",
    "speaker_checkpoint",
    "speakers",
    "with_encoder",
]

CHECKPOINT = Path(__file__).parent / "checkpoint"
LANGUAGE_MODEL = Path(__file__).parent / "lm.arpa"
HEADS = Path(__file__).parent / "heads"
ARCHIVE = Path(__file__).parent / "archive"
WORDS = Path(__file__).parent / "words.tar"
INPUTS = (str(ARCHIVE / "manifest.jsonl"), str(ARCHIVE / "more.tar"))


def speaker_checkpoint() -> Path:
    """The folder of a checkpoint that embeds speakers, on the encoder of ``CHECKPOINT``.

    Raises:
        OutputError: As of `with_encoder`.
    """
    return with_encoder(HEADS / "speaker")


def keyword_checkpoint() -> Path:
    """The folder of a checkpoint that says which of 35 words a recording is, on that encoder too.

    Raises:
        OutputError: As of `with_encoder`.
    """
    return with_encoder(HEADS / "keywords")


def with_encoder(head: Path) -> Path:
    """A whole checkpoint of a head and the encoder of ``CHECKPOINT``, put together once for all processes.

    It lies in ``$W2V_RAY_CACHE``, or in the user's cache folder, under a name that its contents give.

    Args:
        head: A folder with the ``config.json`` of the whole model and the weights that are not the
            encoder's, ``head.safetensors``.

    Raises:
        OutputError: The cache cannot be written.
    """
    from w2v_ray.text.language_model import cache_folder

    sources = [
        head / "config.json",
        head / "head.safetensors",
        CHECKPOINT / "model.safetensors",
        CHECKPOINT / "preprocessor_config.json",
    ]
    digest = hashlib.sha256()
    for path in sources:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    folder = cache_folder() / "demo"
    target = folder / f"{head.name}-{digest.hexdigest()[:16]}"
    if target.is_dir():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=folder))
        try:
            _put_together(head, temporary)
            temporary.chmod(0o755)
            os.rename(temporary, target)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not (isinstance(error, OSError) and target.is_dir()):  # another process was the first
                raise
    except OSError as error:
        raise OutputError(
            f"the demo checkpoint cannot be written to {str(folder)!r} ({error}); "
            "set W2V_RAY_CACHE to a folder with room"
        ) from error
    return target


def _put_together(head: Path, folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(CHECKPOINT / "model.safetensors")
    encoder = {name: weight for name, weight in weights.items() if name.startswith("wav2vec2.")}
    whole = encoder | load_file(head / "head.safetensors")
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(head / "config.json", folder / "config.json")
    # Of the transcription checkpoint's settings all but the class that pairs them with a tokenizer.
    settings = json.loads((CHECKPOINT / "preprocessor_config.json").read_text())
    del settings["processor_class"]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def clear(output: str) -> None:
    """Removes what an earlier demo left in ``output``.

    Raises:
        OutputError: The folder holds something else.
    """
    folder = Path(output)
    if not folder.exists():
        return
    own = {"_plan", "_runs", "_tmp", "transcripts", "embeddings", "rejects", "log_probs", "report.html"}
    own |= {Path(redecoded(output)).name, Path(keywords(output)).name}
    strangers = {path.name for path in folder.iterdir()} - own
    if strangers or not (folder / "_plan" / "job.json").is_file():
        raise OutputError(f"{output!r} exists and is not a demo's output; name another folder with --output")
    shutil.rmtree(folder)


def redecoded(output: str) -> str:
    """The output inside a demo's that is decoded with the language model."""
    return str(Path(output) / "with-lm")


def keywords(output: str) -> str:
    """The output inside a demo's with the labels of single words."""
    return str(Path(output) / "keywords")


def speakers(output: str) -> list[tuple[str, np.ndarray]]:
    """Who speaks in each recording of a demo's output, and the unit vector of it."""
    rows = pq.read_table(Path(output) / "embeddings", columns=["recording_id", "embedding"]).to_pylist()
    return [(_speaker_of(row["recording_id"]), np.array(row["embedding"])) for row in rows]


def named_words(output: str) -> list[tuple[str, str, float]]:
    """Of each recording of single words what was said, the likeliest label, and its score."""
    rows = pq.read_table(Path(keywords(output)) / "labels").sort_by("recording_id").to_pylist()
    return [(json.loads(row["metadata"])["text"], row["label"], row["score"]) for row in rows]


def held_out(head: str, split: str) -> dict[str, Any]:
    """What the recipe measured on speakers that were held out, for a head and a split."""
    found: dict[str, Any] = json.loads((HEADS / head / "evaluation.json").read_text())[split]
    return found


def _speaker_of(recording_id: str) -> str:
    return Path(recording_id).stem.partition("_")[2]


def results(output: str) -> Iterator[tuple[str, str, float | None]]:
    """What was said, what was recognised and how sure, for each recording of a demo's output, in order."""
    table = pq.read_table(Path(output) / "transcripts")
    rows = table.sort_by([("uri", "ascending"), ("recording_id", "ascending"), ("start_s", "ascending")])
    for row in rows.select(["metadata", "text", "confidence"]).to_pylist():
        yield json.loads(row["metadata"])["text"], row["text"], row["confidence"]
