"""Whose Ray a job runs on, who may come into it, and a word of warning where that is anybody."""

from __future__ import annotations

import logging

import ray
from ray._private import worker
from ray._private.authentication.authentication_utils import is_token_auth_enabled

__all__ = ["is_own_ray", "open_cluster", "warn_of_open_cluster"]

logger = logging.getLogger(__name__)


def is_own_ray() -> bool:
    """Whether this process started the Ray that it uses, which is then on this machine alone."""
    node = worker._global_node  # there is no public way to ask
    return node is not None and node.is_head()


def open_cluster() -> str | None:
    """The address of the running Ray if it is somebody else's cluster, without token authentication."""
    if ray.is_initialized() and not is_own_ray() and not is_token_auth_enabled():
        return str(ray.get_runtime_context().gcs_address)
    return None


def warn_of_open_cluster() -> None:
    """Logs a warning if the running Ray is somebody else's cluster, without token authentication."""
    address = open_cluster()
    if address is not None:
        logger.warning(
            "the Ray cluster at %s has no token authentication, so whoever reaches it can run code there and "
            "read what this job reads; start it with RAY_AUTH_MODE=token",
            address,
        )
