"""The numbers of ``transcripts/`` and ``alignments/``, in one pass over their rows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from w2v_ray.report.accuracy import Scoring
from w2v_ray.report.distributions import Distribution, Tally
from w2v_ray.report.sampling import Extremes, Sample

__all__ = ["Audio", "AudioReading", "SampledRow", "Speech", "SpeechReading"]

_MOST_KINDS = 30  # of codecs and languages that are named; the rest is one
_SHOWN_WORDS = 150
_SHOWN_CHARACTERS = 1500
_SAMPLED = 120
_LEAST_SURE = 40
_CONFIDENCE_WIDTH = 1e-4
_SECONDS_WIDTH = 1e-3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Audio:
    """What the rows of any table say of their audio."""

    num_rows: int
    num_recordings: int
    audio_s: float
    duration_s: Distribution | None
    by_codec: dict[str, int]
    by_sample_rate_hz: dict[str, int]
    notes: dict[str, int]
    """Rows by what is remarkable of their audio, such as ``silent``, and ``truncated``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """What was recognised, or where words that were given are."""

    num_words: int
    num_empty: int
    """Rows in which nothing was recognised, or aligned."""
    confidence: Distribution | None
    """Of rows; of alignments their scores."""
    word_confidence: Distribution | None
    speech_rate_wps: Distribution | None
    """Words per second of each row that has words."""
    by_language: dict[str, int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SampledRow:
    """A row to look at."""

    recording_id: str
    channel: int | None
    start_s: float
    end_s: float
    language: str | None
    confidence: float | None
    words: tuple[tuple[str, float | None], ...]
    """The first of them, and how sure each is; the whole text where a row has no words."""
    num_words_left_out: int
    is_least_sure: bool
    """Whether it was chosen for its low confidence, and not at random."""


class AudioReading:
    """Adds up what any table has."""

    def __init__(self) -> None:
        self._num_rows, self._num_recordings = 0, 0
        self._seconds = Tally(width=_SECONDS_WIDTH)
        self._audio_s = 0.0
        self._codecs: Counter[str] = Counter()
        self._rates: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()

    def add(self, rows: pa.Table) -> None:
        """Takes in a table of whole recordings."""
        self._num_rows += rows.num_rows
        self._num_recordings += pc.count_distinct(rows.column("recording_id")).as_py()
        seconds = numbers(rows.column("duration_s"))
        self._seconds.add(seconds)
        self._audio_s += float(np.nansum(seconds))
        _count(self._codecs, rows.column("codec"))
        _count(self._rates, rows.column("sample_rate_hz"))
        _count(self._notes, pc.list_flatten(rows.column("audio_notes")))
        if num_truncated := pc.sum(pc.equal(rows.column("decode_status"), "truncated")).as_py():
            self._notes["truncated"] += num_truncated

    def audio(self) -> Audio:
        """What was taken in."""
        return Audio(
            num_rows=self._num_rows,
            num_recordings=self._num_recordings,
            audio_s=self._audio_s,
            duration_s=self._seconds.distribution(),
            by_codec=most_common(self._codecs),
            by_sample_rate_hz=most_common(self._rates),
            notes=most_common(self._notes),
        )


class SpeechReading:
    """Adds up what was recognised, and keeps rows to look at.

    Args:
        scoring: What compares recordings with references; None: nothing does.
    """

    _COLUMNS = ("recording_id", "channel", "start_s", "end_s", "language", "text", "words")

    def __init__(self, scoring: Scoring | None = None) -> None:
        self._scoring = scoring
        self._num_words, self._num_empty = 0, 0
        self._confidence = Tally(width=_CONFIDENCE_WIDTH, limit=1.0)
        self._word_confidence = Tally(width=_CONFIDENCE_WIDTH, limit=1.0)
        self._rate = Tally(width=_SECONDS_WIDTH)
        self._languages: Counter[str] = Counter()
        self._sample = Sample(_SAMPLED, columns=[*self._COLUMNS, "sure"])
        self._least = Extremes(_LEAST_SURE)

    def add(self, rows: pa.Table) -> None:
        """Takes in a table of whole recordings."""
        rows = rows.append_column(
            "sure", rows.column("confidence" if "confidence" in rows.column_names else "score")
        )
        confidence = numbers(rows.column("sure"))
        num_words = numbers(pc.fill_null(pc.list_value_length(rows.column("words")), 0))
        seconds = numbers(rows.column("duration_s"))
        self._num_words += int(num_words.sum())
        self._num_empty += int(pc.sum(pc.is_null(rows.column("sure"))).as_py())
        self._confidence.add(confidence)
        self._word_confidence.add(_of_words(rows.column("words")))
        has_rate = (num_words > 0) & (seconds > 0)
        self._rate.add(num_words[has_rate] / seconds[has_rate])
        _count(self._languages, rows.column("language"))
        if self._scoring is not None:
            self._scoring.add(rows)
        self._sample.add(rows)
        self._least.add(rows.select([*self._COLUMNS, "sure"]), confidence)

    def speech(self) -> Speech:
        """What was taken in."""
        return Speech(
            num_words=self._num_words,
            num_empty=self._num_empty,
            confidence=self._confidence.distribution(),
            word_confidence=self._word_confidence.distribution(),
            speech_rate_wps=self._rate.distribution(),
            by_language=most_common(self._languages),
        )

    def sample(self) -> tuple[SampledRow, ...]:
        """Rows drawn at random in their order, and after them those that are least sure."""
        drawn = self._sample.rows()
        known = {_place(row) for row in drawn}
        least = [row for row in self._least.rows() if _place(row) not in known]
        return (*(_sampled(row, False) for row in drawn), *(_sampled(row, True) for row in least))


def numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column as numbers, where null is none."""
    found: NDArray[np.float64] = column.cast(pa.float64()).to_numpy()
    return found


def most_common(counts: Counter[str]) -> dict[str, int]:
    """The most frequent values and their counts; rarer ones together as "others"."""
    found = dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:_MOST_KINDS])
    if rest := sum(counts.values()) - sum(found.values()):
        found["others"] = found.get("others", 0) + rest
    return found


def _count(counts: Counter[str], column: pa.ChunkedArray) -> None:
    for entry in pc.value_counts(column.drop_null()).to_pylist():
        counts[str(entry["values"])] += entry["counts"]


def _of_words(column: pa.ChunkedArray) -> NDArray[np.float64]:
    words = pc.list_flatten(column)
    names = [field.name for field in words.type]
    return numbers(pc.struct_field(words, "confidence" if "confidence" in names else "score"))


def _place(row: dict[str, Any]) -> tuple[object, ...]:
    return row["recording_id"], row["channel"], row["start_s"], row["end_s"]


def _sampled(row: dict[str, Any], is_least_sure: bool) -> SampledRow:
    words = row["words"] or []
    shown = tuple(
        (word["word"][:_SHOWN_CHARACTERS], word.get("confidence", word.get("score")))
        for word in words[:_SHOWN_WORDS]
    )
    if not words and row["text"]:
        shown = ((row["text"][:_SHOWN_CHARACTERS], None),)
    return SampledRow(
        recording_id=row["recording_id"],
        channel=row["channel"],
        start_s=row["start_s"],
        end_s=row["end_s"],
        language=row["language"],
        confidence=row["sure"],
        words=shown,
        num_words_left_out=max(len(words) - len(shown), 0),
        is_least_sure=is_least_sure,
    )
