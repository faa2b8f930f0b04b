from dataclasses import replace

from synthboot.artifacts.analysis import (
    Analysis,
    Changes,
    Copying,
    Duplicates,
    FactShares,
    KindMeasures,
    Leaks,
    Relevance,
    WorldMeasures,
)
from synthboot.artifacts.judged import NOTHING, Rate, Spent, Verdict
from synthboot.judges.protocol import QUESTIONS
from synthboot.report import charts, quality
from synthboot.statistics import Interval

VERDICT = Verdict(
    judge="server:one",
    question="irrelevance",
    identity={},
    threshold=0.5,
    specificity=Interval(0.9, 0.8, 0.95),
    clean=40,
    sensitivity=Interval(0.7, 0.6, 0.8),
    faulty=41,
    by_fault={},
    kappa=0.5,
    refused="",
    requests=0,
    rates={
        "unseen real": Rate(100, 0, 0.1, Interval(0.013, 0.0, 0.09)),
        "related": Rate(100, 0, 0.3, Interval(0.333, 0.2, 0.45)),
    },
    spent=NOTHING,
    unasked=0,
)

KIND = KindMeasures(
    docs=150,
    tokens_mean=40.0,
    tokens_quantiles=(30.0, 40.0, 50.0),
    lengths=(0,) * 64,
    repeated_4grams=0.1,
    looping=0.02,
    duplicates=0.02,
    exact_duplicates=0.0,
    copied_from_corpus=Copying(docs=0.5, tokens=0.25, longest_median=3.0, longest_max=17.0),
    distinct_ngrams={2: 0.5, 4: 0.75},
    novel_ngrams={2: 0.125, 4: 0.375},
    duplicates_at=Duplicates(curve=((100, 0.01), (150, 0.02)), corpus=0.005),
)
RELATED = replace(KIND, entropy=1.5, copied_from_d1=Copying(docs=0.04, tokens=0.01, longest_median=0.0, longest_max=13.0))


def facts(docs: float, named: float, same_entity: float, contradicted: float, invented: float) -> FactShares:
    return FactShares(
        docs=docs,
        named=named,
        same_entity=same_entity,
        strange=0.0,
        new_order=0.0,
        kept=0.0,
        known=1 - contradicted - invented,
        contradicted=contradicted,
        invented=invented,
        new_wording=0.0,
    )


FACTS = {
    "many": facts(30.0, named=1.0, same_entity=0.9, contradicted=0.1, invented=0.1),
    "one": facts(10.0, named=0.5, same_entity=0.5, contradicted=0.3, invented=0.1),
    "none": FactShares(0.0, *[None] * 9),
}


def analyzed(*judged: Verdict) -> Analysis:
    return Analysis(
        kinds={
            "unseen real": KIND,
            "D_pretrain": replace(KIND, duplicates_at=replace(KIND.duplicates_at, corpus=None)),
            "related": RELATED,
        },
        relevance={"real pairs": Relevance(0.9, 1.0), "related": Relevance(0.8, 0.75)},
        copy_tokens=13,
        world=WorldMeasures(excess={}, facts={"related": FACTS}),
        judged=judged,
        leaks=Leaks(spans={}, personal={}),
        changed=Changes(type_token_ratio={}, base_loss={}, topics=None),
    )


def rows(table: quality.Table, name: str) -> list[list[str]]:
    """The rows of a question, without its name."""
    found, current = [], ""
    for row in table.rows:
        current = row[0] or current
        if current == name:
            found.append(row[1:])
    return found


def test_the_papers_five_rows_stand_beside_what_was_counted() -> None:
    table = quality.table(analyzed())
    assert table.headers[5:7] == ["unseen real", "related"]
    assert [row[0] for row in table.rows if row[0]] == list(quality.PAPER)
    for row in table.rows:
        assert len(row) == len(table.headers)
        assert (row[-4:] != [""] * 4) == bool(row[0])
    [repetition] = rows(table, QUESTIONS["repetition"])
    assert repetition[4:] == ["2.0 %", "2.0 %", "4.3 %", "3.9 %", "2.6 %", "1.8 %"]
    inside, held = rows(table, quality.DUPLICATES)
    assert (inside[0], inside[4:6], held[4:6]) == ("counting, in 150", ["2.0 %", "2.0 %"], ["0.5 %", "0.5 %"])
    [facts] = rows(table, QUESTIONS["nonfactual"])  # of 30 documents of one group, of half of 10 of another
    assert (facts[0], facts[4:6]) == ("the world: facts not so, of 35 about an entity", ["-", "22.9 %"])
    similarity, entity = rows(table, QUESTIONS["irrelevance"])
    assert (similarity[4:6], entity[4:6]) == (["-", "25.0 %"], ["-", "20.0 %"])
    assert rows(table, QUESTIONS["copying"])[0][4:6] == ["-", "4.0 %"]


