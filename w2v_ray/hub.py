"""Where the files of a checkpoint are: a local folder, or a Hugging Face hub id and revision.

It only finds files, and uploads saved ones. What is in them is for the reader of each file to judge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from w2v_ray.errors import CheckpointError, OutputError

__all__ = [
    "absolute_model",
    "adapter_file",
    "adapter_languages",
    "checkpoint_file",
    "checkpoint_fingerprint",
    "checkpoint_folder",
    "is_language_name",
    "read_json_file",
    "shard_names",
    "upload_saved",
]

_SETTINGS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_ADAPTER_SUFFIXES = ("safetensors", "bin")


def checkpoint_file(
    model: str | Path, filename: str, *, revision: str | None = None, required: bool = True
) -> Path | None:
    """Finds one file of a checkpoint and returns its local path.

    Args:
        model: A local folder, or a hub id such as ``facebook/wav2vec2-base-960h``, whose file is
            downloaded once and cached by huggingface_hub.
        filename: The file's name inside the checkpoint.
        revision: A branch, tag or commit of the hub repository; ignored for folders.
        required: Whether an absent file is an error.

    Returns:
        The path, or None where the file is absent and not required.

    Raises:
        CheckpointError: The model cannot be found or reached, or lacks a required file.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        path = folder / filename
        if path.is_file():
            return path
        if required:
            present = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "nothing"
            raise CheckpointError(
                f"{folder} has no {filename} (it holds {present}); name a folder that has one"
            )
        return None
    if folder.exists():
        raise CheckpointError(f"model {str(model)!r} is a file; name the folder that holds its config.json")
    return _hub_file(str(model), filename, revision, required)


def checkpoint_folder(model: str | Path, patterns: Sequence[str], *, revision: str | None = None) -> Path:
    """The local folder of a checkpoint, with the files that match a pattern in it.

    Args:
        model: As of ``checkpoint_file``. Of a hub id the files are downloaded once, all of one commit.
        patterns: Which files are needed, such as ``language_model/*``; those that do not exist are no error.
        revision: As of ``checkpoint_file``.

    Raises:
        CheckpointError: The model cannot be found or reached.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=list(patterns)))
    except (HFValidationError, HTTPError, OSError) as error:
        raise _said(error, str(model), revision, " and ".join(patterns)) from error


def _hub_file(model: str, filename: str, revision: str | None, required: bool) -> Path | None:
    from httpx2 import ConnectError, ConnectTimeout, HTTPError  # huggingface_hub lets these through
    from huggingface_hub import (
        _CACHED_NO_EXIST,
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    cached: object = None
    try:
        cached = try_to_load_from_cache(model, filename, revision=revision)
        if not isinstance(cached, str):
            try:
                get_hf_file_metadata(hf_hub_url(model, filename, revision=revision))
            except (ConnectError, ConnectTimeout):
                raise  # hf_hub_download would go on asking an unreachable hub for 23 s
            except HTTPError:
                pass  # it knows which answers to ask again for, and remembers which files do not exist
        return Path(hf_hub_download(model, filename, revision=revision))
    except (HFValidationError, HTTPError, OSError) as error:
        if not required and (
            cached is _CACHED_NO_EXIST if _is_unreachable(error) else isinstance(error, EntryNotFoundError)
        ):
            return None
        raise _said(error, model, revision, filename) from error


def _is_unreachable(error: Exception) -> bool:
    """Whether the hub was not reached, and what is asked for is not in the cache."""
    from httpx2 import ConnectError, ConnectTimeout
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    # The first is a subclass of EntryNotFoundError.
    return isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectError | ConnectTimeout)


def _said(error: Exception, model: str, revision: str | None, what: str) -> CheckpointError:
    """What an error of the hub means to who asked for ``what`` of a model."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"{model!r}" + (f" at revision {revision!r}" if revision else "")
    if isinstance(error, HFValidationError):
        return CheckpointError(
            f"model folder {model!r} does not exist; name a folder with a config.json or a hub id"
        )
    if _is_unreachable(error):
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        return CheckpointError(
            f"model {at} is neither a local folder nor in the cache, and the hub cannot be reached "
            f"({reason}); name an existing folder, or go online once"
        )
    if isinstance(error, EntryNotFoundError):
        return CheckpointError(f"the hub repository {at} has no {what}; name a repository that has one")
    if isinstance(error, RevisionNotFoundError):
        return CheckpointError(f"the hub repository {model!r} has no revision {revision!r}; name one it has")
    if isinstance(error, RepositoryNotFoundError):
        return CheckpointError(
            f"model {model!r} is neither a local folder nor a hub repository that this account can read; "
            "check the name"
        )
    reason = " ".join(str(error).split())[:200]
    return CheckpointError(f"{what} of model {at} could not be fetched ({reason}); try again")


