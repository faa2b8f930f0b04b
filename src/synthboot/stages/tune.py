"""Tune the synthesizer p(d2|d1) on pairs, from base's best-validation checkpoint.

Rows are end + d1 + separator + d2 + end with the loss on d2 and its end only, packed without one pair seeing another.
Pairs whose d2 is a validation document, which neither base nor tune has seen, decide when to stop; the best is kept. Base
itself, which has never seen the separator, is measured first but cannot be the best.
The report gives the log-likelihood of held-out d2 given its d1, given a random d1, and given nothing: the gap is the proof
that the relation was learned.

Without `start` it is tuned from fresh weights: the control that asks what base is worth.

Source: arXiv:2509.15248, theta = argmax sum log p(d2|d1). Deviation: separator, batch, schedule and stopping rule are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synthboot import config
from synthboot.data.artifacts import Progress, silent
from synthboot.data.pairs import HELDOUT, TRAIN, VALIDATION, Pairs
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.errors import DataError
from synthboot.lm import model as models
from synthboot.lm import score
from synthboot.lm.arm import place_of
from synthboot.lm.batches import PairPlan, cut_pair, d1_room
from synthboot.lm.train import Curve, Settings, train


@dataclass(frozen=True)
class Tuned:
    """The tuning curve, the proof (nats per token of held-out d2 by condition), the cost, and the pairs whose loss the
    curve has: d1, validation document d2, tokens of it that are scored."""

    curve: Curve
    conditioning: dict[str, dict[str, float]]
    tokens: int
    padding_share: float
    flops: float
    stopped_by: list[tuple[int, int, int]]


def tune(
    cfg: config.Config, start: Path | None, pairs: Pairs, corpus: Tokens, validation: Tokens, tokenizer: Tokenizer,
    folder: Path, progress: Progress = silent,
) -> Tuned:  # fmt: skip
    """The synthesizer, its best checkpoint in `folder/best`. `start` is base's best checkpoint, if any.

    Raises DataError where there are no pairs to stop by.
    """
    train_pairs = pairs.only(TRAIN)
    stopping = _Held(pairs.only(VALIDATION), corpus, validation, cfg, tokenizer)
    if not len(stopping):
        raise DataError(
            "tune: no validation document has a neighbour above min_similarity, so nothing says when to stop; lower "
            "pair.min_similarity or raise corpus.validation_docs"
        )
    settings, plan = _plan(cfg, train_pairs, corpus, tokenizer)

    def origin() -> Any:
        found = (
            models.build(cfg.model, tokenizer.vocab_size, cfg.seed)
            if start is None
            else models.load(start)
        )
        return found.to(models.device(cfg.engine.device))

    model = origin()
    curve = train(
        model,
        plan,
        settings,
        lambda m: stopping.loss(m),
        folder,
        tokenizer,
        progress,
        place_of(cfg, folder),
    )
    progress(1.0, "measuring held-out pairs")
    seen = _Held(pairs.only(HELDOUT), corpus, corpus, cfg, tokenizer)
    best = models.load(folder / "best").to(next(model.parameters()).device)
    held = {"unseen": stopping, "seen_by_base": seen}
    conditioning = {name: h.conditioning(best, origin()) for name, h in held.items() if len(h)}
    tokens = curve.step * plan.batch_tokens
    forward = models.flops_per_token(model, cfg.model.seq_len)
    rows = plan.rows_per_epoch()
    padding = 1 - float(plan.lengths.sum()) / (rows * plan.seq_len)
    flops = 3 * forward * tokens + forward * stopping.num_tokens * len(curve.validation)
    return Tuned(curve, conditioning, tokens, padding, flops, stopping.numbers)


def _plan(
    cfg: config.Config, pairs: Pairs, corpus: Tokens, tokenizer: Tokenizer
) -> tuple[Settings, PairPlan]:
    def plan(tokens: int) -> PairPlan:
        return PairPlan(
            corpus, pairs.d1.tolist(), pairs.d2.tolist(), seq_len=cfg.model.seq_len,
            d1_share=cfg.tune.d1_share, batch_tokens=cfg.tune.batch_tokens,
            tokens=tokens, seed=cfg.seed, end=tokenizer.end, separator=tokenizer.separator,
        )  # fmt: skip

    one_epoch = plan(1).rows_per_epoch() * cfg.model.seq_len
    wanted = int(cfg.tune.max_epochs * one_epoch)
    packed = plan(min(wanted, cfg.tune.max_tokens or wanted))
    evals = {round(packed.steps * i / cfg.tune.evals) for i in range(cfg.tune.evals + 1)}
    settings = Settings(
        lr=cfg.tune.lr,
        weight_decay=cfg.tune.weight_decay,
        warmup_steps=max(1, min(packed.steps // 10, 100)),
        eval_steps=tuple(sorted(evals)),
        patience=cfg.tune.patience,
        precision=cfg.optim.precision,
    )
    return settings, packed


class _Held:
    """Held-out pairs, one d1 for each d2, spread over the similarities; d2 cut to what the window always
    has room for, so that every condition is scored on the same tokens."""

    def __init__(
        self, pairs: Pairs, first: Tokens, second: Tokens, cfg: config.Config, tokenizer: Tokenizer
    ) -> None:
        _, once = np.unique(pairs.d2, return_index=True)
        chosen = np.sort(once)
        if len(chosen) > cfg.tune.eval_pairs:
            chosen = chosen[np.linspace(0, len(chosen) - 1, cfg.tune.eval_pairs).astype(int)]
        room = cfg.model.seq_len - 1 - d1_room(cfg.model.seq_len, cfg.tune.d1_share)
        self.window, self.share, self.tokenizer = cfg.model.seq_len, cfg.tune.d1_share, tokenizer
        self.d1 = [first[int(i)] for i in pairs.d1[chosen]]
        self.d2 = [second[int(i)][:room] for i in pairs.d2[chosen]]
        sizes = [len(d) for d in self.d2]
        self.numbers = list(
            zip(pairs.d1[chosen].tolist(), pairs.d2[chosen].tolist(), sizes, strict=True)
        )
        cut = [
            cut_pair(len(a) - 1, len(b), self.window, self.share)
            for a, b in zip(self.d1, self.d2, strict=True)
        ]
        self.num_tokens = sum(1 + a + b for a, b in cut)  # fed to the model for one loss
        others = np.random.default_rng([cfg.seed, 5]).integers(0, len(first), len(chosen))
        self.random = [first[int(i)] for i in others]

    def __len__(self) -> int:
        return len(self.d2)

    def loss(self, model: Any) -> float:
        """Nats per token of d2 given its d1."""
        return self._score(model, self.d1)

    def conditioning(self, model: Any, origin: Any) -> dict[str, float]:
        """Nats per token of d2 under each condition; `base` is the model that tuning started from, without d1."""
        nothing = [np.array([self.tokenizer.end])] * len(self)
        alone = score.pairs(
            origin, nothing, self.d2, self.window, self.share, self.tokenizer.end, None
        ).mean
        return {
            "given_d1": self.loss(model),
            "given_random_d1": self._score(model, self.random),
            "given_nothing": self._score(model, nothing),
            "base": alone,
            "pairs": len(self),
        }

    def _score(self, model: Any, d1: list[np.ndarray]) -> float:
        special = (self.tokenizer.end, self.tokenizer.separator)
        return score.pairs(model, d1, self.d2, self.window, self.share, *special).mean
