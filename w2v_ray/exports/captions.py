"""Captions from the times of words: where one ends and the next begins, and how it looks in SRT and WebVTT.

Captions break where the speaker pauses, at the end of sentences where the text has such, and else so that
they are few and evenly filled.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple
from unicodedata import category

from w2v_ray.errors import ConfigError
from w2v_ray.exports.recordings import Recording, Word

__all__ = ["CaptionSettings", "Cue", "Piece", "make_cues", "srt", "vtt"]

_MIN_CUE_MS = 1000
_PAUSE_MS = 1000  # captions never span one
_SHORT_PAUSE_MS = 500  # and rather break at one than between words

# What a caption costs; where captions break makes the sum as small as it can be.
_CUE = 1.0
_FULL = 0.5  # times the square of the share of its characters: so that neighbours are alike
_SHORT = 1.0  # if it cannot be shown for a second
_AT_PAUSE = -0.4
_AT_SENTENCE = -0.4
_AT_CLAUSE = -0.2
_SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？", "؟", "।")  # noqa: RUF001
_CLAUSE_ENDS = (",", ";", ":", "，", "、", "；", "،")  # noqa: RUF001

# Of these some end a line, or a file for who reads it.
_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], " ")
# SubRip has no escapes: players take <...> and {...} for markup, and show entities as they stand. A character
# without width after what would begin such makes them show the text as it is.
_MARKUP_OF_SRT = re.compile(r"<|\{|--(?=>)")
_WORD_JOINER = "\u2060"
_MARKUP_OF_VTT = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionSettings:
    """How captions look."""

    max_line_chars: int = 42
    """Characters of a line; a caption has two lines at most."""
    max_cue_seconds: float = 7.0
    """How long a caption is shown at most."""
    words: bool = False
    """Whether WebVTT says when each word begins."""

    def __post_init__(self) -> None:
        if not 10 <= self.max_line_chars <= 1000:
            raise ConfigError(f"max_line_chars is {self.max_line_chars}; give a number from 10 to 1000")
        if not 1 <= self.max_cue_seconds <= 3600:
            raise ConfigError(f"max_cue_seconds is {self.max_cue_seconds}; give a number from 1 to 3600")


class Piece(NamedTuple):
    """A word, or a part of one that is longer than a line."""

    text: str
    start_ms: int
    end_ms: int
    space: bool
    """Whether a space separates it from what comes before in its line."""


class Cue(NamedTuple):
    """A caption, shown from its start until its end."""

    start_ms: int
    end_ms: int
    lines: list[list[Piece]]


def make_cues(words: Sequence[Word], settings: CaptionSettings) -> list[Cue]:
    """Makes captions of words in the order of their times.

    Captions are in order and never overlap, and none is longer than it may be, in time or characters. Each
    is shown for a second at least where the next one leaves room. Words longer than a line are broken.
    """
    pieces = list(_pieces(words, settings.max_line_chars))
    layout = _Layout(pieces, settings)
    cues: list[Cue] = []
    spans = layout.spans()
    for number, (begin, end) in enumerate(spans):
        start_ms = max(pieces[begin].start_ms, cues[-1].end_ms if cues else 0)
        longest_ms = start_ms + layout.max_ms
        end_ms = min(max(pieces[end - 1].end_ms, start_ms + _MIN_CUE_MS), longest_ms)
        if number + 1 < len(spans):
            end_ms = min(end_ms, pieces[end].start_ms)
        cues.append(Cue(start_ms, max(end_ms, start_ms + 1), layout.lines(begin, end)))
    return cues


def srt(recording: Recording, settings: CaptionSettings) -> str:
    """A file in SubRip's format."""
    blocks = []
    for number, cue in enumerate(make_cues(_words(recording), settings), 1):
        text = _MARKUP_OF_SRT.sub(lambda match: match[0] + _WORD_JOINER, _text(cue))
        blocks.append(f"{number}\n{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}\n{text}\n")
    return "\n".join(blocks)


def vtt(recording: Recording, settings: CaptionSettings) -> str:
    """A WebVTT file."""
    blocks = ["WEBVTT\n"]
    for cue in make_cues(_words(recording), settings):
        text = _stamped_text(cue) if settings.words else _text(cue).translate(_MARKUP_OF_VTT)
        blocks.append(f"{_clock(cue.start_ms, '.')} --> {_clock(cue.end_ms, '.')}\n{text}\n")
    return "\n".join(blocks)


