"""What d1 could tell about d2, by counting alone, in seconds: the most to hope for, before a
synthesizer is paid for.

1. count the n-grams of D_pretrain, without its held-out documents,
2. read held-out documents with a mixture of these and of copies from what was read so far,
3. read them once more with two more parts: uni- and bigrams copied from d1.

The gain of 3 over 2 is what d1 is worth to a reader that can do nothing but count and copy; a model
that reads d1 gets about as much, or more where a relation is more than shared words. What 2 pays
is the floor that a language model of this text has to beat.

Weights are fitted by expectation maximization on every other document and measured on the rest,
then the other way round, so that no document is measured by weights that it helped to fit.

Source: Jelinek and Mercer 1980, interpolation; Ney, Essen and Kneser 1994, absolute discounting;
Kuhn and De Mori 1990, the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Integer

from synthboot import statistics
from synthboot.artifacts.pairs import HELDOUT, VALIDATION, Pairs
from synthboot.data.tokens import Tokens
from synthboot.rng import rng

NEAREST = (1, 2, 4)
"""How many d1 of each document are copied from."""

BANDS = 5
"""Parts of equal size, by similarity, for which the gain is given."""

LEAST_DOCS = 20
"""Fewer held-out documents with a d1 say nothing."""

_MOST_DOCS = 1_000
_MOST_DOC_TOKENS = 2_048  # of a document, and of each d1: the head is read
_MOST_COUNTED_TOKENS = 1 << 22  # of D_pretrain: memory is about 60 bytes for each of them
_DISCOUNT = 0.75
_ROUNDS = 200  # of expectation maximization; it stops where a round gains next to nothing
_LEAST_GAIN = 1e-7  # nats per token

Worth = tuple[float, float]
"""A gain in nats per token, and its standard error over documents."""


@dataclass(frozen=True)
class Band:
    """What d1 tells of the documents whose nearest d1 has a similarity from `low` to `high`."""

    low: float
    high: float
    docs: int
    nearest: Worth
    most: Worth


@dataclass(frozen=True)
class Ceiling:
    """What d1 could tell, over `docs` held-out documents of `tokens` in all.

    `loss` is without d1, in nats per token; `worth` the gain by how many of the nearest d1 are
    copied from, `random` by one drawn at random; `d1` how many a document has on average, of the
    most that are asked for. `floor` is the loss without d1 on the validation set as it is: what a
    model's validation loss has to beat.
    """

    docs: int
    tokens: int
    d1: float
    loss: float
    worth: dict[str, Worth]
    random: Worth
    bands: list[Band]
    floor: float

    def sentence(self) -> str:
        """The figures in words."""
        value, error = self.worth[str(NEAREST[0])]
        most, _ = self.worth[str(NEAREST[-1])]
        return (
            f"d1 is worth {value:.3f} +- {error:.3f} nats a token to a count model "
            f"({NEAREST[-1]} nearest {most:.3f}, a random one {self.random[0]:.3f}) "
            f"on {self.docs:,} held-out documents, {self.loss:.3f} without d1"
        )


def ceiling(
    pairs: Pairs,
    corpus: Tokens,
    validation: Tokens,
    vocab_size: int,
    end: int,
    seed: int,
) -> Ceiling | None:
    """What d1 could tell; None where fewer than `LEAST_DOCS` held-out documents have a d1.

    Held-out documents are those of D_pretrain that no pair is tuned on, and the validation set. At
    most 1,000 are read, spread over the similarities, the first 2,048 tokens of each; n-grams are
    counted in the first 4M tokens of D_pretrain. Memory is at most 400 MiB, time about ten seconds.
    """
    held = _held(pairs)
    if len(held) < LEAST_DOCS:
        return None
    sets = {HELDOUT: corpus, VALIDATION: validation}
    hidden = {one.doc for one in held if one.split == HELDOUT}
    counts = _NGrams.of(corpus, hidden, vocab_size, end)

    text = _Text.of([[_head(sets[one.split][one.doc])] for one in held], end)
    sizes = np.bincount(text.doc)
    alone = counts.read(text)
    loss = _losses(alone, text)

    def given(d1: Sequence[Sequence[int]]) -> Float64[np.ndarray, " doc"]:
        copied = _Text.of([[_head(corpus[doc]) for doc in of_doc] for of_doc in d1], end)
        return _losses(np.hstack((alone, counts.copied(copied, text, alone[:, 0]))), text)

    def worth(losses: np.ndarray, docs: np.ndarray) -> Worth:
        gain = statistics.difference(loss[None, docs], losses[None, docs], sizes[docs])
        return gain.value, gain.standard_error

    everything = np.arange(len(held))
    nearest = {k: given([one.d1[:k] for one in held]) for k in NEAREST}
    drawn = rng(seed, "ceiling.random_d1").integers(0, len(corpus), len(held))
    bands = []
    for docs in np.array_split(everything, BANDS):  # most similar first
        bands.append(
            Band(
                low=held[docs[-1]].similarity,
                high=held[docs[0]].similarity,
                docs=len(docs),
                nearest=worth(nearest[NEAREST[0]], docs),
                most=worth(nearest[NEAREST[-1]], docs),
            )
        )

    heads = [[_head(validation[doc])] for doc in range(len(validation))[:_MOST_DOCS]]
    unseen = _Text.of(heads, end)
    floor = _losses(counts.read(unseen), unseen)
    return Ceiling(
        docs=len(held),
        tokens=len(text.token),
        d1=float(np.mean([len(one.d1[: NEAREST[-1]]) for one in held])),
        loss=float(loss.sum() / sizes.sum()),
        worth={str(k): worth(losses, everything) for k, losses in nearest.items()},
        random=worth(given([[int(doc)] for doc in drawn]), everything),
        bands=bands,
        floor=float(floor.sum() / len(unseen.token)),
    )


@dataclass(frozen=True)
class _Held:
    """A held-out document, its d1 (most similar first), and the similarity of the first."""

    split: int
    doc: int
    d1: list[int]
    similarity: float


def _held(pairs: Pairs) -> list[_Held]:
    """The held-out documents that have a d1, most similar first, spread where they are many."""
    by_d2: dict[tuple[int, int], _Held] = {}
    for split in (HELDOUT, VALIDATION):
        for d1, d2, similarity in pairs.only(split):
            # pairs come most similar first, so the first of a d2 is its nearest
            one = by_d2.setdefault((split, d2), _Held(split, d2, [], similarity))
            one.d1.append(d1)
    ranked = sorted(by_d2.values(), key=lambda one: -one.similarity)
    if len(ranked) <= _MOST_DOCS:
        return ranked
    return [ranked[i] for i in np.linspace(0, len(ranked) - 1, _MOST_DOCS).astype(int)]


def _head(document: Integer[np.ndarray, " token"]) -> Int64[np.ndarray, " token"]:
    return document[:_MOST_DOC_TOKENS].astype(np.int64)


@dataclass(frozen=True)
class _Text:
    """Documents end to end: each token, the two before it (`end` before the first of a piece), and
    the number of its document."""

    token: Int64[np.ndarray, " token"]
    previous: Int64[np.ndarray, " token"]
    before: Int64[np.ndarray, " token"]
    doc: Int64[np.ndarray, " token"]

    @staticmethod
    def of(documents: Sequence[Sequence[np.ndarray]], end: int) -> _Text:
        """Each document given in pieces, none of which is read on from the one before."""
        pieces = [piece for document in documents for piece in document]
        owners = [number for number, document in enumerate(documents) for _ in document]
        lengths = np.array([len(piece) for piece in pieces], np.int64)
        token = np.concatenate(pieces).astype(np.int64)

        starts = np.cumsum(lengths) - lengths
        previous = np.concatenate(([end], token[:-1]))
        previous[starts] = end
        before = np.concatenate(([end], previous[:-1]))
        before[starts] = end
        return _Text(token, previous, before, np.repeat(owners, lengths))


@dataclass(frozen=True)
class _Counts:
    """How often each token follows each context: pairs of both as sorted numbers, and how many of
    all lie before each."""

    keys: Int64[np.ndarray, " key"]
    until: Int64[np.ndarray, " key_and_one"]
    vocab_size: int

    @staticmethod
    def of(context: np.ndarray, token: np.ndarray, vocab_size: int) -> _Counts:
        """`context` are numbers of any kind, small enough that times `vocab_size` they fit 63
        bits."""
        keys, counts = np.unique(context * vocab_size + token, return_counts=True)
        return _Counts(keys, np.concatenate(([0], np.cumsum(counts))), vocab_size)

    def after(
        self,
        context: np.ndarray,
        token: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each (context, token): its count, that of the context with any token, and how many
        different tokens follow the context."""
        first = context * self.vocab_size
        low = np.searchsorted(self.keys, first)
        high = np.searchsorted(self.keys, first + self.vocab_size)
        start = np.searchsorted(self.keys, first + token)
        stop = np.searchsorted(self.keys, first + token, side="right")
        until = self.until
        return until[stop] - until[start], until[high] - until[low], high - low


