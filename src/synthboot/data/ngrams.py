"""What two texts have in common, by runs of n tokens (or words): shingles, containment, Jaccard, copied spans.

Runs are hashed to 64 bits by one multiply-add per position, so that a whole corpus of n-grams is a sorted array. With
10^8 different n-grams, one comparison in 10^11 is wrong by a collision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer, UInt32, UInt64

from synthboot.data import words
from synthboot.data.tokens import Tokens

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
PERMUTATIONS = 126


def hashes(tokens: Integer[np.ndarray, " token"], n: int) -> UInt64[np.ndarray, " ngram"]:
    """The hash of every run of `n` tokens in order, `len(tokens) - n + 1` of them; of a shorter text, of all of it."""
    length = len(tokens)
    if length == 0:
        return np.empty(0, np.uint64)
    n = min(n, length)
    values = (tokens.astype(np.uint64) + np.uint64(1)) * _MIX
    values ^= values >> np.uint64(29)
    result = np.zeros(length - n + 1, np.uint64)
    for offset in range(n):  # wrap-around is intended
        result = result * _MULTIPLIER + values[offset : offset + len(result)]
    return result ^ (result >> np.uint64(31))


def containment(a: UInt64[np.ndarray, " x"], b: UInt64[np.ndarray, " y"]) -> float:
    """Share of the smaller set of hashes that the other also holds, in [0, 1]; 0 when either is empty."""
    a, b = np.unique(a), np.unique(b)
    smaller = min(len(a), len(b))
    return 0.0 if smaller == 0 else len(np.intersect1d(a, b, assume_unique=True)) / smaller


def pair_containments(
    a: Tokens, b: Tokens, d1: Int64[np.ndarray, " pair"], d2: Int64[np.ndarray, " pair"], n: int
) -> Float[np.ndarray, " pair"]:
    """Containment of the shingles of `a[d1[i]]` and `b[d2[i]]` for every pair i, end tokens left out.

    Where a document has fewer than `n` tokens, the pair is compared in runs as long as the shorter one. Most shingles stand
    in one document only, so each document is read twice: once to mark what comes up more than once, once to keep that.
    Pairs then compare what was kept. Memory is at most 256 MiB of marks, what was kept, and chunks of a million shingles;
    two different shingles of a pair are taken for the same with probability 2^-44.
    """
    result = np.empty(len(d1))
    la, lb = np.diff(a.bounds)[d1] - 1, np.diff(b.bounds)[d2] - 1
    short = np.minimum(la, lb) < n
    for i in np.flatnonzero(short):
        first, second = a[int(d1[i])][:-1], b[int(d2[i])][:-1]
        size = max(1, min(len(first), len(second)))
        result[i] = containment(hashes(first, size), hashes(second, size))
    rest = np.flatnonzero(~short)
    if len(rest):
        one_set = a is b  # a document that stands on both sides is read as one
        docs, place = np.unique(
            np.concatenate((d1[rest], d2[rest] + (0 if one_set else len(a)))), return_inverse=True
        )
        chosen = (
            [(a, docs)]
            if one_set
            else [(a, docs[docs < len(a)]), (b, docs[docs >= len(a)] - len(a))]
        )
        result[rest] = _Shared.of(chosen, n).containments(*np.split(place, 2))
    return result


@dataclass(frozen=True)
class _Shared:
    """Documents by the shingles that others may share. `values[bounds[i]:bounds[i + 1]]` are those of document i, sorted, 44
    bits each; `sizes[i]` counts all its different shingles."""

    values: UInt64[np.ndarray, " shingle"]
    bounds: Int64[np.ndarray, " doc_and_one"]
    sizes: Int64[np.ndarray, " doc"]

    @staticmethod
    def of(chosen: Sequence[tuple[Tokens, Int64[np.ndarray, " _"]]], n: int) -> _Shared:
        """The shingles of `n` tokens of the chosen documents, one set after the other."""
        total = sum(int((np.diff(tokens.bounds)[docs]).sum()) for tokens, docs in chosen)
        shift = np.uint64(64 - min(27, max(10, (8 * total).bit_length())))
        once, twice = np.zeros((2, 1 << int(64 - shift)), bool)
        for values, _, _ in _shingled(chosen, n):
            slots = np.sort(values >> shift)
            twice[slots[1:][slots[1:] == slots[:-1]]] = True
            twice[slots[once[slots]]] = True
            once[slots] = True
        kept, counts, sizes = (
            [np.empty(0, np.uint64)],
            [np.empty(0, np.int64)],
            [np.empty(0, np.int64)],
        )
        for values, doc, docs in _shingled(chosen, n):
            repeated = twice[values >> shift]
            keys = np.sort(
                (doc[repeated].astype(np.uint64) << np.uint64(44))
                | (values[repeated] >> np.uint64(20))
            )
            keys = keys[np.concatenate(([True], keys[1:] != keys[:-1]))] if len(keys) else keys
            counts.append(np.bincount((keys >> np.uint64(44)).astype(np.int64), minlength=docs))
            sizes.append(counts[-1] + np.bincount(doc[~repeated], minlength=docs))
            kept.append(keys & np.uint64((1 << 44) - 1))
        return _Shared(
            np.concatenate(kept), np.concatenate(([0], *counts)).cumsum(), np.concatenate(sizes)
        )

    def containments(
        self, x: Int64[np.ndarray, " pair"], y: Int64[np.ndarray, " pair"]
    ) -> Float[np.ndarray, " pair"]:
        """The share of the smaller document's shingles that the other also holds, for documents x[i] and y[i]."""
        both = np.empty(len(x), np.int64)
        counts = np.diff(self.bounds)
        for part in _chunks(counts[x] + counts[y]):
            keys = np.sort(np.concatenate((self._keys(x[part]), self._keys(y[part]))))
            pair = (keys[1:][keys[1:] == keys[:-1]] >> np.uint64(44)).astype(np.int64)
            both[part] = np.bincount(pair, minlength=part.stop - part.start)
        return np.where(x == y, 1.0, both / np.minimum(self.sizes[x], self.sizes[y]))

    def _keys(self, docs: Int64[np.ndarray, " pair"]) -> UInt64[np.ndarray, " key"]:
        """Place in `docs` (20 bits) and shingle (44 bits), for all shingles of all of `docs`."""
        counts = np.diff(self.bounds)[docs]
        place = np.arange(int(counts.sum())) + np.repeat(
            self.bounds[docs] - (np.cumsum(counts) - counts), counts
        )
        return (
            np.repeat(np.arange(len(docs), dtype=np.uint64), counts) << np.uint64(44)
        ) | self.values[place]


