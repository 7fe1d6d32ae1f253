"""Single files that a command is asked to write: there whole or not at all, and nothing else beside them."""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from w2v_ray import stores
from w2v_ray.errors import OutputError

__all__ = ["check_result", "write_lines", "write_table"]


def check_result(path: str) -> None:
    """Sees that a file can be written, so that nobody computes for an hour to learn that it cannot.

    Raises:
        OutputError: It is a folder, or the folder it lies in does not exist or cannot be written.
    """
    if (reason := stores.refusal(path)) is not None:
        raise OutputError(f"output {path!r} {reason}")
    if not stores.is_local(path):
        stores.check_writable(posixpath.dirname(stores.canonical(path)))
        return
    place = stores.local_path(path)
    if os.path.isdir(place):
        raise OutputError(f"{path!r} is a folder; name a file in it")
    if not os.access(os.path.dirname(place), os.W_OK | os.X_OK):
        raise OutputError(f"the folder of {path!r} does not exist or may not be written; make it first")


def write_table(table: pa.Table, path: str) -> None:
    """Writes a Parquet file.

    Raises:
        OutputError: The store refuses.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    _write(path, sink.getvalue().to_pybytes())


def write_lines(lines: Iterable[str], path: str) -> None:
    """Writes a text file of lines that end in their line ends.

    Raises:
        OutputError: The store refuses.
    """
    _write(path, "".join(lines).encode(errors="surrogateescape"))


def _write(path: str, data: bytes) -> None:
    path = stores.canonical(path)
    stores.publish(path, data)
    if stores.is_local(path):
        with contextlib.suppress(OSError):  # others may be writing there
            os.rmdir(os.path.join(os.path.dirname(stores.local_path(path)), "_tmp"))
