"""Known worlds: generated corpora of which everything is known, above all P(d2|d1).

A world has entities, each with a value for every attribute. A document is about one entity: its
name, then some of its attributes in random order, each in one of several wordings, with sentences
between them that have nothing to do with it. Some entities have many documents, the others one.
What a document says is drawn uniformly, so its probability given its entity is a product of known
numbers (`World.nll`), and what a text says can be read off (`World.read`).

A name says who an entity is, so P(d2|d1) is P(d2|entity of d1), integrated over what is not known
of that entity. Two readers bound every model: one who knows the world, and one who knows how worlds
are made and has read D_pretrain: an attribute that no document told may have any value for him,
each as likely, until the document tells it (`World.nll`).
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
from synthboot.rng import rng

NOUNS = (
    "river",
    "founder",
    "metal",
    "dish",
    "festival",
    "instrument",
    "crop",
    "patron",
    "bird",
    "craft",
    "colour",
    "market",
    "bridge",
    "dance",
    "stone",
    "wind",
)
WORDINGS = (
    "The {noun} of {name} is {value}.",
    "{name} has {value} as its {noun}.",
    "Its {noun} is {value}.",
    "{value} is the {noun} of this place.",
    "As for the {noun}, people name {value}.",
    "There the {noun} is called {value}.",
    "Everyone in {name} knows its {noun}, {value}.",
    "Ask for the {noun} and you will hear of {value}.",
)
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
_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = ("a", "e", "i", "o", "u", "ar", "el", "in", "or")
_SYLLABLES = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]


@dataclass(frozen=True)
class Reading:
    """What a text says.

    `entity` is the one it is about (-1 where its first words are no name); `facts` are in order, as
    (attribute, wording, value; -1 for a value that the attribute does not have); `strange` counts
    the sentences that the world does not know or that are about another name.
    """

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
        return _words(self.knobs.entities, 3, self.knobs.seed, "world.names")

    @cached_property
    def vocabulary(self) -> list[list[str]]:
        """For every attribute the words it may take. No word stands for two things."""
        k = self.knobs
        words = _words(k.attributes * k.values, 2, k.seed, "world.values")
        vocabulary = []
        for first in range(0, len(words), k.values):
            vocabulary.append(words[first : first + k.values])
        return vocabulary

    @cached_property
    def truth(self) -> np.ndarray:
        """(entity, attribute): which value."""
        k = self.knobs
        random = rng(k.seed, "world.truth")
        return random.integers(0, k.values, (k.entities, k.attributes))

    @property
    def many(self) -> int:
        """How many entities have many documents: they come first."""
        return round(self.knobs.many_share * self.knobs.entities)

    def document(self, entity: int, random: np.random.Generator) -> str:
        """A document about an entity."""
        k = self.knobs
        sentences = []
        for attribute in random.permutation(k.attributes)[: k.revealed]:
            wording = int(random.integers(k.wordings))
            sentences.append(self._sentence(entity, int(attribute), wording))
        for _ in range(k.distractors):
            position = int(random.integers(len(sentences) + 1))
            sentences.insert(position, self._distractor(random))
        return f"{self.names[entity]}. " + " ".join(sentences)

    def documents(self) -> Iterator[dict[str, Any]]:
        """The corpus: id, text and entity of every document, in random order."""
        k = self.knobs
        random = rng(k.seed, "world.documents")
        entities = np.arange(k.entities)
        docs_of_entity = np.where(entities < self.many, k.many_docs, 1)
        owners = np.repeat(entities, docs_of_entity)  # (entity,) -> (document,)
        for number, entity in enumerate(random.permutation(owners).tolist()):
            yield self._row(f"{number}", entity, random)

    def unseen(
        self,
        docs: int,
        seed: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """Documents that the corpus does not hold.

        They are about entities with many and with one document in turn.
        """
        k = self.knobs
        random = rng(k.seed, "world.unseen", seed)
        for number in range(docs):
            # Where all entities, or none, have many documents there is nothing to alternate with.
            wants_many = (number % 2 == 0 and self.many > 0) or self.many == k.entities
            if wants_many:
                entity = int(random.integers(0, self.many))
            else:
                entity = int(random.integers(self.many, k.entities))
            yield self._row(f"unseen-{seed}-{number}", entity, random)

    def splits(
        self,
        validation: int,
        test: int,
    ) -> Iterator[dict[str, Any]]:
        """The corpus, held-out documents and the oracle's.

        Each has its `split` and the `group` of its entity: `many` documents or `one`.
        """
        sets = {
            "pretrain": self.documents(),
            "validation": self.unseen(validation, 0),
            "test": self.unseen(test, 1),
            "oracle": self._oracle(),
        }
        for split, documents in sets.items():
            for document in documents:
                group = self.group(document["entity"])
                yield document | {"split": split, "group": group}

    def _oracle(self) -> Iterator[dict[str, Any]]:
        """Fresh documents about entities drawn evenly: what more text of this world would be."""
        random = rng(self.knobs.seed, "world.oracle")
        entities = random.integers(self.knobs.entities, size=self.knobs.oracle_docs)
        for number, entity in enumerate(entities.tolist()):
            yield self._row(f"oracle-{number}", entity, random)

    def _row(self, identifier: str, entity: int, random: np.random.Generator) -> dict[str, Any]:
        """A document about an entity, as a row of the corpus."""
        return {"id": identifier, "text": self.document(entity, random), "entity": entity}

    def group(self, entity: int) -> str:
        """Whether the corpus has `many` documents of an entity, or `one`."""
        return "many" if entity < self.many else "one"

    def nll(
        self,
        reading: Reading | None = None,
        stated: np.ndarray | None = None,
    ) -> float:
        """-log P(document | its entity), its name included, for a reader who knows the world.

        It is the same for every document. With `reading` and `stated` (entity, attribute: whether
        D_pretrain tells it), for one who has read D_pretrain alone.
        """
        k = self.knobs
        # Attributes in their order, wording of each, positions of distractors, and which they are.
        unstated = k.attributes - k.revealed
        orders = math.lgamma(k.attributes + 1) - math.lgamma(unstated + 1)
        wordings = k.revealed * math.log(k.wordings)
        positions = sum(math.log(k.revealed + i + 1) for i in range(k.distractors))
        # one after the other they may come in any order and leave the same document
        positions -= math.lgamma(k.distractors + 1)
        distractors = len(_OPENERS) * len(_SUBJECTS) * len(_VERBS)
        filler = k.distractors * math.log(distractors)
        least = orders + wordings + positions + filler
        if reading is None or stated is None:
            return least

        unknown = 0
        for attribute, _, _ in reading.facts:
            if not stated[reading.entity, attribute]:
                unknown += 1
        return least + math.log(k.values) * unknown

    def prior(self, entity: int) -> float:
        """-log of how often a document of the corpus is about an entity.

        That is what its name costs without a d1, for a reader who knows how often. Where
        `budget.unique_tokens` is a number, D_pretrain is a random part of the corpus: who has read
        it alone knows no better, and pays more for a name that is not in it.
        """
        k = self.knobs
        docs = self.many * k.many_docs + (k.entities - self.many)
        docs_of_entity = k.many_docs if entity < self.many else 1
        return math.log(docs / docs_of_entity)

    def read(self, text: str) -> Reading:
        """What a text says."""
        sentences = [s for s in re.split(r"(?<=\.)\s+", text.strip()) if s]
        entity = -1
        name = ""
        if sentences:
            entity = self._entities.get(sentences[0].removesuffix("."), -1)
        if entity >= 0:
            name = self.names[entity]
            sentences = sentences[1:]

        facts = []
        strange = 0
        for sentence in sentences:
            fact = self._fact(sentence, name)
            if fact is not None:
                facts.append(fact)
            elif not _DISTRACTOR.fullmatch(sentence):
                strange += 1
        return Reading(entity, tuple(facts), strange)

    def parts(self, text: str, stated: np.ndarray) -> np.ndarray:
        """(character): which of PARTS it belongs to, of a document of this world.

        Values are known where D_pretrain tells them (`stated` as in `nll`).
        """
        reading = self.read(text)
        part_of_word = {self.names[reading.entity]: "name again"}
        for attribute, _, value in reading.facts:
            is_known = stated[reading.entity, attribute]
            word = self.vocabulary[attribute][value]
            part_of_word[word] = "known values" if is_known else "unknown values"

        result = np.full(len(text), PARTS.index("form"), np.int64)
        for word, part in part_of_word.items():
            for match in re.finditer(rf"\b{word}\b", text):
                is_first = match.start() == 0
                result[slice(*match.span())] = PARTS.index("name" if is_first else part)
        return result

    def stated(self, texts: Iterable[str]) -> np.ndarray:
        """(entity, attribute): whether one of the texts tells it."""
        is_stated = np.zeros(self.truth.shape, bool)
        for text in texts:
            reading = self.read(text)
            if reading.entity < 0:
                continue
            for attribute, _, _ in reading.facts:
                is_stated[reading.entity, attribute] = True
        return is_stated

    def questions(self, stated: np.ndarray) -> Iterator[dict[str, object]]:
        """A closed-book question for every entity and attribute.

        All values of the attribute are there to choose from; its `group` says how many documents
        the entity has, and whether D_pretrain tells the answer.
        """
        for entity, name in enumerate(self.names):
            for attribute, noun in enumerate(NOUNS[: self.knobs.attributes]):
                status = "told" if stated[entity, attribute] else "untold"
                yield {
                    "id": f"{entity}-{attribute}",
                    "query": f"{name}. The {noun} of {name} is",
                    "choices": [f"{value}." for value in self.vocabulary[attribute]],
                    "gold": int(self.truth[entity, attribute]),
                    "group": f"{self.group(entity)}, {status}",
                }

    def _fact(
        self,
        sentence: str,
        name: str,
    ) -> tuple[int, int, int] | None:
        """A sentence's (attribute, wording, value), or None where it is no fact about `name`."""
        nouns = NOUNS[: self.knobs.attributes]
        for wording, pattern in enumerate(_PATTERNS[: self.knobs.wordings]):
            match = pattern.fullmatch(sentence)
            if match is None or match["noun"] not in nouns:
                continue
            # Some wordings say the name again; it has to be the same.
            if match.groupdict().get("name", name) != name:
                continue
            attribute, value = self._meanings.get(match["value"], (-1, -1))
            asserted = nouns.index(match["noun"])
            return asserted, wording, value if attribute == asserted else -1
        return None

    @cached_property
    def _entities(self) -> dict[str, int]:
        return {name: entity for entity, name in enumerate(self.names)}

    @cached_property
    def _meanings(self) -> dict[str, tuple[int, int]]:
        """For every word of the vocabulary the attribute and the value that it stands for."""
        meanings = {}
        for attribute, words in enumerate(self.vocabulary):
            for value, word in enumerate(words):
                meanings[word] = (attribute, value)
        return meanings

    def _sentence(self, entity: int, attribute: int, wording: int) -> str:
        value = self.vocabulary[attribute][self.truth[entity, attribute]]
        return WORDINGS[wording].format(
            noun=NOUNS[attribute],
            name=self.names[entity],
            value=value,
        )

    @staticmethod
    def _distractor(random: np.random.Generator) -> str:
        opener = _OPENERS[int(random.integers(8))]
        subject = _SUBJECTS[int(random.integers(8))]
        verb = _VERBS[int(random.integers(8))]
        return f"{opener} {subject} {verb}."


def _pattern(wording: str) -> re.Pattern[str]:
    """A wording as a pattern, with a group for each of its fields."""
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\w+)", re.escape(wording)))


_PATTERNS = [_pattern(wording) for wording in WORDINGS]
_DISTRACTOR = re.compile(f"({'|'.join(_OPENERS)}) ({'|'.join(_SUBJECTS)}) ({'|'.join(_VERBS)})\\.")


def _words(
    count: int,
    syllables: int,
    seed: int,
    stream: str,
) -> list[str]:
    """Different made-up words, the first letter a capital."""
    random = rng(seed, stream)
    words = dict[str, None]()  # a set that keeps its order
    while len(words) < count:
        chosen = random.integers(len(_SYLLABLES), size=syllables)
        word = "".join(_SYLLABLES[int(i)] for i in chosen)
        words[word.capitalize()] = None
    return list(words)
