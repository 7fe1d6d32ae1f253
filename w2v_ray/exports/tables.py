"""Formats with a line for each recording, segment or word."""

from __future__ import annotations

import json
from typing import Any

from w2v_ray.exports.recordings import Recording, Segment, Word
from w2v_ray.rttm import Turn, rttm_field, rttm_line

__all__ = ["ctm", "jsonl", "nemo", "rttm", "tsv", "txt"]

_DECIMALS = 6  # of seconds and confidences: float32 has no more
_NO_SPEAKER = "speech"


def txt(recording: Recording) -> str:
    """The text in one paragraph."""
    return " ".join(_one_line(segment.text) for segment in recording.segments if segment.text) + "\n"


def tsv(recording: Recording) -> str:
    """A line for each segment with text: its start and end in milliseconds, and the text."""
    lines = ["start_ms\tend_ms\ttext\n"]
    for segment in recording.segments:
        if segment.text:
            times = f"{round(segment.start_s * 1000)}\t{round(segment.end_s * 1000)}"
            lines.append(f"{times}\t{_one_line(segment.text)}\n")
    return "".join(lines)


def jsonl(recording: Recording) -> str:
    """A line with all that is known of the recording."""
    values: dict[str, Any] = {
        "recording_id": recording.recording_id,
        "uri": recording.uri,
        "text": " ".join(segment.text for segment in recording.segments if segment.text),
        "segments": [_segment(segment) for segment in recording.segments],
        "metadata": recording.metadata,
        "rejects": [
            {name: row[name] for name in ("start_s", "end_s", "stage", "error_class", "message")}
            for row in recording.rejects
        ],
    }
    return _json(values)


def ctm(recording: Recording) -> str:
    """A line for each word, as NIST's scoring reads it: file, channel, start, duration, word, confidence."""
    name = rttm_field(recording.recording_id)
    lines = []
    for segment in recording.segments:
        channel = (segment.channel or 0) + 1
        for word in segment.words:
            times = f"{word.start_s:.3f} {_milliseconds(word) / 1000:.3f}"
            sure = "" if word.confidence is None else f" {word.confidence:.4f}"
            lines.append(f"{name} {channel} {times} {_word(word.text)}{sure}\n")
    return "".join(lines)


def rttm(recording: Recording) -> str:
    """A line for each segment with words, from the first to the last of them."""
    speaker = recording.metadata.get("speaker")
    is_named = isinstance(speaker, str | int) and not isinstance(speaker, bool)
    who = str(speaker).strip() if is_named else ""
    lines = []
    for segment in recording.segments:
        if segment.words:
            end_s = max(word.end_s for word in segment.words)
            turn = Turn(who or _NO_SPEAKER, segment.words[0].start_s, end_s)
            lines.append(rttm_line(recording.recording_id, turn, channel=(segment.channel or 0) + 1))
    return "".join(lines)


def nemo(recording: Recording) -> str:
    """A line for each segment with text, as in a manifest of NeMo, with what the input said besides."""
    lines = []
    for segment in recording.segments:
        if segment.text:
            # A part of a file has no path; its id says at least which it is.
            path = recording.recording_id if recording.is_member else recording.uri
            values = {
                "audio_filepath": path,
                "offset": round(segment.start_s, _DECIMALS),
                "duration": round(segment.end_s - segment.start_s, _DECIMALS),
                "text": segment.text,
            }
            if segment.channel is not None:
                values["channel"] = segment.channel
            for key, value in recording.metadata.items():
                values[f"input_{key}" if key in values else key] = value
            lines.append(_json(values))
    return "".join(lines)


def _segment(segment: Segment) -> dict[str, Any]:
    values = {
        "segment_id": segment.segment_id,
        "channel": segment.channel,
        "start_s": round(segment.start_s, _DECIMALS),
        "end_s": round(segment.end_s, _DECIMALS),
        "text": segment.text,
        "confidence": _rounded(segment.confidence),
        "words": [{"word": word.text} | _times(word) for word in segment.words],
    }
    if segment.characters is not None:
        values["characters"] = [{"char": char.text} | _times(char) for char in segment.characters]
    return values


def _times(word: Word) -> dict[str, float | None]:
    return {
        "start_s": round(word.start_s, _DECIMALS),
        "end_s": round(word.end_s, _DECIMALS),
        "confidence": _rounded(word.confidence),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DECIMALS)


def _milliseconds(word: Word) -> int:
    """So that start and duration, both rounded, end where the word does, rounded."""
    return round(word.end_s * 1000) - round(word.start_s * 1000)


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _word(text: str) -> str:
    """A word as one field."""
    return "_".join(text.split())