def test_a_judge_stands_with_its_error_and_its_corrected_rates() -> None:
    table = quality.table(analyzed(VERDICT))
    assert rows(table, QUESTIONS["irrelevance"])[-1] == [
        "server:one",
        "0.90 (40)",
        "0.70 (41)",
        "0.50",
        "1.3 % [0.0, 9.0]",
        "33.3 % [20.0, 45.0]",
        *[""] * 4,
    ]
    assert table.notes == []


def test_a_judge_without_skill_gives_no_number() -> None:
    rates = {kind: replace(rate, corrected=None) for kind, rate in VERDICT.rates.items()}
    judge = "local:/home/somebody/one"
    table = quality.table(analyzed(replace(VERDICT, judge=judge, refused="q0 + q1 = 1.10", rates=rates, kappa=None)))
    assert rows(table, QUESTIONS["irrelevance"])[-1][3:6] == ["-", quality.REFUSED, quality.REFUSED]
    assert table.notes == [f"{QUESTIONS['irrelevance']}, by local:one: q0 + q1 = 1.10"]


def test_what_language_models_took_is_said_once_for_each() -> None:
    spent = Spent(prompt=1_000, completion=10)
    first = replace(VERDICT, spent=spent, dollars=0.25)
    second = replace(first, question="copying", unasked=7, dollars=0.5)
    unknown = replace(VERDICT, judge="server:two", spent=replace(spent, untold=3))
    assert quality.spent([first, second, VERDICT, unknown]) == [
        "server:one took 2,000 tokens of prompts and 20 of answers, $0.75",
        "server:one stopped at analyze.judge_tokens: not asked about 7 of copying",
        "server:two took 1,000 tokens of prompts and 10 of answers (of 3 answers its server did not say)",
    ]


def test_duplicates_are_drawn_where_there_is_a_curve() -> None:
    measured = analyzed()
    figure = charts.duplicates(measured, {"related": "method"})
    assert figure is not None
    assert figure.table() == (
        ["documents", "unseen real", "D_pretrain", "related"],
        [["100", "0.01", "0.01", "0.01"], ["150", "0.02", "0.02", "0.02"]],
    )
    one_point = replace(KIND, duplicates_at=Duplicates(curve=((50, 0.5),), corpus=None))
    assert charts.duplicates(replace(measured, kinds={"related": one_point}), {}) is None


def test_curves_of_duplicates() -> None:
    table = quality.curves(analyzed())
    assert table.headers[1:] == ["100", "150", "in D_pretrain"]
    assert table.rows[1] == ["D_pretrain", "1.0 %", "2.0 %", "-"]


def test_a_measure_stands_under_its_kind_of_text_and_a_dash_where_there_is_none() -> None:
    table = quality.measures(analyzed())
    assert table.headers == ["", "unseen real", "D_pretrain", "related"]
    shown = {name: cells for name, *cells in table.rows}
    assert shown["documents"] == ["150"] * 3
    assert shown["tokens in a run of 13 that D_pretrain holds"] == ["25.0%"] * 3
    assert shown["documents with such a run of 13"] == ["50.0%"] * 3
    assert shown["longest such run, tokens"] == ["17"] * 3
    assert shown["documents with a run of 13 from their d1"] == ["-", "-", "4.0%"]
    assert shown["longest run from d1, tokens"] == ["-", "-", "13"]
    assert shown["2-grams that D_pretrain does not hold"] == ["12.5%"] * 3
    assert shown["4-grams that D_pretrain does not hold"] == ["37.5%"] * 3
    assert shown["similarity of d1 and d2 (first column: real pairs)"] == ["0.900", "-", "0.800"]
    assert shown["4-grams that no other place of the sample has"] == ["75.0%"] * 3
    assert shown["nats per token, by the model that wrote it"] == ["-", "-", "1.500"]
