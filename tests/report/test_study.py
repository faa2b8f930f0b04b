"""The page of a study from made-up rows: what is drawn over what, which curves are fitted, what text can do there."""

import re
from pathlib import Path
from typing import Any

import pytest

from synthboot.report import study
from synthboot.report.figures import Curves
from synthboot.statistics import Interval
from synthboot.studies.rows import Comparison, Row
from synthboot.studies.study import Study
from tests.report.test_page import probe

VARIED = ["budget.unique_tokens", "model.width"]


def row(tokens: int, width: int, **changes: Any) -> Row:
    loss = 2 + 50 * tokens**-0.3 + 4 / width
    values: dict[str, Any] = {
        "parameters": 1_000 * width**2,
        "d1_worth": (0.01 * width, 0.002),
        "base_loss": loss,
        "method": "sbp-0.5",
        "losses": {"repetition": Interval(loss, loss - 0.1, loss + 0.1), "sbp-0.5": Interval(loss - 1, loss - 1.1, loss - 0.9)},
        "minus_repetition": Comparison(-1, -1.2, -0.8, 0.001, 0.004),
    }
    settings = dict(zip(VARIED, (tokens, width), strict=True))
    name = changes.pop("point", f"{tokens}-{width}")
    return Row(name, name, settings, **{**values, **changes})


ROWS = [row(tokens, width) for tokens in (10_000, 20_000, 50_000, 90_000) for width in (32, 64)]


def made(rows: list[Row], varied: list[str] = VARIED) -> tuple[str, list[dict[str, Any]]]:
    table = Study("x", varied, rows).table()
    curves = study.curves(table, varied)
    return study.study("x", varied, table, curves), curves


def figures(rows: list[Row], varied: list[str] = VARIED) -> dict[str, Curves]:
    """The curves of the page by their id."""
    table = Study("x", varied, rows).table()
    found = study.sections(table, varied, study.curves(table, varied))
    return {figure.id: figure for of_axis in found.values() for figure in of_axis}


def test_every_metric_stands_over_every_setting_a_line_for_each_value_of_the_others() -> None:
    found = figures(ROWS)
    assert set(found) == {
        *(f"over-{axis}-{metric}" for axis in (0, 1) for metric in ("d1_worth", "minus_repetition", "base_loss")),
        *(f"over-0-loss-{width}" for width in range(2)),
        *(f"over-1-loss-{tokens}" for tokens in range(4)),
        "over-2-base_loss",  # over parameters
        *(f"over-2-loss-{tokens}" for tokens in range(4)),
    }
    narrow, wide = found["over-0-d1_worth"].lines
    assert narrow.name == "width 32"
    assert [point[0] for point in narrow.points] == [10_000, 20_000, 50_000, 90_000]
    assert wide.points[0] == pytest.approx((10_000, 0.64, 0.64 - 1.96 * 0.002, 0.64 + 1.96 * 0.002))
    assert found["over-0-d1_worth"].x_log
    assert found["over-0-d1_worth"].ticks == {10_000: "10k", 20_000: "20k", 50_000: "50k", 90_000: "90k"}
    assert found["over-0-loss-1"].title == "Test loss, width 64"
    assert [line.name for line in found["over-0-loss-1"].lines] == ["repetition", "sbp-0.5"]
    page, _ = made(ROWS)
    assert re.findall(r'<figure id="([^"]*)"', page) == ["map-repetition", *found]


def test_curves_are_fitted_where_the_points_allow_and_refused_by_name_elsewhere() -> None:
    page, curves = made(ROWS)
    fitted = {(curve.column, curve.line): curve for curve in curves if curve.law}
    assert set(fitted) == {(c, f"width {w}") for c in ("base_loss", "loss.repetition", "loss.sbp-0.5") for w in (32, 64)}
    curve = fitted["base_loss", "width 32"]
    assert curve.axis == "budget.unique_tokens"
    assert curve.law.exponent == pytest.approx(0.3, rel=0.01)
    assert curve.law.offset == pytest.approx(2 + 4 / 32, abs=0.01)
    assert curve.as_json()["offset"] == curve.law.offset
    # drawn over what was measured, and in no table
    drawn = figures(ROWS)["over-0-base_loss"]
    assert [line.style for line in drawn.lines] == ["points", "points"]
    assert drawn.laws[0].points[-1] == pytest.approx((90_000, drawn.lines[0].points[-1][1]), abs=1e-3)
    assert len(drawn.table()[1]) == 4
    assert "No curve over parameters: 2 different values, and a power law with an offset takes 4" in page


def test_all_of_the_text_is_a_point_that_no_law_is_fitted_to() -> None:
    whole = row(200_000, 32)
    whole.settings["budget.unique_tokens"] = "all"
    page, curves = made([*ROWS, whole])
    without = study.curves(Study("x", VARIED, ROWS).table(), VARIED)
    assert [curve.as_json() for curve in curves if curve.line == "width 64"] == [
        c.as_json() for c in without if c.line == "width 64"
    ]
    assert {curve.points for curve in curves if curve.axis == "budget.unique_tokens"} == {4}
    assert ">all</" in page


def test_settings_that_go_together_are_one_line() -> None:
    rows = [row(tokens, width) for tokens, width in ((10_000, 32), (20_000, 64), (50_000, 96))]
    [line] = figures(rows)["over-0-d1_worth"].lines
    assert [point[0] for point in line.points] == [10_000, 20_000, 50_000]
    assert line.name == "d1's worth"


