import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from synthboot import config
from synthboot.artifacts.evaluation import ArmComparison, ArmResult
from synthboot.data.documents import Document
from synthboot.errors import ConfigError
from synthboot.stages.evaluate import answered, efficiency, evaluate, parted, summed
from synthboot.statistics import Estimate, Interval
from synthboot.steps.evaluate import group_of
from synthboot.verdicts import verdict

TOKENS = np.full(400, 50)
BYTES = np.full(400, 200)
CFG = config.Evaluate()
REAL, RELATED = config.Arm(), config.Arm(synthetic="related", share=0.5)
RECIPES = {
    "repetition": REAL,
    "sbp": RELATED,
    "oracle": config.Arm(unique_tokens="all"),
    "self": config.Arm(synthetic="unconditional", share=0.5),
    "random_pairs": config.Arm(synthetic="random_pairs", share=0.5),
    "packed_pairs": config.Arm(layout="packed_pairs"),
    "sbp-75": config.Arm(synthetic="related", share=0.75),
}
LOSS = Interval(3.0, 2.9, 3.1)
ARM = ArmResult(LOSS, LOSS, LOSS, (3.0,), {})


def difference(value: float, low: float, high: float, p: float) -> Estimate:
    return Estimate(value, low, high, p, standard_error=0.1, df=2, by_seed=(value,), items=400)


def figures(arms: dict[str, np.ndarray], tokens: np.ndarray = TOKENS, size: np.ndarray = BYTES, **more: Any) -> ArmComparison:
    return evaluate(arms, tokens, size, RECIPES, CFG, **more)


