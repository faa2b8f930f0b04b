"""Which tokens a step trains on: a pure function of (plan, step), so that resuming needs one integer.

`Stream` is an endless run of a corpus' documents, shuffled anew on every pass and read from any position. `Plan` mixes a
real and a synthetic stream row by row; which rows are synthetic follows from integer arithmetic, so the shares are exact
at every step. `PairPlan` packs pairs for tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Integer

from synthboot.data.tokens import Tokens

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """Rows of one step. `targets` is IGNORE where no loss is taken; `segments` numbers what may see each other (0 is
    padding) and `positions` restarts with each; both are None where a row is one run of text."""

    inputs: Int64[np.ndarray, "row token"]
    targets: Int64[np.ndarray, "row token"]
    segments: Int64[np.ndarray, "row token"] | None = None
    positions: Int64[np.ndarray, "row token"] | None = None


@runtime_checkable
class Batches(Protocol):
    """What the training loop needs of its data."""

    steps: int
    batch_tokens: int

    def batch(self, step: int) -> Batch:
        """The rows of a step, counted from 0."""
        ...

    def describe(self, step: int) -> str:
        """What a step reads, in words."""
        ...


class Stream:
    """All documents in an order shuffled per pass, end to end, for ever; position 0 is the first token of pass 0."""

    def __init__(self, tokens: Tokens, seed: tuple[int, ...]) -> None:
        self.tokens, self.seed = tokens, seed
        self._order: Callable[[int], tuple[np.ndarray, np.ndarray]] = lru_cache(maxsize=2)(self._shuffle)

    def _shuffle(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.random.default_rng([*self.seed, number]).permutation(len(self.tokens))
        return order, np.concatenate(([0], np.cumsum(self.tokens.lengths[order])))

    def read(self, start: int, count: int) -> Int64[np.ndarray, " token"]:
        """`count` tokens from position `start` on, across documents and passes."""
        pieces: list[np.ndarray] = []
        total = self.tokens.num_tokens
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
            number, place = divmod(start, self.tokens.num_tokens)
            order, bounds = self._order(number)
            slot = int(np.searchsorted(bounds, place, side="right")) - 1
            step = int(bounds[slot + 1]) - place
            found.append(int(order[slot]))
            start, count = start + step, count - step
        return found


class Plan:
    """The rows of an arm: real text on as many passes as it takes, synthetic text once, spread evenly or put first.

    `train_tokens` is rounded down to whole batches and `share` to whole rows. Row i of a mixed run is synthetic where
    floor(i * synthetic_rows / rows) steps up.
    """

    def __init__(
        self,
        real: Tokens,
        synthetic: Tokens | None = None,
        share: float = 0.0,
        *,
        seq_len: int,
        batch_tokens: int,
        train_tokens: int,
        seed: int,
        end: int,
        order: Literal["mixed", "synthetic_first"] = "mixed",
        document_mask: bool = False,
    ) -> None:
        self.seq_len, self.end, self.order, self.document_mask = seq_len, end, order, document_mask
        self.rows = batch_tokens // seq_len
        self.batch_tokens = self.rows * seq_len
        self.steps = train_tokens // self.batch_tokens
        self.synthetic_rows = round(share * self.rows * self.steps)
        self.real, self.synthetic = Stream(real, (seed, 1)), Stream(synthetic or real, (seed, 2))

    def batch(self, step: int) -> Batch:
        """The rows of a step. A row's first input is the token before it, so every token is a target exactly once."""
        tokens = np.stack([self._row(i) for i in range(step * self.rows, (step + 1) * self.rows)])
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        if not self.document_mask:
            return Batch(inputs, targets)
        starts = inputs == self.end  # a document is read after the end of the one before it
        places = np.broadcast_to(np.arange(self.seq_len), inputs.shape)
        positions = places - np.maximum.accumulate(np.where(starts, places, 0), axis=1)
        return Batch(inputs, targets, 1 + np.cumsum(starts, axis=1), positions)

    def describe(self, step: int) -> str:
        """The documents that a step reads."""
        found: dict[str, list[int]] = {"real": [], "synthetic": []}
        for row in range(step * self.rows, (step + 1) * self.rows):
            kind, start = self._place(row)
            found[kind] += (self.synthetic if kind == "synthetic" else self.real).documents(start, self.seq_len)
        parts = [f"{kind} documents {', '.join(map(str, sorted(set(docs))))}" for kind, docs in found.items() if docs]
        return " and ".join(parts)

    def _place(self, row: int) -> tuple[str, int]:
        """Which stream a row is from, and where in it its first target lies."""
        if self.order == "synthetic_first":
            before, synthetic = min(row, self.synthetic_rows), row < self.synthetic_rows
        else:
            total = self.rows * self.steps
            before = row * self.synthetic_rows // total
            synthetic = (row + 1) * self.synthetic_rows // total > before
        return ("synthetic", before * self.seq_len) if synthetic else ("real", (row - before) * self.seq_len)

    def _row(self, row: int) -> np.ndarray:
        kind, start = self._place(row)
        stream = self.synthetic if kind == "synthetic" else self.real
        if start == 0:
            return np.concatenate(([self.end], stream.read(0, self.seq_len)))
        return stream.read(start - 1, self.seq_len + 1)

    def ledger(self) -> dict[str, float]:
        """Tokens by source, and passes over each, over the whole run."""
        synthetic = self.synthetic_rows * self.seq_len
        real = self.steps * self.batch_tokens - synthetic
        return {
            "steps": self.steps,
            "batch_tokens": self.batch_tokens,
            "train_tokens": self.steps * self.batch_tokens,
            "real_tokens": real,
            "unique_real_tokens": self.real.tokens.num_tokens,
            "real_passes": real / self.real.tokens.num_tokens,
            "synthetic_tokens": synthetic,
            "synthetic_passes": synthetic / self.synthetic.tokens.num_tokens if synthetic else 0.0,
        }


