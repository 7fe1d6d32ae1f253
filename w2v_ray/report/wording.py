"""Numbers as people say them, with their units, and text that shows what it holds."""

from __future__ import annotations

import re
from datetime import datetime

__all__ = [
    "bar_range",
    "count_text",
    "hours",
    "percent",
    "seconds_text",
    "short",
    "time_text",
    "visible",
]

_JOINERS = "\u200c\u200d"  # which shape letters of some scripts, and hide nothing
_NAME_PARTS = 2


def hours(seconds: float) -> str:
    """A length of audio: "48.2 s", "12 min 30 s", "3 h 12 min", "1,204 h"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    whole, minutes = divmod(round(seconds / 60), 60)
    if whole >= 100:
        return f"{seconds / 3600:,.0f} h"
    return f"{whole} h {minutes} min" if minutes else f"{whole} h"


def seconds_text(seconds: float) -> str:
    """A short time with the digits that matter: "0.32 s", "12.5 s"."""
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s" if seconds < 100 else hours(seconds)


def count_text(number: int, noun: str, plural: str | None = None) -> str:
    """A number of things: "1 segment", "2,000 segments"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def percent(share: float | None, *, digits: int = 1) -> str:
    """A share as a percentage; a dash where it is not known."""
    if share is None:
        return "\u2013"
    text = f"{share:.{digits}%}"
    return f"<{10**-digits:.{digits}f}%" if share and float(text[:-1]) == 0 else text


def bar_range(start: float, end: float | None, unit: str = "") -> str:
    """What a bin holds: "2 to 3 s", "30 s and more"."""
    unit = f" {unit}" if unit else ""
    return f"{start:,g}{unit} and more" if end is None else f"{start:,g} to {end:,g}{unit}"


def short(name: str, *, most: int = 60) -> str:
    """The end of a path or URL, which tells recordings apart."""
    parts = visible(name).rsplit("/", _NAME_PARTS)
    text = "/".join(parts[-_NAME_PARTS:]) if len(parts) > _NAME_PARTS else "/".join(parts)
    return text if len(text) <= most else "…" + text[1 - most :]


def time_text(text: str) -> str:
    """When something was, ISO 8601, to the minute: "2026-11-01 01:30"."""
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return visible(text, most=40)


def visible(text: str, *, most: int | None = None) -> str:
    """Text in which nothing is hidden or turns the order of letters; cut after ``most`` characters."""
    if most is not None and len(text) > most:
        text = text[:most] + "…"
    text = re.sub(r"\s+", " ", text)
    return "".join(
        char if char.isprintable() or char in _JOINERS else char.encode("unicode_escape").decode()
        for char in text
    )
