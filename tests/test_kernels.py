"""The compiled loops against the Python paths they stand in for, and what happens without them."""

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from synthboot import kernels
from synthboot.data import neighbors

compiled = pytest.mark.skipif(not kernels.available(), reason="the package was installed without a compiler")


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Takes the compiled loops away until the test ends."""

    def take() -> None:
        monkeypatch.setenv("SYNTHBOOT_KERNELS", "0")
        kernels._module.cache_clear()

    yield take
    monkeypatch.undo()
    kernels._module.cache_clear()


def rows(count: int, dim: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(count, dim)) + 1.0  # not centred, so that many scores are near each other
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)


@compiled
@pytest.mark.parametrize(("docs", "dim", "k"), [(3_000, 256, 16), (1_001, 40, 3), (300, 7, 50), (20, 16, 30), (9_000, 24, 1)])
def test_neighbours_are_those_of_the_python_path(without: Callable[[], None], docs: int, dim: int, k: int) -> None:
    vectors, own = rows(docs, dim, 0), np.arange(docs)
    index, score = neighbors.exact(vectors, vectors, k, own)
    without()
    slow_index, slow_score = neighbors.exact(vectors, vectors, k, own)
    there = np.isfinite(slow_score)
    assert np.array_equal(np.isfinite(score), there)
    assert np.allclose(score[there], slow_score[there], atol=2e-6)
    assert (index[~there] == -1).all()
    clear, step = np.ones_like(there), -np.diff(np.where(there, slow_score, -9), axis=1) > 4e-6
    clear[:, 1:] &= step  # equal to rounding: either order will do
    clear[:, :-1] &= step
    clear[:, -1] = False
    assert np.array_equal(index[clear & there], slow_index[clear & there])
    assert not there.all() or clear.mean() > 0.3 or k == 1


@compiled
def test_how_the_products_are_taken_does_not_show_in_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = rows(5_000, 64, 1)
    centroids = neighbors.fit_centroids(vectors, 40, 0)
    cells = neighbors.Cells.build(vectors, centroids, 0.05)
    found = []
    for half in (False, True):
        monkeypatch.setattr(neighbors, "_faster_in_half", lambda half=half: half)
        found.append((*neighbors.exact(vectors[:700], vectors, 9, np.arange(700)), *cells.join(0, 5_000, 9)))
    for one, other in zip(*found, strict=True):
        assert one.tobytes() == other.tobytes()


@compiled
@pytest.mark.parametrize("reach", [-1.0, 0.0, 0.03, 2.0])
def test_cells_within_reach_are_those_of_the_python_path(without: Callable[[], None], reach: float) -> None:
    vectors, centroids = rows(3_000, 48, 3), rows(70, 48, 4).astype(np.float32)
    cells, counts = neighbors.within_reach(vectors, centroids, reach)
    without()
    slow_cells, slow_counts = neighbors.within_reach(vectors, centroids, reach)
    assert (counts != slow_counts).mean() < 0.001  # at the very edge of the reach rounding decides
    if np.array_equal(counts, slow_counts):
        assert (cells != slow_cells).mean() < 0.001


@compiled
def test_buffers_of_the_wrong_size_are_refused() -> None:
    queries, members = torch.randn(5, 8), torch.randn(7, 8)
    index, score = torch.full((5, 2), -1), torch.full((5, 2), float("-inf"))
    scores, every, own = queries @ members.T, torch.arange(5), torch.full((5,), -1)
    scored = kernels.Scored(scores, queries, members, 1e-4)
    kernels.offer(scored, every, own, 0, index, score)
    assert torch.equal(index, scores.topk(2).indices)
    with pytest.raises(IndexError, match="not there"):
        kernels.offer(scored, every + 1, own, 0, index, score)
    with pytest.raises(ValueError, match="fewer rows or columns"):
        kernels.offer(replace(scored, scores=scores[:4].contiguous()), every, own, 0, index, score)
    with pytest.raises(ValueError, match="index has 64 bytes, expected 80"):
        kernels.offer(scored, every, own, 0, index[:4], score)


def test_without_them_it_is_said_once_and_goes_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "synthboot._kernels", None)
    monkeypatch.delattr("synthboot._kernels", raising=False)
    kernels._module.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert not kernels.available()
            assert not kernels.available()
        assert [r.message for r in caplog.records if "compiled loops" in r.message] == [caplog.records[0].message]
        vectors = rows(50, 8, 2)
        assert neighbors.exact(vectors, vectors, 3, np.arange(50))[0].shape == (50, 3)
    finally:
        kernels._module.cache_clear()
