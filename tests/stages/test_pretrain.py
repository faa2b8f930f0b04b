from typing import Any

import pytest

from synthboot import config
from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError, UnfairComparison
from synthboot.stages.evaluate import check_comparable
from synthboot.stages.pretrain import real_docs

POOL = Tokens.of([[1] * 10] * 8)


def counts(**changes: Any) -> dict[str, Any]:
    base = {
        "steps": 10,
        "batch_tokens": 64,
        "train_tokens": 640,
        "parameters": 5,
        "architecture": "qwen3",
        "vocab_size": 300,
        "settings": {"lr": 1e-3, "warmup_steps": 1, "eval_steps": [5, 10], "weight_decay": 0.3},
        "real_tokens": 640,
        "synthetic_tokens": 0,
        "synthetic_epochs": 0.0,
        "replayed_tokens": 0,
        "recipe": config.Arm().model_dump(),
        "train_flops": 1e6,
        "spent_flops": 0.0,
    }
    return {**base, **changes}


def test_arms_that_differ_in_data_alone_are_compared() -> None:
    sbp = counts(real_tokens=320, synthetic_tokens=320, synthetic_epochs=0.9)
    check_comparable({"repetition": {0: counts(), 1: counts()}, "sbp": {0: sbp, 1: sbp}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 11}, r"differ in steps \(10 and 11, seed 0\)"),
        ({"parameters": 6}, "differ in parameters"),
        ({"settings": {"lr": 2e-3, "warmup_steps": 1, "eval_steps": [5, 10], "weight_decay": 0.3}}, "differ in lr"),
        ({"vocab_size": 301}, "differ in vocab_size"),
        ({"real_tokens": 600}, "do not add up"),
        ({"real_tokens": 600, "replayed_tokens": 40}, "differ in replayed_tokens"),
        ({"real_tokens": 320, "synthetic_tokens": 320, "synthetic_epochs": 1.01}, "was read 1.01 times"),
    ],
)
def test_any_other_difference_is_refused_with_the_reason(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnfairComparison, match=message):
        check_comparable({"repetition": {0: counts()}, "sbp": {0: counts(**changes)}})


def recipe(**changes: Any) -> dict[str, Any]:
    return config.Arm().model_copy(update=changes).model_dump()


def test_what_a_sweep_or_a_budget_of_flops_chose_may_differ_and_nothing_else() -> None:
    settings = {**counts()["settings"], "weight_decay": 1.0}
    tuned = counts(settings=settings, recipe=recipe(weight_decay=1.0))
    check_comparable({"repetition": {0: tuned}, "sbp": {0: counts()}})
    with pytest.raises(UnfairComparison, match="differ in lr"):
        check_comparable({"repetition": {0: tuned}, "sbp": {0: counts(settings={**settings, "lr": 2e-3})}})
    shorter = {"steps": 8, "train_tokens": 512, "real_tokens": 512, "train_flops": 8e5}
    check_comparable({"repetition": {0: counts(**shorter, recipe=recipe(epochs=4.0))}, "sbp": {0: counts()}})
    paid = counts(**shorter, recipe=recipe(match="flops"), spent_flops=2e5)
    check_comparable({"repetition": {0: counts()}, "sbp": {0: paid}})
    with pytest.raises(UnfairComparison, match="FLOPs, the budget is 1e"):
        check_comparable({"repetition": {0: counts()}, "sbp": {0: {**paid, "spent_flops": 2.1e5}}})


def test_arms_need_the_same_seeds() -> None:
    with pytest.raises(UnfairComparison, match="different seeds"):
        check_comparable({"repetition": {0: counts()}, "sbp": {0: counts(), 1: counts()}})


def test_real_text_of_an_arm_is_a_head_of_the_pool() -> None:
    assert real_docs(config.Arm(), "a", POOL, 3) == 3
    assert real_docs(config.Arm(unique_tokens="all"), "a", POOL, 3) == 8
    assert real_docs(config.Arm(unique_tokens=35), "a", POOL, 3) == 4
    with pytest.raises(BudgetError, match=r"arms\.oracle\.unique_tokens: 81 asked for, the pool has 80"):
        real_docs(config.Arm(unique_tokens=81), "oracle", POOL, 3)
