"""What the plans of an output say of its recordings."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray import stores
from w2v_ray.errors import OutputError
from w2v_ray.parts import list_parts
from w2v_ray.plan.generations import newest_items
from w2v_ray.plan.records import read_job, read_plans, table_of

__all__ = ["Planned", "read_planned"]

_NEEDED = ["shard_id", "item_index", "recording_id", "fingerprint", "generation", "byte_offset", "container"]


class Planned(NamedTuple):
    """What the plans of an output say of it."""

    output: str
    table: str
    recording_ids: list[str]
    """In the order in which they were planned first."""
    members: set[str]
    """Those whose audio is a part of a file, such as a member of a tar."""
    pending: set[str]
    """Those of which an item is not published."""


def read_planned(output: str) -> Planned:
    """Reads the plans of an output.

    Raises:
        OutputError: It is not the output of a job of this version, or cannot be read.
    """
    if (reason := stores.refusal(output)) is not None:
        raise OutputError(f"output {output!r} {reason}")
    output = stores.canonical(output)
    try:
        table = table_of(read_job(output)[1])
        items, _ = read_plans(output, _NEEDED)
        published = pa.array(list_parts(output, table).files, pa.string())
    except OutputError:
        raise
    except Exception as error:  # each store has its own errors
        message = f"output {output!r} cannot be listed ({stores.explain(error)}); check name and permissions"
        raise OutputError(message) from error
    if not items.num_rows:
        raise OutputError(f"output {output!r} holds no plan; name the output of a job that has started")
    recordings = items.column("recording_id").combine_chunks()
    is_member = pc.or_(pc.is_valid(items.column("byte_offset")), pc.is_valid(items.column("container")))
    is_published = pc.is_in(items.column("shard_id"), value_set=published)
    is_pending = pc.and_(newest_items(items), pc.invert(pa.concat_arrays(is_published.chunks)))
    return Planned(
        output=output,
        table=table,
        recording_ids=pc.unique(recordings).to_pylist(),
        members=set(recordings.filter(pa.concat_arrays(is_member.chunks)).to_pylist()),
        pending=set(recordings.filter(is_pending).to_pylist()),
    )
