"""What is said of a filter: beside which arm, and how much it left."""

from dataclasses import replace
from typing import Any

import pytest

from synthboot import show
from synthboot.artifacts.evaluation import Evaluation
from synthboot.artifacts.synthetic import ThrownAway
from synthboot.config import Arm, Filter
from synthboot.report import filters
from synthboot.report.page import report
from synthboot.statistics import Difference
from tests.conftest import run_folder
from tests.report.test_page import gathered

AGAINST = Difference(-0.01, -0.03, 0.01, 0.3)
AWAY = {"loss": ThrownAway(12, 300), "near-duplicate of a sample": ThrownAway(1, 40)}


def with_arms(evaluation: Evaluation, recipes: dict[str, Arm]) -> Evaluation:
    """Arms like sbp, each with a recipe; half of what is left was read."""
    plain = evaluation.counts_by_arm["sbp"]
    counts = dict(evaluation.token_counts)
    arms = dict(evaluation.best.arms)
    for name, recipe in recipes.items():
        away = AWAY if recipe.filter.chooses else {}
        own = replace(plain, recipe=recipe, thrown_away=away, synthetic_tokens=330, synthetic_epochs=0.5)
        counts[name] = {0: own}
        arms[name] = replace(arms["sbp"], against={"sbp": AGAINST, "repetition": Difference(1, 1, 1, 1)})
    kinds = {**evaluation.best.kinds, **dict.fromkeys(recipes, "method")}
    best = replace(evaluation.best, arms=arms, kinds=kinds, groups={})
    return replace(evaluation, checkpoint="best", token_counts=counts, best=best, last=best, parts={})


def test_an_arm_with_a_filter_stands_beside_the_one_that_is_the_same_but_for_it(tiny: dict[str, Any]) -> None:
    evaluation = show.evaluated(run_folder(tiny))
    assert evaluation is not None
    assert filters.effects(evaluation) == {}
    sbp = evaluation.counts_by_arm["sbp"].recipe
    narrow = Filter(loss=[1.0, 2.0])
    recipes = {
        "clean": sbp.model_copy(update={"filter": narrow}),
        "less": sbp.model_copy(update={"filter": narrow, "share": 0.1}),  # of which there is none without
    }
    filtered = with_arms(evaluation, recipes)
    found = filters.effects(filtered)
    assert list(found) == ["clean", "less"]
    assert found["clean"].without == "sbp"
    assert found["clean"].difference == AGAINST
    assert found["clean"].left == 660
    assert found["clean"].share == pytest.approx(660 / 1_000)
    assert found["less"].without is None

    # an arm of which no row is synthetic
    [counts] = filtered.token_counts["less"].values()
    nothing = {0: replace(counts, synthetic_tokens=0, synthetic_epochs=0.0)}
    unread = replace(filtered, token_counts={**filtered.token_counts, "less": nothing})
    assert list(filters.effects(unread)) == ["clean"]

    table = filters.table(found)
    clean, less = table.rows
    away = "loss: 12 samples, 300 tokens; near-duplicate of a sample: 1 sample, 40 tokens"
    assert clean == ["clean", "660 tokens (66%)", away, "sbp", "-0.0100", "-0.0300 to +0.0100", "0.3"]
    assert less[3:] == ["-"] * 4
    assert len(table.notes) == 1
    assert "No arm is less without its filter" in table.notes[0]

    page = report(replace(gathered(tiny), evaluate=filtered))
    assert '<a href="#filters">Filters</a>' in page
    assert away in page
    assert '#filters"' not in report(gathered(tiny))
