"""What two texts have in common, by runs of n tokens (or words): shingles, containment, Jaccard, copied spans.

Runs are hashed to 64 bits by one multiply-add per position, so that a whole corpus of n-grams is a sorted array. With
10^8 different n-grams, one comparison in 10^11 is wrong by a collision.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer, UInt32, UInt64

from synthboot.data.tokens import Tokens

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
PERMUTATIONS = 126
_WORD = re.compile(r"\w+")


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

    Where a document has fewer than `n` tokens, the pair is compared in runs as long as the shorter one. Pairs are taken
    in chunks of about 2^20 shingles, all of a chunk in one sort; two different shingles of a pair are taken for the same
    with probability 2^-43.
    """
    result = np.empty(len(d1))
    la, lb = np.diff(a.bounds)[d1] - 1, np.diff(b.bounds)[d2] - 1
    short = np.minimum(la, lb) < n
    for i in np.flatnonzero(short):
        first, second = a[int(d1[i])][:-1], b[int(d2[i])][:-1]
        size = max(1, min(len(first), len(second)))
        result[i] = containment(hashes(first, size), hashes(second, size))
    rest = np.flatnonzero(~short)
    chunk = np.cumsum((la + lb)[rest]) >> 20
    for part in np.split(rest, np.flatnonzero(np.diff(chunk)) + 1) if len(rest) else ():
        result[part] = _contained(_keys(a, d1[part], n, 0), _keys(b, d2[part], n, 1), len(part))
    return result


def _keys(documents: Tokens, chosen: Int64[np.ndarray, " pair"], n: int, side: int) -> UInt64[np.ndarray, " key"]:
    """Pair number (20 bits), shingle hash (43 bits) and side (1 bit) of every shingle of every chosen document."""
    unique, which = np.unique(chosen, return_inverse=True)
    texts = [documents[int(i)][:-1] for i in unique]
    values = hashes(np.concatenate(texts), n)
    lengths = np.array([len(t) for t in texts])
    starts, counts = (np.cumsum(lengths) - lengths)[which], (lengths - n + 1)[which]
    pair = np.repeat(np.arange(len(chosen), dtype=np.uint64), counts)
    place = np.arange(int(counts.sum())) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return (pair << np.uint64(44)) | ((values[place] >> np.uint64(21)) << np.uint64(1)) | np.uint64(side)


def _contained(a: UInt64[np.ndarray, " x"], b: UInt64[np.ndarray, " y"], pairs: int) -> Float[np.ndarray, " pair"]:
    keys = np.sort(np.concatenate((a, b)))
    keys = keys[np.concatenate(([True], keys[1:] != keys[:-1]))]
    pair, second = (keys >> np.uint64(44)).astype(np.int64), (keys & np.uint64(1)).astype(bool)
    sizes = [np.bincount(pair[second == side], minlength=pairs) for side in (False, True)]
    both = np.append((keys[:-1] ^ np.uint64(1)) == keys[1:], False)
    return np.bincount(pair[both], minlength=pairs) / np.minimum(*sizes)


def copied(tokens: Integer[np.ndarray, " token"], known: UInt64[np.ndarray, " ngram"], n: int) -> Bool[np.ndarray, " token"]:
    """True at each token that lies in a run of `n` tokens found in `known` (sorted hashes). Texts under n: all False."""
    mask = np.zeros(len(tokens) + 1, np.int64)
    if len(tokens) >= n and len(known):
        found = contains(known, hashes(tokens, n))
        starts = np.flatnonzero(found)
        np.add.at(mask, starts, 1)
        np.add.at(mask, starts + n, -1)
    return np.cumsum(mask)[:-1] > 0


def contains(known: UInt64[np.ndarray, " x"], wanted: UInt64[np.ndarray, " y"]) -> Bool[np.ndarray, " y"]:
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


def shingles(text: str, n: int = 5) -> list[str]:
    """The word n-grams of a text, lower case; of characters where the script does not put spaces between words."""
    words = _WORD.findall(text.lower())
    if words and sum(map(len, words)) > 15 * len(words):
        words = list("".join(words))
    return [" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))]


def jaccard(a: Iterable[str], b: Iterable[str]) -> float:
    """Size of the intersection over size of the union."""
    first, second = set(a), set(b)
    union = len(first | second)
    return len(first & second) / union if union else 0.0


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
    signatures: Integer[np.ndarray, "doc perm"], texts: Sequence[str], threshold: float, rows: int = 6
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
        if jaccard(shingles(texts[a]), shingles(texts[b])) >= threshold:
            joined.append((a, b))
    pairs = np.array(joined, np.int64).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
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
