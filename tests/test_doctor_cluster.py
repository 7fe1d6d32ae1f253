"""`w2v-ray doctor` on a cluster: every node is asked, and a cluster that is not there is told of."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from w2v_ray.doctor.cluster import check_cluster, check_ray, local_versions


def test_every_node_is_asked_for_its_versions(ray_session: None) -> None:
    import ray

    found = {one.check: one for one in check_cluster("auto")}
    assert ray.is_initialized()  # it was here before
    assert found["cluster"].text.startswith("1 node: 2 CPUs, 0 GPUs, ")
    assert found["versions"].level == "ok"
    assert f"ray {ray.__version__}" in found["versions"].text
    assert found["access"].level == "ok"
    assert found["dashboard"].text == "none"


def test_another_version_on_a_node_is_a_problem(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from w2v_ray.doctor import cluster

    monkeypatch.setattr(cluster, "local_versions", lambda: {**local_versions(), "w2v-ray": "9.9"})
    found = [one for one in check_cluster("auto") if one.check.startswith("node ")]
    assert "where this driver has 9.9" in found[0].text
    assert found[0].level == "problem"
    assert "versions" not in [one.check for one in found]


def test_an_address_where_nothing_listens_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # the session's would be taken
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for one in (address, f"ray://{address}"):
        (found,) = check_cluster(one)
        assert found.level == "problem"
        assert f"nothing answers at {one}" in found.text


def test_ray_is_told_of_and_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (found,) = check_ray(None)
    assert found.level == "ok"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    (found,) = check_ray(None)
    assert (found.level, found.fix) == ("note", "check it with --address auto")
    assert "10.0.0.1:6379" in found.text
    (found,) = check_ray("head:6379")
    assert (found.level, found.text.partition("; ")[2]) == ("ok", "jobs join the cluster at head:6379")


def test_a_ray_client_can_be_asked_but_runs_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (found,) = check_ray("ray://head:10001")
    assert found.level == "note"
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    (found,) = check_ray("ray://head:10001")
    assert found.level == "problem"
    assert "no job runs through Ray Client, as ray://head:10001 asks for" in found.text
    assert found.fix is not None
    assert "w2v-ray submit" in found.fix
