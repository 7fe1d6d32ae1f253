"""Manifests for Kubernetes: a RayJob and a RayCronJob of KubeRay, and a plain CronJob."""

from __future__ import annotations

import json
from typing import Any

import yaml

from w2v_ray.config import JobConfig
from w2v_ray.errors import ConfigError
from w2v_ray.job_text import job_text
from w2v_ray.render.options import RenderOptions

__all__ = ["cronjob", "ray_cron_job", "ray_job"]

_FOLDER = "/etc/w2v-ray"
_COMMAND = ["w2v-ray", "run", f"{_FOLDER}/job.yaml"]
_IDLE_S = 300
_KEPT_S = 3600
_NO_RETRY = [2, 3]  # exit codes that the same command would end with again


def ray_job(job: JobConfig, options: RenderOptions, *, ray_version: str) -> str:
    """A cluster of its own for one run, which goes when it is over."""
    body = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(options),
        "spec": _ray_job_spec(job, options, ray_version),
    }
    return _documents(_config_map(job, options), body)


def ray_cron_job(job: JobConfig, options: RenderOptions, *, ray_version: str) -> str:
    """A cluster of its own for each run on the schedule."""
    body = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": _metadata(options),
        "spec": {
            "schedule": options.schedule,
            "jobTemplate": _ray_job_spec(job, options, ray_version),
        },
    }
    return _documents(_config_map(job, options), body)


def cronjob(job: JobConfig, options: RenderOptions) -> str:
    """One pod on the schedule: it does the work itself, or submits it to a Ray that runs already."""
    container = _container("w2v-ray", options)
    if options.address is None:
        container["command"] = _COMMAND
        container["resources"] = _resources(options, gpus=options.gpus_per_worker)
    else:
        container["command"] = ["w2v-ray", "submit", _COMMAND[-1], "--address", options.address]
        container["command"] += ["--name", options.name]
        container["resources"] = _limits({"cpu": "1", "memory": "2Gi"})
    pod = _pod_spec(container, options, has_job=True) | {"restartPolicy": "Never"}
    rules = [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": _NO_RETRY}}]
    body = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": _metadata(options),
        "spec": {
            "schedule": options.schedule,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": 3600,
            "jobTemplate": {
                "spec": {
                    "backoffLimit": 3,
                    "podFailurePolicy": {"rules": rules},
                    "ttlSecondsAfterFinished": 7 * 86_400,
                    "template": {"metadata": {"labels": _labels(options)}, "spec": pod},
                }
            },
        },
    }
    return _documents(_config_map(job, options), body)


def _ray_job_spec(job: JobConfig, options: RenderOptions, ray_version: str) -> dict[str, Any]:
    head = _container("ray-head", options) | {"resources": _limits({"cpu": "2", "memory": "8Gi"})}
    groups = [_group("encode", options.workers, job, options, gpus=options.gpus_per_worker)]
    if options.decode_workers:
        groups.append(_group("decode", options.decode_workers, job, options, gpus=0))
    return {
        "entrypoint": " ".join(_COMMAND),
        # A retry has a new cluster; it does what is missing.
        "backoffLimit": 3,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _KEPT_S,
        "rayClusterSpec": {
            "rayVersion": ray_version,
            "authOptions": {"mode": "token"},  # of its own, or every pod could run code with the job's keys
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {"idleTimeoutSeconds": _IDLE_S},
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # runs no work
                "template": {
                    "metadata": {"labels": _labels(options)},
                    "spec": _pod_spec(head, options, has_job=True),
                },
            },
            "workerGroupSpecs": groups,
        },
    }


def _group(name: str, count: int, job: JobConfig, options: RenderOptions, *, gpus: int) -> dict[str, Any]:
    worker = _container("ray-worker", options) | {"resources": _resources(options, gpus=gpus)}
    start: dict[str, str] = {}
    if gpus and job.accelerator_type:
        # The autoscaler must know before there is one; the value is text of JSON, within text for the shell.
        start["resources"] = json.dumps(json.dumps({f"accelerator_type:{job.accelerator_type}": 1}))
    return {
        "groupName": name,
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": count,
        "rayStartParams": start,
        "template": {
            "metadata": {"labels": _labels(options)},
            "spec": _pod_spec(worker, options, has_job=False),
        },
    }


def _container(name: str, options: RenderOptions) -> dict[str, Any]:
    if options.image is None:
        raise ConfigError("image is not given, expected a container image with Ray and w2v-ray; pass --image")
    container: dict[str, Any] = {"name": name, "image": options.image}
    if options.secret:
        container["envFrom"] = [{"secretRef": {"name": options.secret}}]
    return container


def _pod_spec(container: dict[str, Any], options: RenderOptions, *, has_job: bool) -> dict[str, Any]:
    # Ray's object store lies in shared memory, of which a container has 64 MB otherwise.
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    if has_job:
        volumes.append({"name": "job", "configMap": {"name": options.name}})
        mounts.append({"name": "job", "mountPath": _FOLDER})
    if options.volume:
        claim, _, path = options.volume.partition("=")
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "data", "mountPath": path})
    account = {"serviceAccountName": options.service_account} if options.service_account else {}
    return {**account, "containers": [container | {"volumeMounts": mounts}], "volumes": volumes}


def _resources(options: RenderOptions, *, gpus: int) -> dict[str, Any]:
    wanted = {"cpu": str(options.cpus_per_worker), "memory": options.memory_per_worker}
    return _limits(wanted | ({"nvidia.com/gpu": str(gpus)} if gpus else {}))


def _limits(wanted: dict[str, str]) -> dict[str, Any]:
    return {"requests": dict(wanted), "limits": dict(wanted)}


def _config_map(job: JobConfig, options: RenderOptions) -> dict[str, Any]:
    mounted = options.volume.partition("=")[2] if options.volume else None
    for name, text in [("output", job.output), *(("inputs", text) for text in job.inputs)]:
        is_mounted = mounted is not None and f"{text}/".startswith(f"{mounted.rstrip('/')}/")
        if "://" not in text and not is_mounted:
            raise ConfigError(
                f"{name} holds {text!r}, which no pod has; name a URL, or a path in a claim that "
                "--volume CLAIM=/path names"
            )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(options),
        "data": {"job.yaml": job_text(job)},
    }


def _metadata(options: RenderOptions) -> dict[str, Any]:
    where = {"namespace": options.namespace} if options.namespace else {}
    return {"name": options.name, **where, "labels": _labels(options)}


def _labels(options: RenderOptions) -> dict[str, str]:
    return {"app.kubernetes.io/name": "w2v-ray", "app.kubernetes.io/instance": options.name}


def _documents(*bodies: dict[str, Any]) -> str:
    return yaml.dump_all(bodies, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=100)


class _Plain(yaml.SafeDumper):
    """Labels that stand in several places are written out, and long texts as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Plain.add_representer(str, _text)
