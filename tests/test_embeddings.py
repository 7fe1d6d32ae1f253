"""Embeddings: reading them, and what is found among them, against what can be worked out by hand."""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from tests.export_outputs import failed, item, made_output
from tests.speaker_outputs import embedded, embeddings_output, table_of, utterances, voices
from w2v_ray import ConfigError, InputError, MissingExtraError, OutputError, read_embeddings
from w2v_ray.embeddings import (
    cluster_speakers,
    clustering,
    embedding_matrix,
    embedding_names,
    match_rows,
    near_duplicates,
    nearest,
    neighbors,
)
from w2v_ray.recording_names import match_names

A, B, C = voices(3)


# ---- reading


@pytest.mark.parametrize("dtype", [pa.float32(), pa.float16()], ids=str)
def test_the_mean_of_segments_is_weighted_by_their_length(tmp_path: Path, dtype: pa.DataType) -> None:
    output = embeddings_output(
        tmp_path / "out",
        {
            "/a.wav": [embedded(0, 3, A), embedded(3, 4, B), embedded(4, 4.2, None)],
            "/b.wav": [embedded(0, 5, C)],
            "/silent.wav": [embedded(0, 9, None)],
            "/broken.wav": [failed(None, None)],
            "/far.wav": [embedded(0, 2, B)],
        },
        dtype=dtype,
    )
    found = read_embeddings(output)
    assert found.column_names == ["recording_id", "channel", "duration_s", "embedding"]
    assert found.column("recording_id").to_pylist() == ["/a.wav", "/b.wav", "/far.wav"]
    assert found.column("duration_s").to_pylist() == [4, 5, 2]
    assert found.schema.field("embedding").type == pa.list_(pa.float32(), 16)
    expected = np.stack([(3 * A + B) / np.sqrt(10), C, B])
    assert embedding_matrix(found) == pytest.approx(expected, abs=2e-4)

    segments = read_embeddings(output, per="segment")
    assert segments.column("start_s").to_pylist() == [0, 3, 0, 0]
    assert segments.column("segment_id").to_pylist()[:2] == ["/a.wav@0", "/a.wav@3"]
    assert embedding_matrix(segments) == pytest.approx(np.stack([A, B, C, B]), abs=2e-4)
    with pytest.raises(ConfigError, match="per is 'speaker'"):
        read_embeddings(output, per="speaker")


def test_a_recording_in_several_shards_is_one_and_its_channels_are_not(tmp_path: Path) -> None:
    parts = [
        [item("/long.wav", [embedded(0, 10, A)])],
        [item("/call.wav", [embedded(0, 5, B, channel=0), embedded(0, 5, C, channel=1)])],
        [item("/long.wav", [embedded(10, 40, B)])],
    ]
    output = made_output(
        tmp_path / "out", parts, table="embeddings", types={"embedding": pa.list_(pa.float32(), 16)}
    )
    found = read_embeddings(output)
    assert embedding_names(found) == ["/long.wav", "/call.wav#c0", "/call.wav#c1"]
    assert embedding_matrix(found) == pytest.approx(np.stack([(A + 3 * B) / np.sqrt(10), B, C]), abs=1e-6)
    assert match_rows(["long", "/call.wav#c1", "call#c0"], found) == [0, 2, 1]
    with pytest.raises(InputError, match=r"'call', which may be '/call.wav#c0' or '/call.wav#c1'"):
        match_rows(["call"], found)


def test_an_output_without_embeddings_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="has no table 'embeddings'"):
        read_embeddings(made_output(tmp_path / "text", [[item("/a.wav", [])]], unpublished=[0]))
    silent = embeddings_output(tmp_path / "silent", {"/a.wav": [embedded(0, 1, None)]})
    with pytest.raises(OutputError, match="holds no embeddings yet"):
        read_embeddings(silent)


