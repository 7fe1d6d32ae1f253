"""How much of what was recognised is wrong, where it is known what was said."""

from __future__ import annotations

import dataclasses
import heapq
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray.metrics import WordErrors, bootstrap_interval, word_errors

__all__ = ["Accuracy", "Group", "Scoring", "Wrong", "metadata_value"]

_DURATION_EDGES_S = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 300.0, 1800.0)
_CONFIDENCE_EDGES = tuple(round(0.1 * tenth, 1) for tenth in range(11))
_WORST_SHOWN = 5
_RESAMPLED_GROUPS = 1000  # more are put together at random, so that resampling them stays small
_LEAST_GROUPS = 5
_TEXT_SHOWN = 400


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """The recordings of a range of lengths, or of confidences."""

    start: float
    end: float | None
    num_recordings: int
    num_words: int
    """Of the references."""
    num_errors: int
    rate: float | None
    """Errors per word of the references; None where these have none."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wrong:
    """A recording with many errors."""

    recording_id: str
    reference: str
    recognised: str
    num_errors: int
    num_words: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Word errors of the recordings that have a reference and rows."""

    source: str
    """Where the references are from, as the end of a sentence."""
    num_recordings: int
    num_without_reference: int
    """Recordings with rows that are not compared."""
    num_without_rows: int | None
    """References of a table whose recordings have no rows; None: the references are from the manifest."""
    hits: int
    substitutions: int
    deletions: int
    insertions: int
    rate: float
    interval: tuple[float, float] | None
    """95% of the rate, from resampling speakers or recordings; None: there are too few."""
    resampled: str
    """What was resampled: ``speakers`` or ``recordings``."""
    by_duration_s: tuple[Group, ...]
    by_confidence: tuple[Group, ...]
    worst: tuple[Wrong, ...]


