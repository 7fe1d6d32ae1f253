"""What heads give, as columns of a table of segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from w2v_ray.heads import Head
from w2v_ray.schema import CLASS_SCORES, EMBEDDING, EMISSION_DTYPE, ENCODED, FRAME_SCORES, TOP_TOKENS
from w2v_ray.stages.encoder_heads import TopTokens

__all__ = ["columns_of"]


def columns_of(
    head: Head, results: Sequence[tuple[np.ndarray | TopTokens | None] | None], *, has_tops: bool
) -> Iterator[tuple[pa.Field, pa.Array]]:
    """What a head gives for the segments of a table, as columns of it.

    Args:
        head: Whose results these are.
        results: None where a segment failed, (None,) where it has none.
        has_tops: Whether the columns of TopTokens are to be there, even if no segment has them.
    """
    found = [None if result is None else result[0] for result in results]
    if head.task in ("transcribe", "frames"):
        empty = np.zeros((0, 0), EMISSION_DTYPE)
        given = [None if r is None else empty if r[0] is None else r[0] for r in results]
        arrays = [one.log_probs if isinstance(one, TopTokens) else one for one in given]
        if head.task == "transcribe" and has_tops:
            tops = [one if isinstance(one, TopTokens) else None for one in given]
            tokens, size = TOP_TOKENS
            yield tokens, pa.array([None if t is None else t.ids.tobytes() for t in tops], tokens.type)
            yield size, pa.array([None if t is None else t.vocabulary_size for t in tops], size.type)
        field = ENCODED[0] if head.task == "transcribe" else FRAME_SCORES
        yield field, pa.array([None if a is None else a.tobytes() for a in arrays], field.type)
        yield ENCODED[1], pa.array([None if a is None else len(a) for a in arrays], ENCODED[1].type)
    elif head.task == "classify":
        yield CLASS_SCORES, pa.array(found, CLASS_SCORES.type)
    else:
        numbers = pa.from_numpy_dtype(head.dtype)
        type_ = pa.list_(numbers, head.size)
        field = EMBEDDING.field("embedding").with_type(type_)
        vectors = np.zeros((len(found), head.size), head.dtype)
        for row, vector in enumerate(found):
            if vector is not None:
                vectors[row] = vector
        missing = pa.array([vector is None for vector in found], pa.bool_())
        values = pa.array(vectors.ravel(), numbers)
        yield field, pa.FixedSizeListArray.from_arrays(values, type=type_, mask=missing)