def _shingled(
    chosen: Sequence[tuple[Tokens, Int64[np.ndarray, " _"]]], n: int
) -> Iterator[tuple[UInt64[np.ndarray, " shingle"], Int64[np.ndarray, " shingle"], int]]:
    """By chunks of documents: the hashes of all their shingles, the place of each one's document in the chunk, and how many
    documents the chunk has."""
    for tokens, docs in chosen:
        for part in _chunks(np.diff(tokens.bounds)[docs]):
            texts = [tokens[int(i)][:-1] for i in docs[part]]
            lengths = np.array([len(t) for t in texts])
            counts = lengths - n + 1
            doc = np.repeat(np.arange(len(texts)), counts)
            place = (
                np.arange(int(counts.sum()))
                + (np.cumsum(lengths) - lengths - (np.cumsum(counts) - counts))[doc]
            )
            yield hashes(np.concatenate(texts), n)[place], doc, len(texts)


def _chunks(sizes: Int64[np.ndarray, " item"]) -> Iterator[slice]:
    """Runs of items of about a million in all, and of no more than a million items."""
    chunk = (np.cumsum(sizes) >> 20) + (np.arange(len(sizes)) >> 20)
    edges = [0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(sizes)]
    return (
        slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False) if start < stop
    )


def copied(
    tokens: Integer[np.ndarray, " token"], known: UInt64[np.ndarray, " ngram"], n: int
) -> Bool[np.ndarray, " token"]:
    """True at each token that lies in a run of `n` tokens found in `known` (sorted hashes). Texts under n: all False."""
    mask = np.zeros(len(tokens) + 1, np.int64)
    if len(tokens) >= n and len(known):
        found = contains(known, hashes(tokens, n))
        starts = np.flatnonzero(found)
        np.add.at(mask, starts, 1)
        np.add.at(mask, starts + n, -1)
    return np.cumsum(mask)[:-1] > 0


def contains(
    known: UInt64[np.ndarray, " x"], wanted: UInt64[np.ndarray, " y"]
) -> Bool[np.ndarray, " y"]:
    """Whether each wanted hash is in the sorted array `known`."""
    if not len(known):
        return np.zeros(len(wanted), bool)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return known[place] == wanted


