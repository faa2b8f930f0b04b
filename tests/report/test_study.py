"""The page of a study from made-up rows: what is drawn over what, which curves are fitted, what text can do there."""

import json
import re
from typing import Any

import pytest

from synthboot.report import study
from synthboot.statistics import Interval
from synthboot.studies.rows import Comparison, Row
from synthboot.studies.study import Study

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
    return Row(f"{tokens}-{width}", f"{tokens}-{width}", settings, **{**values, **changes})


ROWS = [row(tokens, width) for tokens in (10_000, 20_000, 50_000, 90_000) for width in (32, 64)]


def drawn(page: str) -> dict[str, Any]:
    found = re.search(r"^const charts = (.*);$", page, re.M)
    assert found
    return {chart["id"]: chart for chart in json.loads(found[1])}


def made(rows: list[Row], varied: list[str] = VARIED) -> tuple[str, list[dict[str, Any]]]:
    table = Study("x", varied, rows).table()
    curves = study.curves(table, varied)
    return study.study("x", varied, table, curves), curves


def test_every_metric_stands_over_every_setting_a_line_for_each_value_of_the_others() -> None:
    charts = drawn(made(ROWS)[0])
    assert set(charts) == {
        "map-repetition",
        *(f"over-{axis}-{metric}" for axis in (0, 1) for metric in ("d1_worth", "minus_repetition", "base_loss", "loss")),
        "over-2-base_loss",
        "over-2-loss",  # over parameters
    }
    narrow, wide = charts["over-0-d1_worth"]["data"]
    assert narrow["name"] == "width 32"
    assert narrow["x"] == [10_000, 20_000, 50_000, 90_000]
    assert wide["y"] == [0.64] * 4
    assert wide["error_y"]["array"] == pytest.approx([1.96 * 0.002] * 4)
    assert charts["over-0-d1_worth"]["layout"]["xaxis"]["type"] == "log"
    names = [line["name"] for line in charts["over-0-loss"]["data"] if line["showlegend"]]
    assert names == ["repetition, width 32", "repetition, width 64", "sbp-0.5, width 32", "sbp-0.5, width 64"]


def test_curves_are_fitted_where_the_points_allow_and_refused_by_name_elsewhere() -> None:
    page, curves = made(ROWS)
    fitted = {(curve["column"], curve["line"]): curve for curve in curves if not curve["refused"]}
    assert set(fitted) == {(c, f"width {w}") for c in ("base_loss", "loss.repetition", "loss.sbp-0.5") for w in (32, 64)}
    curve = fitted["base_loss", "width 32"]
    assert curve["axis"] == "budget.unique_tokens"
    assert curve["exponent"] == pytest.approx(0.3, rel=0.01)
    assert curve["offset"] == pytest.approx(2 + 4 / 32, abs=0.01)
    assert "No curve over parameters: 2 different values, and a power law with an offset takes 4" in page


def test_settings_that_go_together_are_one_line() -> None:
    rows = [row(tokens, width) for tokens, width in ((10_000, 32), (20_000, 64), (50_000, 96))]
    [line] = drawn(made(rows)[0])["over-0-d1_worth"]["data"]
    assert line["x"] == [10_000, 20_000, 50_000]


def test_the_map_has_a_dot_a_run_filled_where_a_difference_is_shown() -> None:
    rows = [*ROWS[:2], row(50_000, 32, minus_repetition=Comparison(0.1, -0.1, 0.3, 0.2, 0.4)), row(90_000, 32, d1_worth=None)]
    [dots] = drawn(made(rows)[0])["map-repetition"]["data"]
    assert dots["x"] == pytest.approx([0.32, 0.64, 0.32])
    assert dots["y"] == [-1, -1, 0.1]
    assert dots["marker"]["symbol"] == ["circle", "circle", "circle-open"]
    assert study.sentence(Study("x", VARIED, rows).table()).endswith("the method below repetition in 3 of 4, 3 of them shown.")


def test_what_is_no_number_has_its_name_on_the_axis() -> None:
    rows = []
    for optimizer, worth in (("adamw", 0.1), ("muon", 0.2)):
        rows.append(Row(optimizer, optimizer, {"optim.optimizer": optimizer}, d1_worth=(worth, 0.01)))
    chart = drawn(made(rows, ["optim.optimizer"])[0])["over-0-d1_worth"]
    assert chart["layout"]["xaxis"]["type"] == "category"
    assert chart["data"][0]["x"] == ["adamw", "muon"]


def test_text_is_inert_and_nothing_is_loaded() -> None:
    evil = "</script><script>alert(1)</script>"
    page, _ = made([*ROWS, row(20_000, 96, note=f"failed: {evil}"), Row(evil, evil, dict.fromkeys(VARIED, evil))])
    head, _, rest = page.partition("</head>")
    assert "default-src 'none'" in head
    assert evil not in rest
    assert "&lt;script&gt;alert" in rest