@dataclass(frozen=True)
class _NGrams:
    """Counts of D_pretrain by the length of the context, the empty one first."""

    counts: tuple[_Counts, _Counts, _Counts]
    vocab_size: int

    @staticmethod
    def of(corpus: Tokens, hidden: set[int], vocab_size: int, end: int) -> _NGrams:
        """Of the first documents of `corpus`, but for `hidden`."""
        docs = []
        room = _MOST_COUNTED_TOKENS
        for doc in range(len(corpus)):
            if doc not in hidden and room > 0:
                docs.append([corpus[doc][:room]])
                room -= len(docs[-1][0])
        text = _Text.of(docs, end)
        contexts = _contexts(text, vocab_size)
        one, two, three = (_Counts.of(context, text.token, vocab_size) for context in contexts)
        return _NGrams((one, two, three), vocab_size)

    def read(self, text: _Text) -> Float64[np.ndarray, "token part"]:
        """The probability of each token by the n-grams, and by the uni- and bigrams of its own
        document so far."""
        prob = np.full(len(text.token), 1 / self.vocab_size)
        for counts, context in zip(self.counts, _contexts(text, self.vocab_size), strict=True):
            count, total, different = counts.after(context, text.token)
            kept = np.maximum(count - _DISCOUNT, 0) + _DISCOUNT * different * prob
            prob = np.divide(kept, total, out=prob, where=total > 0)

        # what came before in the document: how many equals of a number stand earlier
        single = text.doc * self.vocab_size + text.token
        position = _earlier(text.doc)
        context = text.doc * self.vocab_size + text.previous
        double = context * self.vocab_size + text.token
        parts = (
            prob,
            _share(_earlier(single), position, prob),
            _share(_earlier(double), _earlier(context), prob),
        )
        return np.stack(parts, axis=1)  # (token, part)

    def copied(
        self,
        d1: _Text,
        text: _Text,
        backoff: Float64[np.ndarray, " token"],
    ) -> Float64[np.ndarray, "token part"]:
        """The probability of each token by the uni- and bigrams of the d1 of its document; that by
        the n-grams, `backoff`, where these say nothing."""
        single = _Counts.of(d1.doc, d1.token, self.vocab_size)
        double = _Counts.of(self._context(d1), d1.token, self.vocab_size)
        parts = []
        for counts, context in ((single, text.doc), (double, self._context(text))):
            count, total, _ = counts.after(context, text.token)
            parts.append(_share(count, total, backoff))
        return np.stack(parts, axis=1)  # (token, part)

    def _context(self, text: _Text) -> np.ndarray:
        """The token before, told apart by document."""
        context: np.ndarray = text.doc * self.vocab_size + text.previous
        return context


