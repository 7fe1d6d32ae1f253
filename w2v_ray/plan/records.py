"""What a job leaves in its output besides rows: plan files and ``job.json``.

Plan files are numbered and each is written once, by whoever comes first; nothing here is ever changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from w2v_ray import stores
from w2v_ray.crash_points import crash_point
from w2v_ray.errors import OutputError
from w2v_ray.parts import parquet_table
from w2v_ray.schema import ITEM, SCHEMA_VERSION, TABLE_OF_TASK

__all__ = [
    "check_claim",
    "claim_output",
    "job_fingerprint",
    "job_of",
    "publish_plan",
    "read_job",
    "read_plans",
    "read_settings",
    "table_of",
]

_PLAN_NAME = re.compile(r"plan-(\d{5,})\.parquet")
_THREADS = 8

Json = str | int | float | bool | None


def read_plans(output: str, columns: list[str] | None = None) -> tuple[pa.Table, int]:
    """Every planned item, plan after plan, and how many plan files there are.

    Raises:
        OutputError: A plan file is missing or cannot be read.
    """
    names = _plan_names(output)
    for number, name in enumerate(names, 1):
        if name != _plan_name(number):
            lost = stores.join(output, "_plan", _plan_name(number))
            raise OutputError(f"{lost!r} is gone; restore it, or name a new output")

    def read(name: str) -> pa.Table:
        path = stores.join(output, "_plan", name)
        try:
            return parquet_table(stores.read_bytes(path), columns)
        except Exception as error:  # each store has its own errors
            message = f"{path!r} cannot be read ({stores.explain(error)}); restore it, or name a new output"
            raise OutputError(message) from error

    with ThreadPoolExecutor(_THREADS) as pool:
        tables = list(pool.map(read, names))
    schema = ITEM if columns is None else pa.schema([ITEM.field(name) for name in columns])
    tables = [schema.empty_table(), *(table.cast(schema) for table in tables)]
    return pa.concat_tables(tables), len(names)


def publish_plan(output: str, items: pa.Table, number: int) -> bool:
    """Writes plan file ``number``, from 1; False where another run has written it before.

    Raises:
        OutputError: The store refuses.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(items, sink, compression="zstd", write_page_checksum=True)
    path = stores.join(output, "_plan", _plan_name(number))
    is_written = stores.publish(path, sink.getvalue().to_pybytes(), root=output, exclusive=True)
    crash_point("plan.done")
    return is_written


def claim_output(output: str, job: Mapping[str, Json], settings: Mapping[str, Any] | None = None) -> str:
    """Makes the output this job's, or sees that it is, and returns the job's fingerprint.

    Args:
        output: Folder or URL.
        job: The settings that decide what the rows are.
        settings: All settings, kept beside them for whoever takes the job up again; the first run's stay.

    Raises:
        OutputError: The folder holds something else, or the output of a job with other settings.
    """
    job = json.loads(json.dumps(job))
    fingerprint = job_fingerprint(job)
    record: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "job_fingerprint": fingerprint, "job": job}
    if settings is not None:
        record["settings"] = dict(settings)
    data = json.dumps(record, indent=2).encode()
    path = stores.join(output, "_plan", "job.json")
    _check_foreign(output, path)
    if stores.publish(path, data, root=output, exclusive=True):
        crash_point("plan.claimed")
        return fingerprint
    old_job = _check_version(output, path)
    if old_job == job:
        return fingerprint
    if not _plan_names(output):  # no run of the other job came further than its name
        old_data = stores.read_bytes(path)
        stores.publish(path, data, root=output)
        if not _plan_names(output):  # it looks at this once more when it has planned
            return fingerprint
        stores.publish(path, old_data, root=output)
    raise _other_job(output, old_job, job)


def check_claim(output: str, job: Mapping[str, Json]) -> str:
    """Sees that an output is this job's or can become it, as `claim_output` does, and writes nothing."""
    job = json.loads(json.dumps(job))
    path = stores.join(output, "_plan", "job.json")
    if not stores.exists(path):
        _check_foreign(output, path)
    elif (old_job := _check_version(output, path)) != job and _plan_names(output):
        raise _other_job(output, old_job, job)
    return job_fingerprint(job)