def test_losses_of_different_test_documents_are_joined_by_nothing() -> None:
    sizes = (10_000, 20_000, 50_000, 90_000)
    rows = [row(tokens, 32, test_set="a", point=f"run-{tokens}") for tokens in sizes]
    rows += [row(tokens, 32, test_set="b", point=f"other-{tokens}") for tokens in sizes[:2]]
    rows.append(row(70_000, 32, test_set="c", point="alone"))
    found = figures(rows)
    own, other, _ = found["over-0-base_loss"].lines
    assert (own.name, other.name) == ("test set of run-10000, width 32", "test set of other-10000, width 32")
    assert [len(line.points) for line in (own, other)] == [4, 2]
    assert [len(found[f"over-0-loss-{number}"].lines[0].points) for number in (0, 1)] == [4, 2]
    assert "over-0-loss-2" not in found

    page, curves = made(rows)
    assert {(curve.line, curve.law is not None) for curve in curves if curve.axis == VARIED[0]} == {
        ("test set of run-10000, width 32", True),
        ("test set of other-10000, width 32", False),
    }
    assert "Losses are of 3 different sets of validation and test documents" in page
    assert ">test set</th>" in page
    for same in (rows[:4], ROWS):  # the same, or not known
        page, _ = made(same)
        assert "different sets" not in page
        assert ">test set</th>" not in page


def test_the_map_has_a_dot_a_run_filled_where_a_difference_is_shown() -> None:
    rows = [*ROWS[:2], row(50_000, 32, minus_repetition=Comparison(0.1, -0.1, 0.3, 0.2, 0.4)), row(90_000, 32, d1_worth=None)]
    table = Study("x", VARIED, rows).table()
    [drawn] = study.maps(table)
    assert [dot.x[0] for dot in drawn.dots] == pytest.approx([0.32, 0.64, 0.32])
    assert [dot.y for dot in drawn.dots] == [(-1, -1.2, -0.8), (-1, -1.2, -0.8), (0.1, -0.1, 0.3)]
    assert [dot.is_filled for dot in drawn.dots] == [True, True, False]
    assert drawn.svg().count('class="open"') == 1
    assert drawn.table()[1][2] == ["3 50000-32", "0.32 (0.3161 to 0.3239)", "0.1 (-0.1 to 0.3)"]
    assert study.sentence(table).endswith("the method below repetition in 3 of 4, 3 of them shown.")


def test_intervals_and_what_is_shown_are_at_the_confidence_of_the_run() -> None:
    at_04 = Comparison(-1, -1.2, -0.8, 0.04, 0.04)
    rows = [row(10_000, 32, minus_repetition=at_04, confidence=0.99), row(20_000, 32, minus_repetition=at_04, confidence=0.9)]
    table = Study("x", VARIED, rows).table()
    [drawn] = study.maps(table)
    assert [dot.is_filled for dot in drawn.dots] == [False, True]
    assert drawn.dots[1].x == pytest.approx((0.32, 0.32 - 1.645 * 0.002, 0.32 + 1.645 * 0.002), rel=1e-4)
    assert study.sentence(table).endswith("in 2 of 2, 1 of them shown.")
    assert "intervals of 90 % (of 2) and 99 % (of 1)" in made(rows)[0]
    assert "intervals of 99.5 %," in made([row(10_000, 32, confidence=0.995), row(20_000, 32, confidence=0.995)])[0]


def test_what_is_no_number_has_its_name_on_the_axis() -> None:
    rows = []
    for seeds, worth in (([0], 0.1), ([0, 1], 0.2)):
        rows.append(Row(str(seeds), "", {"pretrain.seeds": seeds}, d1_worth=(worth, 0.01)))
    figure = figures(rows, ["pretrain.seeds"])["over-0-d1_worth"]
    assert not figure.x_log
    assert figure.ticks == {0: "[0]", 1: "[0, 1]"}
    assert [point[:2] for point in figure.lines[0].points] == [(0, 0.1), (1, 0.2)]
    assert [cells[0] for cells in figure.table()[1]] == ["[0]", "[0, 1]"]
    assert ">[0, 1]</text>" in figure.svg()


def test_null_is_a_value_of_a_setting_and_no_place_for_what_is_not_known() -> None:
    rows = [Row(str(clip), "", {"optim.clip": clip}, d1_worth=(0.1, 0.01)) for clip in (None, 0.5, 1.0)]
    figure = figures(rows, ["optim.clip"])["over-0-d1_worth"]
    assert [cells[0] for cells in figure.table()[1]] == ["null", "0.5", "1.0"]
    rows = [Row(str(size), "", {}, pool_tokens=size, d1_worth=(0.1, 0.01)) for size in (None, 5, 7)]
    assert [point[0] for point in figures(rows, ["pool_tokens"])["over-0-d1_worth"].lines[0].points] == [5, 7]


def test_text_is_inert_and_nothing_is_loaded() -> None:
    evil = "</script><script>alert(1)</script>"
    page, _ = made([*ROWS, row(20_000, 96, note=f"failed: {evil}"), Row(evil, evil, dict.fromkeys(VARIED, evil))])
    head, _, rest = page.partition("</head>")
    assert "default-src 'none'" in head
    assert evil not in rest
    assert "&lt;script&gt;alert" in rest


def test_the_page_works_in_a_browser(tmp_path: Path) -> None:
    page, _ = made(ROWS)
    found = probe(page, tmp_path, 500)
    assert found["problems"] == []
    assert all(found["figures"].values())
    assert found["wide"] <= 0
    for what in ("unnamed", "dangling", "unscoped", "twice"):
        assert found[what] == 0, what
    assert found["unread"] == []
    assert found["untold"] == []
