"""The address of the Ray that a job is to join, and the one kind of address that no job can use."""

from __future__ import annotations

import os

from w2v_ray.errors import ConfigError

__all__ = ["check_ray_address"]


def check_ray_address(address: str | None = None) -> None:
    """Refuses Ray Client, by whose ``ray://`` Ray Data and the actors of a run are only seen from afar.

    Args:
        address: Of a Ray; None: the one of RAY_ADDRESS, if it has one.

    Raises:
        ConfigError: It begins with ``ray://``.
    """
    what = "RAY_ADDRESS" if address is None else "the address of Ray"
    address = os.environ.get("RAY_ADDRESS", "") if address is None else address
    if address.startswith("ray://"):
        raise ConfigError(
            f"{what} is {address!r}, but a job does not run through Ray Client; send it to the cluster with "
            "w2v-ray submit JOB.yaml --address http://HEAD:8265, or run it on the head with RAY_ADDRESS=auto"
        )
