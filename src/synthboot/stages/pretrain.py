"""Train one arm from scratch on its mix of real and synthetic text: the experiment itself.

Every arm and seed trains with the same batch, schedule and initial weights, on exactly `budget.train_tokens`; real text is
repeated to fill the budget, synthetic text is read at most once. Two exceptions, each asked for by name: `match: flops`
takes what the synthetic text cost out of the budget, and a `sweep` may choose fewer passes or another weight decay or rate
for its arm. `compare_ledgers` refuses a comparison in which anything else but the data differs.

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
from synthboot.errors import UnfairComparison
from synthboot.lm.arm import Sources, Trained, train_arm

_EQUAL = ("batch_tokens", "parameters", "architecture", "vocab_size")
_BY_LENGTH = ("steps", "train_tokens", "replayed_tokens")
_SET_BY_LENGTH = ("warmup_steps", "eval_steps")


def pretrain(
    cfg: config.Config, arm: config.Arm, seed: int, text: Sources, validation: Tokens, tokenizer: Tokenizer, folder: Path,
    progress: Progress = silent,
) -> Trained:  # fmt: skip
    """The model of one arm and seed. Raises BudgetError where synthetic text would have to be read twice, or where a FLOPs
    budget leaves nothing to train on."""
    return train_arm(cfg, arm, seed, text, validation, tokenizer, folder, progress)


def real_docs(arm: config.Arm, name: str, pool: Tokens, pretrain_docs: int) -> int:
    """How many documents from the head of the pool an arm may read. Raises BudgetError where the pool has too few."""
    if arm.unique_tokens is None:
        return pretrain_docs
    if arm.unique_tokens == "all":
        return len(pool)
    return pool.docs_holding(arm.unique_tokens, f"arms.{name}.unique_tokens")


def compare_ledgers(ledgers: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> None:
    """Raise UnfairComparison, naming what differs, unless arms (name -> seed -> ledger) differ only in their data, and in
    what their recipes had a sweep or a budget of FLOPs choose."""
    first = next(iter(ledgers))
    for name, seeds in ledgers.items():
        if set(seeds) != set(ledgers[first]):
            raise UnfairComparison(
                f"arms {first} and {name} have different seeds: {sorted(ledgers[first])}, {sorted(seeds)}"
            )
        for seed, ledger in seeds.items():
            reference = ledgers[first][seed]
            free = _free(ledger["recipe"]) | _free(reference["recipe"])
            here, there = _flat(ledger), _flat(reference)
            for key, value in here.items():
                if key not in free and value != there[key]:
                    raise UnfairComparison(
                        f"arms {first} and {name} differ in {key} ({there[key]} and {value}, seed {seed}); "
                        f"arms may differ in their data alone"
                    )
            if (
                sum(ledger[f"{kind}_tokens"] for kind in ("real", "synthetic", "replayed"))
                != ledger["train_tokens"]
            ):
                raise UnfairComparison(
                    f"arm {name}, seed {seed}: tokens by source do not add up to train_tokens"
                )
            if ledger["synthetic_epochs"] > 1:
                raise UnfairComparison(
                    f"arm {name}, seed {seed}: synthetic text was read {ledger['synthetic_epochs']:.2f} times"
                )
            if ledger["recipe"]["match"] == "flops" and reference["recipe"]["epochs"] is None:
                spent, budget = (
                    ledger["train_flops"] + ledger["spent_flops"],
                    reference["train_flops"],
                )
                if reference["recipe"]["match"] == "tokens" and spent > budget:
                    raise UnfairComparison(
                        f"arm {name}, seed {seed}: {spent:.3g} FLOPs, the budget is {budget:.3g}"
                    )


def _flat(ledger: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be equal between arms."""
    return {key: ledger[key] for key in (*_EQUAL, *_BY_LENGTH)} | dict(ledger["settings"])


def _free(recipe: Mapping[str, Any]) -> set[str]:
    """What a recipe lets differ."""
    found = {key for key in ("weight_decay", "lr") if recipe[key] is not None}
    if recipe["match"] == "flops" or recipe["epochs"] is not None:
        found |= {*_BY_LENGTH, *_SET_BY_LENGTH}
    return found
