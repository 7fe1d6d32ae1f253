from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

import w2v_ray

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


def test_the_images_have_the_pinned_ray(cluster: dict[str, Any]) -> None:
    (pin,) = [
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray==")
    ]
    for image in (cluster["docker"]["head_image"], cluster["docker"]["worker_image"]):
        assert image.startswith(f"rayproject/ray:{pin.removeprefix('ray==')}-")
