"""Shingles, containment, Jaccard and copied spans: what two texts have in common.

Texts are compared by runs of n tokens or words.

Runs are hashed to 64 bits by one multiply-add per position, so that a whole corpus of n-grams is a
sorted array. With 10^8 different n-grams, one comparison in 10^11 is wrong by a collision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer, UInt32, UInt64

from synthboot.data import words
from synthboot.data.tokens import Tokens
from synthboot.kernels import library as kernels
from synthboot.kernels import overlap

_MULTIPLIER = 0x9E3779B97F4A7C15
_INVERSE = pow(_MULTIPLIER, -1, 1 << 64)
_MIX = 0xBF58476D1CE4E5B9
PERMUTATIONS = 126
_BAND = 6
"""MinHash values that candidates have to agree in, next to each other."""

Tokenized = Integer[np.ndarray, " token"]
Hashes = UInt64[np.ndarray, " _"]
_Pairs = Int64[np.ndarray, " pair"]

_CANDIDATES = 1 << 16  # pairs whose signatures are compared at once: 64 MB of them
_MUCH_LONGER = 4  # times: from there on the second document of a pair is held, not the first
_BLOCK = 1 << 22  # tokens of a corpus that are hashed at once: 32 MB of hashes
_SAME_RUNS = 4  # equal runs of a text that repeats itself that count as one shingle
_SMALL_BUCKET = 16  # documents; in a larger bucket not every pair is a candidate
_MARGIN = 0.15  # below the threshold, for the error of a MinHash estimate


def hashes(tokens: Tokenized, n: int) -> Hashes:
    """The hash of every run of `n` tokens in order, `len(tokens) - n + 1` of them.

    A text of fewer than `n` tokens has one hash, of all of it.
    """
    length = len(tokens)
    if length == 0:
        return np.empty(0, np.uint64)
    n = min(n, length)

    # Token 0 would be a factor of nothing, so ids count from 1 before they are mixed.
    ids = tokens.astype(np.uint64) + 1
    values = ids * _MIX
    values ^= values >> 29

    # A run from i on is worth the sum of value[i + j] * m^(n - 1 - j). Modulo 2^64 (wrap-around is
    # intended) an odd m can be divided by: with sums of value[k] / m^(k + 1) over all that stands
    # before, a run is a difference of two of them times m^(i + n), however long it is.
    falling = np.cumprod(np.full(length, _INVERSE, np.uint64))
    sums = np.zeros(length + 1, np.uint64)
    np.cumsum(values * falling, out=sums[1:])
    rising = np.cumprod(np.full(length, _MULTIPLIER, np.uint64))
    result = (sums[n:] - sums[:-n]) * rising[n - 1 :]
    return result ^ (result >> 31)


def containment(a: Hashes, b: Hashes) -> float:
    """Share of the smaller set of hashes that the other also holds, in [0, 1]; of no hashes 0."""
    a = np.unique(a)
    b = np.unique(b)
    smaller = min(len(a), len(b))
    if smaller == 0:
        return 0.0
    common = np.intersect1d(a, b, assume_unique=True)
    return len(common) / smaller


def pair_containments(
    a: Tokens,
    b: Tokens,
    d1: _Pairs,
    d2: _Pairs,
    n: int,
    at_once: int = 1 << 21,
    threads: int = 1,
    progress: Callable[[float], None] = lambda _: None,
) -> Float[np.ndarray, " pair"]:
    """Containment of the shingles of `a[d1[i]]` and `b[d2[i]]`, for every pair i.

    End tokens are left out. Where a document has fewer than `n` tokens, the pair is compared in
    runs as long as the shorter one. Memory is 28 bytes for each of the `at_once` tokens that the
    pairs in hand have, whatever the number of `threads`, and for each of these up to 92 for each
    token of the longest document of either side. `progress` is told the share that is done.
    """
    # One document of a pair is held for all pairs that it is in, the other read for each of them:
    # a long document that many short ones lie near must not be read for each.
    is_much_longer = b.lengths[d2] > _MUCH_LONGER * a.lengths[d1]
    d1_held = _ByHeld(a, b, d1, d2, n)
    d2_held = _ByHeld(b, a, d2, d1, n)
    most = max(1, at_once // threads)
    batches = [
        *d1_held.batches(np.flatnonzero(~is_much_longer), most),
        *d2_held.batches(np.flatnonzero(is_much_longer), most),
    ]

    result = np.empty(len(d1))
    done = 0
    # threads, since the compiled loop leaves the interpreter to others while it works
    with ThreadPoolExecutor(threads) as pool:
        of_batches = pool.map(_Batch.containments, batches)
        for batch, compared in zip(batches, of_batches, strict=True):
            result[batch.pairs] = compared
            done += len(batch.pairs)
            progress(done / len(d1))
    return result


@dataclass(frozen=True)
class _ByHeld:
    """Pairs (held[held_docs[i]], others[other_docs[i]]), of which what is held is read once for all
    of its pairs that are compared in runs of one length."""

    held: Tokens
    others: Tokens
    held_docs: _Pairs
    other_docs: _Pairs
    n: int

    def batches(self, pairs: _Pairs, most: int) -> Iterator[_Batch]:
        """These pairs in batches of about `most` tokens, by what is held and the length of runs."""
        run_length = np.minimum(self.others.lengths[self.other_docs[pairs]] - 1, self.n)
        pairs = pairs[np.lexsort((run_length, self.held_docs[pairs]))]

        held_docs = self.held_docs[pairs]
        is_new = np.diff(held_docs, prepend=-1) != 0
        read_tokens = self.others.lengths[self.other_docs[pairs]]
        read_tokens = read_tokens + is_new * self.held.lengths[held_docs]
        for part in _slices_of(read_tokens, most):
            yield _Batch(self, pairs[part])


@dataclass(frozen=True)
class _Batch:
    """Pairs that are compared at once, by their numbers."""

    of: _ByHeld
    pairs: _Pairs

    def containments(self) -> Float[np.ndarray, " pair"]:
        """Of each of the pairs."""
        held, others, n = self.of.held, self.of.others, self.of.n
        held_docs = self.of.held_docs[self.pairs]
        other_docs = self.of.other_docs[self.pairs]
        if kernels.available():
            distinct_held, held_places = np.unique(held_docs, return_inverse=True)
            distinct_others, other_places = np.unique(other_docs, return_inverse=True)
            return overlap.containments(
                held.texts(distinct_held),
                others.texts(distinct_others),
                held_places,
                other_places,
                n,
            )

        result = np.empty(len(held_docs))
        for i, (held_doc, other_doc) in enumerate(zip(held_docs, other_docs, strict=True)):
            first = held[held_doc][:-1]
            second = others[other_doc][:-1]
            size = max(1, min(n, len(first), len(second)))
            result[i] = containment(hashes(first, size), hashes(second, size))
        return result


def _slices_of(sizes: Int64[np.ndarray, " item"], most: int) -> Iterator[slice]:
    """Slices of consecutive items, whose sizes are about `most` together."""
    run = np.cumsum(sizes) // most  # the number of each item's run
    edges = np.flatnonzero(np.diff(run)) + 1
    for start, stop in pairwise([0, *edges.tolist(), len(sizes)]):
        if start < stop:
            yield slice(start, stop)


def copied(
    tokens: Tokenized,
    reference: Hashes,
    n: int,
) -> Bool[np.ndarray, " token"]:
    """True at each token that lies in a run of `n` tokens that `reference` (sorted hashes) holds.

    Of a text of fewer than `n` tokens, none does.
    """
    # +1 where a copied run starts, -1 behind its end: the running sum counts the runs over a token.
    change = np.zeros(len(tokens) + 1, np.int64)
    if len(tokens) >= n and len(reference):
        runs = hashes(tokens, n)
        starts = np.flatnonzero(contains(reference, runs))
        np.add.at(change, starts, 1)
        np.add.at(change, starts + n, -1)
    return np.cumsum(change)[:-1] > 0


def contains(
    reference: Hashes,
    wanted: UInt64[np.ndarray, " y"],
) -> Bool[np.ndarray, " y"]:
    """Whether each wanted hash is in the sorted array `reference`."""
    if not len(reference):
        return np.zeros(len(wanted), bool)
    position = np.searchsorted(reference, wanted)
    position = np.minimum(position, len(reference) - 1)  # beyond all of them: the last is not equal
    return reference[position] == wanted


def all_hashes(samples: Sequence[Integer[np.ndarray, " _"]], n: int) -> Hashes:
    """The hashes of all runs of `n` tokens of the samples, one after another; a shorter sample has
    none."""
    hashed = [hashes(sample, n) for sample in samples if len(sample) >= n]
    return np.concatenate(hashed) if hashed else np.empty(0, np.uint64)


def held(samples: Sequence[Integer[np.ndarray, " _"]], corpus: Tokens, n: int) -> Hashes:
    """The sorted hashes of the samples' runs of `n` tokens that the corpus holds, read block by
    block; memory is the samples'."""
    wanted = np.unique(all_hashes(samples, n))
    if not len(wanted):
        return wanted

    is_held = np.zeros(len(wanted), bool)
    for block in _blocks(corpus, n):
        hashed = hashes(block, n)
        position = np.searchsorted(wanted, hashed)
        position = np.minimum(position, len(wanted) - 1)  # as in `contains`
        is_held[position[wanted[position] == hashed]] = True
    return wanted[is_held]


