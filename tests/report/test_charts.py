from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from synthboot import config, loading
from synthboot.artifacts.corpus import Counts
from synthboot.artifacts.evaluation import (
    AnswerResult,
    ArmComparison,
    ArmResult,
    Contamination,
    DataEfficiency,
    Evaluation,
    TaskResult,
)
from synthboot.artifacts.model import Conditioning, Curve, TokenCounts, Tuning
from synthboot.artifacts.pairs import Ceiling, Chosen
from synthboot.report import charts
from synthboot.report.figures import Curves, Mark, Scale, Values
from synthboot.report.results import Results
from synthboot.statistics import Difference, Estimate, Interval
from tests.conftest import small_config


def curves(sbp: list[list[float]], repetition: list[list[float]]) -> dict[str, Curve]:
    """Validation losses at 10, 20, 30, ... tokens, a list per seed."""
    named = {f"sbp/{i}": s for i, s in enumerate(sbp)} | {f"repetition/{i}": r for i, r in enumerate(repetition)}
    return {name: Curve(validation=[[10.0 * (i + 1), v] for i, v in enumerate(c)]) for name, c in named.items()}


def test_the_crossing_is_where_the_mean_curves_meet_for_the_last_time() -> None:
    assert charts.crossing(curves([[5, 4, 2]], [[4, 3.5, 3]]), "sbp") == pytest.approx(20 + 10 * 0.5 / 1.5)
    two = curves([[5, 4, 3], [5, 4, 1]], [[4, 3.5, 3], [4, 3.5, 3]])
    assert charts.crossing(two, "sbp") == pytest.approx(20 + 10 * 0.5 / 1.5)
    assert charts.crossing(curves([[3, 5, 2]], [[4, 4, 4]]), "sbp") == pytest.approx(20 + 10 / 3)  # it fell back once
    assert charts.crossing(curves([[3, 3, 3]], [[4, 4, 4]]), "sbp") == 10  # ahead from the first


def test_no_crossing_where_the_arm_ends_behind_or_on_other_tokens() -> None:
    assert charts.crossing(curves([[3, 3, 5]], [[4, 4, 4]]), "sbp") is None
    assert charts.crossing(curves([[3, 3]], [[4, 4, 4]]), "sbp") is None
    assert charts.crossing(curves([], [[4, 4, 4]]), "sbp") is None


HELD = Counts(
    records=9, quarantined=0, reasons={}, renamed_ids=0, ignored_files={}, ignored_values={}, dropped={}, flagged_docs=0,
    documents={}, tokens={}, pretrain_docs=9, pretrain_tokens=90, vocab_size=9, tokenizer_docs=9, unknown_tokens=0, account="",
)  # fmt: skip


def around(value: float) -> Interval:
    return Interval(value, value - 0.1, value + 0.1)


def arms(losses: dict[str, float]) -> dict[str, ArmResult]:
    return {name: ArmResult(around(loss), around(loss), around(loss), (loss,), {}) for name, loss in losses.items()}


def difference(value: float, low: float, high: float, by_seed: tuple[float, ...] = ()) -> Estimate:
    return Estimate(value, low, high, p=0.1, standard_error=0.1, df=1, by_seed=by_seed, items=9)


def compared(results: dict[str, ArmResult], kinds: dict[str, str], subject: str | None = None) -> ArmComparison:
    return ArmComparison(
        arms=results, kinds=kinds, subject=subject, oracle=None, more_compute="", seeds=1, looks=(), docs=9, tokens=90,
        confidence=0.95, groups={}, power=None, verdict="",
    )  # fmt: skip


def recipe(**changes: Any) -> config.Arm:
    return config.Arm(**changes)


def test_the_share_sweep_joins_arms_that_differ_in_share_alone() -> None:
    recipes = {
        "repetition": recipe(),
        "sbp": recipe(synthetic="related", share=0.5),
        "sbp-25": recipe(synthetic="related", share=0.25),
        "mega": recipe(synthetic="related", share=0.4, layout="megadoc"),
    }
    losses = arms({"repetition": 3.0, "sbp": 2.0, "sbp-25": 2.5, "mega": 1.0})
    paint = dict.fromkeys(losses, "ink")
    found = charts.shares(losses, recipes, paint)
    assert isinstance(found, Curves)
    (line,) = found.lines
    assert [point[:2] for point in line.points] == [(0.0, 3), (0.25, 2.5), (0.5, 2)]
    assert charts.shares(losses, {"repetition": recipe(), "mega": recipes["mega"]}, paint) is None


def test_flops_are_all_that_an_arm_cost() -> None:
    plain = TokenCounts(
        steps=1, batch_tokens=1, train_tokens=1, real_tokens=1, unique_real_tokens=1, real_epochs=1.0,
        synthetic_tokens=0, synthetic_epochs=0.0, replayed_tokens=0, replayed_epochs=0.0, seed=0, parameters=1,
        architecture="", vocab_size=1, settings={}, recipe=recipe(), train_flops=100.0, spent_flops=0.0,
    )  # fmt: skip
    counts = {"repetition": plain, "sbp": replace(plain, spent_flops=50.0)}
    paint = {"repetition": "#1", "sbp": "#2"}
    found = charts.flops(arms({"repetition": 3, "sbp": 2}), counts, paint)
    assert isinstance(found, Curves)
    assert {line.name: line.points[0][0] for line in found.lines} == {"repetition": 100.0, "sbp": 150.0}
    assert charts.flops(arms({"repetition": 3}), {"repetition": plain}, paint) is None


