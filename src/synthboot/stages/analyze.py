"""Measure the synthetic text beside the real: repetition, duplicates, copying, novelty, relevance,
lengths.

Unseen real text (validation) stands beside it, measured the same way: what real text repeats and
shares with the corpus is the bar, not zero. The corpus is streamed past the sample's n-grams, so
memory is the sample's, not the corpus'.

Source: arXiv:2509.15248, quality table (repetition, Duplicate@1M, pair irrelevance, pair copying).
Deviation: its judge and prompts were never published; ours are counts that anyone can repeat, and
they are not on the paper's scale.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Integer

from synthboot import config
from synthboot.artifacts.analysis import (
    Copying,
    Measures,
    PairExample,
    PersonalData,
    Relevance,
    SampledExample,
    SampledText,
    Segments,
)
from synthboot.artifacts.pairs import Pairs
from synthboot.artifacts.synthetic import Sample
from synthboot.data import near_duplicates, ngrams, personal, words
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens

NOVEL_SIZES = (2, 3, 4, 5)
SPANS = (8, 13, 20, 30, 50, 75, 100, 150, 200, 300, 400, 600)
"""Lengths in tokens of the spans that are looked for as a whole."""
_LONG = 8  # tokens; a run that real text hardly ever repeats by chance
_LOOPING = 0.1  # of a document's runs of that length
_SPREAD = 60  # pairs to look at
_LENGTH_BINS = np.linspace(0, 2_048, 65)
_SIMILARITY_BINS = np.linspace(-0.2, 1, 61)


def analyze(
    samples: Sequence[Integer[np.ndarray, " _"]],
    texts: Sequence[str],
    corpus: Tokens,
    cfg: config.Analyze,
    given: Sequence[Integer[np.ndarray, " _"]] | None = None,
) -> Measures:
    """The measures of one kind of text.

    `samples` are tokens without end tokens, `texts` the same documents as text; `given` holds the
    d1 of each, and adds copying from it. Runs of `cfg.copy_tokens` count as copied.
    """
    # the mean of nothing is not a number
    lengths = np.array([len(s) for s in samples] or [0])
    repeated = np.array([ngrams.repeated_share(s, 4) for s in samples] or [0.0])
    repeated_long = np.array([ngrams.repeated_share(s, _LONG) for s in samples] or [0.0])
    short, median, long = np.quantile(lengths, [0.1, 0.5, 0.9]).tolist()
    # by their bytes, since arrays cannot be put in a set
    distinct_docs = len({s.tobytes() for s in samples})

    from_d1 = None
    if given is not None:
        from_d1 = _copying(d1_masks(samples, given, cfg.copy_tokens))
    return Measures(
        docs=len(samples),
        tokens_mean=float(lengths.mean()),
        tokens_quantiles=(short, median, long),
        lengths=tuple(np.histogram(lengths, _LENGTH_BINS)[0].tolist()),
        repeated_4grams=float(repeated.mean()),
        looping=float((repeated_long > _LOOPING).mean()),
        duplicates=duplicate_share(texts),
        exact_duplicates=1 - distinct_docs / max(1, len(samples)),
        copied_from_corpus=_copying(corpus_masks(samples, corpus, cfg.copy_tokens)),
        distinct_ngrams={n: distinct_share(samples, n) for n in NOVEL_SIZES},
        novel_ngrams={n: novel_share(samples, corpus, n) for n in NOVEL_SIZES},
        copied_from_d1=from_d1,
    )


def d1_masks(
    samples: Sequence[Integer[np.ndarray, " _"]],
    given: Sequence[Integer[np.ndarray, " _"]],
    n: int,
) -> list[Bool[np.ndarray, " _"]]:
    """Which tokens of each sample lie in a run of `n` that its d1 holds."""
    masks = []
    for sample, d1 in zip(samples, given, strict=True):
        d1_hashes = np.unique(ngrams.hashes(d1, n))
        masks.append(ngrams.copied(sample, d1_hashes, n))
    return masks


def corpus_masks(
    samples: Sequence[Integer[np.ndarray, " _"]],
    corpus: Tokens,
    n: int,
) -> list[Bool[np.ndarray, " _"]]:
    """Which tokens of each sample lie in a run of `n` that the corpus holds, wherever.

    A marked stretch longer than `n` may be stitched from several documents.
    """
    in_corpus = ngrams.shared_hashes(samples, corpus, n)
    return [ngrams.copied(s, in_corpus, n) for s in samples]


def verbatim_spans(
    samples: Sequence[Integer[np.ndarray, " _"]],
    corpus: Tokens,
) -> dict[int, float]:
    """By number of tokens, the share of the samples with a span of so many that stands in the
    corpus as it is, in one piece.

    Unlike a stretch of copied runs nothing here is stitched together. The corpus is gone through
    once for each length of `SPANS` that some sample still has; an end token stands in no sample, so
    that no span reaches from a document into the next.
    """
    shares = dict.fromkeys(SPANS, 0.0)
    left = list(samples)
    for n in SPANS:
        left = [sample for sample in left if len(sample) >= n]
        in_corpus = ngrams.shared_hashes(left, corpus, n)
        left = [s for s in left if ngrams.contains(in_corpus, ngrams.hashes(s, n)).any()]
        if not left:
            break
        shares[n] = len(left) / len(samples)
    return shares


def type_token_ratio(texts: Sequence[str], segment: int = 1_000) -> float | None:
    """Different words as a share of all, the mean over segments of so many words, since the share
    falls with the length; None where the texts have not one whole segment.

    Source: Johnson 1944, mean segmental type-token ratio.
    """
    cut = [word for text in texts for word in words.words(text)]
    ratios = []
    for start in range(0, len(cut) - segment + 1, segment):
        ratios.append(len(set(cut[start : start + segment])) / segment)
    return float(np.mean(ratios)) if ratios else None


def personal_data(
    times: Mapping[personal.Found, int],
    corpus: Collection[personal.Found],
) -> dict[str, PersonalData]:
    """What was found so many times, by kind of what it looks like, and what of it the corpus
    holds."""
    result = {}
    for kind in personal.KINDS:
        of_kind = [item for item in times if item.kind == kind]
        result[kind] = PersonalData(
            found=sum(times[item] for item in of_kind),
            different=len(of_kind),
            verbatim=sum(item in corpus for item in of_kind),
        )
    return result


def novel_share(
    samples: Sequence[Integer[np.ndarray, " _"]],
    corpus: Tokens,
    n: int,
) -> float:
    """Share of the samples' runs of `n` tokens that the corpus does not hold."""
    in_corpus = ngrams.shared_hashes(samples, corpus, n)
    hashed = ngrams.all_hashes(samples, n)
    if not len(hashed):
        return 0.0
    return float(1 - np.mean(ngrams.contains(in_corpus, hashed)))


