"""What a GPU computes, on the CPU: matmuls in float16, tiles of any shape, answers in float32."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from synthboot.kernels import library
from synthboot.neighbors import join
from synthboot.neighbors.join import Neighbors, Tiles
from tests.neighbors.test_join import build, clustered, unit

ALL = [
    join.ON_CPU,
    join.ON_GPU,
    Tiles(columns=300, scores=2_000, float16=True, group=8),
    Tiles(columns=300, scores=2_000, float16=False, group=8),
    Tiles(columns=5, scores=200, float16=True, group=8),  # fewer columns than neighbours
]


@pytest.fixture(params=ALL, ids=str)
def tiled(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, without_kernels: Callable[[], None]
) -> Iterator[Callable[[], None]]:
    """Takes these tiles from when it is called."""

    def take() -> None:
        without_kernels()
        monkeypatch.setattr(join, "tiles", lambda device: request.param)

    return take


def truth(queries: np.ndarray, base: np.ndarray, k: int, own: np.ndarray | None) -> Neighbors:
    """By plain numpy: similarities as they are, rounded to float32 once."""
    scores = (queries.astype(np.float64) @ base.astype(np.float64).T).astype(np.float32)
    if own is not None:
        scores[np.arange(len(own)), own] = -np.inf
    index = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return index, np.take_along_axis(scores, index, 1)


def assert_same(found: Neighbors, wanted: Neighbors) -> None:
    assert np.array_equal(found[0], wanted[0])
    assert np.abs(found[1] - wanted[1]).max() < 1e-6


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_index_is_that_of_brute_force(tiled: Callable[[], None], dtype: type) -> None:
    tiled()
    vectors = unit(clustered(700).astype(np.float32)).astype(dtype)
    own = np.random.default_rng(1).permutation(700)[:300]
    assert_same(join.exact(vectors[own], vectors, 7, own), truth(vectors[own], vectors, 7, own))
    assert_same(join.exact(vectors[own], vectors, 7), truth(vectors[own], vectors, 7, None))


def test_what_fills_the_last_group_is_no_neighbour(tiled: Callable[[], None]) -> None:
    tiled()
    vectors = unit(1 + 0.3 * np.random.default_rng(0).normal(size=(600, 24)))
    queries = -vectors[:5]  # less like any of them than a row of zeros
    assert_same(join.exact(queries, vectors, 7), truth(queries, vectors, 7, None))


def near_ties(members: int, dim: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Queries, all but the same, and members whose similarities to them differ by a 128th of a float16's rounding."""
    rng = np.random.default_rng(0)
    query = unit(rng.normal(size=(1, dim)))[0].astype(np.float64)
    aside = rng.normal(size=(members, dim))
    aside -= np.outer(aside @ query, query)
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    similarity = 0.9 - rng.permutation(members) * 2.0**-18
    rows = similarity[:, None] * query + np.sqrt(1 - similarity**2)[:, None] * aside
    queries = unit(query + 1e-6 * rng.normal(size=(20, dim)))
    return queries, rows.astype(np.float32)


def test_ties_within_the_rounding_are_told_apart(tiled: Callable[[], None]) -> None:
    tiled()
    queries, members = near_ties(600)
    found = join.exact(queries, members, 16)
    rounded = queries.astype(np.float16) @ members.astype(np.float16).T
    assert len(np.unique(np.take_along_axis(rounded, found[0], 1)[0])) < 8  # float16 alone cannot
    assert_same(found, truth(queries, members, 16, None))


def test_oneself_is_hidden_also_among_the_same(tiled: Callable[[], None]) -> None:
    tiled()
    same = np.repeat(clustered(20), 10, 0)  # ten of each
    own = np.arange(200)
    index, score = join.exact(same, same, 9, own)
    assert (index != own[:, None]).all()
    assert (np.sort(index // 10) == (own // 10)[:, None]).all()
    assert all(len(set(row)) == 9 for row in index.tolist())
    assert np.abs(score - score[:, :1]).max() < 1e-6


def test_fewer_members_than_neighbours(tiled: Callable[[], None]) -> None:
    tiled()
    vectors = clustered(4)
    index, score = join.exact(vectors, vectors, 6, np.arange(4))
    assert_same((index[:, :3], score[:, :3]), truth(vectors, vectors, 3, np.arange(4)))
    assert (index[:, 3:] == -1).all()
    assert np.isneginf(score[:, 3:]).all()
    assert join.exact(vectors[:0], vectors, 2)[0].shape == (0, 2)


def test_rows_of_zeros_have_neighbours_too(tiled: Callable[[], None]) -> None:
    tiled()
    zeros = np.zeros((8, 24), np.float16)
    index, score = join.exact(zeros, np.concatenate((zeros, -clustered(5))), 3)
    assert all(len(set(row)) == 3 for row in index.tolist())
    assert (index >= 0).all()
    assert not score.any()


@pytest.mark.skipif(not library.available(), reason="the package was installed without a compiler")
@pytest.mark.parametrize("clusters", [12, 150])  # 150 are smaller than what is asked for
def test_clusters_answer_as_the_compiled_loops_do(tiled: Callable[[], None], tmp_path: Path, clusters: int) -> None:
    vectors, others = clustered(900), clustered(50, seed=3)
    built = build(vectors, clusters, 0.2, tmp_path)

    def answers() -> list[Neighbors]:
        return [built.join(0, 500, 9), built.join(500, 900, 9), built.search(others, 9, 0.2)]

    wanted = answers()
    tiled()
    for found, want in zip(answers(), wanted, strict=True):
        is_there = want[0] >= 0
        assert np.array_equal(found[0], want[0])
        assert np.array_equal(np.isfinite(found[1]), is_there)
        assert np.abs(found[1][is_there] - want[1][is_there]).max() < 1e-6


def test_a_gpu_takes_float16_and_large_tiles() -> None:
    assert join.tiles("cpu") == join.ON_CPU
    assert join.tiles("cuda") == join.tiles("cuda:1") == join.ON_GPU
    assert join.ON_GPU.float16
    assert not join.ON_CPU.float16
