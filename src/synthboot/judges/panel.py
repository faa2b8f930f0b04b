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

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from synthboot.artifacts.judged import NOTHING, Question, Rate, Spent, Verdict
from synthboot.judges import rates
from synthboot.judges.planted import Case
from synthboot.judges.protocol import Item, Judge
from synthboot.judges.record import Record, name_of

_CHUNK = 256  # items whose scores a judge is asked for at once
_CHUNK_OF_BUDGET = 16  # so few where tokens are counted: that many too many are asked
_SECONDS_A_WORD = 1.0  # between two words about progress


@dataclass(frozen=True)
class Judged:
    """A verdict, and by kind the score of every text that was asked about; not-a-number is no
    answer."""

    verdict: Verdict
    scores: Mapping[str, Sequence[float]]


def judge(
    judge: Judge,
    question: Question,
    cases: Sequence[Case],
    kinds: Mapping[str, Sequence[Item]],
    record: Record,
    progress: Callable[[str], None] = lambda _: None,
    most_tokens: float = math.inf,
) -> Judged:
    """The verdict of one judge on one question, which it must be able to judge.

    `cases` come in random order; `record` holds the scores that are there already. Once
    `most_tokens` are spent, what is left is not asked about: cases come first.
    """
    items, places = _in_turn([case.item for case in cases], kinds)
    said = _scores(judge, question, items, record, most_tokens, progress)
    mean = said.by_pass.mean(0)  # (item)
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
    given = {}
    for kind, of_kind in places.items():
        chosen = [place for place in of_kind if place < said.asked]
        given[kind] = mean[chosen].tolist()
        called = mean[chosen][answered[chosen]] > limit
        by_kind[kind] = Rate(
            items=len(called),
            unanswered=int((~answered[chosen]).sum()),
            judged=float(called.mean()) if len(called) else None,
            corrected=error.corrected(int(called.sum()), len(called)),
        )
    agreement = None
    if len(said.by_pass) > 1:
        called = said.by_pass[:, answered] > limit
        agreement = rates.kappa(called[0], called[1])
    verdict = Verdict(
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
        requests=len(said.by_pass) * said.asked,
        rates=by_kind,
        spent=said.spent,
        unasked=len(items) - said.asked,
    )
    return Judged(verdict, given)


def scored(judge: Judge, question: Question, items: Sequence[Item]) -> Float[np.ndarray, " item"]:
    """The score of every item, the mean of all passes; nothing is recorded."""
    scores = np.full((judge.passes(question), len(items)), np.nan)
    for pass_number, of_pass in enumerate(scores):
        judge.score(question, items, pass_number, partial(_set, of_pass))
    mean: np.ndarray = scores.mean(0)
    return mean


def _set(row: np.ndarray, index: int, score: float, spent: Spent = NOTHING, /) -> None:
    row[index] = score


def _in_turn(
    first: Sequence[Item], kinds: Mapping[str, Sequence[Item]]
) -> tuple[list[Item], dict[str, list[int]]]:
    """All items to score, and where those of each kind stand: one of each kind after the other, so
    that a budget ends for all kinds alike."""
    items = list(first)
    places: dict[str, list[int]] = {kind: [] for kind in kinds}
    for number in range(max(map(len, kinds.values()), default=0)):
        for kind, texts in kinds.items():
            if number < len(texts):
                places[kind].append(len(items))
                items.append(texts[number])
    return items, places


@dataclass(frozen=True)
class _Scored:
    """What a judge said to a question: `by_pass` has the score of every item by every pass, for the
    first `asked` items; the others came after the budget of tokens had ended."""

    by_pass: Float[np.ndarray, "pass item"]
    asked: int
    spent: Spent


def _scores(
    judge: Judge,
    question: Question,
    items: Sequence[Item],
    record: Record,
    most_tokens: float,
    progress: Callable[[str], None],
) -> _Scored:
    """The scores of the items, taken from the record or else asked for and added to it, until
    `most_tokens` are spent."""
    passes = judge.passes(question)
    by_pass = np.full((passes, len(items)), np.nan)
    spent = NOTHING
    counted: set[str] = set()
    chunk = _CHUNK if most_tokens == math.inf else _CHUNK_OF_BUDGET
    for start in range(0, len(items), chunk):
        # what an earlier try has spent counts too, so that a killed run ends at the same item
        if spent.tokens >= most_tokens:
            return _Scored(by_pass, asked=start, spent=spent)

        part = items[start : start + chunk]
        for pass_number in range(passes):
            turn = f", pass {pass_number + 1} of {passes}" if passes > 1 else ""
            subject = f"{judge.name}, {question}"
            of = f"of {len(items):,} items{turn}"
            names = [name_of(judge, question, pass_number, item) for item in part]
            _ask(
                judge,
                question,
                dict(zip(names, part, strict=True)),
                pass_number,
                record,
                partial(_tell, progress, subject, of, start),
            )
            by_pass[pass_number, start : start + len(part)] = [record.scores[n] for n in names]
            # the same text may come twice, and was paid for once
            for name in set(names) - counted:
                spent += record.spent[name]
            counted.update(names)
    return _Scored(by_pass, asked=len(items), spent=spent)


def _tell(
    progress: Callable[[str], None],
    subject: str,
    of: str,
    before: int,
    scored: int,
) -> None:
    """Tell how many items of a pass have a score: those `before` this chunk, and those of it."""
    progress(f"{subject}: {before + scored:,} {of}")


def _ask(
    judge: Judge,
    question: Question,
    items: Mapping[str, Item],
    pass_number: int,
    record: Record,
    progress: Callable[[int], None],
) -> None:
    """Have the record hold the score of each of these items, known by its name; the same text in
    two kinds, or twice sampled, is asked once. `progress` has now and then how many it holds."""
    missing = [name for name in items if name not in record.scores]
    held = len(items) - len(missing)
    last = -math.inf

    def on_score(index: int, score: float, spent: Spent = NOTHING, /) -> None:
        nonlocal held, last
        record.add(missing[index], score, spent)
        held += 1
        if time.monotonic() - last > _SECONDS_A_WORD:
            last = time.monotonic()
            progress(held)

    if missing:
        judge.score(question, [items[name] for name in missing], pass_number, on_score)


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
