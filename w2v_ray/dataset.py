"""An output as a Ray Dataset."""

from __future__ import annotations

import pyarrow as pa
import ray.data
from ray.data import Dataset

from w2v_ray.output import Unit, reading_units, row_schema

__all__ = ["read_output"]


def read_output(output: str, table: str | None = None, *, generation: str = "newest") -> Dataset:
    """The rows of an output that count, read by the workers of the cluster.

    What a later generation has taken the place of is left out, whatever files lie in the output; so is what a
    dead writer left. The rows of a recording may come in several blocks; `w2v_ray.output.current_rows` yields
    whole recordings, without Ray.

    Args:
        output: Folder or URL of a job's output.
        table: ``transcripts``, ``alignments`` or ``rejects``; None: the one that the job writes.
        generation: ``newest``, or ``all`` for the rows of older generations as well.

    Raises:
        OutputError: It is no output, has no such table, or its plan cannot be read.
    """
    units = reading_units(output, table, generation=generation)
    if not units:
        return ray.data.from_arrow(row_schema(output, table).empty_table())
    ds: Dataset = ray.data.from_items(
        [{"unit": number} for number in range(len(units))], override_num_blocks=len(units)
    )
    return ds.map_batches(_ReadUnits(units), batch_size=1, batch_format="pyarrow")


class _ReadUnits:
    def __init__(self, units: list[Unit]) -> None:
        self._units = units

    def __call__(self, batch: pa.Table) -> pa.Table:
        (number,) = batch.column("unit").to_pylist()
        return self._units[number].read()
