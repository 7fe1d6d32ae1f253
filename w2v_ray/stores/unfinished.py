"""Files that are being written, in the ``_tmp/`` of a folder: their names, and removing what nobody finishes.

A name says which process of which machine writes the file, so that nobody removes another's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import socket
import time
from functools import cache
from pathlib import Path

from w2v_ray.crash_points import crash_point
from w2v_ray.stores.places import split

__all__ = ["remove_unfinished", "unfinished_name"]

_NAME = re.compile(r".*\.([0-9a-f]{12})\.(\d+)\.[0-9a-f]+")
_OLD_S = 24 * 3600.0


def unfinished_name(name: str) -> str:
    """What the file that will be called ``name`` is called while this process writes it."""
    return f"{name}.{_machine()}.{os.getpid()}.{random.getrandbits(48):x}"


def remove_unfinished(root: str) -> int:
    """Removes files from ``_tmp/`` whose process is dead, or which nobody has written to for a day.

    Returns:
        How many it removed.
    """
    protocol, path = split(root)
    if protocol != "file":  # stores show no file before it is whole
        return 0
    removed = 0
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for entry in list(os.scandir(os.path.join(path, "_tmp"))):
            match = _NAME.fullmatch(entry.name)
            with contextlib.suppress(FileNotFoundError):  # its writer, or another run, was faster
                is_dead = match is not None and match[1] == _machine() and not _is_alive(int(match[2]))
                if is_dead or time.time() - entry.stat().st_mtime > _OLD_S:
                    os.unlink(entry.path)
                    removed += 1
                    crash_point("clean.removing")
    return removed


@cache
def _machine() -> str:
    """Where a process number means the same process: a machine since it was started, or a container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