def test_a_table_of_something_else_is_refused() -> None:
    with pytest.raises(InputError, match="no column 'embedding', only text"):
        embedding_matrix(pa.table({"text": ["a"]}))
    with pytest.raises(InputError, match="list<item: double> with 0 nulls"):
        embedding_matrix(pa.table({"embedding": [[1.0, 2.0]]}))
    with pytest.raises(InputError, match="row 1 of the table is not finite"):
        embedding_matrix(table_of(np.array([[1.0, 0.0], [np.nan, 1.0]])))
    assert embedding_matrix(table_of(np.array([[3.0, 4.0], [0.0, 0.0]]))).tolist() == [
        [np.float32(0.6), np.float32(0.8)],
        [0, 0],
    ]


def test_names_are_ids_or_ends_of_them() -> None:
    ids = ["s3://b/id1/x/00001.wav", "s3://b/id1/y/00001.wav", "/c/x.tar#m/7.5 kHz.flac", "00001", "d/v1.2"]
    names = [(name, number) for number, name in enumerate(ids)]

    def found(*wanted: str) -> dict[str, int]:
        return match_names(wanted, names, source="'t.txt'")

    assert found("id1/x/00001.wav", "id1/y/00001", ids[0], "00001") == {
        "id1/x/00001.wav": 0,
        "id1/y/00001": 1,
        ids[0]: 0,
        "00001": 3,  # all of an id, though also an end of others
    }
    assert found("7.5 kHz", "7.5 kHz.flac", "m/7.5 kHz", "x.tar#m/7.5 kHz.flac").keys() == {
        "7.5 kHz",
        "7.5 kHz.flac",
        "m/7.5 kHz",
        "x.tar#m/7.5 kHz.flac",
    }
    assert found("gone", "1.wav", "v1") == {}
    assert found("v1.2") == {"v1.2": 4}
    with pytest.raises(
        InputError, match=r"'t.txt' names '00001.wav', which may be 's3://b/id1/x/00001.wav' or"
    ):
        found("00001.wav")


# ---- clusters


def test_speakers_are_found_and_numbered_by_size() -> None:
    speakers = [2] * 4 + [0] * 9 + [1] * 6 + [3]
    order = np.random.default_rng(0).permutation(len(speakers))
    speakers = [speakers[place] for place in order]
    table = table_of(utterances(speakers))
    names = {0: "speaker-0001", 1: "speaker-0002", 2: "speaker-0003", 3: "speaker-0004"}
    for settings in ({}, {"threshold": 0.8}, {"num_speakers": 4}):
        found = cluster_speakers(table, **settings)
        assert found.column("speaker").to_pylist() == [names[speaker] for speaker in speakers]
        assert found.column_names == ["recording_id", "channel", "duration_s", "speaker", "score"]
        assert np.min(found.column("score").to_numpy()) > 0.95
    found = cluster_speakers(table, min_size=5)
    assert found.column("speaker").null_count == found.column("score").null_count == 5
    assert set(found.column("speaker").drop_null().to_pylist()) == {"speaker-0001", "speaker-0002"}
    dense = cluster_speakers(table, method="hdbscan", min_size=3)
    assert dense.column("speaker").to_pylist() == [
        None if speaker == 3 else names[speaker] for speaker in speakers
    ]


def test_the_score_is_the_cosine_to_the_mean_of_the_speaker() -> None:
    table = table_of(utterances([0, 0, 0, 1, 1], noise=0.2))
    matrix = embedding_matrix(table)
    found = cluster_speakers(table, num_speakers=2)
    for rows in ([0, 1, 2], [3, 4]):
        mean = matrix[rows].mean(axis=0)
        expected = matrix[rows] @ mean / np.linalg.norm(mean)
        assert found.column("score").to_numpy()[rows] == pytest.approx(expected, abs=1e-5)


def test_the_threshold_is_the_least_mean_cosine_that_merges() -> None:
    # Two pairs with cosines of 0.6 and 0.8, at right angles to each other.
    vectors = np.array([[1, 0, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0.8, 0.6]])

    def count(threshold: float) -> int:
        speakers = cluster_speakers(table_of(vectors), threshold=threshold).column("speaker")
        return len(set(speakers.to_pylist()))

    assert [count(at) for at in (0.9, 0.81, 0.79, 0.61, 0.59, 0.1, -0.01)] == [4, 4, 3, 3, 2, 2, 1]
    assert count(-1) == 1
    same = table_of(np.ones((3, 4)))
    assert set(cluster_speakers(same, threshold=0.999).column("speaker").to_pylist()) == {"speaker-0001"}


