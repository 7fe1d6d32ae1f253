"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import random

from w2v_ray.crash_points import crash_point
from w2v_ray.errors import OutputError
from w2v_ray.stores.listing import exists
from w2v_ray.stores.places import is_read_only, join, refusal, split
from w2v_ray.stores.requests import call, explain
from w2v_ray.stores.unfinished import unfinished_name

__all__ = ["check_place", "check_writable", "publish", "remove"]


def publish(path: str, data: bytes, *, root: str | None = None, exclusive: bool = False) -> bool:
    """Makes ``data`` the content of ``path`` in one step: whoever reads sees all of it or nothing.

    Args:
        path: The file; folders above it are made as needed.
        data: The content.
        root: The folder whose ``_tmp/`` takes the unfinished local file; None: that of ``path``.
        exclusive: Never replace a file: of several writers exactly one succeeds.

    Returns:
        Whether it was written; False only if ``exclusive`` and the file exists.

    Raises:
        OutputError: The store refuses.
    """
    protocol, target = split(path)
    try:
        if protocol == "file":
            _publish_local(target, data, split(root)[1] if root else os.path.dirname(target), exclusive)
        else:
            crash_point("write.whole")
            if not (exclusive and _created(protocol, target, data)):
                if exclusive and exists(path):  # where a store cannot do both at once
                    return False
                call(protocol, "pipe_file", target, data)
    except FileExistsError:
        return False
    except Exception as error:  # each store has its own errors
        raise OutputError(f"{path!r} cannot be written ({explain(error)}); choose another output") from error
    crash_point("write.done")
    return True


def remove(path: str) -> None:
    """Deletes a file if it is there.

    Raises:
        OutputError: The store refuses.
    """
    protocol, target = split(path)
    try:
        if protocol == "file":
            os.unlink(target)
        elif exists(path):
            call(protocol, "rm_file", target)
    except FileNotFoundError:
        return
    except Exception as error:
        raise OutputError(f"{path!r} cannot be deleted ({explain(error)}); check its permissions") from error


def check_writable(output: str) -> None:
    """Makes the folder ``output`` and sees that files can be published below it.

    Raises:
        OutputError: The place is refused, is a file, or cannot be written.
    """
    _check(output, _refusal_to_write(output))
    protocol, _ = split(output)
    probe = join(output, "_tmp", unfinished_name("writable") if protocol == "file" else "writable")
    try:
        publish(probe, b"w2v_ray", root=output)
        if protocol == "file":  # elsewhere the right to delete is not needed
            remove(probe)
    except OutputError as error:
        _check(output, f"cannot be written ({explain(error.__cause__ or error)}); name a folder that can")


def check_place(output: str) -> None:
    """Sees that ``output`` may be an output, as far as that can be told without writing.

    Raises:
        OutputError: The place is refused, is a file or lies below one, or the folder is closed to this user.
    """
    _check(output, _refusal_to_write(output))
    protocol, path = split(output)
    if protocol != "file":
        return
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        _check(output, f"lies below the file {path!r}; name a folder")
    if not os.access(path, os.W_OK | os.X_OK):
        _check(output, f"cannot be written ({path!r} is closed to this user); name a folder that can")


def _refusal_to_write(output: str) -> str | None:
    """Why nothing can be written there, as the end of a sentence, as far as the name tells."""
    protocol, path = split(output)
    if is_read_only(output):
        return "is a web address, where nothing is written; name a folder or a store"
    if (reason := refusal(output)) is not None:
        return reason
    if protocol == "memory":
        return "is memory, which worker processes do not share; name a folder or a store"
    if protocol == "file" and os.path.exists(path) and not os.path.isdir(path):
        return "is a file; name a folder"
    return None


def _check(output: str, reason: str | None) -> None:
    if reason is not None:
        raise OutputError(f"output {output!r} {reason}")


def _created(protocol: str, target: str, data: bytes) -> bool:
    """Whether the store has made a file that was not there; FileExistsError where it was."""
    if protocol not in ("s3", "gs"):
        return False
    writer = f"{random.getrandbits(128):032x}"
    options = {"Metadata": {"writer": writer}} if protocol == "s3" else {}
    try:
        call(protocol, "pipe_file", target, data, mode="create", **options)
    except FileExistsError:
        # Where an answer is lost on its way, clients ask again: then it is our own file that is there.
        if protocol != "s3" or _writer(target) != writer:
            raise
    except OSError as error:
        if error.errno == errno.ENOSYS:  # some servers of the S3 protocol do not know conditions
            return False
        raise
    return True


def _writer(target: str) -> str | None:
    bucket, _, key = target.partition("/")
    found = call("s3", "call_s3", "head_object", Bucket=bucket, Key=key)
    writer: str | None = found.get("Metadata", {}).get("writer")
    return writer


def _publish_local(target: str, data: bytes, root: str, exclusive: bool) -> None:
    folder, name = os.path.split(target)
    unfinished = os.path.join(root, "_tmp", unfinished_name(name))
    for path in (folder, os.path.dirname(unfinished)):
        try:
            os.makedirs(path, exist_ok=True)
        except FileExistsError as error:  # which would say that the file itself is there
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from error
    try:
        with open(unfinished, "xb") as file:
            view, half = memoryview(data), len(data) // 2
            file.write(view[:half])
            crash_point("write.half")
            file.write(view[half:])
            file.flush()
            os.fsync(file.fileno())
        crash_point("write.whole")
        if exclusive:
            try:
                os.link(unfinished, target)  # fails if the name exists, unlike a rename
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS) or os.path.exists(target):
                    raise
                os.replace(unfinished, target)  # a mounted store that has no hard links
        else:
            os.replace(unfinished, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
    for path in (folder, os.path.dirname(folder)):  # the file's name, and the folder's own if it is new
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