def distinct_share(
    samples: Sequence[Integer[np.ndarray, " _"]],
    n: int,
) -> float:
    """Share of the samples' runs of `n` tokens that are different; depends on how many samples
    there are."""
    hashed = ngrams.all_hashes(samples, n)
    return len(np.unique(hashed)) / max(1, len(hashed))


def duplicate_share(texts: Sequence[str]) -> float:
    """Share of texts with a near-duplicate (word 5-gram Jaccard of 0.8) among the others."""
    if len(texts) < 2:
        return 0.0
    # a text alone in its group has no near-duplicate: (text) -> how many share its group
    group = near_duplicates.groups(near_duplicates.signatures(texts), texts, 0.8)
    return float((np.bincount(group)[group] > 1).mean())


def relevance(
    similarity: Float[np.ndarray, " pair"],
    alpha: float | None,
) -> Relevance:
    """How similar d1 and d2 of pairs are, and the share of pairs above alpha."""
    if not len(similarity):
        return Relevance(mean=None, above_alpha=None)
    above = None if alpha is None else float((similarity > alpha).mean())
    return Relevance(
        mean=float(similarity.mean()),
        above_alpha=above,
        histogram=tuple(np.histogram(similarity, _SIMILARITY_BINS)[0].tolist()),
    )


def examples(
    rows: Sequence[Sample],
    pairs: Pairs,
    tokenizer: Tokenizer,
    corpus: Tokens,
    cfg: config.Analyze,
) -> list[SampledExample]:
    """d1, its most similar real d2 and up to two sampled d2 (`rows` of S_pretrain), as many d1 as
    `cfg.examples`."""
    # pairs come most similar first, so the first of a d1 is its best
    best: dict[int, int] = {}
    for number, d1 in enumerate(pairs.d1.tolist()):
        best.setdefault(d1, number)

    chosen = _chosen(rows, best, cfg.examples)
    tokens = [row.tokens for row in chosen]
    given = [corpus[row.d1][:-1] for row in chosen]
    from_d1 = d1_masks(tokens, given, cfg.copy_tokens)
    from_corpus = corpus_masks(tokens, corpus, cfg.copy_tokens)

    sampled: dict[int, list[SampledText]] = {}
    for number, row in enumerate(chosen):
        # d1 is part of the corpus, so its mark goes over the corpus' mark
        origin = np.where(from_corpus[number], 2, 0)
        origin[from_d1[number]] = 1
        text = SampledText(
            segments=segments(tokenizer, row.tokens, origin),
            mean_logprob=row.mean_logprob,
            finish=row.finish,
        )
        sampled.setdefault(row.d1, []).append(text)

    found = []
    for d1, texts in sampled.items():
        pair = shown(pairs, best[d1], tokenizer, corpus, cfg.copy_tokens)
        found.append(
            SampledExample(
                similarity=pair.similarity,
                d1=pair.d1,
                d2=pair.d2,
                sampled=tuple(texts),
            )
        )
    return found


