"""A job as the text of a job file, for those who carry it to another machine."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from typing import Any

import yaml

from w2v_ray.config import JobConfig, RedecodeConfig

__all__ = ["fingerprint", "job_text", "label"]


def job_text(job: JobConfig | RedecodeConfig) -> str:
    """The YAML of a job: what must be given, and whatever is not as it is left."""
    settings: dict[str, Any] = {"task": "redecode"} if isinstance(job, RedecodeConfig) else {}
    for field in dataclasses.fields(job):
        value = getattr(job, field.name)
        default = JobConfig.__dataclass_fields__.get(field.name, field).default
        if value != default:
            # The variables of stores are filled in where the job runs.
            settings[field.name] = value if field.name == "stores" else _escaped(value)
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)


def _escaped(value: Any) -> Any:
    """The value with texts that no variable is filled into again."""
    if isinstance(value, tuple):
        return [_escaped(item) for item in value]
    return value.replace("${", "$${") if isinstance(value, str) else value


def fingerprint(text: str) -> str:
    """Eight digits that tell one text from another."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def label(name: str, *, length: int = 63) -> str:
    """The name in small letters, digits and dashes, as Kubernetes and others want names."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:length].strip("-")
