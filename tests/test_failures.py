"""Errors that nobody expected, as a person meets them: the cause, the place and what to do, in a sentence."""

from __future__ import annotations

import pickle

import pytest
import ray.exceptions

from w2v_ray.errors import CheckpointError, JobError
from w2v_ray.failures import described, expected_error, placed, unexpected_error

ADVICE = (
    "\nFailed to apply UDF transform after 1/1 attempts (total backoff 0.0s).\nTo change retry attempts, "
    "configure `ray.data.DataContext.get_current()`."
)


def raised(stage: str, error: Exception) -> Exception:
    try:
        with placed(stage, "0a1b"):
            raise error
    except Exception as seen:
        return pickle.loads(pickle.dumps(seen))  # as it comes from a worker
    raise AssertionError("it raises")


def of_ray(cause: Exception) -> Exception:
    text = "Traceback (most recent call last):\n  File\nsomething\nSet max_retries to try again."
    error: Exception = ray.exceptions.RayTaskError("f", text, cause).as_instanceof_cause()
    return error


def test_the_stage_the_cause_and_the_places_to_look_are_named() -> None:
    error = of_ray(raised("write_parquet", OSError(28, "No space left on device")))
    told = unexpected_error(error, record="out/_runs/r.json", logs="/tmp/ray/logs")
    assert str(told) == (
        "the job failed at write_parquet with shard 0a1b (OSError: [Errno 28] No space left on device); "
        "what is published stays: see the logs of workers in /tmp/ray/logs and the run's record "
        "out/_runs/r.json, mend what is wrong, and run the same command again"
    )
    assert expected_error(error) is None
    told = unexpected_error(of_ray(KeyError("x")), record=None, logs="logs")
    assert str(told).startswith("the job failed (KeyError: 'x'); what is published stays: see the logs of")
    assert "record" not in str(told)


def test_errors_of_this_package_are_as_they_were_raised() -> None:
    error = raised("encode", CheckpointError("config.json is missing; add it"))
    assert not hasattr(error, "__notes__")
    found = expected_error(of_ray(error))
    assert (type(found), str(found)) == (CheckpointError, "config.json is missing; add it")
    behind = RuntimeError("outside")
    behind.__cause__ = JobError(f"inside{ADVICE}")
    assert str(expected_error(behind)) == "inside"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("two\n  lines;"), "RuntimeError: two lines"),
        (ValueError(), "ValueError: no message"),
        (RuntimeError(f"it broke{ADVICE}"), "RuntimeError: it broke"),
        (RuntimeError("x" * 1000), f"RuntimeError: {'x' * 397}..."),
        (
            ray.exceptions.OutOfMemoryError("the node ran low\nSet the variable X"),
            "OutOfMemoryError: the node ran low",
        ),
    ],
)
def test_what_went_wrong_is_said_without_layers_and_advice(error: Exception, text: str) -> None:
    assert described(error) == text
    if not isinstance(error, ray.exceptions.RayError):
        assert described(of_ray(error)) == text
