from typing import Any

import pytest

from synthboot.report import charts


def results(sbp: list[list[float]], repetition: list[list[float]]) -> dict[str, Any]:
    """Validation losses at 10, 20, 30, ... tokens, a list per seed."""
    curves = {f"sbp/{i}": s for i, s in enumerate(sbp)} | {f"repetition/{i}": r for i, r in enumerate(repetition)}
    return {"curves": {role: {"validation": [[10.0 * (i + 1), v] for i, v in enumerate(c)]} for role, c in curves.items()}}


def test_the_crossing_is_where_the_mean_curves_meet_for_the_last_time() -> None:
    assert charts.crossing(results([[5, 4, 2]], [[4, 3.5, 3]]), "sbp") == pytest.approx(20 + 10 * 0.5 / 1.5)
    assert charts.crossing(results([[5, 4, 3], [5, 4, 1]], [[4, 3.5, 3], [4, 3.5, 3]]), "sbp") == pytest.approx(
        20 + 10 * 0.5 / 1.5
    )
    assert charts.crossing(results([[3, 5, 2]], [[4, 4, 4]]), "sbp") == pytest.approx(20 + 10 / 3)  # it fell back once
    assert charts.crossing(results([[3, 3, 3]], [[4, 4, 4]]), "sbp") == 10  # ahead from the first


def test_no_crossing_where_the_arm_ends_behind_or_on_other_tokens() -> None:
    assert charts.crossing(results([[3, 3, 5]], [[4, 4, 4]]), "sbp") is None
    assert charts.crossing(results([[3, 3]], [[4, 4, 4]]), "sbp") is None
    assert charts.crossing(results([], [[4, 4, 4]]), "sbp") is None


def evaluated(losses: dict[str, float]) -> dict[str, Any]:
    arms = {name: {"loss": [loss, loss - 0.1, loss + 0.1], "loss_by_seed": [loss]} for name, loss in losses.items()}
    token_counts = {name: {"0": {"train_flops": 100.0, "spent_flops": 50.0 * (name == "sbp")}} for name in losses}
    return {"checkpoint": "best", "best": {"arms": arms}, "token_counts": token_counts}


def recipe(**changes: Any) -> dict[str, Any]:
    return {"synthetic": None, "share": 0.0, "rounds": 1, "sweep": {}, "layout": "shuffled", **changes}


def test_the_share_sweep_joins_arms_that_differ_in_share_alone() -> None:
    arms = {
        "repetition": recipe(),
        "sbp": recipe(synthetic="related", share=0.5),
        "sbp-25": recipe(synthetic="related", share=0.25),
        "mega": recipe(synthetic="related", share=0.4, layout="megadoc"),
    }
    found = charts._shares(
        {"evaluate": evaluated({"repetition": 3, "sbp": 2, "sbp-25": 2.5, "mega": 1}), "config": {"arms": arms}}
    )
    assert found is not None
    (line,) = found["data"]
    assert line["x"] == [0.0, 0.25, 0.5]
    assert line["y"] == [3, 2.5, 2]
    assert (
        charts._shares({"evaluate": evaluated({"repetition": 3, "mega": 1}), "config": {"arms": {"repetition": recipe()}}})
        is None
    )


def test_flops_are_all_that_an_arm_cost() -> None:
    found = charts._flops(evaluated({"repetition": 3, "sbp": 2}), {"repetition": "#1", "sbp": "#2"})
    assert found is not None
    assert {t["name"]: t["x"] for t in found["data"]} == {"repetition": [100.0], "sbp": [150.0]}
    assert charts._flops(evaluated({"repetition": 3}), {"repetition": "#1"}) is None


def test_an_arm_has_the_colour_of_its_kind_whatever_its_name() -> None:
    found = charts.colors(
        {"repetition": "repetition", "self": "control", "ours": "method", "ours-25": "method", "top": "oracle"}
    )
    assert found["ours"] == charts.COLORS["method"]
    assert found["top"] == charts.COLORS["oracle"]
    assert len(set(found.values())) == 5


def test_differences_to_repetition_show_every_seed() -> None:
    entry = {"difference": [-0.1, -0.2, 0.0], "difference_by_seed": [-0.05, -0.15]}
    scores = {
        "arms": {"repetition": {}, "ours": entry, "top": entry},
        "kinds": {"repetition": "repetition", "ours": "method", "top": "oracle"},
    }
    found = charts._differences({"checkpoint": "best", "best": scores}, {"ours": "#1"})
    assert found is not None
    bars, dots = found["data"]
    assert (bars["x"], bars["y"]) == ([-0.1], ["ours"])  # an oracle would flatten the rest
    assert bars["error_x"]["array"] == [pytest.approx(0.1)]
    assert dots["x"] == [-0.05, -0.15]


def test_parts_of_a_document_are_shown_beside_repetition() -> None:
    values = {"repetition": {"name": [7.0, 6, 8], "form": [4.0, 3, 5]}, "sbp": {"name": [6.5, 6, 7], "form": [4.25, 4, 5]}}
    parts = {"all": values, "many": values, "one": values}
    name, form = charts._parts(parts)["data"]
    assert (name["name"], name["x"], name["y"]) == ("name", [-0.5, -0.5], ["sbp, many", "sbp, one"])
    assert form["x"] == [0.25, 0.25]