class _Layout:
    """Which pieces make a caption, and how they fill its lines."""

    def __init__(self, pieces: list[Piece], settings: CaptionSettings) -> None:
        self._pieces = pieces
        self._width = settings.max_line_chars
        self.max_ms = round(settings.max_cue_seconds * 1000)
        self._ends = [0, *accumulate(piece.space + len(piece.text) for piece in pieces)]

    def spans(self) -> list[tuple[int, int]]:
        """Begin and end of each caption: of all ways to break, one that costs least."""
        pieces = self._pieces
        costs = [0.0] + [float("inf")] * len(pieces)
        begins = [0] * (len(pieces) + 1)
        for end in range(1, len(pieces) + 1):
            at_end = self._break_cost(end)
            for begin in range(end - 1, -1, -1):
                if begin < end - 1 and not self._fits(begin, end):
                    break
                cost = costs[begin] + at_end + self._cost(begin, end)
                if cost < costs[end]:
                    costs[end], begins[end] = cost, begin
        found = []
        end = len(pieces)
        while end:
            found.append((begins[end], end))
            end = begins[end]
        return found[::-1]

    def lines(self, begin: int, end: int) -> list[list[Piece]]:
        """One line, or two of about the same length."""
        pieces = self._pieces[begin:end]
        if self._chars(begin, end) <= self._width:
            return [pieces]
        lengths = {at: (self._chars(begin, at), self._chars(at, end)) for at in range(begin + 1, end)}
        fitting = [at for at in lengths if max(lengths[at]) <= self._width]
        at = min(fitting, key=lambda at: abs(lengths[at][0] - lengths[at][1])) - begin
        return [pieces[:at], pieces[at:]]

    def _fits(self, begin: int, end: int) -> bool:
        pieces = self._pieces
        # Of what comes before the next one: the rest was looked at already.
        if pieces[begin + 1].start_ms - pieces[begin].end_ms >= _PAUSE_MS:
            return False
        if pieces[end - 1].end_ms - pieces[begin].start_ms > self.max_ms:
            return False
        if self._chars(begin, end) <= self._width:
            return True
        # The first line takes what it can.
        filled = self._ends[begin] + pieces[begin].space + self._width
        at = bisect_right(self._ends, filled, begin, end + 1) - 1
        return self._chars(at, end) <= self._width

    def _chars(self, begin: int, end: int) -> int:
        return self._ends[end] - self._ends[begin] - self._pieces[begin].space

    def _cost(self, begin: int, end: int) -> float:
        pieces = self._pieces
        room_ms = pieces[end].start_ms - pieces[begin].start_ms if end < len(pieces) else _MIN_CUE_MS
        share = self._chars(begin, end) / (2 * self._width)
        return _CUE + _FULL * share**2 + (_SHORT if room_ms < _MIN_CUE_MS else 0.0)

    def _break_cost(self, end: int) -> float:
        """What it costs to break before the piece ``end``."""
        if end == len(self._pieces):
            return 0.0
        last = self._pieces[end - 1]
        gap_ms = min(max(self._pieces[end].start_ms - last.end_ms, 0), _SHORT_PAUSE_MS)
        cost = _AT_PAUSE * gap_ms / _SHORT_PAUSE_MS
        if last.text.endswith(_SENTENCE_ENDS):
            cost += _AT_SENTENCE
        elif last.text.endswith(_CLAUSE_ENDS):
            cost += _AT_CLAUSE
        return cost


def _words(recording: Recording) -> list[Word]:
    return [word for segment in recording.segments for word in segment.words]


def _pieces(words: Sequence[Word], max_chars: int) -> Iterator[Piece]:
    """The words, those longer than a line in pieces that share its time by their characters."""
    last_ms = 0
    for word in words:
        start_ms = max(round(word.start_s * 1000), last_ms)
        end_ms = max(round(word.end_s * 1000), start_ms)
        texts = [
            (part, number == 0)
            for text in word.text.translate(_CONTROLS).split()
            for number, part in enumerate(_cut(text, max_chars))
        ]
        total = sum(len(text) for text, _ in texts)
        done = 0
        for text, space in texts:
            last_ms = start_ms + (end_ms - start_ms) * done // total
            done += len(text)
            yield Piece(text, last_ms, start_ms + (end_ms - start_ms) * done // total, space)


def _cut(text: str, max_chars: int) -> Iterator[str]:
    while len(text) > max_chars:
        at = max_chars
        while at and category(text[at]).startswith("M"):  # an accent stays with its letter
            at -= 1
        at = at or max_chars
        yield text[:at]
        text = text[at:]
    yield text


def _clock(ms: int, point: str) -> str:
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{ms:03}"


def _text(cue: Cue) -> str:
    return "\n".join(
        "".join(" " * (piece.space and number > 0) + piece.text for number, piece in enumerate(line))
        for line in cue.lines
    )


def _stamped_text(cue: Cue) -> str:
    """The text for WebVTT, with the start of each word that begins later than the one before it."""
    last_ms = cue.start_ms
    lines = []
    for line in cue.lines:
        shown = ""
        for number, piece in enumerate(line):
            shown += " " * (piece.space and number > 0)
            if last_ms < piece.start_ms < cue.end_ms:
                last_ms = piece.start_ms
                shown += f"<{_clock(last_ms, '.')}>"
            shown += piece.text.translate(_MARKUP_OF_VTT)
        lines.append(shown)
    return "\n".join(lines)
