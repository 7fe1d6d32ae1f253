"""A small sample of what inputs hold, for a measurement before a job: listed, cut short, and planned.

Files are taken from all over what is listed, always the same ones.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray import stores
from w2v_ray.errors import InputError
from w2v_ray.inputs import list_inputs
from w2v_ray.plan import records
from w2v_ray.plan.durations import with_durations
from w2v_ray.plan.planning import Plan, entry_table, plan_of
from w2v_ray.plan.shards import make_items

__all__ = ["make_sample_plan", "take_sample"]

_MOST_LISTED = 20_000  # entries; an archive of millions need not be listed to measure a minute of it
_AT_ONCE = 32  # entries whose lengths are looked up
_LEAST_PIECES = 4  # recordings that share the seconds, where they are long
_LEAST_PIECE_S = 30.0


def take_sample(inputs: Sequence[str], *, seconds: float, audio_column: str | None = None) -> pa.Table:
    """Entries of about as many seconds of audio as are asked for, or all that there are.

    Args:
        inputs: As of `list_inputs`.
        seconds: Of audio; of a long recording the beginning is taken.
        audio_column: As of `list_inputs`.

    Returns:
        Rows with the fields of `Entry`, ``fingerprint`` and ``share_bytes``, the bytes of storage that stand
        for the row's audio, in the order they were listed.

    Raises:
        InputError: As of `list_inputs`, or no length is above 0.
    """
    skipped: Counter[str] = Counter()
    entries = list(islice(list_inputs(inputs, skipped=skipped, audio_column=audio_column), _MOST_LISTED))
    order = random.Random(0).sample(range(len(entries)), len(entries))
    most_s = max(_LEAST_PIECE_S, seconds / _LEAST_PIECES)
    taken: list[pa.Table] = []
    places: list[int] = []
    total_s = 0.0
    for begin in range(0, len(order), _AT_ONCE):
        chosen = order[begin : begin + _AT_ONCE]
        table = with_durations(
            entry_table([entries[place] for place in chosen], []), long_s=math.inf, unknown_s=most_s
        )
        for row, place in enumerate(chosen):
            length_s = table.column("duration_s")[row].as_py()
            if total_s >= seconds or length_s <= 0:
                continue
            piece_s = min(length_s, most_s, max(1.0, seconds - total_s))
            taken.append(_first_seconds(table.slice(row, 1), length_s, piece_s))
            places.append(place)
            total_s += piece_s
        if total_s >= seconds:
            break
    if not taken:
        raise InputError(
            f"inputs {', '.join(map(repr, inputs))} hold no audio that is longer than 0 s; name others"
        )
    sample = pa.concat_tables(taken)
    return sample.take(pa.array(sorted(range(len(places)), key=places.__getitem__), pa.int64()))


def _first_seconds(entry: pa.Table, length_s: float, piece_s: float) -> pa.Table:
    """One entry, cut to its first seconds, with the bytes that these stand for."""
    size = entry.column("byte_size")[0].as_py()
    stands_for = None if size is None else round(size * piece_s / length_s)
    if piece_s < length_s:
        start_s = entry.column("start_s")[0].as_py() or 0.0
        for name, value in (("end_s", start_s + piece_s), ("duration_s", piece_s)):
            place = entry.column_names.index(name)
            entry = entry.set_column(place, name, pa.array([value], pa.float64()))
    return entry.append_column("share_bytes", pa.array([stands_for], pa.int64()))


def make_sample_plan(
    sample: pa.Table,
    output: str,
    *,
    seconds: float,
    shard_seconds: float,
    job: Mapping[str, records.Json],
) -> Plan:
    """Plans a sample again and again, under other names each time, until it has so many seconds.

    Args:
        sample: Of `take_sample`.
        output: A new folder.
        seconds: Of audio; a sample that has more is planned in part.
        shard_seconds: Of audio in a shard.
        job: The settings that decide what the rows are.

    Raises:
        OutputError: The output cannot be written.
    """
    output = stores.canonical(output)
    records.claim_output(output, job)
    entries = sample.drop_columns(["share_bytes"])
    lengths = entries.column("duration_s").to_pylist()
    rows: list[int] = []
    rounds: list[int] = []
    total_s = 0.0
    while total_s < seconds:
        place = len(rows) % len(lengths)
        rounds.append(len(rows) // len(lengths))
        rows.append(place)
        total_s += lengths[place]
    entries = entries.take(pa.array(rows, pa.int64()))
    suffixes = pa.array([f"#{number}" if number else "" for number in rounds], pa.string())
    for name in ("recording_id", "fingerprint"):
        named = pc.binary_join_element_wise(entries.column(name).combine_chunks(), suffixes, "")
        entries = entries.set_column(entries.column_names.index(name), name, named)
    generations = pa.array([1] * entries.num_rows, pa.int32())
    items = make_items(entries.append_column("generation", generations), shard_seconds)
    records.publish_plan(output, items, 1)
    return plan_of(output, job, items, num_new=items.num_rows)
