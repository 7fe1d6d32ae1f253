"""Who speaks when, as NIST's RTTM files have it, and what of a recording counts, as UEM files have it."""

from __future__ import annotations

import math
import re
from typing import NamedTuple
from urllib.parse import unquote

from w2v_ray.errors import InputError
from w2v_ray.inputs.named_files import read_lines

__all__ = ["Turn", "read_rttm", "read_uem", "rttm_field", "rttm_line"]

# In the fields of a line that white space separates: that, the escape itself, and what begins a comment.
_UNSAFE_IN_FIELD = re.compile(r"[%\s\x00-\x1f\x7f-\x9f]|^;")


class Turn(NamedTuple):
    """Somebody speaks, or a class is active."""

    label: str
    start_s: float
    """Seconds from the beginning of the recording."""
    end_s: float


def read_rttm(path: str) -> dict[str, list[Turn]]:
    """The SPEAKER lines of an RTTM file, by recording; other lines and channels are not looked at.

    Args:
        path: Text file, plain or gzip; path or URL. Percent-encoded names are decoded.

    Raises:
        InputError: It cannot be read, has no such lines, or one of them cannot be understood.
    """
    found: dict[str, list[Turn]] = {}
    for number, line in read_lines(path):
        if line.startswith(";"):
            continue
        fields = line.split()
        if fields[0] != "SPEAKER":
            continue
        if len(fields) < 8:
            raise InputError(
                f"{path!r} line {number} has {len(fields)} fields, expected SPEAKER FILE CHANNEL START "
                "DURATION <NA> <NA> NAME; write <NA> for what is not known"
            )
        start_s = _seconds(path, number, "start", fields[3])
        duration_s = _seconds(path, number, "duration", fields[4])
        found.setdefault(unquote(fields[1]), []).append(Turn(fields[7], start_s, start_s + duration_s))
    if not found:
        raise InputError(f"{path!r} has no SPEAKER lines; name an RTTM file with some")
    return found


def read_uem(path: str) -> dict[str, list[tuple[float, float]]]:
    """What of each recording counts: start and end in seconds, from a UEM file.

    Args:
        path: Text file, plain or gzip; path or URL. Percent-encoded names are decoded.

    Raises:
        InputError: It cannot be read, has no lines, or one of them cannot be understood.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for number, line in read_lines(path):
        if line.startswith(";"):
            continue
        fields = line.split()
        if len(fields) != 4:
            raise InputError(
                f"{path!r} line {number} has {len(fields)} fields, expected FILE CHANNEL START END"
            )
        start_s, end_s = (
            _seconds(path, number, *pair) for pair in (("start", fields[2]), ("end", fields[3]))
        )
        if end_s < start_s:
            raise InputError(f"{path!r} line {number} ends at {end_s}, before it starts at {start_s}")
        found.setdefault(unquote(fields[0]), []).append((start_s, end_s))
    if not found:
        raise InputError(f"{path!r} has no lines; name a UEM file with some")
    return found


def rttm_line(recording_id: str, turn: Turn, *, channel: int = 1) -> str:
    """A SPEAKER line, to the millisecond; channels count from 1."""
    start_ms, end_ms = round(turn.start_s * 1000), round(turn.end_s * 1000)
    times = f"{start_ms / 1000:.3f} {(end_ms - start_ms) / 1000:.3f}"
    who = "_".join(turn.label.split()) or "<NA>"
    return f"SPEAKER {rttm_field(recording_id)} {channel} {times} <NA> <NA> {who} <NA> <NA>\n"


def rttm_field(text: str) -> str:
    """An id as one field of a line: percent-encoded where it must be."""
    return _UNSAFE_IN_FIELD.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), text)


def _seconds(path: str, number: int, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InputError(f"{path!r} line {number} has the {name} {text!r}, expected seconds from 0")
    return value
