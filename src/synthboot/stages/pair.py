"""Pair related documents: vectors + tokens -> D_ST, ordered pairs (d1, d2).

1. find every document's nearest neighbours: exactly, or by k-means clusters, as many as it takes
   for `min_recall`,
2. keep pairs whose similarity is above `min_similarity` (alpha), and not above `max_similarity`,
3. drop pairs of one source, and near-duplicates, which would teach the synthesizer to copy,
4. set some documents aside, never canaries, and pair the validation set with D_pretrain, to
   measure p(d2|d1) on unseen pairs,
5. cap how often one document may stand on either side.

The search goes by query blocks (`search.query_block`), so that several workers share it and a
killed one loses a block.
Source: arXiv:2509.15248, nearest-neighbour pairing. Deviation: exact or k-means clusters with a
known recall, not ScaNN on quantized vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from synthboot import config
from synthboot.artifacts.pairs import (
    HELDOUT,
    TRAIN,
    VALIDATION,
    Agreement,
    Chosen,
    Hubs,
    Left,
    Pairs,
)
from synthboot.artifacts.store import Progress, silent
from synthboot.data import ngrams
from synthboot.data.tokens import Tokens, equal_before
from synthboot.errors import DataError
from synthboot.neighbors import join
from synthboot.neighbors.search import Neighbors, interval, nearest
from synthboot.rng import rng
from synthboot.statistics import Interval

_BINS = np.linspace(-0.2, 1.0, 121)
_BLOCK = 8_192  # random pairs compared at once


@dataclass(frozen=True)
class Fields:
    """What the corpus says of each document of D_pretrain, as numbers; -1 where it says nothing."""

    source: Int64[np.ndarray, " doc"] | None = None
    label: Int64[np.ndarray, " doc"] | None = None
    validation_source: Int64[np.ndarray, " other"] | None = None
    """By the numbers of `source`, of validation documents."""
    canary: Bool[np.ndarray, " doc"] | None = None
    """Which are canaries. These find neighbours and are found as all others, but say nothing of how
    similar documents are: neither alpha nor what chance gives is chosen by them."""

    def docs(self, count: int) -> Int64[np.ndarray, " doc"]:
        """The numbers of those of `count` documents that are no canaries."""
        return np.arange(count) if self.canary is None else np.flatnonzero(~self.canary)

    def without(
        self,
        index: Int64[np.ndarray, "query k"],
        score: Float[np.ndarray, "query k"],
    ) -> Float[np.ndarray, "query k"]:
        """The similarities of neighbours, -inf where one is a canary."""
        if self.canary is None:
            return score
        known: np.ndarray = np.where(self.canary[index], -np.inf, score)
        return known


def pair(
    vectors: Float[np.ndarray, "doc dim"],
    tokens: Tokens,
    cfg: config.Pair,
    seed: int = 0,
    validation: tuple[Float[np.ndarray, "other dim"], Tokens] | None = None,
    neighbors: Neighbors | None = None,
    fields: Fields | None = None,
    progress: Progress = silent,
    threads: int = 1,
) -> Pairs:
    """Every ordered pair that is related but not nearly the same, most similar first.

    `validation` adds pairs whose d2 is in that set and whose d1 is in D_pretrain; `neighbors` are
    the neighbours where they are known already. Raises DataError where no pair passes, naming an
    alpha that would give some.
    """
    if neighbors is None:
        neighbors = nearest(
            vectors,
            cfg,
            seed,
            None if validation is None else validation[0],
        )
    fields = fields or Fields()
    docs = fields.docs(len(tokens))
    similarity = fields.without(neighbors.index, neighbors.score)[docs]
    chance = random_similarity(vectors, seed, docs=docs)
    alpha, why = choose_alpha(cfg, similarity, chance)
    held = _held_out(docs, len(tokens), cfg.heldout_share, seed)

    kept = _Kept(*_above(neighbors.index, neighbors.score, alpha))
    considered = int((neighbors.index >= 0).sum())
    # never put together: of millions of documents most neighbours are below it
    kept.dropped["below_min_similarity"] = considered - len(kept.d1)
    added = _filter_related(kept, cfg, fields, len(tokens))
    checking = f"checking {len(kept.d1):,} pairs for overlap"
    _filter_tunable(
        kept,
        cfg,
        tokens,
        held,
        threads,
        lambda done: progress(0.7 + 0.2 * done, checking),
    )

    split = np.where(held[kept.d2], HELDOUT, TRAIN)
    if not (split == TRAIN).any():
        best = float(np.max(similarity, initial=-1.0))
        raise DataError(
            f"pair: no pair is left above min_similarity {alpha:.3f} ({kept.dropped}); "
            f"the most similar two documents have {best:.3f}: {_advice(kept, best)}or add documents"
        )
    if validation is not None:
        split = _add_validation(
            kept=kept,
            split=split,
            cfg=cfg,
            alpha=alpha,
            neighbors=neighbors,
            tokens=tokens,
            validation=validation[1],
            fields=fields,
        )

    # hubs and agreement are about what is tuned on
    train = split == TRAIN
    agreement = None
    if fields.label is not None:
        agreement = _agreement(
            fields.label, kept.d1[train], kept.d2[train], kept.score[train], seed
        )
    chosen = Chosen(
        alpha=alpha,
        why=why,
        considered=considered,
        dropped=kept.dropped,
        added_by_direction=added,
        chance_share=chance_share(similarity, chance, alpha),
        search=neighbors.search.describe(),
        hubs=_hubs(neighbors.index, kept.d2[train]),
        pairs=_describe(kept.d1, split, kept.score, neighbors.score, chance),
        agreement=agreement,
    )

    # by document numbers where similarities are equal, so that the order is the same on any machine
    order = np.lexsort((kept.d2, kept.d1, -kept.score))
    score = kept.score[order].astype(np.float32)
    return Pairs(
        kept.d1[order],
        kept.d2[order],
        score,
        split[order],
        chosen,
    )


@dataclass
class _Kept:
    """Candidate pairs and, by reason, how many were dropped."""

    d1: Int64[np.ndarray, " pair"]
    d2: Int64[np.ndarray, " pair"]
    score: Float32[np.ndarray, " pair"]
    dropped: dict[str, int] = field(default_factory=dict)

    def keep(self, reason: str, good: np.ndarray) -> None:
        """Drop all others, for this reason."""
        self.dropped[reason] = int((~good).sum())
        self.d1 = self.d1[good]
        self.d2 = self.d2[good]
        self.score = self.score[good]

    def add(
        self,
        d1: np.ndarray,
        d2: np.ndarray,
        score: np.ndarray,
    ) -> None:
        """Put more pairs behind these."""
        self.d1 = np.concatenate((self.d1, d1))
        self.d2 = np.concatenate((self.d2, d2))
        self.score = np.concatenate((self.score, score))

    def direct(self, direction: str, docs: int) -> int:
        """Apply `direction`: mutual drops pairs, symmetric adds some; returns how many it added."""
        if direction == "directed":
            return 0
        # a pair as one number, so that finding its reverse is a search among numbers
        forward = self.d1 * docs + self.d2
        backward = self.d2 * docs + self.d1
        returned = np.isin(backward, forward)
        if direction == "mutual":
            self.keep("not_mutual", returned)
            return 0
        missing = ~returned
        self.add(self.d2[missing], self.d1[missing], self.score[missing])
        return int(missing.sum())

    def cap(self, side: Literal["d1", "d2"], most: int | None) -> None:
        """Keep at most so many pairs of a document, those of most similarity."""
        reason = f"over_max_per_{side}"
        if most is None:
            self.dropped[reason] = 0
            return
        group, other = (self.d1, self.d2) if side == "d1" else (self.d2, self.d1)
        # only pairs of these have to be sorted: of few documents
        is_crowded = np.bincount(group)[group] > most
        crowd = group[is_crowded]
        order = np.lexsort((other[is_crowded], -self.score[is_crowded], crowd))
        within = np.ones(len(group), bool)
        within[is_crowded] = equal_before(crowd, order) < most
        self.keep(reason, within)


def _filter_related(
    kept: _Kept,
    cfg: config.Pair,
    fields: Fields,
    docs: int,
) -> int:
    """Keep what is not too similar, and not of one source; returns how many pairs `direction`
    added."""
    # a limit is no threshold of relation: it keeps out what is nearly the same
    limit = np.inf if cfg.max_similarity is None else cfg.max_similarity
    kept.keep("above_max_similarity", kept.score <= limit)
    added = kept.direct(cfg.direction, docs)
    if fields.source is not None:
        source1 = fields.source[kept.d1]
        source2 = fields.source[kept.d2]
        # -1: of a document without a source nothing can be said
        kept.keep("same_source", (source1 != source2) | (source1 < 0))
    return added


def _filter_tunable(
    kept: _Kept,
    cfg: config.Pair,
    tokens: Tokens,
    held: np.ndarray,
    threads: int,
    progress: Callable[[float], None],
) -> None:
    """Keep pairs that teach no copying, whose d1 may be conditioned on, up to the caps."""
    progress(0.0)
    shared = ngrams.pair_containments(
        tokens,
        tokens,
        kept.d1,
        kept.d2,
        cfg.shingle_tokens,
        threads=threads,
        progress=progress,
    )
    kept.keep("overlapping", shared <= cfg.max_overlap)
    kept.keep("conditioned_on_heldout", ~held[kept.d1])

    # last, so that a cap counts only pairs that would be tuned on
    kept.cap("d1", cfg.max_per_d1)
    kept.cap("d2", cfg.max_per_d2)


def _add_validation(
    kept: _Kept,
    split: np.ndarray,
    cfg: config.Pair,
    alpha: float,
    neighbors: Neighbors,
    tokens: Tokens,
    validation: Tokens,
    fields: Fields,
) -> np.ndarray:
    """Add pairs whose d2 is a validation document; returns the split of all pairs.

    They are related as those are that are tuned on; what is about a direction or a number of pairs
    is not asked of them.
    """
    if neighbors.other_index is None or neighbors.other_score is None:
        return split
    d2, d1, score = _above(neighbors.other_index, neighbors.other_score, alpha)
    limit = np.inf if cfg.max_similarity is None else cfg.max_similarity
    shared = ngrams.pair_containments(tokens, validation, d1, d2, cfg.shingle_tokens)
    alike = (shared <= cfg.max_overlap) & (score <= limit)
    if fields.source is not None and fields.validation_source is not None:
        source = fields.source[d1]
        alike &= (source != fields.validation_source[d2]) | (source < 0)
    kept.add(d1[alike], d2[alike], score[alike])
    return np.concatenate((split, np.full(int(alike.sum()), VALIDATION)))


def _advice(kept: _Kept, best: float) -> str:
    """What to change where no pair is left, by what dropped most of them."""
    why, most = max(kept.dropped.items(), key=lambda item: item[1])
    by_reason = {
        "below_min_similarity": f"try --set pair.min_similarity={max(0.0, best - 0.1):.2f}",
        "above_max_similarity": "raise pair.max_similarity",
        "not_mutual": "try --set pair.direction=symmetric",
        "same_source": "drop pair.source_field",
        "overlapping": "raise pair.max_overlap",
        "conditioned_on_heldout": "lower pair.heldout_share",
    }
    return f"{by_reason[why]}, " if most and why in by_reason else ""


def random_pairs(related: Pairs, docs: int, seed: int) -> Pairs:
    """The control: as many pairs as `related` in each split, with the same d2 and a d1 drawn at
    random from the documents that are not held out."""
    allowed = np.setdiff1d(np.arange(docs), related.d2[related.split == HELDOUT])
    index = rng(seed, "pair.random_pairs").integers(0, len(allowed), len(related))

    # a d2 of the validation set has another numbering, so the same number is another document
    itself = (allowed[index] == related.d2) & (related.split != VALIDATION)
    d1 = allowed[(index + itself) % len(allowed)]

    chosen = Chosen(alpha=None, why="d1 drawn at random", considered=len(related))
    return Pairs(
        d1,
        related.d2,
        np.zeros(len(related), np.float32),
        related.split,
        chosen,
    )


def random_similarity(
    vectors: Float[np.ndarray, "doc dim"],
    seed: int,
    pairs: int = 100_000,
    docs: Int64[np.ndarray, " drawn"] | None = None,
) -> np.ndarray:
    """Similarities of random pairs of different documents, of those with the numbers `docs` where
    these are given."""
    numbers = np.arange(len(vectors)) if docs is None else docs
    count = len(numbers)
    if count < 2:
        return np.zeros(0, np.float32)
    random = rng(seed, "pair.random_similarity")
    place = random.integers(0, count, pairs)
    first = numbers[place]
    # a step of 1 to count - 1 around the circle never comes back to where it began
    second = numbers[(place + random.integers(1, count, pairs)) % count]

    # in blocks, since the vectors of all pairs at once would take gigabytes
    similarity = []
    for start in range(0, pairs, _BLOCK):
        block = slice(start, start + _BLOCK)
        a = vectors[first[block]].astype(np.float32)
        b = vectors[second[block]].astype(np.float32)
        similarity.append(np.einsum("ij,ij->i", a, b))  # (pair)
    return np.concatenate(similarity)


def choose_alpha(
    cfg: config.Pair,
    similarity: Float[np.ndarray, "doc k"],
    chance: Float[np.ndarray, " pair"],
) -> tuple[float, str]:
    """Alpha and the reason for it, in words, from the similarities of neighbours and of random
    pairs."""
    if cfg.min_similarity != "auto":
        return float(cfg.min_similarity), "set by min_similarity"
    ranked = np.sort(similarity[np.isfinite(similarity)])[::-1]
    if not len(chance) or not len(ranked):
        return 0.0, "too few documents to choose by"

    rank = min(len(ranked) - 1, round(cfg.auto_pairs_per_doc * len(similarity)))
    enough = float(ranked[rank])
    unlikely = float(np.quantile(chance, 1 - cfg.auto_chance))
    per_doc = f"{cfg.auto_pairs_per_doc:g}"
    if enough >= unlikely:
        return enough, (
            f"{per_doc} neighbours per document are more similar (chance alone: {unlikely:.3f})"
        )
    return unlikely, (
        f"{cfg.auto_chance:.1%} of random pairs are more similar "
        f"({per_doc} a document: {enough:.3f})"
    )


def chance_share(
    similarity: Float[np.ndarray, "doc k"],
    chance: Float[np.ndarray, " pair"],
    alpha: float,
) -> float:
    """Of neighbours above alpha, the share that documents unrelated to each other would give too.

    How similar these are, the middle half of random pairs says, taken as that of a normal
    distribution: the upper end of random pairs has related ones in it.
    """
    kept = int((similarity > alpha).sum())
    if not len(chance) or not kept:
        return 0.0
    low, middle, high = np.quantile(chance, [0.25, 0.5, 0.75])
    spread = (high - low) / (2 * NormalDist().inv_cdf(0.75))
    if spread == 0:
        return 0.0
    unlikely = 1 - NormalDist(middle, spread).cdf(alpha)
    docs, k = similarity.shape
    expected = docs * min(k, (docs - 1) * unlikely)
    return float(min(1.0, expected / kept))


@dataclass(frozen=True)
class Choice:
    """What an alpha would give: pairs in all, and per document with an interval; the share of
    documents with any; the share dropped as near-duplicates, and that of random pairs above it."""

    alpha: float
    pairs: int
    per_document: Interval
    documents_with_pairs: float
    near_duplicates: float
    random_pairs_above: float


@dataclass(frozen=True)
class Choices:
    """What each alpha would give, by the neighbours of so many of the documents, and the `alpha`
    that the settings choose, and why."""

    docs: int
    sampled: int
    alpha: float
    why: str
    table: list[Choice]


def alphas(
    vectors: Float[np.ndarray, "doc dim"],
    tokens: Tokens,
    cfg: config.Pair,
    seed: int,
    sample: int = 2_000,
    fields: Fields | None = None,
) -> Choices:
    """What each alpha would give, from the exact neighbours of up to `sample` documents, of which
    canaries are none."""
    fields = fields or Fields()
    docs = fields.docs(len(vectors))
    # a sample: the exact neighbours of all would take as long as pairing
    rows = np.sort(rng(seed, "pair.dry_run").permutation(docs)[:sample])
    index, score = join.exact(
        vectors[rows],
        vectors,
        cfg.num_neighbors,
        rows,
    )
    query, d2, similarity = _above(index, score, float("-inf"))

    shared = ngrams.pair_containments(
        tokens,
        tokens,
        rows[query],
        d2,
        cfg.shingle_tokens,
    )
    near = shared > cfg.max_overlap
    chance = random_similarity(vectors, seed, docs=docs)
    table = []
    for alpha in np.arange(0.0, 1.0, 0.05).round(2):
        above = similarity > alpha
        per_document = np.bincount(query[above & ~near], minlength=len(rows)).astype(float)
        mean, low, high = interval(per_document) if len(rows) else (0.0, 0.0, 0.0)
        choice = Choice(
            alpha=float(alpha),
            pairs=round(mean * len(docs)),
            per_document=Interval(mean, low, high),
            documents_with_pairs=_mean(per_document > 0),
            near_duplicates=_mean(near[above]),
            random_pairs_above=_mean(chance > alpha),
        )
        table.append(choice)
    chosen, why = choose_alpha(cfg, fields.without(index, score), chance)
    return Choices(len(docs), len(rows), chosen, why, table)


def _mean(values: np.ndarray) -> float:
    """The mean, 0 of nothing."""
    return float(values.mean()) if len(values) else 0.0


def _above(
    index: Int64[np.ndarray, "query k"],
    score: Float32[np.ndarray, "query k"],
    alpha: float,
) -> tuple[Int64[np.ndarray, " pair"], Int64[np.ndarray, " pair"], Float32[np.ndarray, " pair"]]:
    """(query, neighbour, similarity) of all neighbours above alpha, row by row."""
    query, rank = np.nonzero((score > alpha) & (index >= 0))
    return query.astype(np.int64), index[query, rank], score[query, rank]  # each (pair)


def _held_out(
    docs: Int64[np.ndarray, " doc"],
    count: int,
    share: float,
    seed: int,
) -> np.ndarray:
    """Which of `count` documents, a share of the `docs`, are held out: none is tuned on, on either
    side of a pair."""
    order = rng(seed, "pair.held_out").permutation(docs)
    held = np.zeros(count, bool)
    held[order[: int(share * len(docs))]] = True
    return held


def _hubs(
    index: Int64[np.ndarray, "doc k"],
    d2: Int64[np.ndarray, " pair"],
) -> Hubs:
    """How unevenly documents are others' neighbours: in how many lists of k one stands, and in how
    many pairs after all that was dropped.

    Skewness 0 is even; above about 3 a few hubs are near to everything. Source: Radovanovic,
    Nanopoulos, Ivanovic 2010, k-occurrences.
    """
    lists = np.bincount(index[index >= 0], minlength=len(index)).astype(float)
    spread = float(lists.std())
    skewness = 0.0
    if spread:
        skewness = float((((lists - lists.mean()) / spread) ** 3).mean())
    return Hubs(
        most_lists=float(lists.max(initial=0)),
        lists_p99=float(np.quantile(lists, 0.99)) if len(lists) else 0.0,
        never=_mean(lists == 0),
        skewness=skewness,
        most_pairs_per_d2=float(np.bincount(d2).max(initial=0)) if len(d2) else 0.0,
    )


def _agreement(
    label: np.ndarray,
    d1: np.ndarray,
    d2: np.ndarray,
    score: np.ndarray,
    seed: int,
) -> Agreement:
    """How often the two of a pair have the same label, by tenths of the pairs from least to most
    similar."""
    # of a document without a label nothing can be said
    labelled = (label[d1] >= 0) & (label[d2] >= 0)
    order = np.argsort(score[labelled], kind="stable")
    same = (label[d1] == label[d2])[labelled][order]
    ranked = score[labelled][order]

    deciles = []
    for part in np.array_split(np.arange(len(order)), 10):
        if len(part):
            low = float(ranked[part[0]])
            high = float(ranked[part[-1]])
            deciles.append((low, high, float(same[part].mean()), len(part)))
    return Agreement(
        all=_mean(same),
        random=_agreement_by_chance(label[label >= 0], seed),
        deciles=tuple(deciles),
    )


def _agreement_by_chance(label: np.ndarray, seed: int) -> float:
    """How often two documents drawn at random have the same label."""
    if not len(label):
        return 0.0
    random = rng(seed, "pair.label_agreement")
    first, second = random.integers(0, len(label), (2, 100_000))  # each (pair)
    return float((label[first] == label[second]).mean())


def _describe(
    d1: np.ndarray,
    split: np.ndarray,
    score: np.ndarray,
    similarity: np.ndarray,
    chance: np.ndarray,
) -> Left:
    """How many pairs there are, and histograms of their similarities beside those of the nearest
    neighbours and of chance."""
    train = split == TRAIN
    per_document = np.bincount(d1[train], minlength=len(similarity))  # (doc)
    nearest = similarity[:, 0]  # neighbours come best first: (doc, k) -> (doc)
    by_kind = {
        "pairs": score[train],
        "nearest": nearest[np.isfinite(nearest)],
        "random": chance,
    }
    histograms = {}
    for kind, values in by_kind.items():
        histograms[kind] = tuple(np.histogram(values, _BINS)[0].tolist())
    return Left(
        train=int(train.sum()),
        heldout=int((split == HELDOUT).sum()),
        validation=int((split == VALIDATION).sum()),
        documents_with_pairs=int((per_document > 0).sum()),
        pairs_per_document=float(per_document.mean()),
        bins=tuple(_BINS.round(4).tolist()),
        histograms=histograms,
    )
