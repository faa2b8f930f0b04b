"""One arm: a model with fresh weights trained on a plan, and the ledger that shows what it was trained on.

base (the repetition arm of its seed) and every arm of `pretrain` go through here, so that arms can differ in their plan
and in nothing else.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synthboot import config
from synthboot.data.artifacts import Progress, silent
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError
from synthboot.lm import model as models
from synthboot.lm import parallel, score, track
from synthboot.lm.batches import Plan
from synthboot.lm.train import Curve, Place, Settings, train


@dataclass(frozen=True)
class Trained:
    """A trained arm: its curve, what it read, and what that cost. Models lie in `last/` and `best/` beside it."""

    curve: Curve
    ledger: dict[str, Any]
    flops: float


@dataclass(frozen=True)
class Sources:
    """The text of an arm: real tokens; synthetic ones with the d1 of each document; related pairs, most similar first, for
    the layout that packs them; tokens to replay; and what the synthetic text cost: `upstream_flops` for embedding, pairing
    and tuning, and `sample_flops` for each token of it."""

    real: Tokens
    synthetic: Tokens | None = None
    owners: np.ndarray | None = None
    pairs: tuple[np.ndarray, np.ndarray] | None = None
    replay: Tokens | None = None
    upstream_flops: float = 0.0
    sample_flops: float = 0.0


def plan_of(
    cfg: config.Config, arm: config.Arm, seed: int, tokenizer: Tokenizer, text: Sources, tokens: int
) -> Plan:
    """The plan of an arm that trains on `tokens`. Documents that a layout sets side by side are there to be seen together."""
    apart = cfg.optim.document_mask and arm.layout == "shuffled"
    return Plan(
        text.real, text.synthetic, arm.share, seq_len=cfg.model.seq_len, batch_tokens=cfg.optim.batch_tokens,
        train_tokens=tokens, seed=seed, end=tokenizer.end, order=arm.order, document_mask=apart,
        owners=text.owners if arm.layout == "megadoc" else None, pairs=text.pairs, noise=arm.noise,
        vocab_size=tokenizer.vocab_size, replay=text.replay, replay_share=cfg.budget.replay_share,
    )  # fmt: skip


def tokens_of(cfg: config.Config, arm: config.Arm, text: Sources, flops_per_token: float) -> int:
    """How many tokens an arm trains on: the budget's, those of its passes, or what is left of the budget's FLOPs. Raises
    BudgetError where that is less than one step. `flops_per_token` is a forward pass's."""
    step = cfg.optim.batch_tokens // cfg.model.seq_len * cfg.model.seq_len
    tokens = (
        cfg.budget.train_tokens // step * step
    )  # what an arm that is matched by tokens trains on
    if arm.epochs is not None:
        tokens = min(tokens, int(arm.epochs * text.real.num_tokens / (1 - cfg.budget.replay_share)))
    elif arm.match == "flops":
        each = 3 * flops_per_token
        sampled = arm.share * (1 - cfg.budget.replay_share)
        tokens = int((tokens * each - text.upstream_flops) / (each + sampled * text.sample_flops))
    if tokens < cfg.optim.batch_tokens:
        raise BudgetError(
            f"pretrain: {max(0, tokens):,} tokens are left to train on, less than a step ({cfg.optim.batch_tokens:,}): "
            + (
                f"{arm.epochs:g} passes are too few"
                if arm.epochs
                else "the synthetic text costs more than the budget"
            )
        )
    return tokens


def place_of(cfg: config.Config, folder: Path) -> Place:
    """Where a model trains: alone or with other processes, watched or not."""
    engine, device = cfg.engine, models.device(cfg.engine.device)
    group = parallel.join(device, engine.shard)
    name = (
        "-".join(folder.relative_to(cfg.folder).parts)
        if folder.is_relative_to(cfg.folder)
        else folder.name
    )
    watch = track.watch(engine.track if group.main else [], cfg.folder / "track", cfg.name, name)
    return Place(group, engine.checkpoint_activations, engine.compile, watch)


def train_arm(
    cfg: config.Config, arm: config.Arm, seed: int, text: Sources, validation: Tokens, tokenizer: Tokenizer, folder: Path,
    progress: Progress = silent,
) -> Trained:  # fmt: skip
    """A model with fresh weights (or `init_from`) trained on an arm's text, with its ledger. Raises BudgetError where
    synthetic text would have to be read twice."""
    optim, window = cfg.optim, cfg.model.seq_len
    model = models.build(cfg.model, tokenizer.vocab_size, seed).to(models.device(cfg.engine.device))
    forward = models.flops_per_token(model, window)
    plan = plan_of(cfg, arm, seed, tokenizer, text, tokens_of(cfg, arm, text, forward))
    ledger: dict[str, Any] = dict(plan.ledger())
    if ledger["synthetic_epochs"] > 1:
        raise BudgetError(
            f"pretrain: {ledger['synthetic_tokens']:,} synthetic tokens are needed, {ledger['synthetic_epochs']:.2f} times "
            f"what was sampled; synthetic text is never read twice"
        )
    evals = tuple(
        sorted({round(plan.steps * i / optim.evals) for i in range(1, optim.evals + 1)} - {0})
    )
    settings = Settings(
        lr=optim.lr if arm.lr is None else arm.lr,
        weight_decay=optim.weight_decay if arm.weight_decay is None else arm.weight_decay,
        warmup_steps=max(1, round(optim.warmup_fraction * plan.steps)),
        eval_steps=evals,
        min_lr_fraction=optim.min_lr_fraction,
        beta1=optim.beta1,
        beta2=optim.beta2,
        clip=optim.clip,
        micro_batch_tokens=cfg.engine.micro_batch_tokens,
        optimizer=optim.optimizer,
        schedule=optim.schedule,
        decay_fraction=optim.decay_fraction,
        precision=optim.precision,
        z_loss=optim.z_loss,
        max_spike=optim.max_spike,
    )

    def validate(current: Any) -> float:
        return score.documents(current, validation, window, tokenizer.end).mean

    curve = train(
        model, plan, settings, validate, folder, tokenizer, progress, place_of(cfg, folder)
    )
    ledger |= {
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "architecture": model.config.model_type,
        "vocab_size": tokenizer.vocab_size,
        "settings": asdict(settings),
        "recipe": arm.model_dump(mode="json"),
        "best_step": curve.best_step,
        "train_flops": 3 * forward * ledger["train_tokens"],
        "spent_flops": text.upstream_flops + text.sample_flops * ledger["synthetic_tokens"],
    }
    flops = ledger["train_flops"] + forward * validation.num_tokens * len(curve.validation)
    return Trained(curve, ledger, flops)
