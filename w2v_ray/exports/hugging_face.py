"""A dataset of the library datasets, as its ``load_from_disk`` reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from w2v_ray.errors import MissingExtraError
from w2v_ray.exports.recordings import Recording

__all__ = ["HuggingFaceFolder"]

_BATCH = 256  # recordings
_SHARD_BYTES = 500 << 20  # of a file of the dataset, as the library has it


class HuggingFaceFolder:
    """Rows of recordings, one for each channel, on their way to a folder.

    Raises:
        MissingExtraError: The package datasets is not installed.
    """

    def __init__(self) -> None:
        try:
            from datasets import Features, List, Value
        except ImportError as error:
            raise MissingExtraError(
                "the format hf needs the package datasets; pip install 'w2v-ray[datasets]'"
            ) from error
        word = {
            "word": Value("string"),
            "start_s": Value("float64"),
            "end_s": Value("float64"),
            "confidence": Value("float32"),
        }
        self._features = Features(
            {
                "id": Value("string"),
                # As Audio is stored, but not called so yet: saving would read all files that it names.
                "audio": {"bytes": Value("binary"), "path": Value("string")},
                "channel": Value("int32"),
                "text": Value("string"),
                "words": List(word),
            }
        )

    @contextmanager
    def saved(self, recordings: Iterator[Recording]) -> Iterator[list[Path]]:
        """Writes the folder somewhere and gives its files, what makes it a dataset last."""
        from datasets import Dataset

        with TemporaryDirectory(prefix="w2v_ray_") as scratch:
            rows_path = os.path.join(scratch, "rows.arrow")
            schema = self._features.arrow_schema
            with pa.OSFile(rows_path, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
                while batch := list(islice(recordings, _BATCH)):
                    rows = [row for recording in batch for row in _rows(recording)]
                    writer.write_table(pa.Table.from_pylist(rows, schema))
            folder = Path(scratch, "dataset")
            num_shards = 1 + os.path.getsize(rows_path) // _SHARD_BYTES
            with _without_progress_bars():
                Dataset.from_file(rows_path).save_to_disk(folder, num_shards=num_shards)
            _call_audio(folder / "dataset_info.json")
            yield sorted(folder.iterdir(), key=lambda path: (path.suffix == ".json", path.name))


def _call_audio(path: Path) -> None:
    """Gives the column of audio its type in the description of a dataset: by path, undecoded."""
    from datasets import Audio, Features

    info = json.loads(path.read_text(encoding="utf-8"))
    info["features"] |= Features({"audio": Audio(decode=False)}).to_dict()
    path.write_text(json.dumps(info, indent=2), encoding="utf-8")


def _rows(recording: Recording) -> Iterator[dict[str, Any]]:
    for channel, part in recording.channels():
        words = [
            {"word": word.text, "start_s": word.start_s, "end_s": word.end_s, "confidence": word.confidence}
            for segment in part.segments
            for word in segment.words
        ]
        path = recording.recording_id if recording.is_member else recording.uri
        yield {
            "id": recording.recording_id,
            "audio": {"bytes": None, "path": path},
            "channel": channel,
            "text": " ".join(segment.text for segment in part.segments if segment.text),
            "words": words,
        }


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    import datasets

    switch: Callable[[], None] | None = None
    if not datasets.are_progress_bars_disabled():
        datasets.disable_progress_bars()
        switch = datasets.enable_progress_bars
    try:
        yield
    finally:
        if switch is not None:
            switch()
