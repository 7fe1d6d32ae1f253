"""Which language an item of a plan is of, and so each of its shards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pyarrow as pa

from w2v_ray.plan.records import Json
from w2v_ray.plan.shards import shard_bounds
from w2v_ray.schema import LANGUAGE_KEY

__all__ = ["language_keys", "shard_languages"]


def language_keys(job: Mapping[str, Json]) -> list[str]:
    """The keys of the metadata that may hold the language of an item, the first that does counting."""
    key = job.get("language_key")
    return ([] if key is None else [str(key)]) + ([LANGUAGE_KEY] if job.get("languages_from") else [])


def shard_languages(items: pa.Table, keys: Sequence[str]) -> dict[str, str | None]:
    """The language of each shard, or None where its items are told none.

    Args:
        items: Of a plan.
        keys: As of `language_keys`.
    """
    bounds = list(shard_bounds(items))
    firsts = items.column("metadata").take(pa.array([begin for _, begin, _ in bounds], pa.int64()))
    found: dict[str, str | None] = {}
    for (shard_id, _, _), text in zip(bounds, firsts.to_pylist(), strict=True):
        values = json.loads(text) if text else {}
        found[shard_id] = next((str(values[key]) for key in keys if values.get(key) is not None), None)
    return found
