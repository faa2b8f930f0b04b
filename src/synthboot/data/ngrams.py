"""Shingles, containment, Jaccard and copied spans: what two texts have in common.

Texts are compared by runs of n tokens or words.

Runs are hashed to 64 bits by one multiply-add per position, so that a whole corpus of n-grams is a
sorted array. With 10^8 different n-grams, one comparison in 10^11 is wrong by a collision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer, UInt32, UInt64

from synthboot.data import words
from synthboot.data.tokens import Tokens

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
PERMUTATIONS = 126

# How `_Shared` packs a shingle into 64 bits (widths in bits, most significant first):
#
#   hash   [ slot: 10 to 27 ][ rest                 ]   the slot finds the mark "stands twice"
#   value  [ high 44 of the hash          ][ 20 cut ]   what is kept of a shingle
#   key    [ item of a chunk: 20 ][ value: 44       ]   one sort: by item, within it by value
_VALUE_BITS = np.uint64(44)
_CUT_BITS = np.uint64(20)
_VALUE_MASK = np.uint64((1 << 44) - 1)


def hashes(tokens: Integer[np.ndarray, " token"], n: int) -> UInt64[np.ndarray, " ngram"]:
    """The hash of every run of `n` tokens in order, `len(tokens) - n + 1` of them.

    A text of fewer than `n` tokens has one hash, of all of it.
    """
    length = len(tokens)
    if length == 0:
        return np.empty(0, np.uint64)
    n = min(n, length)

    # Token 0 would be a factor of nothing, so ids count from 1 before they are mixed.
    values = (tokens.astype(np.uint64) + np.uint64(1)) * _MIX
    values ^= values >> np.uint64(29)

    runs = length - n + 1
    result = np.zeros(runs, np.uint64)
    for offset in range(n):  # wrap-around is intended
        result = result * _MULTIPLIER + values[offset : offset + runs]
    return result ^ (result >> np.uint64(31))


def containment(a: UInt64[np.ndarray, " x"], b: UInt64[np.ndarray, " y"]) -> float:
    """Share of the smaller set of hashes that the other also holds, in [0, 1]; of no hashes 0."""
    a = np.unique(a)
    b = np.unique(b)
    smaller = min(len(a), len(b))
    if smaller == 0:
        return 0.0
    return len(np.intersect1d(a, b, assume_unique=True)) / smaller


def pair_containments(
    a: Tokens,
    b: Tokens,
    d1: Int64[np.ndarray, " pair"],
    d2: Int64[np.ndarray, " pair"],
    n: int,
) -> Float[np.ndarray, " pair"]:
    """Containment of the shingles of `a[d1[i]]` and `b[d2[i]]`, for every pair i.

    End tokens are left out. Where a document has fewer than `n` tokens, the pair is compared in
    runs as long as the shorter one. Most shingles stand in one document only, so each document is
    read twice: once to mark what comes up more than once, once to keep that. Pairs then compare
    what was kept. Memory is at most 256 MiB of marks, what was kept, and chunks of a million
    shingles; two different shingles of a pair are taken for the same with probability 2^-44.
    """
    result = np.empty(len(d1))
    lengths_1 = np.diff(a.bounds)[d1] - 1
    lengths_2 = np.diff(b.bounds)[d2] - 1

    # Short documents are few, so they are compared one pair at a time.
    short = np.minimum(lengths_1, lengths_2) < n
    for i in np.flatnonzero(short):
        first = a[int(d1[i])][:-1]
        second = b[int(d2[i])][:-1]
        size = max(1, min(len(first), len(second)))
        result[i] = containment(hashes(first, size), hashes(second, size))

    rest = np.flatnonzero(~short)
    if not len(rest):
        return result

    # One numbering for both sides: a document that stands on both is read once, and documents of
    # another set follow those of `a`.
    one_set = a is b
    offset = 0 if one_set else len(a)
    both_sides = np.concatenate((d1[rest], d2[rest] + offset))  # (2 * pair,)
    docs, positions = np.unique(both_sides, return_inverse=True)
    if one_set:
        chosen = [(a, docs)]
    else:
        of_a = docs < len(a)
        chosen = [(a, docs[of_a]), (b, docs[~of_a] - len(a))]

    first_of_pair, second_of_pair = np.split(positions, 2)  # (pair,) each
    shared = _Shared.of(chosen, n)
    result[rest] = shared.containments(first_of_pair, second_of_pair)
    return result


@dataclass(frozen=True)
class _Shared:
    """Documents by the shingles that others may share.

    `values[bounds[i]:bounds[i + 1]]` are those of document i, sorted, 44 bits each; `sizes[i]`
    counts all its different shingles.
    """

    values: UInt64[np.ndarray, " shingle"]
    bounds: Int64[np.ndarray, " doc_and_one"]
    sizes: Int64[np.ndarray, " doc"]

    @staticmethod
    def of(chosen: Sequence[tuple[Tokens, Int64[np.ndarray, " _"]]], n: int) -> _Shared:
        """The shingles of `n` tokens of the chosen documents, one set after the other."""
        total = 0
        for tokens, docs in chosen:
            total += int(np.diff(tokens.bounds)[docs].sum())

        # Eight slots a shingle keep chance collisions few; 2 x 2^27 marks are the 256 MiB.
        slot_bits = min(27, max(10, (8 * total).bit_length()))
        shift = np.uint64(64 - slot_bits)

        # First pass: mark the slots that come up more than once.
        once = np.zeros(1 << slot_bits, bool)
        twice = np.zeros(1 << slot_bits, bool)
        for hashed, _, _ in _shingled(chosen, n):
            slots = np.sort(hashed >> shift)
            repeats = slots[1:] == slots[:-1]
            twice[slots[1:][repeats]] = True  # twice within this chunk
            twice[slots[once[slots]]] = True  # here, and in a chunk before
            once[slots] = True

        # Second pass: keep what is marked. A shingle with a slot of its own is in one document,
        # once: it counts towards the size of that document and can be forgotten.
        kept = [np.empty(0, np.uint64)]
        counts = [np.empty(0, np.int64)]
        sizes = [np.empty(0, np.int64)]
        for hashed, doc, num_docs in _shingled(chosen, n):
            marked = twice[hashed >> shift]
            high = doc[marked].astype(np.uint64) << _VALUE_BITS
            low = hashed[marked] >> _CUT_BITS
            keys = np.sort(high | low)
            if len(keys):
                is_first = np.concatenate(([True], keys[1:] != keys[:-1]))
                keys = keys[is_first]

            doc_of_key = (keys >> _VALUE_BITS).astype(np.int64)
            count = np.bincount(doc_of_key, minlength=num_docs)
            unmarked = np.bincount(doc[~marked], minlength=num_docs)
            kept.append(keys & _VALUE_MASK)
            counts.append(count)
            sizes.append(count + unmarked)

        bounds = np.concatenate(([0], *counts)).cumsum()
        return _Shared(np.concatenate(kept), bounds, np.concatenate(sizes))

    def containments(
        self,
        x: Int64[np.ndarray, " pair"],
        y: Int64[np.ndarray, " pair"],
    ) -> Float[np.ndarray, " pair"]:
        """The share of the smaller document's shingles that the other also holds.

        Documents x[i] and y[i] are compared.
        """
        num_shared = np.empty(len(x), np.int64)
        counts = np.diff(self.bounds)
        for part in _chunks(counts[x] + counts[y]):
            # A document's values differ from each other, so equal neighbours come from x and y.
            both = (self._keys(x[part]), self._keys(y[part]))
            keys = np.sort(np.concatenate(both))
            is_shared = keys[1:] == keys[:-1]
            pair = (keys[1:][is_shared] >> _VALUE_BITS).astype(np.int64)
            num_shared[part] = np.bincount(pair, minlength=part.stop - part.start)

        smaller = np.minimum(self.sizes[x], self.sizes[y])
        return np.where(x == y, 1.0, num_shared / smaller)

    def _keys(self, docs: Int64[np.ndarray, " pair"]) -> UInt64[np.ndarray, " key"]:
        """The keys of all shingles of all of `docs`; the item is the position in `docs`."""
        counts = np.diff(self.bounds)[docs]
        starts = np.cumsum(counts) - counts

        # Position of every key in `values`: its own number, moved by how far its document lies off.
        moved = np.repeat(self.bounds[docs] - starts, counts)  # (pair,) -> (key,)
        position = np.arange(int(counts.sum())) + moved
        items = np.arange(len(docs), dtype=np.uint64)
        item = np.repeat(items, counts)  # (pair,) -> (key,)
        return (item << _VALUE_BITS) | self.values[position]


def _shingled(
    chosen: Sequence[tuple[Tokens, Int64[np.ndarray, " _"]]],
    n: int,
) -> Iterator[tuple[UInt64[np.ndarray, " shingle"], Int64[np.ndarray, " shingle"], int]]:
    """By chunks of documents: hashes of all shingles, the document of each, number of documents.

    A document is given by its position in the chunk.
    """
    for tokens, docs in chosen:
        for part in _chunks(np.diff(tokens.bounds)[docs]):
            texts = [tokens[int(i)][:-1] for i in docs[part]]
            lengths = np.array([len(text) for text in texts])
            text_starts = np.cumsum(lengths) - lengths

            counts = lengths - n + 1
            shingle_starts = np.cumsum(counts) - counts
            doc = np.repeat(np.arange(len(texts)), counts)  # (doc,) -> (shingle,)

            # All texts are hashed as one; runs that reach from a text into the next are left out.
            moved = (text_starts - shingle_starts)[doc]  # (doc,) -> (shingle,)
            position = np.arange(int(counts.sum())) + moved
            hashed = hashes(np.concatenate(texts), n)
            yield hashed[position], doc, len(texts)


def _chunks(sizes: Int64[np.ndarray, " item"]) -> Iterator[slice]:
    """Runs of items of about a million in all, and of no more than a million items."""
    by_size = np.cumsum(sizes) >> 20
    by_number = np.arange(len(sizes)) >> 20  # an item has 20 bits of a key
    chunk = by_size + by_number
    inner_edges = (np.flatnonzero(np.diff(chunk)) + 1).tolist()

    start = 0
    for stop in [*inner_edges, len(sizes)]:
        if start < stop:
            yield slice(start, stop)
        start = stop


def copied(
    tokens: Integer[np.ndarray, " token"],
    reference: UInt64[np.ndarray, " ngram"],
    n: int,
) -> Bool[np.ndarray, " token"]:
    """True at each token that lies in a run of `n` tokens that `reference` (sorted hashes) holds.

    Of a text of fewer than `n` tokens, none does.
    """
    # +1 where a copied run starts, -1 behind its end: the running sum counts the runs over a token.
    change = np.zeros(len(tokens) + 1, np.int64)
    if len(tokens) >= n and len(reference):
        is_copied = contains(reference, hashes(tokens, n))
        starts = np.flatnonzero(is_copied)
        np.add.at(change, starts, 1)
        np.add.at(change, starts + n, -1)
    return np.cumsum(change)[:-1] > 0


def contains(
    reference: UInt64[np.ndarray, " x"],
    wanted: UInt64[np.ndarray, " y"],
) -> Bool[np.ndarray, " y"]:
    """Whether each wanted hash is in the sorted array `reference`."""
    if not len(reference):
        return np.zeros(len(wanted), bool)
    position = np.searchsorted(reference, wanted)
    position = np.minimum(position, len(reference) - 1)  # beyond all of them: the last is not equal
    return reference[position] == wanted


def longest_run(mask: Bool[np.ndarray, " token"]) -> int:
    """Length of the longest run of True."""
    padded = np.concatenate(([0], mask.astype(np.int8), [0]))
    edges = np.flatnonzero(np.diff(padded))
    if not len(edges):
        return 0
    lengths = edges[1::2] - edges[::2]  # runs begin at even edges and end at odd ones
    return int(lengths.max())


def repeated_share(tokens: Integer[np.ndarray, " token"], n: int) -> float:
    """Share of a text's runs of `n` tokens that repeat an earlier one of it, in [0, 1)."""
    if len(tokens) < n:
        return 0.0
    values = hashes(tokens, n)
    return 1.0 - len(np.unique(values)) / len(values)