def losses(mean: float, seeds: int = 3, spread: float = 0.02, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    documents = np.random.default_rng(99).normal(0, 0.5, 400)  # hard and easy documents, the same for every arm
    return 50 * (mean + documents + rng.normal(0, spread, (seeds, 1)) + rng.normal(0, 0.05, (seeds, 400)))


def scored(sbp: float, seeds: int = 3) -> ArmComparison:
    arms = {"repetition": losses(3.0, seeds, seed=1), "sbp": losses(sbp, seeds, seed=2), "oracle": losses(2.6, seeds, seed=3)}
    return figures(arms)


def test_loss_perplexity_and_bits_per_byte() -> None:
    result = figures({"repetition": np.full((1, 400), 100.0)}).arms["repetition"]
    assert result.loss == pytest.approx([2.0] * 3)
    assert result.perplexity.value == pytest.approx(math.exp(2))
    assert result.bits_per_byte.value == pytest.approx(100 / math.log(2) / 200)


def test_loss_is_per_token_not_per_document() -> None:
    tokens = np.array([1, 99])
    result = figures({"repetition": np.array([[10.0, 99.0]])}, tokens, np.array([4, 400]))
    assert result.arms["repetition"].loss.value == pytest.approx(109 / 100)


def test_the_same_loss_a_token_everywhere_has_no_spread_whatever_the_lengths() -> None:
    tokens = np.random.default_rng(0).integers(5, 500, 300)
    result = figures({"repetition": 2.0 * tokens[None]}, tokens, 4 * tokens)  # 2 nats per token in each document
    assert result.arms["repetition"].loss == pytest.approx([2.0] * 3)


def test_oracle_share_and_its_interval() -> None:
    found = scored(2.8)
    share = found.arms["sbp"].oracle_share
    assert share is not None
    assert share.low < share.value < share.high
    assert share.value == pytest.approx(0.5, abs=0.1)
    assert [arm for arm in found.arms if found.has_share(arm)] == ["sbp"]
    assert found.arms["oracle"].p_adjusted is None  # that more text is better is no claim


def test_pairing_by_document_makes_intervals_of_differences_narrow() -> None:
    arms = {"repetition": losses(3.0, spread=0, seed=1), "sbp": losses(2.8, spread=0, seed=2)}
    entry = figures(arms).arms["sbp"]
    assert entry.difference is not None
    width = entry.difference.high - entry.difference.low
    assert width < 0.6 * (entry.loss.high - entry.loss.low)


def test_no_share_of_an_oracle_that_gains_nothing() -> None:
    arms = {"repetition": losses(3.0, seed=1), "sbp": losses(2.9, seed=2), "oracle": losses(3.0, seed=3)}
    found = figures(arms)
    assert found.arms["sbp"].oracle_share is None
    assert found.has_share("sbp")  # which is not known


@pytest.mark.parametrize(
    ("sbp", "seeds", "expected"),
    [
        (2.8, 3, "Synthetic text helped"),
        (3.2, 3, "Synthetic text hurt"),
        (3.0, 3, "No difference shown"),
        (2.8, 1, "1 seed: nothing is known about seeds"),
    ],
)
def test_the_verdict_says_what_the_figures_show(sbp: float, seeds: int, expected: str) -> None:
    assert expected in scored(sbp, seeds).verdict


def test_three_seeds_need_no_caution_and_one_does() -> None:
    assert "anecdote" not in scored(2.8).verdict
    assert "No arm of the method was run" in verdict({"repetition": ARM}, {"repetition": "repetition"}, 3, 0.95)


def test_a_claim_over_seeds_is_about_the_text_that_they_read() -> None:
    assert "and 3 seeds, of this synthetic text" in scored(2.8, seeds=3).verdict
    assert "this synthetic text" not in scored(2.8, seeds=1).verdict  # it says that nothing is known of seeds
    compared = scored(2.8, seeds=3)
    assert "and 3 seeds, each with a text of its own" in verdict(compared.arms, compared.kinds, 3, 0.95, text_per_seed=True)


def test_what_an_arm_is_its_recipe_says_and_not_its_name() -> None:
    recipes = {"repetition": REAL, "sbp-self": config.Arm(synthetic="unconditional", share=0.5), "ours": RELATED}
    arms = {"repetition": losses(3.0, seed=1), "sbp-self": losses(2.9, seed=2), "ours": losses(2.7, seed=3)}
    result = evaluate(arms, TOKENS, BYTES, recipes, CFG)
    assert result.kinds == {"repetition": "repetition", "sbp-self": "control", "ours": "method"}
    assert result.subject == "ours"
    assert result.verdict.startswith("Synthetic text helped: ours is 0.3")
    assert "better than sbp-self" in result.verdict


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        ({}, "repetition"),
        ({"sweep": {"lr": [0.1, 0.2]}}, "repetition"),
        ({"sweep": {"noise": [0.1, 0.2]}}, "control"),
        ({"noise": 0.1}, "control"),
        ({"layout": "packed_pairs"}, "control"),
        ({"synthetic": "scratch", "share": 0.5}, "control"),
        ({"synthetic": "related", "share": 0.1, "match": "flops"}, "method"),
        ({"synthetic": "related", "share": 0.1, "unique_tokens": "all"}, "oracle"),
        ({"unique_tokens": 1_000}, "oracle"),
        ({"ensemble": 2}, "ensemble"),
        ({"ensemble": 2, "synthetic": "related", "share": 0.1}, "ensemble"),
        ({"ensemble": 2, "unique_tokens": "all"}, "ensemble"),
        ({"distill": "ens"}, "control"),
    ],
)
def test_kinds_of_recipes(recipe: dict[str, Any], kind: str) -> None:
    assert config.Arm(**recipe).kind == kind


def test_the_oracle_of_the_share_is_the_one_with_the_most_text() -> None:
    recipes = {**RECIPES, "half": config.Arm(unique_tokens=5_000), "oracle": config.Arm(unique_tokens=9_000)}
    arms = {
        "repetition": losses(3.0, seed=1),
        "sbp": losses(2.8, seed=2),
        "half": losses(2.8, seed=4),
        "oracle": losses(2.6, seed=3),
    }
    found = evaluate(arms, TOKENS, BYTES, recipes, CFG)
    assert found.oracle == "oracle"
    shares = [found.arms[name].oracle_share for name in ("sbp", "half")]
    assert [share.value for share in shares if share] == pytest.approx([0.5, 0.5], abs=0.1)


def test_many_arms_are_adjusted_for_and_so_are_earlier_looks() -> None:
    arms = {"repetition": losses(3.0, seed=1), "sbp": losses(2.97, seed=2), "self": losses(2.6, seed=4)}
    once = figures(arms, looks=[3])
    p = {name: arm.difference.p for name, arm in once.arms.items() if arm.difference}
    assert once.arms["sbp"].p_adjusted == p["sbp"]  # the larger of two is not multiplied
    assert once.arms["self"].p_adjusted == pytest.approx(2 * p["self"])
    twice = figures(arms, looks=[2, 3])
    assert twice.arms["self"].p_adjusted == pytest.approx(4 * p["self"])
    assert "looked at before with 2 seeds" in twice.verdict


