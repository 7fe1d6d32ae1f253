"""The JSON Schema of job files, made of the dataclasses that read them, so that editors know every key.

It knows types, bounds and choices of single keys and which task has a use for which; what two keys say
together is for the loader.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from dataclasses import MISSING, Field, fields
from itertools import pairwise
from typing import Any

from w2v_ray.align_config import AlignConfig
from w2v_ray.audio_config import CHANNELS, MAX_CHANNEL
from w2v_ray.config import DEVICE_PATTERN, JOB_BOUNDS, JOB_CHOICES, WORKER_COUNTS, JobConfig, RedecodeConfig
from w2v_ray.decoder_config import SEARCH_BOUNDS
from w2v_ray.encoder_config import ENCODER_BOUNDS, ENCODER_CHOICES
from w2v_ray.head_config import HEAD_BOUNDS, HEAD_CHOICES, TASKS
from w2v_ray.job_file import FILE_TASKS, config_class
from w2v_ray.store_config import S3_OPTIONS, STORE_BOUNDS, STORES, StoreLimits

__all__ = ["job_schema", "schema_text"]

_BOUNDS = SEARCH_BOUNDS | HEAD_BOUNDS | ENCODER_BOUNDS | JOB_BOUNDS
_CHOICES = HEAD_CHOICES | ENCODER_CHOICES | JOB_CHOICES
_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "None": "null"}
_VARIABLE = {"$ref": "#/$defs/variable"}


def job_schema() -> dict[str, Any]:
    """The schema, of draft 2020-12."""
    found: dict[str, Field[Any]] = {}
    texts: dict[str, str] = {}
    for kind in (RedecodeConfig, AlignConfig, JobConfig):  # the last has the last word on what a key means
        found |= {field.name: field for field in fields(kind)}
        texts |= {name: text for name, text in _docstrings(kind).items() if "As of JobConfig" not in text}
    order = [field.name for field in fields(JobConfig)]
    names = sorted(found, key=lambda name: (found[name].default is not MISSING, _place(name, order)))
    properties = {name: _property(found[name], texts[name]) for name in names}
    properties["task"] |= {"anyOf": [{"enum": list(FILE_TASKS)}, _VARIABLE]}
    properties["task"]["description"] = "What the job does, which decides what the other keys are."
    limits = _limits()
    known = limits | {name: {"description": "An option of s3fs."} for name in S3_OPTIONS}
    stores: dict[str, Any] = {name: {"$ref": "#/$defs/store"} for name in STORES}
    stores["s3"] = {"type": "object", "properties": known, "additionalProperties": False}
    properties["stores"] |= {"properties": stores, "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A job file of w2v_ray",
        "description": "What `w2v-ray run JOB.yaml` does. Texts may hold ${NAME} and ${NAME:-DEFAULT}.",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "allOf": [*_kinds(found)],
        "$defs": {
            "variable": {
                "description": "A text with variables of the environment",
                "type": "string",
                "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^{}]*)?\}",
            },
            "store": {"type": "object", "properties": limits},
        },
    }


def schema_text() -> str:
    """The schema as a file has it."""
    return json.dumps(job_schema(), indent=2, ensure_ascii=False) + "\n"


def _place(name: str, order: list[str]) -> int:
    return order.index(name) if name in order else len(order)


def _kinds(found: dict[str, Field[Any]]) -> list[dict[str, Any]]:
    """Which keys a file must and must not have, by its task; a task that is a variable may be any."""
    conditions: dict[type, dict[str, Any]] = {
        AlignConfig: {"properties": {"task": {"const": "align"}}, "required": ["task"]},
        RedecodeConfig: {"properties": {"task": {"const": "redecode"}}, "required": ["task"]},
    }
    others = [task for task in FILE_TASKS if config_class(task) is JobConfig]
    conditions[JobConfig] = {"properties": {"task": {"enum": others}}}  # also true without a task
    kinds = []
    for kind, condition in conditions.items():
        own = {field.name: field for field in fields(kind)}
        required = [name for name, field in own.items() if field.default is MISSING]
        refused = {name: False for name in found if name not in own and name != "task"}
        kinds.append({"if": condition, "then": {"required": required, "properties": refused}})
    return kinds


def _property(field: Field[Any], text: str) -> dict[str, Any]:
    annotation = str(field.type)
    made: dict[str, Any] = {"description": text}
    if annotation == "tuple[str, ...]":
        made |= {"type": "array", "items": {"type": "string"}}
        made |= {"minItems": 1} if field.default is MISSING else {}
        if field.name == "also":
            named = {"type": "string", "pattern": rf"^\s*(({'|'.join(TASKS)})\s*=\s*\S|embed\s*$)"}
            made["items"] = {"anyOf": [named, _VARIABLE]}
    elif annotation.startswith("dict"):
        made |= {"type": ["object", "null"]}
    elif field.name == "channel":
        numbers = {"type": "integer", "minimum": 0, "maximum": MAX_CHANNEL}
        made |= {"anyOf": [{"enum": list(CHANNELS)}, numbers, {"type": "string", "pattern": r"^\d+$"}]}
        made["anyOf"].append(_VARIABLE)
    else:
        made |= _scalar(field.name, annotation.split(" | "), is_needed=field.default is MISSING)
    if field.default is not MISSING:
        made["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
    return made


def _scalar(name: str, kinds: list[str], *, is_needed: bool) -> dict[str, Any]:
    types = [_TYPES[kind] for kind in kinds]
    if name == "device":
        return {"anyOf": [{"type": "string", "pattern": f"^({DEVICE_PATTERN})$"}, _VARIABLE]}
    if name in _CHOICES:
        return {"anyOf": [{"enum": list(_CHOICES[name])}, _VARIABLE]}
    if "string" in types:
        made: dict[str, Any] = {"type": types[0] if len(types) == 1 else types}
        return made | ({"pattern": r"\S"} if is_needed else {})
    made = {"type": types[0] if len(types) == 1 else types}
    if name in WORKER_COUNTS:
        made["minimum"] = 1
    if name in _BOUNDS:
        made["minimum"], made["maximum"] = _BOUNDS[name]
    return {"anyOf": [made, _VARIABLE]}


def _limits() -> dict[str, Any]:
    """What a job may say of any store."""
    texts = _docstrings(StoreLimits)
    limits: dict[str, Any] = {}
    for field in fields(StoreLimits):
        low, high = STORE_BOUNDS[field.name]
        number = {"type": _TYPES[str(field.type)], "minimum": low, "maximum": high}
        limits[field.name] = {
            "description": texts[field.name],
            "anyOf": [number, _VARIABLE],
            "default": field.default,
        }
    return limits


def _docstrings(kind: type) -> dict[str, str]:
    """The text under each field, of a dataclass and those that it is made of."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__[:-1]):
        tree = ast.parse(inspect.getsource(sys.modules[one.__module__]))
        (body,) = [
            node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == one.__name__
        ]
        for statement, after in pairwise(body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[statement.target.id] = " ".join(str(after.value.value).replace("``", "`").split())
    return found
