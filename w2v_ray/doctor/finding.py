"""What a check found: one line, and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "note", "ok", "problem", "reason_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of a diagnosis."""

    check: str
    """What was looked at: "torch", "disk", "place"."""
    level: Literal["ok", "note", "problem"]
    """``note`` is worth knowing and keeps nothing from running."""
    text: str
    """What was found: versions, numbers, names; never a secret."""
    fix: str | None = None
    """What to do about it, one sentence."""


def ok(check: str, text: str) -> Finding:
    """A finding that all is well."""
    return Finding(check=check, level="ok", text=text)


def note(check: str, text: str, fix: str | None = None) -> Finding:
    """A finding that is worth knowing."""
    return Finding(check=check, level="note", text=text, fix=fix)


def problem(check: str, text: str, fix: str) -> Finding:
    """A finding that has to be mended."""
    return Finding(check=check, level="problem", text=text, fix=fix)


def reason_of(error: BaseException) -> str:
    """An error in one line: its class, and the last line that it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:200]}" if lines else type(error).__name__
