from typing import Any

import numpy as np
import pytest

from synthboot import config
from synthboot.data import ngrams
from synthboot.data.pairs import HELDOUT, TRAIN, VALIDATION
from synthboot.data.tokens import Tokens
from synthboot.errors import DataError
from synthboot.stages.pair import choose_alpha, nearest_neighbors, pair, random_pairs, random_similarity


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(docs: int = 120, groups: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, docs)
    return unit(rng.normal(size=(groups, 16))[group] + 0.3 * rng.normal(size=(docs, 16))), group


def distinct_texts(docs: int, seed: int = 0) -> Tokens:
    rng = np.random.default_rng(seed)
    return Tokens.of([[*rng.integers(2, 5_000, 30).tolist(), 0] for _ in range(docs)])


def brute_force(queries: np.ndarray, base: np.ndarray, k: int, exclude_self: bool) -> np.ndarray:
    similarity = queries.astype(np.float64) @ base.astype(np.float64).T
    if exclude_self:
        np.fill_diagonal(similarity, -np.inf)
    return np.sort(similarity, axis=1)[:, ::-1][:, :k]


@pytest.mark.parametrize(("docs", "exclude"), [(700, True), (700, False), (9_000, True)])
def test_neighbours_against_brute_force_across_blocks(docs: int, exclude: bool) -> None:
    vectors, _ = clustered(docs, 50)
    queries = vectors if docs < 9_000 else vectors[:600]
    index, score = nearest_neighbors(queries, vectors, 7, exclude_self=exclude)
    assert np.allclose(score, brute_force(queries, vectors, 7, False)[:, :7], atol=1e-5) or exclude
    if exclude:
        full = queries.astype(np.float64) @ vectors.astype(np.float64).T
        full[np.arange(len(queries)), np.arange(len(queries))] = -np.inf
        assert np.allclose(score, np.sort(full, axis=1)[:, ::-1][:, :7], atol=1e-5)
        assert (index != np.arange(len(queries))[:, None]).all()
    assert np.allclose(np.einsum("qd,qkd->qk", queries, vectors[index]), score, atol=1e-5)


def test_self_is_excluded_by_id_not_by_rank() -> None:
    vectors = unit(np.array([[1.0, 0], [1, 0], [1, 0], [0, 1]]))  # three equal vectors
    index, score = nearest_neighbors(vectors, vectors, 2, exclude_self=True)
    assert all(i not in row for i, row in enumerate(index.tolist()))
    assert sorted(index[0].tolist()) == [1, 2]
    assert np.allclose(score[0], 1)


def test_fewer_documents_than_neighbours() -> None:
    index, score = nearest_neighbors(unit(np.eye(3)), unit(np.eye(3)), 5, exclude_self=True)
    assert (index[:, 2:] == -1).all()
    assert np.isneginf(score[:, 2:]).all()
    assert nearest_neighbors(unit(np.eye(1)), unit(np.eye(1)), 2, exclude_self=True)[0].tolist() == [[-1, -1]]


def made(**changes: Any) -> Any:
    vectors, group = clustered()
    cfg = config.Pair(**{"num_neighbors": 8, "min_similarity": 0.7, "heldout_share": 0.1, **changes})
    other, _ = clustered(30)
    return pair(vectors, distinct_texts(120), cfg, 0, (other, distinct_texts(30, 9))), vectors, other, group


def test_pairs_are_all_those_above_alpha_best_first_and_counted() -> None:
    pairs, vectors, _, _ = made(heldout_share=0.0)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1)
    expected = {
        (i, j) for i in range(120) for j in np.argsort(-similarity[i], kind="stable")[:8].tolist() if similarity[i, j] > 0.7
    }
    assert {(a, b) for a, b, _ in pairs.only(TRAIN)} == expected
    assert (np.diff(pairs.similarity) <= 0).all()
    report = pairs.report
    assert report["considered"] == report["pairs"]["train"] + sum(report["dropped"].values())