class Scoring:
    """Compares the texts of whole recordings with references as they pass.

    The text of a recording is that of its rows in the order of their starts, and its confidence is the mean
    over its words.

    Args:
        references: By recording id; None: from the metadata.
        num_references: How many there are, with those whose recordings are not of this output.
        text_key: The key of the metadata that holds what was said.
        speaker_key: The key of the metadata whose values are resampled for the interval; None: recordings.
        source: Where the references are from.
    """

    def __init__(
        self,
        *,
        references: Mapping[str, str] | None,
        num_references: int | None,
        text_key: str,
        speaker_key: str | None,
        source: str,
    ) -> None:
        self._references, self._text_key, self._speaker_key = references, text_key, speaker_key
        self._source, self._num_references = source, num_references
        self._num_recordings, self._num_without = 0, 0
        self._total = WordErrors()
        self._durations = _Groups(_DURATION_EDGES_S)
        self._confidences = _Groups(_CONFIDENCE_EDGES)
        self._speakers: dict[str, int] = {}
        self._resampled: list[WordErrors] = []
        self._worst: list[tuple[int, int, Wrong]] = []

    def add(self, rows: pa.Table) -> None:
        """Compares the recordings of a table that has all rows of each."""
        names = ("recording_id", "start_s", "text", "duration_s", "metadata")
        columns = (rows.column(name).to_pylist() for name in names)
        by_recording: dict[str, list[tuple[Any, ...]]] = {}
        for row in zip(*columns, *_sure(rows.column("words")), strict=True):
            by_recording.setdefault(row[0], []).append(row)
        for recording_id, found in by_recording.items():
            found.sort(key=lambda row: row[1])
            metadata = found[0][4]
            if self._references is None:
                reference = metadata_value(metadata, self._text_key)
            else:
                reference = self._references.get(recording_id)
            if reference is None:
                self._num_without += 1
                continue
            num_words = sum(row[5] for row in found)
            self._compare(
                recording_id,
                " ".join(reference.split()),
                " ".join(" ".join(row[2] or "" for row in found).split()),
                seconds=sum(row[3] or 0.0 for row in found),
                confidence=sum(row[6] for row in found) / num_words if num_words else None,
                speaker=metadata_value(metadata, self._speaker_key) if self._speaker_key else None,
            )

    def accuracy(self) -> Accuracy | None:
        """What was compared; None where nothing was."""
        if not self._num_recordings:
            return None
        given = self._num_references
        return Accuracy(
            source=self._source,
            num_recordings=self._num_recordings,
            num_without_reference=self._num_without,
            num_without_rows=None if given is None else given - self._num_recordings,
            **dataclasses.asdict(self._total),
            rate=self._total.rate,
            interval=self._interval(),
            resampled="speakers" if self._speaker_key else "recordings",
            by_duration_s=self._durations.groups(),
            by_confidence=self._confidences.groups(),
            worst=tuple(wrong for _, _, wrong in sorted(self._worst, reverse=True)),
        )

    def _compare(
        self,
        recording_id: str,
        reference: str,
        recognised: str,
        *,
        seconds: float,
        confidence: float | None,
        speaker: str | None,
    ) -> None:
        errors = word_errors(reference, recognised)
        self._num_recordings += 1
        self._total += errors
        self._durations.add(seconds, errors)
        if confidence is not None:
            self._confidences.add(confidence, errors)
        name = recording_id if speaker is None else f"speaker {speaker}"
        place = (
            self._speakers.setdefault(name, len(self._speakers))
            if self._speaker_key
            else self._num_recordings
        )
        place %= _RESAMPLED_GROUPS
        self._resampled += [WordErrors()] * (place + 1 - len(self._resampled))
        self._resampled[place] += errors
        if errors.num_errors:
            wrong = Wrong(
                recording_id,
                reference[:_TEXT_SHOWN],
                recognised[:_TEXT_SHOWN],
                errors.num_errors,
                errors.num_reference,
            )
            entry = (errors.num_errors, -self._num_recordings, wrong)
            (heapq.heappush if len(self._worst) < _WORST_SHOWN else heapq.heappushpop)(self._worst, entry)

    def _interval(self) -> tuple[float, float] | None:
        groups = [group for group in self._resampled if group.num_reference or group.num_errors]
        if sum(1 for group in groups if group.num_reference) < _LEAST_GROUPS:
            return None
        return bootstrap_interval(groups)


class _Groups:
    """Errors by where a number lies between edges; from the last edge on, if it is not 1, one group more."""

    def __init__(self, edges: tuple[float, ...]) -> None:
        self._edges = edges
        self._numbers = [0] * len(edges)
        self._errors = [WordErrors()] * len(edges)

    def add(self, value: float, errors: WordErrors) -> None:
        last = len(self._edges) - (2 if self._edges[-1] == 1.0 else 1)
        place = min(int(np.searchsorted(self._edges, value, side="right")) - 1, last)
        self._numbers[place] += 1
        self._errors[place] += errors

    def groups(self) -> tuple[Group, ...]:
        ends = [*self._edges[1:], None]
        found = [
            Group(
                start,
                end,
                number,
                errors.num_reference,
                errors.num_errors,
                errors.rate if errors.num_reference else None,
            )
            for start, end, number, errors in zip(self._edges, ends, self._numbers, self._errors, strict=True)
        ]
        kept = [place for place, group in enumerate(found) if group.num_recordings]
        return tuple(found[kept[0] : kept[-1] + 1]) if kept else ()


def _sure(words: pa.ChunkedArray) -> tuple[list[int], list[float]]:
    """Of each row how many words it has, and the sum of their confidences."""
    lengths = pc.fill_null(pc.list_value_length(words), 0).to_numpy()
    confidences = pc.struct_field(pc.list_flatten(words), "confidence").cast(pa.float64()).to_numpy()
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return lengths.tolist(), np.bincount(rows, np.nan_to_num(confidences), len(lengths)).tolist()


def metadata_value(text: str | None, key: str) -> str | None:
    """A value of the manifest's, as text; None where there is none."""
    value = json.loads(text).get(key) if text else None
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
