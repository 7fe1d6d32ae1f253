"""Publishing what an export makes: many small files at a time, or one that may be larger than memory."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, cast

from w2v_ray import stores
from w2v_ray.errors import OutputError

__all__ = ["Folder"]

_LOCAL_THREADS = 4
_REMOTE_THREADS = 32
_IN_MEMORY_BYTES = 128 << 20


class Folder:
    """The folder that receives an export; leaving it waits until everything is there.

    Raises:
        OutputError: There or at any later file: the place is refused or cannot be written.
    """

    def __init__(self, output: str) -> None:
        stores.check_writable(output)
        self.path = stores.canonical(output)
        self.num_files = 0
        self._num_threads = _LOCAL_THREADS if stores.is_local(output) else _REMOTE_THREADS
        self._pool = ThreadPoolExecutor(self._num_threads)
        self._unfinished: deque[Future[bool]] = deque()

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._unfinished and error is None:
                self._unfinished.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)
            # What seeing that the folder can be written left there, if one may: it is no part of an export.
            if stores.is_local(self.path):
                with contextlib.suppress(OSError):  # another export may be writing there
                    os.rmdir(os.path.join(stores.local_path(self.path), "_tmp"))
            else:
                with contextlib.suppress(OutputError):
                    stores.remove(stores.join(self.path, "_tmp", "writable"))

    def add(self, name: str, text: str) -> None:
        """Publishes a small file soon, beside others."""
        self.num_files += 1
        while len(self._unfinished) >= 2 * self._num_threads:
            self._unfinished.popleft().result()
        data = text.encode()
        path = stores.join(self.path, name)
        self._unfinished.append(self._pool.submit(stores.publish, path, data, root=self.path))

    def add_lines(self, name: str, texts: Iterable[str]) -> None:
        """Publishes a file of lines that come one after another, when all of them are there."""
        with TemporaryFile("w+", encoding="utf-8", newline="\n") as file:
            for text in texts:
                file.write(text)
            file.flush()
            self._publish(name, file)

    def add_file(self, name: str, source: Path) -> None:
        """Publishes a copy of a file."""
        with open(source, "rb") as file:
            self._publish(name, file)

    def _publish(self, name: str, file: IO[str] | IO[bytes]) -> None:
        self.num_files += 1
        path = stores.join(self.path, name)
        if os.fstat(file.fileno()).st_size <= _IN_MEMORY_BYTES:
            with open(file.fileno(), "rb", closefd=False) as again:
                again.seek(0)
                stores.publish(path, again.read(), root=self.path)
            return
        # As good as bytes to who writes it or sends it in parts, which clients of stores do with files of
        # this size; and not in memory as a whole. Never closed: that would hide an error.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        stores.publish(path, cast(bytes, data), root=self.path)
