"""What is planned already, told from what is new while the inputs are listed, so that none is held twice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from w2v_ray.errors import InputError

__all__ = ["FINGERPRINT_CHARACTERS", "Known", "text_slices"]

FINGERPRINT_CHARACTERS = 24  # of a recording; its time ranges add their number
_SLICE = 65_536


class Known:
    """The planned recordings by their fingerprints, in 40 bytes each.

    Args:
        planned: Items in the schema ITEM.
    """

    def __init__(self, planned: pa.Table) -> None:
        self._planned = planned
        fingerprints = [
            np.array([text[:FINGERPRINT_CHARACTERS] for text in texts], f"S{FINGERPRINT_CHARACTERS}")
            for texts in text_slices(planned.column("fingerprint"))
        ]
        empty = np.empty(0, f"S{FINGERPRINT_CHARACTERS}")
        self._fingerprints, self._rows = np.unique(np.concatenate([empty, *fingerprints]), return_index=True)
        self._is_seen = np.zeros(len(self._fingerprints), bool)
        self.num_again = 0
        """Entries that were left out although they had been left out before."""

    def unplanned(self, entries: pa.Table) -> pa.Table:
        """The entries that are not planned as they are."""
        if not len(self._fingerprints):
            return entries
        wanted = np.array(entries.column("fingerprint").to_pylist(), self._fingerprints.dtype)
        places = np.minimum(np.searchsorted(self._fingerprints, wanted), len(self._fingerprints) - 1)
        is_planned = self._fingerprints[places] == wanted
        found = places[is_planned]
        firsts = np.unique(found)
        self.num_again += len(found) - len(firsts) + int(self._is_seen[firsts].sum())
        self._is_seen[firsts] = True
        return entries.filter(pa.array(~is_planned))

    def unseen(self, columns: list[str]) -> pa.Table:
        """The planned recordings, one row for each, that no entry has named as they are."""
        return self._planned.select(columns).take(pa.array(self._rows[~self._is_seen]))

    def check_names(self, entries: pa.Table) -> None:
        """Sees that no new entry is called like a planned one that the inputs still name.

        Raises:
            InputError: One is.
        """
        if not entries.num_rows or not self._is_seen.any():
            return
        seen = self._planned.select(["recording_id", "uri"]).take(pa.array(self._rows[self._is_seen]))
        clash = pc.is_in(
            entries.column("recording_id"), value_set=seen.column("recording_id").combine_chunks()
        )
        if pc.any(clash).as_py():
            one = entries.filter(clash).slice(0, 1).to_pylist()[0]
            name = one["recording_id"]
            other = seen.filter(pc.equal(seen.column("recording_id"), name)).column("uri")[0].as_py()
            raise InputError(
                f"two recordings are called {name!r}: one of {other!r}, which is planned, and one of "
                f"{one['uri']!r}; give each its own id"
            )


def text_slices(column: pa.ChunkedArray) -> Iterator[list[str]]:
    """The texts of a column, some at a time, as all of them would take a hundred bytes each."""
    for start in range(0, len(column), _SLICE):
        yield column.slice(start, _SLICE).to_pylist()
