"""Places at which a process can be made to die, so that what follows a death there can be tested.

``W2V_RAY_CRASH_AT=commit.done`` ends a process without a word the first time it comes to that point, and
``W2V_RAY_CRASH_AT=commit.done:3`` the third time. Unset, the points do nothing.
"""

from __future__ import annotations

import os

__all__ = ["CRASH_POINTS", "EXIT_CODE", "crash_point"]

EXIT_CODE = 137  # as of a process that was killed

CRASH_POINTS = (
    "write.half",  # half of a file is in _tmp/
    "write.whole",  # all of it is there, under no name yet
    "write.done",  # it has its name
    "plan.claimed",  # the output is the job's
    "plan.ready",  # what is new is known and not written
    "plan.done",  # the plan file is there
    "commit.ready",  # nothing of the shard is written
    "commit.rejects",  # its rejects are
    "commit.kept",  # and its log-probabilities, where a job keeps them
    "commit.done",  # and its rows
    "compact.ready",  # the shards of a compacted file are read
    "compact.written",  # the file is there, and so are the parts
    "compact.removing",  # one of the parts is gone
    "clean.removing",  # one of the leftovers is gone
)

_passed: dict[str, int] = {}


def crash_point(name: str) -> None:
    """Ends the process at once if it is told to die here."""
    wanted = os.environ.get("W2V_RAY_CRASH_AT")
    if wanted is None:
        return
    assert name in CRASH_POINTS, name
    point, _, count = wanted.partition(":")
    if point == name:
        _passed[name] = _passed.get(name, 0) + 1
        if _passed[name] >= int(count or 1):
            os._exit(EXIT_CODE)
