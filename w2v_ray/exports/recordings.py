"""A recording as every format takes it: its segments in order, and what of it was rejected."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray.exports.rows import Planned
from w2v_ray.output import current_rows

__all__ = ["Recording", "Segment", "Word", "read_recordings"]


class Word(NamedTuple):
    """A word, a character or a class and where it is, in seconds from the beginning of the audio file."""

    text: str
    start_s: float
    end_s: float
    confidence: float | None = None


class Segment(NamedTuple):
    """A row of ``transcripts/``, or of another table, whose scores are the confidences here.

    The words of a row of ``frames/`` are its turns, and of a row of ``labels/`` the one label it has, if any.
    """

    segment_id: str | None
    channel: int | None
    start_s: float
    end_s: float
    text: str
    confidence: float | None
    words: list[Word]
    characters: list[Word] | None
    labels: list[tuple[str, float]] | None = None
    """Of a row of ``labels/``: the likeliest, and how likely each is."""


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
    is_pending: bool
    """Whether a part of it is not published yet."""
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


def read_recordings(
    planned: Planned, recording_ids: Collection[str] | None, *, min_confidence: float | None
) -> Iterator[Recording]:
    """Yields the recordings of an output, in the order of its plan, with what is published of each.

    Args:
        planned: What the plans say.
        recording_ids: The recordings to read; None: all.
        min_confidence: Segments less sure than this, or with nothing to be sure of, are left out.

    Raises:
        OutputError: A file of the output cannot be read.
    """
    rows = _by_recording(current_rows(planned.output, planned.table, recordings=recording_ids), _segments)
    rejects = _by_recording(
        current_rows(planned.output, "rejects", recordings=recording_ids), pa.Table.to_pylist
    )
    row, reject = next(rows, None), next(rejects, None)
    wanted = None if recording_ids is None else set(recording_ids)
    for recording_id in planned.recording_ids:
        if wanted is not None and recording_id not in wanted:
            continue
        uri, metadata = "", None
        segments: list[Segment] = []
        failed: list[dict[str, Any]] = []
        if reject is not None and reject.recording_id == recording_id:
            (_, uri, metadata, failed), reject = reject, next(rejects, None)
        if row is not None and row.recording_id == recording_id:
            (_, uri, metadata, segments), row = row, next(rows, None)
        failed.sort(key=lambda row: row["start_s"] or 0.0)
        segments.sort(key=lambda segment: (_channel_order(segment.channel), segment.start_s, segment.end_s))
        sure = segments
        if min_confidence is not None:
            sure = [s for s in segments if s.confidence is not None and s.confidence >= min_confidence]
        yield Recording(
            recording_id=recording_id,
            uri=uri,
            is_member=recording_id in planned.members,
            metadata=json.loads(metadata or "{}"),
            segments=sure,
            rejects=failed,
            is_pending=recording_id in planned.pending,
            num_unsure=len(segments) - len(sure),
        )
    # What was planned meanwhile comes last, and with the next export.
    known = set(planned.recording_ids)
    assert row is None or row.recording_id not in known, f"{row.recording_id!r} is not in the plan's order"
    assert reject is None or reject.recording_id not in known, f"{reject.recording_id!r} is not in that order"


class _Rows(NamedTuple):
    """What a table says of a recording."""

    recording_id: str
    uri: str
    metadata: str | None
    rows: list[Any]


def _by_recording(tables: Iterable[pa.Table], convert: Callable[[pa.Table], list[Any]]) -> Iterator[_Rows]:
    """The rows of one recording after another, of tables that hold them together."""
    for table in tables:
        rows = convert(table)
        ids, uris, texts = (table.column(name).to_pylist() for name in ("recording_id", "uri", "metadata"))
        begin = 0
        for recording_id, group in groupby(ids):
            end = begin + sum(1 for _ in group)
            yield _Rows(recording_id, uris[begin], texts[begin], rows[begin:end])
            begin = end


def _segments(rows: pa.Table) -> list[Segment]:
    words = _spans(rows, "words", "word")
    if "turns" in rows.column_names:
        words = _turns(rows)
    elif "label" in rows.column_names:
        words = _labels(rows)

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
            words,
            _spans(rows, "characters", "char"),
            _ranked(rows),
            strict=True,
        )
    ]


def _turns(rows: pa.Table) -> list[list[Word]]:
    """The turns of each row; one that holds in the last frame holds until the segment ends."""
    found = []
    names = ("end_s", "start_s", "num_frames", "seconds_per_frame")
    times = zip(*(rows.column(name).to_pylist() for name in names), strict=True)
    for turns, (end_s, start_s, num_frames, frame_s) in zip(
        _spans(rows, "turns", "label"), times, strict=True
    ):
        # What is left behind the last frame is less than one, too short for the model.
        last_s = start_s + ((num_frames or 0) - 0.5) * frame_s
        found.append([turn._replace(end_s=end_s) if turn.end_s >= last_s else turn for turn in turns or []])
    return found


def _labels(rows: pa.Table) -> list[list[Word]]:
    names = ("label", "start_s", "end_s", "score")
    values = zip(*(rows.column(name).to_pylist() for name in names), strict=True)
    return [[] if word[0] is None else [Word(*word)] for word in values]


def _ranked(rows: pa.Table) -> list[list[tuple[str, float]] | None]:
    if "labels" not in rows.column_names:
        return [None] * rows.num_rows
    lists = rows.column("labels").to_pylist()
    return [[(entry["label"], entry["score"]) for entry in found or []] for found in lists]


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
