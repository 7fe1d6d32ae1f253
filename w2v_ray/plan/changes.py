"""What is new of what the inputs name, what has changed since it was planned, and what is gone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray.errors import OutputError
from w2v_ray.plan.generations import fingerprint_of_edition, only_newest
from w2v_ray.plan.known import FINGERPRINT_CHARACTERS, Known
from w2v_ray.schema import DAMAGE_KEY

__all__ = ["Containers", "count_gone", "last_generations", "unplanned", "with_generation"]


class Containers(set[tuple[str, str | None, str | None]]):
    """Uri, version and container of the files whose members or rows are planned, all of that version.

    What a store gives no version of may have changed, and is looked into each time.
    """

    def __init__(self, planned: pa.Table) -> None:
        super().__init__(_looked_into(planned))
        self.found: set[tuple[str, str | None, str | None]] = set()
        """Those that the inputs have been seen to name."""

    def __contains__(self, container: object) -> bool:
        is_planned = super().__contains__(container)
        if is_planned:
            self.found.add(cast(tuple[str, str | None, str | None], container))
        return is_planned


def _looked_into(planned: pa.Table) -> Iterator[tuple[str, str | None, str | None]]:
    planned = only_newest(planned)
    is_inside = pc.or_(pc.is_valid(planned.column("byte_offset")), pc.is_valid(planned.column("container")))
    names = ["uri", "version", "container"]
    is_looked_into = pc.and_(pc.or_(is_inside, _is_damage(planned)), pc.is_valid(planned.column("version")))
    files = planned.select(names).filter(is_looked_into).group_by(names).aggregate([])
    versions = files.group_by("uri").aggregate([("version", "count_distinct", pc.CountOptions(mode="all"))])
    is_mixed = pc.greater(versions.column("version_count_distinct"), 1)
    mixed = versions.column("uri").filter(is_mixed).combine_chunks()
    files = files.filter(pc.invert(pc.is_in(files.column("uri"), value_set=mixed)))
    return zip(*(files.column(name).to_pylist() for name in names), strict=True)


def unplanned(listed: pa.Table, planned: pa.Table, output: str, on_change: str) -> pa.Table:
    """The entries that no plan holds as they are, with the generation that each is to be."""
    if not planned.num_rows or not listed.num_rows:
        return with_generation(listed, [1] * listed.num_rows)
    newest = only_newest(planned)
    known = pc.utf8_slice_codeunits(newest.column("fingerprint"), 0, FINGERPRINT_CHARACTERS)
    new = listed.filter(pc.invert(pc.is_in(listed.column("fingerprint"), value_set=known.combine_chunks())))
    ids = planned.column("recording_id").combine_chunks()
    # What is gone has not changed: it stays as it was planned.
    is_gone = pc.and_(pc.is_null(new.column("byte_size")), pc.is_null(new.column("container")))
    new = new.filter(pc.invert(pc.and_(is_gone, pc.is_in(new.column("recording_id"), value_set=ids))))
    is_changed = pc.is_in(new.column("recording_id"), value_set=ids)
    changed = new.filter(is_changed)
    damages = _mended(new, newest)
    if not changed.num_rows:
        return with_generation(new, [1] * new.num_rows, damages)
    if on_change == "refuse":
        row = changed.slice(0, 1).to_pylist()[0]
        before = newest.filter(pc.equal(newest.column("recording_id"), row["recording_id"]))
        more = f" (and {changed.num_rows - 1} more)" if changed.num_rows > 1 else ""
        raise OutputError(
            f"{row['uri']!r} has changed since it was planned in {output!r}: "
            f"{_difference(before.slice(0, 1).to_pylist()[0], row)}{more}; plan what changed anew with "
            "--on-change new, or name a new --output"
        )
    last = last_generations(planned, changed.column("recording_id"))
    generations = [last.get(name, 0) + 1 for name in new.column("recording_id").to_pylist()]
    return with_generation(new, generations, damages)


def count_gone(known: Known, containers: Containers, new: pa.Table) -> int:
    """How many planned recordings the inputs name no more.

    Args:
        known: What is planned, after all that the inputs name has been compared with it.
        containers: Of what is planned, after the inputs were listed.
        new: What is to be planned now.
    """
    left = known.unseen(["recording_id", "uri", "metadata"])
    if not left.num_rows:
        return 0
    stays = pc.is_in(left.column("recording_id"), value_set=pc.unique(new.column("recording_id")))
    left = left.filter(pc.and_(pc.invert(stays), pc.invert(_is_damage(left))))
    # What is in a container that need not be looked into again has not been compared.
    uris = pa.array(sorted({uri for uri, _, _ in containers.found}), pa.string())
    left = left.filter(pc.invert(pc.is_in(left.column("uri"), value_set=uris)))
    return int(pc.count_distinct(left.column("recording_id")).as_py())


def _mended(new: pa.Table, newest: pa.Table) -> list[str | None]:
    """Of each new entry the item for the damage that its file had when it was planned, if it has none now."""
    stands_for_all = pc.equal(newest.column("recording_id"), newest.column("uri"))
    before = newest.filter(pc.and_(_is_damage(newest), stands_for_all))
    if not before.num_rows:
        return [None] * new.num_rows
    uris, versions, fingerprints = (before.column(n).to_pylist() for n in ("uri", "version", "fingerprint"))
    damages = dict(zip(uris, zip(versions, fingerprints, strict=True), strict=True))
    for uri in new.filter(_is_damage(new)).column("uri").to_pylist():
        damages.pop(uri, None)  # damaged again: that item takes the place of the one before
    found = []
    for uri, version in zip(new.column("uri").to_pylist(), new.column("version").to_pylist(), strict=True):
        old_version, fingerprint = damages.get(uri, (version, None))
        found.append(None if version == old_version else fingerprint)
    return found


def _is_damage(items: pa.Table) -> pa.ChunkedArray:
    """Of each item whether it stands for what of its file could not be planned."""
    return pc.fill_null(pc.match_substring(items.column("metadata"), DAMAGE_KEY), False)


def last_generations(planned: pa.Table, recording_ids: pa.ChunkedArray) -> dict[str, int]:
    """The highest generation that each of these recordings is planned as."""
    found = planned.filter(pc.is_in(planned.column("recording_id"), value_set=pc.unique(recording_ids)))
    found = found.group_by("recording_id").aggregate([("generation", "max")])
    return dict(
        zip(found.column("recording_id").to_pylist(), found.column("generation_max").to_pylist(), strict=True)
    )


def with_generation(
    entries: pa.Table, generations: list[int], damages: Sequence[str | None] = ()
) -> pa.Table:
    """The entries with their generations, and with the fingerprints of their editions."""
    if max(generations, default=1) > 1 or any(damages):
        fingerprints = entries.column("fingerprint").to_pylist()
        damages = damages or [None] * len(generations)
        triples = zip(fingerprints, generations, damages, strict=True)
        names = pa.array([fingerprint_of_edition(*triple) for triple in triples], pa.string())
        entries = entries.set_column(entries.column_names.index("fingerprint"), "fingerprint", names)
    return entries.append_column("generation", pa.array(generations, pa.int32()))


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    names = {"uri": "file", "byte_size": "size", "version": "version", "byte_offset": "place in the tar"}
    names |= {"container": "container", "row": "row", "channel": "channel"}
    changed = [key for key in names if old[key] != new[key]]
    return (
        ", ".join(f"{names[key]} {_shown(old[key])} -> {_shown(new[key])}" for key in changed)
        or "its range, or what the manifest says of it"
    )


def _shown(value: object) -> str:
    if isinstance(value, str) and value.startswith("mtime:") and value[6:].isdigit():
        return f"mtime {datetime.fromtimestamp(int(value[6:]) / 1e9, UTC):%Y-%m-%d %H:%M:%S.%f} UTC"
    return str(value)
