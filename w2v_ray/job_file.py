"""Job files: YAML with the settings of one job, read strictly, and ``key=value`` texts beside them.

A key that is not known is an error, never ignored; so is one that the task of the file has no use for.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import yaml

from w2v_ray.align_config import AlignConfig
from w2v_ray.config import JobConfig, RedecodeConfig
from w2v_ray.decoder_config import kind_of, takes_text
from w2v_ray.errors import ConfigError
from w2v_ray.head_config import TASKS
from w2v_ray.variables import fill, names_variable, plain_value

__all__ = ["FILE_TASKS", "config_class", "load_job", "read_override"]

FILE_TASKS = (*TASKS, "align", "redecode")
"""What a job file may give as its task."""

_CLASSES = (JobConfig, AlignConfig, RedecodeConfig)


def config_class(task: str) -> type[JobConfig | RedecodeConfig]:
    """Whose fields are the keys of a job file with that task."""
    return {"align": AlignConfig, "redecode": RedecodeConfig}.get(task, JobConfig)


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> JobConfig | RedecodeConfig:
    """Reads a job from a YAML file whose keys are the fields of the config of its ``task``.

    That is `AlignConfig` for ``align``, `RedecodeConfig` for ``redecode`` and else `JobConfig`. Texts may
    hold ``${NAME}`` and ``${NAME:-DEFAULT}``. Relative paths are relative to the current folder, as on the
    command line.

    Args:
        path: The YAML file.
        overrides: ``key=value`` texts that replace or add settings; each value is read as YAML, so
            ``num_encoders=2``, ``revision=null`` and ``inputs=[a, b]`` mean what they would in the file.

    Raises:
        ConfigError: The file is missing or not YAML, or a key is unknown, repeated, missing or has a bad
            value; the message names the file, the override if it is of one, and the key as a dotted path.
    """
    settings = _read_mapping(Path(path))
    places = dict.fromkeys(settings, str(path))
    for override in overrides:
        key, value = _key_and_value(override)
        settings[key], places[key] = value, f"{path}: override {override!r}"
    task = _task_of(settings, where=places.get("task", ""))
    kind = config_class(task)
    for key, value in settings.items():
        settings[key] = _checked(key, value, kind, task, where=places[key])
    missing = [name for name, field in _fields(kind).items() if _is_required(field) and name not in settings]
    if missing:
        raise ConfigError(f"{path} lacks {', '.join(missing)}; add what is missing, or pass it as key=value")
    if kind is RedecodeConfig:
        del settings["task"]
    try:
        return kind(**settings)
    except ConfigError as error:
        named = re.match(r"\w+", str(error))
        raise ConfigError(f"{places.get(named[0] if named else '', path)}: {error}") from error


def read_override(override: str, kind: type[JobConfig | RedecodeConfig] = JobConfig) -> dict[str, Any]:
    """The setting that a text of the form ``key=value`` gives, whose value is YAML.

    Args:
        override: The text.
        kind: Whose fields are the valid keys.

    Raises:
        ConfigError: It has no such form, the key is unknown, or a variable in it is not set.
    """
    key, value = _key_and_value(override)
    return {key: _checked(key, value, kind, None, where=f"override {override!r}")}


def _key_and_value(override: str) -> tuple[str, Any]:
    where = f"override {override!r}"
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"{where} has no '=', expected key=value; write it as key=value")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where} has a value that is not YAML ({_one_line(error)}); quote it") from error
    _check_nodes(node, key.strip(), where=where, above=())
    return key.strip(), value


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"job file {str(path)!r} does not exist; name a YAML file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"job file {str(path)!r} cannot be read as text ({error}); name a YAML file"
        ) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)  # a ValueError is how it reports a date such as 2026-13-01
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = text.splitlines()[mark.line : mark.line + 1] if mark is not None else []
        fix = "put texts with ${...} into quotes" if any("${" in part for part in line) else "mend that line"
        raise ConfigError(f"{path} is not YAML ({_one_line(error)}); {fix}") from error
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            f"{path} holds {kind_of(value)}, expected lines of `key: value`; see pipelines/transcribe.yaml"
        )
    _check_nodes(node, "", where=str(path), above=())
    return {str(key): item for key, item in value.items()}


def _check_nodes(node: yaml.Node | None, dotted: str, *, where: str, above: tuple[int, ...]) -> None:
    """Refuses what `yaml.safe_load` lets pass: the last of two equal keys, and a value that holds itself."""
    if id(node) in above:
        raise ConfigError(f"{where}: {dotted} holds itself by an alias; write it out")
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _check_nodes(item, f"{dotted}[{index}]", where=where, above=above)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, item in node.value:
            name = f"{dotted}.{key.value}" if dotted else str(key.value)
            if name in seen:
                raise ConfigError(f"{where} sets {name!r} twice; keep one of them")
            seen.add(name)
            _check_nodes(item, name, where=where, above=above)


def _task_of(settings: Mapping[str, Any], *, where: str) -> str:
    task = settings.get("task", TASKS[0])
    if names_variable(task):
        task = fill(task, where=f"{where}: task")
    if task not in FILE_TASKS:
        near = difflib.get_close_matches(str(task), FILE_TASKS, n=1, cutoff=0.5)
        fix = f"the nearest is {near[0]!r}" if near else "choose one of these"
        raise ConfigError(f"{where}: task is {task!r}, expected one of {', '.join(FILE_TASKS)}; {fix}")
    return str(task)


def _checked(
    key: str, value: Any, kind: type[JobConfig | RedecodeConfig], task: str | None, *, where: str
) -> Any:
    """The value with its variables filled in, of a key that is a field of the config."""
    found = _fields(kind)
    if key in found:
        return _filled(key, value, str(found[key].type), where=where)
    if key == "task":
        return task
    if any(key in _fields(other) for other in _CLASSES):
        of = "this job" if task is None else f"{task!r}"
        raise ConfigError(f"{where}: {key} is {value!r}, which {of} has no use for; leave it out")
    dotted = key
    while isinstance(value, dict) and value:  # a nested section: show the way down to its first setting
        inner, value = next(iter(value.items()))
        dotted = f"{dotted}.{inner}"
    first, _, rest = key.partition(".")
    if rest and first in found and "dict" in str(found[first].type):
        inside = "VALUE"
        for name in reversed(rest.split(".")):
            inside = f"{{{name}: {inside}}}"
        raise ConfigError(f"{where}: unknown key {key!r}; give {first!r} the mapping {inside}")
    valid = sorted(found, key=lambda name: not _is_required(found[name]))
    near = difflib.get_close_matches(dotted.rpartition(".")[2], valid, n=1, cutoff=0.5)
    hint = f"the nearest valid key is {near[0]!r}" if near else f"valid keys are {', '.join(valid)}"
    raise ConfigError(f"{where}: unknown key {dotted!r}; {hint}")


def _filled(key: str, value: Any, annotation: str, *, where: str) -> Any:
    if isinstance(value, list):
        return [
            fill(item, where=f"{where}: {key}[{index}]") if isinstance(item, str) else item
            for index, item in enumerate(value)
        ]
    if not names_variable(value):
        return value  # variables in `stores` stay names until stores are asked
    text = fill(value, where=f"{where}: {key}")
    if not text and annotation.endswith("| None"):
        return None
    return text if takes_text(annotation) else plain_value(text)


def _fields(kind: type[JobConfig | RedecodeConfig]) -> dict[str, Field[Any]]:
    return {field.name: field for field in fields(kind)}


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
