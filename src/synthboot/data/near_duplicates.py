"""Near-duplicate documents: those whose shingles, short runs of words, are mostly the same.

1. `shingles`: the runs of words by which a text is compared,
2. `signatures`: a MinHash signature of each text's shingles,
3. `pairs`: texts whose signatures agree in a band are candidates, which are compared exactly,
4. `groups_of`: what a chain of pairs joins is one group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, pairwise

import numpy as np
from jaxtyping import Int64, Integer, UInt32, UInt64

from synthboot.data import words

PERMUTATIONS = 126
"""MinHash values in a signature."""
_BAND = 6
"""Adjacent MinHash values that all have to agree for two texts to be candidates."""
_MARGIN = 0.15
"""How far below the threshold the estimate of a candidate may lie: MinHash is not exact."""
_CANDIDATES_AT_ONCE = 1 << 16
"""Candidates whose signatures are compared at once: 64 MB of them."""
_SMALL_BUCKET = 16
"""Documents of a bucket in which every pair is a candidate; in a larger one not all are."""
_SAME_RUNS = 4
"""Equal runs of a text that repeats itself that count as one shingle."""
_MULTIPLIER = 0x9E3779B97F4A7C15


def shingles(text: str, symbols: bool | None = None) -> list[str]:
    """The runs of words by which a text is compared.

    A run has five words, or more where a word tells little (`words.run_length`). A shorter text is
    one run; a text without words has none, and is similar to no other.

    `symbols` says whether symbols count as words; by default they do in a text that has more of
    them than letters.

    In a text that repeats itself, the first four of equal runs are one shingle, and each further
    one is a shingle of its own, numbered: such texts are alike only if they are about as long.
    """
    if symbols is None:
        symbols = words.in_symbols(text)
    text_words = words.words(text, symbols)
    different = len(set(text_words))
    length = words.run_length(text_words, different)
    runs = words.runs(text_words, length)

    # Two tests for one answer: most texts pass the first, which costs less.
    if len(text_words) <= _SAME_RUNS * different:
        return runs
    if len(runs) <= _SAME_RUNS * len(set(runs)):
        return runs

    times: Counter[str] = Counter()
    for i, run in enumerate(runs):
        times[run] += 1
        if times[run] > _SAME_RUNS:
            runs[i] = f"{run} {times[run]}"
    return runs


def jaccard(a: Iterable[str], b: Iterable[str]) -> float:
    """Size of the intersection over size of the union."""
    first = set(a)
    second = set(b)
    union = len(first | second)
    if not union:
        return 0.0
    return len(first & second) / union


def similarity(a: str, b: str) -> float:
    """The Jaccard similarity of two texts' shingles.

    Where symbols carry meaning in both texts, as in code, they are compared with and without
    symbols, and the lesser similarity counts.
    """
    plain = jaccard(shingles(a), shingles(b))
    if not plain:
        return plain
    both_symbolic = words.with_symbols(a) and words.with_symbols(b)
    if not both_symbolic:
        return plain

    a_symbols = shingles(a, symbols=True)
    b_symbols = shingles(b, symbols=True)
    symbolic = jaccard(a_symbols, b_symbols)
    return min(plain, symbolic)


def signatures(texts: Sequence[str]) -> UInt32[np.ndarray, "doc perm"]:
    """The MinHash signature of each text's shingles."""
    from rensa import RMinHash

    shape = (len(texts), PERMUTATIONS)
    rows = np.empty(shape, np.uint32)
    for i, text in enumerate(texts):
        sketch = RMinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update(shingles(text))
        rows[i] = sketch.digest()
    return rows


def groups(
    signatures: Integer[np.ndarray, "doc perm"],
    texts: Sequence[str],
    threshold: float,
) -> Integer[np.ndarray, " doc"]:
    """A group number per document; documents joined by a chain of near-duplicates share one.

    `pairs` says what it costs, and what it overlooks.
    """
    found = pairs(signatures, texts, threshold)
    return groups_of(found, len(signatures))