def test_what_is_said_of_controls_is_adjusted_for_looks_too() -> None:
    arms = {"repetition": losses(3.0, seed=1), "sbp": losses(2.7, seed=2)}
    arms["self"] = arms["sbp"] + 50 * np.array([[0.02], [0.03], [0.04]])
    p = figures(arms).arms["sbp"].against["self"].p
    assert 0.05 / 3 < p < 0.05
    assert f"better than self (p = {p:.2g})" in figures(arms, looks=[3]).verdict
    assert f"not shown to differ from self (p = {3 * p:.2g})" in figures(arms, looks=[1, 2, 3]).verdict


def test_an_interval_that_ends_nowhere_has_a_perplexity() -> None:
    arms = {"repetition": np.array([[800.0, 900.0], [520.0, 480.0]])}
    result = evaluate(arms, np.array([100, 100]), np.array([300, 300]), RECIPES, config.Evaluate(confidence=0.999))
    assert result.arms["repetition"].loss.high > 700
    assert math.isfinite(result.arms["repetition"].perplexity.high)


def test_null_is_no_group() -> None:
    fields = [{"topic": "None"}, {"topic": 0}, {"topic": None}, {}]
    assert [group_of(Document("", "", own), "topic") for own in fields] == ["None", "0", "", ""]


def test_a_group_of_the_name_all_hides_nothing_and_documents_of_no_group_are_none() -> None:
    answers = {"repetition": np.zeros((2, 6, 4))}
    answers["repetition"][:, :3, 0] = 1
    by_group = answered(answers, ["t"] * 6, ["all"] * 3 + ["b"] * 3, CFG)["t"].groups
    assert {group: found["repetition"].items for group, found in by_group.items()} == {"all": 6, "all (group)": 3, "b": 3}
    groups = ["x"] * 100 + [""] * 300
    assert set(figures({"repetition": losses(3.0)}, groups=groups).groups) == {"x"}
    nats = {"repetition": np.arange(400.0)[None, :, None]}
    assert set(parted(nats, ["form"], groups, CFG)) == {"all", "x"}
    found = parted(nats, ["form"], ["all"] * 100 + ["x"] * 300, CFG)
    means = {group: by_arm["repetition"]["form"].value for group, by_arm in found.items()}
    assert means == pytest.approx({"all": 199.5, "all (group)": 49.5, "x": 249.5})


def test_the_verdict_does_not_stand_on_a_p_value_that_is_not_adjusted() -> None:
    ours = replace(ARM, difference=difference(-0.1, -0.19, -0.01, 0.03), p_adjusted=0.12)
    said = verdict({"repetition": ARM, "ours": ours}, {"repetition": "repetition", "ours": "method"}, 3, 0.95)
    assert said.startswith("No difference shown: ours is 0.1000 nats per token better than repetition")
    assert "does not stand once the number of comparisons is allowed for" in said


def test_what_a_run_of_so_many_seeds_could_show() -> None:
    power = scored(2.8).power
    assert power is not None
    assert power.subject == "sbp"
    shown = [power.detectable[n] for n in (2, 3, 5, 10)]
    assert shown == sorted(shown, reverse=True)
    assert scored(2.8, seeds=1).power is None


def test_without_repetition_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(ConfigError, match="repetition is missing"):
        figures({"sbp": losses(2.8)})


def test_every_arm_is_compared_with_every_other_and_the_verdict_says_what_controls_show() -> None:
    arms = {
        "repetition": losses(3.0, seed=1),
        "sbp": losses(2.8, seed=2),
        "oracle": losses(2.6, seed=3),
        "self": losses(3.4, seed=4),
        "random_pairs": losses(2.8, seed=5),
        "packed_pairs": losses(2.3, seed=6),
        "sbp-75": losses(2.75, seed=7),
    }
    result = figures(arms)
    sbp = result.arms["sbp"]
    assert set(sbp.against) == set(arms) - {"sbp"}
    assert sbp.difference is not None
    assert sbp.against["repetition"] == sbp.difference.tested
    assert sbp.against["self"].value == pytest.approx(-0.6, abs=0.03)
    assert sbp.against["self"].p < 0.05 < sbp.against["random_pairs"].p
    assert result.arms["self"].against["sbp"].value == pytest.approx(-sbp.against["self"].value)
    said = result.verdict
    assert "better than self (p = " in said
    assert "not shown to differ from random_pairs" in said
    assert "worse than packed_pairs" in said
    assert "sbp-75" not in said  # a variant of the method is no control
    assert "oracle (p" not in said


