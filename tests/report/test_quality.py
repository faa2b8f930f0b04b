from typing import Any

from synthboot.judges.protocol import QUESTIONS
from synthboot.report import charts, quality

AT = {"curve": [[100, 0.01], [150, 0.02]], "corpus": 0.005}
VERDICT = {
    "judge": "server:one",
    "question": "irrelevance",
    "specificity": [0.9, 0.8, 0.95],
    "clean": 40,
    "sensitivity": [0.7, 0.6, 0.8],
    "faulty": 41,
    "kappa": 0.5,
    "refused": "",
    "spent": {"prompt": 0, "completion": 0, "untold": 0},
    "dollars": None,
    "unasked": 0,
    "rates": {
        "unseen real": {"items": 100, "judged": 0.1, "corrected": [0.013, 0.0, 0.09]},
        "related": {"items": 100, "judged": 0.3, "corrected": [0.333, 0.2, 0.45]},
    },
}

MANY = {"docs": 30.0, "named": 1.0, "same_entity": 0.9, "contradicted": 0.1, "invented": 0.1}
ONE = {"docs": 10.0, "named": 0.5, "same_entity": 0.5, "contradicted": 0.3, "invented": 0.1}


def analyzed(*judged: dict[str, Any]) -> dict[str, Any]:
    kind = {"looping": 0.02, "duplicates_at": AT}
    return {
        "kinds": {
            "unseen real": kind,
            "D_pretrain": {**kind, "duplicates_at": {**AT, "corpus": None}},
            "related": {**kind, "copied_from_d1": {"docs": 0.04}},
        },
        "relevance": {"real pairs": {"above_alpha": 1.0}, "related": {"above_alpha": 0.75}},
        "copy_tokens": 13,
        "world": {"facts": {"related": {"many": MANY, "one": ONE, "none": {"docs": 0.0, "contradicted": None}}}},
        "judged": list(judged),
    }


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
    rates = {kind: {**rate, "corrected": None} for kind, rate in VERDICT["rates"].items()}  # type: ignore[attr-defined]
    judge = "local:/home/somebody/one"
    table = quality.table(analyzed({**VERDICT, "judge": judge, "refused": "q0 + q1 = 1.10", "rates": rates, "kappa": None}))
    assert rows(table, QUESTIONS["irrelevance"])[-1][3:6] == ["-", quality.REFUSED, quality.REFUSED]
    assert table.notes == [f"{QUESTIONS['irrelevance']}, by local:one: q0 + q1 = 1.10"]


def test_what_language_models_took_is_said_once_for_each() -> None:
    spent = {"prompt": 1_000, "completion": 10, "untold": 0}
    first = {**VERDICT, "spent": spent, "dollars": 0.25}
    second = {**first, "question": "copying", "unasked": 7, "dollars": 0.5}
    unknown = {**VERDICT, "judge": "server:two", "spent": {**spent, "untold": 3}}
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
    for kind in measured["kinds"].values():
        kind["duplicates_at"] = {"curve": [[50, 0.5]], "corpus": None}
    assert charts.duplicates(measured, {}) is None


def test_curves_of_duplicates() -> None:
    table = quality.curves(analyzed())
    assert table.headers[1:] == ["100", "150", "in D_pretrain"]
    assert table.rows[1] == ["D_pretrain", "1.0 %", "2.0 %", "-"]
