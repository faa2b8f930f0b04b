"""Judging: known cases and texts of several kinds in, rates out, with the error of who judged.

For every judge and question:

1. the known cases are scored by all passes; an item's score is the mean of them,
2. one half of the cases says above which score a text is called faulty, the other half how often
   that is right (q0, q1), so that no case is judged by a threshold that was fitted to it,
3. the texts are scored, and the share that is called faulty is corrected by q0 and q1 (`rates.py`),
   or refused where the judge has next to no skill,
4. kappa says how far two passes agree on all that was scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from synthboot.judges import rates
from synthboot.judges.planted import Case
from synthboot.judges.protocol import Item, Judge, Question
from synthboot.judges.record import Record, name_of
from synthboot.statistics import Interval

_CHUNK = 256  # items whose scores a judge is asked for at once


@dataclass(frozen=True)
class Rate:
    """Of one kind of text: how many were judged, and how many could not be (`unanswered`).

    `judged` is the share that was called faulty, `corrected` what that makes the true one; None
    where that is refused.
    """

    items: int
    unanswered: int
    judged: float | None
    corrected: Interval | None


@dataclass(frozen=True)
class Verdict:
    """What a judge says to a question, and how well it says it.

    `specificity` and `sensitivity` are of `clean` and `faulty` known cases, `by_fault` the share
    found and the number of cases of each kind of fault. `refused` says why no rate is given.
    `requests` are the scores that it took.
    """

    judge: str
    question: Question
    identity: Mapping[str, str]
    threshold: float
    specificity: Interval
    clean: int
    sensitivity: Interval
    faulty: int
    by_fault: Mapping[str, tuple[float, int]]
    kappa: float | None
    refused: str
    requests: int
    rates: Mapping[str, Rate]


def judge(
    judge: Judge,
    question: Question,
    cases: Sequence[Case],
    kinds: Mapping[str, Sequence[Item]],
    record: Record,
    progress: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """The verdict of one judge on one question, which it must be able to judge.

    `cases` come in random order; `record` holds the scores that are there already.
    """
    items = [case.item for case in cases]
    slices = {}
    for kind, texts in kinds.items():
        slices[kind] = slice(len(items), len(items) + len(texts))
        items += texts
    scores = _scores(judge, question, items, record, progress)  # (pass, item)
    mean = scores.mean(0)
    answered = np.isfinite(mean)

    is_faulty = np.array([bool(case.fault) for case in cases], bool)
    known = np.flatnonzero(answered[: len(cases)])
    fitted, tested = _halves(known, is_faulty)
    limit = rates.threshold(
        mean[fitted[~is_faulty[fitted]]],
        mean[fitted[is_faulty[fitted]]],
    )
    error = rates.measured(
        mean[tested[~is_faulty[tested]]].tolist(),
        mean[tested[is_faulty[tested]]].tolist(),
        limit,
    )

    by_kind = {}
    for kind, chosen in slices.items():
        called = mean[chosen][answered[chosen]] > limit
        by_kind[kind] = Rate(
            items=len(called),
            unanswered=int((~answered[chosen]).sum()),
            judged=float(called.mean()) if len(called) else None,
            corrected=error.corrected(int(called.sum()), len(called)),
        )
    agreement = None
    if len(scores) > 1:
        called = scores[:, answered] > limit
        agreement = rates.kappa(called[0], called[1])
    return Verdict(
        judge=judge.name,
        question=question,
        identity=dict(judge.identity),
        threshold=limit,
        specificity=error.specificity,
        clean=error.clean,
        sensitivity=error.sensitivity,
        faulty=error.faulty,
        by_fault=_by_fault([cases[i] for i in tested], mean[tested] > limit),
        kappa=agreement,
        refused=error.refusal,
        requests=scores.size,
        rates=by_kind,
    )


def scored(judge: Judge, question: Question, items: Sequence[Item]) -> Float[np.ndarray, " item"]:
    """The score of every item, the mean of all passes; nothing is recorded."""
    scores = np.full((judge.passes(question), len(items)), np.nan)
    for number, of_pass in enumerate(scores):

        def told(index: int, score: float, row: np.ndarray = of_pass) -> None:
            row[index] = score

        judge.score(question, items, number, told)
    mean: np.ndarray = scores.mean(0)
    return mean


def as_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict as plain values; a threshold that nothing exceeds is None."""
    limit = verdict.threshold
    kinds = {kind: dict(vars(rate)) for kind, rate in verdict.rates.items()}
    found = {**vars(verdict), "rates": kinds, "by_fault": dict(verdict.by_fault)}
    return found | {"threshold": limit if np.isfinite(limit) else None}


def _scores(
    judge: Judge,
    question: Question,
    items: Sequence[Item],
    record: Record,
    progress: Callable[[str], None],
) -> Float[np.ndarray, "number item"]:
    """The score of every item by every pass; what the record lacks is asked for and added."""
    passes = judge.passes(question)
    scores = np.full((passes, len(items)), np.nan)
    for number in range(passes):
        names = [name_of(judge, question, number, item) for item in items]
        # the same text twice, in two kinds or twice sampled, is asked once
        missing = {name: i for i, name in enumerate(names) if name not in record.scores}
        wanted = list(missing.items())
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]

            def told(index: int, score: float, chunk: list[tuple[str, int]] = chunk) -> None:
                record.add(chunk[index][0], score)

            judge.score(question, [items[i] for _, i in chunk], number, told)
            done = start + len(chunk)
            progress(f"{judge.name}, {question}: {done:,} of {len(wanted):,} items")
        scores[number] = [record.scores[name] for name in names]
    return scores


def _halves(known: np.ndarray, is_faulty: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cases that fit the threshold and those that test it: clean and faulty in turn."""
    fitted: list[int] = []
    tested: list[int] = []
    for chosen in (known[~is_faulty[known]], known[is_faulty[known]]):
        fitted += chosen[0::2].tolist()
        tested += chosen[1::2].tolist()
    return np.array(sorted(fitted), np.int64), np.array(sorted(tested), np.int64)


def _by_fault(cases: Sequence[Case], called: np.ndarray) -> dict[str, tuple[float, int]]:
    found: dict[str, list[bool]] = {}
    for case, is_called in zip(cases, called.tolist(), strict=True):
        if case.fault:
            found.setdefault(case.fault, []).append(is_called)
    return {fault: (sum(hits) / len(hits), len(hits)) for fault, hits in sorted(found.items())}