def shingles(text: str, symbols: bool | None = None) -> list[str]:
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
    cut = words.words(text, symbols)
    kinds = len(set(cut))
    runs = words.runs(cut, words.run_length(cut, kinds))

    # Two tests for one answer: most texts pass the first, which costs less.
    if len(cut) <= 4 * kinds:
        return runs
    if len(runs) <= 4 * len(set(runs)):
        return runs

    times: Counter[str] = Counter()
    for i, run in enumerate(runs):
        times[run] += 1
        if times[run] > 4:
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
    if not (words.with_symbols(a) and words.with_symbols(b)):
        return plain

    symbolic = jaccard(shingles(a, True), shingles(b, True))
    return min(plain, symbolic)


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

    Candidates agree in a band of `rows` MinHash values; those whose estimate comes within 0.15 of
    `threshold` are compared shingle by shingle, so no pair below the threshold is ever joined. A
    pair of Jaccard 0.8 goes unseen with probability 0.002 at 126 permutations. Memory is 8 bytes a
    document and band plus the candidates; `texts` is only indexed, so it may lie on disk.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count, perms = signatures.shape
    if count == 0:
        return np.empty(0, np.int64)

    # Documents with equal keys of a band stand next to each other once sorted: one bucket.
    candidates: set[tuple[int, int]] = set()
    for band in range(perms // rows):
        of_band = signatures[:, band * rows : (band + 1) * rows]  # (doc, rows)
        keys = hashes_rows(of_band)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        is_first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
        starts = np.flatnonzero(is_first)
        sizes = np.diff(np.append(starts, count))
        shared = sizes > 1
        for start, size in zip(starts[shared], sizes[shared], strict=True):
            candidates.update(_bucket_pairs(order[start : start + size]))

    edges = []
    for a, b in sorted(candidates):
        estimate = float(np.mean(signatures[a] == signatures[b]))
        if estimate < threshold - 0.15:
            continue
        if alike(texts[a], texts[b]) >= threshold:
            edges.append((a, b))

    pairs = np.array(edges, np.int64).reshape(-1, 2)  # (pair, 2), also where there is none
    links = np.ones(len(pairs), bool)
    rows_and_columns = (pairs[:, 0], pairs[:, 1])
    graph = coo_matrix((links, rows_and_columns), shape=(count, count))
    _, group = connected_components(graph, directed=False)
    return group.astype(np.int64)


def hashes_rows(rows: Integer[np.ndarray, "doc value"]) -> UInt64[np.ndarray, " doc"]:
    """One hash per row."""
    result = np.zeros(len(rows), np.uint64)
    for column in range(rows.shape[1]):
        result = (result ^ rows[:, column].astype(np.uint64)) * _MULTIPLIER
        result ^= result >> np.uint64(32)
    return result


def _bucket_pairs(bucket: Integer[np.ndarray, " doc"]) -> Iterable[tuple[int, int]]:
    """All pairs of a small bucket; of a large one, each document with the first and the next."""
    items = sorted(int(i) for i in bucket)
    if len(items) <= 16:
        return list(combinations(items, 2))

    # Templated text: pairs grow with the square of a bucket, and a chain joins it as well.
    with_first = [(items[0], other) for other in items[1:]]
    with_next = list(pairwise(items[1:]))
    return with_first + with_next
