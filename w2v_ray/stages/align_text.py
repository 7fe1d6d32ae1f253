"""The alignment stages: the given text of each item before it is read, and its place in the item at the end.

They load only a tokenizer: no torch, so that their workers are small.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from w2v_ray.errors import AlignError, ConfigError, EncodeError
from w2v_ray.schema import ALIGNMENT, ERROR, error_value
from w2v_ray.stages.emissions import take_emission
from w2v_ray.stages.take_language import languages_of, with_language
from w2v_ray.text.align_text import AlignedSpan, TextAlignment, align_texts
from w2v_ray.text.languages import LanguageLabels
from w2v_ray.text.spelling import Spelling
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

__all__ = ["MAX_ITEM_SECONDS", "AlignText", "AlignTextConfig", "TakeText"]

# The longest recording that is aligned as one: both the time and the memory of an alignment grow faster than
# the recording, to a minute and a third of a gigabyte here.
MAX_ITEM_SECONDS = 3600.0

_STAGE = "align_text"
_ADDED = ("text", "score", "ctc_loss", "loss_per_label", "words", "characters")
_NEEDED = ["item_index", "segment_index", "start_s", "end_s", "duration_s", "num_frames", "error", "text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignTextConfig:
    """Whose tokenizer spells the texts, and how far apart the frames of an emission are."""

    model: str
    """A folder or hub id with a tokenizer."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    seconds_per_frame: float
    """From one frame of the emission to the next, in seconds of audio."""
    num_threads: int = 1
    """Threads that share the items of a table."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model is '', expected a folder or a hub id; name one")
        if not (math.isfinite(self.seconds_per_frame) and self.seconds_per_frame > 0):
            raise ConfigError(
                f"seconds_per_frame is {self.seconds_per_frame}, expected above 0; it is 0.02 for wav2vec 2.0"
            )
        if self.num_threads < 1:
            raise ConfigError(f"num_threads is {self.num_threads}, expected at least 1; try 1")


class TakeText:
    """Adds ``text`` to a table of items, from their metadata; an item that has none fails before it is read.

    Args:
        key: Of the text in the metadata.
    """

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, table: pa.Table) -> pa.Table:
        texts: list[str | None] = []
        errors: list[dict[str, str] | None] = []
        for metadata in table.column("metadata").to_pylist():
            values = json.loads(metadata) if metadata else {}
            text = values.get(self._key)
            texts.append(text if isinstance(text, str) else None)
            if isinstance(text, str):
                errors.append(None)
                continue
            found = repr(text) if self._key in values else f"only {', '.join(values)}"
            error = AlignError(
                f"the manifest has no text under {self._key!r} but {found}; name the key with --text-key"
                if values
                else f"no text under {self._key!r} came with this recording; add it to the manifest or tar"
            )
            errors.append(error_value(_STAGE, error))
        table = table.append_column(ALIGNMENT.field("text"), pa.array(texts, pa.string()))
        return table.append_column("error", pa.array(errors, ERROR))


class AlignText:
    """Joins the encoded segments of each item to one row and aligns its ``text`` with all of it.

    It takes the columns that ``encode`` gives and ``text``, drops ``log_probs`` and adds the rest of
    ALIGNMENT; ``start_s``, ``end_s``, ``duration_s`` and ``num_frames`` become the item's. An item of which a
    segment failed has that error, and no alignment.

    Args:
        config: Whose tokenizer, and the frame rate.

    Raises:
        CheckpointError: The tokenizer cannot be loaded, or does not fit the model's outputs; the latter
            shows at the first item.
    """

    def __init__(self, config: AlignTextConfig) -> None:
        self._labels = LanguageLabels(
            Wav2Vec2CTCTokenizer.from_pretrained(config.model, revision=config.revision)
        )
        self._seconds_per_frame = config.seconds_per_frame
        self._num_threads = config.num_threads
        # By language and columns of the emission: one entry for one model without languages.
        self._spellings: dict[tuple[str | None, int], Spelling] = {}

    def __call__(self, table: pa.Table) -> pa.Table:
        segments, languages = table.select(_NEEDED).to_pylist(), languages_of(table)
        rows_of_item: defaultdict[int, list[int]] = defaultdict(list)
        for row, segment in enumerate(segments):
            rows_of_item[segment["item_index"]].append(row)
        items: list[dict[str, Any]] = []
        todo: list[tuple[dict[str, Any], np.ndarray, np.ndarray]] = []
        for index in sorted(rows_of_item):
            rows = sorted(rows_of_item[index], key=lambda row: segments[row]["segment_index"] or 0)
            item = _join([segments[row] for row in rows]) | {"row": rows[0], "language": languages[rows[0]]}
            items.append(item)
            if item["error"] is None:
                try:
                    parts = [self._part(segments[row], table.column("log_probs")[row]) for row in rows]
                    emissions, times = zip(*parts, strict=True)
                    todo.append((item, np.concatenate(emissions), np.concatenate(times)))
                except (AlignError, EncodeError) as error:
                    item["error"] = error_value(_STAGE, error)
        self._align(todo)
        return _replaced(table, items)

    def _part(self, segment: dict[str, Any], emission: pa.Scalar) -> tuple[np.ndarray, np.ndarray]:
        """The log-probabilities of a segment, and the times of its frames in the recording."""
        log_probs = take_emission(emission.as_buffer(), segment["num_frames"])
        num_frames = len(log_probs)
        if not num_frames:
            raise AlignError("the voice activity detector found no speech to align the text with; check it")
        edges = segment["start_s"] + np.arange(num_frames + 1) * self._seconds_per_frame
        # The last frame may reach beyond the last sample, by less than a frame.
        edges = np.minimum(edges, segment["end_s"])
        return log_probs, np.stack([edges[:-1], edges[1:]], 1)

    def _align(self, todo: list[tuple[dict[str, Any], np.ndarray, np.ndarray]]) -> None:
        groups: defaultdict[tuple[str | None, int], list[tuple[dict[str, Any], np.ndarray, np.ndarray]]]
        groups = defaultdict(list)
        for one in todo:
            groups[one[0]["language"], one[1].shape[1]].append(one)
        for (language, size), group in groups.items():
            self._align_group(group, self._spelling(language, size))

    def _align_group(
        self, todo: list[tuple[dict[str, Any], np.ndarray, np.ndarray]], spelling: Spelling
    ) -> None:
        # A few at a time, so that the float32 copies of a shard's emissions are never all there at once.
        for begin in range(0, len(todo), self._num_threads):
            items, emissions, times = zip(*todo[begin : begin + self._num_threads], strict=True)
            results = align_texts(
                emissions,
                [item["text"] for item in items],
                times,
                spelling=spelling,
                num_threads=self._num_threads,
            )
            for item, result in zip(items, results, strict=True):
                if isinstance(result, AlignError):
                    item["error"] = error_value(_STAGE, result)
                else:
                    item |= _columns(result)

    def _spelling(self, language: str | None, size: int) -> Spelling:
        if (language, size) not in self._spellings:
            self._spellings[language, size] = Spelling(self._labels(language, size))
        return self._spellings[language, size]


def _join(segments: list[dict[str, Any]]) -> dict[str, Any]:
    """The columns of an item that its segments give."""
    first, last = segments[0], segments[-1]
    item: dict[str, Any] = dict.fromkeys(_ADDED)
    item |= {name: first[name] for name in ("start_s", "text")} | {"end_s": last["end_s"]}
    for name in ("duration_s", "num_frames"):
        known = [segment[name] for segment in segments if segment[name] is not None]
        item[name] = sum(known) if known else None
    failed = [segment["error"] for segment in segments if segment["error"] is not None]
    return item | {"error": failed[0] if failed else None}


def _columns(result: TextAlignment) -> dict[str, Any]:
    return {
        "score": result.score,
        "ctc_loss": result.ctc_loss,
        "loss_per_label": result.loss_per_label,
        "words": [_span("word", word) for word in result.words],
        "characters": [_span("char", character) for character in result.characters],
    }


def _span(name: str, span: AlignedSpan) -> dict[str, Any]:
    times = {"start_s": span.start_s, "end_s": span.end_s}
    return {name: span.text} | times | {"score": span.score, "aligned": span.aligned}


def _replaced(table: pa.Table, items: list[dict[str, Any]]) -> pa.Table:
    """The first row of each item with the item's own columns instead of the segment's."""
    new = ("start_s", "end_s", "duration_s", "num_frames", *_ADDED)
    kept = table.drop_columns(["log_probs", "error", "segment_id", "segment_index", *new[:4], "text"])
    columns = with_language(kept.take(pa.array([item["row"] for item in items], pa.int64())))
    for name in new:
        field = ALIGNMENT.field(name)
        columns = columns.append_column(field, pa.array([item[name] for item in items], field.type))
    columns = columns.append_column("segment_id", pa.nulls(len(items), pa.string()))  # it is no segment
    columns = columns.append_column("segment_index", pa.array([0] * len(items), pa.int32()))
    return columns.append_column("error", pa.array([item["error"] for item in items], ERROR))
