"""The files of a feature extractor, read, checked and written.

Its settings are in ``preprocessor_config.json``, or inside ``processor_config.json``, where transformers 5
writes them and looks first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from w2v_ray.errors import CheckpointError, OutputError
from w2v_ray.hub import checkpoint_file, read_json_file

__all__ = ["checked_settings", "read_settings", "write_settings"]

_FILE = "preprocessor_config.json"
_PROCESSOR_FILE = "processor_config.json"


def read_settings(model: str | PathLike[str], revision: str | None = None) -> tuple[dict[str, Any], Path]:
    """The settings as they are in a checkpoint, and the file that they come from.

    Raises:
        CheckpointError: There are none, or they are malformed.
    """
    path = checkpoint_file(str(model), _PROCESSOR_FILE, revision=revision, required=False)
    nested = read_json_file(path).get("feature_extractor") if path else None
    if path and nested is not None:
        if not isinstance(nested, dict):
            raise CheckpointError(
                f"{path} says feature_extractor {nested!r}, expected an object; correct the file"
            )
        return nested, path
    path = checkpoint_file(str(model), _FILE, revision=revision)
    assert path is not None  # it is required
    return read_json_file(path), path


def checked_settings(
    raw: Mapping[str, Any], path: Path, kind: str, fields: Mapping[str, tuple[type, ...]]
) -> dict[str, Any]:
    """What settings say to the extractor ``kind``: the keyword arguments of its constructor.

    Raises:
        CheckpointError: They are of another extractor, or a value is of the wrong type.
    """
    found = raw.get("feature_extractor_type")
    if found not in (None, kind):
        raise CheckpointError(
            f"{path} says feature_extractor_type {found!r}, expected {kind!r}; name a checkpoint of that one"
        )
    # The models here count a row's audio from its first frame.
    if raw.get("padding_side", "right") != "right":
        raise CheckpointError(
            f"{path} says padding_side {raw['padding_side']!r}, expected 'right'; correct the file"
        )
    settings = {}
    for name, types in fields.items():
        if name not in raw:
            continue
        if not isinstance(raw[name], types) or (isinstance(raw[name], bool) and bool not in types):
            expected = " or ".join(type_.__name__ for type_ in types)
            raise CheckpointError(f"{path} says {name} {raw[name]!r}, expected {expected}; correct the file")
        settings[name] = raw[name]
    return settings


def write_settings(save_directory: str | PathLike[str], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Writes ``preprocessor_config.json`` and returns its path.

    Raises:
        OutputError: ``save_directory`` is a file.
    """
    folder = Path(save_directory)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; name a folder to save the feature extractor in")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _FILE
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return (str(path),)
