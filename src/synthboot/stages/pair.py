"""Pair related documents: vectors + tokens -> D_ST, ordered pairs (d1, d2).

1. find every document's nearest neighbours: exactly, or by k-means clusters, as many as it takes for `min_recall`,
2. keep pairs whose similarity is above `min_similarity` (alpha), and not above `max_similarity`,
3. drop pairs of one source, and near-duplicates, which would teach the synthesizer to copy,
4. set some documents aside, and pair the validation set with D_pretrain, to measure p(d2|d1) on unseen pairs,
5. cap how often one document may stand on either side.

The search goes by blocks of 32,768 documents, so that several workers share it and a killed one loses a query block.
Source: arXiv:2509.15248, nearest-neighbour pairing. Deviation: exact or k-means clusters with a known recall, not ScaNN on
quantized vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from synthboot import config
from synthboot.data import neighbors, ngrams
from synthboot.data.artifacts import Progress, silent
from synthboot.data.pairs import HELDOUT, TRAIN, VALIDATION, Pairs
from synthboot.data.tokens import Tokens
from synthboot.engine.search import Neighbors, interval, nearest
from synthboot.errors import DataError

_BINS = np.linspace(-0.2, 1.0, 121)


@dataclass(frozen=True)
class Fields:
    """What the corpus says of each document of D_pretrain, as numbers; -1 where it says nothing."""

    source: Int64[np.ndarray, " doc"] | None = None
    label: Int64[np.ndarray, " doc"] | None = None


def pair(
    vectors: Float[np.ndarray, "doc dim"],
    tokens: Tokens,
    cfg: config.Pair,
    seed: int = 0,
    validation: tuple[Float[np.ndarray, "other dim"], Tokens] | None = None,
    found: Neighbors | None = None,
    fields: Fields | None = None,
    progress: Progress = silent,
) -> Pairs:
    """Every ordered pair that is related but not nearly the same, most similar first.

    `validation` adds pairs whose d2 is in that set and whose d1 is in D_pretrain; `found` are the neighbours where they
    are known already. Raises DataError where no pair passes, naming an alpha that would give some.
    """
    if found is None:
        found = nearest(vectors, cfg, seed, None if validation is None else validation[0])
    fields = fields or Fields()
    chance = random_similarity(vectors, seed)
    alpha, why = choose_alpha(cfg, found.score, chance)
    kept = _Kept(*_above(found.index, found.score, float("-inf")))
    considered = len(kept.d1)
    kept.keep("below_min_similarity", kept.score > alpha)
    kept.keep(
        "above_max_similarity",
        kept.score <= (np.inf if cfg.max_similarity is None else cfg.max_similarity),
    )
    added = kept.direct(cfg.direction, len(tokens))
    if fields.source is not None:
        one, other = fields.source[kept.d1], fields.source[kept.d2]
        kept.keep("same_source", (one != other) | (one < 0))
    progress(0.7, f"checking {len(kept.d1):,} pairs for overlap")
    kept.keep(
        "overlapping",
        ngrams.pair_containments(tokens, tokens, kept.d1, kept.d2, cfg.shingle_tokens)
        <= cfg.max_overlap,
    )
    held = _held_out(len(tokens), cfg.heldout_share, seed)
    kept.keep("conditioned_on_heldout", ~held[kept.d1])
    kept.keep(
        "over_max_per_d1", _ranks(kept.d1, kept.score, kept.d2) < (cfg.max_per_d1 or len(tokens))
    )
    kept.keep(
        "over_max_per_d2", _ranks(kept.d2, kept.score, kept.d1) < (cfg.max_per_d2 or len(tokens))
    )
    d1, d2, score, split = kept.d1, kept.d2, kept.score, np.where(held[kept.d2], HELDOUT, TRAIN)
    if not (split == TRAIN).any():
        best = float(np.max(found.score, initial=-1.0))
        raise DataError(
            f"pair: no pair is left above min_similarity {alpha:.3f} ({kept.dropped}); the most similar two documents "
            f"have {best:.3f}: try --set pair.min_similarity={max(0.0, best - 0.1):.2f}, or add documents"
        )
    if validation is not None and found.other_index is not None and found.other_score is not None:
        v2, v1, v_score = _above(found.other_index, found.other_score, alpha)
        near = (
            ngrams.pair_containments(tokens, validation[1], v1, v2, cfg.shingle_tokens)
            > cfg.max_overlap
        )
        d1, d2 = np.concatenate((d1, v1[~near])), np.concatenate((d2, v2[~near]))
        score = np.concatenate((score, v_score[~near]))
        split = np.concatenate((split, np.full(int((~near).sum()), VALIDATION)))
    report = {
        "alpha": alpha, "why": why, "considered": considered, "added_by_direction": added, "dropped": kept.dropped,
        **found.search.describe(), "hubs": _hubs(found.index, d2[split == TRAIN]),
        **_describe(d1, split, score, found.score, chance),
    }  # fmt: skip
    if fields.label is not None:
        train = split == TRAIN
        report["agreement"] = _agreement(fields.label, d1[train], d2[train], score[train], seed)
    order = np.lexsort((d2, d1, -score))
    return Pairs(d1[order], d2[order], score[order].astype(np.float32), split[order], report)


@dataclass
class _Kept:
    """Candidate pairs and, by reason, how many were dropped."""

    d1: Int64[np.ndarray, " pair"]
    d2: Int64[np.ndarray, " pair"]
    score: Float32[np.ndarray, " pair"]

    def __post_init__(self) -> None:
        self.dropped: dict[str, int] = {}

    def keep(self, reason: str, good: np.ndarray) -> None:
        self.dropped[reason] = int((~good).sum())
        self.d1, self.d2, self.score = self.d1[good], self.d2[good], self.score[good]

    def direct(self, direction: str, docs: int) -> int:
        """Apply `direction`: mutual drops pairs, symmetric adds some; returns how many."""
        key, back = self.d1 * docs + self.d2, self.d2 * docs + self.d1
        returned = np.isin(back, key)
        if direction == "mutual":
            self.keep("not_mutual", returned)
        if direction != "symmetric":
            return 0
        missing = ~returned
        self.d1, self.d2 = (
            np.concatenate((self.d1, self.d2[missing])),
            np.concatenate((self.d2, self.d1[missing])),
        )
        self.score = np.concatenate((self.score, self.score[missing]))
        return int(missing.sum())


def random_pairs(like: Pairs, docs: int, seed: int) -> Pairs:
    """The control: as many pairs as `like` in each split, with the same d2 and a d1 drawn at random
    from the documents that are not held out."""
    allowed = np.setdiff1d(np.arange(docs), like.d2[like.split == HELDOUT])
    place = np.random.default_rng([seed, 0xC0FFEE]).integers(0, len(allowed), len(like))
    itself = (allowed[place] == like.d2) & (like.split != VALIDATION)
    d1 = allowed[(place + itself) % len(allowed)]
    report: dict[str, Any] = {
        "alpha": None,
        "why": "d1 drawn at random",
        "considered": len(like),
        "dropped": {},
    }
    return Pairs(d1, like.d2, np.zeros(len(like), np.float32), like.split, report)


def random_similarity(
    vectors: Float[np.ndarray, "doc dim"], seed: int, pairs: int = 100_000
) -> np.ndarray:
    """Similarities of random pairs of different documents."""
    rng = np.random.default_rng([seed, 0xA1FA])
    count = len(vectors)
    if count < 2:
        return np.zeros(0, np.float32)
    a = rng.integers(0, count, pairs)
    b = (a + rng.integers(1, count, pairs)) % count
    parts = [slice(i, i + 8_192) for i in range(0, pairs, 8_192)]
    return np.concatenate(
        [
            np.einsum(
                "ij,ij->i", vectors[a[p]].astype(np.float32), vectors[b[p]].astype(np.float32)
            )
            for p in parts
        ]
    )


def choose_alpha(
    cfg: config.Pair, similarity: Float[np.ndarray, "doc k"], chance: Float[np.ndarray, " pair"]
) -> tuple[float, str]:
    """Alpha and the reason for it, in words, from the similarities of neighbours and of random pairs."""
    if cfg.min_similarity != "auto":
        return float(cfg.min_similarity), "set by min_similarity"
    ranked = np.sort(similarity[np.isfinite(similarity)])[::-1]
    if not len(chance) or not len(ranked):
        return 0.0, "too few documents to choose by"
    place = min(len(ranked) - 1, round(cfg.auto_pairs_per_doc * len(similarity)))
    enough, unlikely = float(ranked[place]), float(np.quantile(chance, 1 - cfg.auto_chance))
    if enough >= unlikely:
        return (
            enough,
            f"{cfg.auto_pairs_per_doc:g} neighbours per document are more similar (chance alone: {unlikely:.3f})",
        )
    return (
        unlikely,
        f"{cfg.auto_chance:.1%} of random pairs are more similar ({cfg.auto_pairs_per_doc:g} a document: {enough:.3f})",
    )


def alphas(
    vectors: Float[np.ndarray, "doc dim"],
    tokens: Tokens,
    cfg: config.Pair,
    seed: int,
    sample: int = 2_000,
) -> dict[str, Any]:
    """What each alpha would give, from the exact neighbours of up to `sample` documents: pairs in all, per document, the
    share of documents with any, the share dropped as near-duplicates, and the share of random pairs above it."""
    docs = len(vectors)
    rows = np.sort(np.random.default_rng([seed, 0xD27]).permutation(docs)[:sample]).astype(np.int64)
    index, score = neighbors.exact(vectors[rows], vectors, cfg.num_neighbors, rows)
    chance = random_similarity(vectors, seed)
    query, d2, similarity = _above(index, score, float("-inf"))
    near = (
        ngrams.pair_containments(tokens, tokens, rows[query], d2, cfg.shingle_tokens)
        > cfg.max_overlap
    )
    table = []
    for alpha in np.arange(0.0, 1.0, 0.05).round(2):
        above = similarity > alpha
        good = above & ~near
        each = np.bincount(query[good], minlength=len(rows))
        mean, low, high = interval(each.astype(float)) if len(rows) else (0.0, 0.0, 0.0)
        table.append(
            {
                "alpha": float(alpha), "pairs": round(mean * docs), "per_document": [mean, low, high],
                "documents_with_pairs": float((each > 0).mean()) if len(rows) else 0.0,
                "near_duplicates": float(near[above].mean()) if above.any() else 0.0,
                "random_pairs_above": float((chance > alpha).mean()) if len(chance) else 0.0,
            }
        )  # fmt: skip
    chosen, why = choose_alpha(cfg, score, chance)
    return {"docs": docs, "sampled": len(rows), "alpha": chosen, "why": why, "table": table}


def _above(
    index: Int64[np.ndarray, "query k"], score: Float32[np.ndarray, "query k"], alpha: float
) -> tuple[Int64[np.ndarray, " pair"], Int64[np.ndarray, " pair"], Float32[np.ndarray, " pair"]]:
    query, rank = np.nonzero((score > alpha) & (index >= 0))
    return query.astype(np.int64), index[query, rank], score[query, rank]


def _held_out(docs: int, share: float, seed: int) -> np.ndarray:
    """Which documents are held out: none is tuned on, on either side of a pair."""
    held = np.zeros(docs, bool)
    held[np.random.default_rng([seed, 0x4E1D]).permutation(docs)[: int(share * docs)]] = True
    return held


def _ranks(group: np.ndarray, score: np.ndarray, tie: np.ndarray) -> Int64[np.ndarray, " pair"]:
    """Each pair's rank by similarity among those of its group, from 0."""
    order = np.lexsort((tie, -score, group))
    ordered = group[order]
    first = (
        np.concatenate(([True], ordered[1:] != ordered[:-1])) if len(order) else np.zeros(0, bool)
    )
    place = np.arange(len(order))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = place - np.maximum.accumulate(np.where(first, place, 0))
    return ranks


