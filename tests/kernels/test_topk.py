"""The loops of the join find what the Python path finds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from synthboot.kernels import library, topk
from synthboot.neighbors import join

compiled = pytest.mark.skipif(not library.available(), reason="the package was installed without a compiler")


def rows(count: int, dim: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(count, dim)) + 1.0  # not centred, so that many scores are near each other
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)


@compiled
@pytest.mark.parametrize(("docs", "dim", "k"), [(3_000, 256, 16), (1_001, 40, 3), (300, 7, 50), (20, 16, 30), (9_000, 24, 1)])
def test_neighbours_are_those_of_the_python_path(without_kernels: Callable[[], None], docs: int, dim: int, k: int) -> None:
    vectors, own = rows(docs, dim, 0), np.arange(docs)
    index, score = join.exact(vectors, vectors, k, own)
    without_kernels()
    slow_index, slow_score = join.exact(vectors, vectors, k, own)
    is_found = np.isfinite(slow_score)
    assert np.array_equal(np.isfinite(score), is_found)
    assert np.allclose(score[is_found], slow_score[is_found], atol=2e-6)
    assert (index[~is_found] == -1).all()
    clear, step = np.ones_like(is_found), -np.diff(np.where(is_found, slow_score, -9), axis=1) > 4e-6
    clear[:, 1:] &= step  # equal to rounding: either order will do
    clear[:, :-1] &= step
    clear[:, -1] = False
    assert np.array_equal(index[clear & is_found], slow_index[clear & is_found])
    assert not is_found.all() or clear.mean() > 0.3 or k == 1


@compiled
def test_the_precision_of_matmuls_does_not_show_in_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = rows(5_000, 64, 1)
    centroids = join.fit_centroids(vectors, 40, 0)
    clusters = join.Clusters.build(vectors, centroids, 0.05, tmp_path)
    results = []
    for half in (False, True):
        monkeypatch.setattr(join, "bfloat16_is_faster", lambda half=half: half)
        results.append((*join.exact(vectors[:700], vectors, 9, np.arange(700)), *clusters.join(0, 5_000, 9)))
    for one, other in zip(*results, strict=True):
        assert one.tobytes() == other.tobytes()


@compiled
@pytest.mark.parametrize("probe_radius", [-1.0, 0.0, 0.03, 2.0])
def test_clusters_within_the_radius_are_those_of_the_python_path(
    without_kernels: Callable[[], None], probe_radius: float
) -> None:
    vectors, centroids = rows(3_000, 48, 3), rows(70, 48, 4).astype(np.float32)
    clusters, counts = join.within_radius(vectors, centroids, probe_radius)
    without_kernels()
    slow_clusters, slow_counts = join.within_radius(vectors, centroids, probe_radius)
    assert (counts != slow_counts).mean() < 0.001  # at the very edge of the radius rounding decides
    if np.array_equal(counts, slow_counts):
        assert (clusters != slow_clusters).mean() < 0.001


@compiled
@pytest.mark.parametrize("count", [0, 1, 63, 64, 200])
def test_singlened_rows_are_torchs(count: int) -> None:
    vectors = np.concatenate((rows(count, 37, 5), np.zeros((0, 37), np.float16)))
    vectors[: count // 2] *= np.float16(1e-6)  # among them halves too small to be normal
    single, bfloat, longest = topk.upcast(vectors, 256)
    assert torch.equal(single, torch.from_numpy(vectors).float())
    assert bfloat is not None
    assert torch.equal(bfloat[:count], single.bfloat16())
    assert not bfloat[count:].any()
    assert longest == pytest.approx(float(single.norm(dim=1).max()) if count else 0.0, rel=1e-5)


@compiled
def test_arrays_of_other_shapes_are_refused() -> None:
    queries, members = torch.randn(5, 8), torch.randn(7, 8)
    index, score = torch.full((5, 2), -1), torch.full((5, 2), float("-inf"))
    scores, every, own = queries @ members.T, torch.arange(5), torch.full((5,), -1)
    scored = topk.Scored(scores, queries, members, 1e-4)
    topk.update_topk(scored, every, own, 0, index, score)
    assert torch.equal(index, scores.topk(2).indices)
    with pytest.raises(IndexError, match="no query"):
        topk.update_topk(scored, every + 1, own, 0, index, score)
    with pytest.raises(ValueError, match="fewer rows or columns"):
        topk.update_topk(replace(scored, scores=scores[:4].contiguous()), every, own, 0, index, score)
    with pytest.raises(ValueError, match=r"index is \(4, 2\)"):
        topk.update_topk(scored, every, own, 0, index[:4], score)


@compiled
@pytest.mark.parametrize("dim", [16, 1])
def test_every_half_is_the_number_that_it_is(dim: int) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, dim)
    single, _, _ = topk.upcast(halves, None)
    np.testing.assert_array_equal(single.numpy(), halves.astype(np.float32))
