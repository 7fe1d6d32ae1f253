"""SIGTERM and Ctrl-C: a command ends in order, and a run is not interrupted in the middle of what it does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Ending", "Terminated", "deferred_signals", "kept_sigterm", "taken_sigterm"]


# Schedulers kill after half a minute. A Ray whose own processes were told to end as well may never answer.
_LEAVE_AFTER_S = 20.0
_SAID = b"ended by SIGTERM; what is published stays: run the same command again to go on\n"
_timers: list[threading.Timer] = []


class Terminated(KeyboardInterrupt):
    """The process was told to end by SIGTERM; whoever cleans up after Ctrl-C does so after this."""


class Ending:
    """What a run was told of its end, if anything."""

    error: KeyboardInterrupt | None = None


@contextmanager
def taken_sigterm() -> Iterator[None]:
    """Raises `Terminated` in the main thread when the first SIGTERM comes; later ones change nothing.

    What the block raises after it counts as `Terminated` too: Ray turns what it does not know into errors.
    """
    if not _is_main_thread():  # where no handler can be set
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except Exception as error:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:  # it came
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        while _timers:
            _timers.pop().cancel()


def _leave_later() -> None:
    """Ends the process at last, however long what is cleaned up takes."""
    _timers.append(threading.Timer(_LEAVE_AFTER_S, _leave))
    _timers[-1].daemon = True
    _timers[-1].start()


def _leave() -> None:
    os.write(2, _SAID)
    os._exit(128 + signal.SIGTERM)


def _terminate(number: int, frame: FrameType | None) -> None:
    _leave_later()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what ends the run must not be ended by another one
    raise Terminated


@contextmanager
def kept_sigterm() -> Iterator[None]:
    """Keeps the answer of `taken_sigterm` while Ray starts, which would put its own in its place.

    Ray's answer is to leave at once, with workers, metrics and the run's record as they are.
    """
    if not _is_main_thread() or signal.getsignal(signal.SIGTERM) is not _terminate:
        yield
        return
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM:  # it came while Ray's answer was in place
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise Terminated from error
        raise
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, _terminate)


@contextmanager
def deferred_signals() -> Iterator[Ending]:
    """Notes SIGTERM and the first Ctrl-C instead of raising them; a second Ctrl-C is raised at once.

    An exception that comes out of nowhere can leave a lock locked, and then the end of a run never comes.
    """
    ending = Ending()
    before: dict[signal.Signals, Any] = {}
    known = {signal.SIGTERM: _terminate, signal.SIGINT: signal.default_int_handler}

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and ending.error is not None:
            raise KeyboardInterrupt
        if number == signal.SIGTERM and not _timers:
            _leave_later()
        ending.error = ending.error or (Terminated() if number == signal.SIGTERM else KeyboardInterrupt())

    for number, handler in known.items():
        if _is_main_thread() and signal.getsignal(number) is handler:  # else it is somebody else's
            before[number] = signal.signal(number, note)
    try:
        yield ending
    finally:
        for number, handler in before.items():
            is_told = number == signal.SIGTERM and isinstance(ending.error, Terminated)
            signal.signal(number, signal.SIG_IGN if is_told else handler)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
