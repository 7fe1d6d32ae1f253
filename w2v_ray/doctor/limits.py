"""Checks of the machine: open files, shared memory, Ray's folder, memory, CPUs.

The standard library alone is needed, so that a cluster's nodes can be asked too.
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator

from w2v_ray.doctor.finding import Finding, note, ok, problem

__all__ = [
    "CHECKS",
    "check_cpus",
    "check_memory",
    "check_open_files",
    "check_ray_folder",
    "check_shared_memory",
    "cpu_quota",
    "memory_limit",
]

_GROUPS = "/sys/fs/cgroup"
_OWN_GROUPS = "/proc/self/cgroup"
_UNLIMITED = 2**60  # what cgroups of version 1 say is more

_OPEN_FILES = 4096  # with fewer, Ray warns of connections that fail
_STORE_SHARE = 0.3  # of the memory, which Ray takes for objects
_MOST_STORE = 200e9
_LEAST_SHM_CAP = 10e9  # what Ray takes where there is memory, whatever /dev/shm has
_FULL = 0.95  # of a disk, from which on Ray puts no objects there
_LOW_DISK = 5e9
_LEAST_MEMORY = 2e9  # a base model on a CPU peaks at 1.7 GB
_LOW_MEMORY = 4e9
# Ray's sockets lie in a folder named after the time and a process; a path of one has 107 bytes at most.
_SOCKET = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
_LONGEST_SOCKET = 107


def check_open_files() -> Iterator[Finding]:
    """Whether Ray may open as many files and connections as it needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    names = [("no limit" if one == resource.RLIM_INFINITY else f"{one:,}") for one in (soft, hard)]
    text = f"{names[0]}, and {names[1]} at most"
    if hard != resource.RLIM_INFINITY and hard < _OPEN_FILES:
        fix = "raise the limit to 65536: ulimit -Hn as root, or docker run --ulimit nofile=65536:65536"
        yield problem("open files", f"{text}, where Ray needs {_OPEN_FILES:,}", fix)
    else:
        yield ok("open files", f"{text}; Ray raises the first by itself")


