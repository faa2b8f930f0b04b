"""One arm: a model with fresh weights trained on a plan, and the token counts that show what it was
trained on.

base (the repetition arm of its seed) and every arm of `pretrain` go through here, so that arms can
differ in their plan and in nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from synthboot import config
from synthboot.artifacts.model import Curve, TokenCounts, TokensRead
from synthboot.artifacts.store import Progress, silent
from synthboot.artifacts.synthetic import ThrownAway
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError, Diverged
from synthboot.lm import adapters, ensemble, parallel, score, track
from synthboot.lm import model as models
from synthboot.lm.batches import Plan
from synthboot.lm.train import Runtime, Settings, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Trained:
    """A trained arm: its curve, what it read, and what that cost.

    Models lie in `last/` and `best/` beside it.
    """

    curve: Curve
    token_counts: TokenCounts
    flops: float


@dataclass(frozen=True)
class Sources:
    """The text of an arm, and what it cost.

    Real tokens; synthetic ones with the d1 of each document; related pairs, most similar first, for
    the layout that packs them; tokens to replay; the folder of an ensemble whose probabilities are
    targets too. These cost `upstream_flops` (embedding, pairing and tuning, or training the
    teacher), and `sample_flops` for each synthetic token. `thrown_away` has, by reason, what a
    filter has left out.
    """

    real: Tokens
    synthetic: Tokens | None = None
    owners: np.ndarray | None = None
    pairs: tuple[np.ndarray, np.ndarray] | None = None
    replay: Tokens | None = None
    teacher: Path | None = None
    upstream_flops: float = 0.0
    sample_flops: float = 0.0
    thrown_away: Mapping[str, ThrownAway] = field(default_factory=dict)


def plan_of(
    cfg: config.Config,
    arm: config.Arm,
    seed: int,
    tokenizer: Tokenizer,
    text: Sources,
    tokens: int,
) -> Plan:
    """The plan of an arm that trains on `tokens`."""
    # documents that a layout sets side by side are there to be seen together
    document_mask = cfg.optim.document_mask and arm.layout == "shuffled"
    return Plan(
        text.real,
        text.synthetic,
        arm.share,
        seq_len=cfg.model.seq_len,
        batch_tokens=cfg.optim.batch_tokens,
        train_tokens=tokens,
        seed=seed,
        end=tokenizer.end,
        order=arm.order,
        document_mask=document_mask,
        owners=text.owners if arm.layout == "megadoc" else None,
        pairs=text.pairs,
        noise=arm.noise,
        vocab_size=tokenizer.vocab_size,
        replay=text.replay,
        replay_share=cfg.budget.replay_share,
    )


def tokens_of(
    cfg: config.Config,
    arm: config.Arm,
    text: Sources,
    flops_per_token: float,
) -> int:
    """How many tokens an arm trains on.

    The budget's, those of its epochs, or what is left of the budget's FLOPs. `flops_per_token` is a
    forward pass's. Raises BudgetError where that is less than one step.
    """
    # whole steps: what an arm that is matched by tokens trains on
    step_tokens = cfg.optim.batch_tokens // cfg.model.seq_len * cfg.model.seq_len
    tokens = cfg.budget.train_tokens // step_tokens * step_tokens
    own_share = 1 - cfg.budget.replay_share
    if arm.epochs is not None:
        tokens = min(tokens, int(arm.epochs * text.real.num_tokens / own_share))
    elif arm.match == "flops":
        # a share of the tokens had to be sampled first
        train_flops = cfg.optim.lora.passes * flops_per_token
        sampled = arm.share * own_share
        left = tokens * train_flops - text.upstream_flops
        tokens = int(left / (train_flops + sampled * text.sample_flops))

    if tokens < step_tokens:
        reason = "raise budget.train_tokens or lower optim.batch_tokens"
        if arm.epochs is not None:
            reason = f"{arm.epochs:g} passes are too few"
        elif arm.match == "flops":
            reason = "the synthetic text costs more than the budget"
        raise BudgetError(
            f"pretrain: {max(0, tokens):,} tokens are left to train on, "
            f"less than a step ({step_tokens:,}): {reason}"
        )
    return tokens


def affordable(
    cfg: config.Config,
    arm: config.Arm,
    seed: int,
    tokenizer: Tokenizer,
    text: Sources,
    flops_per_token: float,
) -> Plan:
    """The plan of an arm; of one of `match: flops` the longest that costs no more than there is.

    Rows are whole, so that a little more may be synthetic than its share, and have to be sampled.
    Raises as `tokens_of` does.
    """
    tokens = tokens_of(cfg, arm, text, flops_per_token)
    plan = plan_of(cfg, arm, seed, tokenizer, text, tokens)
    if arm.match != "flops":
        return plan
    by_tokens = arm.model_copy(update={"match": "tokens"})
    train_flops = cfg.optim.lora.passes * flops_per_token
    budget = train_flops * tokens_of(cfg, by_tokens, text, flops_per_token)
    read = plan.token_counts()
    while train_flops * read.train_tokens + sampling_flops(text, read) > budget:
        tokens = read.train_tokens - read.batch_tokens
        if not tokens:
            raise BudgetError("pretrain: the synthetic text costs more than the budget")
        plan = plan_of(cfg, arm, seed, tokenizer, text, tokens)
        read = plan.token_counts()
    if not plan.synthetic_rows:
        raise BudgetError(
            f"pretrain: share {arm.share:g} of the {plan.own_rows:,} rows that are left comes to "
            f"none; raise it, or budget.train_tokens"
        )
    return plan


def sampling_flops(text: Sources, read: TokensRead) -> float:
    """What the synthetic tokens that are read have cost, and what had to be there before them."""
    return text.upstream_flops + text.sample_flops * read.synthetic_tokens


def runtime_of(cfg: config.Config, folder: Path) -> Runtime:
    """Where a model trains: alone or with other processes, watched or not."""
    engine = cfg.engine
    group = parallel.join(models.device(engine.device), engine.shard)
    name = folder.name
    if folder.is_relative_to(cfg.folder):
        name = "-".join(folder.relative_to(cfg.folder).parts)
    trackers = engine.track if group.main else []  # once, not by every process
    watch = track.watch(trackers, cfg.folder / "track", cfg.name, name)
    return Runtime(
        group,
        engine.checkpoint_activations,
        engine.compile,
        watch,
        checkpoint_seconds=60 * engine.checkpoint_minutes,
    )


def train_arm(
    cfg: config.Config,
    arm: config.Arm,
    seed: int,
    text: Sources,
    validation: Tokens,
    tokenizer: Tokenizer,
    folder: Path,
    progress: Progress = silent,
) -> Trained:
    """A model with fresh weights (or `init_from`) trained on an arm's text, with its token
    counts.

    Raises BudgetError where synthetic text would have to be read twice, and Diverged, with what it
    has cost by then, as `train` does.
    """
    seq_len = cfg.model.seq_len
    device = models.device(cfg.engine.device)
    built = models.build(cfg.model, tokenizer.vocab_size, seed)
    model = models.moved(built, device)
    if cfg.optim.lora.rank:
        adapters.add(model, cfg.optim.lora, seed, "optim")
    forward_flops = models.flops_per_token(model, seq_len)
    plan = affordable(cfg, arm, seed, tokenizer, text, forward_flops)
    read = plan.token_counts()
    if read.synthetic_epochs > 1:
        raise BudgetError(
            f"pretrain: {read.synthetic_tokens:,} synthetic tokens are needed, "
            f"{read.synthetic_epochs:.2f} times what was sampled; "
            f"synthetic text is never read twice"
        )

    def validate(current: PreTrainedModel) -> float:
        return score.documents(current, validation, seq_len, tokenizer.end).mean

    ids = sorted(tokenizer.ids() - tokenizer.control)

    def copying(current: PreTrainedModel) -> float:
        return score.copy_score(current, ids, seq_len, tokenizer.end)

    teachers = []
    if text.teacher is not None:
        for member in ensemble.folders(text.teacher):
            teachers.append(models.load(member, device))
    settings = _settings(cfg, arm, seed, plan.steps)
    runtime = runtime_of(cfg, folder)

    # every member of a teacher reads every token once, forwards
    passes = cfg.optim.lora.passes + len(teachers)

    def flops(tokens: int, evaluations: int) -> float:
        # every evaluation reads the whole validation set once, forwards
        return forward_flops * (passes * tokens + validation.num_tokens * evaluations)

    try:
        curve = train(
            model=model,
            batches=plan,
            settings=settings,
            validate=validate,
            folder=folder,
            tokenizer=tokenizer,
            progress=progress,
            runtime=runtime,
            copying=copying,
            teachers=teachers,
        )
    except Diverged as error:
        tokens = error.steps * plan.batch_tokens
        error.cost = {"tokens": tokens, "flops": flops(tokens, error.evaluations)}
        raise

    token_counts = TokenCounts(
        **asdict(read),
        seed=seed,
        parameters=sum(p.numel() for p in model.parameters()),
        architecture=model.config.model_type,
        vocab_size=tokenizer.vocab_size,
        settings=asdict(settings),
        recipe=arm,
        best_step=curve.best_step,
        train_flops=cfg.optim.lora.passes * forward_flops * read.train_tokens,
        spent_flops=sampling_flops(text, read) + len(teachers) * forward_flops * read.train_tokens,
        thrown_away=dict(text.thrown_away),
    )
    spent = flops(read.train_tokens, len(curve.validation))
    return Trained(curve, token_counts, spent)


def _settings(
    cfg: config.Config,
    arm: config.Arm,
    seed: int,
    steps: int,
) -> Settings:
    """How an arm of so many steps is trained."""
    optim = cfg.optim
    tuned = {}
    for name in config.TUNED:
        chosen = getattr(arm, name)  # by a sweep
        tuned[name] = getattr(optim, name) if chosen is None else chosen
    # evenly spread, the last step included; of short runs several fall on one step
    evals = {round(steps * i / optim.evals) for i in range(1, optim.evals + 1)}
    evals.discard(0)
    return Settings(
        **tuned,
        dropout_seed=seed,
        warmup_steps=max(1, round(optim.warmup_fraction * steps)),
        eval_steps=tuple(sorted(evals)),
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
        distill_weight=arm.distill_weight if arm.distill else 0.0,
    )