def longest_run(mask: Bool[np.ndarray, " token"]) -> int:
    """Length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return int((edges[1::2] - edges[::2]).max()) if len(edges) else 0


def repeated_share(tokens: Integer[np.ndarray, " token"], n: int) -> float:
    """Share of a text's runs of `n` tokens that repeat an earlier one of it, in [0, 1)."""
    if len(tokens) < n:
        return 0.0
    values = hashes(tokens, n)
    return 1.0 - len(np.unique(values)) / len(values)


def shingles(text: str, symbols: bool | None = None) -> list[str]:
    """The runs of words by which a text is compared: five words, more where a word tells little; of a shorter text all of
    it; of a text without words none, and it is like no other. `symbols` says whether symbols are words; unless given, they
    are in a text that has more of them than letters.

    Where most runs come again and again, only the first four of a kind are one and the same and the others are numbered, so
    that texts of a few runs are alike only when they have about as many.
    """
    found = words.words(text, words.in_symbols(text) if symbols is None else symbols)
    runs = words.runs(found, words.run_length(found))
    if len(found) <= 4 * len(set(found)) or len(runs) <= 4 * len(
        set(runs)
    ):  # the first is sooner known
        return runs
    times: Counter[str] = Counter()
    for i, run in enumerate(runs):
        times[run] += 1
        runs[i] = run if times[run] <= 4 else f"{run} {times[run]}"
    return runs


def jaccard(a: Iterable[str], b: Iterable[str]) -> float:
    """Size of the intersection over size of the union."""
    first, second = set(a), set(b)
    union = len(first | second)
    return len(first & second) / union if union else 0.0


def alike(a: str, b: str) -> float:
    """The Jaccard similarity of two texts' shingles; with symbols if both say something by them and it is less."""
    plain = jaccard(shingles(a), shingles(b))
    if not plain or not (words.with_symbols(a) and words.with_symbols(b)):
        return plain
    return min(plain, jaccard(shingles(a, True), shingles(b, True)))


def signatures(texts: Sequence[str]) -> UInt32[np.ndarray, "doc perm"]:
    """The MinHash signature of each text's shingles."""
    from rensa import RMinHash

    rows = np.empty((len(texts), PERMUTATIONS), np.uint32)
    for i, text in enumerate(texts):
        sketch = RMinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update(shingles(text))
        rows[i] = sketch.digest()
    return rows


def near_duplicate_groups(
    signatures: Integer[np.ndarray, "doc perm"],
    texts: Sequence[str],
    threshold: float,
    rows: int = 6,
) -> Integer[np.ndarray, " doc"]:
    """A group number per document; documents joined by a chain of near-duplicates share one.

    Candidates agree in a band of `rows` MinHash values; those whose estimate comes within 0.15 of `threshold` are
    compared shingle by shingle, so no pair below the threshold is ever joined. A pair of Jaccard 0.8 goes unseen with
    probability 0.002 at 126 permutations. Memory is 8 bytes a document and band plus the candidates; `texts` is only
    indexed, so it may lie on disk.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count, perms = signatures.shape
    if count == 0:
        return np.empty(0, np.int64)
    found: set[tuple[int, int]] = set()
    for band in range(perms // rows):
        keys = hashes_rows(signatures[:, band * rows : (band + 1) * rows])
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.concatenate(([True], keys[order][1:] != keys[order][:-1])))
        sizes = np.diff(np.append(starts, count))
        for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
            found.update(_bucket_pairs(order[start : start + size]))
    joined = []
    for a, b in sorted(found):
        if float(np.mean(signatures[a] == signatures[b])) < threshold - 0.15:
            continue
        if alike(texts[a], texts[b]) >= threshold:
            joined.append((a, b))
    pairs = np.array(joined, np.int64).reshape(-1, 2)
    graph = coo_matrix(
        (np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count)
    )
    return connected_components(graph, directed=False)[1].astype(np.int64)


def hashes_rows(rows: Integer[np.ndarray, "doc value"]) -> UInt64[np.ndarray, " doc"]:
    """One hash per row."""
    result = np.zeros(len(rows), np.uint64)
    for column in range(rows.shape[1]):
        result = (result ^ rows[:, column].astype(np.uint64)) * _MULTIPLIER
        result ^= result >> np.uint64(32)
    return result


def _bucket_pairs(bucket: Integer[np.ndarray, " doc"]) -> Iterable[tuple[int, int]]:
    """All pairs of a small bucket; of a large one (templated text) each with the first and with the next."""
    items = sorted(int(i) for i in bucket)
    if len(items) <= 16:
        return [(a, b) for i, a in enumerate(items) for b in items[i + 1 :]]
    return [(items[0], b) for b in items[1:]] + list(zip(items[1:], items[2:], strict=False))
