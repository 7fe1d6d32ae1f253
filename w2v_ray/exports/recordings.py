"""A recording as every format takes it: its segments in order, and what of it was rejected."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Recording", "Segment", "Word", "make_recording"]


class Word(NamedTuple):
    """A word or a character and where it is, in seconds from the beginning of the audio file."""

    text: str
    start_s: float
    end_s: float
    confidence: float | None = None


class Segment(NamedTuple):
    """A row of ``transcripts/``, or of ``alignments/``, whose scores are the confidences here."""

    segment_id: str | None
    channel: int | None
    start_s: float
    end_s: float
    text: str
    confidence: float | None
    words: list[Word]
    characters: list[Word] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Recording:
    """All rows of one id, by channel and time."""

    recording_id: str
    uri: str
    is_member: bool
    """Whether the audio is a part of the file ``uri``, such as a member of a tar."""
    metadata: dict[str, Any]
    segments: list[Segment]
    rejects: list[dict[str, Any]]
    """Rows of ``rejects/``, by time."""
    num_pending: int
    """Shards with a part of it that are not published."""
    num_unsure: int = 0
    """Segments left out for their confidence."""

    @property
    def end_s(self) -> float:
        """Where the last of its segments ends."""
        return max((segment.end_s for segment in self.segments), default=0.0)

    def channels(self) -> Iterator[tuple[int | None, Recording]]:
        """A recording for each channel that rows are of, in order; None stands for the mix."""
        found = sorted({segment.channel for segment in self.segments}, key=_channel_order)
        for channel in found or [None]:
            segments = [segment for segment in self.segments if segment.channel == channel]
            yield channel, dataclasses.replace(self, segments=segments)


def make_recording(
    recording_id: str,
    rows: pa.Table,
    rejects: pa.Table,
    *,
    is_member: bool,
    num_pending: int,
    min_confidence: float | None,
) -> Recording:
    """Turns the rows of a recording, and its rejects, into its segments.

    Args:
        recording_id: Its id.
        rows: Of the table, without some of its columns.
        rejects: Of the schema REJECT.
        is_member: See `Recording`.
        num_pending: See `Recording`.
        min_confidence: Segments less sure than this, or with nothing to be sure of, are left out.
    """
    failed = rejects.to_pylist()
    failed.sort(key=lambda row: row["start_s"] or 0.0)
    if rows.num_rows:
        first = rows.select(["uri", "metadata"]).slice(0, 1).to_pylist()[0]
    else:
        first = failed[0] if failed else {"uri": "", "metadata": None}
    segments = _segments(rows)
    segments.sort(key=lambda segment: (_channel_order(segment.channel), segment.start_s, segment.end_s))
    sure = segments
    if min_confidence is not None:
        sure = [s for s in segments if s.confidence is not None and s.confidence >= min_confidence]
    return Recording(
        recording_id=recording_id,
        uri=first["uri"],
        is_member=is_member,
        metadata=json.loads(first["metadata"] or "{}"),
        segments=sure,
        rejects=failed,
        num_pending=num_pending,
        num_unsure=len(segments) - len(sure),
    )


def _segments(rows: pa.Table) -> list[Segment]:
    def column(*names: str) -> list[Any]:
        """The values of the first of the columns that is there."""
        present = [name for name in names if name in rows.column_names]
        return rows.column(present[0]).to_pylist() if present else [None] * rows.num_rows

    return [
        Segment(*values)
        for values in zip(
            column("segment_id"),
            column("channel"),
            column("start_s"),
            column("end_s"),
            column("text"),
            column("confidence", "score"),
            _spans(rows, "words", "word"),
            _spans(rows, "characters", "char"),
            strict=True,
        )
    ]


def _spans(rows: pa.Table, column: str, text: str) -> list[Any]:
    """The words, or characters, of each row; child by child, which is several times as fast as by row."""
    if column not in rows.column_names:
        return [None] * rows.num_rows
    found: list[Any] = []
    for chunk in rows.column(column).chunks:
        spans = pc.list_flatten(chunk)
        names = [field.name for field in spans.type]
        confidence = "confidence" if "confidence" in names else "score"
        children = (pc.struct_field(spans, name) for name in (text, "start_s", "end_s", confidence))
        words = list(map(Word, *(child.to_pylist() for child in children)))
        begin = 0
        for length in pc.list_value_length(chunk).to_pylist():
            found.append(None if length is None else words[begin : begin + length])
            begin += length or 0
    return found


def _channel_order(channel: int | None) -> int:
    return -1 if channel is None else channel
