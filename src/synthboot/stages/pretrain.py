"""Train one arm from scratch on its mix of real and synthetic text: the experiment itself.

Every arm and seed trains on exactly `budget.train_tokens`, with the same steps, batch, schedule and initial weights;
real text is repeated to fill the budget, synthetic text is read at most once. `compare_ledgers` refuses a comparison in
which anything but the data differs.

Source: arXiv:2509.15248, joint pretraining from scratch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthboot import config
from synthboot.data.artifacts import Progress, silent
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError, UnfairComparison
from synthboot.lm.arm import Trained, plan_of, train_arm

_EQUAL = ("steps", "batch_tokens", "train_tokens", "parameters", "architecture", "vocab_size", "settings")


def pretrain(
    cfg: config.Config, arm: config.Arm, seed: int, real: Tokens, synthetic: Tokens | None, validation: Tokens,
    tokenizer: Tokenizer, folder: Path, progress: Progress = silent,
) -> Trained:  # fmt: skip
    """The model of one arm and seed. Raises BudgetError where synthetic text would have to be read twice."""
    plan = plan_of(cfg, seed, tokenizer, real, synthetic, arm)
    ledger = plan.ledger()
    if ledger["synthetic_passes"] > 1:
        raise BudgetError(
            f"pretrain: {ledger['synthetic_tokens']:,} synthetic tokens are needed, {ledger['synthetic_passes']:.2f} times "
            f"what was sampled; synthetic text is never read twice"
        )
    return train_arm(cfg, plan, seed, validation, tokenizer, folder, progress)


def real_docs(arm: config.Arm, name: str, pool: Tokens, pretrain_docs: int) -> int:
    """How many documents from the head of the pool an arm may read. Raises BudgetError where the pool has too few."""
    if arm.unique_tokens is None:
        return pretrain_docs
    if arm.unique_tokens == "all":
        return len(pool)
    return pool.docs_holding(arm.unique_tokens, f"arms.{name}.unique_tokens")


def compare_ledgers(ledgers: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> None:
    """Raise UnfairComparison, naming what differs, unless arms (name -> seed -> ledger) differ only in their data."""
    first = next(iter(ledgers))
    for name, seeds in ledgers.items():
        if set(seeds) != set(ledgers[first]):
            raise UnfairComparison(f"arms {first} and {name} have different seeds: {sorted(ledgers[first])}, {sorted(seeds)}")
        for seed, ledger in seeds.items():
            reference = ledgers[first][seed]
            for key in _EQUAL:
                if ledger[key] != reference[key]:
                    raise UnfairComparison(
                        f"arms {first} and {name} differ in {key} ({reference[key]} and {ledger[key]}, seed {seed}); "
                        f"arms may differ in their data alone"
                    )
            if ledger["real_tokens"] + ledger["synthetic_tokens"] != ledger["train_tokens"]:
                raise UnfairComparison(f"arm {name}, seed {seed}: tokens by source do not add up to train_tokens")
            if ledger["synthetic_passes"] > 1:
                raise UnfairComparison(
                    f"arm {name}, seed {seed}: synthetic text was read {ledger['synthetic_passes']:.2f} times"
                )
