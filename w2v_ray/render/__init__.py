"""Manifests of schedulers from a job: what `w2v-ray render` prints."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version

from w2v_ray.config import JobConfig
from w2v_ray.errors import ConfigError
from w2v_ray.render import kubernetes, scripts
from w2v_ray.render.options import RenderOptions

__all__ = ["KINDS", "RenderOptions", "render"]

KINDS = ("rayjob", "raycronjob", "cronjob", "slurm", "airflow")


def render(kind: str, job: JobConfig, options: RenderOptions) -> str:
    """The manifest of a scheduler that runs the job: YAML, a batch script or Python.

    Where the scheduler gives the job its machines, it encodes on what these have, and its encoders may grow
    to as many as these have room for, unless the job says otherwise. What is printed holds every setting of
    the job, so it must be printed anew when the job file changes.

    Args:
        kind: One of `KINDS`.
        job: What to run.
        options: Where.

    Raises:
        ConfigError: The kind is unknown, or lacks an option, or the job has paths that are not there.
    """
    if kind not in KINDS:
        raise ConfigError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}; choose one of these")
    if kind != "airflow" and options.address is None:
        job = _placed(job, options, grows=kind != "cronjob")
    if kind == "rayjob":
        return kubernetes.ray_job(job, options, ray_version=version("ray"))
    if kind == "raycronjob":
        return kubernetes.ray_cron_job(job, options, ray_version=version("ray"))
    if kind == "cronjob":
        return kubernetes.cronjob(job, options)
    return scripts.slurm(job, options) if kind == "slurm" else scripts.airflow(job, options)


def _placed(job: JobConfig, options: RenderOptions, *, grows: bool) -> JobConfig:
    """The job on the machines of the manifest, which may all be missing when it starts."""
    if options.gpus_per_worker and job.device == "cpu":
        raise ConfigError(
            f"gpus_per_worker is {options.gpus_per_worker} but the job's device is 'cpu'; pass "
            "--gpus-per-worker 0, or leave the device out"
        )
    if not options.gpus_per_worker and job.wants_gpu:
        raise ConfigError("gpus_per_worker is 0 but the job asks for a GPU; raise it, or set device to cpu")
    changes: dict[str, object] = {}
    if job.device == "auto":  # there may be no machine yet to see
        changes["device"] = "cuda" if options.gpus_per_worker else "cpu"
    if grows and job.max_encoders is None:
        room = options.workers * max(1, options.gpus_per_worker * int(1 / job.gpus_per_encoder))
        changes["max_encoders"] = max(room, job.num_encoders or 1)
    return dataclasses.replace(job, **changes)  # type: ignore[arg-type]
