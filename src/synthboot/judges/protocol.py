"""What every judge takes and gives: items in, a score for each out, the higher the worse.

A score is on the judge's own scale. Known cases tell where a fault begins on it, and how often the
judge is wrong (`panel.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from synthboot.artifacts.judged import NOTHING, Question, Spent

QUESTIONS: Mapping[Question, str] = {
    "repetition": "repetition within a document",
    "nonfactual": "non-factual",
    "irrelevance": "pair irrelevance: d2 unrelated to d1",
    "copying": "pair copying: d2 copies d1",
}
"""What is judged, as the paper's table names it. Source: arXiv:2509.15248, quality table."""

LONGEST = 1_600
"""Characters of a text that are judged; planted faults lie within them, so that a judge can find
them."""


@runtime_checkable
class OnScore(Protocol):
    """Called with the index of an item, its score, and what that took, as soon as it is there."""

    def __call__(self, index: int, score: float, spent: Spent = NOTHING, /) -> None:
        """Take one score; scores come in any order."""
        ...


@dataclass(frozen=True)
class Item:
    """A text to judge, with its d1 where it is half of a pair.

    `references` are the real documents nearest to it, for facts; `others` are random documents in
    the place of d1, one for each pass of a judge that compares.
    """

    text: str
    d1: str = ""
    references: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@runtime_checkable
class Judge(Protocol):
    """Anything that scores items."""

    @property
    def name(self) -> str:
        """Its name in `analyze.judges`."""
        ...

    @property
    def identity(self) -> Mapping[str, str]:
        """What its scores depend on besides the items: a model, the hashes of its prompts."""
        ...

    def passes(self, question: Question) -> int:
        """In how many different ways it judges this question; 0 where it does not judge it."""
        ...

    def score(
        self, question: Question, items: Sequence[Item], pass_number: int, on_score: OnScore
    ) -> None:
        """Hand the score of every item to `on_score`, judged in the way of pass `pass_number`, from
        0 on; not-a-number where there is no answer."""
        ...
