"""A job as the text of a job file, for those who carry it to another machine."""

from __future__ import annotations

import dataclasses
import hashlib
import re

import yaml

from w2v_ray.config import JobConfig

__all__ = ["fingerprint", "job_text", "label"]


def job_text(job: JobConfig) -> str:
    """The YAML of a job: what must be given, and whatever is not as it is left."""
    settings = {}
    for field in dataclasses.fields(job):
        value = getattr(job, field.name)
        default = JobConfig.__dataclass_fields__.get(field.name, field).default
        if value != default:
            settings[field.name] = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)


def fingerprint(text: str) -> str:
    """Eight digits that tell one text from another."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def label(name: str, *, length: int = 63) -> str:
    """The name in small letters, digits and dashes, as Kubernetes and others want names."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:length].strip("-")
