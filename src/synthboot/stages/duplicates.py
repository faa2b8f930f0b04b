"""Duplicate@N: the share of the first N documents that have a near-duplicate among them, for every
N up to all there are; and the share that have one in the corpus.

The share grows with N, so a figure for a million documents says nothing of ten thousand. Signatures
lie on disk, and texts are read when two documents are compared: memory is some 24 bytes a document.

Source: arXiv:2509.15248, Duplicate@1M. Deviation: how its duplicates were found was not published;
ours are a Jaccard similarity of word 5-grams of 0.8 or more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt32

from synthboot.artifacts.analysis import Duplicates
from synthboot.data import near_duplicates
from synthboot.data.disk import load_array, save_blocks

JACCARD = 0.8
_BLOCK_DOCS = 4_096

Signatures = UInt32[np.ndarray, "doc perm"]
_Pairs = Int64[np.ndarray, "pair 2"]


def signatures(texts: Sequence[str], path: Path) -> Signatures:
    """The MinHash signatures of the texts, mapped from a new file at `path`."""
    return _mapped(_signature_blocks(texts), len(texts), path)


def duplicates(
    sample: Sequence[str],
    corpus: Sequence[str],
    of_corpus: Signatures,
    path: Path,
) -> Duplicates:
    """The near-duplicates of a sample, whose documents come in the order in which they were drawn.

    `of_corpus` are the signatures of `corpus`; an empty corpus is not looked in. The file at `path`
    holds signatures meanwhile, and is not needed afterwards.
    """
    pairs = near(sample, corpus, of_corpus, path)
    # the greater number of a pair comes second: below this both are of the sample
    in_sample = pairs[pairs[:, 1] < len(sample)]
    return Duplicates(
        curve=curve(in_sample, len(sample)),
        corpus=_share_in_corpus(pairs, len(sample), len(corpus)) if len(corpus) else None,
    )


def near(
    sample: Sequence[str],
    corpus: Sequence[str],
    of_corpus: Signatures,
    path: Path,
) -> _Pairs:
    """All pairs of near-duplicates among sample and corpus, the lesser number of each first.

    The sample's documents are numbered first, those of the corpus after them. Arguments are those
    of `duplicates`.
    """
    blocks = chain(_signature_blocks(sample), [of_corpus])
    of_both = _mapped(blocks, len(sample) + len(corpus), path)
    return near_duplicates.pairs(of_both, _Joined(sample, corpus), JACCARD)


def curve(pairs: _Pairs, docs: int) -> tuple[tuple[int, float], ...]:
    """(N, share of the first N documents with a near-duplicate among them), for N up to `docs`.

    `pairs` are all near-duplicates among the documents.
    """
    # For each document the least N with which one of its near-duplicates is among the first N too:
    # both of a pair are there as soon as the later one is. In no pair: beyond every N.
    least_n = np.full(docs, docs + 1)
    both_there = pairs.max(1, initial=0) + 1
    np.minimum.at(least_n, pairs[:, 0], both_there)
    np.minimum.at(least_n, pairs[:, 1], both_there)
    least_n.sort()

    sizes = _sizes(docs)
    counts = np.searchsorted(least_n, sizes, side="right").tolist()
    return tuple((n, count / n) for n, count in zip(sizes, counts, strict=True))


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


def _share_in_corpus(pairs: _Pairs, sample_docs: int, corpus_docs: int) -> float:
    """The share of the sample that a chain of these pairs joins to a document of the corpus."""
    if not sample_docs:
        return 0.0
    groups = near_duplicates.groups_of(pairs, sample_docs + corpus_docs)
    in_corpus = np.isin(groups[:sample_docs], groups[sample_docs:])
    return float(in_corpus.mean())


def _signature_blocks(texts: Sequence[str]) -> Iterator[Signatures]:
    """The signatures of the texts in order, some thousand documents at a time."""
    for start in range(0, len(texts), _BLOCK_DOCS):
        stop = min(start + _BLOCK_DOCS, len(texts))
        yield near_duplicates.signatures([texts[doc] for doc in range(start, stop)])


def _mapped(blocks: Iterable[Signatures], docs: int, path: Path) -> Signatures:
    """The blocks, `docs` signatures together, written to a new file and mapped from there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_blocks(path, blocks, (docs, near_duplicates.PERMUTATIONS), np.uint32)
    return load_array(path, mapped=True)


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
