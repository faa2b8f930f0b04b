"""One arm: a model with fresh weights trained on a plan, and the ledger that shows what it was trained on.

base (the repetition arm of its seed) and every arm of `pretrain` go through here, so that arms can differ in their plan
and in nothing else.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from synthboot import config
from synthboot.data.artifacts import Progress, silent
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
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


def plan_of(
    cfg: config.Config, seed: int, tokenizer: Tokenizer, real: Tokens, synthetic: Tokens | None = None,
    arm: config.Arm | None = None,
) -> Plan:  # fmt: skip
    """The plan of an arm (of repetition without one)."""
    arm = arm or config.Arm()
    return Plan(
        real, synthetic, arm.share, seq_len=cfg.model.seq_len, batch_tokens=cfg.optim.batch_tokens,
        train_tokens=cfg.budget.train_tokens, seed=seed, end=tokenizer.end, order=arm.order,
        document_mask=cfg.optim.document_mask,
    )  # fmt: skip


def place_of(cfg: config.Config, folder: Path) -> Place:
    """Where a model trains: alone or with other processes, watched or not."""
    engine, device = cfg.engine, models.device(cfg.engine.device)
    group = parallel.join(device, engine.shard)
    name = "-".join(folder.relative_to(cfg.folder).parts) if folder.is_relative_to(cfg.folder) else folder.name
    watch = track.watch(engine.track if group.main else [], cfg.folder / "track", cfg.name, name)
    return Place(group, engine.checkpoint_activations, watch)


def train_arm(
    cfg: config.Config, plan: Plan, seed: int, validation: Tokens, tokenizer: Tokenizer, folder: Path,
    progress: Progress = silent,
) -> Trained:  # fmt: skip
    """A model with fresh weights (or `init_from`) trained on a plan, with its ledger."""
    optim = cfg.optim
    model = models.build(cfg.model, tokenizer.vocab_size, seed).to(models.device(cfg.engine.device))
    evals = tuple(sorted({round(plan.steps * i / optim.evals) for i in range(1, optim.evals + 1)} - {0}))
    settings = Settings(
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        warmup_steps=max(1, round(optim.warmup_fraction * plan.steps)),
        eval_steps=evals,
        min_lr_fraction=optim.min_lr_fraction,
        beta1=optim.beta1,
        beta2=optim.beta2,
        clip=optim.clip,
        micro_batch_tokens=optim.micro_batch_tokens,
        optimizer=optim.optimizer,
        schedule=optim.schedule,
        decay_fraction=optim.decay_fraction,
        precision=optim.precision,
        z_loss=optim.z_loss,
        max_spike=optim.max_spike,
    )
    window = cfg.model.seq_len

    def validate(current: Any) -> float:
        return score.documents(current, validation, window, tokenizer.end).mean

    curve = train(model, plan, settings, validate, folder, tokenizer, progress, place_of(cfg, folder))
    ledger = {
        **plan.ledger(),
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "architecture": model.config.model_type,
        "vocab_size": tokenizer.vocab_size,
        "settings": asdict(settings),
        "best_step": curve.best_step,
    }
    forward = models.flops_per_token(model, window)
    flops = 3 * forward * ledger["train_tokens"] + forward * validation.num_tokens * len(curve.validation)
    return Trained(curve, ledger, flops)
