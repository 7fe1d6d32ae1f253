"""SIGTERM and Ctrl-C in a process: who hears of them, when, and what is in place afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from w2v_ray.termination import Terminated, deferred_signals, kept_sigterm, taken_sigterm

SAID = b"ended by SIGTERM; what is published stays: run the same command again to go on\n"


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        assert number == signal.SIGINT or signal.getsignal(number) is handler, "it is put back"
        signal.signal(number, handler)


@taken_sigterm()
def told_twice() -> None:
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.raise_signal(signal.SIGTERM)  # while it cleans up


@taken_sigterm()
def told_and_lost() -> None:
    try:
        signal.raise_signal(signal.SIGTERM)
    except Terminated:
        raise RuntimeError("as Ray makes of it") from None


def test_sigterm_is_raised_once() -> None:
    with pytest.raises(Terminated):
        told_twice()
    assert issubclass(Terminated, KeyboardInterrupt)


def test_an_error_after_it_counts_as_it_and_one_before_does_not() -> None:
    with pytest.raises(Terminated) as told:
        told_and_lost()
    assert isinstance(told.value.__cause__, RuntimeError)
    with pytest.raises(RuntimeError, match="its own"), taken_sigterm():
        raise RuntimeError("its own")


def test_a_thread_beside_takes_nothing() -> None:
    seen: list[object] = []

    def look() -> None:
        with taken_sigterm(), kept_sigterm(), deferred_signals() as ending:
            seen.extend([signal.getsignal(signal.SIGTERM), ending.error])

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM), None]


def test_a_run_hears_of_both_and_is_not_interrupted() -> None:
    with taken_sigterm():
        with deferred_signals() as ending:
            assert ending.error is None
            signal.raise_signal(signal.SIGTERM)
            assert isinstance(ending.error, Terminated)
        signal.raise_signal(signal.SIGTERM)  # what comes later changes nothing
    with deferred_signals() as ending:
        signal.raise_signal(signal.SIGINT)
        assert type(ending.error) is KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt):  # who does not want to wait
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_others_stay() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with kept_sigterm(), deferred_signals() as ending:
            signal.raise_signal(signal.SIGTERM)
        assert (heard, ending.error) == ([signal.SIGTERM], None)
    finally:
        signal.signal(signal.SIGTERM, before)


def leave(number: int, frame: object) -> None:
    sys.exit(number)


@taken_sigterm()
def told_after_the_start() -> None:
    with kept_sigterm():
        signal.signal(signal.SIGTERM, leave)  # as ray.init does
    signal.raise_signal(signal.SIGTERM)


@taken_sigterm()
@kept_sigterm()
def told_meanwhile() -> None:
    signal.signal(signal.SIGTERM, leave)
    signal.raise_signal(signal.SIGTERM)


def test_what_starts_ray_keeps_the_answer() -> None:
    for told in (told_after_the_start, told_meanwhile):
        with pytest.raises(Terminated):
            told()
    with pytest.raises(SystemExit, match="3"), taken_sigterm(), kept_sigterm():
        sys.exit(3)


def test_a_command_that_does_not_end_is_left() -> None:
    script = (
        "import signal, time; from w2v_ray import termination as t; t._LEAVE_AFTER_S = 0.2\n"
        "with t.taken_sigterm(), t.deferred_signals():\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    time.sleep(60)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30, check=False)
    assert (result.returncode, result.stderr) == (143, SAID)
