"""Submitting a job to a Ray that runs somewhere, through its Jobs API, so that it is there once."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from typing import Any

from w2v_ray.errors import ConfigError, JobError, MissingExtraError
from w2v_ray.job_text import label

__all__ = ["Submission", "submit"]

_END = "END_OF_JOB"
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
        ConfigError: The job server cannot be reached.
    """
    client = _client(address)
    name = label(name, length=200)
    job_ids = {one.submission_id: one for one in client.list_jobs() if one.submission_id}
    attempt = 1
    while (submission_id := name if attempt == 1 else f"{name}-{attempt}") in job_ids:
        if job_ids[submission_id].status.value not in _OVER:
            return Submission(client, submission_id, is_new=False)
        attempt += 1
    command = shlex.join(["w2v-ray", "run", "/dev/stdin", *options])
    try:
        client.submit_job(
            entrypoint=f"{command} <<'{_END}'\n{text.rstrip()}\n{_END}",
            submission_id=submission_id,
            runtime_env={"working_dir": working_dir} if working_dir else {},
            metadata={"name": name},
        )
    except RuntimeError:
        if submission_id not in {one.submission_id for one in client.list_jobs()}:
            raise
        return Submission(client, submission_id, is_new=False)  # somebody else was as fast
    return Submission(client, submission_id, is_new=True)


def _client(address: str | None) -> Any:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except RuntimeError as error:
        if "ray[default]" in str(error):
            raise MissingExtraError(
                "`w2v-ray submit` needs the extra 'submit'; run pip install 'w2v_ray[submit]'"
            ) from error
        raise
    except ConnectionError as error:
        raise ConfigError(
            f"no job server answers at {address or 'the address of RAY_ADDRESS'} "
            f"({' '.join(str(error).split())[:200]}); name one with --address http://HEAD:8265"
        ) from error
