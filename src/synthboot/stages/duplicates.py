"""Duplicate@N: how much of the first N documents has a near-duplicate among them, for every N up to
what there is, and how much has one in the corpus.

The share grows with N, so a figure for a million says nothing of ten thousand. Signatures lie on
disk and texts are read when two documents are compared, so memory is some 24 bytes a document.

Source: arXiv:2509.15248, Duplicate@1M. Deviation: how its duplicates were found was not published;
ours are a Jaccard similarity of word 5-grams of 0.8 or more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt32

from synthboot.data import ngrams
from synthboot.data.disk import load_array, save_blocks

JACCARD = 0.8
_BLOCK_DOCS = 4_096


@dataclass(frozen=True)
class Duplicates:
    """`curve` holds [N, share of the first N documents with a near-duplicate among them]; `corpus`
    is the share of all that have one in the corpus, None where that was not asked."""

    curve: list[tuple[int, float]]
    corpus: float | None


def signatures(texts: Sequence[str], path: Path) -> UInt32[np.ndarray, "doc perm"]:
    """The MinHash signatures of the texts, in a file at `path`."""
    return _on_disk(_signed(texts), len(texts), path)


def duplicates(
    sample: Sequence[str],
    corpus: Sequence[str],
    of_corpus: UInt32[np.ndarray, "doc perm"],
    path: Path,
) -> Duplicates:
    """The near-duplicates of a sample, in the order in which it was drawn.

    `of_corpus` are the signatures of `corpus`; where that is empty, the sample alone is looked at.
    Signatures lie at `path` meanwhile, which is no longer needed afterwards.
    """
    pairs = near(sample, corpus, of_corpus, path)
    in_sample = pairs[pairs[:, 1] < len(sample)]  # the second of a pair is the greater number
    share = _share_in_corpus(pairs, len(sample), len(corpus)) if len(corpus) else None
    return Duplicates(curve(in_sample, len(sample)), share)


def _share_in_corpus(
    pairs: Int64[np.ndarray, "pair 2"],
    sample_docs: int,
    corpus_docs: int,
) -> float:
    """The share of the sample that a chain of these pairs joins to a document of the corpus."""
    if not sample_docs:
        return 0.0
    groups = ngrams.groups_of(pairs, sample_docs + corpus_docs)
    in_corpus = np.isin(groups[:sample_docs], groups[sample_docs:])
    return float(in_corpus.mean())


def near(
    sample: Sequence[str],
    corpus: Sequence[str],
    of_corpus: UInt32[np.ndarray, "doc perm"],
    path: Path,
) -> Int64[np.ndarray, "pair 2"]:
    """The pairs of near-duplicates among both, the sample's documents numbered first; arguments as
    of `duplicates`."""
    blocks = chain(_signed(sample), [of_corpus])
    rows = _on_disk(blocks, len(sample) + len(corpus), path)
    return ngrams.near_duplicate_pairs(rows, _Joined(sample, corpus), JACCARD)


def _signed(texts: Sequence[str]) -> Iterator[UInt32[np.ndarray, "doc perm"]]:
    """The signatures of the texts, a block of which are in memory."""
    for start in range(0, len(texts), _BLOCK_DOCS):
        stop = min(start + _BLOCK_DOCS, len(texts))
        yield ngrams.signatures([texts[i] for i in range(start, stop)])


def _on_disk(
    blocks: Iterable[UInt32[np.ndarray, "doc perm"]],
    docs: int,
    path: Path,
) -> UInt32[np.ndarray, "doc perm"]:
    """Signatures of so many documents in a new file, mapped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_blocks(path, blocks, (docs, ngrams.PERMUTATIONS), np.uint32)
    return load_array(path, mapped=True)


def curve(pairs: Int64[np.ndarray, "pair 2"], docs: int) -> list[tuple[int, float]]:
    """[N, share of the first N documents that are half of a pair of these], up to all `docs`."""
    # Of each document the least N at which it has a near-duplicate among the first N: both of a
    # pair are there as soon as the later one is. Beyond all N for a document in no pair.
    least_n = np.full(docs, docs + 1)
    both_there = pairs.max(1, initial=0) + 1
    np.minimum.at(least_n, pairs[:, 0], both_there)
    np.minimum.at(least_n, pairs[:, 1], both_there)
    least_n.sort()

    sizes = _sizes(docs)
    counts = np.searchsorted(least_n, sizes, side="right").tolist()
    return [(n, count / n) for n, count in zip(sizes, counts, strict=True)]


def _sizes(docs: int) -> list[int]:
    """100, 200, 500, 1,000, ... below the number of documents, and that number."""
    if not docs:
        return []
    sizes = []
    power = 100
    while power < docs:
        sizes += [power, 2 * power, 5 * power]
        power *= 10
    return [*(n for n in sizes if n < docs), docs]


class _Joined(Sequence[str]):
    """Two sequences of texts as one."""

    def __init__(self, first: Sequence[str], second: Sequence[str]) -> None:
        self._first = first
        self._second = second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index: Any) -> Any:
        number = int(index)
        if number < len(self._first):
            return self._first[number]
        return self._second[number - len(self._first)]
