"""How good text is, in tables: the paper's quality table with this run's figures, Duplicate@N, and
everything else that was measured.

The paper's table has a row for each of its five questions and everybody who answers it, by counting
or as a judge, and a column for each kind of text. A judge's rate is the corrected one; the share
that it called faulty stands in analyze.json.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from synthboot.judges.protocol import QUESTIONS

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


def table(analyzed: Mapping[str, Any]) -> Table:
    """The paper's quality table with what `analyze` left."""
    kinds = [kind for kind in analyzed["kinds"] if kind != "D_pretrain"]
    headers = ["share of texts", "by", "q0", "q1", "kappa", *kinds, *PAPER_HEADERS]
    notes = []
    rows = []
    counted = _counted(analyzed, kinds)
    for name, paper in PAPER.items():
        own = []
        for count in counted:
            if count.question == name and not count.shares.keys().isdisjoint(kinds):
                own.append(count.cells(kinds))
        for verdict in analyzed["judged"]:
            if QUESTIONS[verdict["question"]] == name:
                own.append(_judged(verdict, kinds))
                if verdict["refused"]:
                    notes.append(f"{name}, by {own[-1][0]}: {verdict['refused']}")
        # the paper's figures stand once
        for number, cells in enumerate(own or [[_UNMEASURED] * (4 + len(kinds))]):
            beside = paper if number == 0 else ("",) * len(paper)
            rows.append([name if number == 0 else "", *cells, *beside])
    return Table(headers, rows, notes + spent(analyzed["judged"]))


def spent(judged: Sequence[Mapping[str, Any]]) -> list[str]:
    """What language models took to judge, a sentence for each; and what a budget left out."""
    by_judge: dict[str, list[Mapping[str, Any]]] = {}
    for verdict in judged:
        if any(verdict["spent"].values()):
            by_judge.setdefault(_name(verdict["judge"]), []).append(verdict)
    notes = []
    for judge, verdicts in by_judge.items():
        total = {key: sum(v["spent"][key] for v in verdicts) for key in verdicts[0]["spent"]}
        note = (
            f"{judge} took {total['prompt']:,} tokens of prompts "
            f"and {total['completion']:,} of answers"
        )
        if total["untold"]:
            note += f" (of {total['untold']:,} answers its server did not say)"
        dollars = [v["dollars"] for v in verdicts]
        if None not in dollars:
            note += f", ${sum(dollars):,.2f}"
        notes.append(note)
        left_out = {v["question"]: v["unasked"] for v in verdicts if v["unasked"]}
        if left_out:
            of_each = ", ".join(f"{count:,} of {question}" for question, count in left_out.items())
            notes.append(f"{judge} stopped at analyze.judge_tokens: not asked about {of_each}")
    return notes


def _name(judge: str) -> str:
    """A judge's name; of a folder the last part, since a path says how somebody's disk is laid
    out."""
    kind, _, model = judge.partition(":")
    return f"{kind}:{PurePath(model).name}" if kind == "local" else judge


def curves(analyzed: Mapping[str, Any]) -> Table:
    """Duplicate@N by kind of text, and how much has a near-duplicate in D_pretrain."""
    found = {kind: _at_all(measures) for kind, measures in analyzed["kinds"].items()}
    counts = sorted({n for at in found.values() for n, _ in at["curve"]})
    rows = []
    for kind, at in found.items():
        shares = dict(map(tuple, at["curve"]))
        held = at["corpus"]
        cells = [_percent(shares[n]) if n in shares else "" for n in counts]
        rows.append([kind, *cells, _UNMEASURED if held is None else _percent(held)])
    headers = ["near-duplicates among the first", *(f"{n:,}" for n in counts), "in D_pretrain"]
    return Table(headers, rows, [])


def measures(analyzed: Mapping[str, Any]) -> Table:
    """All that was measured: a column per kind of text, a row per measure."""
    kinds = analyzed["kinds"]
    # the real pairs stand where a reader looks for real text
    relevance = {"unseen real": analyzed["relevance"].get("real pairs")} | analyzed["relevance"]

    def row(name: str, format_value: str, *path: str) -> list[str]:
        return [name, *(_cell(of_kind, format_value, path) for of_kind in kinds.values())]

    n = analyzed["copy_tokens"]
    similarity = [_cell(relevance, ".3f", (name, "mean")) for name in kinds]
    rows = [
        row("documents", ",", "docs"),
        row("tokens, mean", ".0f", "tokens_mean"),
        row("4-grams that repeat an earlier one of the document", ".1%", "repeated_4grams"),
        row("documents that loop (over 10 % repeated 8-grams)", ".1%", "looping"),
        row("documents with a near-duplicate in the sample", ".1%", "duplicates"),
        row(f"tokens in a run of {n} that D_pretrain holds", ".1%", "copied_from_corpus", "tokens"),
        row(f"documents with such a run of {n}", ".1%", "copied_from_corpus", "docs"),
        row("longest such run, tokens", ".0f", "copied_from_corpus", "longest_max"),
        row(f"documents with a run of {n} from their d1", ".1%", "copied_from_d1", "docs"),
        row("longest run from d1, tokens", ".0f", "copied_from_d1", "longest_max"),
        row("2-grams that D_pretrain does not hold", ".1%", "novel_ngrams", "2"),
        row("4-grams that D_pretrain does not hold", ".1%", "novel_ngrams", "4"),
        ["similarity of d1 and d2 (first column: real pairs)", *similarity],
        row("4-grams that no other place of the sample has", ".1%", "distinct_ngrams", "4"),
        row("nats per token, by the model that wrote it", ".3f", "entropy"),
    ]
    return Table(["", *kinds], rows, [])


