"""Which tokens a step trains on: a pure function of (plan, step).

Resuming a run needs one integer.

`Plan` mixes a real and a synthetic stream row by row, and one of text to replay; which rows are
from which follows from integer arithmetic, so the shares are exact at every step. `PairPlan` packs
pairs for tuning.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int64, Integer

from synthboot.artifacts.model import TokensRead
from synthboot.artifacts.pairs import Related
from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError
from synthboot.lm.streams import Stream, megadocs, packed_pairs, shuffled
from synthboot.rng import rng

IGNORE = -100
"""The target of a token without a loss; what torch's cross-entropy ignores by default."""

PACKED_TOGETHER = 512
"""Pairs of `PairPlan` that are packed as one group."""


def tokens_until_copying(batch_tokens: int) -> float:
    """About how many tokens a language model trains on, at so many a step, before it copies from
    its context: 10^5.7 times the root of a step's tokens, whatever its size.

    A law of larger runs, and one in the mean: over seeds the time is random. It is about plain
    text; tuning on close pairs teaches copying sooner (docs/will-it-work.md).

    Source: arXiv:2511.16893.
    """
    return float(10**5.7 * batch_tokens**0.5)


LEAST_KEPT = 0.8
"""Of what d2 holds, the share that rows should have room for."""

LEAST_CONTEXT = 8
"""Tokens of a document below which it is no use to condition on it."""


Lengths: TypeAlias = int | Integer[np.ndarray, " pair"]
"""Tokens of one document, or of many."""

Row = tuple[np.ndarray, np.ndarray]
"""The inputs and the targets of a row, without padding."""