def test_the_verdict_says_worse_where_it_is_worse_but_not_shown() -> None:
    sbp = replace(ARM, difference=difference(0.01, -0.02, 0.04, 0.4))
    said = verdict({"sbp": sbp}, {"sbp": "method"}, 3, 0.95)
    assert said.startswith("No difference shown: sbp is 0.0100 nats per token worse than repetition (-0.0200 to +0.0400")
    assert "an interval that includes zero" in said
    assert "95% interval" in said
    assert "99.5% interval" in verdict({"sbp": sbp}, {"sbp": "method"}, 3, 0.995)


def test_losses_by_group_are_those_of_its_documents() -> None:
    groups = ["many" if i % 4 else "one" for i in range(400)]
    rows = {"repetition": np.array([[100.0 if g == "many" else 150.0 for g in groups]])}
    found = figures(rows, groups=groups).groups
    assert found["many"]["repetition"] == pytest.approx([2.0] * 3)
    assert found["one"]["repetition"] == pytest.approx([3.0] * 3)


def test_data_efficiency_is_read_off_the_curve_of_real_text() -> None:
    points = [(100, 3.0), (10_000, 2.0), (1_000, 2.5)]
    assert efficiency(points, 2.5) == pytest.approx(1_000)
    assert efficiency(points, 2.75) == pytest.approx(10**2.5)
    assert efficiency(points, 3.1) is None  # beyond what was measured
    assert efficiency(points, 1.9) is None
    assert efficiency([(100, 3.0)], 3.0) is None
    assert efficiency([(100, 3.0), (200, 3.2), (400, 2.0)], 3.2) is None  # a point that rose is left out


def test_losses_of_tokens_are_summed_by_document_and_part() -> None:
    rng = np.random.default_rng(0)
    document = np.repeat(np.arange(3), (4, 1, 7))
    part = rng.integers(0, 2, 12).astype(np.uint8)
    by_token = rng.random(12, np.float32)
    found = summed(by_token, document, part, 2)
    for doc in range(3):
        for number in range(2):
            assert found[doc, number] == pytest.approx(by_token[(document == doc) & (part == number)].sum())


def test_questions_that_a_training_text_holds_are_masked() -> None:
    rng = np.random.default_rng(0)
    arms = {name: rng.random((2, 50, 4)).round(1) for name in ("repetition", "sbp")}
    seen = np.arange(50) % 3 == 0
    tasks, groups = ["a"] * 25 + ["b"] * 25, ["x", "y"] * 25
    clean = {name: values[:, ~seen] for name, values in arms.items()}
    left = [[of for of, is_seen in zip(names, seen, strict=True) if not is_seen] for names in (tasks, groups)]
    assert answered(arms, tasks, groups, CFG, seen) == answered(clean, *left, CFG)
    assert answered(arms, tasks, groups, CFG, np.ones(50, bool)) == {}


def test_answers_by_task_and_group() -> None:
    rng = np.random.default_rng(0)

    def answers(share: float) -> np.ndarray:
        right = (rng.random((3, 300, 1)) < share).astype(float)
        among = np.where(np.arange(300) < 100, 0.0, 0.5)[None, :, None].repeat(3, 0)  # a cloze has nothing to choose
        return np.concatenate((right, 1 - right, 2 * np.ones((3, 300, 1)), among), 2)

    tasks = ["cloze"] * 100 + ["world"] * 200
    groups = [""] * 100 + ["many", "one"] * 100
    arms = {"repetition": answers(0.3), "sbp": answers(0.6)}
    found = answered(arms, tasks, groups, CFG)
    assert found["cloze"].items == 100
    assert list(found["cloze"].groups) == ["all"]
    assert list(found["world"].groups) == ["all", "many", "one"]
    entry = found["world"].groups["all"]["sbp"]
    assert entry.acc.value == pytest.approx(arms["sbp"][:, 100:, 0].mean())
    assert entry.acc_norm.value == pytest.approx(1 - entry.acc.value)
    assert entry.nll == pytest.approx([2.0] * 3)
    assert entry.choice_nll == pytest.approx([0.5] * 3)
    assert found["cloze"].groups["all"]["sbp"].choice_nll is None
    assert entry.difference.value == pytest.approx(0.3, abs=0.06)
    assert entry.difference.p < 0.01
    assert found["world"].groups["one"]["sbp"].items == 100
