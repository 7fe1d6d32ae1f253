"""One item at a time in a process of its own: what crashes, hangs or takes all memory ends that alone.

Started as ``python -m w2v_ray.item_process FD`` it takes the maker of a stage from the socket FD, and then
tables, and sends back what the stage makes of each.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import cast

import pyarrow as pa

from w2v_ray import errors
from w2v_ray.errors import ItemError, W2vRayError, WorkerDeathError

__all__ = ["ItemProcess", "Stage"]

Stage = Callable[[pa.Table], pa.Table]

# Beyond what the process has when its stage is made. Two hours of samples take half a gigabyte.
_MOST_BYTES = 4 << 30
_START_S = 300.0  # for imports and the stage, a language model with it, on a busy machine
_GRACE_S = 10.0


class ItemProcess:
    """Runs a stage on tables of one item each in a child process, which is replaced where it dies.

    Args:
        maker: The pickled function that makes the stage.
        most_bytes: Address space that the child may take beyond what it begins with.
    """

    def __init__(self, maker: bytes, *, most_bytes: int = _MOST_BYTES) -> None:
        self._maker = maker
        self._most_bytes = most_bytes
        self._child: subprocess.Popen[bytes] | None = None
        self._link: Connection | None = None

    def __enter__(self) -> ItemProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def run(self, table: pa.Table, *, deadline_s: float) -> pa.Table:
        """What the stage makes of the table.

        Raises:
            WorkerDeathError: The child died of it, or took longer than ``deadline_s`` seconds.
            W2vRayError: As the stage raised it; an ``ItemError`` as ``StageError``.
            StageError: The stage raised something else.
        """
        link = self._link or self._start()
        try:
            link.send_bytes(pickle.dumps((_to_bytes(table), deadline_s)))
            if not link.poll(deadline_s):
                self._end()
                raise WorkerDeathError(
                    f"it was not done after {deadline_s:.0f} s in a process of its own; leave it out, or "
                    "raise item_deadline_seconds"
                )
            kind, value = pickle.loads(link.recv_bytes())
        except (EOFError, OSError):
            how = self._end()
            raise WorkerDeathError(
                f"it ended a worker, and then, alone, a process of its own by {how}; leave it out"
            ) from None
        if kind == "table":
            return pa.ipc.open_stream(value).read_all()
        error = getattr(errors, kind, errors.StageError)(value)
        raise cast(W2vRayError, error)

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._child = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), str(self._most_bytes)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        link = self._link = Connection(ours.detach())
        problem: str | None = "it took too long"
        try:
            link.send_bytes(self._maker)
            if link.poll(_START_S):
                problem = pickle.loads(link.recv_bytes())
        except (EOFError, OSError):
            problem = f"it ended by {self._end()}"
        if problem is not None:
            self._end()
            raise errors.JobError(f"a process to try items alone cannot start ({problem}); run again")
        return link

    def _end(self) -> str:
        """Ends the child, and says how it ended if it had by itself."""
        if self._link is not None:
            self._link.close()
        child, self._child, self._link = self._child, None, None
        if child is None:
            return "nothing"
        try:
            code = child.wait(1.0)  # one that has not crashed sees that the link is closed
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _to_bytes(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _limit_memory(most_bytes: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[5])  # of data: files that are mapped take none
    limit = pages * resource.getpagesize() + most_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))


def _serve(link: Connection, most_bytes: int) -> None:
    try:
        stage: Stage = pickle.loads(link.recv_bytes())()
        if sys.platform == "linux":
            _limit_memory(most_bytes)
    except Exception as error:
        link.send_bytes(pickle.dumps(f"{type(error).__name__}: {error}"))
        return
    link.send_bytes(pickle.dumps(None))
    while True:
        try:
            data, deadline_s = pickle.loads(link.recv_bytes())
        except EOFError:
            return
        # Should the worker be gone by then, nobody else ends this process.
        faulthandler.dump_traceback_later(deadline_s + _GRACE_S, exit=True)
        try:
            answer = "table", _to_bytes(stage(pa.ipc.open_stream(data).read_all()))
        except Exception as error:
            is_ours = isinstance(error, W2vRayError) and not isinstance(error, ItemError)
            answer = (
                type(error).__name__ if is_ours else "StageError",
                str(error) if is_ours else f"the stage failed with {type(error).__name__}: {error}",
            )
        faulthandler.cancel_dump_traceback_later()
        try:
            link.send_bytes(pickle.dumps(answer))
        except OSError:
            return  # the worker gave it up, or is gone


if __name__ == "__main__":
    os.dup2(2, 1)  # what decoders print is none of the answers
    _serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