@dataclass(frozen=True)
class Batch:
    """Rows of one step.

    `targets` is IGNORE where no loss is taken. `segments` numbers what may see each other (0 is
    padding) and `positions` restarts with each; both are None where a row is one run of text.
    """

    inputs: Int64[np.ndarray, "row token"]
    targets: Int64[np.ndarray, "row token"]
    segments: Int64[np.ndarray, "row token"] | None = None
    positions: Int64[np.ndarray, "row token"] | None = None

    def apart(self, multiple: int) -> Batch:
        """The same targets with a row for every segment, longest first.

        For models that cannot keep the segments of one row apart. Rows are padded on the right,
        where no causal model looks, and their number is padded to a multiple of `multiple`.
        """
        if self.segments is None:
            return self
        parts: list[Row] = []
        for inputs, targets, segments in zip(self.inputs, self.targets, self.segments, strict=True):
            for number in np.unique(segments[segments > 0]):
                inside = segments == number
                parts.append((inputs[inside], targets[inside]))
        # longest first, so that a micro-batch has rows of like length and little padding
        parts.sort(key=lambda part: -len(part[0]))

        count = -(-len(parts) // multiple) * multiple
        return Batch(*padded(parts, count))


def padded(
    rows: Sequence[Row],
    count: int,
) -> tuple[Int64[np.ndarray, "row token"], Int64[np.ndarray, "row token"]]:
    """The inputs and targets of `count` rows, padded on the right to the longest of these; those
    that are missing are padding."""
    longest = max(len(inputs) for inputs, _ in rows)
    all_inputs = np.zeros((count, longest), np.int64)
    all_targets = np.full((count, longest), IGNORE, np.int64)
    for row, (inputs, targets) in enumerate(rows):
        all_inputs[row, : len(inputs)] = inputs
        all_targets[row, : len(targets)] = targets
    return all_inputs, all_targets


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


class RowsBySource(NamedTuple):
    """How many rows of a plan are from which text; a row of megadocs is synthetic."""

    real: int
    synthetic: int
    replayed: int


def rows_by_source(
    rows: int,
    share: float,
    replay_share: float,
) -> RowsBySource:
    """So many rows, dealt out by the shares of a plan: each is rounded to whole rows."""
    replayed = round(replay_share * rows)
    synthetic = round(share * (rows - replayed))
    return RowsBySource(rows - replayed - synthetic, synthetic, replayed)


class Plan:
    """The rows of an arm: real text over as many epochs as it takes, synthetic text once.

    Synthetic rows are spread evenly or put first. `train_tokens` is rounded down to whole batches
    and shares to whole rows. Row i of a mixed run is from the synthetic stream where floor(i *
    synthetic_rows / rows) steps up:

        row                              0  1  2  3  4  5  6  7      3 of 8 rows are synthetic
        floor(row * 3 / 8)               0  0  0  1  1  1  2  2
        synthetic, as the next is more   .  .  s  .  .  s  .  s

    - `replay_share` of all rows is taken from `replay` in the same way, over as many epochs as it
      takes; `share` is the synthetic share of the other rows.
    - With `owners`, the d1 of each synthetic document, the synthetic stream is made of megadocs.
      Real text in them counts as real: the stream gets so many rows that their synthetic text is
      `share`.
    - With `pairs` (d1, d2, most similar first) real documents follow each other as in
      `packed_pairs`.
    - `noise` is the share of input tokens that are replaced by random ones of the first
      `vocab_size`; ends are neither replaced nor drawn.
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
        self.seq_len = seq_len
        self.end = end
        self.order = order
        self.packed = document_mask
        self.noise = noise
        self.vocab_size = vocab_size
        self.seed = seed
        self.rows = batch_tokens // seq_len
        self.batch_tokens = self.rows * seq_len
        self.steps = train_tokens // self.batch_tokens

        docs = len(real)
        if pairs is None:
            real_order = shuffled(docs, seed, "plan.real")
        else:
            d1, d2 = pairs
            real_order = packed_pairs(d1, d2, docs, seed, "plan.real")
        self.real = Stream(real, real_order)
        self.replay = self.real
        if replay:
            self.replay = Stream(replay, shuffled(len(replay), seed, "plan.replay"))
        rows = rows_by_source(self.rows * self.steps, share, replay_share)
        self.replay_rows = rows.replayed
        self.own_rows = rows.real + rows.synthetic

        synthetic_rows = rows.synthetic
        if owners is None or synthetic is None:
            # an arm without synthetic text has no row of this stream, but one to count over
            written = synthetic or real
            self.synthetic = Stream(written, shuffled(len(written), seed, "plan.synthetic"))
            self.synthetic_rows = synthetic_rows
            self.real_inside = range(0)  # the real documents of the synthetic stream
        else:
            both = real.joined(synthetic)  # real documents are numbered first
            self.synthetic = Stream(
                both,
                megadocs(owners, both.lengths, seq_len, seed, "plan.synthetic"),
            )
            self.synthetic_rows = self._rows_holding(synthetic_rows * seq_len, docs)
            self.real_inside = range(docs)

    def _rows_holding(self, tokens: int, docs: int) -> int:
        """The fewest rows of the megadocs that hold so many synthetic tokens.

        Raises BudgetError where none do.
        """
        synthetic = range(docs, len(self.synthetic.tokens))

        def held(rows: int) -> int:
            return self.synthetic.of(synthetic, rows * self.seq_len)

        whole_rows = self.synthetic.num_tokens // self.seq_len
        most = min(whole_rows, self.own_rows)
        fewest = bisect.bisect_left(range(most), tokens, key=held)
        # less than a row short is rounding, as everywhere
        if held(most) < tokens - self.seq_len:
            raise BudgetError(
                f"pretrain: megadocs hold {held(most):,} synthetic tokens in the {most:,} rows "
                f"there are, {tokens:,} are asked for; lower the arm's share: every run of "
                f"synthetic documents brings its real one along"
            )
        return fewest

    def batch(self, step: int) -> Batch:
        """The rows of a step.

        A row's first input is the token before it, so every token is a target exactly once.
        """
        tokens = self.read(step)
        inputs = tokens[:, :-1]
        targets = tokens[:, 1:]
        starts = inputs == self.end  # a document is read after the end of the one before it

        if self.noise:
            random = rng(self.seed, "plan.noise", step)
            # ends stay: noise must not hide where documents begin
            replaced = (random.random(inputs.shape) < self.noise) & ~starts
            # one number fewer, and those from `end` on moved up by one: `end` itself never comes
            random_tokens = random.integers(self.vocab_size - 1, size=inputs.shape)
            random_tokens += random_tokens >= self.end
            inputs = np.where(replaced, random_tokens, inputs)
        if not self.packed:
            return Batch(inputs, targets)

        segments, positions = _by_document(starts)
        return Batch(inputs, targets, segments, positions)

    def read(self, step: int) -> Int64[np.ndarray, "row token"]:
        """The text of a step, without noise: seq_len + 1 tokens a row, the one before its first
        target and its targets."""
        rows = []
        for row in range(step * self.rows, (step + 1) * self.rows):
            kind, start = self.source(row)
            rows.append(_read_after(self._stream(kind), start, self.seq_len, self.end))
        return np.stack(rows)

    def describe(self, step: int) -> str:
        """The documents that a step reads, in words."""
        read: dict[str, list[int]] = {"real": [], "synthetic": [], "replayed": []}
        for row in range(step * self.rows, (step + 1) * self.rows):
            kind, start = self.source(row)
            for doc in self._stream(kind).documents(start, self.seq_len):
                if kind == "synthetic" and doc in self.real_inside:
                    read["real"].append(doc)
                elif kind == "synthetic":
                    # a megadoc stream numbers its synthetic documents after the real ones
                    read["synthetic"].append(doc - self.real_inside.stop)
                else:
                    read[kind].append(doc)

        parts = []
        for kind, docs in read.items():
            if docs:
                numbers = ", ".join(map(str, sorted(set(docs))))
                parts.append(f"{kind} documents {numbers}")
        return " and ".join(parts)

    def source(self, row: int) -> tuple[str, int]:
        """Which stream a row is from, and at which token of it its first target lies."""
        replayed, is_replayed = _spread(row, self.replay_rows, self.rows * self.steps)
        if is_replayed:
            return "replayed", replayed * self.seq_len

        # from here on rows are counted without the replayed ones
        row -= replayed
        before, is_synthetic = self._synthetic_before(row)
        if is_synthetic:
            return "synthetic", before * self.seq_len
        return "real", (row - before) * self.seq_len

    def _synthetic_before(self, row: int) -> tuple[int, bool]:
        """How many synthetic rows come before a row, and whether it is one."""
        if self.order == "synthetic_first":
            return min(row, self.synthetic_rows), row < self.synthetic_rows
        return _spread(row, self.synthetic_rows, self.own_rows)

    def _stream(self, kind: str) -> Stream:
        streams = {
            "real": self.real,
            "synthetic": self.synthetic,
            "replayed": self.replay,
        }
        return streams[kind]

    def sources(self, steps: int) -> dict[str, float]:
        """Tokens of each stream in the first `steps` steps; megadocs count as synthetic here."""
        rows = steps * self.rows
        replayed, _ = _spread(rows, self.replay_rows, self.rows * self.steps)
        own = rows - replayed
        synthetic, _ = self._synthetic_before(own)
        return {
            "real_tokens": (own - synthetic) * self.seq_len,
            "synthetic_tokens": synthetic * self.seq_len,
            "replayed_tokens": replayed * self.seq_len,
        }

    def token_counts(self) -> TokensRead:
        """Tokens by source, and epochs over each, over the whole run."""
        # what is read of the synthetic stream, and the real text that megadocs hold of it
        stream_tokens = self.synthetic_rows * self.seq_len
        inside = 0
        if self.real_inside:
            inside = self.synthetic.of(self.real_inside, stream_tokens)

        real = self.own_rows * self.seq_len - stream_tokens + inside
        replayed = self.replay_rows * self.seq_len
        synthetic_epochs = stream_tokens / self.synthetic.num_tokens if stream_tokens else 0.0
        return TokensRead(
            steps=self.steps,
            batch_tokens=self.batch_tokens,
            train_tokens=self.steps * self.batch_tokens,
            real_tokens=real,
            unique_real_tokens=self.real.tokens.num_tokens,
            real_epochs=real / self.real.tokens.num_tokens,
            synthetic_tokens=stream_tokens - inside,
            synthetic_epochs=synthetic_epochs,
            replayed_tokens=replayed,
            replayed_epochs=replayed / self.replay.num_tokens,
        )


def _spread(
    row: int,
    chosen: int,
    rows: int,
) -> tuple[int, bool]:
    """With `chosen` of `rows` spread evenly: how many come before a row, and whether it is one."""
    before = row * chosen // rows
    through = (row + 1) * chosen // rows
    return before, through > before


def _by_document(
    starts: Bool[np.ndarray, "row token"],
) -> tuple[Int64[np.ndarray, "row token"], Int64[np.ndarray, "row token"]]:
    """Segments and positions that keep documents apart, from where they start."""
    # positions count from the last document start at or before each token
    columns = np.broadcast_to(np.arange(starts.shape[1]), starts.shape)
    last_start = np.maximum.accumulate(
        np.where(starts, columns, 0),
        axis=1,
    )
    return 1 + np.cumsum(starts, axis=1), columns - last_start


def _read_after(
    stream: Stream,
    start: int,
    seq_len: int,
    end: int,
) -> Int64[np.ndarray, " token"]:
    """A row of a stream, (seq_len + 1): the token before its first target, and its targets."""
    if start == 0:  # nothing is before the first token: it is read after an end
        return np.concatenate(([end], stream.read(0, seq_len)))
    return stream.read(start - 1, seq_len + 1)


def d1_room(seq_len: int, share: float) -> int:
    """The tokens of d1 that a row always has room for."""
    return int((seq_len - 1) * share)


def context_room(seq_len: int, share: float, contexts: int) -> int:
    """The tokens that each of several d1 has of d1's room, separators taken off."""
    return (d1_room(seq_len, share) - (contexts - 1)) // contexts


@dataclass(frozen=True)
class PairForm:
    """How a pair stands in a row of `seq_len` tokens: `end`, d1, `separator`, d2.

    d1 is entitled to `d1_share` of the row, d2 to the rest. Without `separator` there is no d1: d2
    stands after an end, as any document.
    """

    seq_len: int
    d1_share: float
    end: int
    separator: int | None

    @property
    def d1_room(self) -> int:
        """The tokens of d1 that a row always has room for."""
        return d1_room(self.seq_len, self.d1_share)


def joined_contexts(
    documents: Sequence[Integer[np.ndarray, " _"]],
    form: PairForm,
) -> Integer[np.ndarray, " token"]:
    """Several d1 as one: their heads, separated, closed as the last one is.

    Each is cut to an equal part of d1's room, whatever the others leave of theirs; a single one
    stays whole. The last stands next to d2 as a single d1 does, since what is to be copied is found
    the better the nearer it is (arXiv:2307.03172): so the most similar comes last. A form without
    separator has no d1, and nothing is joined.
    """
    if len(documents) == 1 or form.separator is None:
        return documents[-1]
    room = context_room(form.seq_len, form.d1_share, len(documents))
    pieces: list[np.ndarray] = []
    for document in documents:
        pieces += [document[:-1][:room].astype(np.int64), np.array([form.separator])]
    pieces[-1] = documents[-1][-1:].astype(np.int64)
    return np.concatenate(pieces)


def cut_pair(
    d1: Lengths,
    d2: Lengths,
    form: PairForm,
) -> tuple[Any, Any]:
    """How many tokens of d1 and d2 (its end included) fit a row of end + d1 + separator + d2; of
    one pair or, as arrays, of many.

    The heads of both are kept. What one leaves of its part, the other may use.
    """
    # a row's targets are its inputs shifted by one, so d2's last token is no input
    room = form.seq_len - 1
    first = np.minimum(d1, np.maximum(form.d1_room, room - d2))
    return first, np.minimum(d2, room - first)


def pair_row(
    d1: Integer[np.ndarray, " a"],
    d2: Integer[np.ndarray, " b"],
    form: PairForm,
) -> tuple[Int64[np.ndarray, " token"], Int64[np.ndarray, " token"]]:
    """Inputs and targets of one pair, at most `seq_len` long; the loss is on d2 and its end alone.

    Both documents come closed by `end`; d1 loses it, and a d2 cut short keeps no end that it did
    not reach.
    """
    if form.separator is None:
        alone = d2[: form.seq_len].astype(np.int64)
        return np.concatenate(([form.end], alone[:-1])), alone
    first, second = cut_pair(len(d1) - 1, len(d2), form)
    pieces = ([form.end], d1[:first], [form.separator], d2[:second])
    tokens = np.concatenate(pieces).astype(np.int64)
    targets = tokens[1:].copy()
    # d1 and the separator are given: only what comes after is learned
    targets[: len(targets) - second] = IGNORE
    return tokens[:-1], targets


def pair_prompt(d1: Integer[np.ndarray, " a"], form: PairForm) -> tuple[int, ...]:
    """What a d2 is sampled after: what stands before it in `pair_row`, where d1 has no more than
    its own room. d1 comes closed by `end`, and loses it."""
    if form.separator is None:
        return (form.end,)
    head = d1[:-1][: form.d1_room]
    return (form.end, *head.tolist(), form.separator)


class PairPlan:
    """Pairs packed into rows of `seq_len`, several to a row, none seeing another.

    They are shuffled anew in every epoch. Packing is best-fit by falling length within groups of
    `PACKED_TOGETHER` shuffled pairs. The last rows of an epoch that do not fill a batch are filled
    from the next.

    - Where the form has no d1, every d2 is seen alone, as often as it has pairs.
    - With `contexts` above one, up to that many d1 stand before d2: other d1 that these pairs have
      of it, then d1 itself.
    - `plain_share` of all rows, spread evenly, holds the documents `plain` end to end, each seen
      alone after an end and learned as a whole. The other rows hold pairs as they would without.
    """

    packed = True

    def __init__(
        self,
        first: Tokens,
        d1: Sequence[int],
        d2: Sequence[int],
        form: PairForm,
        *,
        batch_tokens: int,
        tokens: int,
        seed: int,
        contexts: int = 1,
        plain_share: float = 0.0,
        plain: Int64[np.ndarray, " doc"] | None = None,
    ) -> None:
        self.tokens = first
        self.d1 = np.asarray(d1, np.int64)
        self.d2 = np.asarray(d2, np.int64)
        self.form = form
        self.seq_len = form.seq_len
        self.seed = seed
        self.rows = max(1, batch_tokens // self.seq_len)
        self.batch_tokens = self.rows * self.seq_len
        self.steps = max(1, tokens // self.batch_tokens)

        self.contexts = 1 if form.separator is None else contexts
        self.related = Related.of(self.d1, self.d2)

        self.plain_rows = 0
        if plain is not None and plain_share:
            docs = plain  # a name of its own: what is None is no array
            self.plain_rows = round(plain_share * self.rows * self.steps)
            self.plain = Stream(
                first, lambda epoch: rng(seed, "tune.plain", epoch).permutation(docs)
            )

        # the tokens that each pair takes of a row, an end and a separator less d2's last included
        d2_lengths = first.lengths[self.d2]
        if form.separator is None:
            d2_kept = np.minimum(d2_lengths, self.seq_len)
            self.lengths = d2_kept
        else:
            d1_lengths = first.lengths[self.d1]
            if self.contexts > 1:
                given = [len(self._given(pair)) for pair in range(len(self.d1))]
                d1_lengths = np.array(given, np.int64)
            d1_kept, d2_kept = cut_pair(d1_lengths - 1, d2_lengths, form)
            self.lengths = 1 + d1_kept + d2_kept
        # the share of what d2 holds that rows have room for
        self.kept_share = float(d2_kept.sum() / max(1, d2_lengths.sum()))

        # the pairs of each row of an epoch; a batch may lie in two, and packing is not done again
        # for every batch
        self.row_pairs: Callable[[int], list[list[int]]] = lru_cache(maxsize=2)(self._pack)
        self._starts = [0]

    def rows_per_epoch(self) -> int:
        """Rows of the first epoch; others differ by a few."""
        return len(self.row_pairs(0))

    def _pack(self, epoch: int) -> list[list[int]]:
        """The pairs of each row of an epoch."""
        order = rng(self.seed, "tune.pairs", epoch).permutation(len(self.d1))
        rows: list[list[int]] = []
        # groups bound the work of a pair, and leave every part of the epoch pairs of every length
        for start in range(0, len(order), PACKED_TOGETHER):
            group = order[start : start + PACKED_TOGETHER].tolist()
            rows += self._best_fit(sorted(group, key=lambda pair: -self.lengths[pair]))

        # shuffled once more: the rows of a group stand by falling length
        shuffle = rng(self.seed, "tune.rows", epoch).permutation(len(rows))
        return [rows[i] for i in shuffle]

    def _best_fit(self, pairs: list[int]) -> list[list[int]]:
        """Rows of these pairs, longest first, each in the fullest row that has room for it."""
        rows: list[list[int]] = []
        rooms: list[tuple[int, int]] = []  # (free tokens, number) of each row, fewest free first
        for pair in pairs:
            size = int(self.lengths[pair])
            fit = bisect.bisect_left(rooms, (size, -1))
            if fit < len(rooms):
                room, row = rooms.pop(fit)
            else:
                room = self.seq_len
                row = len(rows)
                rows.append([])
            rows[row].append(pair)
            bisect.insort(rooms, (room - size, row))
        return rows

    def batch(self, step: int) -> Batch:
        """The rows of a step."""
        shape = (self.rows, self.seq_len)
        inputs = np.full(shape, self.form.end, np.int64)
        targets = np.full(shape, IGNORE, np.int64)
        segments = np.zeros(shape, np.int64)
        positions = np.zeros(shape, np.int64)
        for row in range(self.rows):
            number, is_plain = self._source(step * self.rows + row)
            if is_plain:
                tokens = _read_after(self.plain, number * self.seq_len, self.seq_len, self.form.end)
                inputs[row] = tokens[:-1]
                targets[row] = tokens[1:]
                starts = inputs[row : row + 1] == self.form.end
                segments[row], positions[row] = _by_document(starts)
                continue
            filled = 0
            for segment, pair in enumerate(self._members(number), 1):
                d2 = self.tokens[int(self.d2[pair])]
                x, y = pair_row(self._given(pair), d2, self.form)
                columns = slice(filled, filled + len(x))
                inputs[row, columns] = x
                targets[row, columns] = y
                segments[row, columns] = segment
                positions[row, columns] = np.arange(len(x))
                filled += len(x)
        return Batch(inputs, targets, segments, positions)

    def _given(self, pair: int) -> Integer[np.ndarray, " token"]:
        """What stands before a pair's d2: its d1, after others if there are to be several."""
        d1 = int(self.d1[pair])
        if self.contexts == 1:
            return self.tokens[d1]
        docs = self.related.around(d1, int(self.d2[pair]), self.contexts)
        return joined_contexts([self.tokens[doc] for doc in docs], self.form)

    def describe(self, step: int) -> str:
        """What a step reads: pairs, as d1 > d2, and plain documents."""
        words = []
        documents = []
        for row in range(step * self.rows, (step + 1) * self.rows):
            number, is_plain = self._source(row)
            if is_plain:
                documents += self.plain.documents(number * self.seq_len, self.seq_len)
                continue
            for pair in self._members(number):
                words.append(f"{self.d1[pair]} > {self.d2[pair]}")
        parts = []
        if words:
            parts.append("pairs " + ", ".join(words))
        if documents:
            parts.append("documents " + ", ".join(map(str, documents)))
        return " and ".join(parts)

    def sources(self, steps: int) -> dict[str, float]:
        """Tokens of packed pairs, padding included, and of plain documents."""
        plain, _ = _spread(steps * self.rows, self.plain_rows, self.rows * self.steps)
        tokens: dict[str, float] = {"pair_tokens": steps * self.batch_tokens - plain * self.seq_len}
        if self.plain_rows:
            tokens["plain_tokens"] = plain * self.seq_len
        return tokens

    def _source(self, row: int) -> tuple[int, bool]:
        """Which of the plain rows or of those of pairs a row is, and whether it is plain."""
        before, is_plain = _spread(row, self.plain_rows, self.rows * self.steps)
        return (before, True) if is_plain else (row - before, False)

    def _members(self, row: int) -> list[int]:
        """The pairs of a row of pairs, counted over all epochs."""
        # `_starts[e]` is the first row of epoch e: epochs differ in length, so each is packed once
        # to know where the next begins
        while row >= self._starts[-1]:
            last = len(self._starts) - 1
            self._starts.append(self._starts[-1] + len(self.row_pairs(last)))
        epoch = bisect.bisect_right(self._starts, row) - 1
        return self.row_pairs(epoch)[row - self._starts[epoch]]
