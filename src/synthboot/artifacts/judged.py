"""What judges said: of every question a verdict with its error, and of every text a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BeforeValidator, PlainSerializer

from synthboot.artifacts.store import read_table
from synthboot.statistics import Interval

Question = Literal["repetition", "nonfactual", "irrelevance", "copying"]
"""What is judged; `judges.protocol.QUESTIONS` has them in words."""

_FILE = "judged.parquet"


def _or_null(threshold: float) -> float | None:
    return threshold if math.isfinite(threshold) else None


def _or_infinity(threshold: float | None) -> float:
    return math.inf if threshold is None else threshold


Threshold = Annotated[float, PlainSerializer(_or_null), BeforeValidator(_or_infinity)]
"""The score above which a text is called faulty; infinity, where none is, is null in JSON."""


@dataclass(frozen=True)
class Spent:
    """Tokens of prompts and of answers (completions); `untold` counts the answers whose server did
    not say how many they took."""

    prompt: int = 0
    completion: int = 0
    untold: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.prompt + other.prompt,
            self.completion + other.completion,
            self.untold + other.untold,
        )

    @property
    def tokens(self) -> int:
        """All tokens that are known of."""
        return self.prompt + self.completion


NOTHING = Spent()


@dataclass(frozen=True)
class Rate:
    """Of one kind of text: how many were judged, and how many could not be (`unanswered`).

    `judged` is the share that was called faulty, `corrected` what that makes the true one; None
    where that is refused, or nothing was judged.
    """

    items: int
    unanswered: int
    judged: float | None
    corrected: Interval | None


@dataclass(frozen=True)
class Verdict:
    """What a judge says to a question, and how well it says it.

    `identity` is what its scores depend on: a model, the hashes of its prompts. `specificity` and
    `sensitivity` are the shares of `clean` and `faulty` known cases that it told right, `by_fault`
    the share found and the number of cases of each kind of fault. `kappa` says how far two passes
    agree, None where there is but one. `refused` says why no rate is given; empty where `rates`, by
    kind of text, stand. `requests` are the scores that it took, and `spent` their tokens; `unasked`
    texts and cases came after the budget of tokens had ended. `dollars` is None where no price is
    known.
    """

    judge: str
    question: Question
    identity: dict[str, str]
    threshold: Threshold
    specificity: Interval
    clean: int
    sensitivity: Interval
    faulty: int
    by_fault: dict[str, tuple[float, int]]
    kappa: float | None
    refused: str
    requests: int
    rates: dict[str, Rate]
    spent: Spent
    unasked: int
    dollars: float | None = None


@dataclass(frozen=True)
class JudgedText:
    """What one judge gave one text, as it read it (cut, with its d1 or the real documents nearest
    to it): faulty above the `threshold`. `refused` says why the judge is not believed; a score that
    is not-a-number is no answer."""

    judge: str
    question: str
    kind: str
    score: float
    threshold: float
    refused: str
    text: str
    d1: str
    references: tuple[str, ...]

    @property
    def is_faulty(self) -> bool:
        """Whether the judge calls it so."""
        return self.score > self.threshold


_SCHEMA = pa.schema(
    {
        "judge": pa.string(),
        "question": pa.string(),
        "kind": pa.string(),
        "score": pa.float64(),
        "threshold": pa.float64(),
        "refused": pa.string(),
        "text": pa.string(),
        "d1": pa.string(),
        "references": pa.list_(pa.string()),
    }
)


def save_judged_texts(folder: Path, rows: Sequence[JudgedText]) -> None:
    """Write `judged.parquet`, if anything was judged."""
    if rows:
        table = pa.Table.from_pylist([vars(row) for row in rows], _SCHEMA)
        pq.write_table(table, folder / _FILE, compression="zstd")


def judged_texts(folder: Path) -> list[JudgedText]:
    """What judges gave every text, in the order in which they were asked; nothing where nobody
    was."""
    if not (folder / _FILE).exists():
        return []
    rows = read_table(folder / _FILE).to_pylist()
    return [JudgedText(**row | {"references": tuple(row["references"])}) for row in rows]
