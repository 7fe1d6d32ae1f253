"""The machines of a Ray cluster: what they have together, and waiting for the first one to join."""

from __future__ import annotations

import logging
from typing import Any, cast

import ray

from w2v_ray.errors import JobError
from w2v_ray.pools import Machines
from w2v_ray.ray_auth import is_own_ray

__all__ = ["find_machines", "wait_for_machines"]

logger = logging.getLogger(__name__)


def find_machines(accelerator_type: str | None = None) -> Machines:
    """Looks at the machines of the running Ray; of GPUs only those of the type count, where one is named."""
    nodes = cast(list[dict[str, Any]], ray.nodes())  # type: ignore[no-untyped-call]
    there = [node["Resources"] for node in nodes if node["Alive"]]
    cpus = [resources["CPU"] for resources in there if resources.get("CPU")]
    typed = f"accelerator_type:{accelerator_type}"
    gpus = [one.get("GPU", 0.0) for one in there if accelerator_type is None or typed in one]
    return Machines(num_nodes=len(cpus), cpus=sum(cpus), node_cpus=max(cpus, default=0.0), gpus=sum(gpus))


def wait_for_machines(
    *, gpus: float = 0.0, accelerator_type: str | None = None, timeout_s: float
) -> Machines:
    """The machines of the running Ray, once one is there that a worker can run on.

    A cluster whose machines come and go with the work may have none when a job starts. It is asked for one
    by a task that needs it, as its autoscaler understands. A Ray of this process alone grows by nothing, so
    nothing is waited for.

    Args:
        gpus: What a worker must have of a GPU; 0: a CPU is enough.
        accelerator_type: Of which type the GPU must be; None: any.
        timeout_s: How long to wait, in seconds.

    Raises:
        JobError: No such machine joined in that time.
    """
    found = find_machines(accelerator_type)
    if is_own_ray() or (found.cpus and (found.gpus or not gpus)):
        return found
    address = ray.get_runtime_context().gcs_address
    kind = f" of type {accelerator_type}" if accelerator_type else ""
    wanted = f"a GPU{kind}" if gpus else "CPUs for work"
    message = "the cluster at %s has no machine with %s yet; waiting up to %.0f s for one"
    logger.warning(message, address, wanted, timeout_s)
    options: dict[str, Any] = {"num_cpus": 0 if gpus else 1, "num_gpus": gpus}
    if accelerator_type:
        options["accelerator_type"] = accelerator_type
    task = ray.remote(_nothing).options(**options).remote()
    ready, _ = ray.wait([task], timeout=timeout_s)
    if not ready:
        ray.cancel(task)
        raise JobError(
            f"no machine with {wanted} joined the cluster at {address} in {timeout_s:.0f} s; see what its "
            "autoscaler says, or name a device that is there"
        )
    return find_machines(accelerator_type)


def _nothing() -> None:
    """Runs where a worker could."""
