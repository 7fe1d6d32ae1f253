"""Removing what a dead or slower writer left beside the rows of shards that are published."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from w2v_ray import stores
from w2v_ray.crash_points import crash_point
from w2v_ray.parts import list_parts, read_footer
from w2v_ray.plan.records import read_job, tables_beside

__all__ = ["remove_leftovers"]

_THREADS = 16
_BESIDE = re.compile(r"part-([0-9a-f]+)-[0-9a-f]{12}\.parquet")


def remove_leftovers(output: str, table: str, summaries: Mapping[str, Mapping[str, Any]]) -> int:
    """Removes rejects, log-probabilities and rows of other tables that the rows of their shard do not name.

    Whoever would still name one of them finds that its shard is published, and names nothing.

    Args:
        output: Folder or URL.
        table: The table whose files say which shards are published.
        summaries: Of published shards; other shards are left alone.

    Returns:
        How many files it removed.

    Raises:
        OutputError: The store refuses.
    """
    doubtful: dict[str, list[str]] = {}
    folders = ("rejects", "log_probs", *tables_beside(read_job(output)[1]))
    for folder in folders:
        found: dict[str, list[str]] = {}
        for name in stores.list_names(stores.join(output, folder)):
            match = _BESIDE.fullmatch(name)
            if match and match[1] in summaries:
                found.setdefault(match[1], []).append(f"{folder}/{name}")
        for shard_id, names in found.items():
            is_none = folder == "rejects" and not summaries[shard_id]["num_rejects"]
            if is_none or len(names) > 1:
                doubtful.setdefault(shard_id, []).extend(names)
    if not doubtful:
        return 0
    files = list_parts(output, table).files

    def clean(shard_id: str) -> int:
        summary = read_footer(stores.join(output, table, files[shard_id])).shards[shard_id]
        named = {summary.get(f"{folder}_file") for folder in folders}
        spare = [name for name in doubtful[shard_id] if name not in named]
        for name in spare:
            stores.remove(stores.join(output, name))
            crash_point("clean.removing")
        return len(spare)

    with ThreadPoolExecutor(_THREADS) as pool:
        return sum(pool.map(clean, doubtful))