def test_noisy_speakers_are_told_apart_as_well_as_they_can_be() -> None:
    generator = np.random.default_rng(1)
    speakers = generator.integers(0, 30, 600).tolist()
    table = table_of(utterances(speakers, noise=0.08, size=64))
    found = cluster_speakers(table).column("speaker").to_pylist()
    assert adjusted_rand_score(speakers, found) > 0.99


@pytest.mark.parametrize("threshold", [-1.0, -0.2, 0.1, 0.3, 0.6, 0.9])
def test_groups_are_merged_as_scikit_learn_merges(threshold: float) -> None:
    for seed in range(10):
        vectors = np.random.default_rng(seed).normal(size=(80, 6))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        ours = clustering.merge_groups(vectors, np.ones(80, np.int64), threshold)
        theirs = AgglomerativeClustering(
            n_clusters=None, distance_threshold=1 - threshold + 1e-9, metric="cosine", linkage="average"
        ).fit_predict(vectors)
        assert adjusted_rand_score(ours, theirs) == 1
        # And as it goes on from groups of two that it has merged before.
        half = clustering.merge_groups(vectors, np.ones(80, np.int64), max(threshold, 0.95))
        names, groups, sizes = np.unique(half, return_inverse=True, return_counts=True)
        sums = np.zeros((len(names), 6))
        np.add.at(sums, groups, vectors)
        assert adjusted_rand_score(clustering.merge_groups(sums, sizes, threshold)[groups], theirs) == 1


def test_two_stages_find_the_speakers_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "_PART", 70)
    speakers = np.random.default_rng(1).integers(0, 30, 600).tolist()
    table = table_of(utterances(speakers, noise=0.05, size=64))
    one, two = (
        cluster_speakers(table, method=method).column("speaker").to_pylist()
        for method in ("agglomerative", "two-stage")
    )
    assert one == two
    assert adjusted_rand_score(speakers, two) == 1


def test_one_row_is_one_speaker() -> None:
    assert cluster_speakers(table_of(voices(1))).column("speaker").to_pylist() == ["speaker-0001"]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"method": "kmeans"}, "method is 'kmeans'"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": 0.5, "num_speakers": 2}, "set one of them"),
        ({"num_speakers": 0}, "num_speakers is 0"),
        ({"min_size": 0}, "min_size is 0, expected at least 1"),
        ({"method": "hdbscan", "min_size": 1}, "min_size is 1, expected at least 2"),
        ({"method": "hdbscan", "threshold": 0.5}, "hdbscan takes neither"),
        ({"method": "two-stage", "num_speakers": 2}, "two-stage takes none"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        cluster_speakers(table_of(voices(3)), **settings)  # type: ignore[arg-type]


def test_too_many_and_too_few_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="3 embeddings for num_speakers 4"):
        cluster_speakers(table_of(voices(3)), num_speakers=4)
    with pytest.raises(InputError, match="3 embeddings, too few for hdbscan with min_size 5"):
        cluster_speakers(table_of(voices(3)), method="hdbscan")
    many = table_of(np.tile(np.eye(2, dtype=np.float32), (11_200, 1)))
    with pytest.raises(InputError, match=r"22,400 embeddings, .* in 4 GB, more than 4; choose two-stage"):
        cluster_speakers(many)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(MissingExtraError, match=r"w2v-ray\[speakers\]"):
        cluster_speakers(table_of(voices(3)))


# ---- neighbours


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "_QUERIES", 7)
    monkeypatch.setattr(neighbors, "_ROWS", 11)


