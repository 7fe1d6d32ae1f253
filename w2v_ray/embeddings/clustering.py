"""Speakers found among embeddings: which are of one, and how sure that is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from w2v_ray.embeddings.reading import embedding_matrix
from w2v_ray.errors import ConfigError, InputError, MissingExtraError

__all__ = ["METHODS", "check_clustering", "cluster_speakers", "merge_groups"]

METHODS = ("agglomerative", "two-stage", "hdbscan")

_MOST_BYTES = 4e9  # of the distances of all pairs
_THRESHOLD = 0.5
_PART = 10_000  # rows of the first stage: 0.8 GB of distances
_MIN_SIZE = {"agglomerative": 1, "two-stage": 1, "hdbscan": 5}


def cluster_speakers(
    embeddings: pa.Table,
    *,
    method: str = "agglomerative",
    threshold: float | None = None,
    num_speakers: int | None = None,
    min_size: int | None = None,
) -> pa.Table:
    """Gives each embedding a speaker.

    Args:
        embeddings: A table as `read_embeddings` returns.
        method: ``agglomerative`` merges the two groups whose members are, on average, most alike, until none
            are alike enough or few enough are left. It needs 8 bytes for every pair of rows. ``two-stage``
            does the same in parts of 10,000 rows, and then with the groups that these give. ``hdbscan``
            finds dense groups of any number and shape, and leaves the rest without a speaker.
        threshold: The least mean cosine of two groups that are merged, -1 to 1; None: 0.5. For
            ``agglomerative`` without ``num_speakers``, and ``two-stage``.
        num_speakers: How many groups to find, for ``agglomerative``; None: as many as ``threshold`` leaves.
        min_size: Groups with fewer members are no speakers; None: 1, and 5 for ``hdbscan``, where it is at
            least 2.

    Returns:
        The table without its embeddings, and with ``speaker``: ``speaker-0001`` is the one with most rows,
        null stands for none; and ``score``: the cosine of the embedding and the mean of its speaker's.

    Raises:
        ConfigError: A setting is out of bounds, or the method does not take it.
        InputError: There are too few rows, or too many for the method.
        MissingExtraError: The package scikit-learn is not installed.
    """
    check_clustering(method, threshold=threshold, num_speakers=num_speakers, min_size=min_size)
    size = _MIN_SIZE[method] if min_size is None else min_size
    matrix = embedding_matrix(embeddings)
    least = _THRESHOLD if threshold is None else threshold
    if method == "agglomerative":
        groups = _agglomerated(matrix, least, num_speakers)
    elif method == "two-stage":
        groups = _in_two_stages(matrix, least)
    else:
        groups = _dense(matrix, size)
    speakers, scores = _numbered(groups, matrix, size)
    kept = [name for name in embeddings.column_names if name not in ("embedding", "speaker", "score")]
    return embeddings.select(kept).append_column("speaker", speakers).append_column("score", scores)


def check_clustering(
    method: str, *, threshold: float | None, num_speakers: int | None, min_size: int | None
) -> None:
    """Sees that `cluster_speakers` would take these settings, before anything is read.

    Raises:
        ConfigError: A setting is out of bounds, or the method does not take it.
        MissingExtraError: The package scikit-learn is not installed.
    """
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}, expected one of {', '.join(METHODS)}; choose one")
    if method == "hdbscan" and (threshold is not None or num_speakers is not None):
        raise ConfigError(
            f"threshold is {threshold} and num_speakers {num_speakers}, and hdbscan takes neither; "
            "set min_size, or choose agglomerative"
        )
    if method == "two-stage" and num_speakers is not None:
        raise ConfigError(f"num_speakers is {num_speakers}, and two-stage takes none; set threshold instead")
    if threshold is not None and num_speakers is not None:
        raise ConfigError(f"threshold is {threshold} and num_speakers {num_speakers}; set one of them")
    if threshold is not None and not -1 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold}, expected a cosine from -1 to 1, such as 0.5")
    if num_speakers is not None and num_speakers < 1:
        raise ConfigError(f"num_speakers is {num_speakers}, expected at least 1")
    least = 2 if method == "hdbscan" else 1
    if min_size is not None and min_size < least:
        raise ConfigError(f"min_size is {min_size}, expected at least {least} for {method}")
    _sklearn_cluster()


def _agglomerated(
    matrix: NDArray[np.float32], threshold: float, num_speakers: int | None
) -> NDArray[np.int64]:
    if num_speakers is not None and num_speakers > len(matrix):
        raise InputError(f"there are {len(matrix)} embeddings for num_speakers {num_speakers}; lower it")
    if 8.0 * len(matrix) ** 2 > _MOST_BYTES:
        raise InputError(
            f"there are {len(matrix):,} embeddings, of which agglomerative would compare all pairs in "
            f"{8.0 * len(matrix) ** 2 / 1e9:,.0f} GB, more than {_MOST_BYTES / 1e9:g}; choose two-stage"
        )
    if len(matrix) < 2:
        return np.zeros(len(matrix), np.int64)
    found = _sklearn_cluster().AgglomerativeClustering(
        n_clusters=num_speakers,
        # Groups merge below this distance, and so at least at this cosine.
        distance_threshold=None if num_speakers is not None else np.nextafter(1 - threshold, np.inf),
        metric="cosine",
        linkage="average",
    )
    return np.asarray(found.fit_predict(matrix.astype(np.float64)), np.int64)


def _in_two_stages(matrix: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Groups of groups that were found in parts."""
    groups = np.empty(len(matrix), np.int64)
    count = 0
    for begin in range(0, len(matrix), _PART):
        found = _agglomerated(matrix[begin : begin + _PART], threshold, None)
        groups[begin : begin + _PART] = found + count
        count += int(found.max()) + 1
    sums = np.zeros((count, matrix.shape[1]))
    np.add.at(sums, groups, matrix)
    return merge_groups(sums, np.bincount(groups, minlength=count), threshold)[groups]