def is_language_name(language: str) -> bool:
    """Whether a text can be the name of a language: part of a file's name, and of no folder's."""
    return bool(language) and Path(language).name == language and "\\" not in language


def adapter_file(model: str | Path, language: str, *, revision: str | None = None) -> Path | None:
    """The file with the adapter of a language, ``adapter.LANGUAGE.safetensors`` or ``.bin``, or None.

    Raises:
        CheckpointError: The model cannot be found or reached.
    """
    if is_language_name(language):
        for suffix in _ADAPTER_SUFFIXES:
            name = f"adapter.{language}.{suffix}"
            path = checkpoint_file(model, name, revision=revision, required=False)
            if path is not None:
                return path
    return None


def adapter_languages(model: str | Path) -> list[str]:
    """The languages that a folder has adapters of, sorted; of a hub id it is not known, and none."""
    folder = Path(model).expanduser()
    return sorted(
        {
            path.name.removeprefix("adapter.").removesuffix(f".{suffix}")
            for suffix in _ADAPTER_SUFFIXES
            for path in (folder.glob(f"adapter.*.{suffix}") if folder.is_dir() else ())
        }
    )


def absolute_model(model: str) -> str:
    """A folder as an absolute path, as worker processes have other working folders; a hub id as it is."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model


def checkpoint_fingerprint(model: str | Path, revision: str | None = None) -> str:
    """A hash of everything in a checkpoint that decides its results, wherever it lies.

    Raises:
        CheckpointError: The model cannot be found, or has no config or no weights.
    """
    checkpoint_file(model, "config.json", revision=revision)
    digest = hashlib.sha256()
    paths = {name: checkpoint_file(model, name, revision=revision, required=False) for name in _SETTINGS}
    weights = (checkpoint_file(model, name, revision=revision, required=False) for name in _WEIGHTS)
    first = next((path for path in weights if path is not None), None)
    if first is None:
        raise CheckpointError(
            f"model {str(model)!r} has neither {' nor '.join(_WEIGHTS)}; name one with torch weights"
        )
    paths[first.name] = first
    if first.suffix == ".json":
        paths |= {name: checkpoint_file(model, name, revision=revision) for name in shard_names(first)}
    for name, path in paths.items():
        if path is not None:
            with path.open("rb") as file:
                digest.update(f"{name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()[:32]}"


def read_json_file(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: It is not JSON, or not an object; the message names the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:  # the last of brackets nested without end
        raise CheckpointError(f"{path} is not readable as JSON ({error}); fetch the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path} holds a JSON {type(value).__name__}, expected an object; fetch the file again"
        )
    return value


def shard_names(index: Path) -> list[str]:
    """The files that an index of weights, such as ``model.safetensors.index.json``, names.

    Raises:
        CheckpointError: It names none, or one that is not beside it; the message names the index.
    """
    shards = read_json_file(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index} has no weight_map; fetch the file again")
    names = sorted(set(map(str, shards.values())))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(
                f"{index} names the shard {name!r}, expected a file beside it; fetch the file again"
            )
    return names


def upload_saved(paths: Sequence[str], push_to_hub: bool, options: Mapping[str, Any]) -> None:
    """Puts files that were just saved into a hub repository in one commit, if that was asked for.

    Args:
        paths: Files of one folder and of folders in it; the first lies in the folder itself.
        push_to_hub: Whether to upload at all.
        options: ``repo_id`` (null: the folder's name, under the account of the token), ``commit_message``,
            ``private``, ``token``, ``revision`` (a branch), ``create_pr``.

    Raises:
        OutputError: The hub does not take the files, or cannot be reached.
        TypeError: An option is unknown.
    """
    known = ("repo_id", "commit_message", "private", "token", "revision", "create_pr")
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"saving has no option {unknown[0]!r}; those for the hub are {', '.join(known)}")
    if not push_to_hub:
        return
    from httpx2 import HTTPError  # huggingface_hub lets it through
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HFValidationError

    api = HfApi(token=options.get("token"))
    folder = Path(paths[0]).parent
    name = options.get("repo_id") or folder.resolve().name
    try:
        repository = api.create_repo(name, private=options.get("private"), exist_ok=True).repo_id
        api.create_commit(
            repository,
            [
                CommitOperationAdd(
                    path_in_repo=Path(path).relative_to(folder).as_posix(), path_or_fileobj=path
                )
                for path in paths
            ],
            commit_message=options.get("commit_message") or "Upload with w2v_ray",
            revision=options.get("revision"),
            create_pr=options.get("create_pr"),
        )
    except (HFValidationError, HTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OutputError(
            f"the hub repository {name!r} does not take the files ({reason}); "
            "check its name and the account's token"
        ) from error
