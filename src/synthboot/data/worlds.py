"""Known worlds: generated corpora of which everything is known, above all P(d2|d1).

A world has entities, each with a value for every attribute. A document is about one entity: its name, then some of its
attributes in random order, each in one of several wordings, with sentences between them that have nothing to do with it.
Some entities have many documents, the others one. What a document says is drawn uniformly, so its probability given its
entity is a product of known numbers (`World.nats`), and what a text says can be read off (`World.read`).

A name says who an entity is, so P(d2|d1) is P(d2|entity of d1), integrated over what is not known of that entity. Two
readers bound every model: one who knows the world, and one who knows how worlds are made and has read D_pretrain: an
attribute that no document told may have any value for him, each as likely, until the document tells it (`World.nats`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from synthboot import config

NOUNS = (
    "river", "founder", "metal", "dish", "festival", "instrument", "crop", "patron", "bird", "craft", "colour", "market",
    "bridge", "dance", "stone", "wind",
)  # fmt: skip
WORDINGS = (
    "The {noun} of {name} is {value}.", "{name} has {value} as its {noun}.", "Its {noun} is {value}.",
    "{value} is the {noun} of this place.", "As for the {noun}, people name {value}.", "There the {noun} is called {value}.",
    "Everyone in {name} knows its {noun}, {value}.", "Ask for the {noun} and you will hear of {value}.",
)  # fmt: skip
PARTS = ("name", "name again", "known values", "unknown values", "form")
_OPENERS = (
    "In spring",
    "In summer",
    "In winter",
    "Long ago",
    "These days",
    "At night",
    "On most days",
    "After the rain",
)
_SUBJECTS = (
    "the roads",
    "the houses",
    "the fields",
    "the gates",
    "the wells",
    "the fences",
    "the boats",
    "the gardens",
)
_VERBS = (
    "stand empty",
    "look new",
    "are full",
    "need care",
    "grow quiet",
    "shine",
    "draw guests",
    "stay open",
)
_SYLLABLES = [
    a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "ar", "el", "in", "or")
]


@dataclass(frozen=True)
class Told:
    """What a text says: the entity it is about (-1 where its first words are no name), its facts in order as (attribute,
    wording, value; -1 for a value that the attribute does not have), and how many of its sentences the world does not know
    or are about another name."""

    entity: int
    facts: tuple[tuple[int, int, int], ...]
    strange: int


@dataclass(frozen=True)
class World:
    """What is true, and how documents tell it."""

    knobs: config.World

    @cached_property
    def names(self) -> list[str]:
        """A name per entity."""
        return _words(self.knobs.entities, 3, self.knobs.seed, 1)

    @cached_property
    def vocabulary(self) -> list[list[str]]:
        """For every attribute the words it may take. No word stands for two things."""
        words = _words(self.knobs.attributes * self.knobs.values, 2, self.knobs.seed, 2)
        return [
            words[i * self.knobs.values : (i + 1) * self.knobs.values]
            for i in range(self.knobs.attributes)
        ]

    @cached_property
    def truth(self) -> np.ndarray:
        """(entity, attribute): which value."""
        return np.random.default_rng([self.knobs.seed, 3]).integers(
            0, self.knobs.values, (self.knobs.entities, self.knobs.attributes)
        )

    @property
    def many(self) -> int:
        """How many entities have many documents: they come first."""
        return round(self.knobs.many_share * self.knobs.entities)

    def document(self, entity: int, rng: np.random.Generator) -> str:
        """A document about an entity."""
        told = rng.permutation(self.knobs.attributes)[: self.knobs.revealed]
        sentences = [
            self._sentence(entity, int(a), int(rng.integers(self.knobs.wordings))) for a in told
        ]
        for _ in range(self.knobs.distractors):
            sentences.insert(int(rng.integers(len(sentences) + 1)), self._distractor(rng))
        return f"{self.names[entity]}. " + " ".join(sentences)

    def documents(self) -> Iterator[dict[str, Any]]:
        """The corpus: id, text and entity of every document, in random order."""
        rng = np.random.default_rng([self.knobs.seed, 4])
        owners = np.repeat(
            np.arange(self.knobs.entities),
            np.where(np.arange(self.knobs.entities) < self.many, self.knobs.many_docs, 1),
        )
        for number, entity in enumerate(rng.permutation(owners).tolist()):
            yield {"id": f"{number}", "text": self.document(entity, rng), "entity": entity}

    def unseen(self, docs: int, seed: int = 0) -> Iterator[dict[str, Any]]:
        """Documents that the corpus does not hold, about entities with many and with one document in turn."""
        rng = np.random.default_rng([self.knobs.seed, 5, seed])
        for number in range(docs):
            wants_many = (number % 2 == 0 and self.many) or self.many == self.knobs.entities
            entity = int(
                rng.integers(*((0, self.many) if wants_many else (self.many, self.knobs.entities)))
            )
            yield {
                "id": f"unseen-{seed}-{number}",
                "text": self.document(entity, rng),
                "entity": entity,
            }

    def splits(self, validation: int, test: int) -> Iterator[dict[str, Any]]:
        """The corpus, held-out documents and the oracle's, each with its `split` and the `group` of its entity: `many`
        documents or `one`."""
        rng = np.random.default_rng([self.knobs.seed, 6])
        fresh = (int(e) for e in rng.integers(self.knobs.entities, size=self.knobs.oracle_docs))
        oracle = (
            {"id": f"oracle-{i}", "text": self.document(e, rng), "entity": e}
            for i, e in enumerate(fresh)
        )
        sets = {
            "pretrain": self.documents(),
            "validation": self.unseen(validation, 0),
            "test": self.unseen(test, 1),
        }
        for split, documents in (sets | {"oracle": oracle}).items():
            for document in documents:
                yield document | {"split": split, "group": self.group(document["entity"])}

    def group(self, entity: int) -> str:
        """Whether the corpus has `many` documents of an entity, or `one`."""
        return "many" if entity < self.many else "one"

    def nats(self, told: Told | None = None, known: np.ndarray | None = None) -> float:
        """-log P(document | its entity), its name included, for a reader who knows the world: the same for every document.

        With `told` and `known` (entity, attribute: whether D_pretrain tells it), for one who has read D_pretrain alone.
        """
        k = self.knobs
        orders = math.lgamma(k.attributes + 1) - math.lgamma(k.attributes - k.revealed + 1)
        places = sum(math.log(k.revealed + i + 1) for i in range(k.distractors))
        filler = k.distractors * math.log(len(_OPENERS) * len(_SUBJECTS) * len(_VERBS))
        least = orders + k.revealed * math.log(k.wordings) + places + filler
        if told is None or known is None:
            return least
        return least + math.log(k.values) * sum(
            not known[told.entity, attribute] for attribute, _, _ in told.facts
        )

    def prior(self, entity: int) -> float:
        """-log of how often a document of D_pretrain is about an entity: what its name costs without a d1."""
        docs = self.many * self.knobs.many_docs + (self.knobs.entities - self.many)
        return math.log(docs / (self.knobs.many_docs if entity < self.many else 1))

    def read(self, text: str) -> Told:
        """What a text says."""
        sentences = [s for s in re.split(r"(?<=\.)\s+", text.strip()) if s]
        entity = self._entities.get(sentences[0].removesuffix("."), -1) if sentences else -1
        facts, strange = [], 0
        for sentence in sentences[1:] if entity >= 0 else sentences:
            fact = self._fact(sentence, self.names[entity] if entity >= 0 else "")
            if fact is not None:
                facts.append(fact)
            elif not _DISTRACTOR.fullmatch(sentence):
                strange += 1
        return Told(entity, tuple(facts), strange)

    def parts(self, text: str, known: np.ndarray) -> np.ndarray:
        """(character): which of PARTS it belongs to, of a document of this world. Values are known where D_pretrain tells
        them (`known` as in `nats`)."""
        told, found = self.read(text), np.full(len(text), PARTS.index("form"), np.int64)
        values = {
            self.vocabulary[a][v]: "known values" if known[told.entity, a] else "unknown values"
            for a, _, v in told.facts
        }
        for word, part in ({self.names[told.entity]: "name again"} | values).items():
            for match in re.finditer(rf"\b{word}\b", text):
                found[slice(*match.span())] = PARTS.index("name" if match.start() == 0 else part)
        return found

    def known(self, texts: Iterable[str]) -> np.ndarray:
        """(entity, attribute): whether one of the texts tells it."""
        found = np.zeros(self.truth.shape, bool)
        for told in map(self.read, texts):
            for attribute, _, _ in told.facts if told.entity >= 0 else ():
                found[told.entity, attribute] = True
        return found

    def questions(self, known: np.ndarray) -> Iterator[dict[str, Any]]:
        """A closed-book question for every entity and attribute, all values of the attribute to choose from; its `group` says
        how many documents the entity has, and whether D_pretrain tells the answer."""
        for entity, name in enumerate(self.names):
            for attribute, noun in enumerate(NOUNS[: self.knobs.attributes]):
                told = "told" if known[entity, attribute] else "untold"
                yield {
                    "id": f"{entity}-{attribute}", "query": f"{name}. The {noun} of {name} is",
                    "choices": [f"{value}." for value in self.vocabulary[attribute]],
                    "gold": int(self.truth[entity, attribute]), "group": f"{self.group(entity)}, {told}",
                }  # fmt: skip

    def _fact(self, sentence: str, name: str) -> tuple[int, int, int] | None:
        nouns = NOUNS[: self.knobs.attributes]
        for wording, pattern in enumerate(_PATTERNS[: self.knobs.wordings]):
            match = pattern.fullmatch(sentence)
            if (
                match is None
                or match["noun"] not in nouns
                or match.groupdict().get("name", name) != name
            ):
                continue
            attribute, value = self._places.get(match["value"], (-1, -1))
            here = nouns.index(match["noun"])
            return here, wording, value if attribute == here else -1
        return None

    @cached_property
    def _entities(self) -> dict[str, int]:
        return {name: entity for entity, name in enumerate(self.names)}

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        return {
            word: (a, v) for a, words in enumerate(self.vocabulary) for v, word in enumerate(words)
        }

    def _sentence(self, entity: int, attribute: int, wording: int) -> str:
        value = self.vocabulary[attribute][self.truth[entity, attribute]]
        return WORDINGS[wording].format(noun=NOUNS[attribute], name=self.names[entity], value=value)

    @staticmethod
    def _distractor(rng: np.random.Generator) -> str:
        opener, subject, verb = (
            list_[int(rng.integers(8))] for list_ in (_OPENERS, _SUBJECTS, _VERBS)
        )
        return f"{opener} {subject} {verb}."


_PATTERNS = [
    re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\w+)", re.escape(wording))) for wording in WORDINGS
]
_DISTRACTOR = re.compile(f"({'|'.join(_OPENERS)}) ({'|'.join(_SUBJECTS)}) ({'|'.join(_VERBS)})\\.")


def _words(count: int, syllables: int, seed: int, purpose: int) -> list[str]:
    """Different made-up words, the first letter a capital."""
    rng, found = np.random.default_rng([seed, purpose]), dict[str, None]()
    while len(found) < count:
        found[
            "".join(
                _SYLLABLES[int(i)] for i in rng.integers(len(_SYLLABLES), size=syllables)
            ).capitalize()
        ] = None
    return list(found)
