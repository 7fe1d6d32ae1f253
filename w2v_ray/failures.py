"""Errors on their way from a worker to a person: which stage each came out of, and what is told of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from w2v_ray.errors import JobError, W2vRayError

__all__ = ["described", "expected_error", "placed", "unexpected_error"]

logger = logging.getLogger(__name__)

_PLACE = "in the stage "  # how a note begins that says where an error came from
_MOST_CHARACTERS = 400
# What Ray Data adds to the words of an error: how often it tried, and settings that are not to be had here.
_ADVICE = re.compile(r"\nFailed to .* after \d+/\d+ attempts.*", re.DOTALL)


@contextmanager
def placed(stage: str, shard: str | None = None) -> Iterator[None]:
    """Notes on an error that is not of this package which stage and shard it came out of, and logs it.

    The log is that of the worker: what Ray sends to the driver has lost the errors behind the last one.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, W2vRayError):
            place = stage if shard is None else f"{stage} with shard {shard}"
            logger.exception("%s failed", place)
            error.add_note(_PLACE + place)
        raise


def expected_error(error: BaseException) -> W2vRayError | None:
    """The error of this package that is at the bottom of what Ray made of it; None: there is none."""
    found = [one for one in _chain(error) if type(one).__module__ == W2vRayError.__module__]
    if not found:
        return None
    return cast(W2vRayError, type(found[-1])(_ADVICE.sub("", str(found[-1]))))


def unexpected_error(error: BaseException, *, record: str | None, logs: str) -> JobError:
    """What a person is told of an error that nobody expected.

    Args:
        error: As Ray raised it.
        record: The record of the run; None: it has none.
        logs: The folder of Ray's logs.
    """
    notes = [note for one in _chain(error) for note in getattr(one, "__notes__", ())]
    place = next((note.removeprefix(_PLACE) for note in notes if note.startswith(_PLACE)), None)
    where = f"the logs of workers in {logs}" + (f" and the run's record {record}" if record else "")
    return JobError(
        f"the job failed{f' at {place}' if place else ''} ({described(error)}); what is published stays: "
        f"see {where}, mend what is wrong, and run the same command again"
    )


def described(error: BaseException) -> str:
    """The class and the words of what went wrong, without Ray's layers around it and its advice after it."""
    chain = _chain(error)
    of_ray = [one for one in chain if type(one).__module__.partition(".")[0] == "ray"]
    root = next((one for one in reversed(chain) if one not in of_ray), None)
    lines = [line.strip() for line in _ADVICE.sub("", str(root or error)).splitlines() if line.strip()]
    text = " ".join(lines if root is not None else lines[:1]).rstrip(".;")
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[: _MOST_CHARACTERS - 3]}..."
    return f"{type(root or error).__name__}: {text or 'no message'}"


def _chain(error: BaseException) -> list[BaseException]:
    """An error and all that it was raised from, or carries as the cause that a worker had."""
    seen: list[BaseException] = []
    left: list[object] = [error]
    while left:
        last = left.pop()
        if isinstance(last, BaseException) and last not in seen:
            seen.append(last)
            left += [last.__cause__, getattr(last, "cause", None)]
    return seen
