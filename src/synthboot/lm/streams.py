"""A corpus' documents end to end, for ever, in an order that a pass' number decides: shuffled, or as `walk` and `megadocs`
say. A `Stream` is read from any position.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jaxtyping import Int64, Integer

from synthboot.data.tokens import Tokens

Order = Callable[[int], Int64[np.ndarray, " place"]]
"""Which documents a pass reads, in order: a pure function of its number. All passes have as many tokens."""


def shuffled(docs: int, seed: tuple[int, ...]) -> Order:
    """All documents, in another random order on every pass."""
    return lambda number: np.random.default_rng([*seed, number]).permutation(docs)


def walk(
    d1: Integer[np.ndarray, " pair"],
    d2: Integer[np.ndarray, " pair"],
    docs: int,
    seed: tuple[int, ...],
) -> Order:
    """All documents, each followed by the first of its `d2` not yet read (pairs come most similar first), or where there is
    none by the next in a random order, another on every pass.

    Source: arXiv:2310.10638. Deviation: a walk starts at random, not where neighbours are fewest, so that passes differ.
    """
    by_d1 = np.argsort(d1, kind="stable")
    bounds = np.searchsorted(d1[by_d1], np.arange(docs + 1))
    near = d2[by_d1]

    def order(number: int) -> np.ndarray:
        read, found = np.zeros(docs, bool), []
        for start in np.random.default_rng([*seed, number]).permutation(docs).tolist():
            doc = start
            while not read[doc]:
                read[doc] = True
                found.append(doc)
                doc = next(
                    (int(n) for n in near[bounds[doc] : bounds[doc + 1]] if not read[n]), doc
                )
        return np.array(found, np.int64)

    return order


def megadocs(
    owners: Integer[np.ndarray, " synthetic"],
    lengths: Int64[np.ndarray, " doc"],
    window: int,
    seed: tuple[int, ...],
) -> Order:
    """Every synthetic document once, as many of one d1 as fit a window with it right before it; the runs in random order.

    Documents are numbered real ones first, as `lengths` has them; `owners` names the d1 of each synthetic one.
    Source: arXiv:2603.18534, the real document last. Deviation: end tokens stay between the documents.
    """
    real = len(lengths) - len(owners)
    runs: list[list[int]] = []
    room, before = 0, -1
    for place in np.argsort(owners, kind="stable").tolist():
        d1, doc = int(owners[place]), real + place
        if d1 != before or lengths[doc] > room:
            runs.append([d1])
            room, before = window - int(lengths[d1]), d1
        runs[-1].insert(-1, doc)
        room -= int(lengths[doc])
    return lambda number: np.array(
        [
            doc
            for run in np.random.default_rng([*seed, number]).permutation(len(runs)).tolist()
            for doc in runs[run]
        ],
        np.int64,
    )


class Stream:
    """All documents in the order of each pass, end to end, for ever; position 0 is the first token of pass 0, and
    `num_tokens` are in a pass."""

    def __init__(self, tokens: Tokens, order: Order) -> None:
        self.tokens, self._documents = tokens, order
        self._order: Callable[[int], tuple[np.ndarray, np.ndarray]] = lru_cache(maxsize=2)(
            self._laid
        )
        self.num_tokens = int(self._order(0)[1][-1])

    def _laid(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        order = self._documents(number)
        return order, np.concatenate(([0], np.cumsum(self.tokens.lengths[order])))

    def read(self, start: int, count: int) -> Int64[np.ndarray, " token"]:
        """`count` tokens from position `start` on, across documents and passes."""
        pieces: list[np.ndarray] = []
        total = self.num_tokens
        while count:
            number, place = divmod(start, total)
            order, bounds = self._order(number)
            slot = int(np.searchsorted(bounds, place, side="right")) - 1
            offset = place - int(bounds[slot])
            piece = self.tokens[int(order[slot])][offset : offset + count]
            pieces.append(piece.astype(np.int64))
            start, count = start + len(piece), count - len(piece)
        return np.concatenate(pieces)

    def documents(self, start: int, count: int) -> list[int]:
        """The numbers of the documents in which the tokens `start` to `start + count` lie."""
        found = []
        while count > 0:
            number, place = divmod(start, self.num_tokens)
            order, bounds = self._order(number)
            slot = int(np.searchsorted(bounds, place, side="right")) - 1
            step = int(bounds[slot + 1]) - place
            found.append(int(order[slot]))
            start, count = start + step, count - step
        return found

    def of(self, docs: range, tokens: int) -> int:
        """How many of the first `tokens` tokens of pass 0 lie in these documents."""
        order, bounds = self._order(0)
        inside = (order >= docs.start) & (order < docs.stop)
        return int((np.clip(tokens - bounds[:-1], 0, np.diff(bounds)) * inside).sum())
