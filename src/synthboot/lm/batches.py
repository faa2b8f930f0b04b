"""Which tokens a step trains on: a pure function of (plan, step), so that resuming needs one integer.

`Plan` mixes a real and a synthetic stream row by row, and one of text to replay; which rows are from which follows from
integer arithmetic, so the shares are exact at every step. `PairPlan` packs pairs for tuning.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Integer

from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError
from synthboot.lm.streams import Stream, megadocs, shuffled, walk

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """Rows of one step. `targets` is IGNORE where no loss is taken; `segments` numbers what may see each other (0 is
    padding) and `positions` restarts with each; both are None where a row is one run of text."""

    inputs: Int64[np.ndarray, "row token"]
    targets: Int64[np.ndarray, "row token"]
    segments: Int64[np.ndarray, "row token"] | None = None
    positions: Int64[np.ndarray, "row token"] | None = None

    def apart(self, multiple: int) -> Batch:
        """The same targets, every segment in a row of its own, longest first, for models that cannot keep the segments of
        one row apart. Rows are filled up on the right, where no causal model looks, their number to a multiple."""
        if self.segments is None:
            return self
        parts = [
            (self.inputs[row, segment == number], self.targets[row, segment == number])
            for row, segment in enumerate(self.segments)
            for number in np.unique(segment[segment > 0])
        ]
        parts.sort(key=lambda part: -len(part[0]))
        shape = (-(-len(parts) // multiple) * multiple, len(parts[0][0]))
        inputs, targets = np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64)
        for row, (x, y) in enumerate(parts):
            inputs[row, : len(x)], targets[row, : len(y)] = x, y
        return Batch(inputs, targets)


@runtime_checkable
class Batches(Protocol):
    """What the training loop needs of its data."""

    steps: int
    batch_tokens: int
    seq_len: int
    packed: bool
    """Whether rows hold segments that must not see each other."""

    def batch(self, step: int) -> Batch:
        """The rows of a step, counted from 0."""
        ...

    def describe(self, step: int) -> str:
        """What a step reads, in words."""
        ...

    def sources(self, steps: int) -> dict[str, float]:
        """Tokens read by source in the first `steps` steps."""
        ...


class Plan:
    """The rows of an arm: real text on as many passes as it takes, synthetic text once, spread evenly or put first.

    `train_tokens` is rounded down to whole batches and shares to whole rows. Row i of a mixed run is from the synthetic
    stream where floor(i * synthetic_rows / rows) steps up. A `replay_share` of all rows is taken from `replay` in the same
    way, on as many passes as it takes, and `share` is one of the others. With `owners`, the d1 of each synthetic document,
    the synthetic stream is one of megadocs, whose real text counts as real: it gets as many rows as hold `share` of synthetic
    text. With `pairs` (d1, d2, most similar first) real documents follow each other as `walk` says. `noise` is the share of
    input tokens that are replaced by random ones of the first `vocab_size`, but for `end`.
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
        owners: np.ndarray | None = None,
        pairs: tuple[np.ndarray, np.ndarray] | None = None,
        noise: float = 0.0,
        vocab_size: int = 0,
        replay: Tokens | None = None,
        replay_share: float = 0.0,
    ) -> None:
        self.seq_len, self.end, self.order, self.packed = seq_len, end, order, document_mask
        self.noise, self.vocab_size, self.seed = noise, vocab_size, seed
        self.rows = batch_tokens // seq_len
        self.batch_tokens = self.rows * seq_len
        self.steps = train_tokens // self.batch_tokens
        docs = len(real)
        self.real = Stream(
            real, shuffled(docs, (seed, 1)) if pairs is None else walk(*pairs, docs, (seed, 1))
        )
        self.replay = Stream(replay, shuffled(len(replay), (seed, 3))) if replay else self.real
        self.replay_rows = round(replay_share * self.rows * self.steps)
        self.own_rows = self.rows * self.steps - self.replay_rows
        wanted = round(share * self.own_rows)
        if owners is None or synthetic is None:
            written = synthetic or real
            self.synthetic = Stream(written, shuffled(len(written), (seed, 2)))
            self.synthetic_rows, self.real_inside = wanted, range(0)
        else:
            both = real.joined(synthetic)
            self.synthetic = Stream(both, megadocs(owners, both.lengths, seq_len, (seed, 2)))
            self.synthetic_rows, self.real_inside = (
                self._rows_holding(wanted * seq_len, docs),
                range(docs),
            )

    def _rows_holding(self, tokens: int, docs: int) -> int:
        """The fewest rows of the megadocs that hold so many synthetic tokens. Raises BudgetError where none do."""
        longest, synthetic = (
            self.synthetic.num_tokens // self.seq_len,
            range(docs, len(self.synthetic.tokens)),
        )
        most = min(longest, self.own_rows)
        found = bisect.bisect_left(
            range(most), tokens, key=lambda n: self.synthetic.of(synthetic, n * self.seq_len)
        )
        held = self.synthetic.of(synthetic, most * self.seq_len)
        if held < tokens - self.seq_len:
            raise BudgetError(
                f"pretrain: megadocs hold {held:,} synthetic tokens in the {most:,} rows there are, {tokens:,} are asked for; "
                f"lower the arm's share: every run of synthetic documents brings its real one along"
            )
        return found

    def batch(self, step: int) -> Batch:
        """The rows of a step. A row's first input is the token before it, so every token is a target exactly once."""
        tokens = np.stack([self._row(i) for i in range(step * self.rows, (step + 1) * self.rows)])
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        starts = inputs == self.end  # a document is read after the end of the one before it
        if self.noise:
            rng = np.random.default_rng([self.seed, 8, step])
            struck = (rng.random(inputs.shape) < self.noise) & ~starts
            others = rng.integers(self.vocab_size - 1, size=inputs.shape)
            inputs = np.where(struck, others + (others >= self.end), inputs)
        if not self.packed:
            return Batch(inputs, targets)
        places = np.broadcast_to(np.arange(self.seq_len), inputs.shape)
        positions = places - np.maximum.accumulate(np.where(starts, places, 0), axis=1)
        return Batch(inputs, targets, 1 + np.cumsum(starts, axis=1), positions)

    def describe(self, step: int) -> str:
        """The documents that a step reads."""
        found: dict[str, list[int]] = {"real": [], "synthetic": [], "replayed": []}
        for row in range(step * self.rows, (step + 1) * self.rows):
            kind, start = self._place(row)
            read = self._stream(kind).documents(start, self.seq_len)
            if kind == "synthetic" and self.real_inside:
                found["real"] += [doc for doc in read if doc in self.real_inside]
                read = [doc - self.real_inside.stop for doc in read if doc not in self.real_inside]
            found[kind] += read
        parts = [
            f"{kind} documents {', '.join(map(str, sorted(set(docs))))}"
            for kind, docs in found.items()
            if docs
        ]
        return " and ".join(parts)

    def _place(self, row: int) -> tuple[str, int]:
        """Which stream a row is from, and where in it its first target lies."""
        replayed, replay = _taken(row, self.replay_rows, self.rows * self.steps)
        if replay:
            return "replayed", replayed * self.seq_len
        row -= replayed
        if self.order == "synthetic_first":
            before, synthetic = min(row, self.synthetic_rows), row < self.synthetic_rows
        else:
            before, synthetic = _taken(row, self.synthetic_rows, self.own_rows)
        return (
            ("synthetic", before * self.seq_len)
            if synthetic
            else ("real", (row - before) * self.seq_len)
        )

    def _row(self, row: int) -> np.ndarray:
        kind, start = self._place(row)
        stream = self._stream(kind)
        if start == 0:
            return np.concatenate(([self.end], stream.read(0, self.seq_len)))
        return stream.read(start - 1, self.seq_len + 1)

    def _stream(self, kind: str) -> Stream:
        return {"real": self.real, "synthetic": self.synthetic, "replayed": self.replay}[kind]

    def sources(self, steps: int) -> dict[str, float]:
        """Tokens of each stream in the first `steps` steps; megadocs count as synthetic here."""
        rows = steps * self.rows
        replayed = _taken(rows, self.replay_rows, self.rows * self.steps)[0]
        own = rows - replayed
        if self.order == "synthetic_first":
            synthetic = min(own, self.synthetic_rows)
        else:
            synthetic = _taken(own, self.synthetic_rows, self.own_rows)[0]
        found = {"real": own - synthetic, "synthetic": synthetic, "replayed": replayed}
        return {f"{kind}_tokens": count * self.seq_len for kind, count in found.items()}

    def ledger(self) -> dict[str, float]:
        """Tokens by source, and passes over each, over the whole run."""
        read = self.synthetic_rows * self.seq_len
        inside = self.synthetic.of(self.real_inside, read) if self.real_inside else 0
        replayed = self.replay_rows * self.seq_len
        synthetic, real = read - inside, self.own_rows * self.seq_len - read + inside
        return {
            "steps": self.steps,
            "batch_tokens": self.batch_tokens,
            "train_tokens": self.steps * self.batch_tokens,
            "real_tokens": real,
            "unique_real_tokens": self.real.tokens.num_tokens,
            "real_epochs": real / self.real.tokens.num_tokens,
            "synthetic_tokens": synthetic,
            "synthetic_epochs": read / self.synthetic.num_tokens if read else 0.0,
            "replayed_tokens": replayed,
            "replayed_epochs": replayed / self.replay.num_tokens,
        }