def pairs(
    signatures: Integer[np.ndarray, "doc perm"],
    texts: Sequence[str],
    threshold: float,
) -> Int64[np.ndarray, "pair 2"]:
    """The pairs of near-duplicates in order, the lesser number of each first.

    Candidates agree in a band of six MinHash values. Those whose estimated similarity is at most
    0.15 below `threshold` are compared shingle by shingle, so that no pair below the threshold is
    ever listed. A pair of similarity 0.8 is missed with a probability of 0.002. Where more than 16
    documents agree in a band, each is compared only with the first of them and with the next.

    Memory is 24 bytes a document and 8 a candidate; `signatures` and `texts` may lie on disk.
    """
    found = []
    candidates = _candidates(signatures)
    for start in range(0, len(candidates), _CANDIDATES_AT_ONCE):
        first, second = np.divmod(candidates[start : start + _CANDIDATES_AT_ONCE], len(signatures))
        is_equal = signatures[first] == signatures[second]  # (candidate, perm)
        estimate = is_equal.mean(1)
        is_close = estimate >= threshold - _MARGIN
        for a, b in zip(first[is_close].tolist(), second[is_close].tolist(), strict=True):
            if similarity(texts[a], texts[b]) >= threshold:
                found.append((a, b))
    return np.array(found, np.int64).reshape(-1, 2)  # (pair, 2), also where there is none


def _candidates(
    signatures: Integer[np.ndarray, "doc perm"],
) -> Int64[np.ndarray, " candidate"]:
    """The pairs a < b that agree in a band, in order, each as one number a * docs + b.

    A set of tuples would take twenty times the memory.
    """
    docs, perms = signatures.shape
    candidates = np.empty(0, np.int64)
    if not docs:
        return candidates
    for start in range(0, perms, _BAND):
        band = signatures[:, start : start + _BAND]  # (doc, value)
        found = []
        for bucket in _buckets(_row_hashes(band)):
            for a, b in _bucket_pairs(bucket):
                found.append(a * docs + b)
        candidates = np.union1d(candidates, np.array(found, np.int64))
    return candidates


def groups_of(
    pairs: Int64[np.ndarray, "pair 2"],
    count: int,
) -> Integer[np.ndarray, " doc"]:
    """A group number for each of `count` documents; documents joined by a chain of pairs share
    one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not count:
        return np.empty(0, np.int64)
    links = np.ones(len(pairs), bool)
    rows = pairs[:, 0]
    columns = pairs[:, 1]
    graph = coo_matrix((links, (rows, columns)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    group: np.ndarray = component.astype(np.int64)
    return group


def _row_hashes(rows: Integer[np.ndarray, "doc value"]) -> UInt64[np.ndarray, " doc"]:
    """One hash per row."""
    result = np.zeros(len(rows), np.uint64)
    for column in range(rows.shape[1]):
        values = rows[:, column].astype(np.uint64)
        result = (result ^ values) * _MULTIPLIER
        result ^= result >> 32
    return result


def _buckets(keys: UInt64[np.ndarray, " doc"]) -> Iterator[Int64[np.ndarray, " same"]]:
    """The documents that share a key, for every key that several have."""
    # once sorted, equal keys stand next to each other
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    is_other_key = ordered[1:] != ordered[:-1]
    changes = np.flatnonzero(is_other_key) + 1
    edges = np.concatenate(([0], changes, [len(keys)]))
    starts = edges[:-1]
    stops = edges[1:]

    # Most documents are alone with their key, and there may be millions: only the rest is looped.
    is_shared = stops - starts > 1
    for start, stop in zip(starts[is_shared], stops[is_shared], strict=True):
        yield order[start:stop]


def _bucket_pairs(bucket: Integer[np.ndarray, " doc"]) -> Iterable[tuple[int, int]]:
    """All pairs of a small bucket; of a large one, each document with the first and the next."""
    items = sorted(bucket.tolist())
    if len(items) <= _SMALL_BUCKET:
        return combinations(items, 2)

    # Templated text: all pairs would grow with the square, and a chain joins the bucket as well.
    first, *others = items
    with_first = [(first, other) for other in others]
    return [*with_first, *pairwise(others)]
