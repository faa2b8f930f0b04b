"""How good text is, in tables: the paper's quality table with this run's figures, Duplicate@N, and
everything else that was measured.

The paper's table has a row for each of its five questions and everybody who answers it, by counting
or as a judge, and a column for each kind of text. A judge's rate is the corrected one; the share
that it called faulty stands in analyze.json.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from synthboot.artifacts.analysis import Analysis, FactShares
from synthboot.artifacts.judged import NOTHING, Verdict
from synthboot.judges.protocol import QUESTIONS
from synthboot.statistics import Interval

DUPLICATES = "duplicates in a sample"
PAPER_HEADERS = ("paper: 200B, 3B", "paper: 1T, 3B", "paper: 1T, 6B", "paper: real text")
PAPER: Mapping[str, tuple[str, ...]] = {
    QUESTIONS["repetition"]: ("4.3 %", "3.9 %", "2.6 %", "1.8 %"),
    DUPLICATES: ("0.8 %", "0.8 %", "0.3 %", "0.7 %"),
    QUESTIONS["nonfactual"]: ("15.1 %", "8.7 %", "6.5 %", "1.8 %"),
    QUESTIONS["irrelevance"]: ("25.6 %", "7.8 %", "6.0 %", "-"),
    QUESTIONS["copying"]: ("0.1 %", "0.9 %", "0.3 %", "-"),
}
"""Source: arXiv:2509.15248, quality table; duplicates in a sample of a million."""

REFUSED = "refused"
_UNMEASURED = "-"


@dataclass(frozen=True)
class Table:
    """Rows of text under headers; `notes` say what cannot stand in a cell."""

    headers: list[str]
    rows: list[list[str]]
    notes: list[str]


def table(analyzed: Analysis) -> Table:
    """The paper's quality table with what `analyze` left."""
    kinds = [kind for kind in analyzed.kinds if kind != "D_pretrain"]
    headers = ["share of texts", "by", "q0", "q1", "kappa", *kinds, *PAPER_HEADERS]
    notes = []
    rows = []
    counted = _counted(analyzed, kinds)
    for name, paper in PAPER.items():
        own = []
        for count in counted:
            if count.question == name and not count.shares.keys().isdisjoint(kinds):
                own.append(count.cells(kinds))
        for verdict in analyzed.judged:
            if QUESTIONS[verdict.question] == name:
                own.append(_judged(verdict, kinds))
                if verdict.refused:
                    notes.append(f"{name}, by {_name(verdict.judge)}: {verdict.refused}")
        # the paper's figures stand once
        for number, cells in enumerate(own or [[_UNMEASURED] * (4 + len(kinds))]):
            beside = paper if number == 0 else ("",) * len(paper)
            rows.append([name if number == 0 else "", *cells, *beside])
    return Table(headers, rows, notes + spent(analyzed.judged))


def spent(judged: Sequence[Verdict]) -> list[str]:
    """What language models took to judge, a sentence for each; and what a budget left out."""
    by_judge: dict[str, list[Verdict]] = {}
    for verdict in judged:
        if verdict.spent != NOTHING:
            by_judge.setdefault(_name(verdict.judge), []).append(verdict)

    notes = []
    for judge, verdicts in by_judge.items():
        total = sum((verdict.spent for verdict in verdicts), NOTHING)
        note = (
            f"{judge} took {total.prompt:,} tokens of prompts and {total.completion:,} of answers"
        )
        if total.untold:
            note += f" (of {total.untold:,} answers its server did not say)"
        dollars = [verdict.dollars for verdict in verdicts if verdict.dollars is not None]
        # of a sum that lacks some nothing is said
        if len(dollars) == len(verdicts):
            note += f", ${sum(dollars):,.2f}"
        notes.append(note)

        left_out = [f"{v.unasked:,} of {v.question}" for v in verdicts if v.unasked]
        if left_out:
            of_each = ", ".join(left_out)
            notes.append(f"{judge} stopped at analyze.judge_tokens: not asked about {of_each}")
    return notes


