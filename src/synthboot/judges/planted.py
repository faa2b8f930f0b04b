"""Cases whose answer is known, made of real text: faults planted in one half, none in the other.

- repetition: a few words over and over (`loop`), or a passage that comes a second time (`splice`),
- nonfactual: a `number` or a `name` in the place of another, or a `negation`, where one of the
  references tells the fact: what no reference tells, nobody can judge by them,
- irrelevance: a `random d1` in the place of the one that a document was paired with,
- copying: d1 itself with some of its words replaced by others, by what is left (`jaccard 0.7`).

A planted fault is not one that a model makes: what a judge finds of these is what it finds of the
like. Negations and names are English, or of scripts that have capitals.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from synthboot.artifacts.judged import Question
from synthboot.data import near_duplicates
from synthboot.judges.protocol import LONGEST, Item

NEAR = (0.9, 0.7, 0.5, 0.3)
"""Jaccard similarities of planted copies, taken in turn."""

_PIECE = re.compile(r"\S+\s*")
_LEAST_PIECES = 20  # a text of fewer words is cut into characters: it has no spaces
_NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*(?![\w]|[.,]\d)")
_NAME = re.compile(r"(?<=[a-z,;] )[^\W\d_a-z][^\W_]{2,}")
_VERB = re.compile(r"\b(is|are|was|were|has been|have been|can|will|does|do)\b(?! not\b| no\b|n't)")
_TRIES = 20

_T = TypeVar("_T")


@dataclass(frozen=True)
class Case:
    """An item, and the fault that was planted in it; empty where it is clean."""

    item: Item
    fault: str = ""


def cases(
    question: Question,
    real: Sequence[Item],
    strangers: Sequence[str],
    random: np.random.Generator,
) -> list[Case]:
    """The real items as they are, each followed by itself with a fault, where one can be planted.

    `strangers` are other documents, to take names and words and a d1 from.
    """
    planter = _Planter(strangers, random)
    plant = {
        "repetition": planter.repetition,
        "nonfactual": planter.nonfactual,
        "irrelevance": planter.irrelevance,
        "copying": planter.copying,
    }[question]
    found: list[Case] = []
    for item in real:
        # two faults of a kind in a row: one for each half of the cases
        faulty = plant(item, len(found) // 4)
        if faulty is not None:
            found += [Case(item), faulty]
    return found


@dataclass(frozen=True)
class _Planter:
    """Plants a fault in an item, of the kind whose turn it is by a number; None where there is no
    room for it."""

    strangers: Sequence[str]
    random: np.random.Generator

    def repetition(self, item: Item, number: int) -> Case | None:
        """A loop or a splice."""
        pieces = _pieces(item.text)
        if len(pieces) < _LEAST_PIECES:
            return None
        start = int(self.random.integers(len(pieces) // 4, len(pieces) // 2))
        if number % 2:
            passage = pieces[start : start + len(pieces) // 3]
            return _faulty(item, [*pieces[: start + len(passage)], " ", *passage], "splice")
        few = pieces[start : start + int(self.random.integers(2, 9))]
        times = max(4, (len(pieces) - start) // len(few))
        return _faulty(item, [*pieces[:start], *few * times], "loop")

    def nonfactual(self, item: Item, number: int) -> Case | None:
        """A number, a name or a negation that is not so."""
        references = " ".join(item.references)
        kinds = {
            "number": self._swapped_number,
            "name": self._swapped_name,
            "negation": self._negated,
        }
        # the kinds in turn; the next one where a text has nothing to swap
        in_turn = deque(kinds.items())
        in_turn.rotate(-number)
        for kind, swapped in in_turn:
            text = swapped(item.text, references)
            if text is not None:
                return Case(replace(item, text=text), kind)
        return None

    def irrelevance(self, item: Item, number: int) -> Case | None:
        """A stranger in the place of d1."""
        for _ in range(_TRIES):
            stranger = self._drawn(self.strangers)
            if stranger not in (item.d1, item.text, *item.others):
                return Case(replace(item, d1=stranger), "random d1")
        return None

    def copying(self, item: Item, number: int) -> Case | None:
        """d1 in the place of the text, its words replaced until little enough is left."""
        pieces = _pieces(item.d1)
        if len(pieces) < _LEAST_PIECES:
            return None
        wanted = NEAR[number % len(NEAR)]
        foreign = _pieces(self._drawn(self.strangers))
        shuffled = self.random.permutation(len(pieces)).tolist()
        for place in shuffled:
            pieces[place] = self._drawn(foreign).rstrip() + " "
            copy = "".join(pieces)
            if near_duplicates.similarity(item.d1, copy) <= wanted:
                return Case(replace(item, text=copy[:LONGEST]), f"jaccard {wanted}")
        return None

    def _swapped_number(self, text: str, references: str) -> str | None:
        """The text with another number in the place of one that the references have too."""
        known = set(_NUMBER.findall(text)) & set(_NUMBER.findall(references))
        numbers = [number for number in sorted(known) if re.search("[1-9]", number)]
        if not numbers:
            return None
        old = self._drawn(numbers)
        whole = re.compile(rf"(?<![\w.,]){re.escape(old)}(?![\w]|[.,]\d)")
        for _ in range(_TRIES):
            new = self._another_number(old)
            if new != old and new not in text:
                return whole.sub(new, text)
        return None

    def _another_number(self, number: str) -> str:
        """A number of as many digits; of a year the century stays."""
        kept = 2 if re.fullmatch(r"1[5-9]\d\d|20\d\d", number) else 0
        digits = []
        for place, digit in enumerate(number):
            least = 1 if place == 0 and len(number) > 1 else 0
            is_kept = place < kept or not digit.isdigit()
            digits.append(digit if is_kept else str(int(self.random.integers(least, 10))))
        return "".join(digits)

    def _swapped_name(self, text: str, references: str) -> str | None:
        """The text with a stranger's name in the place of one that the references have too."""
        known = set(_NAME.findall(text)) & set(re.findall(r"[^\W_]+", references))
        if not known:
            return None
        old = self._drawn(sorted(known))
        for _ in range(_TRIES):
            names = []
            for name in _NAME.findall(self._drawn(self.strangers)):
                if name not in references and name not in text:
                    names.append(name)
            if names:
                new = self._drawn(names)
                return re.sub(rf"\b{re.escape(old)}\b", new, text)
        return None

    def _negated(self, text: str, references: str) -> str | None:
        """The text with a "not" in a sentence of which half the words are in the references."""
        sentences = re.split(r"(?<=[.!?])(\s+)", text)  # (sentence, space, sentence, ...)
        known = set(re.findall(r"[^\W\d_]{4,}", references.lower()))
        able = []
        for place, sentence in enumerate(sentences):
            words = set(re.findall(r"[^\W\d_]{4,}", sentence.lower()))
            is_known = words and len(words & known) >= len(words) / 2
            if is_known and _VERB.search(sentence):
                able.append(place)
        if not able:
            return None
        place = self._drawn(able)
        negated = _VERB.sub(r"\1 not", sentences[place], count=1)
        negated = re.sub(r"\b(ha(?:s|ve)) been not\b", r"\1 not been", negated)
        return "".join([*sentences[:place], negated, *sentences[place + 1 :]])

    def _drawn(self, values: Sequence[_T]) -> _T:
        return values[int(self.random.integers(len(values)))]


def _pieces(text: str) -> list[str]:
    """Words with the space after each, or characters where there are no spaces."""
    pieces = _PIECE.findall(text)
    return pieces if len(pieces) >= _LEAST_PIECES else list(text)


def _faulty(item: Item, pieces: Sequence[str], fault: str) -> Case:
    return Case(replace(item, text="".join(pieces)[:LONGEST]), fault)
