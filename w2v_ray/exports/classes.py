"""Formats of what has no text: turns of ``frames/`` and labels of ``labels/``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from w2v_ray.exports.recordings import Recording, Word
from w2v_ray.rttm import Turn, rttm_line

__all__ = [
    "LABELS_HEAD",
    "labels_jsonl",
    "labels_tsv",
    "merged_turns",
    "rttm",
    "turns_jsonl",
    "turns_tsv",
]

LABELS_HEAD = "recording_id\tchannel\tstart_ms\tend_ms\tlabel\tscore\n"

_DECIMALS = 6  # of seconds and scores: float32 has no more
_SAME_S = 5e-4  # half of a millisecond, which is as exact as RTTM files are


def merged_turns(recording: Recording) -> Iterator[tuple[int | None, Word]]:
    """The channel and the turns in it by their start, those of one class that touch made one.

    So segments leave no trace. The score is the mean, weighted by length.
    """
    for channel, part in recording.channels():
        found: list[Word] = []
        last: dict[str, int] = {}
        turns = [turn for segment in part.segments for turn in segment.words]
        for turn in sorted(turns, key=lambda turn: (turn.start_s, turn.end_s)):
            place = last.get(turn.text)
            if place is not None and turn.start_s <= found[place].end_s + _SAME_S:
                found[place] = _joined(found[place], turn)
            else:
                last[turn.text] = len(found)
                found.append(turn)
        for turn in found:
            yield channel, turn


def rttm(recording: Recording) -> str:
    """A SPEAKER line for each turn, with the class as the name of the speaker."""
    return "".join(
        rttm_line(
            recording.recording_id, Turn(turn.text, turn.start_s, turn.end_s), channel=(channel or 0) + 1
        )
        for channel, turn in merged_turns(recording)
    )


def turns_tsv(recording: Recording) -> str:
    """A line for each turn: its start and end in milliseconds, the class and the score."""
    lines = ["start_ms\tend_ms\tlabel\tscore\n"]
    for _, turn in merged_turns(recording):
        lines.append(f"{_times(turn.start_s, turn.end_s)}\t{_text(turn.text)}\t{_score(turn.confidence)}\n")
    return "".join(lines)


def turns_jsonl(recording: Recording) -> str:
    """A line with all turns of the recording."""
    turns = [
        {
            "label": turn.text,
            "channel": channel,
            "start_s": round(turn.start_s, _DECIMALS),
            "end_s": round(turn.end_s, _DECIMALS),
            "score": _rounded(turn.confidence),
        }
        for channel, turn in merged_turns(recording)
    ]
    return _line(recording, "turns", turns)


def labels_tsv(recording: Recording) -> str:
    """A line for each segment: recording, channel, start and end in milliseconds, label and score."""
    name = _text(recording.recording_id)
    lines = []
    for segment in recording.segments:
        channel = "" if segment.channel is None else str(segment.channel)
        label = _text(segment.words[0].text) if segment.words else ""
        times = _times(segment.start_s, segment.end_s)
        lines.append(f"{name}\t{channel}\t{times}\t{label}\t{_score(segment.confidence)}\n")
    return "".join(lines)


def labels_jsonl(recording: Recording) -> str:
    """A line with the labels of all segments of the recording, likeliest first."""
    segments = [
        {
            "segment_id": segment.segment_id,
            "channel": segment.channel,
            "start_s": round(segment.start_s, _DECIMALS),
            "end_s": round(segment.end_s, _DECIMALS),
            "label": segment.words[0].text if segment.words else None,
            "score": _rounded(segment.confidence),
            "labels": [
                {"label": label, "score": round(score, _DECIMALS)} for label, score in segment.labels or []
            ],
        }
        for segment in recording.segments
    ]
    return _line(recording, "segments", segments)


def _line(recording: Recording, name: str, values: list[dict[str, Any]]) -> str:
    found: dict[str, Any] = {
        "recording_id": recording.recording_id,
        "uri": recording.uri,
        name: values,
        "metadata": recording.metadata,
        "rejects": [
            {key: row[key] for key in ("start_s", "end_s", "stage", "error_class", "message")}
            for row in recording.rejects
        ],
    }
    return json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n"


def _joined(one: Word, other: Word) -> Word:
    seconds = [turn.end_s - turn.start_s for turn in (one, other)]
    scores = [turn.confidence or 0.0 for turn in (one, other)]
    total = sum(seconds)
    score = sum(s * t for s, t in zip(scores, seconds, strict=True)) / total if total else scores[0]
    return Word(one.text, one.start_s, max(one.end_s, other.end_s), score)


def _times(start_s: float, end_s: float) -> str:
    return f"{round(start_s * 1000)}\t{round(end_s * 1000)}"


def _text(text: str) -> str:
    return " ".join(text.split())


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.4f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DECIMALS)