def test_an_arm_has_the_colour_of_its_kind_whatever_its_name() -> None:
    kinds = {"repetition": "repetition", "self": "control", "ours": "method", "ours-25": "method", "top": "oracle"}
    found = charts.colors(kinds)
    assert (found["ours"], found["top"]) == ("method", "oracle")
    assert len(set(found.values())) == 5
    method = recipe(synthetic="related", share=0.5)
    recipes = {name: method if kind == "method" else recipe() for name, kind in kinds.items()}
    assert charts.text_colors(recipes, found)["related"] == "method"  # text has the colour of the arm that reads it


def test_differences_to_repetition_show_every_seed() -> None:
    results = arms({"repetition": 3.0, "ours": 2.9, "top": 2.9})
    for name in ("ours", "top"):
        results[name] = replace(results[name], difference=difference(-0.1, -0.2, 0.0, (-0.05, -0.15)))
    kinds = {"repetition": "repetition", "ours": "method", "top": "oracle"}
    found = charts.differences(compared(results, kinds), {"ours": "method"}, [7, 0])
    assert isinstance(found, Values)
    headers, [row] = found.table()
    assert dict(zip(headers, row, strict=True))["seed 7"] == "-0.0500", "the number of a seed, not its place among them"
    # an oracle would flatten the rest
    assert found.groups == {"": [Mark("ours", "method", -0.1, (-0.2, 0.0), (-0.05, -0.15))]}


def test_parts_of_a_document_are_shown_beside_repetition() -> None:
    repetition = {"name": Interval(7.0, 6, 8), "form": Interval(4.0, 3, 5)}
    values = {"repetition": repetition, "sbp": {"name": Interval(6.5, 6, 7), "form": Interval(4.25, 4, 5)}}
    found = charts.parts({"all": values, "many": values, "one": values}, {"sbp": "method"})
    assert isinstance(found, Values)
    shown = {group: [(mark.name, mark.value) for mark in marks] for group, marks in found.groups.items()}
    assert shown["name, many"] == [("sbp", -0.5)]
    assert shown["form, one"] == [("sbp", 0.25)]
    assert "all" not in str(list(shown))


def test_chance_stands_beside_the_answers_where_it_is_known() -> None:
    half = around(0.5)
    answer = AnswerResult(8, half, half, half, None, Difference(0.0, 0.0, 0.0, 1.0))
    task = TaskResult(8, {"all": {"sbp": answer}})
    contamination = {"arc": Contamination(8, 0, 0, 0.25), "lambada": Contamination(8, 0, 0, None)}
    found = charts.questions({"arc": task, "lambada": task, "theirs": task}, contamination, {"sbp": "method"})
    assert isinstance(found, Values)
    assert found.references == {"arc": 0.25}


def test_the_chain_runs_from_what_d1_could_tell_to_the_gain() -> None:
    losses = arms({"repetition": 3, "sbp": 2})
    losses["sbp"] = replace(losses["sbp"], difference=difference(-0.05, -0.07, -0.03))
    both = compared(losses, {"repetition": "repetition", "sbp": "method"}, subject="sbp")
    unseen = Conditioning(
        given_nothing=3.0, base=3.0, pairs=9, d1_worth=0.02, d1_worth_error=0.01, net_worth=-0.1, net_worth_error=0.02
    )
    tuned = Tuning(
        account="", conditioning={"unseen": unseen}, untuned=(0.0, 0.0), padding_share=0.0, best_loss=3.0,
        upstream_flops=0.0, curve=Curve(), stopped_by=[],
    )  # fmt: skip
    ceiling = Ceiling(
        docs=9, tokens=9, d1=1.0, loss=3.0, worth={"1": (0.04, 0.001)}, random=(0.0, 0.001), bands=[], floor=3.0
    )  # fmt: skip
    recipes = {"repetition": {}, "sbp": {"synthetic": "related", "share": 0.5}}
    results = Results(
        name="small",
        config=loading.load(small_config(Path("x.jsonl"), Path("runs"), arms=recipes)),
        corpus=HELD,
        evaluate=Evaluation("best", {}, both, both, DataEfficiency((), {}), {}, {}, {}, None, {}),
        pairs={"pair/related": Chosen(alpha=0.2, why="", considered=9, ceiling=ceiling)},
        tune={"tune/related": tuned},
        curves=curves([[3.0, 1.0]], [[4.0, 3.0], [4.0, 3.5]]),
    )
    found = charts.chain(results, {"sbp": "method"})
    assert isinstance(found, Values)
    assert [mark.value for mark in found.groups[""]] == [0.04, 0.02, -0.1, 0.05]  # all of them saved: above zero is better
    assert found.groups[""][-1].interval == (0.03, 0.07)
    for figure in ("0.0400", "+0.0200", "-0.1000", "repetition's last tenth of training saved +0.1500", "+0.0500"):
        assert figure in found.read
    once = charts.chain(replace(results, curves=curves([], [[4.0], [4.0]])), {"sbp": "method"})
    assert once
    assert "last tenth" not in once.read
    assert charts.chain(replace(results, pairs={}, tune={}), {"sbp": "method"}) is None


@pytest.mark.parametrize("ends", [(6, 9), (1, 1e9), (0.001, 40), (2.5, 2.5), (-3, 7)])
@pytest.mark.parametrize("log", [False, True])
def test_every_scale_has_a_few_round_ticks_within(ends: tuple[float, float], log: bool) -> None:
    if log and ends[0] <= 0:
        return
    scale = Scale.over(ends, 0, 100, log)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 7
    assert all(0 < scale(tick) < 100 for tick in ticks)