def _cell(value: Any, format_value: str, path: Sequence[str]) -> str:
    """What stands at `path` in nested mappings; a dash where it was not measured."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return _UNMEASURED if value is None else format(value, format_value)


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


def _counted(analyzed: Mapping[str, Any], kinds: Sequence[str]) -> list[_Counted]:
    """All that is counted, not judged."""
    looping = {}
    among = {}
    in_corpus = {}
    copied = {}
    for kind in kinds:
        measures = analyzed["kinds"][kind]
        looping[kind] = measures["looping"]
        duplicates = _at_all(measures)
        if duplicates["curve"]:
            _, among[kind] = duplicates["curve"][-1]
        if duplicates["corpus"] is not None:
            in_corpus[kind] = duplicates["corpus"]
        if "copied_from_d1" in measures:
            copied[kind] = measures["copied_from_d1"]["docs"]

    unlike = {}
    for kind, relevance in analyzed["relevance"].items():
        # real pairs lie above alpha by construction, and are no kind of text
        if relevance["above_alpha"] is not None:
            unlike[kind] = 1 - relevance["above_alpha"]

    run = f"a run of {analyzed['copy_tokens']} tokens from d1"
    sizes = _at(analyzed["kinds"], kinds)
    return [
        _Counted(QUESTIONS["repetition"], "counting repeated 8-grams", looping),
        _Counted(DUPLICATES, f"counting, in {sizes}", among),
        _Counted(DUPLICATES, "counting, in D_pretrain", in_corpus),
        _Counted(QUESTIONS["irrelevance"], "similarity below alpha", unlike),
        _Counted(QUESTIONS["copying"], run, copied),
        *_of_world((analyzed["world"] or {}).get("facts", {}), copied),
    ]


def _of_world(facts: Mapping[str, Any], with_d1: Collection[str]) -> list[_Counted]:
    """What a known world tells of its documents: the facts of those that are about some entity, how
    many these are, and whether it is d1's."""
    untrue = {}
    another = {}
    about = []
    for kind, groups in facts.items():
        of_facts = []
        of_documents = []
        for shares in groups.values():
            if not shares["docs"]:
                continue
            of_documents.append((shares["docs"], 1 - shares["same_entity"]))
            if shares["contradicted"] is not None:
                named = shares["docs"] * shares["named"]
                of_facts.append((named, shares["contradicted"] + shares["invented"]))
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


def _judged(verdict: Mapping[str, Any], kinds: Sequence[str]) -> list[str]:
    """The row of one judge: its error, and its corrected rates."""
    cells = []
    for kind in kinds:
        rate = verdict["rates"].get(kind)
        if rate is None or not rate["items"]:
            cells.append(_UNMEASURED)
        elif rate["corrected"] is None:
            cells.append(REFUSED)
        else:
            value, low, high = rate["corrected"]
            cells.append(f"{_percent(value)} [{100 * low:.1f}, {100 * high:.1f}]")
    agreement = verdict["kappa"]
    return [
        _name(verdict["judge"]),
        _error(verdict["specificity"], verdict["clean"]),
        _error(verdict["sensitivity"], verdict["faulty"]),
        _UNMEASURED if agreement is None else f"{agreement:.2f}",
        *cells,
    ]


def _error(interval: Sequence[float], cases: int) -> str:
    return f"{interval[0]:.2f} ({cases})" if cases else _UNMEASURED


def _at(of_kind: Mapping[str, Any], kinds: Sequence[str]) -> str:
    """Of how many documents the last point of each curve is."""
    counts = []
    for kind in kinds:
        curve = _at_all(of_kind[kind])["curve"] or [[0, 0.0]]
        counts.append(f"{curve[-1][0]:,}")
    return ", ".join(dict.fromkeys(counts))


def _at_all(measures: Mapping[str, Any]) -> Mapping[str, Any]:
    """The duplicates of a kind of text at every number of documents."""
    found: Mapping[str, Any] = measures["duplicates_at"]
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
