"""The limits of a machine: what control groups, disks and descriptors allow."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from w2v_ray.doctor import limits


def groups(folder: Path, own: str, files: dict[str, str]) -> dict[str, str]:
    """A tree of control groups, and the file that says where a process is in it."""
    (folder / "own").write_text(own)
    for name, text in files.items():
        path = folder / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return {"groups": str(folder / "groups"), "own": str(folder / "own")}


def test_the_tightest_of_all_groups_above_counts(tmp_path: Path) -> None:
    files = {
        "a/b/memory.max": "max",
        "a/memory.max": "1000000",
        "a/b/cpu.max": "250000 100000",
        "a/cpu.max": "max 100000",
    }
    tree = groups(tmp_path, "0::/a/b\n", files)
    assert limits.memory_limit(**tree) == 1_000_000
    assert limits.cpu_quota(**tree) == 2.5


def test_groups_of_version_1_count_too(tmp_path: Path) -> None:
    files = {
        "memory/x/memory.limit_in_bytes": "2000000",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "cpu,cpuacct/cpu.cfs_quota_us": "150000",
        "cpu,cpuacct/cpu.cfs_period_us": "50000",
    }
    tree = groups(tmp_path, "4:memory:/x\n3:cpu,cpuacct:/gone\n1:name=systemd:/\n", files)
    assert limits.memory_limit(**tree) == 2_000_000
    assert limits.cpu_quota(**tree) == 3.0


def test_without_limits_the_machine_counts(tmp_path: Path) -> None:
    tree = groups(tmp_path, "1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"})
    assert limits.cpu_quota(**tree) is None
    assert (limits.memory_limit(**tree) or 0) > 1e9


def test_a_quota_below_the_cpus_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "cpu_quota", lambda: 0.5)
    (found,) = limits.check_cpus()
    assert found.level == "note"
    assert "--encoder-threads 1" in (found.fix or "")
    monkeypatch.setattr(limits, "cpu_quota", lambda: None)
    assert [one.level for one in limits.check_cpus()] == ["ok"]


def test_memory_is_judged_by_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []
    for free in (1e9, 3e9, 9e9):
        monkeypatch.setattr(limits, "_free_memory", lambda free=free: free)
        levels += [one.level for one in limits.check_memory()]
    assert levels == ["problem", "note", "ok"]


def test_shared_memory_that_is_too_small_says_how_much_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "memory_limit", lambda: 10**18)  # 200 GB of objects, or what the disk has
    (found,) = limits.check_shared_memory(str(tmp_path))
    usage = __import__("shutil").disk_usage(tmp_path)
    assert found.level == ("problem" if usage.free < 10e9 else "ok")
    (found,) = limits.check_shared_memory(str(tmp_path / "missing"))
    assert found.level == "problem"


def test_the_folder_of_ray_must_be_short_and_writable(tmp_path: Path) -> None:
    (found,) = limits.check_ray_folder(f"/tmp/{'x' * 60}")
    assert found.level == "problem"
    assert "paths of Ray's sockets" in found.text
    (found,) = limits.check_ray_folder("/proc/none")
    assert found.level == "problem"
    assert found.fix == "set RAY_TMPDIR to a folder that can be written"


@pytest.mark.parametrize(("full", "level"), [(0.96, "problem"), (0.5, "ok")])
def test_a_disk_that_ray_takes_for_full_is_a_problem(
    full: float, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shutil import _ntuple_diskusage as usage  # type: ignore[attr-defined]

    monkeypatch.setattr(limits.shutil, "disk_usage", lambda _: usage(1e12, full * 1e12, (1 - full) * 1e12))
    (found,) = limits.check_ray_folder("/tmp")
    assert found.level == level
    if level == "problem":
        assert found.fix is not None
        assert found.fix.startswith("free 10.0 GB there")


def test_too_few_open_files_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 2048))
    (found,) = limits.check_open_files()
    assert found.level == "problem"
    assert "nofile=65536" in (found.fix or "")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 65536))
    assert [one.level for one in limits.check_open_files()] == ["ok"]