def _blocks(corpus: Tokens, n: int) -> Iterator[Tokenized]:
    """The tokens of the corpus, a block of a shard at a time; every run of `n` tokens of a shard
    lies in just one block."""
    for first_doc, shard in zip(corpus.first_docs, corpus.shards, strict=True):
        # the corpus may be the head of a pool that ends amid a shard, or before it
        before = int(corpus.bounds[min(first_doc, len(corpus))])
        end = min(len(shard), corpus.num_tokens - before)
        for start in range(0, max(0, end), _BLOCK):
            # n - 1 tokens of overlap: runs across the edge of two blocks count too
            block = shard[start : min(start + _BLOCK + n - 1, end)]
            if len(block) >= n:
                yield np.asarray(block)


def longest_run(mask: Bool[np.ndarray, " token"]) -> int:
    """Length of the longest run of True."""
    values = mask.astype(np.int8)
    padded = np.pad(values, 1)
    edges = np.flatnonzero(np.diff(padded))
    if not len(edges):
        return 0
    starts = edges[::2]
    stops = edges[1::2]
    return int((stops - starts).max())


def repeated_share(tokens: Tokenized, n: int) -> float:
    """Share of a text's runs of `n` tokens that repeat an earlier one of it, in [0, 1)."""
    if len(tokens) < n:
        return 0.0
    values = hashes(tokens, n)
    different = len(np.unique(values))
    return 1.0 - different / len(values)


