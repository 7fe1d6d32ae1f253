"""TextGrids for Praat, in its long text format: a tier of words, and one of characters where there are any.

Praat wants the intervals of a tier to follow each other without gap or overlap from its beginning to its end,
each longer than nothing, so what is between words is an interval without text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from w2v_ray.exports.recordings import Recording, Word

__all__ = ["textgrid"]

_SHORTEST_US = 1000  # of what takes no time at all


class _Interval(NamedTuple):
    start_us: int
    end_us: int
    text: str


def textgrid(recording: Recording) -> str:
    """The TextGrid of a recording; channels have tiers of their own."""
    tiers: dict[str, list[_Interval]] = {}
    for channel, part in recording.channels():
        of_channel = "" if channel is None else f" of channel {channel + 1}"
        tiers[f"words{of_channel}"] = _intervals(word for s in part.segments for word in s.words)
        if any(segment.characters is not None for segment in part.segments):
            characters = (char for segment in part.segments for char in segment.characters or [])
            tiers[f"characters{of_channel}"] = _intervals(characters)
    ends = [intervals[-1].end_us for intervals in tiers.values() if intervals]
    end_us = max([round(recording.end_s * 1e6), _SHORTEST_US, *ends])
    return "\n".join(_lines(tiers, end_us)) + "\n"


def _lines(tiers: dict[str, list[_Interval]], end_us: int) -> Iterator[str]:
    yield 'File type = "ooTextFile"'
    yield 'Object class = "TextGrid"'
    yield ""
    yield "xmin = 0"
    yield f"xmax = {_seconds(end_us)}"
    yield "tiers? <exists>"
    yield f"size = {len(tiers)}"
    yield "item []:"
    for number, (name, spoken) in enumerate(tiers.items(), 1):
        intervals = list(_without_gaps(spoken, end_us))
        yield f"    item [{number}]:"
        yield '        class = "IntervalTier"'
        yield f"        name = {_quoted(name)}"
        yield "        xmin = 0"
        yield f"        xmax = {_seconds(end_us)}"
        yield f"        intervals: size = {len(intervals)}"
        for index, interval in enumerate(intervals, 1):
            yield f"        intervals [{index}]:"
            yield f"            xmin = {_seconds(interval.start_us)}"
            yield f"            xmax = {_seconds(interval.end_us)}"
            yield f"            text = {_quoted(interval.text)}"


def _intervals(spans: Iterable[Word]) -> list[_Interval]:
    """Intervals that do not overlap; what takes no time gets a millisecond."""
    found: list[_Interval] = []
    for span in spans:
        start_us = max(round(span.start_s * 1e6), found[-1].end_us if found else 0)
        end_us = max(round(span.end_s * 1e6), start_us + _SHORTEST_US)
        found.append(_Interval(start_us, end_us, " ".join(span.text.split())))
    return found


def _without_gaps(spoken: list[_Interval], end_us: int) -> Iterator[_Interval]:
    here = 0
    for interval in spoken:
        if interval.start_us > here:
            yield _Interval(here, interval.start_us, "")
        yield interval
        here = interval.end_us
    if here < end_us:
        yield _Interval(here, end_us, "")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _seconds(us: int) -> str:
    whole, rest = divmod(us, 1_000_000)
    return f"{whole}.{rest:06}".rstrip("0").rstrip(".")
