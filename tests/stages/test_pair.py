from typing import Any

import numpy as np
import pytest

from synthboot import config
from synthboot.artifacts.pairs import HELDOUT, TRAIN, VALIDATION
from synthboot.data import ngrams
from synthboot.data.tokens import Tokens
from synthboot.errors import DataError
from synthboot.neighbors.join import exact
from synthboot.neighbors.search import Neighbors
from synthboot.stages.pair import Fields, alphas, chance_share, choose_alpha, pair, random_pairs, random_similarity


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(docs: int = 120, groups: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, docs)
    return unit(rng.normal(size=(groups, 16))[group] + 0.3 * rng.normal(size=(docs, 16))), group


def distinct_texts(docs: int, seed: int = 0) -> Tokens:
    rng = np.random.default_rng(seed)
    return Tokens.of([[*rng.integers(2, 5_000, 30).tolist(), 0] for _ in range(docs)])


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
    chosen = pairs.chosen
    assert chosen.considered == chosen.pairs.train + sum(chosen.dropped.values())


def test_nothing_held_out_is_tuned_on() -> None:
    pairs, *_ = made()
    held = set(pairs.only(HELDOUT).d2.tolist())
    train = pairs.only(TRAIN)
    assert held
    assert not held & (set(train.d1.tolist()) | set(train.d2.tolist()))
    assert pairs.chosen.considered == len(train) + len(pairs.only(HELDOUT)) + sum(pairs.chosen.dropped.values())


