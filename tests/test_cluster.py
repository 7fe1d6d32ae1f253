"""The cluster launcher's file: what Ray's schema says of it, and what the rest of the project counts on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

import w2v_ray
from w2v_ray.config import JobConfig
from w2v_ray.pools import Machines, Pools

ROOT = Path(w2v_ray.__file__).resolve().parents[1]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_the_launcher_accepts_the_file(cluster: dict[str, Any]) -> None:
    prepared = prepare_config(cluster)  # as `ray up` does: defaults filled in
    validate_config(prepared)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert any("ray start" in command for command in prepared["head_start_ray_commands"])


def test_the_schema_finds_a_misspelt_key(cluster: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(cluster | {"max_worker": 1}))
    cluster["available_node_types"]["gpu_worker"]["max_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(cluster))


def test_the_head_runs_no_work_and_workers_begin_at_none(cluster: dict[str, Any]) -> None:
    kinds = dict(cluster["available_node_types"])
    assert kinds.pop(cluster["head_node_type"])["resources"] == {"CPU": 0}
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in kinds.values())
    assert sum(kind["max_workers"] for kind in kinds.values()) <= cluster["max_workers"]
    assert all("IamInstanceProfile" in kind["node_config"] for kind in kinds.values())


def test_a_job_fits_on_the_first_gpu_worker(cluster: dict[str, Any]) -> None:
    """One worker must do, as it is all that is there when a job begins."""
    worker = cluster["available_node_types"]["gpu_worker"]["resources"]
    machine = Machines(num_nodes=1, cpus=worker["CPU"], node_cpus=worker["CPU"], gpus=worker["GPU"])
    for search in ({}, {"lm": "x.arpa"}):
        job = JobConfig(inputs=("a",), output="b", model="c", device="cuda", max_encoders=4, **search)
        pools = Pools.for_cluster(job, machine)
        assert (pools.num_encoders, pools.growth) == (1, 4.0)
    (typed,) = (name for name in worker if name.startswith("accelerator_type:"))
    assert typed == "accelerator_type:L4"


def test_the_images_have_the_pinned_ray(cluster: dict[str, Any]) -> None:
    (pin,) = [
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray==")
    ]
    images = [cluster["docker"]["head_image"], cluster["docker"]["worker_image"]]
    kinds = cluster["available_node_types"].values()
    images += [kind["docker"]["worker_image"] for kind in kinds if "docker" in kind]
    assert len(images) == 3
    for image in images:
        assert image.startswith(f"rayproject/ray:{pin.removeprefix('ray==')}-")


def test_every_machine_can_build_the_package(cluster: dict[str, Any]) -> None:
    """Ray's images for CPUs have no compiler, and none of them has cmake."""
    first, second = cluster["setup_commands"]
    assert "apt-get install" in first
    assert {"g++", "cmake"} <= set(first.split())
    assert second.startswith("pip install ")


def test_the_commands_of_the_file_are_those_of_the_page() -> None:
    said = [line for line in (ROOT / "cluster.yaml").read_text().splitlines() if line.startswith("#   ")]
    commands = [line.removeprefix("#").partition("  #")[0].strip() for line in said]
    page = (ROOT / "docs" / "clusters.md").read_text()
    assert len(commands) == 4
    assert "\n".join(commands) in page