@pytest.mark.parametrize("top", [1, 4, 99, 200])
@pytest.mark.usefixtures("small_blocks")
def test_the_nearest_are_those_of_a_full_matrix(top: int) -> None:
    table = table_of(np.random.default_rng(0).normal(size=(100, 8)))
    matrix = embedding_matrix(table)
    found = nearest(table, table, top=top).to_pydict()
    cosines = matrix @ matrix.T
    np.fill_diagonal(cosines, -2)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, : min(top, 99)]
    names = np.array(embedding_names(table))
    assert found["query"] == np.repeat(names, order.shape[1]).tolist()
    assert found["recording_id"] == names[order].reshape(-1).tolist()
    assert found["rank"] == list(range(1, order.shape[1] + 1)) * 100
    assert found["score"] == pytest.approx(np.take_along_axis(cosines, order, axis=1).reshape(-1), abs=1e-6)


@pytest.mark.usefixtures("small_blocks")
def test_queries_may_be_vectors_or_of_another_table() -> None:
    table = table_of(utterances([0, 0, 1, 2], noise=0.01), ["a", "b", "c", "d"])
    found = nearest(table, 5 * voices(3)[1:], top=2).to_pydict()
    assert found["query"] == [0, 0, 1, 1]
    assert found["recording_id"][::2] == ["c", "d"]
    other = table_of(voices(1), ["elsewhere"])
    assert set(nearest(table, other, top=2).column("recording_id").to_pylist()) == {"a", "b"}
    own = nearest(table, table.slice(0, 1), top=3)
    assert own.column("recording_id").to_pylist()[0] == "b"
    assert "a" not in own.column("recording_id").to_pylist()
    with pytest.raises(InputError, match="queries have 4 numbers each and the embeddings 16"):
        nearest(table, np.ones((1, 4)))
    with pytest.raises(InputError, match=r"queries have shape \(16,\)"):
        nearest(table, np.ones(16))
    with pytest.raises(ConfigError, match="top is 0"):
        nearest(table, table, top=0)
    with pytest.raises(ConfigError, match="index is 'annoy'"):
        nearest(table, table, index="annoy")


def test_faiss_finds_nearly_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    speakers = generator.integers(0, 200, 3000).tolist()
    table = table_of(utterances(speakers, noise=0.1, size=32))
    queries = table.slice(0, 200)
    exact, found = (nearest(table, queries, index=index) for index in ("exact", "faiss"))
    pairs = [
        set(zip(*t.select(["query", "recording_id"]).to_pydict().values(), strict=True))
        for t in (exact, found)
    ]
    assert len(pairs[0]) == 2000
    assert len(pairs[0] & pairs[1]) >= 1900
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"w2v-ray\[search\]"):
        nearest(table, queries, index="faiss")


@pytest.mark.usefixtures("small_blocks")
def test_near_duplicates_are_all_pairs_above_the_threshold() -> None:
    speakers = np.random.default_rng(0).integers(0, 12, 60).tolist()
    table = table_of(utterances(speakers, noise=0.15))
    matrix = embedding_matrix(table)
    blocks = list(near_duplicates(table, 0.7))
    found = [(row["row"], row["other_row"]) for block in blocks for row in block.to_pylist()]
    assert found == [(i, j) for i, j in combinations(range(60), 2) if matrix[i] @ matrix[j] >= 0.7]
    assert len(blocks) > 3
    names = embedding_names(table)
    for block in blocks:
        for row in block.to_pylist():
            assert (row["name"], row["other_name"]) == (names[row["row"]], names[row["other_row"]])
            assert row["score"] == pytest.approx(matrix[row["row"]] @ matrix[row["other_row"]], abs=1e-6)
    # A copy is a duplicate whatever rounding says.
    copies = table_of(np.repeat(np.random.default_rng(1).normal(size=(20, 33)), 2, axis=0))
    (block, *rest) = near_duplicates(copies, 1.0)
    assert sum(b.num_rows for b in [block, *rest]) == 20
    assert max(block.column("score").to_pylist()) <= 1
    with pytest.raises(ConfigError, match="threshold is 0"):
        next(near_duplicates(table, 0))
