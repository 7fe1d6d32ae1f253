"""Which language an item of a plan is of, and in which order of languages shards are done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pyarrow as pa

from w2v_ray.plan.records import Json
from w2v_ray.schema import LANGUAGE_KEY

__all__ = ["by_language", "language_keys"]


def language_keys(job: Mapping[str, Json]) -> list[str]:
    """The keys of the metadata that may hold the language of an item, the first that does counting."""
    key = job.get("language_key")
    return ([] if key is None else [str(key)]) + ([LANGUAGE_KEY] if job.get("languages_from") else [])


def by_language(
    shard_ids: Sequence[str], firsts: Sequence[int], items: pa.Table, keys: Sequence[str]
) -> list[str]:
    """Shards by language, and in the order that they are in within one.

    Args:
        shard_ids: The shards, each of one language.
        firsts: The row of the first item of each.
        items: The plan.
        keys: As of `language_keys`.
    """
    texts = items.column("metadata").take(pa.array(firsts, pa.int64())).to_pylist()
    languages = dict(zip(shard_ids, (_language(text, keys) for text in texts), strict=True))
    return sorted(shard_ids, key=languages.__getitem__)


def _language(metadata: str | None, keys: Sequence[str]) -> str:
    values = json.loads(metadata) if metadata else {}
    return next((str(values[key]) for key in keys if values.get(key) is not None), "")
