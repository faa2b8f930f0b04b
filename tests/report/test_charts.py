from typing import Any

import pytest

from synthboot.report import charts
from synthboot.report.figures import Curves, Mark, Scale, Values


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
    losses = {"repetition": 3.0, "sbp": 2.0, "sbp-25": 2.5, "mega": 1.0}
    paint = dict.fromkeys(losses, "ink")
    found = charts.shares({"evaluate": evaluated(losses), "config": {"arms": arms}}, paint)
    assert isinstance(found, Curves)
    (line,) = found.lines
    assert [point[:2] for point in line.points] == [(0.0, 3), (0.25, 2.5), (0.5, 2)]
    alone = {"repetition": recipe(), "mega": arms["mega"]}
    assert charts.shares({"evaluate": evaluated(losses), "config": {"arms": alone}}, paint) is None


def test_flops_are_all_that_an_arm_cost() -> None:
    found = charts.flops(evaluated({"repetition": 3, "sbp": 2}), {"repetition": "#1", "sbp": "#2"})
    assert isinstance(found, Curves)
    assert {line.name: line.points[0][0] for line in found.lines} == {"repetition": 100.0, "sbp": 150.0}
    assert charts.flops(evaluated({"repetition": 3}), {"repetition": "#1"}) is None


def test_an_arm_has_the_colour_of_its_kind_whatever_its_name() -> None:
    kinds = {"repetition": "repetition", "self": "control", "ours": "method", "ours-25": "method", "top": "oracle"}
    found = charts.colors(kinds)
    assert (found["ours"], found["top"]) == ("method", "oracle")
    assert len(set(found.values())) == 5
    recipes = {name: recipe(synthetic="related" if kind == "method" else None) for name, kind in kinds.items()}
    assert charts.text_colors(recipes, found)["related"] == "method"  # text has the colour of the arm that reads it


def test_differences_to_repetition_show_every_seed() -> None:
    entry = {"difference": [-0.1, -0.2, 0.0], "difference_by_seed": [-0.05, -0.15]}
    scores = {
        "arms": {"repetition": {}, "ours": entry, "top": entry},
        "kinds": {"repetition": "repetition", "ours": "method", "top": "oracle"},
    }
    found = charts.differences({"checkpoint": "best", "best": scores}, {"ours": "method"})
    assert isinstance(found, Values)
    # an oracle would flatten the rest
    assert found.groups == {"": [Mark("ours", "method", -0.1, (-0.2, 0.0), [-0.05, -0.15])]}


def test_parts_of_a_document_are_shown_beside_repetition() -> None:
    values = {"repetition": {"name": [7.0, 6, 8], "form": [4.0, 3, 5]}, "sbp": {"name": [6.5, 6, 7], "form": [4.25, 4, 5]}}
    found = charts.parts({"all": values, "many": values, "one": values}, {"sbp": "method"})
    assert isinstance(found, Values)
    shown = {group: [(mark.name, mark.value) for mark in marks] for group, marks in found.groups.items()}
    assert shown["name, many"] == [("sbp", -0.5)]
    assert shown["form, one"] == [("sbp", 0.25)]
    assert "all" not in str(list(shown))


def test_chance_stands_beside_the_answers_where_it_is_known() -> None:
    answers = {"groups": {"all": {"sbp": {"acc": [0.5, 0.4, 0.6]}}}}
    asked = {"arc": {"chance": 0.25}, "lambada": {"chance": None}}
    found = charts.questions({"questions": {"arc": answers, "lambada": answers}, "asked": asked}, {"sbp": "method"})
    assert isinstance(found, Values)
    assert found.references == {"arc": 0.25}


def test_the_chain_runs_from_what_d1_could_tell_to_the_gain() -> None:
    scores = evaluated({"repetition": 3, "sbp": 2})
    scores["best"] |= {"subject": "sbp"}
    scores["best"]["arms"]["sbp"]["difference"] = [-0.05, -0.07, -0.03]
    unseen = {"d1_worth": 0.02, "d1_worth_error": 0.01, "net_worth": -0.1, "net_worth_error": 0.02}
    results = {
        "evaluate": scores,
        "config": {"arms": {"sbp": recipe(synthetic="related")}},
        "pairs": {"pair/related": {"ceiling": {"worth": {"1": [0.04, 0.001]}}}},
        "tune": {"tune/related": {"conditioning": {"unseen": unseen}}},
    }
    found = charts.chain(results, {"sbp": "method"})
    assert isinstance(found, Values)
    assert [mark.value for mark in found.groups[""]] == [0.04, 0.02, -0.1, 0.05]  # all of them saved: above zero is better
    assert found.groups[""][-1].interval == (0.03, 0.07)
    for figure in ("0.0400", "+0.0200", "-0.1000", "+0.0500"):
        assert figure in found.read
    assert charts.chain(results | {"pairs": {}, "tune": {}}, {"sbp": "method"}) is None


@pytest.mark.parametrize("ends", [(6, 9), (1, 1e9), (0.001, 40), (2.5, 2.5), (-3, 7)])
@pytest.mark.parametrize("log", [False, True])
def test_every_scale_has_a_few_round_ticks_within(ends: tuple[float, float], log: bool) -> None:
    if log and ends[0] <= 0:
        return
    scale = Scale.over(ends, 0, 100, log)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 7
    assert all(0 < scale(tick) < 100 for tick in ticks)