def _taken(row: int, some: int, rows: int) -> tuple[int, bool]:
    """With `some` of `rows` spread evenly: how many come before a row, and whether it is one of them."""
    before = row * some // rows
    return before, (row + 1) * some // rows > before


def d1_room(window: int, share: float) -> int:
    """The tokens of d1 that a window always has room for."""
    return int((window - 1) * share)


def cut_pair(d1: int, d2: int, window: int, share: float) -> tuple[int, int]:
    """How many tokens of d1 and d2 (its end included) fit a window of end + d1 + separator + d2, heads kept.

    d1 is entitled to `share` of it, d2 to the rest; what one leaves, the other may use.
    """
    room = (
        window - 1
    )  # the row's targets are its inputs shifted by one: end + d1 + separator + d2 without its last
    first = min(d1, max(d1_room(window, share), room - d2))
    return first, min(d2, room - first)


def pair_row(
    d1: Integer[np.ndarray, " a"],
    d2: Integer[np.ndarray, " b"],
    window: int,
    share: float,
    end: int,
    separator: int,
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

    packed = True

    def __init__(
        self, first: Tokens, d1: Sequence[int], d2: Sequence[int], *, seq_len: int, d1_share: float, batch_tokens: int,
        tokens: int, seed: int, end: int, separator: int,
    ) -> None:  # fmt: skip
        self.tokens, self.d1, self.d2 = first, np.asarray(d1, np.int64), np.asarray(d2, np.int64)
        self.seq_len, self.d1_share, self.seed, self.end, self.separator = (
            seq_len,
            d1_share,
            seed,
            end,
            separator,
        )
        self.rows = max(1, batch_tokens // seq_len)
        self.batch_tokens = self.rows * seq_len
        self.steps = max(1, tokens // self.batch_tokens)
        lengths = first.lengths
        sizes = zip(lengths[self.d1].tolist(), lengths[self.d2].tolist(), strict=True)
        cuts = [cut_pair(a - 1, b, seq_len, d1_share) for a, b in sizes]
        self.lengths = np.array([1 + a + b for a, b in cuts], np.int64)
        self._packed: Callable[[int], list[list[int]]] = lru_cache(maxsize=2)(self._pack)
        self._starts = [0]

    def rows_per_epoch(self) -> int:
        """Rows of the first pass; others differ by a few."""
        return len(self._packed(0))

    def _pack(self, number: int) -> list[list[int]]:
        order = np.random.default_rng([self.seed, 3, number]).permutation(len(self.d1))
        rows: list[list[int]] = []
        for start in range(0, len(order), 512):
            members: list[list[int]] = []
            rooms: list[
                tuple[int, int]
            ] = []  # what each open row has room for and its number, least room first
            for pair in sorted(order[start : start + 512].tolist(), key=lambda p: -self.lengths[p]):
                size = int(self.lengths[pair])
                fit = bisect.bisect_left(rooms, (size, -1))
                room, row = rooms.pop(fit) if fit < len(rooms) else (self.seq_len, len(members))
                if row == len(members):
                    members.append([])
                members[row].append(pair)
                bisect.insort(rooms, (room - size, row))
            rows += members
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

    def sources(self, steps: int) -> dict[str, float]:
        """Tokens of packed pairs, padding included."""
        return {"pair_tokens": steps * self.batch_tokens}

    def _members(self, row: int) -> list[int]:
        """The pairs of a row, counted over all passes."""
        while row >= self._starts[-1]:  # how many rows the passes before have is found once
            self._starts.append(self._starts[-1] + len(self._packed(len(self._starts) - 1)))
        number = bisect.bisect_right(self._starts, row) - 1
        return self._packed(number)[row - self._starts[number]]