def _contexts(text: _Text, vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The contexts of each token, none, one and two tokens long, as numbers."""
    return np.zeros_like(text.token), text.previous, text.before * vocab_size + text.previous


def _earlier(numbers: Int64[np.ndarray, " token"]) -> Int64[np.ndarray, " token"]:
    """How often each number stands earlier."""
    order = np.argsort(numbers, kind="stable")
    ranked = numbers[order]
    position = np.arange(len(order))
    begins = np.ones(len(order), bool)
    begins[1:] = ranked[1:] != ranked[:-1]
    count = np.empty(len(order), np.int64)
    count[order] = position - np.maximum.accumulate(np.where(begins, position, 0))
    return count


def _share(count: np.ndarray, total: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """count / total, and where there is nothing to count what is said otherwise."""
    share = otherwise.copy()
    np.divide(count, total, out=share, where=total > 0)
    return share


def _losses(
    parts: Float64[np.ndarray, "token part"],
    text: _Text,
) -> Float64[np.ndarray, " doc"]:
    """The nats of each document under the best mixture of the parts, by weights fitted on every
    other document."""
    losses = np.zeros(int(text.doc[-1]) + 1)
    for half in (0, 1):
        mine = text.doc % 2 == half
        weights = _fitted(parts[~mine])
        nll = -np.log(parts[mine] @ weights)
        losses += np.bincount(text.doc[mine], nll, len(losses))
    return losses


def _fitted(parts: Float64[np.ndarray, "token part"]) -> Float64[np.ndarray, " part"]:
    """The weights, of sum 1, under which a mixture of these probabilities is likeliest."""
    weights = np.full(parts.shape[1], 1 / parts.shape[1])
    before = np.inf
    for _ in range(_ROUNDS):
        if not len(parts):
            break  # nothing to fit by: all parts alike
        mixed = parts @ weights
        loss = float(-np.log(mixed).mean())
        if before - loss < _LEAST_GAIN:
            break
        before = loss
        # the share of each token that each part answers for; their product with the weights is the
        # mean posterior
        weights = weights * (parts / mixed[:, None]).mean(0)
    return weights
