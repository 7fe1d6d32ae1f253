"""What can be done with the embeddings of an output: reading, comparing, clustering and finding the nearest.

Neither torch nor Ray is loaded. Tables here have the columns that `read_embeddings` describes.
"""

from w2v_ray.embeddings.clustering import check_clustering, cluster_speakers
from w2v_ray.embeddings.neighbors import near_duplicates, nearest
from w2v_ray.embeddings.reading import embedding_matrix, embedding_names, match_rows, read_embeddings
from w2v_ray.embeddings.trials import Trials, Verification, read_trials, score_lines, verify

__all__ = [
    "Trials",
    "Verification",
    "check_clustering",
    "cluster_speakers",
    "embedding_matrix",
    "embedding_names",
    "match_rows",
    "near_duplicates",
    "nearest",
    "read_embeddings",
    "read_trials",
    "score_lines",
    "verify",
]