def test_canaries_have_no_part_in_what_is_calibrated_or_held_out() -> None:
    vectors, _ = clustered()
    cfg = config.Pair(num_neighbors=8, heldout_share=0.3)
    alone = pair(vectors, distinct_texts(120), cfg)

    # copies of four texts, each near to all of its own, and far from all documents
    copies = np.repeat(np.eye(20)[16:], 10, axis=0)
    planted = unit(np.concatenate((np.pad(vectors, ((0, 0), (0, 4))), copies)))
    canary = np.arange(160) >= 120
    texts = distinct_texts(120).joined(Tokens.of([[number // 10 + 2] * 30 for number in range(40)]))
    beside = pair(planted, texts, cfg, fields=Fields(canary=canary))
    assert beside.chosen.alpha == pytest.approx(alone.chosen.alpha)
    assert beside.chosen.chance_share == pytest.approx(alone.chosen.chance_share)
    assert set(beside.only(HELDOUT).d2.tolist()) == set(alone.only(HELDOUT).d2.tolist())
    with pytest.raises(DataError, match="no pair is left above"):  # as documents, they would have
        pair(planted, texts, cfg)

    told = alphas(planted, texts, cfg, 0, fields=Fields(canary=canary))
    assert told.docs == 120
    assert told.alpha == pytest.approx(beside.chosen.alpha)


def test_a_document_that_a_canary_resembles_has_no_neighbour_there_that_counts() -> None:
    fields = Fields(canary=np.array([False, True, False]))
    score = np.array([[0.9, 0.5], [0.4, 0.3]], np.float32)
    left = fields.without(np.array([[1, 2], [0, -1]]), score)
    assert left.tolist() == np.array([[-np.inf, 0.5], [0.4, 0.3]], np.float32).tolist()
    assert fields.docs(3).tolist() == [0, 2]
    assert Fields().without(np.array([[1, 2], [0, -1]]), score) is score


def test_validation_pairs_lead_from_d_pretrain_to_validation_documents() -> None:
    pairs, vectors, other, _ = made()
    found = pairs.only(VALIDATION)
    assert len(found)
    for d1, d2, similarity in found:
        assert similarity == pytest.approx(float(vectors[d1] @ other[d2]), abs=1e-5)


def test_validation_pairs_are_related_as_those_that_are_tuned_on() -> None:
    whole, vectors, other, _ = made()
    limit = float(np.median(whole.only(VALIDATION).similarity))
    pairs, *_ = made(max_similarity=limit)
    assert 0 < len(pairs.only(VALIDATION)) < len(whole.only(VALIDATION))
    assert pairs.only(VALIDATION).similarity.max() <= limit

    cfg = config.Pair(num_neighbors=8, min_similarity=0.0, heldout_share=0)
    source = np.arange(120) % 3
    fields = Fields(source=source, validation_source=np.full(len(other), 1))
    found = pair(vectors, distinct_texts(120), cfg, validation=(other, distinct_texts(len(other), seed=5)), fields=fields)
    assert len(found.only(VALIDATION))
    assert set(source[found.only(VALIDATION).d1]) == {0, 2}


def test_near_copies_are_dropped_by_shingle_containment() -> None:
    vectors, _ = clustered()
    texts = [distinct_texts(120)[i].tolist() for i in range(120)]
    neighbor = int(exact(vectors, vectors, 1, np.arange(120))[0][0, 0])
    texts[0] = [*texts[neighbor][:28], 7, 8, 0]
    n = 13
    assert ngrams.containment(ngrams.hashes(np.array(texts[0][:-1]), n), ngrams.hashes(np.array(texts[neighbor][:-1]), n)) > 0.5
    pairs = pair(vectors, Tokens.of(texts), config.Pair(num_neighbors=8, min_similarity=0.5, heldout_share=0))
    assert (0, neighbor) not in {(a, b) for a, b, _ in pairs}
    assert pairs.chosen.dropped["overlapping"] >= 1


def test_the_window_has_an_upper_end() -> None:
    whole, _, _, _ = made(heldout_share=0.0)
    middle = float(np.median(whole.similarity))
    pairs, *_ = made(heldout_share=0.0, max_similarity=middle)
    assert pairs.only(TRAIN).similarity.max() <= middle
    assert pairs.chosen.dropped["above_max_similarity"] == (whole.only(TRAIN).similarity > middle).sum()


def test_directions() -> None:
    found = {}
    for direction in ("directed", "symmetric", "mutual"):
        pairs, *_ = made(heldout_share=0.0, direction=direction, num_neighbors=3, max_per_d2=None)
        found[direction] = {(a, b) for a, b, _ in pairs.only(TRAIN)}
        total = pairs.chosen.considered + pairs.chosen.added_by_direction
        assert total == len(found[direction]) + sum(pairs.chosen.dropped.values())
    back = {(b, a) for a, b in found["directed"]}
    assert found["symmetric"] == found["directed"] | back
    assert found["mutual"] == found["directed"] & back
    assert found["mutual"] < found["directed"] < found["symmetric"]


def test_caps_keep_the_most_similar_and_hubs_are_reported() -> None:
    """Document 0 is near to all others, which are far from one another: all want it as a neighbour."""
    rng = np.random.default_rng(0)
    around = unit(rng.normal(size=(40, 512)))
    hub = unit(around.mean(0, keepdims=True) * 5 + 0.1)
    vectors = np.concatenate((hub, unit(0.6 * hub + 0.8 * around)))
    cfg = config.Pair(num_neighbors=1, min_similarity=-1, heldout_share=0, max_per_d2=None)
    free = pair(vectors, distinct_texts(41), cfg)
    assert (free.d2 == 0).sum() == 40
    assert free.chosen.hubs.most_lists == free.chosen.hubs.most_pairs_per_d2 == 40
    assert free.chosen.hubs.never == pytest.approx(39 / 41)
    assert free.chosen.hubs.skewness > 3
    capped = pair(vectors, distinct_texts(41), cfg.model_copy(update={"max_per_d2": 5}))
    assert (capped.d2 == 0).sum() == 5
    assert capped.chosen.dropped["over_max_per_d2"] == 35
    best = np.sort(free.similarity[free.d2 == 0])[::-1][:5]
    assert np.allclose(np.sort(capped.similarity[capped.d2 == 0])[::-1], best)
    several = pair(vectors, distinct_texts(41), cfg.model_copy(update={"num_neighbors": 6, "max_per_d1": 2}))
    assert np.bincount(several.d1).max() == 2
    assert several.chosen.dropped["over_max_per_d1"] == 41 * 4


@pytest.mark.parametrize("most", [1, 2, 3, 5])
@pytest.mark.parametrize("side", ["d1", "d2"])
def test_a_cap_keeps_what_ranking_all_pairs_of_each_document_keeps(side: str, most: int) -> None:
    """Of directions of few whole numbers, of which many are as similar as others."""
    whole = np.random.default_rng(1).integers(-1, 2, (40, 6))
    vectors = unit(whole + np.eye(6)[0] / 2)
    cfg = config.Pair(num_neighbors=6, min_similarity=-1, heldout_share=0, max_per_d1=None, max_per_d2=None)
    free = pair(vectors, distinct_texts(40), cfg)
    group, other = (free.d1, free.d2) if side == "d1" else (free.d2, free.d1)
    assert len(set(free.similarity.tolist())) < len(free) / 2
    assert side == "d1" or most + 1 in np.bincount(group)  # one too many

    expected = set()
    for document in set(group.tolist()):
        of_document = [(-free.similarity[i], other[i], i) for i in np.flatnonzero(group == document).tolist()]
        expected |= {(int(free.d1[i]), int(free.d2[i])) for _, _, i in sorted(of_document)[:most]}
    capped = pair(vectors, distinct_texts(40), cfg.model_copy(update={f"max_per_{side}": most}))
    assert set(zip(capped.d1.tolist(), capped.d2.tolist(), strict=True)) == expected
    assert capped.chosen.dropped[f"over_max_per_{side}"] == len(free) - len(expected)


def test_documents_of_one_source_are_not_paired() -> None:
    vectors, group = clustered()
    cfg = config.Pair(num_neighbors=8, min_similarity=0.0, heldout_share=0)
    source = np.where(np.arange(120) % 2 == 0, -1, group)  # -1: the corpus does not say, so nothing is excluded
    pairs = pair(vectors, distinct_texts(120), cfg, fields=Fields(source=source))
    assert len(pairs)
    assert not ((source[pairs.d1] == source[pairs.d2]) & (source[pairs.d1] >= 0)).any()
    assert pairs.chosen.dropped["same_source"] > 50
    unknown = (source[pairs.d1] < 0) & (source[pairs.d2] < 0)
    assert ((group[pairs.d1] == group[pairs.d2]) & unknown).any()


def test_agreement_by_similarity() -> None:
    """Two documents of a group are alike, two of different groups are not: the most similar tenth agrees, the least does
    not, and chance is one in twenty."""
    vectors, group = clustered(600, 20)
    cfg = config.Pair(num_neighbors=60, min_similarity=-1, heldout_share=0, max_per_d2=None)
    told = pair(vectors, distinct_texts(600), cfg, fields=Fields(label=group)).chosen.agreement
    assert len(told.deciles) == 10
    assert told.deciles[-1][2] > 0.99
    assert told.deciles[0][2] < 0.2
    assert told.random == pytest.approx(0.05, abs=0.02)
    lows = [row[0] for row in told.deciles]
    assert lows == sorted(lows)
    assert sum(row[3] for row in told.deciles) == 600 * 60


def test_what_each_alpha_would_give_is_what_it_gives() -> None:
    vectors, _ = clustered(300)
    texts = distinct_texts(300)
    told = alphas(vectors, texts, config.Pair(num_neighbors=8), 0)
    assert told.sampled == 300
    for row in told.table[2:16:4]:
        cfg = config.Pair(num_neighbors=8, min_similarity=row.alpha, heldout_share=0, max_per_d2=None)
        assert row.pairs == len(pair(vectors, texts, cfg))
    sampled = alphas(vectors, texts, config.Pair(num_neighbors=8), 0, sample=100)
    for some, whole in zip(sampled.table, told.table, strict=True):
        _, low, high = some.per_document
        assert low * 300 - 60 <= whole.pairs <= high * 300 + 60


def test_known_neighbours_are_taken_as_they_are() -> None:
    vectors, _ = clustered()
    index, score = exact(vectors, vectors, 4, np.arange(120))
    cfg = config.Pair(num_neighbors=8, min_similarity=-1, heldout_share=0)
    pairs = pair(vectors, distinct_texts(120), cfg, neighbors=Neighbors(index, score))
    assert {(a, b) for a, b, _ in pairs} == {(i, int(j)) for i in range(120) for j in index[i]}


def test_no_pair_above_alpha_says_which_alpha_would_give_some() -> None:
    with pytest.raises(DataError, match=r"no pair is left above min_similarity 0\.999.*try --set pair\.min_similarity=0\.\d\d"):
        made(min_similarity=0.999)


def test_where_no_pair_is_left_it_is_said_what_to_change_of_what_dropped_them() -> None:
    vectors, _ = clustered()
    same = Tokens.of([[*range(10, 60), 0]] * 120)
    with pytest.raises(DataError, match=r"raise pair\.max_overlap, or add documents") as raised:
        pair(vectors, same, config.Pair(num_neighbors=8, min_similarity=0.3))
    assert "pair.min_similarity=" not in str(raised.value)
    with pytest.raises(DataError, match=r"raise pair\.max_similarity, or add documents"):
        made(max_similarity=0.0, min_similarity=-1.0)


def test_one_document_has_no_pairs() -> None:
    with pytest.raises(DataError, match="no pair is left"):
        pair(unit(np.ones((1, 4))), distinct_texts(1), config.Pair())


def test_auto_alpha_is_the_larger_of_its_two_bounds_and_says_why() -> None:
    vectors, _ = clustered(400, 40)
    _, similarity = exact(vectors, vectors, 8, np.arange(400))
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


def test_chance_would_give_most_pairs_of_unrelated_documents_and_few_of_related_ones() -> None:
    rng = np.random.default_rng(0)
    unrelated = unit(rng.normal(size=(100, 16)))
    related, _ = clustered(200, 20)
    shares = []
    for vectors in (unrelated, related):
        score = -np.sort(-(vectors @ vectors.T), axis=1)[:, 1:9]
        chance = random_similarity(vectors, 0)
        alpha, _ = choose_alpha(config.Pair(), score, chance)
        shares.append(chance_share(score, chance, alpha))
    assert shares[0] > 0.6
    assert shares[1] < 0.1
    assert chance_share(score, chance, 1.0) == 0  # no pair at all
    assert chance_share(score[:1], np.zeros(0), 0.0) == 0  # a single document
