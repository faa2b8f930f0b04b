"""Pair related documents: vectors + tokens -> D_ST, ordered pairs (d1, d2).

1. find every document's nearest neighbours by exact inner product, block by block,
2. keep pairs whose similarity exceeds `min_similarity` (alpha),
3. drop near-duplicates, which would teach the synthesizer to copy,
4. set some documents aside, and pair the validation set with D_pretrain, to measure p(d2|d1) on unseen pairs.

Memory is one block of similarities (512 x 8,192 floats) and the running top k.
Source: arXiv:2509.15248, nearest-neighbour pairing. Deviation: exact search, not ScaNN on quantized vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from synthboot import config
from synthboot.data import ngrams
from synthboot.data.artifacts import Progress, silent
from synthboot.data.pairs import HELDOUT, TRAIN, VALIDATION, Pairs
from synthboot.data.tokens import Tokens
from synthboot.errors import DataError

_BINS = np.linspace(-0.2, 1.0, 121)


def pair(
    vectors: Float[np.ndarray, "doc dim"],
    tokens: Tokens,
    cfg: config.Pair,
    seed: int = 0,
    validation: tuple[Float[np.ndarray, "other dim"], Tokens] | None = None,
    progress: Progress = silent,
) -> Pairs:
    """Every ordered pair that is related but not nearly the same, most similar first.

    `validation` adds pairs whose d2 is in that set and whose d1 is in D_pretrain. Raises DataError where no pair
    passes, naming an alpha that would give some.
    """
    progress(0.05, "searching neighbours")
    neighbors, similarity = nearest_neighbors(vectors, vectors, cfg.num_neighbors, exclude_self=True)
    chance = random_similarity(vectors, seed)
    alpha, why = choose_alpha(cfg, similarity, chance)
    found = [_above(neighbors, similarity, alpha)]
    if validation is not None:
        d1, rank_similarity = nearest_neighbors(validation[0], vectors, cfg.num_neighbors)
        other, sources, scores = _above(d1, rank_similarity, alpha)
        found.append((sources, other, scores))
    dropped: dict[str, int] = {}
    considered = int(np.isfinite(similarity).sum())
    d1, d2, score = found[0]
    dropped["below_min_similarity"] = considered - len(d1)
    progress(0.6, "checking overlap")
    distinct = _distinct(tokens, tokens, d1, d2, cfg)
    dropped["overlapping"] = int((~distinct).sum())
    d1, d2, score = d1[distinct], d2[distinct], score[distinct]
    split, keep = _hold_out(d1, d2, len(tokens), cfg.heldout_share, seed)
    dropped["conditioned_on_heldout"] = int((~keep).sum())
    d1, d2, score, split = d1[keep], d2[keep], score[keep], split[keep]
    if not (split == TRAIN).any():
        best = float(np.max(similarity, initial=-1.0))
        raise DataError(
            f"pair: no pair is left above min_similarity {alpha:.3f} ({dropped}); the most similar two documents "
            f"have {best:.3f}: try --set pair.min_similarity={max(0.0, best - 0.1):.2f}, or add documents"
        )
    if validation is not None:
        v1, v2, v_score = found[1]
        distinct = _distinct(tokens, validation[1], v1, v2, cfg)
        d1, d2 = np.concatenate((d1, v1[distinct])), np.concatenate((d2, v2[distinct]))
        score = np.concatenate((score, v_score[distinct]))
        split = np.concatenate((split, np.full(int(distinct.sum()), VALIDATION)))
    report = {
        "alpha": alpha,
        "why": why,
        "considered": considered,
        "dropped": dropped,
        **_describe(d1, split, score, similarity, chance),
    }
    order = np.lexsort((d2, d1, -score))
    return Pairs(d1[order], d2[order], score[order].astype(np.float32), split[order], report)


def random_pairs(like: Pairs, docs: int, seed: int) -> Pairs:
    """The control: as many pairs as `like` in each split, with the same d2 and a d1 drawn at random
    from the documents that are not held out."""
    allowed = np.setdiff1d(np.arange(docs), like.d2[like.split == HELDOUT])
    place = np.random.default_rng([seed, 0xC0FFEE]).integers(0, len(allowed), len(like))
    itself = (allowed[place] == like.d2) & (like.split != VALIDATION)
    d1 = allowed[(place + itself) % len(allowed)]
    report: dict[str, Any] = {"alpha": None, "why": "d1 drawn at random", "considered": len(like), "dropped": {}}
    return Pairs(d1, like.d2, np.zeros(len(like), np.float32), like.split, report)


def nearest_neighbors(
    queries: Float[np.ndarray, "query dim"], base: Float[np.ndarray, "doc dim"], k: int, exclude_self: bool = False
) -> tuple[Int64[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
    """The `k` nearest rows of `base` for every query, best first, and their similarities.

    With `exclude_self`, query i never gets row i, whatever its rank. Where there are fewer than k others, the rest is
    -1 at similarity -inf. Ties go to the smaller number.
    """
    import torch

    rows, columns = 512, 8_192
    q, x = torch.from_numpy(np.asarray(queries, np.float32)), torch.from_numpy(np.asarray(base, np.float32))
    index = torch.full((len(q), k), -1, dtype=torch.int64)
    score = torch.full((len(q), k), float("-inf"))
    for top in range(0, len(q), rows):
        block = slice(top, min(top + rows, len(q)))
        best_score, best_index = score[block], index[block]
        for left in range(0, len(x), columns):
            part = q[block] @ x[left : left + columns].T
            if exclude_self:
                diagonal = torch.arange(top, block.stop)
                inside = (diagonal >= left) & (diagonal < left + columns)
                part[inside, diagonal[inside] - left] = float("-inf")
            found, place = part.topk(min(k, part.shape[1]), dim=1)
            merged = torch.cat((best_score, found), 1)
            numbers = torch.cat((best_index, torch.where(found > float("-inf"), place + left, -1)), 1)
            best_score, order = merged.sort(dim=1, descending=True, stable=True)
            best_score, best_index = best_score[:, :k], numbers.gather(1, order)[:, :k]
        score[block], index[block] = best_score, best_index
    return index.numpy(), score.numpy()


def random_similarity(vectors: Float[np.ndarray, "doc dim"], seed: int, pairs: int = 100_000) -> np.ndarray:
    """Similarities of random pairs of different documents."""
    rng = np.random.default_rng([seed, 0xA1FA])
    count = len(vectors)
    if count < 2:
        return np.zeros(0, np.float32)
    a = rng.integers(0, count, pairs)
    b = (a + rng.integers(1, count, pairs)) % count
    parts = [slice(i, i + 8_192) for i in range(0, pairs, 8_192)]
    return np.concatenate(
        [np.einsum("ij,ij->i", vectors[a[p]].astype(np.float32), vectors[b[p]].astype(np.float32)) for p in parts]
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


def _above(
    neighbors: Int64[np.ndarray, "query k"], similarity: Float32[np.ndarray, "query k"], alpha: float
) -> tuple[Int64[np.ndarray, " pair"], Int64[np.ndarray, " pair"], Float32[np.ndarray, " pair"]]:
    query, rank = np.nonzero(similarity > alpha)
    return query.astype(np.int64), neighbors[query, rank], similarity[query, rank]


def _distinct(a: Tokens, b: Tokens, d1: np.ndarray, d2: np.ndarray, cfg: config.Pair) -> np.ndarray:
    """Which pairs share at most `max_overlap` of the shorter one's shingles."""
    return np.array([_overlap(a[i], b[j], cfg.shingle_tokens) <= cfg.max_overlap for i, j in zip(d1, d2, strict=True)], bool)


def _overlap(a: np.ndarray, b: np.ndarray, n: int) -> float:
    """Containment of the documents' shingles, their end tokens left out."""
    n = max(1, min(n, len(a) - 1, len(b) - 1))
    return ngrams.containment(ngrams.hashes(a[:-1], n), ngrams.hashes(b[:-1], n))


def _hold_out(d1: np.ndarray, d2: np.ndarray, docs: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Each pair's split, and which pairs stay: none is tuned on that touches a held-out document."""
    rng = np.random.default_rng([seed, 0x4E1D])
    held = np.zeros(docs, bool)
    held[rng.permutation(docs)[: int(share * docs)]] = True
    return np.where(held[d2], HELDOUT, TRAIN), ~held[d1]


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
