"""Judges that count: what anybody can repeat.

- repetition: the share of a text's runs of words that repeat an earlier one,
- nonfactual: sentences that contradict a reference by a number or a date,
- irrelevance: minus the overlap of the two documents' words, rare ones counting for more,
- copying: the share of d2's runs of words that d1 holds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from synthboot.data import ngrams, words
from synthboot.judges.contradictions import contradictions
from synthboot.judges.protocol import Item, Question, Told

Embedder = Callable[[Sequence[str]], Float[np.ndarray, "text dim"]]
"""From texts to vectors of length 1."""

_RUN = 6  # words that real text hardly ever repeats by chance


class Rules:
    """Overlaps and contradictions, by rules; `corpus` says which words are rare."""

    name = "rules"

    def __init__(self, corpus: Sequence[str]) -> None:
        counts: Counter[str] = Counter()
        for text in corpus:
            counts.update(set(words.words(text)))
        # a word weighs more, the fewer documents have it, and most where none has
        self._weight = {word: math.log((1 + len(corpus)) / n) for word, n in counts.items()}
        self._most = math.log(1 + len(corpus))

    @property
    def identity(self) -> Mapping[str, str]:
        """Nothing but the rules, whose version is that of the stage."""
        return {}

    def passes(self, question: Question) -> int:
        """Once: a rule says the same every time."""
        return 1

    def score(self, question: Question, items: Sequence[Item], number: int, told: Told) -> None:
        """Tell the score of every item."""
        rule = {
            "repetition": self._repetition,
            "nonfactual": self._nonfactual,
            "irrelevance": self._irrelevance,
            "copying": self._copying,
        }[question]
        for index, item in enumerate(items):
            told(index, rule(item))

    def _repetition(self, item: Item) -> float:
        _, word_ids = np.unique(words.words(item.text), return_inverse=True)
        return ngrams.repeated_share(word_ids, _RUN)

    def _nonfactual(self, item: Item) -> float:
        return float(sum(len(contradictions(item.text, known)) for known in item.references))

    def _irrelevance(self, item: Item) -> float:
        first = set(words.words(item.d1))
        second = set(words.words(item.text))
        either = self._sum(first | second)
        both = self._sum(first & second)
        return -both / either if either else 0.0

    def _copying(self, item: Item) -> float:
        given = set(ngrams.shingles(item.d1))
        written = set(ngrams.shingles(item.text))
        return len(written & given) / max(1, len(written))

    def _sum(self, chosen: set[str]) -> float:
        # exactly rounded: another order, which a set has in every process, changes nothing
        return math.fsum(self._weight.get(word, self._most) for word in chosen)


class Nearness:
    """Irrelevance by the embedding that pairs were found by, to which real pairs look near."""

    name = "embedding"

    def __init__(self, embedder: Embedder, model: str) -> None:
        self._embedder = embedder
        self._model = model

    @property
    def identity(self) -> Mapping[str, str]:
        """The embedding."""
        return {"embedding": self._model}

    def passes(self, question: Question) -> int:
        """Once, and only whether d2 is related to d1."""
        return int(question == "irrelevance")

    def score(self, question: Question, items: Sequence[Item], number: int, told: Told) -> None:
        """Tell minus the similarity of every pair."""
        if not items:
            return
        first = self._embedder([item.d1 for item in items])
        second = self._embedder([item.text for item in items])
        similarity: Float[np.ndarray, " item"] = np.einsum("ij,ij->i", first, second)
        for index, similar in enumerate(similarity.tolist()):
            told(index, -similar)
