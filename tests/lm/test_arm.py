"""What an arm of `match: flops` trains on costs no more than the arm that it is held against."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from synthboot import config, loading
from synthboot.artifacts.model import Curve, TokenCounts
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError
from synthboot.lm.arm import Sources, affordable, train_arm
from synthboot.stages.evaluate import check_comparable

FLOPS = 1e6
STEPS = 40


def documents(count: int) -> Tokens:
    rng = np.random.default_rng(count)
    return Tokens.of([[*rng.integers(2, 270, 60).tolist(), 0] for _ in range(count)])


def settings(rows: int) -> config.Config:
    return loading.load(
        {
            "name": "flops",
            "model": {"seq_len": 64},
            "optim": {"batch_tokens": rows * 64},
            "budget": {"unique_tokens": 1_000, "train_tokens": STEPS * rows * 64},
            "corpus": {"source": "text.jsonl"},
            "arms": {"repetition": {}},
        }
    )


def counts(cfg: config.Config, arm: config.Arm, text: Sources, tokenizer: Tokenizer) -> TokenCounts:
    read = affordable(cfg, arm, 0, tokenizer, text, FLOPS).token_counts()
    return TokenCounts(
        **asdict(read),
        seed=0,
        parameters=1,
        architecture="qwen3",
        vocab_size=280,
        settings={},
        recipe=arm,
        train_flops=3 * FLOPS * read.train_tokens,
        spent_flops=text.upstream_flops + text.sample_flops * read.synthetic_tokens,
    )


@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize("rows", [1, 3])
def test_rows_that_are_rounded_up_are_paid_for(rows: int, share: float, tokenizer: Tokenizer) -> None:
    cfg, arm = settings(rows), config.Arm(synthetic="related", share=share, match="flops")
    real = Sources(documents(40))
    budget = counts(cfg, config.Arm(), real, tokenizer)
    rng = np.random.default_rng(0)
    whole = 3 * FLOPS * STEPS * rows * 64
    for _ in range(60):
        dear = replace(
            real,
            synthetic=documents(200),
            upstream_flops=rng.uniform(0.02, 0.3) * whole,
            sample_flops=rng.uniform(0.3, 1.2) * 3 * FLOPS,
        )
        found = counts(cfg, arm, dear, tokenizer)
        check_comparable({"repetition": {0: budget}, "sbp-flops": {0: found}})
        step = 3 * FLOPS * rows * 64 + dear.sample_flops * (rows * share + 1) * 64
        assert found.total_flops > budget.train_flops - 2 * step  # and no more is left over than has to be


def test_a_budget_that_one_step_exceeds(tokenizer: Tokenizer) -> None:
    cfg, arm = settings(1), config.Arm(synthetic="related", share=0.7, match="flops")
    text = replace(Sources(documents(40)), synthetic=documents(200), upstream_flops=3 * FLOPS * 64 * (STEPS - 1.7))
    with pytest.raises(BudgetError, match="costs more than the budget"):
        affordable(cfg, arm, 0, tokenizer, replace(text, sample_flops=3 * FLOPS * 0.8), FLOPS)


def test_what_flops_leave_of_an_arm_has_synthetic_text_in_it(tokenizer: Tokenizer) -> None:
    cfg = settings(1)
    left = 3 * FLOPS * 64 * (STEPS - 4.2)  # upstream leaves four rows, and a tenth of them is none
    text = Sources(documents(40), synthetic=documents(200), upstream_flops=left)
    arm = config.Arm(synthetic="related", share=0.1, match="flops")
    with pytest.raises(BudgetError, match=r"share 0\.1 of the 4 rows that are left comes to none"):
        affordable(cfg, arm, 0, tokenizer, text, FLOPS)
    half = config.Arm(synthetic="related", share=0.5, match="flops")
    assert affordable(cfg, half, 0, tokenizer, text, FLOPS).synthetic_rows == 2


def test_an_arm_warms_up_and_averages_gradients_as_it_is_told(tmp_path: Path, tokenizer: Tokenizer) -> None:
    plain = settings(1)
    text = Sources(documents(40))

    def trained(name: str, **changes: float) -> Curve:
        optim = plain.optim.model_copy(update={"schedule": "wsd", "decay_fraction": 0.1, "evals": 4, **changes})
        model = config.Model(layers=1, width=32, heads=2, kv_heads=1, seq_len=64)
        engine = config.Engine(device="cpu")
        cfg = plain.model_copy(update={"model": model, "optim": optim, "engine": engine})
        return train_arm(cfg, config.Arm(), 0, text, documents(3), tokenizer, tmp_path / name).curve

    usual = trained("usual")
    rates = [rate for *_, rate in trained("warm", warmup_fraction=0.5).train]
    assert rates[:2] == pytest.approx([plain.optim.lr / 2, plain.optim.lr])  # after 10 and 20 of 40 steps
    assert usual.train[0][-1] == pytest.approx(plain.optim.lr)
    for changes in ({"beta1": 0.5}, {"beta2": 0.5}):
        assert trained(*changes, **changes).validation != usual.validation
