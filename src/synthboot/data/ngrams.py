"""n-grams of tokens: what is copied, what repeats, how much two documents share.

Runs of n tokens are hashed to 64 bits, by one multiply-add per position, so that all n-grams of a
corpus are a sorted array. With 10^8 different n-grams, one comparison in 10^11 is wrong by a
collision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer, UInt64

from synthboot.data.tokens import Tokens
from synthboot.kernels import library as kernels
from synthboot.kernels import overlap

_MULTIPLIER = 0x9E3779B97F4A7C15
_INVERSE = pow(_MULTIPLIER, -1, 1 << 64)
_MIX = 0xBF58476D1CE4E5B9

Tokenized = Integer[np.ndarray, " token"]
Hashes = UInt64[np.ndarray, " _"]
_Pairs = Int64[np.ndarray, " pair"]

_MUCH_LONGER = 4
"""A second document this many times as long as the first is held for all of its pairs, in place of
the first."""
_BLOCK = 1 << 22
"""Tokens of a corpus that are hashed at once: 32 MB of hashes."""


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
    runs as long as the shorter one. `progress` is told the share that is done.

    Memory is 28 bytes for each of `at_once` tokens, which the `threads` share, and in each thread
    up to 92 bytes for each token of the longest document.
    """
    # One document of a pair is held for all pairs that it is in, and the other is read for each.
    # A long document with many short neighbours is the one to hold.
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
    """Pairs (held[held_docs[i]], others[other_docs[i]]).

    A held document is hashed once for all of its pairs that are compared in runs of one length.
    """

    held: Tokens
    others: Tokens
    held_docs: _Pairs
    other_docs: _Pairs
    n: int

    def batches(self, pairs: _Pairs, most: int) -> Iterator[_Batch]:
        """The pairs of these numbers in batches of about `most` tokens, those of one held document
        and one length of runs next to each other."""
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
    """The pairs of these numbers, which are compared at once."""

    of: _ByHeld
    pairs: _Pairs

    def containments(self) -> Float[np.ndarray, " pair"]:
        """The containment of each pair."""
        held = self.of.held
        others = self.of.others
        n = self.of.n
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
    """Slices of consecutive items, the sizes in each about `most` together."""
    run = np.cumsum(sizes) // most  # the number of each item's run
    edges = np.flatnonzero(np.diff(run)) + 1
    for start, stop in pairwise([0, *edges.tolist(), len(sizes)]):
        if start < stop:
            yield slice(start, stop)


def copied(tokens: Tokenized, reference: Hashes, n: int) -> Bool[np.ndarray, " token"]:
    """Whether each token lies in a run of `n` tokens that is in `reference`, sorted hashes.

    In a text of fewer than `n` tokens, none does.
    """
    # +1 where a copied run starts, -1 behind its end: the running sum counts the runs over a token.
    change = np.zeros(len(tokens) + 1, np.int64)
    if len(tokens) >= n and len(reference):
        runs = hashes(tokens, n)
        starts = np.flatnonzero(contains(reference, runs))
        np.add.at(change, starts, 1)
        np.add.at(change, starts + n, -1)
    return np.cumsum(change)[:-1] > 0


def contains(reference: Hashes, wanted: UInt64[np.ndarray, " y"]) -> Bool[np.ndarray, " y"]:
    """Whether each wanted hash is in the sorted array `reference`."""
    if not len(reference):
        return np.zeros(len(wanted), bool)
    position = np.searchsorted(reference, wanted)
    position = np.minimum(position, len(reference) - 1)  # beyond all of them: the last is not equal
    return reference[position] == wanted


def all_hashes(samples: Sequence[Integer[np.ndarray, " _"]], n: int) -> Hashes:
    """The hashes of all runs of `n` tokens in the samples, one sample after another; a shorter
    sample has none."""
    hashed = [hashes(sample, n) for sample in samples if len(sample) >= n]
    return np.concatenate(hashed) if hashed else np.empty(0, np.uint64)


def shared_hashes(samples: Sequence[Integer[np.ndarray, " _"]], corpus: Tokens, n: int) -> Hashes:
    """The sorted hashes of the runs of `n` tokens that stand both in the samples and in the corpus.

    The corpus is read block by block: memory grows with the samples alone.
    """
    wanted = np.unique(all_hashes(samples, n))
    if not len(wanted):
        return wanted

    is_shared = np.zeros(len(wanted), bool)
    for block in _blocks(corpus, n):
        hashed = hashes(block, n)
        position = np.searchsorted(wanted, hashed)
        position = np.minimum(position, len(wanted) - 1)  # as in `contains`
        is_shared[position[wanted[position] == hashed]] = True
    return wanted[is_shared]


def _blocks(corpus: Tokens, n: int) -> Iterator[Tokenized]:
    """The tokens of the corpus, block by block of each shard; every run of `n` tokens in a shard
    lies in exactly one block."""
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
    """Share of a text's runs of `n` tokens that have stood in it before, in [0, 1)."""
    if len(tokens) < n:
        return 0.0
    values = hashes(tokens, n)
    different = len(np.unique(values))
    return 1.0 - different / len(values)
