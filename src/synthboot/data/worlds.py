"""Known worlds: generated corpora of which everything is known, above all P(d2|d1).

A world has entities, each with a value for every attribute. A document is about one entity: its name, then some of its
attributes in random order, each in one of several wordings, with sentences between them that have nothing to do with it.
Some entities have many documents, the others one. What a document says is drawn uniformly, so its probability given its
entity is a product of known numbers (`World.nats`), and whether a text tells the truth can be read off (`World.read`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

NOUNS = (
    "river", "founder", "metal", "dish", "festival", "instrument", "crop", "patron", "bird", "craft", "colour", "market",
    "bridge", "dance", "stone", "wind",
)  # fmt: skip
WORDINGS = (
    "The {noun} of {name} is {value}.", "{name} has {value} as its {noun}.", "Its {noun} is {value}.",
    "{value} is the {noun} of this place.", "As for the {noun}, people name {value}.", "There the {noun} is called {value}.",
    "Everyone in {name} knows its {noun}, {value}.", "Ask for the {noun} and you will hear of {value}.",
)  # fmt: skip
_OPENERS = ("In spring", "In summer", "In winter", "Long ago", "These days", "At night", "On most days", "After the rain")
_SUBJECTS = ("the roads", "the houses", "the fields", "the gates", "the wells", "the fences", "the boats", "the gardens")
_VERBS = ("stand empty", "look new", "are full", "need care", "grow quiet", "shine", "draw guests", "stay open")
_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "ar", "el", "in", "or")]


@dataclass(frozen=True)
class World:
    """What is true, and how documents tell it. The defaults give 1,500 documents of some 60 words."""

    entities: int = 600
    many_share: float = 0.5
    """Share of the entities that have `many_docs` documents; the others have one."""
    many_docs: int = 4
    attributes: int = 8
    values: int = 24
    """Different values of each attribute."""
    revealed: int = 5
    """Attributes that a document tells."""
    wordings: int = 6
    distractors: int = 1
    """Sentences of a document that say nothing about its entity."""
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "attributes": (1, len(NOUNS)), "wordings": (1, len(WORDINGS)), "revealed": (1, self.attributes),
            "entities": (1, 100_000), "values": (2, 1_000), "many_docs": (1, 10_000), "distractors": (0, 100),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}, must lie between {low} and {high}")

    @cached_property
    def names(self) -> list[str]:
        """A name per entity."""
        return _words(self.entities, 3, self.seed, 1)

    @cached_property
    def vocabulary(self) -> list[list[str]]:
        """For every attribute the words it may take. No word stands for two things."""
        words = _words(self.attributes * self.values, 2, self.seed, 2)
        return [words[i * self.values : (i + 1) * self.values] for i in range(self.attributes)]

    @cached_property
    def truth(self) -> np.ndarray:
        """(entity, attribute): which value."""
        return np.random.default_rng([self.seed, 3]).integers(0, self.values, (self.entities, self.attributes))

    @property
    def many(self) -> int:
        """How many entities have many documents: they come first."""
        return round(self.many_share * self.entities)

    def document(self, entity: int, rng: np.random.Generator) -> str:
        """A document about an entity."""
        told = rng.permutation(self.attributes)[: self.revealed]
        sentences = [self._sentence(entity, int(a), int(rng.integers(self.wordings))) for a in told]
        for _ in range(self.distractors):
            sentences.insert(int(rng.integers(len(sentences) + 1)), self._distractor(rng))
        return f"{self.names[entity]}. " + " ".join(sentences)

    def documents(self) -> Iterator[dict[str, Any]]:
        """The corpus: id, text and entity of every document, in random order."""
        rng = np.random.default_rng([self.seed, 4])
        owners = np.repeat(np.arange(self.entities), np.where(np.arange(self.entities) < self.many, self.many_docs, 1))
        for number, entity in enumerate(rng.permutation(owners).tolist()):
            yield {"id": f"{number}", "text": self.document(entity, rng), "entity": entity}

    def unseen(self, docs: int, seed: int = 0) -> Iterator[dict[str, Any]]:
        """Documents that the corpus does not hold, about entities with many and with one document in turn."""
        rng = np.random.default_rng([self.seed, 5, seed])
        for number in range(docs):
            low, high = (
                (0, self.many) if (number % 2 == 0 and self.many) or self.many == self.entities else (self.many, self.entities)
            )
            entity = int(rng.integers(low, high))
            yield {"id": f"unseen-{number}", "text": self.document(entity, rng), "entity": entity}

    def nats(self) -> float:
        """-log P(d2 | entity): the same for every document. Where d2 is about the entity of d1, and the reader knows the
        world, this is the least loss on a document that any synthesizer can have, its name included."""
        orders = math.lgamma(self.attributes + 1) - math.lgamma(self.attributes - self.revealed + 1)
        places = sum(math.log(self.revealed + i + 1) for i in range(self.distractors))
        filler = self.distractors * math.log(len(_OPENERS) * len(_SUBJECTS) * len(_VERBS))
        return orders + self.revealed * math.log(self.wordings) + places + filler

    def read(self, text: str) -> list[tuple[int, int]]:
        """The (attribute, value) of every value named in a sentence about its attribute."""
        found = []
        for sentence in re.split(r"(?<=\.)\s+", text):
            words = re.findall(r"\w+", sentence)
            nouns = [NOUNS.index(w) for w in words if w in NOUNS[: self.attributes]]
            for word in words:
                place = self._places.get(word)
                if place is not None and place[0] in nouns:
                    found.append(place)
        return found

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        return {word: (a, v) for a, words in enumerate(self.vocabulary) for v, word in enumerate(words)}

    def _sentence(self, entity: int, attribute: int, wording: int) -> str:
        value = self.vocabulary[attribute][self.truth[entity, attribute]]
        return WORDINGS[wording].format(noun=NOUNS[attribute], name=self.names[entity], value=value)

    @staticmethod
    def _distractor(rng: np.random.Generator) -> str:
        opener, subject, verb = (list_[int(rng.integers(8))] for list_ in (_OPENERS, _SUBJECTS, _VERBS))
        return f"{opener} {subject} {verb}."


def _words(count: int, syllables: int, seed: int, purpose: int) -> list[str]:
    """Different made-up words, the first letter a capital."""
    rng, found = np.random.default_rng([seed, purpose]), dict[str, None]()
    while len(found) < count:
        found["".join(_SYLLABLES[int(i)] for i in rng.integers(len(_SYLLABLES), size=syllables)).capitalize()] = None
    return list(found)