def job_fingerprint(job: Mapping[str, Json]) -> str:
    """The name of a job with these settings."""
    return hashlib.sha256(json.dumps(dict(job), sort_keys=True).encode()).hexdigest()[:16]


def _check_foreign(output: str, path: str) -> None:
    others = [name for name in stores.list_names(output) if not name.startswith((".", "_"))]
    if others and not stores.exists(path):
        raise OutputError(f"output {output!r} holds {others[0]!r} and no plan; name a new or empty folder")


def _check_version(output: str, path: str) -> dict[str, Json]:
    old_job, old_version, _ = _read_record(path)
    if old_version != SCHEMA_VERSION:
        raise OutputError(
            f"output {output!r} has schema version {old_version}, this is {SCHEMA_VERSION}; name a new output"
        )
    return old_job


def _other_job(output: str, old_job: Mapping[str, Json], job: Mapping[str, Json]) -> OutputError:
    keys = sorted(key for key in old_job.keys() | job.keys() if old_job.get(key) != job.get(key))
    changes = ", ".join(f"{key} {old_job.get(key)!r} -> {job.get(key)!r}" for key in keys)
    return OutputError(
        f"output {output!r} belongs to a job with other settings ({changes}); use those, or name a new output"
    )


def read_job(output: str) -> tuple[str, dict[str, Json]]:
    """The fingerprint and the settings of the job that an output belongs to.

    Raises:
        OutputError: It belongs to none, or to one of another version.
    """
    path = stores.join(output, "_plan", "job.json")
    if not stores.exists(path):
        raise OutputError(f"{output!r} is not the output of a job; name one that is")
    job, version, fingerprint = _read_record(path)
    if version != SCHEMA_VERSION:
        raise OutputError(
            f"output {output!r} has schema version {version}, this is {SCHEMA_VERSION}; transcribe again"
        )
    return fingerprint, job


def read_settings(output: str) -> dict[str, Any]:
    """All settings of the job that made an output.

    Raises:
        OutputError: It belongs to none, or to one that kept no settings.
    """
    read_job(output)
    path = stores.join(output, "_plan", "job.json")
    settings = json.loads(stores.read_bytes(path)).get("settings")
    if not isinstance(settings, dict):
        raise OutputError(f"{path!r} keeps no settings of its job; run the command of that job again")
    return settings


def table_of(job: Mapping[str, Json]) -> str:
    """The table whose files say what of a job with these settings is done."""
    return TABLE_OF_TASK[str(job.get("task", "transcribe"))]


def tables_beside(job: Mapping[str, Json]) -> tuple[str, ...]:
    """The tables that a job with these settings fills in the same pass."""
    also: Any = job.get("also") or []
    return tuple(TABLE_OF_TASK[text.partition("=")[0].strip()] for text in also)


def job_of(output: str) -> dict[str, Json]:
    """The settings of the job that an output belongs to; empty where it has none.

    Raises:
        OutputError: They cannot be read.
    """
    path = stores.join(output, "_plan", "job.json")
    if not stores.exists(path):
        return {}
    return _read_record(path)[0]


def _read_record(path: str) -> tuple[dict[str, Json], int, str]:
    """The settings, the schema version and the fingerprint, which other versions may lack, of a job."""
    try:
        found = json.loads(stores.read_bytes(path))
        return dict(found["job"]), int(found["schema_version"]), str(found.get("job_fingerprint"))
    except Exception as error:  # each store has its own errors
        message = f"{path!r} cannot be read ({stores.explain(error)}); restore it, or name a new output"
        raise OutputError(message) from error


def _plan_names(output: str) -> list[str]:
    names = stores.list_names(stores.join(output, "_plan"))
    matches = [match for match in map(_PLAN_NAME.fullmatch, names) if match]
    return [match[0] for match in sorted(matches, key=lambda match: int(match[1]))]


def _plan_name(number: int) -> str:
    return f"plan-{number:05}.parquet"