def shingles(
    text: str,
    symbols: bool | None = None,
) -> list[str]:
    """The runs of words by which a text is compared.

    A run has five words, more where a word tells little. A shorter text is one run; a text without
    words has none, and is similar to no other.

    `symbols` says whether symbols are words; unless given, they are in a text that has more of them
    than letters.

    Where most runs come again and again, only the first four of a kind are one and the same and the
    others are numbered, so that texts of a few runs are alike only when they have about as many.
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


def alike(a: str, b: str) -> float:
    """The Jaccard similarity of two texts' shingles.

    With symbols, if both texts say something by them and it is less.
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


def near_duplicate_groups(
    signatures: Integer[np.ndarray, "doc perm"],
    texts: Sequence[str],
    threshold: float,
) -> Integer[np.ndarray, " doc"]:
    """A group number per document; documents joined by a chain of near-duplicates share one.

    What it costs, and what it overlooks, `near_duplicate_pairs` says.
    """
    pairs = near_duplicate_pairs(signatures, texts, threshold)
    return groups_of(pairs, len(signatures))


def near_duplicate_pairs(
    signatures: Integer[np.ndarray, "doc perm"],
    texts: Sequence[str],
    threshold: float,
) -> Int64[np.ndarray, "pair 2"]:
    """The near-duplicates, of each pair the lesser number first, in order.

    Candidates agree in a band of six MinHash values; those whose estimate comes within 0.15 of
    `threshold` are compared shingle by shingle, so no pair below the threshold is ever listed. A
    pair of Jaccard 0.8 goes unseen with probability 0.002 at 126 permutations; of more than 16
    candidates for each other, each is compared with the first and the next alone. Memory is 24
    bytes a document and 8 a candidate; `signatures` and `texts` may lie on disk.
    """
    pairs = []
    candidates = _candidates(signatures)
    for start in range(0, len(candidates), _CANDIDATES):
        first, second = np.divmod(candidates[start : start + _CANDIDATES], len(signatures))
        is_equal = signatures[first] == signatures[second]  # (candidate, perm)
        estimate = is_equal.mean(1)
        is_close = estimate >= threshold - _MARGIN
        for a, b in zip(first[is_close].tolist(), second[is_close].tolist(), strict=True):
            if alike(texts[a], texts[b]) >= threshold:
                pairs.append((a, b))
    return np.array(pairs, np.int64).reshape(-1, 2)  # (pair, 2), also where there is none


