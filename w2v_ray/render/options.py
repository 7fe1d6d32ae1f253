"""What a manifest says besides the job: names, sizes of machines, and what they are given."""

from __future__ import annotations

import re
from dataclasses import dataclass

from w2v_ray.errors import ConfigError
from w2v_ray.job_text import label

__all__ = ["RenderOptions"]

_FIELD = r"[\d*,/-]+|[A-Za-z*,-]+"
_SCHEDULE = re.compile(
    rf"@(?:hourly|daily|midnight|weekly|monthly|yearly|annually)|(?:{_FIELD})(?: (?:{_FIELD})){{4}}"
)
_QUANTITY = re.compile(r"\d+(?:\.\d+)?(?:[kMGTP]i?)?")
_TIME = re.compile(r"(?:\d+-)?\d{1,2}:\d{2}:\d{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions:
    """Where a job is to run.

    Raises:
        ConfigError: A value is none that the scheduler would take.
    """

    name: str
    """The name of the job there: small letters, digits and dashes."""

    namespace: str | None = None
    """Of Kubernetes; None: that of whoever applies the manifest."""

    image: str | None = None
    """A container image with Ray and this package."""

    schedule: str = "0 2 * * *"
    """When to run, of the kinds that run again and again: five fields of cron, or ``@daily`` and the like."""

    workers: int = 1
    """Machines that encode, at most."""

    gpus_per_worker: int = 1
    """GPUs of each; 0: they encode on CPUs."""

    cpus_per_worker: int = 8
    """CPUs of each, and of each machine that decodes."""

    memory_per_worker: str = "32Gi"
    """Memory of each, as Kubernetes writes it."""

    decode_workers: int = 0
    """Machines without a GPU that read and decode, at most."""

    secret: str | None = None
    """A Kubernetes secret whose keys become environment variables: tokens, and the keys of stores."""

    service_account: str | None = None
    """The Kubernetes service account that the pods have, and with it a role of the cloud."""

    volume: str | None = None
    """A Kubernetes volume claim as ``CLAIM=/path``, which all pods have there."""

    address: str | None = None
    """Of the job server of a Ray that runs already, to which the job is submitted."""

    time: str = "24:00:00"
    """How long Slurm lets the job run, as ``[DAYS-]HOURS:MINUTES:SECONDS``."""

    partition: str | None = None
    """Of Slurm."""

    def __post_init__(self) -> None:
        # A name of Kubernetes may have 63 characters, and what its controllers add must fit.
        if self.name != label(self.name, length=40):
            raise ConfigError(
                f"name is {self.name!r}, expected at most 40 small letters, digits and dashes; try "
                f"{label(self.name, length=40) or 'w2v-ray'!r}"
            )
        if not _SCHEDULE.fullmatch(self.schedule):
            raise ConfigError(
                f"schedule is {self.schedule!r}, expected five fields as cron has them; try '0 2 * * *'"
            )
        for name, least in (
            ("workers", 1),
            ("gpus_per_worker", 0),
            ("cpus_per_worker", 1),
            ("decode_workers", 0),
        ):
            if (value := getattr(self, name)) < least:
                raise ConfigError(f"{name} is {value}, expected {least} or more; raise it")
        if not _QUANTITY.fullmatch(self.memory_per_worker):
            raise ConfigError(
                f"memory_per_worker is {self.memory_per_worker!r}, expected a quantity of Kubernetes; try "
                "32Gi"
            )
        if not _TIME.fullmatch(self.time):
            raise ConfigError(f"time is {self.time!r}, expected [DAYS-]HOURS:MINUTES:SECONDS; try 24:00:00")
        if self.volume is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*=/.+", self.volume):
            raise ConfigError(f"volume is {self.volume!r}, expected CLAIM=/path; write it so")
        if self.address is not None and not re.fullmatch(r"https?://\S+", self.address):
            raise ConfigError(
                f"address is {self.address!r}, expected that of a job server; try http://HEAD:8265"
            )
        if self.partition is not None and not re.fullmatch(r"[\w,.-]+", self.partition):
            raise ConfigError(f"partition is {self.partition!r}, expected a name of Slurm; write that")