def _name(judge: str) -> str:
    """A judge's name; of a folder the last part, since a path says how somebody's disk is laid
    out."""
    kind, _, model = judge.partition(":")
    return f"{kind}:{PurePath(model).name}" if kind == "local" else judge


def curves(analyzed: Analysis) -> Table:
    """Duplicate@N by kind of text, and how much has a near-duplicate in D_pretrain."""
    found = {kind: measures.duplicates_at for kind, measures in analyzed.kinds.items()}
    counts = sorted({n for duplicates in found.values() for n, _ in duplicates.curve})
    rows = []
    for kind, duplicates in found.items():
        shares = dict(duplicates.curve)
        held = duplicates.corpus
        cells = [_percent(shares[n]) if n in shares else "" for n in counts]
        rows.append([kind, *cells, _UNMEASURED if held is None else _percent(held)])
    headers = ["near-duplicates among the first", *(f"{n:,}" for n in counts), "in D_pretrain"]
    return Table(headers, rows, [])


def measures(analyzed: Analysis) -> Table:
    """All that was measured: a column per kind of text, a row per measure."""
    kinds = analyzed.kinds.values()
    from_corpus = [of.copied_from_corpus for of in kinds]
    from_d1 = [of.copied_from_d1 for of in kinds]
    n = analyzed.copy_tokens

    similarity = []
    for kind in analyzed.kinds:
        # the real pairs stand where a reader looks for real text
        name = "real pairs" if kind == "unseen real" else kind
        of_kind = analyzed.relevance.get(name)
        similarity.append(of_kind.mean if of_kind else None)

    rows = [
        _row("documents", ",", [of.docs for of in kinds]),
        _row("tokens, mean", ".0f", [of.tokens_mean for of in kinds]),
        _row(
            "4-grams that repeat an earlier one of the document",
            ".1%",
            [of.repeated_4grams for of in kinds],
        ),
        _row(
            "documents that loop (over 10 % repeated 8-grams)",
            ".1%",
            [of.looping for of in kinds],
        ),
        _row(
            "documents with a near-duplicate in the sample",
            ".1%",
            [of.duplicates for of in kinds],
        ),
        _row(
            f"tokens in a run of {n} that D_pretrain holds",
            ".1%",
            [copying.tokens for copying in from_corpus],
        ),
        _row(
            f"documents with such a run of {n}",
            ".1%",
            [copying.docs for copying in from_corpus],
        ),
        _row(
            "longest such run, tokens",
            ".0f",
            [copying.longest_max for copying in from_corpus],
        ),
        _row(
            f"documents with a run of {n} from their d1",
            ".1%",
            [copying.docs if copying else None for copying in from_d1],
        ),
        _row(
            "longest run from d1, tokens",
            ".0f",
            [copying.longest_max if copying else None for copying in from_d1],
        ),
        _row(
            "2-grams that D_pretrain does not hold",
            ".1%",
            [of.novel_ngrams[2] for of in kinds],
        ),
        _row(
            "4-grams that D_pretrain does not hold",
            ".1%",
            [of.novel_ngrams[4] for of in kinds],
        ),
        _row(
            "similarity of d1 and d2 (first column: real pairs)",
            ".3f",
            similarity,
        ),
        _row(
            "4-grams that no other place of the sample has",
            ".1%",
            [of.distinct_ngrams[4] for of in kinds],
        ),
        _row(
            "nats per token, by the model that wrote it",
            ".3f",
            [of.entropy for of in kinds],
        ),
    ]
    return Table(["", *analyzed.kinds], rows, [])


def _row(name: str, format_value: str, figures: Iterable[float | None]) -> list[str]:
    """A measure of every kind of text; a dash where it was not measured."""
    cells = []
    for figure in figures:
        cells.append(_UNMEASURED if figure is None else format(figure, format_value))
    return [name, *cells]


@dataclass(frozen=True)
class _Counted:
    """What was counted for a question, and the share by kind of text where it could be."""

    question: str
    by: str
    shares: Mapping[str, float]

    def cells(self, kinds: Sequence[str]) -> list[str]:
        """A row of the table, without its question."""
        shares = [_percent(self.shares[k]) if k in self.shares else _UNMEASURED for k in kinds]
        return [self.by, "", "", "", *shares]


