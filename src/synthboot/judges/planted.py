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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from synthboot.data import ngrams
from synthboot.judges.protocol import LONGEST, Item, Question

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
    plant = _PLANTERS[question]
    found: list[Case] = []
    for item in real:
        # two faults of a kind in a row: one for each half of the cases
        faulty = plant(item, strangers, random, len(found) // 4)
        if faulty is not None:
            found += [Case(item), faulty]
    return found


def _repetition(
    item: Item, strangers: Sequence[str], random: np.random.Generator, number: int
) -> Case | None:
    pieces = _pieces(item.text)
    if len(pieces) < _LEAST_PIECES:
        return None
    start = int(random.integers(len(pieces) // 4, len(pieces) // 2))
    if number % 2:
        passage = pieces[start : start + len(pieces) // 3]
        return _faulty(item, [*pieces[: start + len(passage)], " ", *passage], "splice")
    few = pieces[start : start + int(random.integers(2, 9))]
    times = max(4, (len(pieces) - start) // len(few))
    return _faulty(item, [*pieces[:start], *few * times], "loop")


def _nonfactual(
    item: Item, strangers: Sequence[str], random: np.random.Generator, number: int
) -> Case | None:
    told = " ".join(item.references)
    planters = [_swapped_number, _swapped_name, _negated]
    # the kinds in turn; the next one where a text has nothing to swap
    for turn in range(3):
        swapped = planters[(number + turn) % 3](item.text, told, strangers, random)
        if swapped is not None:
            return Case(replace(item, text=swapped[0]), swapped[1])
    return None


def _swapped_number(
    text: str, told: str, strangers: Sequence[str], random: np.random.Generator
) -> tuple[str, str] | None:
    known = set(_NUMBER.findall(text)) & set(_NUMBER.findall(told))
    numbers = [number for number in sorted(known) if re.search("[1-9]", number)]
    if not numbers:
        return None
    old = _drawn(numbers, random)
    whole = re.compile(rf"(?<![\w.,]){re.escape(old)}(?![\w]|[.,]\d)")
    for _ in range(_TRIES):
        new = _another_number(old, random)
        if new != old and new not in text:
            return whole.sub(new, text), "number"
    return None


def _another_number(number: str, random: np.random.Generator) -> str:
    """A number of as many digits; of a year the century stays."""
    kept = 2 if re.fullmatch(r"1[5-9]\d\d|20\d\d", number) else 0
    digits = []
    for place, digit in enumerate(number):
        least = 1 if place == 0 and len(number) > 1 else 0
        is_kept = place < kept or not digit.isdigit()
        digits.append(digit if is_kept else str(int(random.integers(least, 10))))
    return "".join(digits)


def _swapped_name(
    text: str, told: str, strangers: Sequence[str], random: np.random.Generator
) -> tuple[str, str] | None:
    known = set(_NAME.findall(text)) & set(re.findall(r"[^\W_]+", told))
    if not known:
        return None
    old = _drawn(sorted(known), random)
    for _ in range(_TRIES):
        names = []
        for name in _NAME.findall(_drawn(strangers, random)):
            if name not in told and name not in text:
                names.append(name)
        if names:
            new = _drawn(names, random)
            return re.sub(rf"\b{re.escape(old)}\b", new, text), "name"
    return None


def _negated(
    text: str, told: str, strangers: Sequence[str], random: np.random.Generator
) -> tuple[str, str] | None:
    sentences = re.split(r"(?<=[.!?])(\s+)", text)  # (sentence, space, sentence, ...)
    known = set(re.findall(r"[^\W\d_]{4,}", told.lower()))
    able = []
    for place, sentence in enumerate(sentences):
        words = set(re.findall(r"[^\W\d_]{4,}", sentence.lower()))
        if _VERB.search(sentence) and words and len(words & known) >= len(words) / 2:
            able.append(place)
    if not able:
        return None
    place = _drawn(able, random)
    negated = _VERB.sub(r"\1 not", sentences[place], count=1)
    negated = re.sub(r"\b(ha(?:s|ve)) been not\b", r"\1 not been", negated)
    return "".join([*sentences[:place], negated, *sentences[place + 1 :]]), "negation"


def _irrelevance(
    item: Item, strangers: Sequence[str], random: np.random.Generator, number: int
) -> Case | None:
    for _ in range(_TRIES):
        stranger = _drawn(strangers, random)
        if stranger not in (item.d1, item.text, *item.others):
            return Case(replace(item, d1=stranger), "random d1")
    return None


def _copying(
    item: Item, strangers: Sequence[str], random: np.random.Generator, number: int
) -> Case | None:
    pieces = _pieces(item.d1)
    if len(pieces) < _LEAST_PIECES:
        return None
    wanted = NEAR[number % len(NEAR)]
    foreign = _pieces(_drawn(strangers, random))
    shuffled = random.permutation(len(pieces)).tolist()
    for place in shuffled:
        pieces[place] = _drawn(foreign, random).rstrip() + " "
        copy = "".join(pieces)
        if ngrams.alike(item.d1, copy) <= wanted:
            return Case(replace(item, text=copy[:LONGEST]), f"jaccard {wanted}")
    return None


def _drawn(values: Sequence[_T], random: np.random.Generator) -> _T:
    return values[int(random.integers(len(values)))]


def _pieces(text: str) -> list[str]:
    """Words with the space after each, or characters where there are no spaces."""
    pieces = _PIECE.findall(text)
    return pieces if len(pieces) >= _LEAST_PIECES else list(text)


def _faulty(item: Item, pieces: Sequence[str], fault: str) -> Case:
    return Case(replace(item, text="".join(pieces)[:LONGEST]), fault)


_Planter = Callable[[Item, Sequence[str], np.random.Generator, int], "Case | None"]
_PLANTERS: dict[Question, _Planter] = {
    "repetition": _repetition,
    "nonfactual": _nonfactual,
    "irrelevance": _irrelevance,
    "copying": _copying,
}
