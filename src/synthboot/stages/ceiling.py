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
from synthboot.artifacts.pairs import HELDOUT, VALIDATION, Band, Ceiling, Pairs, Worth
from synthboot.data.tokens import Tokens, equal_before
from synthboot.rng import rng

NEAREST = (1, 2, 4)
"""How many d1 of each document are copied from."""

BANDS = 5
"""Parts of equal size, by similarity, for which the gain is given."""

LEAST_DOCS = 20
"""Fewer held-out documents with a d1 say nothing."""

_MOST_DOCS = 1_000
_MOST_DOC_TOKENS = 2_048  # of a document, and of each d1: the head is read
DOCS_AT_ONCE = 100  # whose d1 are counted together
_MOST_COUNTED_TOKENS = 1 << 22  # of D_pretrain: memory is about 60 bytes for each of them
_DISCOUNT = 0.75
_ROUNDS = 200  # of expectation maximization; it stops where a round gains next to nothing
_LEAST_GAIN = 1e-7  # nats per token

_Numbers = Int64[np.ndarray, " token"]
_Probabilities = Float64[np.ndarray, " token"]
_Parts = Float64[np.ndarray, "token part"]


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
    hidden = {one.doc for one in held if one.split == HELDOUT}
    counts = _NGrams.of(corpus, hidden, vocab_size, end)

    sets = {HELDOUT: corpus, VALIDATION: validation}
    heads = [_head(sets[one.split][one.doc]) for one in held]
    text = _Text.of([[head] for head in heads], end)
    sizes = np.bincount(text.doc)
    alone = counts.read(text)  # (token, part)
    loss = _losses(alone, text)

    def losses_given(d1: Sequence[Sequence[int]]) -> Float64[np.ndarray, " doc"]:
        parts = []
        first = 0
        for some in np.array_split(np.arange(len(held)), -(-len(held) // DOCS_AT_ONCE)):
            read = _Text.of([[heads[doc]] for doc in some], end)
            given = _Text.of([[_head(corpus[doc]) for doc in d1[one]] for one in some], end)
            last = first + len(read.token)
            parts.append(counts.copied(given, read, backoff=alone[first:last, 0]))
            first = last
        return _losses(np.hstack((alone, np.concatenate(parts))), text)

    def worth(losses: np.ndarray, docs: np.ndarray) -> Worth:
        before = loss[None, docs]  # (1, doc): of one model each
        after = losses[None, docs]
        gain = statistics.difference(before, after, sizes[docs])
        return gain.value, gain.standard_error

    everything = np.arange(len(held))
    nearest = {}
    for k in NEAREST:
        nearest[k] = losses_given([one.d1[:k] for one in held])
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

    random = rng(seed, "ceiling.random_d1")
    drawn = random.integers(0, len(corpus), len(held))
    random_loss = losses_given([[int(doc)] for doc in drawn])
    num_d1 = [min(len(one.d1), NEAREST[-1]) for one in held]
    return Ceiling(
        docs=len(held),
        tokens=len(text.token),
        d1=float(np.mean(num_d1)),
        loss=float(loss.sum() / sizes.sum()),
        worth={str(k): worth(nearest[k], everything) for k in NEAREST},
        random=worth(random_loss, everything),
        bands=bands,
        floor=_floor(counts, validation, end),
    )


def _floor(counts: _NGrams, validation: Tokens, end: int) -> float:
    """Nats per token of the validation set's first documents, without any d1."""
    docs = range(len(validation))[:_MOST_DOCS]
    heads = [_head(validation[doc]) for doc in docs]
    text = _Text.of([[head] for head in heads], end)
    losses = _losses(counts.read(text), text)
    return float(losses.sum() / len(text.token))


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
            first = _Held(split, d2, [], similarity)
            one = by_d2.setdefault((split, d2), first)
            one.d1.append(d1)
    ranked = sorted(by_d2.values(), key=lambda one: -one.similarity)
    if len(ranked) <= _MOST_DOCS:
        return ranked
    spread = np.linspace(0, len(ranked) - 1, _MOST_DOCS)
    return [ranked[int(rank)] for rank in spread]


def _head(document: Integer[np.ndarray, " token"]) -> _Numbers:
    head = document[:_MOST_DOC_TOKENS]
    return head.astype(np.int64)


@dataclass(frozen=True)
class _Text:
    """Documents end to end: each token, the two before it (`end` before the first of a piece), and
    the number of its document."""

    token: _Numbers
    previous: _Numbers
    before: _Numbers
    doc: _Numbers

    @staticmethod
    def of(documents: Sequence[Sequence[_Numbers]], end: int) -> _Text:
        """Each document given in pieces, none of which is read on from the one before.

        token     [ a  b  c | d  e ]   two pieces
        previous  [ .  a  b | .  d ]   `.` is the end token
        before    [ .  .  a | .  . ]
        """
        pieces: list[_Numbers] = []
        owners: list[int] = []
        for number, document in enumerate(documents):
            pieces += document
            owners += [number] * len(document)
        lengths = np.array([len(piece) for piece in pieces], np.int64)
        starts = np.cumsum(lengths) - lengths

        def moved(values: _Numbers) -> _Numbers:
            later = np.concatenate(([end], values[:-1]))
            later[starts] = end
            return later

        token = np.concatenate(pieces)
        previous = moved(token)
        return _Text(
            token=token,
            previous=previous,
            before=moved(previous),
            doc=np.repeat(owners, lengths),
        )

    def contexts(self, vocab_size: int) -> tuple[_Numbers, _Numbers, _Numbers]:
        """The contexts of each token, none, one and two tokens long, as numbers."""
        none = np.zeros_like(self.token)
        two = self.before * vocab_size + self.previous
        return none, self.previous, two

    def previous_in_doc(self, vocab_size: int) -> _Numbers:
        """The token before as a number that no other document has."""
        context: np.ndarray = self.doc * vocab_size + self.previous
        return context


@dataclass(frozen=True)
class _Counts:
    """How often each token follows each context: pairs of both as sorted numbers, and how many of
    all lie before each."""

    keys: Int64[np.ndarray, " key"]
    until: Int64[np.ndarray, " key_and_one"]
    vocab_size: int

    @staticmethod
    def of(context: _Numbers, token: _Numbers, vocab_size: int) -> _Counts:
        """`context` are numbers of any kind, small enough that times `vocab_size` they fit 63
        bits."""
        pairs = context * vocab_size + token
        keys, counts = np.unique(pairs, return_counts=True)
        until = np.concatenate(([0], np.cumsum(counts)))
        return _Counts(keys, until, vocab_size)

    def after(
        self,
        context: _Numbers,
        token: _Numbers,
    ) -> tuple[_Numbers, _Numbers, _Numbers]:
        """For each (context, token): its count, that of the context with any token, and how many
        different tokens follow the context."""
        first = context * self.vocab_size  # the least key that a context can have
        key = first + token
        low = np.searchsorted(self.keys, first)
        high = np.searchsorted(self.keys, first + self.vocab_size)
        start = np.searchsorted(self.keys, key)
        stop = np.searchsorted(self.keys, key, side="right")

        count = self.until[stop] - self.until[start]
        total = self.until[high] - self.until[low]
        return count, total, high - low


@dataclass(frozen=True)
class _NGrams:
    """Counts of D_pretrain by the length of the context, the empty one first."""

    counts: tuple[_Counts, _Counts, _Counts]
    vocab_size: int

    @staticmethod
    def of(
        corpus: Tokens,
        hidden: set[int],
        vocab_size: int,
        end: int,
    ) -> _NGrams:
        """Of the first documents of `corpus`, but for `hidden`."""
        docs = []
        room = _MOST_COUNTED_TOKENS
        for doc in range(len(corpus)):
            if doc in hidden:
                continue
            if room <= 0:
                break
            read = corpus[doc][:room].astype(np.int64)
            room -= len(read)
            docs.append([read])
        text = _Text.of(docs, end)
        none, one, two = text.contexts(vocab_size)
        counts = (
            _Counts.of(none, text.token, vocab_size),
            _Counts.of(one, text.token, vocab_size),
            _Counts.of(two, text.token, vocab_size),
        )
        return _NGrams(counts, vocab_size)

    def read(self, text: _Text) -> _Parts:
        """The probability of each token by the n-grams, and by the uni- and bigrams of its own
        document so far."""
        prob = np.full(len(text.token), 1 / self.vocab_size)
        contexts = text.contexts(self.vocab_size)
        for counts, context in zip(self.counts, contexts, strict=True):
            count, total, different = counts.after(context, text.token)
            # absolute discounting: what is taken off goes to the next shorter context
            kept = np.maximum(count - _DISCOUNT, 0)
            mass = kept + _DISCOUNT * different * prob
            prob = np.divide(mass, total, out=prob, where=total > 0)

        # what came before in the document: how many equals of a number stand earlier
        single = text.doc * self.vocab_size + text.token
        context = text.previous_in_doc(self.vocab_size)
        double = context * self.vocab_size + text.token
        unigrams = _share(_earlier(single), _earlier(text.doc), prob)
        bigrams = _share(_earlier(double), _earlier(context), prob)
        return np.stack((prob, unigrams, bigrams), axis=1)  # (token, part)

    def copied(self, d1: _Text, text: _Text, backoff: _Probabilities) -> _Parts:
        """The probability of each token by the uni- and bigrams of the d1 of its document; that by
        the n-grams, `backoff`, where these say nothing."""
        previous_in_d1 = d1.previous_in_doc(self.vocab_size)
        previous = text.previous_in_doc(self.vocab_size)
        parts = []
        for of_d1, of_text in ((d1.doc, text.doc), (previous_in_d1, previous)):
            counts = _Counts.of(of_d1, d1.token, self.vocab_size)
            count, total, _ = counts.after(of_text, text.token)
            parts.append(_share(count, total, backoff))
        return np.stack(parts, axis=1)  # (token, part)


def _earlier(numbers: _Numbers) -> _Numbers:
    """How often each number stands earlier."""
    return equal_before(numbers, np.argsort(numbers, kind="stable"))


def _share(
    count: _Numbers,
    total: _Numbers,
    otherwise: _Probabilities,
) -> _Probabilities:
    """count / total, and where there is nothing to count what is said otherwise."""
    share = otherwise.copy()
    counted = total > 0
    np.divide(count, total, out=share, where=counted)
    return share


def _losses(parts: _Parts, text: _Text) -> Float64[np.ndarray, " doc"]:
    """The nats of each document under the best mixture of the parts, by weights fitted on every
    other document."""
    num_docs = int(text.doc[-1]) + 1
    losses = np.zeros(num_docs)
    for half in (0, 1):
        mine = text.doc % 2 == half
        weights = _fitted(parts[~mine])
        mixed = parts[mine] @ weights
        losses += np.bincount(text.doc[mine], -np.log(mixed), num_docs)
    return losses


def _fitted(parts: _Parts) -> Float64[np.ndarray, " part"]:
    """The weights, of sum 1, under which a mixture of these probabilities is likeliest."""
    count = parts.shape[1]
    weights = np.full(count, 1 / count)
    before = np.inf
    for _ in range(_ROUNDS):
        if not len(parts):
            break  # nothing to fit by: all parts alike
        mixed = parts @ weights
        loss = float(-np.log(mixed).mean())
        if before - loss < _LEAST_GAIN:
            break
        before = loss
        # the share of each token that each part answers for, but for its weight: (token, part)
        answered = parts / mixed[:, None]
        # times the weight it is the posterior, whose mean is the new weight
        weights = weights * answered.mean(0)
    return weights
