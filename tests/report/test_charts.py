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
    """What a comparison of arms with these losses says, one seed each."""
    arms = {}
    for name, loss in losses.items():
        arms[name] = {"loss": [loss, loss - 0.1, loss + 0.1], "loss_by_seed": [loss]}
        arms[name] |= {"difference": [loss - 3, loss - 3.1, loss - 2.9], "difference_by_seed": [loss - 3]}
    kinds = {name: {"repetition": "repetition", "top": "oracle"}.get(name, "method") for name in losses}
    token_counts = {name: {"0": {"train_flops": 100.0, "spent_flops": 50.0 * (name == "sbp")}} for name in losses}
    best = {"arms": arms, "kinds": kinds, "subject": None}
    efficiency: dict[str, Any] = {"points": [], "worth": {}}
    return {"checkpoint": "best", "best": best, "token_counts": token_counts, "questions": {}, "efficiency": efficiency}


def drawn(evaluated: dict[str, Any], arms: dict[str, Any] | None = None) -> dict[str, Any]:
    """The charts of a comparison by their places."""
    arms = arms or {name: recipe() for name in evaluated["token_counts"]}
    rest: dict[str, Any] = {"curves": {}, "pairs": {}, "tune": {}, "analyze": None}
    return {c["id"]: c for c in charts.charts({"evaluate": evaluated, "config": {"arms": arms}, **rest})}


def recipe(**changes: Any) -> dict[str, Any]:
    return {"synthetic": None, "share": 0.0, "rounds": 1, "sweep": {}, "layout": "shuffled", **changes}


def test_the_share_sweep_joins_arms_that_differ_in_share_alone() -> None:
    arms = {
        "repetition": recipe(),
        "sbp": recipe(synthetic="related", share=0.5),
        "sbp-25": recipe(synthetic="related", share=0.25),
        "mega": recipe(synthetic="related", share=0.4, layout="megadoc"),
    }
    (line,) = drawn(evaluated({"repetition": 3, "sbp": 2, "sbp-25": 2.5, "mega": 1}), arms)["shares"]["data"]
    assert line["x"] == [0.0, 0.25, 0.5]
    assert line["y"] == [3, 2.5, 2]
    few = {name: arms[name] for name in ("repetition", "mega")}
    assert "shares" not in drawn(evaluated({"repetition": 3, "mega": 1}), few)


def test_flops_are_all_that_an_arm_cost() -> None:
    found = drawn(evaluated({"repetition": 3, "sbp": 2}))["flops"]
    assert {t["name"]: t["x"] for t in found["data"]} == {"repetition": [100.0], "sbp": [150.0]}
    assert "flops" not in drawn(evaluated({"repetition": 3}))


def test_an_arm_has_the_colour_of_its_kind_whatever_its_name() -> None:
    found = charts.colors(
        {"repetition": "repetition", "self": "control", "ours": "method", "ours-25": "method", "top": "oracle"}
    )
    assert found["ours"] == charts.COLORS["method"]
    assert found["top"] == charts.COLORS["oracle"]
    assert len(set(found.values())) == 5


def test_differences_to_repetition_show_every_seed() -> None:
    results = evaluated({"repetition": 3, "ours": 2, "top": 1})
    results["best"]["arms"]["ours"] |= {"difference": [-0.1, -0.2, 0.0], "difference_by_seed": [-0.05, -0.15]}
    bars, dots = drawn(results)["differences"]["data"]
    assert (bars["x"], bars["y"]) == ([-0.1], ["ours"])  # an oracle would flatten the rest
    assert bars["error_x"]["array"] == [pytest.approx(0.1)]
    assert dots["x"] == [-0.05, -0.15]


def test_parts_of_a_document_are_shown_beside_repetition() -> None:
    values = {"repetition": {"name": [7.0, 6, 8], "form": [4.0, 3, 5]}, "sbp": {"name": [6.5, 6, 7], "form": [4.25, 4, 5]}}
    parts = {"all": values, "many": values, "one": values}
    name, form = drawn({**evaluated({"repetition": 3, "sbp": 2}), "parts": parts})["parts"]["data"]
    assert (name["name"], name["x"], name["y"]) == ("name", [-0.5, -0.5], ["sbp, many", "sbp, one"])
    assert form["x"] == [0.25, 0.25]