def _chosen(
    rows: Sequence[Sample],
    best: Mapping[int, int],
    count: int,
) -> list[Sample]:
    """The first two samples of each of the first `count` d1 that have a real d2 to show beside
    them."""
    by_d1: dict[int, list[Sample]] = {}
    for row in rows:
        if row.d1 in best:
            by_d1.setdefault(row.d1, []).append(row)

    chosen = []
    for d1 in list(by_d1)[:count]:
        chosen += by_d1[d1][:2]
    return chosen


def spread(
    pairs: Pairs,
    tokenizer: Tokenizer,
    corpus: Tokens,
    cfg: config.Analyze,
) -> list[PairExample]:
    """Up to 60 pairs, least similar first, spread evenly over the range of similarity."""
    wanted = np.linspace(pairs.similarity.min(), pairs.similarity.max(), _SPREAD)
    order = np.argsort(pairs.similarity, kind="stable")
    nearest = np.searchsorted(pairs.similarity[order], wanted)
    # the largest wanted similarity may lie past the last pair by rounding
    nearest = np.unique(np.minimum(nearest, len(order) - 1))

    found = []
    for number in order[nearest].tolist():
        found.append(shown(pairs, number, tokenizer, corpus, cfg.copy_tokens))
    return found


def shown(
    pairs: Pairs,
    number: int,
    tokenizer: Tokenizer,
    corpus: Tokens,
    n: int,
) -> PairExample:
    """One pair to look at; of d2 the runs of `n` tokens are marked that d1 holds too."""
    d1 = corpus[int(pairs.d1[number])][:-1]
    d2 = corpus[int(pairs.d2[number])][:-1]
    [copied] = d1_masks([d2], [d1], n)  # (token of d2)
    return PairExample(
        similarity=float(pairs.similarity[number]),
        d1=tokenizer.decode(d1),
        d2=segments(tokenizer, d2, copied.astype(int)),
    )


def segments(
    tokenizer: Tokenizer,
    tokens: Integer[np.ndarray, " token"],
    origin: Integer[np.ndarray, " token"],
) -> Segments:
    """The text of the tokens, cut where `origin` changes, with the mark of each part; empty
    parts are left out."""
    # the first token of every part but the first
    changes = np.flatnonzero(np.diff(origin)) + 1
    edges = [0, *changes.tolist(), len(tokens)]
    text = tokenizer.decode(tokens)

    # The head up to an edge is decoded, not the part between two edges: a character may be
    # spelled by several tokens, and a part may begin amid one.
    prefixes = {edge: len(tokenizer.decode(tokens[:edge])) for edge in edges}
    parts = []
    for start, end in pairwise(edges):
        part = text[prefixes[start] : prefixes[end]]
        if part:
            parts.append((part, int(origin[start])))
    return tuple(parts)


def _copying(masks: Sequence[Bool[np.ndarray, " _"]]) -> Copying:
    """How much is copied of documents whose copied tokens are these."""
    if not masks:
        return Copying(docs=0.0, tokens=0.0, longest_median=0.0, longest_max=0.0)
    longest = np.array([ngrams.longest_run(m) for m in masks])  # (doc)
    copied = sum(int(m.sum()) for m in masks)
    tokens = sum(len(m) for m in masks)
    return Copying(
        docs=float((longest > 0).mean()),
        tokens=float(copied / max(1, tokens)),
        longest_median=float(np.median(longest)),
        longest_max=float(longest.max()),
    )
