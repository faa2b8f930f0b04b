"""A corpus' documents end to end, for ever, read from any position.

An epoch's number decides the order of its documents: shuffled, or as `packed_pairs` and `megadocs`
say.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jaxtyping import Int64, Integer

from synthboot.data.tokens import Tokens
from synthboot.rng import rng

Order = Callable[[int], Int64[np.ndarray, " place"]]
"""Which documents an epoch reads, in order: a pure function of its number.

All epochs have as many tokens.
"""


def shuffled(docs: int, seed: int, stream: str) -> Order:
    """All documents, in another random order in every epoch."""
    return lambda number: rng(seed, stream, number).permutation(docs)


def packed_pairs(
    d1: Integer[np.ndarray, " pair"],
    d2: Integer[np.ndarray, " pair"],
    docs: int,
    seed: int,
    stream: str,
) -> Order:
    """All documents, each followed by the first of its `d2` not yet read.

    Pairs come most similar first. Where no d2 is left the next is the next in a random order,
    another in every epoch.

    Source: arXiv:2310.10638. Deviation: a path starts at random, not where neighbours are fewest,
    so that epochs differ.
    """
    # the d2 of document d, in the order of the pairs, are `near[bounds[d] : bounds[d + 1]]`
    by_d1 = np.argsort(d1, kind="stable")
    bounds = np.searchsorted(d1[by_d1], np.arange(docs + 1))
    near = d2[by_d1]

    def order(epoch: int) -> np.ndarray:
        read = np.zeros(docs, bool)
        path: list[int] = []
        for start in rng(seed, stream, epoch).permutation(docs).tolist():
            doc = start
            while not read[doc]:
                read[doc] = True
                path.append(doc)
                unread = (int(n) for n in near[bounds[doc] : bounds[doc + 1]] if not read[n])
                doc = next(unread, doc)  # itself, which has been read: the path ends
        return np.array(path, np.int64)

    return order


def megadocs(
    owners: Integer[np.ndarray, " synthetic"],
    lengths: Int64[np.ndarray, " doc"],
    seq_len: int,
    seed: int,
    stream: str,
) -> Order:
    """Every synthetic document once, followed by the document that it was written from.

    A run is one real document, last, and before it as many of its synthetic ones as fit a row
    together with it; runs come in random order. Documents are numbered real ones first, as
    `lengths` has them; `owners` names the d1 of each synthetic one.

    Source: arXiv:2603.18534, the real document last. Deviation: end tokens stay between the
    documents.
    """
    real = len(lengths) - len(owners)
    runs: list[list[int]] = []
    room = 0
    last_d1 = -1
    for synthetic in np.argsort(owners, kind="stable").tolist():
        d1 = int(owners[synthetic])
        doc = real + synthetic
        # a full run is followed by another of the same d1, which brings the real document again
        if d1 != last_d1 or lengths[doc] > room:
            runs.append([d1])
            room = seq_len - int(lengths[d1])
            last_d1 = d1
        runs[-1].insert(-1, doc)
        room -= int(lengths[doc])

    def order(epoch: int) -> np.ndarray:
        docs: list[int] = []
        for run in rng(seed, stream, epoch).permutation(len(runs)).tolist():
            docs += runs[run]
        return np.array(docs, np.int64)

    return order


class Stream:
    """All documents in the order of each epoch, end to end, for ever.

    Position 0 is the first token of epoch 0, and `num_tokens` are in an epoch.
    """

    def __init__(self, tokens: Tokens, order: Order) -> None:
        self.tokens = tokens
        self._documents = order
        # two epochs: a read may begin in one and end in the next
        self._epoch: Callable[[int], tuple[np.ndarray, np.ndarray]] = lru_cache(maxsize=2)(
            self._lay_out
        )
        _, bounds = self._epoch(0)
        self.num_tokens = int(bounds[-1])

    def _lay_out(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The documents of an epoch, and where each begins and the last one ends."""
        order = self._documents(epoch)
        ends = np.cumsum(self.tokens.lengths[order])
        return order, np.concatenate(([0], ends))

    def _find(self, position: int) -> tuple[int, int]:
        """The document at a position, and how many of its tokens come before it."""
        epoch, in_epoch = divmod(position, self.num_tokens)
        order, bounds = self._epoch(epoch)
        slot = int(np.searchsorted(bounds, in_epoch, side="right")) - 1
        return int(order[slot]), in_epoch - int(bounds[slot])

    def read(
        self,
        start: int,
        count: int,
    ) -> Int64[np.ndarray, " token"]:
        """`count` tokens from position `start` on, across documents and epochs."""
        pieces: list[np.ndarray] = []
        while count:
            document, offset = self._find(start)
            piece = self.tokens[document][offset : offset + count]
            pieces.append(piece.astype(np.int64))
            start += len(piece)
            count -= len(piece)
        return np.concatenate(pieces)

    def documents(self, start: int, count: int) -> list[int]:
        """The numbers of the documents in which the tokens `start` to `start + count` lie."""
        documents = []
        while count > 0:
            document, offset = self._find(start)
            documents.append(document)
            left = int(self.tokens.lengths[document]) - offset
            start += left
            count -= left
        return documents

    def of(self, docs: range, tokens: int) -> int:
        """How many of the first `tokens` tokens of epoch 0 lie in these documents."""
        order, bounds = self._epoch(0)
        inside = (order >= docs.start) & (order < docs.stop)
        # of each document what lies before the end: none, a part, or all of it
        read = np.clip(tokens - bounds[:-1], 0, np.diff(bounds))
        return int((read * inside).sum())
