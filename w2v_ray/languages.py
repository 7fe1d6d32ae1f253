"""The languages of a checkpoint with adapters, looked into before any worker starts, and without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safetensors import SafetensorError, safe_open

from w2v_ray import stores
from w2v_ray.errors import CheckpointError, ConfigError, OutputError
from w2v_ray.hub import adapter_file, adapter_languages, checkpoint_file, read_json_file
from w2v_ray.plan import Plan, language_keys, shard_languages
from w2v_ray.text.languages import Tokenizers, check_head
from w2v_ray.text.tokenizer import Wav2Vec2CTCTokenizer

__all__ = ["check_adapters", "check_languages", "claim_adapters", "known_languages"]


def known_languages(
    model: str, tokenizer: Wav2Vec2CTCTokenizer, *, revision: str | None = None
) -> tuple[str, ...] | None:
    """The languages that a checkpoint has a vocabulary and, as far as can be told, an adapter for.

    Args:
        model: A folder, or a hub id, of which the vocabulary alone is looked into.
        tokenizer: Of the checkpoint.
        revision: Branch, tag or commit of a hub id.

    Returns:
        Their names, sorted; None where that cannot be told.

    Raises:
        CheckpointError: It has no language adapters.
    """
    path = checkpoint_file(model, "config.json", revision=revision)
    assert path is not None  # it is required
    if read_json_file(path).get("adapter_attn_dim") is None:
        raise CheckpointError(
            f"{path} has no adapter_attn_dim, so that the model has one language; name a checkpoint with "
            "language adapters, or leave the language settings out"
        )
    names = Tokenizers(tokenizer).names
    if not Path(model).expanduser().is_dir():
        return names
    found = {*adapter_languages(model)}
    if tokenizer.target_lang is not None:
        found.add(tokenizer.target_lang)  # that of the weights, with or without a file of its own
    if not found:
        raise CheckpointError(
            f"model {model!r} has no file adapter.LANGUAGE.safetensors or .bin; fetch those of your languages"
        )
    return tuple(sorted(found if names is None else found & {*names}))


def check_languages(
    model: str,
    tokenizer: Wav2Vec2CTCTokenizer,
    *,
    revision: str | None = None,
    language: str | None = None,
    is_one: bool,
) -> dict[str, Any]:
    """Sees that the languages that are asked for can be used, and says what decides their results.

    Args:
        model: A folder or hub id.
        tokenizer: Of the checkpoint.
        revision: Branch, tag or commit of a hub id.
        language: That of recordings that are told none.
        is_one: Whether all recordings are of that one; else any language may be met.

    Returns:
        The content of its adapter, where it has a file of its own.

    Raises:
        ConfigError: The checkpoint has no such language.
        CheckpointError: It has no adapters, or one does not fit its vocabulary.
    """
    known = known_languages(model, tokenizer, revision=revision)
    content: dict[str, Any] = {}
    if language is not None:
        content = _check_language(language, known, model=model, revision=revision)
    names = (language,) if is_one else known
    check_adapters(model, tokenizer, [name for name in names or () if name is not None])
    return content


def check_adapters(model: str, tokenizer: Wav2Vec2CTCTokenizer, languages: Sequence[str]) -> None:
    """Sees that the adapters in a folder have a row in the head for each token of their vocabularies.

    Pickled adapters are left for when they are loaded.

    Raises:
        CheckpointError: One has not, or cannot be read; it names the language and both sizes.
    """
    tokenizers = Tokenizers(tokenizer)
    for language in languages:
        path = Path(model).expanduser() / f"adapter.{language}.safetensors"
        if path.is_file():
            try:
                with safe_open(path, framework="numpy") as file:
                    rows = file.get_slice("lm_head.weight").get_shape()[0]
            except (SafetensorError, OSError, IndexError) as error:
                reason = " ".join(str(error).split())[:200]
                raise CheckpointError(
                    f"{path} is not an adapter with lm_head.weight ({reason}); fetch the file again"
                ) from error
            check_head(tokenizers(language), rows, str(path), language)


def claim_adapters(plan: Plan, job: Mapping[str, Any], *, model: str, record: bool = True) -> None:
    """Notes in an output which adapters its rows are made with, or sees that earlier rows have the same ones.

    Adapters of a hub id are those of its revision.

    Args:
        plan: Of the output.
        job: The settings that decide what its rows are.
        model: The checkpoint: a folder or hub id.
        record: Whether they are noted; else nothing is written.

    Raises:
        OutputError: An adapter has changed since rows were made with it, or the store refuses.
    """
    keys = language_keys(job)
    if not keys or not Path(model).expanduser().is_dir():
        return
    waiting = set(plan.pending)
    pending: set[str] = set()
    done: set[str] = set()
    for shard_id, language in shard_languages(plan.items, keys).items():
        (pending if shard_id in waiting else done).add(language or str(job.get("language")))
    for language in sorted(pending):
        path = adapter_file(model, language)
        if path is None:
            continue
        digest = _digest(path)
        note = stores.join(plan.output, "_plan", f"adapter-{quote(language, safe='')}.txt")
        if language not in done or not stores.exists(note):
            if record:
                stores.publish(note, digest.encode(), root=plan.output)
        elif (found := stores.read_bytes(note).decode()) != digest:
            raise OutputError(
                f"output {plan.output!r} has rows of language {language!r} by another adapter ({found}) than "
                f"{path} ({digest}); restore that file, or name a new output"
            )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:32]}"


def _check_language(
    language: str, known: tuple[str, ...] | None, *, model: str, revision: str | None = None
) -> dict[str, Any]:
    """Sees that the one language of a job is there, and says what decides its results.

    Args:
        language: Its name.
        known: As of `known_languages`.
        model: A folder or hub id.
        revision: Branch, tag or commit of a hub id.

    Raises:
        ConfigError: The checkpoint has no such language.
        CheckpointError: The hub cannot be reached.
    """
    path = adapter_file(model, language, revision=revision)
    if (known is not None and language not in known) or (known is None and path is None):
        some = "one that the checkpoint has an adapter for" if known is None else ", ".join(known[:12])
        more = f" and {len(known) - 12} more" if known is not None and len(known) > 12 else ""
        raise ConfigError(f"language is {language!r}, expected {some}{more}; choose one of these")
    return {} if path is None else {"adapter": _digest(path)}
