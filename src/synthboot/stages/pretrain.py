"""Train one arm from scratch on its mix of real and synthetic text: the experiment itself.

Every arm and seed trains with the same batch, schedule and initial weights, on exactly
`budget.train_tokens`; real text is repeated to fill the budget, synthetic text is read at most
once. Two exceptions, each asked for by name: `match: flops` takes what the synthetic text cost out
of the budget, and a `sweep` may choose fewer epochs or another weight decay or rate for its arm.
`evaluate.check_comparable` refuses a comparison in which anything else but the data differs.

An ensemble is several such models, each of a seed of its own, trained one after the other; a model
that is taught by one has other targets beside the text.

Source: arXiv:2509.15248, joint pretraining from scratch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from synthboot import config
from synthboot.artifacts.model import Curve, Model, TokenCounts
from synthboot.artifacts.scores import CHECKPOINTS
from synthboot.artifacts.store import WORK, Progress, plain, silent, typed
from synthboot.data.disk import read_json, remove, write_json
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.errors import Diverged
from synthboot.lm import ensemble, parallel, score
from synthboot.lm import model as models
from synthboot.lm.arm import Sources, Trained, train_arm

_RECORD = "trained.json"
_ADDED = (
    "steps",
    "train_tokens",
    "real_tokens",
    "real_epochs",
    "synthetic_tokens",
    "synthetic_epochs",
    "replayed_tokens",
    "replayed_epochs",
    "parameters",
    "train_flops",
)
"""What an ensemble has as often as it has members."""


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
    """The model of one arm and seed, or its models: `best` and `last` of an ensemble are folders
    of them.

    Raises BudgetError where synthetic text would have to be read twice, or where a FLOPs budget
    leaves nothing to train on.
    """

    def train(seed: int, folder: Path, progress: Progress) -> Trained:
        return train_arm(
            cfg=cfg,
            arm=arm,
            seed=seed,
            text=text,
            validation=validation,
            tokenizer=tokenizer,
            folder=folder,
            progress=progress,
        )

    if arm.ensemble == 1:
        return train(seed, folder, progress)

    members = _members(train, ensemble.seeds(seed, arm.ensemble), folder, progress)
    group = parallel.join(models.device(cfg.engine.device), cfg.engine.shard)
    if group.main:
        _gather(len(members), folder)
    group.wait()
    curve = _curve(members, _losses(cfg, folder, validation, tokenizer))
    if group.main:
        Model.open(folder).save_curve(curve)

    token_counts = _token_counts(seed, [member.token_counts for member in members])
    flops = sum(member.flops for member in members)
    # both checkpoints of every member read the validation set once more
    trained_tokens = cfg.optim.lora.passes * token_counts.train_tokens
    forward_flops = token_counts.train_flops / trained_tokens
    flops += len(CHECKPOINTS) * arm.ensemble * forward_flops * validation.num_tokens
    return Trained(curve, token_counts, flops)


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


def _members(
    train: Callable[[int, Path, Progress], Trained],
    seeds: Sequence[int],
    folder: Path,
    progress: Progress,
) -> list[Trained]:
    """The models of an ensemble, trained one after the other.

    A member is finished once its record stands beside it; what a kill has left of the next goes on
    from its last checkpoint. Raises as `train_arm` does.
    """
    folders = [ensemble.member(folder / WORK, number) for number in range(len(seeds))]
    # looked up by all processes before any of them trains
    finished = [(of_member / _RECORD).exists() for of_member in folders]
    members = []
    for number, seed in enumerate(seeds):
        of_member = folders[number]
        if finished[number]:
            members.append(_recorded(of_member))
            continue
        try:
            trained = train(seed, of_member, _part(progress, number, len(seeds)))
        except Diverged as error:
            # those before it were paid for too
            error.cost["tokens"] += sum(member.token_counts.train_tokens for member in members)
            error.cost["flops"] += sum(member.flops for member in members)
            raise
        if parallel.rank() == 0:
            _record(of_member, trained)
        members.append(trained)
    return members


def _part(progress: Progress, number: int, members: int) -> Progress:
    """The progress of one member as part of that of all."""

    def of_member(done: float, words: str) -> None:
        progress((number + done) / members, f"model {number + 1} of {members}: {words}")

    return of_member


def _record(folder: Path, trained: Trained) -> None:
    """Note that a member is finished, and how."""
    write_json(folder / _RECORD, plain(trained))
    remove(folder / WORK)  # its last checkpoint, which is as large as the model three times


def _recorded(folder: Path) -> Trained:
    """What `_record` wrote."""
    return typed(read_json(folder / _RECORD), Trained, folder / _RECORD)


def _gather(members: int, folder: Path) -> None:
    """Move the members' checkpoints into one folder for each kind of them.

    Whatever a killed process has moved already is there.
    """
    for checkpoint in CHECKPOINTS:
        (folder / checkpoint).mkdir(exist_ok=True)
        for number in range(members):
            source = ensemble.member(folder / WORK, number) / checkpoint
            if source.exists():
                os.rename(source, ensemble.member(folder / checkpoint, number))


def _losses(
    cfg: config.Config,
    folder: Path,
    validation: Tokens,
    tokenizer: Tokenizer,
) -> dict[str, list[float]]:
    """By checkpoint, nats a token of the validation set: by the first member alone, by the first
    two, and so on."""
    by_checkpoint = {}
    for checkpoint in CHECKPOINTS:
        losses = []
        for member in ensemble.folders(folder / checkpoint):
            model = models.load(member, models.device(cfg.engine.device))
            losses.append(score.token_losses(model, validation, cfg.model.seq_len, tokenizer.end))
        # (member, token) -> (member)
        by_checkpoint[checkpoint] = ensemble.mean_losses(np.stack(losses)).mean(1).tolist()
    return by_checkpoint


def _curve(members: Sequence[Trained], losses: Mapping[str, Sequence[float]]) -> Curve:
    """Training goes on from member to member; a validation loss is that of all so far."""
    curve = Curve(best_loss=losses["best"][-1])
    tokens = 0.0
    for member, loss in zip(members, losses["last"], strict=True):
        curve.train += [[tokens + at, *figures] for at, *figures in member.curve.train]
        tokens += member.token_counts.train_tokens
        curve.validation.append([tokens, loss])
        curve.step += member.curve.step
    curve.best_step = curve.step
    return curve


def _token_counts(seed: int, members: Sequence[TokenCounts]) -> TokenCounts:
    """What all members have read and cost; the synthetic text that they share was paid for once."""
    added = {name: sum(getattr(member, name) for member in members) for name in _ADDED}
    # each has a best step of its own
    return replace(members[0], seed=seed, members=tuple(members), best_step=None, **added)