def _candidates(
    signatures: Integer[np.ndarray, "doc perm"],
) -> Int64[np.ndarray, " candidate"]:
    """The pairs a < b that agree in a band, in order, each as one number, a * docs + b: a set of
    tuples would take twenty times the memory."""
    docs, perms = signatures.shape
    candidates = np.empty(0, np.int64)
    if not docs:
        return candidates
    for start in range(0, perms, _BAND):
        band = signatures[:, start : start + _BAND]  # (doc, value)
        found = []
        for bucket in _buckets(hashes_rows(band)):
            for a, b in _bucket_pairs(bucket):
                found.append(a * docs + b)
        candidates = np.union1d(candidates, np.array(found, np.int64))
    return candidates


def groups_of(
    pairs: Int64[np.ndarray, "pair 2"],
    count: int,
) -> Integer[np.ndarray, " doc"]:
    """A group number for each of `count` documents; those that a chain of pairs joins share one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not count:
        return np.empty(0, np.int64)
    links = np.ones(len(pairs), bool)
    rows = pairs[:, 0]
    columns = pairs[:, 1]
    graph = coo_matrix((links, (rows, columns)), shape=(count, count))
    _, group = connected_components(graph, directed=False)
    return group.astype(np.int64)


def hashes_rows(
    rows: Integer[np.ndarray, "doc value"],
) -> UInt64[np.ndarray, " doc"]:
    """One hash per row."""
    result = np.zeros(len(rows), np.uint64)
    for column in range(rows.shape[1]):
        values = rows[:, column].astype(np.uint64)
        result = (result ^ values) * _MULTIPLIER
        result ^= result >> 32
    return result


def _buckets(keys: Hashes) -> Iterator[Int64[np.ndarray, " same"]]:
    """The documents of each key that several have: once sorted they stand next to each other."""
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


def _bucket_pairs(
    bucket: Integer[np.ndarray, " doc"],
) -> Iterable[tuple[int, int]]:
    """All pairs of a small bucket; of a large one, each document with the first and the next."""
    items = sorted(bucket.tolist())
    if len(items) <= _SMALL_BUCKET:
        return combinations(items, 2)

    # Templated text: pairs grow with the square of a bucket, and a chain joins it as well.
    first, *others = items
    with_first = [(first, other) for other in others]
    return [*with_first, *pairwise(others)]