def _counted(analyzed: Analysis, kinds: Sequence[str]) -> list[_Counted]:
    """All that is counted, not judged."""
    looping = {}
    among = {}
    in_corpus = {}
    copied = {}
    sizes = {}  # of how many documents the last point of each curve is
    for kind in kinds:
        measures = analyzed.kinds[kind]
        looping[kind] = measures.looping
        duplicates = measures.duplicates_at
        sizes[kind] = 0
        if duplicates.curve:
            sizes[kind], among[kind] = duplicates.curve[-1]
        if duplicates.corpus is not None:
            in_corpus[kind] = duplicates.corpus
        if measures.copied_from_d1 is not None:
            copied[kind] = measures.copied_from_d1.docs

    unlike = {}
    for kind, relevance in analyzed.relevance.items():
        # real pairs lie above alpha by construction, and are no kind of text
        if relevance.above_alpha is not None:
            unlike[kind] = 1 - relevance.above_alpha

    run = f"a run of {analyzed.copy_tokens} tokens from d1"
    different_sizes = dict.fromkeys(f"{docs:,}" for docs in sizes.values())
    facts = analyzed.world.facts if analyzed.world else {}
    return [
        _Counted(QUESTIONS["repetition"], "counting repeated 8-grams", looping),
        _Counted(DUPLICATES, f"counting, in {', '.join(different_sizes)}", among),
        _Counted(DUPLICATES, "counting, in D_pretrain", in_corpus),
        _Counted(QUESTIONS["irrelevance"], "similarity below alpha", unlike),
        _Counted(QUESTIONS["copying"], run, copied),
        *_of_world(facts, copied),
    ]


def _of_world(
    facts: Mapping[str, Mapping[str, FactShares]],
    with_d1: Collection[str],
) -> list[_Counted]:
    """What a known world tells of its documents: the facts of those that are about some entity, how
    many these are, and whether it is d1's."""
    untrue = {}
    another = {}
    about = []
    for kind, groups in facts.items():
        of_facts = []
        of_documents = []
        for shares in groups.values():
            # a share of nothing is None
            if shares.same_entity is not None:
                of_documents.append((shares.docs, 1 - shares.same_entity))
            if shares.untrue is not None and shares.named is not None:
                of_facts.append((shares.docs * shares.named, shares.untrue))
        if of_facts:
            about.append(f"{sum(docs for docs, _ in of_facts):,.0f}")
            untrue[kind] = _mean(of_facts)
        if of_documents and kind in with_d1:
            another[kind] = _mean(of_documents)

    not_so = f"the world: facts not so, of {', '.join(about)} about an entity"
    return [
        _Counted(QUESTIONS["nonfactual"], not_so, untrue),
        _Counted(QUESTIONS["irrelevance"], "the world: not about d1's entity", another),
    ]


def _mean(weighted: Sequence[tuple[float, float]]) -> float:
    """The mean of shares by their weights, which stand first."""
    return sum(weight * share for weight, share in weighted) / sum(weight for weight, _ in weighted)


def _judged(verdict: Verdict, kinds: Sequence[str]) -> list[str]:
    """The row of one judge: its error, and its corrected rates."""
    cells = []
    for kind in kinds:
        rate = verdict.rates.get(kind)
        if rate is None or not rate.items:
            cells.append(_UNMEASURED)
        elif rate.corrected is None:
            cells.append(REFUSED)
        else:
            value, low, high = rate.corrected
            cells.append(f"{_percent(value)} [{100 * low:.1f}, {100 * high:.1f}]")
    return [
        _name(verdict.judge),
        _error(verdict.specificity, verdict.clean),
        _error(verdict.sensitivity, verdict.faulty),
        _UNMEASURED if verdict.kappa is None else f"{verdict.kappa:.2f}",
        *cells,
    ]


def _error(told_right: Interval, cases: int) -> str:
    return f"{told_right.value:.2f} ({cases})" if cases else _UNMEASURED


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
