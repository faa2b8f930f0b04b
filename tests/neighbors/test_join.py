from pathlib import Path

import numpy as np
import pytest

from synthboot.neighbors import join
from synthboot.neighbors.join import Clusters, exact


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(docs: int, groups: int = 50, dim: int = 24, seed: int = 0) -> np.ndarray:
    """(doc, dim) unit vectors about so many centers."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(groups, dim))
    own_center = centers[rng.integers(0, groups, docs)]
    return unit(own_center + 0.5 * rng.normal(size=(docs, dim))).astype(np.float16)


def brute_force(queries: np.ndarray, base: np.ndarray, k: int, own: np.ndarray | None) -> np.ndarray:
    """(query, k): the k greatest similarities, that to the query's `own` row left out."""
    similarity = queries.astype(np.float64) @ base.astype(np.float64).T
    if own is not None:
        similarity[np.arange(len(queries)), own] = -np.inf
    ascending = np.sort(similarity, axis=1)
    return ascending[:, ::-1][:, :k]


def similarity_to(queries: np.ndarray, base: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(query, k): how similar each query is to the rows of `base` in its row of `index`."""
    found = base[index].astype(np.float64)  # (query, k, dim)
    return np.einsum("qd,qkd->qk", queries.astype(np.float64), found)


@pytest.mark.parametrize(
    ("docs", "queries", "own"), [(700, 700, True), (700, 300, False), (20_005, 1_100, True), (8_193, 40, True)]
)
def test_exact_against_brute_force_across_blocks(docs: int, queries: int, own: bool) -> None:
    vectors = clustered(docs)
    rows = np.random.default_rng(1).permutation(docs)[:queries]
    excluded = rows if own else None
    index, score = exact(vectors[rows], vectors, 7, excluded)
    assert np.allclose(score, brute_force(vectors[rows], vectors, 7, excluded), atol=1e-5)
    assert np.allclose(score, similarity_to(vectors[rows], vectors, index), atol=1e-5)
    assert all(len(set(row)) == 7 for row in index.tolist())
    if own:
        assert (index != rows[:, None]).all()


def test_oneself_is_excluded_by_number_not_by_rank() -> None:
    vectors = unit(np.array([[1.0, 0], [1, 0], [1, 0], [0, 1]]))  # three equal vectors
    index, score = exact(vectors, vectors, 2, np.arange(4))
    assert index[:3].tolist() == [[1, 2], [0, 2], [0, 1]]
    assert np.allclose(score[:3], 1)


def test_fewer_documents_than_neighbours() -> None:
    three = unit(np.eye(3))
    index, score = exact(three, three, 5, np.arange(3))
    assert (index[:, 2:] == -1).all()
    assert np.isneginf(score[:, 2:]).all()

    one = unit(np.eye(1))
    index, _ = exact(one, one, 2, np.arange(1))
    assert index.tolist() == [[-1, -1]]


def test_thousands_of_identical_vectors(tmp_path: Path) -> None:
    same = np.repeat(unit(np.ones((1, 8))), 3_000, 0).astype(np.float16)
    index, score = exact(same, same, 5, np.arange(3_000))
    assert (index >= 0).all()
    assert (index != np.arange(3_000)[:, None]).all()
    assert np.allclose(score, 1, atol=1e-3)

    index, _ = build(same, 8, 0.1, tmp_path).join(0, 3_000, 5)
    assert (index >= 0).all()


def recall(index: np.ndarray, truth: np.ndarray) -> float:
    """The share of each query's true neighbours that were found, the mean over queries."""
    shares = [np.isin(true, found).mean() for found, true in zip(index, truth, strict=True)]
    return float(np.mean(shares))


def build(vectors: np.ndarray, clusters: int, probe_radius: float, folder: Path) -> Clusters:
    centroids = join.fit_centroids(vectors, clusters, 0)
    return Clusters.build(vectors, centroids, probe_radius, folder)


def joined(clusters: Clusters, k: int, query_block: int) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours and scores of all documents, in the order of their numbers, (doc, k)."""
    docs = len(clusters.order)
    index = np.empty((docs, k), np.int64)
    score = np.empty((docs, k), np.float32)
    for start in range(0, docs, query_block):
        stop = min(start + query_block, docs)
        rows = clusters.order[start:stop]
        index[rows], score[rows] = clusters.join(start, stop, k)
    return index, score


@pytest.mark.parametrize("query_block", [300, 1_024, 5_000])
def test_looking_into_every_cluster_is_exact_whatever_the_block(tmp_path: Path, query_block: int) -> None:
    vectors = clustered(3_000)
    index, score = joined(build(vectors, 40, 2.0, tmp_path), 6, query_block)
    assert np.allclose(score, brute_force(vectors, vectors, 6, np.arange(3_000)), atol=1e-5)
    assert (index != np.arange(3_000)[:, None]).all()
    assert all(len(set(row)) == 6 for row in index.tolist())


def test_recall_is_foretold_without_a_join(tmp_path: Path) -> None:
    vectors = clustered(4_000, 400)
    truth, _ = exact(vectors, vectors, 8, np.arange(4_000))
    queries = np.arange(0, 4_000, 7)
    centroids = join.fit_centroids(vectors, 64, 0)
    needed = join.radius_needed(vectors, centroids, queries, truth[queries])
    for probe_radius in (0.0, 0.05, 0.2):
        foretold = (needed <= probe_radius).mean()
        index, _ = joined(Clusters.build(vectors, centroids, probe_radius, tmp_path), 8, 2_048)
        measured = recall(index[queries], truth[queries])
        assert measured == pytest.approx(foretold, abs=2e-3)
        assert probe_radius == 0.2 or measured < 0.99  # otherwise the test could not fail


def test_what_is_within_reach() -> None:
    vectors = clustered(500)
    centroids = join.fit_centroids(vectors, 20, 0)
    clusters, counts = join.within_radius(vectors, centroids, 0.3)
    similarity = vectors.astype(np.float32) @ centroids.T  # (doc, cluster)
    of_document = np.split(clusters, np.cumsum(counts)[:-1])
    for row, probes in zip(similarity, of_document, strict=True):
        within = np.flatnonzero(row >= row.max() - 0.3)
        assert set(probes.tolist()) == set(within.tolist())
        assert probes[0] == row.argmax()
        assert (np.diff(probes[1:]) > 0).all()

    _, counts = join.within_radius(vectors, centroids, 0.0)
    assert (counts == 1).all()


def test_rows_that_are_not_in_the_cells_find_theirs(tmp_path: Path) -> None:
    vectors = clustered(2_000)
    others = clustered(200, seed=3)
    index, score = build(vectors, 30, 0.0, tmp_path).search(others, 5, 2.0)
    assert np.allclose(score, brute_force(others, vectors, 5, None), atol=1e-5)
    assert np.allclose(score, similarity_to(others, vectors, index), atol=1e-5)


def test_near_cells_stand_near_each_other() -> None:
    """Clusters in a row are more alike than clusters at random, which is what keeps a block to few of them."""
    centroids = join.fit_centroids(clustered(5_000, 300), 200, 0)
    similarity = centroids @ centroids.T  # (cluster, cluster)
    of_next = np.diagonal(similarity, offset=1)
    of_any_other = similarity[~np.eye(len(similarity), dtype=bool)]
    assert of_next.mean() > of_any_other.mean() + 0.2


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_that_lie_on_disk_are_sorted_block_by_block(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is what sorting all of them at once gives, and nothing but it is in memory."""
    vectors = clustered(1_000)
    centroids = join.fit_centroids(vectors, 20, 0)
    np.save(tmp_path / "rows.npy", vectors)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    monkeypatch.setattr(join, "QUERY_BLOCK", 64)
    clusters = Clusters.build(mapped, centroids, 0.1, tmp_path, workers=workers)
    assert all(isinstance(array, np.memmap) for array in vars(clusters).values())

    near, counts = join.within_radius(vectors, centroids, 0.1)
    probes = np.split(near, np.cumsum(counts)[:-1])
    home = np.array([probe[0] for probe in probes])
    order = np.argsort(home, kind="stable")
    assert np.array_equal(clusters.order, order)
    assert np.array_equal(clusters.vectors, vectors[order])
    assert np.array_equal(clusters.near, np.concatenate([probes[i] for i in order]))
    assert np.array_equal(np.diff(clusters.edges), counts[order])
    assert np.array_equal(np.diff(clusters.bounds), np.bincount(home, minlength=20))