def test_several_d2_for_a_d1_and_both_directions() -> None:
    pairs, *_ = made(heldout_share=0.0)
    found = {(a, b) for a, b, _ in pairs.only(TRAIN)}
    assert max(np.bincount([a for a, _ in found])) > 1
    assert sum((b, a) in found for a, b in found) > len(found) / 2


def test_nothing_held_out_is_tuned_on() -> None:
    pairs, *_ = made()
    held = set(pairs.only(HELDOUT).d2.tolist())
    train = pairs.only(TRAIN)
    assert held
    assert not held & (set(train.d1.tolist()) | set(train.d2.tolist()))
    assert pairs.report["considered"] == len(train) + len(pairs.only(HELDOUT)) + sum(pairs.report["dropped"].values())


def test_validation_pairs_lead_from_d_pretrain_to_validation_documents() -> None:
    pairs, vectors, other, _ = made()
    found = pairs.only(VALIDATION)
    assert len(found)
    for d1, d2, similarity in found:
        assert similarity == pytest.approx(float(vectors[d1] @ other[d2]), abs=1e-5)


def test_near_copies_are_dropped_by_shingle_containment() -> None:
    vectors, _ = clustered()
    texts = [distinct_texts(120)[i].tolist() for i in range(120)]
    neighbor = int(nearest_neighbors(vectors, vectors, 1, exclude_self=True)[0][0, 0])
    texts[0] = [*texts[neighbor][:28], 7, 8, 0]
    n = 13
    assert ngrams.containment(ngrams.hashes(np.array(texts[0][:-1]), n), ngrams.hashes(np.array(texts[neighbor][:-1]), n)) > 0.5
    pairs = pair(vectors, Tokens.of(texts), config.Pair(num_neighbors=8, min_similarity=0.5, heldout_share=0))
    assert (0, neighbor) not in {(a, b) for a, b, _ in pairs}
    assert pairs.report["dropped"]["overlapping"] >= 1


def test_no_pair_above_alpha_says_which_alpha_would_give_some() -> None:
    with pytest.raises(DataError, match=r"no pair is left above min_similarity 0\.999.*try --set pair\.min_similarity=0\.\d\d"):
        made(min_similarity=0.999)


def test_one_document_has_no_pairs() -> None:
    with pytest.raises(DataError, match="no pair is left"):
        pair(unit(np.ones((1, 4))), distinct_texts(1), config.Pair())


def test_auto_alpha_is_the_larger_of_its_two_bounds_and_says_why() -> None:
    vectors, _ = clustered(400, 40)
    _, similarity = nearest_neighbors(vectors, vectors, 8, exclude_self=True)
    chance = random_similarity(vectors, 0)
    alpha, why = choose_alpha(config.Pair(auto_pairs_per_doc=3, auto_chance=0.5), similarity, chance)
    assert (similarity > alpha).sum() == pytest.approx(3 * 400, abs=2)
    assert "3 neighbours per document" in why
    alpha, why = choose_alpha(config.Pair(auto_pairs_per_doc=8, auto_chance=0.001), similarity, chance)
    assert (chance > alpha).mean() == pytest.approx(0.001, abs=5e-4)
    assert "0.1% of random pairs" in why


def test_random_pairs_keep_the_shape_and_lose_the_relation() -> None:
    pairs, _, _, group = made()
    control = random_pairs(pairs, 120, 0)
    assert (control.split == pairs.split).all()
    assert (control.d2 == pairs.d2).all()
    inner = control.split != VALIDATION
    assert (control.d1 != control.d2)[inner].all()
    assert not set(control.only(TRAIN).d1.tolist()) & set(pairs.only(HELDOUT).d2.tolist())
    train, related = control.only(TRAIN), pairs.only(TRAIN)
    assert np.mean(group[train.d1] == group[train.d2]) < 0.3 < np.mean(group[related.d1] == group[related.d2])
