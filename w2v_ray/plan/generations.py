"""Which planned items count: of a recording the newest edition, and of an item the newest try.

An edition is what planning made of one version of a recording. Its items have the edition's name in their
fingerprints; those of a later edition go by the generation it began with. A retry is the same item again, of
a later generation. A container that was damaged has an item of its own, to be rejected; what is planned of
the container when it is whole has that item's fingerprint in its own, and takes its place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray.plan.known import FINGERPRINT_CHARACTERS

__all__ = ["current_items", "edition_of", "fingerprint_of_edition", "newest_items", "only_newest"]

_NEEDED = ("recording_id", "fingerprint", "generation")
_MENDED = "!"  # before the fingerprint of the item that stands for the damage


def fingerprint_of_edition(entry_fingerprint: str, generation: int, damage: str | None = None) -> str:
    """The name of the edition of an entry that is planned as this generation.

    Args:
        entry_fingerprint: Of the entry.
        generation: From 1.
        damage: The fingerprint of the item for the damage that its container had; None: it had none.
    """
    name = entry_fingerprint if generation == 1 else f"{entry_fingerprint}#{generation}"
    return name if damage is None else f"{name}{_MENDED}{damage[:FINGERPRINT_CHARACTERS]}"


def edition_of(fingerprint: str) -> str:
    """The edition that an item's fingerprint belongs to."""
    return fingerprint.partition("@")[0]


def newest_items(items: pa.Table) -> pa.BooleanArray:
    """Of each planned item whether nothing planned later takes its place."""
    if _is_first(items):
        is_newest = pa.repeat(True, items.num_rows)
    else:
        is_newest = _chosen(items, None)
    return _without_mended(items, is_newest, None)


def only_newest(items: pa.Table) -> pa.Table:
    """The planned items whose place nothing planned later takes; a million are not copied for nothing."""
    is_newest = newest_items(items)
    return items if pc.all(is_newest, min_count=0).as_py() else items.filter(is_newest)


def current_items(items: pa.Table, published: Collection[str]) -> pa.BooleanArray:
    """Of each planned item whether its rows are the ones to read.

    A later edition takes over when all of its items are published, a retry when it is, and what a container
    holds that was damaged when all of that is; until then the rows before them stay.
    """
    if not items.num_rows:
        return pa.repeat(True, 0)
    is_published = pc.is_in(items.column("shard_id"), value_set=pa.array(list(published), pa.string()))
    is_published = pa.concat_arrays(is_published.chunks)
    is_current = is_published
    if pc.max(items.column("generation")).as_py() > 1:
        is_current = _chosen(items, is_published)
    return _without_mended(items, is_current, is_published)


def _without_mended(
    items: pa.Table, is_chosen: pa.BooleanArray, is_published: pa.BooleanArray | None
) -> pa.BooleanArray:
    """What is chosen without the damage of containers that are whole now, and published if that counts."""
    names = items.column("fingerprint")
    if not items.num_rows:
        return is_chosen
    is_after = pa.concat_arrays(pc.match_substring(names, _MENDED).chunks)
    if not pc.any(is_after).as_py():
        return is_chosen
    rows = pc.indices_nonzero(is_after)
    damages = [name.partition(_MENDED)[2][:FINGERPRINT_CHARACTERS] for name in names.take(rows).to_pylist()]
    mended = set(damages)
    if is_published is not None:
        # What something newer has taken the place of need not be published any more.
        is_waited_for = pc.and_(newest_items(items), pc.invert(is_published)).take(rows).to_pylist()
        mended -= {damage for damage, waits in zip(damages, is_waited_for, strict=True) if waits}
    starts = pc.utf8_slice_codeunits(names, 0, FINGERPRINT_CHARACTERS)
    is_mended = pc.is_in(starts, value_set=pa.array(sorted(mended), pa.string()))
    return pc.and_(is_chosen, pc.invert(pa.concat_arrays(is_mended.chunks)))


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
