"""Submitting a job to a Ray that runs somewhere, through its Jobs API, so that it is there once."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from w2v_ray.errors import ConfigError, JobError, MissingExtraError
from w2v_ray.job_text import label

__all__ = ["Submission", "submit"]

_END = "END_OF_JOB"
_SERVER = "RAY_API_SERVER_ADDRESS"
_START_S = 120.0  # in which a head that has just started takes jobs
# They tell of every package that is sent.
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # in the order in which Ray looks at them
_OVER = ("SUCCEEDED", "FAILED", "STOPPED")


class Submission:
    """A job that was submitted.

    Args:
        client: A ``JobSubmissionClient`` of Ray.
        submission_id: The job's name there.
        is_new: Whether it was submitted now; otherwise it was there and had not ended.
    """

    def __init__(self, client: Any, submission_id: str, *, is_new: bool) -> None:
        self._client = client
        self.submission_id = submission_id
        self.is_new = is_new

    def follow(self, write: Callable[[str], object]) -> int:
        """Passes on what the job prints until it ends, and returns its exit code.

        Raises:
            JobError: It was stopped, or never started.
        """
        with warnings.catch_warnings():
            # Ray 2.60 to 2.63 asks aiohttp for what it calls deprecated.
            warnings.filterwarnings("ignore", "ssl=None is deprecated")
            asyncio.run(self._tail(write))
        info = self._client.get_job_info(self.submission_id)
        if info.driver_exit_code is None:
            raise JobError(
                f"{self.submission_id} is {info.status.value} without an exit code ({info.message}); "
                "submit it again to go on from there"
            )
        return int(info.driver_exit_code)

    async def _tail(self, write: Callable[[str], object]) -> None:
        async for lines in self._client.tail_job_logs(self.submission_id):
            write(lines)


def submit(
    text: str,
    *,
    name: str,
    address: str | None,
    working_dir: str | None = None,
    options: tuple[str, ...] = (),
) -> Submission:
    """Submits a job, or finds it where it was submitted already and has not ended.

    One that has ended is submitted again, as ``NAME-2`` and so on: it does what is missing.

    Args:
        text: The job, as of a job file.
        name: What tells this job from others, and makes two submissions one.
        address: Of the job server, ``http://HEAD:8265``; None: what RAY_API_SERVER_ADDRESS or RAY_ADDRESS
            says.
        working_dir: A folder that is sent along, in which the job runs; relative paths of the job are in it.
        options: Further options of `w2v-ray run`.

    Raises:
        MissingExtraError: Ray's client of the Jobs API is not installed.
        ConfigError: The address is no URL, or the job server cannot be reached, or asks for a token that is
            not here.
    """
    if address is not None and not address.startswith(("http://", "https://")):
        host = address.rpartition("://")[2].partition(":")[0] or "HEAD"
        raise ConfigError(f"address is {address!r}, expected that of a job server; try http://{host}:8265")
    client = _client(address)
    name = label(name, length=200)
    job_ids = {one.submission_id: one for one in client.list_jobs() if one.submission_id}
    attempt = 1
    while (submission_id := name if attempt == 1 else f"{name}-{attempt}") in job_ids:
        if job_ids[submission_id].status.value not in _OVER:
            return Submission(client, submission_id, is_new=False)
        attempt += 1
    command = shlex.join(["w2v-ray", "run", "/dev/stdin", *options])
    request = {
        "entrypoint": f"{command} <<'{_END}'\n{text.rstrip()}\n{_END}",
        "submission_id": submission_id,
        "runtime_env": {"working_dir": working_dir} if working_dir else {},
        "metadata": {"name": name},
    }
    return Submission(client, submission_id, is_new=_was_taken(client, request))


def _was_taken(client: Any, request: dict[str, Any]) -> bool:
    """Sends the request; False where somebody else was as fast, and the job is there without it."""
    deadline = time.monotonic() + _START_S
    while True:
        try:
            client.submit_job(**request)
            return True
        except RuntimeError as error:
            if request["submission_id"] in {one.submission_id for one in client.list_jobs()}:
                return False
            if "status code 413" in str(error):
                raise ConfigError(
                    f"working_dir is {request['runtime_env'].get('working_dir')!r}, and a job server takes "
                    "100 MiB at most; name a folder without audio, or list in its .gitignore what stays here"
                ) from error
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(2)


def _client(address: str | None) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    if logging.getLogger().getEffectiveLevel() > logging.DEBUG:
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
    named = next((name for name in _VARIABLES if os.environ.get(name)), None)
    place = address or (f"the address of {named}" if named else "this machine (RAY_ADDRESS is not set)")
    try:
        with _before_the_environment(address):
            try:
                return JobSubmissionClient(address)
            except AuthenticationError:
                # Ray's own client looks for its token only where RAY_AUTH_MODE says so.
                if (token := _token()) is None:
                    raise
                return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"})
    except AuthenticationError as error:
        raise ConfigError(
            f"the job server at {place} asks for a token, and there is none here that it takes; put that of "
            "the cluster into RAY_AUTH_TOKEN"
        ) from error
    except RuntimeError as error:
        if "ray[default]" in str(error):
            raise MissingExtraError(
                "`w2v-ray submit` needs the extra 'submit'; run pip install 'w2v_ray[submit]'"
            ) from error
        raise
    except ConnectionError as error:
        raise ConfigError(
            f"no job server answers at {place}; name one with --address http://HEAD:8265"
        ) from error


@contextmanager
def _before_the_environment(address: str | None) -> Iterator[None]:
    """Lets an address that was named count, where Ray's client takes RAY_ADDRESS instead if that is set."""
    before = os.environ.get(_SERVER)
    if address:
        os.environ[_SERVER] = address
    try:
        yield
    finally:
        if address:
            del os.environ[_SERVER]
            if before is not None:
                os.environ[_SERVER] = before


def _token() -> str | None:
    """The token that Ray has here, from where it looks itself."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None
