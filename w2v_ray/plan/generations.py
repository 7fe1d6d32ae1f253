"""Which planned items count: of a recording the newest edition, and of an item the newest try.

An edition is what planning made of one version of a recording. Its items have the edition's name in their
fingerprints; those of a later edition go by the generation it began with. A retry is the same item again, of
a later generation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["current_items", "edition_of", "fingerprint_of_edition", "newest_items", "only_newest"]

_NEEDED = ("recording_id", "fingerprint", "generation")


def fingerprint_of_edition(entry_fingerprint: str, generation: int) -> str:
    """The name of the edition of an entry that is planned as this generation."""
    return entry_fingerprint if generation == 1 else f"{entry_fingerprint}#{generation}"


def edition_of(fingerprint: str) -> str:
    """The edition that an item's fingerprint belongs to."""
    return fingerprint.partition("@")[0]


def newest_items(items: pa.Table) -> pa.BooleanArray:
    """Of each planned item whether nothing planned later takes its place."""
    if _is_first(items):
        return pa.repeat(True, items.num_rows)
    return _chosen(items, None)


def only_newest(items: pa.Table) -> pa.Table:
    """The planned items whose place nothing planned later takes; a million are not copied for nothing."""
    return items if _is_first(items) else items.filter(newest_items(items))


def current_items(items: pa.Table, published: Collection[str]) -> pa.BooleanArray:
    """Of each planned item whether its rows are the ones to read.

    A later edition takes over when all of its items are published, a retry when it is; until then the rows
    before them stay.
    """
    if not items.num_rows:
        return pa.repeat(True, 0)
    is_published = pc.is_in(items.column("shard_id"), value_set=pa.array(list(published), pa.string()))
    is_published = pa.concat_arrays(is_published.chunks)
    if pc.max(items.column("generation")).as_py() == 1:
        return is_published
    return _chosen(items, is_published)


def _is_first(items: pa.Table) -> bool:
    """Whether nothing has been planned again."""
    return not items.num_rows or pc.max(items.column("generation")).as_py() == 1


def _chosen(items: pa.Table, is_published: pa.BooleanArray | None) -> pa.BooleanArray:
    """One item for each that an edition consists of, and one edition for each recording."""
    again = items.filter(pc.greater(items.column("generation"), 1)).column("recording_id")
    is_simple = pc.invert(pc.is_in(items.column("recording_id"), value_set=pc.unique(again)))
    is_chosen = pa.concat_arrays(is_simple.chunks)
    if is_published is not None:
        is_chosen = pc.and_(is_chosen, is_published)
    rows = pc.indices_nonzero(pc.invert(is_simple))
    columns = (items.column(name).take(rows).to_pylist() for name in _NEEDED)
    done = [True] * len(rows) if is_published is None else is_published.take(rows).to_pylist()
    # recording -> edition -> fingerprint -> (generation, row, is published)
    recordings: defaultdict[str, dict[str, dict[str, list[tuple[int, int, bool]]]]] = defaultdict(dict)
    for row, recording, fingerprint, generation, is_done in zip(
        rows.to_pylist(), *columns, done, strict=True
    ):
        tries = recordings[recording].setdefault(edition_of(fingerprint), {})
        tries.setdefault(fingerprint, []).append((generation, row, is_done))
    chosen: list[int] = []
    for editions in recordings.values():
        newest_first = sorted(
            editions.values(), key=lambda edition: -min(tries[0][0] for tries in edition.values())
        )
        ready = [
            [max((t for t in tries if t[2]), default=None) for tries in e.values()] for e in newest_first
        ]
        best = next((e for e in ready if all(e)), None) or next((e for e in ready if any(e)), [])
        chosen += [found[1] for found in best if found is not None]
    mask = pc.is_in(
        pa.array(range(items.num_rows), pa.int64()), value_set=pa.array(sorted(chosen), pa.int64())
    )
    return pc.or_(is_chosen, mask)
