"""Train one arm from scratch on its mix of real and synthetic text: the experiment itself.

Every arm and seed trains with the same batch, schedule and initial weights, on exactly
`budget.train_tokens`; real text is repeated to fill the budget, synthetic text is read at most
once. Two exceptions, each asked for by name: `match: flops` takes what the synthetic text cost out
of the budget, and a `sweep` may choose fewer epochs or another weight decay or rate for its arm.
`evaluate.check_comparable` refuses a comparison in which anything else but the data differs.

Source: arXiv:2509.15248, joint pretraining from scratch.
"""

from __future__ import annotations

from pathlib import Path

from synthboot import config
from synthboot.artifacts.store import Progress, silent
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.lm.arm import Sources, Trained, train_arm


def pretrain(
    cfg: config.Config,
    arm: config.Arm,
    seed: int,
    text: Sources,
    validation: Tokens,
    tokenizer: Tokenizer,
    folder: Path,
    progress: Progress = silent,
) -> Trained:
    """The model of one arm and seed.

    Raises BudgetError where synthetic text would have to be read twice, or where a FLOPs budget
    leaves nothing to train on.
    """
    return train_arm(cfg, arm, seed, text, validation, tokenizer, folder, progress)


def real_docs(
    arm: config.Arm,
    name: str,
    pool: Tokens,
    pretrain_docs: int,
) -> int:
    """How many documents from the head of the pool an arm may read.

    Raises BudgetError where the pool has too few.
    """
    if arm.unique_tokens is None:
        return pretrain_docs
    if arm.unique_tokens == "all":
        return len(pool)
    return pool.docs_holding(arm.unique_tokens, f"arms.{name}.unique_tokens")