def merge_groups(sums: NDArray[np.float64], sizes: NDArray[np.int64], threshold: float) -> NDArray[np.int64]:
    """Merges groups of unit vectors whose mean cosine is at least a threshold, the most alike first.

    The mean cosine of two groups is the product of their means, so no cosines have to be kept. Chains of
    nearest neighbours find, in any order, the merges that are made when always the best pair is merged: a
    merged group is never more alike to a third than the better of its parts.

    Args:
        sums: The sum of each group's vectors.
        sizes: How many these are.
        threshold: From -1 to 1.

    Returns:
        For each group, the number of the one that it is merged into.
    """
    means = (sums / sizes[:, None]).astype(np.float32)
    weights = sizes.astype(np.float64)
    merged = np.arange(len(sums))
    open_ = np.ones(len(sums), bool)
    least = np.float32(threshold) - np.float32(1e-6)
    chain: list[int] = []
    while open_.any():
        if not chain:
            chain.append(int(np.argmax(open_)))
        here = chain[-1]
        alike = means @ means[here]
        alike[~open_] = -np.inf
        alike[here] = -np.inf
        nearest = int(np.argmax(alike))
        if len(chain) > 1 and alike[chain[-2]] >= alike[nearest]:
            nearest = chain[-2]  # of several that are as near, so that the chain ends
        if alike[nearest] < least:
            open_[here] = False  # and no later merge brings another nearer
            chain.pop()
        elif len(chain) > 1 and nearest == chain[-2]:
            total = weights[here] + weights[nearest]
            means[nearest] = (weights[here] * means[here] + weights[nearest] * means[nearest]) / total
            weights[nearest] = total
            open_[here] = False
            merged[here] = nearest
            del chain[-2:]
        else:
            chain.append(nearest)
    while (merged[merged] != merged).any():
        merged = merged[merged]
    return merged


def _dense(matrix: NDArray[np.float32], min_size: int) -> NDArray[np.int64]:
    if len(matrix) <= min_size:
        raise InputError(
            f"there are {len(matrix)} embeddings, too few for hdbscan with min_size {min_size}; "
            "lower it, or choose agglomerative"
        )
    # Of vectors of unit length the distance orders pairs as the cosine does.
    found = _sklearn_cluster().HDBSCAN(min_cluster_size=min_size, copy=True)
    return np.asarray(found.fit_predict(matrix), np.int64)


def _numbered(
    groups: NDArray[np.int64], matrix: NDArray[np.float32], min_size: int
) -> tuple[pa.Array, pa.Array]:
    """The names of groups by size, those that come first before others, and the scores of their members."""
    labels, firsts, members, sizes = np.unique(
        groups, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.lexsort((firsts, -sizes))
    order = order[(labels[order] >= 0) & (sizes[order] >= min_size)]
    number = np.full(len(labels), -1)
    number[order] = np.arange(len(order))
    row_numbers = number[members.reshape(-1)]
    is_named = row_numbers >= 0
    centres = np.zeros((len(order), matrix.shape[1]))
    np.add.at(centres, row_numbers[is_named], matrix[is_named])
    lengths = np.linalg.norm(centres, axis=1, keepdims=True)
    centres /= np.where(lengths > 0, lengths, 1)
    scores = np.zeros(len(matrix), np.float32)
    scores[is_named] = np.einsum("ij,ij->i", matrix[is_named], centres[row_numbers[is_named]])
    names = [f"speaker-{place + 1:04}" if place >= 0 else None for place in row_numbers.tolist()]
    return pa.array(names, pa.string()), pa.array(scores, pa.float32(), mask=~is_named)


def _sklearn_cluster() -> Any:
    try:
        import sklearn.cluster
    except ImportError as error:
        raise MissingExtraError(
            "clustering needs the package scikit-learn; pip install 'w2v-ray[speakers]'"
        ) from error
    return sklearn.cluster
