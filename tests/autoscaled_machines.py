"""A cluster that Ray's own autoscaler makes larger and smaller; its machines are raylets of this one.

``RAY_TMPDIR=DIR python -m tests.autoscaled_machines MOST CPUS [GPU]`` starts a head without work, and beside
it, the autoscaler, which may add MOST machines of so many CPUs, each with a GPU of that type in name only. It
says the address, and answers each line of its standard input with the workers that have a process now: those
of a machine with commas, and a dash for a machine without any. See three_machines.py for DIR.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from ray._private.services import get_node_ip_address
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.cluster_utils import Cluster

from tests.ports import free_port
from tests.three_machines import STORE_BYTES, children, workers

IDLE_MINUTES = 0.3
# As `ray up` and KubeRay have it; and what the provider of machines that are none asks for.
VARIABLES = {
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")


def serve(most: int, cpus: float, gpu: str | None) -> None:
    os.environ.update(VARIABLES)
    port = free_port()
    resources = {"CPU": cpus, "object_store_memory": STORE_BYTES}
    resources |= {"GPU": 1, f"accelerator_type:{gpu}": 1} if gpu else {}
    provider = {
        "type": "external",  # Ray's wheel lacks a file that its own name for this provider needs
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": f"{get_node_ip_address()}:{port}",
        "head_node_id": FAKE_HEAD_NODE_ID,
        "launch_multiple": True,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    config = {
        "cluster_name": "autoscaled",
        "max_workers": most,
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": provider,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        **{f"{name}_commands": [] for name in COMMANDS},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": most},
        },
    }
    file = Path(os.environ["RAY_TMPDIR"]) / "autoscaling.json"
    file.write_text(json.dumps(config))
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "gcs_server_port": port,
            "autoscaling_config": str(file),
            "env_vars": {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID},
        },
    )
    assert cluster.head_node is not None
    (monitor,) = (each.process.pid for each in cluster.head_node.all_processes["monitor"])

    def raylets() -> list[int]:
        return sorted(pid for pid, command in children(monitor) if "raylet/raylet" in command)

    try:
        print(cluster.address, flush=True)
        for _ in sys.stdin:
            print(" ".join(",".join(sorted(workers(pid))) or "-" for pid in raylets()), flush=True)
    finally:
        started = [pid for pid, _ in children(monitor)]  # raylets, and what watches their logs
        os.kill(monitor, signal.SIGKILL)  # before it replaces them
        for pid in started:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        cluster.shutdown()


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3] if sys.argv[3:] else None)