def d1_room(window: int, share: float) -> int:
    """The tokens of d1 that a window always has room for."""
    return int((window - 1) * share)


def cut_pair(d1: int, d2: int, window: int, share: float) -> tuple[int, int]:
    """How many tokens of d1 and d2 (its end included) fit a window of end + d1 + separator + d2, heads kept.

    d1 is entitled to `share` of it, d2 to the rest; what one leaves, the other may use.
    """
    room = window - 1  # the row's targets are its inputs shifted by one: end + d1 + separator + d2 without its last
    first = min(d1, max(d1_room(window, share), room - d2))
    return first, min(d2, room - first)


def pair_row(
    d1: Integer[np.ndarray, " a"], d2: Integer[np.ndarray, " b"], window: int, share: float, end: int, separator: int
) -> tuple[Int64[np.ndarray, " token"], Int64[np.ndarray, " token"]]:
    """Inputs and targets of one pair, at most `window` long; the loss is on d2 and its end alone.

    Both documents come closed by `end`; d1 loses it, and a d2 cut short keeps no end that it did not reach.
    """
    first, second = cut_pair(len(d1) - 1, len(d2), window, share)
    tokens = np.concatenate(([end], d1[:first], [separator], d2[:second])).astype(np.int64)
    targets = tokens[1:].copy()
    targets[: len(tokens) - 1 - second] = IGNORE
    return tokens[:-1], targets


class PairPlan:
    """Pairs packed into rows of `seq_len`, several to a row, none seeing another; shuffled anew on every pass.

    Packing is best-fit by falling length within groups of 512 shuffled pairs. The last rows of a pass that do not fill a
    batch are filled from the next.
    """

    def __init__(
        self, first: Tokens, d1: Sequence[int], d2: Sequence[int], *, seq_len: int, d1_share: float, batch_tokens: int,
        tokens: int, seed: int, end: int, separator: int,
    ) -> None:  # fmt: skip
        self.tokens, self.d1, self.d2 = first, np.asarray(d1, np.int64), np.asarray(d2, np.int64)
        self.seq_len, self.d1_share, self.seed, self.end, self.separator = seq_len, d1_share, seed, end, separator
        self.rows = max(1, batch_tokens // seq_len)
        self.batch_tokens = self.rows * seq_len
        self.steps = max(1, tokens // self.batch_tokens)
        lengths = first.lengths
        sizes = zip(lengths[self.d1].tolist(), lengths[self.d2].tolist(), strict=True)
        cuts = [cut_pair(a - 1, b, seq_len, d1_share) for a, b in sizes]
        self.lengths = np.array([1 + a + b for a, b in cuts], np.int64)
        self._packed: Callable[[int], list[list[int]]] = lru_cache(maxsize=2)(self._pack)

    def rows_per_pass(self) -> int:
        """Rows of the first pass; others differ by a few."""
        return len(self._packed(0))

    def _pack(self, number: int) -> list[list[int]]:
        order = np.random.default_rng([self.seed, 3, number]).permutation(len(self.d1))
        rows: list[list[int]] = []
        for start in range(0, len(order), 512):
            open_rows: list[tuple[int, list[int]]] = []
            for pair in sorted(order[start : start + 512].tolist(), key=lambda p: -self.lengths[p]):
                size = int(self.lengths[pair])
                able = [(room, i) for i, (room, _) in enumerate(open_rows) if room >= size]
                fit = min(able)[1] if able else None
                if fit is None:
                    open_rows.append((self.seq_len - size, [pair]))
                else:
                    room, members = open_rows[fit]
                    open_rows[fit] = (room - size, [*members, pair])
            rows += [members for _, members in open_rows]
        shuffle = np.random.default_rng([self.seed, 4, number]).permutation(len(rows))
        return [rows[i] for i in shuffle]

    def batch(self, step: int) -> Batch:
        """The rows of a step."""
        shape = (self.rows, self.seq_len)
        inputs, targets = np.full(shape, self.end, np.int64), np.full(shape, IGNORE, np.int64)
        segments, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for i in range(self.rows):
            place = 0
            for number, pair in enumerate(self._members(step * self.rows + i), 1):
                x, y = pair_row(
                    self.tokens[int(self.d1[pair])], self.tokens[int(self.d2[pair])],
                    self.seq_len, self.d1_share, self.end, self.separator,
                )  # fmt: skip
                part = slice(place, place + len(x))
                inputs[i, part], targets[i, part], segments[i, part] = x, y, number
                positions[i, part] = np.arange(len(x))
                place += len(x)
        return Batch(inputs, targets, segments, positions)

    def describe(self, step: int) -> str:
        """The pairs that a step reads, as d1 > d2."""
        pairs = [p for i in range(self.rows) for p in self._members(step * self.rows + i)]
        return "pairs " + ", ".join(f"{self.d1[p]} > {self.d2[p]}" for p in pairs)

    def _members(self, row: int) -> list[int]:
        number = 0
        while row >= (size := len(self._packed(number))):
            row, number = row - size, number + 1
        return self._packed(number)[row]
