"""The count model beside one that counts with dictionaries, and on text where the truth is plain."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.optimize import minimize

from synthboot.artifacts.pairs import HELDOUT, TRAIN, VALIDATION, Pairs
from synthboot.data.tokens import Tokens
from synthboot.stages import ceiling as stage
from synthboot.stages.ceiling import LEAST_DOCS, ceiling

END = 0
VOCAB = 40


def corpus_of(docs: int, seed: int = 0, length: int = 14) -> list[list[int]]:
    """Documents of a few words of their own and many that all have."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(docs):
        own = rng.integers(20, VOCAB, 3)
        words = np.where(rng.random(length) < 0.4, rng.choice(own, length), rng.integers(2, 20, length))
        found.append([*words.tolist(), END])
    return found


def paired(d1: Sequence[int], d2: Sequence[int], split: Sequence[int]) -> Pairs:
    similarity = np.linspace(0.9, 0.1, len(d1)).astype(np.float32)
    return Pairs(np.array(d1, np.int64), np.array(d2, np.int64), similarity, np.array(split, np.int64))


class Loops:
    """What the stage computes in arrays: one token at a time."""

    def __init__(self, corpus: list[list[int]]) -> None:
        self.counts: list[dict[tuple[int, ...], Counter[int]]] = [{}, {}, {}]
        for document in corpus:
            for i, token in enumerate(document):
                for n in range(3):
                    self.counts[n].setdefault(context(document, i, n), Counter())[token] += 1

    def parts(self, document: list[int], d1s: list[list[int]]) -> list[list[float]]:
        return [self.token(document, i, d1s) for i in range(len(document))]

    def token(self, document: list[int], i: int, d1s: list[list[int]]) -> list[float]:
        token = document[i]
        known = 1 / VOCAB
        for n in range(3):
            after = self.counts[n].get(context(document, i, n))
            if after:
                discounted = max(after[token] - 0.75, 0) + 0.75 * len(after) * known
                known = discounted / after.total()
        found = [known]
        before = [document[:i]]
        for texts in (before, d1s):
            if texts is d1s and not d1s:
                continue
            for n in (0, 1):
                follows = Counter[int]()
                for text in texts:
                    for j in range(len(text)):
                        if context(text, j, n) == context(document, i, n):
                            follows[text[j]] += 1
                found.append(follows[token] / follows.total() if follows else known)
        return found


def context(document: list[int], i: int, n: int) -> tuple[int, ...]:
    padded = [END] * n + document[:i]
    return tuple(padded[len(padded) - n :])


def by_loops(corpus: list[list[int]], documents: list[list[int]], d1s: list[list[list[int]]]) -> float:
    """Nats a token, weights of each half by scipy on the other."""
    model = Loops(corpus)
    parts = [np.array(model.parts(document, given)) for document, given in zip(documents, d1s, strict=True)]
    nats = 0.0
    for half in (0, 1):
        others = np.concatenate(parts[1 - half :: 2])

        def loss(x: np.ndarray, others: np.ndarray = others) -> float:
            return float(-np.log(others @ (np.exp(x) / np.exp(x).sum())).mean())

        x = minimize(loss, np.zeros(others.shape[1])).x
        nats -= float(np.log(np.concatenate(parts[half::2]) @ (np.exp(x) / np.exp(x).sum())).sum())
    return nats / sum(map(len, documents))


def test_it_is_what_loops_over_dictionaries_give() -> None:
    corpus, validation = corpus_of(60), corpus_of(14, seed=1)
    held, others = list(range(50, 60)), list(range(50))
    rng = np.random.default_rng(2)
    d1, d2, split = [], [], []
    for number in [*held, *range(14)]:
        for one in rng.choice(50, 3, replace=False).tolist():
            d1.append(one)
            d2.append(number)
            split.append(HELDOUT if len(d1) <= 30 else VALIDATION)
    found = ceiling(paired(d1, d2, split), Tokens.of(corpus), Tokens.of(validation), VOCAB, END, 0)
    assert found is not None
    assert (found.docs, found.d1) == (24, 3.0)

    counted = [corpus[doc] for doc in others]  # not the held-out ones
    read = [corpus[doc] for doc in held] + validation
    given = [[corpus[doc] for doc in d1[3 * i : 3 * i + 3]] for i in range(24)]
    alone = by_loops(counted, read, [[]] * 24)
    assert found.loss == pytest.approx(alone, abs=2e-4)
    assert found.floor == pytest.approx(by_loops(counted, validation, [[]] * 14), abs=2e-4)
    for nearest in (1, 2, 4):
        expected = alone - by_loops(counted, read, [of_doc[:nearest] for of_doc in given])
        assert found.worth[str(nearest)][0] == pytest.approx(expected, abs=4e-4)


WIDE = 400


def of_few_words(docs: int, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Documents of few words each, and for each another of the same words in another order."""
    rng = np.random.default_rng(seed)
    words = rng.integers(2, WIDE, (docs, 6))
    first, second = (np.take_along_axis(words, rng.integers(0, 6, (docs, 10)), axis=1) for _ in range(2))
    return [[*row.tolist(), END] for row in first], [[*row.tolist(), END] for row in second]


def test_what_d1_tells_is_found_and_a_random_d1_tells_nothing() -> None:
    corpus, validation = of_few_words(80, seed=0)
    everything = list(range(80))
    related = paired(everything, everything, [VALIDATION] * 80)
    found = ceiling(related, Tokens.of(corpus), Tokens.of(validation), WIDE, END, 0)
    assert found is not None
    value, error = found.worth["1"]
    assert value > 1
    assert 0 < error < 0.1
    assert abs(found.random[0]) < 0.05
    assert f"{value:.3f} +- {error:.3f}" in found.sentence()
    assert [band.docs for band in found.bands] == [16] * 5
    assert found.bands[0].high == pytest.approx(0.9)
    assert found.bands[-1].low == pytest.approx(0.1)


def test_close_documents_stand_in_the_bands_of_high_similarity() -> None:
    corpus, validation = of_few_words(80, seed=0)
    everything = list(range(80))
    d1 = [*everything[:40], *reversed(everything[40:])]  # the less similar half is not related at all
    found = ceiling(paired(d1, everything, [VALIDATION] * 80), Tokens.of(corpus), Tokens.of(validation), WIDE, END, 0)
    assert found is not None
    assert found.bands[0].nearest[0] > 0.5
    assert found.bands[-1].nearest[0] < 0.1


def test_pairs_to_tune_on_are_not_read_and_too_few_others_give_nothing() -> None:
    corpus = Tokens.of(corpus_of(60))
    few = [HELDOUT] * (LEAST_DOCS - 1) + [TRAIN] * 30
    pairs = paired([50] * len(few), list(range(len(few))), few)
    assert ceiling(pairs, corpus, corpus, VOCAB, END, 0) is None
    assert ceiling(paired([], [], []), corpus, corpus, VOCAB, END, 0) is None


def test_how_many_documents_are_counted_together_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpus_of(80)
    validation = corpus_of(60, seed=1)
    d2 = np.repeat(np.arange(60), 3)
    d1 = np.random.default_rng(2).integers(0, 80, 180)
    pairs = paired(d1.tolist(), d2.tolist(), [VALIDATION] * 180)

    def found() -> object:
        return ceiling(pairs, Tokens.of(corpus), Tokens.of(validation), VOCAB, END, seed=0)

    wanted = found()
    for together in (1, 7, 60):
        monkeypatch.setattr(stage, "DOCS_AT_ONCE", together)
        assert found() == wanted