def _hubs(index: Int64[np.ndarray, "doc k"], d2: Int64[np.ndarray, " pair"]) -> dict[str, float]:
    """How unevenly documents are others' neighbours: in how many lists of k one stands, and in how many pairs after all
    that was dropped. Skewness 0 is even; above about 3 a few hubs are near to everything.
    Source: Radovanovic, Nanopoulos, Ivanovic 2010, k-occurrences."""
    lists = np.bincount(index[index >= 0], minlength=len(index)).astype(float)
    spread = float(lists.std())
    return {
        "most_lists": float(lists.max(initial=0)),
        "lists_p99": float(np.quantile(lists, 0.99)) if len(lists) else 0.0,
        "never": float((lists == 0).mean()) if len(lists) else 0.0,
        "skewness": float((((lists - lists.mean()) / spread) ** 3).mean()) if spread else 0.0,
        "most_pairs_per_d2": float(np.bincount(d2).max(initial=0)) if len(d2) else 0.0,
    }


def _agreement(
    label: np.ndarray, d1: np.ndarray, d2: np.ndarray, score: np.ndarray, seed: int
) -> dict[str, Any]:
    """How often the two of a pair have the same label, by tenths of the pairs from least to most similar."""
    known = (label[d1] >= 0) & (label[d2] >= 0)
    order = np.argsort(score[known], kind="stable")
    same, ranked = (label[d1] == label[d2])[known][order], score[known][order]
    tenths = [part for part in np.array_split(np.arange(len(order)), 10) if len(part)]
    rng = np.random.default_rng([seed, 0xA62E])
    labeled = label[label >= 0]
    drawn = (
        rng.integers(0, len(labeled), (2, 100_000)) if len(labeled) else np.zeros((2, 0), np.int64)
    )
    by_chance = float((labeled[drawn[0]] == labeled[drawn[1]]).mean()) if drawn.size else 0.0
    rows = [
        [float(ranked[p[0]]), float(ranked[p[-1]]), float(same[p].mean()), len(p)] for p in tenths
    ]
    return {"deciles": rows, "all": float(same.mean()) if len(same) else 0.0, "random": by_chance}


def _describe(
    d1: np.ndarray, split: np.ndarray, score: np.ndarray, similarity: np.ndarray, chance: np.ndarray
) -> dict[str, Any]:
    train = split == TRAIN
    per_document = np.bincount(d1[train], minlength=len(similarity))
    nearest = similarity[:, 0][np.isfinite(similarity[:, 0])]
    histograms = {"pairs": score[train], "nearest": nearest, "random": chance}
    return {
        "pairs": {"train": int(train.sum()), "heldout": int((split == HELDOUT).sum())}
        | {"validation": int((split == VALIDATION).sum())},
        "documents_with_pairs": int((per_document > 0).sum()),
        "pairs_per_document": float(per_document.mean()),
        "bins": _BINS.round(4).tolist(),
        "histograms": {name: np.histogram(v, _BINS)[0].tolist() for name, v in histograms.items()},
    }
