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

from synthboot.artifacts.judged import Question
from synthboot.data import near_duplicates, ngrams, words
from synthboot.judges.contradictions import contradictions
from synthboot.judges.protocol import Item, OnScore

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
        # inverse document frequency: a word weighs more, the fewer documents have it
        docs = len(corpus)
        self._idf = {word: math.log((1 + docs) / count) for word, count in counts.items()}
        self._idf_of_unknown = math.log(1 + docs)

    @property
    def identity(self) -> Mapping[str, str]:
        """Nothing but the rules, whose version is that of the stage."""
        return {}

    def passes(self, question: Question) -> int:
        """Once: a rule says the same every time."""
        return 1

    def score(
        self, question: Question, items: Sequence[Item], pass_number: int, on_score: OnScore
    ) -> None:
        """The score of every item by the rule of that question."""
        rule = {
            "repetition": self._repetition,
            "nonfactual": self._nonfactual,
            "irrelevance": self._irrelevance,
            "copying": self._copying,
        }[question]
        for index, item in enumerate(items):
            on_score(index, rule(item))

    def _repetition(self, item: Item) -> float:
        """In [0, 1)."""
        _, word_ids = np.unique(words.words(item.text), return_inverse=True)
        return ngrams.repeated_share(word_ids, _RUN)

    def _nonfactual(self, item: Item) -> float:
        """How many sentences contradict a reference."""
        found = [contradictions(item.text, reference) for reference in item.references]
        return float(sum(map(len, found)))

    def _irrelevance(self, item: Item) -> float:
        """Minus the weighted Jaccard similarity, in [-1, 0]."""
        d1 = set(words.words(item.d1))
        d2 = set(words.words(item.text))
        either = self._weight(d1 | d2)
        both = self._weight(d1 & d2)
        return -both / either if either else 0.0

    def _copying(self, item: Item) -> float:
        """In [0, 1]."""
        d1 = set(near_duplicates.shingles(item.d1))
        d2 = set(near_duplicates.shingles(item.text))
        return len(d1 & d2) / max(1, len(d2))

    def _weight(self, chosen: set[str]) -> float:
        """What these words weigh together."""
        # exactly rounded: another order, which a set has in every process, changes nothing
        return math.fsum(self._idf.get(word, self._idf_of_unknown) for word in chosen)


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

    def score(
        self, question: Question, items: Sequence[Item], pass_number: int, on_score: OnScore
    ) -> None:
        """Minus the cosine similarity of every pair."""
        if not items:
            return
        d1 = self._embedder([item.d1 for item in items])
        d2 = self._embedder([item.text for item in items])
        cosine: Float[np.ndarray, " item"] = np.einsum("ij,ij->i", d1, d2)
        for index, similarity in enumerate(cosine.tolist()):
            on_score(index, -similarity)