def check_shared_memory(folder: str = "/dev/shm") -> Iterator[Finding]:
    """Whether Ray's objects fit into shared memory."""
    if not os.path.isdir(folder):
        yield problem(
            "shared memory", f"there is no {folder}", "mount a tmpfs there, or Ray keeps objects on disk"
        )
        return
    usage = shutil.disk_usage(folder)
    wanted = min(_STORE_SHARE * (memory_limit() or 0), _MOST_STORE, max(_LEAST_SHM_CAP, 0.95 * usage.free))
    text = f"{_gb(usage.free)} of {_gb(usage.total)} free in {folder}; Ray's object store wants {_gb(wanted)}"
    if usage.free < wanted:
        size = max(1, -int(-wanted * 1.1 // 1e9))
        fix = (
            f"start the container with --shm-size={size}g (in Kubernetes an emptyDir with medium Memory), or "
            "remove what fills it; until then Ray keeps objects on disk, which is slow"
        )
        yield problem("shared memory", text, fix)
    else:
        yield ok("shared memory", text)


def check_ray_folder(folder: str | None = None) -> Iterator[Finding]:
    """Whether Ray has room where it writes logs and puts objects that do not fit into memory."""
    given = folder or os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    length = len(os.fsencode(os.path.join(given, _SOCKET)))
    if length > _LONGEST_SOCKET:
        text = (
            f"{given} makes the paths of Ray's sockets {length} bytes long, and {_LONGEST_SOCKET} are allowed"
        )
        yield problem("ray folder", text, "set RAY_TMPDIR to a short path, such as /tmp")
        return
    path = given
    while not os.path.exists(path):
        path = os.path.dirname(path) or "."
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        text = f"{path} cannot be written ({error.strerror})"
        yield problem("ray folder", text, "set RAY_TMPDIR to a folder that can be written")
        return
    usage = shutil.disk_usage(path)
    full = 1 - usage.free / usage.total
    text = f"{_gb(usage.free)} of {_gb(usage.total)} free in {given} ({full:.0%} full)"
    if full > _FULL:
        missing = _gb(usage.total * (1 - _FULL) - usage.free)
        fix = f"free {missing} there, or set RAY_TMPDIR to a folder on another disk"
        yield problem("ray folder", f"{text}; above {_FULL:.0%} Ray puts no objects on a disk", fix)
    elif usage.free < _LOW_DISK:
        yield note("ray folder", text, "set RAY_TMPDIR to a folder on a larger disk before a long job")
    else:
        yield ok("ray folder", text)


def check_memory() -> Iterator[Finding]:
    """Whether there is memory for an encoder and the workers around it."""
    total, free = memory_limit(), _free_memory()
    if total is None or free is None:
        yield note("memory", "the system does not say how much there is")
        return
    machine = _meminfo("MemTotal")
    limited = (
        f", by a limit of the container on a machine of {_gb(machine)}" if machine and total < machine else ""
    )
    text = f"{_gb(free)} of {_gb(total)} free{limited}"
    if free < _LEAST_MEMORY:
        fix = "end what else uses memory, or give the machine or container more; an encoder alone takes 2 GB"
        yield problem("memory", text, fix)
    elif free < _LOW_MEMORY:
        yield note("memory", text, "lower --shard-seconds to 300, which workers need less memory for")
    else:
        yield ok("memory", text)


def check_cpus() -> Iterator[Finding]:
    """How many CPUs this process has, by its affinity and the quota of its container."""
    there, allowed, quota = os.cpu_count() or 1, len(os.sched_getaffinity(0)), cpu_quota()
    text = f"{allowed} of {there}"
    if quota is None or quota >= allowed:
        yield ok("cpus", text)
        return
    threads = max(1, int(quota))
    fix = f"give --encoder-threads {threads}, or torch starts {allowed} threads that wait for each other"
    yield note("cpus", f"{text}, of which the container's quota is {quota:g}", fix)


def memory_limit(groups: str = _GROUPS, own: str = _OWN_GROUPS) -> int | None:
    """Bytes that this process may have, by the machine and by its control groups; None: unknown."""
    limits = [
        int(text)
        for text in _group_values("memory", "memory.max", "memory.limit_in_bytes", groups, own)
        if text.isdigit() and int(text) < _UNLIMITED
    ]
    machine = _meminfo("MemTotal")
    return min([*limits, *([machine] if machine else [])], default=None)


def cpu_quota(groups: str = _GROUPS, own: str = _OWN_GROUPS) -> float | None:
    """CPUs that the control groups of this process allow it; None: no limit."""
    quotas = []
    for text in _group_values("cpu", "cpu.max", "cpu.cfs_quota_us", groups, own):
        quota, _, period = text.partition(" ")
        if quota.isdigit():
            quotas.append(int(quota) / int(period or 100_000))
    return min(quotas, default=None)


def _group_values(controller: str, second: str, first: str, groups: str, own: str) -> Iterator[str]:
    """What a file says in the control group of this process and in all above it, version 2 and 1."""
    try:
        with open(own, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        name = first if controllers else second
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            folder = os.path.join(groups, controllers, *parts[:depth])
            try:
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    text = file.read().strip()
                if name == "cpu.cfs_quota_us":
                    with open(os.path.join(folder, "cpu.cfs_period_us"), encoding="utf-8") as file:
                        text += f" {file.read().strip()}"
            except OSError:
                continue
            yield text


def _free_memory() -> int | None:
    """Bytes that are left, of the machine and of the container."""
    free = _meminfo("MemAvailable")
    total = memory_limit()
    used = [
        int(text)
        for text in _group_values("memory", "memory.current", "memory.usage_in_bytes", _GROUPS, _OWN_GROUPS)
        if text.isdigit()
    ]
    machine = _meminfo("MemTotal")
    if total is None or machine is None or total >= machine or not used:
        return free
    # What the container has read from disk counts as used and is given back, so that this is the least.
    left = max(0, total - used[0])
    return left if free is None else min(free, left)


def _meminfo(name: str) -> int | None:
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith(f"{name}:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"


CHECKS = (check_open_files, check_shared_memory, check_ray_folder, check_memory, check_cpus)
"""All of them, for a machine: what a cluster's nodes are asked."""
