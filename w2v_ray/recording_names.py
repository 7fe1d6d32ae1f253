"""Which recording a short name means, as lists of trials, RTTM files and tables of labels have them.

Such a name is the recording's id, or what is left of it without folders in front, without the extension, or
without both: ``/archive/id10270/x/00001.wav`` is also ``id10270/x/00001.wav``, ``00001.wav`` and ``00001``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from w2v_ray.errors import InputError

__all__ = ["match_names"]

_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}(?=(#c\d+)?$)")
_BOUNDARY = re.compile(r"[/#]")


def match_names(wanted: Collection[str], names: Iterable[tuple[str, int]], *, source: str) -> dict[str, int]:
    """The number of what each wanted name means; names that mean nothing are not there.

    Args:
        wanted: Ids, or their ends.
        names: Full names and the number of what each stands for; several may stand for one, the best first.
        source: What holds the wanted names, for the error.

    Raises:
        InputError: A wanted name is the end of several names.
    """
    names = list(names)
    found = _matched(set(wanted), names, names, source)
    rest = set(wanted) - found.keys()
    if rest:
        ends = ((end, number) for name, number in names for end in _ends(name))
        found |= _matched(rest, ends, names, source)
    return found


def _matched(
    wanted: set[str], ends: Iterable[tuple[str, int]], names: list[tuple[str, int]], source: str
) -> dict[str, int]:
    found: dict[str, int] = {}
    for end, number in ends:
        if end in wanted and found.setdefault(end, number) != number:
            one, other = (next(name for name, of in names if of == which) for which in (found[end], number))
            raise InputError(
                f"{source} names {end!r}, which may be {one!r} or {other!r}; write more of the id"
            )
    return found


def _ends(name: str) -> Iterator[str]:
    starts = [0, *(match.end() for match in _BOUNDARY.finditer(name))]
    for start in starts:
        end = name[start:]
        yield end
        if (stem := _EXTENSION.sub("", end)) != end and stem:
            yield stem
