"""Tune the synthesizer p(d2|d1) on pairs, from base's best-validation checkpoint.

Rows are end + d1 + separator + d2 + end with the loss on d2 and its end only, packed without one
pair seeing another. Pairs whose d2 is a validation document, which neither base nor tune has seen,
decide when to stop; the best is kept. Base itself, which has never seen the separator, is measured
first but cannot be the best. The report gives the log-likelihood of held-out d2 given its d1, given
a random d1, and given nothing. Two gaps say what that is good for:

- d1's worth, given a random d1 minus given its own: the relation was learned,
- net worth, base without any d1 minus given its own: and more was gained than forgotten.

With a pointer over d1 the synthesizer is the mixture of the model with copies from d1. Its losses
are measured with weights that were fitted on the other half of the held-out pairs.

Without `start` it is tuned from fresh weights: the control that asks what base is worth. An
external model (`tune.init_from`) may take base's place, in tokens of its own. It is tuned a second
time for the arms without d1, on the same d2, as often, each alone after an end token: what the two
write then differs in the relation, and not in how much they know of D_pretrain.

Source: arXiv:2509.15248, theta = argmax sum log p(d2|d1). Deviation: separator, batch, schedule and
stopping rule are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from synthboot import config
from synthboot.artifacts.model import Conditioning, Curve, Model, Tuning
from synthboot.artifacts.pairs import HELDOUT, NOTHING_TO_STOP_BY, TRAIN, VALIDATION, Pairs, Related
from synthboot.artifacts.store import WORK, Progress, during, silent
from synthboot.data.disk import read_record, write_record
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError, DataError, Diverged
from synthboot.lm import adapters, merging, parallel, pointer, score
from synthboot.lm import model as models
from synthboot.lm.arm import runtime_of
from synthboot.lm.batches import LEAST_KEPT, PairForm, PairPlan, cut_pair, joined_contexts
from synthboot.lm.train import Settings, train
from synthboot.rng import rng

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Tuned:
    """How it was tuned, and the cost: `measuring_flops` went into what d1 is worth, which nobody
    needs to synthesize."""

    record: Tuning
    tokens: float
    flops: float
    measuring_flops: float

    def sentence(self) -> str:
        """What d1 is worth, in words."""
        unseen = self.record.conditioning["unseen"]
        parts = []
        by_byte = []
        worths = (
            ("d1's worth", unseen.d1_worth, unseen.d1_worth_error),
            ("net worth", unseen.net_worth, unseen.net_worth_error),
        )
        for name, worth, error in worths:
            if worth is not None and error is not None:
                parts.append(f"{name} {worth:+.4f} +- {error:.4f}")
                by_byte.append(f"{worth * (unseen.tokens_per_byte or 0):+.4f}")
        words = f"{', '.join(parts)} nats a token of unseen d2"
        if self.record.pointer is not None:
            words += ", with a pointer" if self.record.is_prompted else ", by base and a pointer"
        if unseen.tokens_per_byte is not None:
            words += f" ({', '.join(by_byte)} a byte); external"
        return words


def tune(
    cfg: config.Config,
    start: Path | None,
    pairs: Pairs,
    corpus: Tokens,
    validation: Tokens,
    tokenizer: Tokenizer,
    folder: Path,
    progress: Progress = silent,
    note: Callable[[str], None] = lambda _: None,
    conditional: bool = True,
) -> Tuned:
    """The synthesizer, its best checkpoint in `folder/best`.

    `start` is base's best checkpoint, if any, or an external model; `tokenizer` is its own, and
    `corpus` and `validation` are in its tokens. `note` is told before tuning what will be hard
    to learn. Without `conditional` d1 is left out of every pair.

    Raises DataError where there are no pairs to stop by.
    """
    form = PairForm(
        cfg.tune_seq_len,
        cfg.tune.d1_share,
        tokenizer.end,
        tokenizer.separator if conditional else None,
    )
    stopping = _Held(pairs.only(VALIDATION), corpus, validation, cfg, tokenizer, form)
    if not len(stopping):
        raise DataError(f"tune: {NOTHING_TO_STOP_BY}")
    settings, plan = _plan(cfg, pairs, corpus, tokenizer, form)
    model = _origin(cfg, start, tokenizer)
    if start is not None and cfg.tune.base_share == 1:
        return _as_it_is(cfg, model, stopping, tokenizer, folder, progress)
    runtime = runtime_of(cfg, folder)
    untuned = _untuned(stopping, model, folder, runtime.group.main, progress)
    # fresh weights read nothing, and nobody expects them to
    _warn(plan, None if start is None else untuned, note)
    if cfg.tune.lora.rank:
        adapters.add(model, cfg.tune.lora, cfg.seed, "tune", form.separator)
    if runtime.group.main:
        merging.undo(folder)
    forward = models.flops_per_token(model, cfg.tune_seq_len)

    try:
        curve = train(
            model=model,
            batches=plan,
            settings=settings,
            validate=lambda m: stopping.loss(m),
            folder=folder,
            tokenizer=tokenizer,
            progress=progress,
            runtime=runtime,
            section="tune",
        )
    except Diverged as error:
        error.cost = _cost(cfg, plan, stopping, forward, error.steps, error.evaluations)
        error.cost["measuring_flops"] = forward * 2 * stopping.num_tokens  # untuned
        raise

    shares: list[tuple[float, float]] = []
    if start is not None and cfg.tune.base_share:
        tell = during(progress, 1.0, "averaging with base")
        base = _origin(cfg, start, tokenizer)
        shares = merging.average_with_base(
            folder,
            base,
            cfg.tune.base_shares(conditional),
            lambda m, share: stopping.loss(m, share, tell),
            tokenizer,
            runtime.group,
        )
    runtime.group.wait()
    chosen = min(shares, key=lambda pair: pair[1])[0] if shares else 0.0

    tell = during(progress, 1.0, "measuring held-out pairs")
    best = models.load(Model.open(folder).best, next(model.parameters()).device)
    seen = _Held(pairs.only(HELDOUT), corpus, corpus, cfg, tokenizer, form)
    conditioning = {}
    measured = 2 * stopping.num_tokens  # untuned
    for name, held in (("unseen", stopping), ("seen_by_base", seen)):
        if len(held):
            origin = _origin(cfg, start, tokenizer)
            conditioning[name] = held.conditioning(best, origin, start is not None, chosen, tell)
            measured += held.conditioning_tokens

    cost = _cost(cfg, plan, stopping, forward, curve.step, len(curve.validation) + len(shares))
    return Tuned(
        record=Tuning(
            account="",  # by whoever saves it, as `upstream_flops` is
            conditioning=conditioning,
            untuned=untuned,
            padding_share=1 - float(plan.lengths.sum()) / (plan.rows_per_epoch() * plan.seq_len),
            best_loss=curve.best_loss,
            upstream_flops=0.0,
            curve=curve,
            stopped_by=stopping.numbers,
            base_share=shares,
            pointer=stopping.weights(best, chosen),
            is_prompted=conditional and chosen < 1,
        ),
        **cost,
        measuring_flops=forward * measured,
    )


def _cost(
    cfg: config.Config,
    plan: PairPlan,
    stopping: _Held,
    forward: float,
    steps: int,
    evaluations: int,
) -> dict[str, float]:
    """The tokens that tuning has read in so many steps, and the FLOPs of these and of the
    evaluations, each of which is one forward pass."""
    tokens = steps * plan.batch_tokens
    evaluated = stopping.num_tokens * evaluations
    return {
        "tokens": tokens,
        "flops": cfg.tune.lora.passes * forward * tokens + forward * evaluated,
    }


def _untuned(
    stopping: _Held,
    model: PreTrainedModel,
    folder: Path,
    writes: bool,
    progress: Progress,
) -> tuple[float, float]:
    """What d1 is worth before tuning, with its standard error.

    It lies beside the checkpoints, so that a tuning that goes on does not measure it again: of a
    large model it takes minutes.
    """
    kept = folder / WORK / "d1_worth.json"
    if kept.exists():
        found = read_record(kept)
        return found["worth"], found["error"]
    tell = during(progress, 0.0, "measuring what d1 is worth untuned")
    worth, error = stopping.d1_worth(model, tell)
    if writes:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_record(kept, {"worth": worth, "error": error})
    return worth, error


def _warn(
    plan: PairPlan,
    untuned: tuple[float, float] | None,
    note: Callable[[str], None],
) -> None:
    """Say before tuning what will be hard to learn: to read d1, of which `untuned` is the worth and
    its standard error, and what rows have no room for."""
    if untuned is not None and untuned[0] < 2 * untuned[1]:
        note(
            f"the model that tuning starts from does not read d1: its worth is {untuned[0]:+.4f} "
            f"+- {untuned[1]:.4f} nats a token untuned; tuning has to teach that "
            f"(docs/will-it-work.md)"
        )
    if plan.kept_share < LEAST_KEPT:
        both = "" if plan.form.separator is None else ", d1 and d2 together,"
        note(
            f"rows of {plan.seq_len:,} tokens{both} have room for {plan.kept_share:.0%} of what d2 "
            f"holds: of long documents the synthesizer learns to write the "
            f"beginning alone; raise the context length, or cut them into parts (docs/own-text.md)"
        )


def _as_it_is(
    cfg: config.Config,
    base: PreTrainedModel,
    stopping: _Held,
    tokenizer: Tokenizer,
    folder: Path,
    progress: Progress,
) -> Tuned:
    """The synthesizer that is base with a pointer: nothing is trained."""
    tell = during(progress, 0.0, "measuring held-out pairs")
    unseen = stopping.conditioning(base, base, True, 1.0, tell)
    loss = unseen.given_nothing if unseen.given_d1 is None else unseen.given_d1
    curve = Curve(best_loss=loss, validation=[[0, loss]])
    synthesizer = Model.open(folder)
    if parallel.rank() == 0:
        for checkpoint in (synthesizer.best, synthesizer.last):
            models.save(base, checkpoint, tokenizer)
        synthesizer.save_curve(curve)
    forward = models.flops_per_token(base, cfg.tune_seq_len)
    return Tuned(
        record=Tuning(
            account="",
            conditioning={"unseen": unseen},
            untuned=(unseen.d1_worth or 0.0, unseen.d1_worth_error or 0.0),
            padding_share=0.0,
            best_loss=loss,
            upstream_flops=0.0,
            curve=curve,
            stopped_by=stopping.numbers,
            base_share=[(1.0, loss)],
            pointer=stopping.weights(base, 1.0),
            is_prompted=False,
        ),
        tokens=0,
        flops=forward * stopping.num_tokens,
        measuring_flops=forward * stopping.conditioning_tokens,
    )


def _origin(
    cfg: config.Config,
    start: Path | None,
    tokenizer: Tokenizer,
) -> PreTrainedModel:
    """The model that tuning starts from: base, or fresh weights."""
    device = models.device(cfg.engine.device)
    if start is not None:
        return models.load(start, device)
    return models.moved(models.build(cfg.model, tokenizer.vocab_size, cfg.seed), device)


def _plan(
    cfg: config.Config,
    pairs: Pairs,
    corpus: Tokens,
    tokenizer: Tokenizer,
    form: PairForm,
) -> tuple[Settings, PairPlan]:
    """How to tune, and on what: as many rows as `max_epochs` and `max_tokens` allow."""
    tune = cfg.tune
    tuned_on = pairs.only(TRAIN)
    # what the model is measured on stays unseen by tuning, as a document too
    plain = np.setdiff1d(np.arange(len(corpus)), pairs.only(HELDOUT).d2)

    def plan(tokens: int, form: PairForm) -> PairPlan:
        return PairPlan(
            corpus,
            tuned_on.d1.tolist(),
            tuned_on.d2.tolist(),
            form,
            batch_tokens=tune.batch_tokens,
            tokens=tokens,
            seed=cfg.seed,
            contexts=tune.contexts,
            plain_share=tune.plain_share,
            plain=plain,
        )

    # how many rows an epoch takes shows only once its pairs are packed
    given_d1 = replace(form, separator=tokenizer.separator)
    epoch_rows = plan(1, given_d1).rows_per_epoch()
    wanted = int(tune.max_epochs * epoch_rows * cfg.tune_seq_len / (1 - tune.plain_share))
    tokens = min(wanted, tune.max_tokens or wanted)
    if form.separator is None:
        # as many passes over the d2, whose rows are fewer without their d1
        tokens = tokens * plan(1, form).rows_per_epoch() // epoch_rows
    packed = plan(tokens, form)
    rows = packed.steps * packed.rows
    if tune.plain_share and not 0 < packed.plain_rows < rows:
        comes_to = "none" if packed.plain_rows == 0 else "all of them"
        raise BudgetError(
            f"tune.plain_share: {tune.plain_share:g} of the {rows:,} rows that there are pairs for "
            f"comes to {comes_to}; choose another, or raise tune.max_epochs"
        )

    # a set: with few steps several evaluations fall on one
    evals = {round(packed.steps * i / tune.evals) for i in range(tune.evals + 1)}
    settings = Settings(
        lr=tune.lr,
        weight_decay=tune.weight_decay,
        warmup_steps=max(1, min(packed.steps // 10, 100)),
        eval_steps=tuple(sorted(evals)),
        patience=tune.patience,
        micro_batch_tokens=cfg.engine.micro_batch_tokens,
        precision=cfg.optim.precision,
    )
    return settings, packed


@dataclass(frozen=True)
class _Given:
    """A d1 for each held-out d2: its tokens, closed, and what a pointer finds in it."""

    prompts: list[np.ndarray]
    readings: list[pointer.Reading]


class _Held:
    """Held-out pairs, one d1 for each d2, spread over the similarities.

    d2 is cut to what a row always has room for, so that every condition is scored on the same
    tokens. A share of base of 1 is base itself, which has never seen a separator and is given none,
    and so no d1.
    """

    def __init__(
        self,
        pairs: Pairs,
        first: Tokens,
        second: Tokens,
        cfg: config.Config,
        tokenizer: Tokenizer,
        form: PairForm,
    ) -> None:
        self.form = form
        self.tokenizer = tokenizer
        self.external = cfg.tune.init_from is not None
        self.points = cfg.tune.pointer and form.separator is not None

        # pairs come most similar first, so the first of a d2 is its best
        _, once = np.unique(pairs.d2, return_index=True)
        chosen = np.sort(once)
        if len(chosen) > cfg.tune.eval_pairs:
            spread = np.linspace(0, len(chosen) - 1, cfg.tune.eval_pairs).astype(int)
            chosen = chosen[spread]

        room = form.seq_len - 1 - form.d1_room
        d1 = pairs.d1[chosen].tolist()
        d2 = pairs.d2[chosen].tolist()
        related = Related.of(pairs.d1, pairs.d2)
        given = []
        for one, other in zip(d1, d2, strict=True):
            given.append(related.around(one, other, cfg.tune.contexts))
        self.d2 = [second[doc][:room] for doc in d2]
        self.numbers = list(
            zip(
                d1,
                d2,
                map(len, self.d2),
                strict=True,
            )
        )
        # as many random ones as it has d1
        shape = (len(chosen), cfg.tune.contexts)
        others = rng(cfg.seed, "tune.random_d1").integers(0, len(first), shape).tolist()
        instead = [drawn[: len(docs)] for docs, drawn in zip(given, others, strict=True)]
        self.own = self._given(first, given)
        self.random = self._given(first, instead)

        d1_lengths = np.array([len(prompt) - 1 for prompt in self.own.prompts], np.int64)
        d2_lengths = np.array([len(d2) for d2 in self.d2], np.int64)
        d1_tokens, d2_tokens = cut_pair(d1_lengths, d2_lengths, form)
        fed = d2_tokens if form.separator is None else 1 + d1_tokens + d2_tokens
        self.num_tokens = int(fed.sum())  # fed to the model for one loss
        # with its d1, with another one, and twice without
        self.conditioning_tokens = 2 * self.num_tokens + 2 * sum(map(len, self.d2))

    def __len__(self) -> int:
        return len(self.d2)

    def _given(self, first: Tokens, documents: list[list[int]]) -> _Given:
        """What a prompt has of these documents, and what a pointer finds in them."""
        prompts = []
        readings = []
        for docs, d2 in zip(documents, self.d2, strict=True):
            texts = [first[doc] for doc in docs]
            prompts.append(joined_contexts(texts, self.form))
            if self.points:
                readings.append(pointer.read(pointer.source(texts, self.form.seq_len), d2))
        return _Given(prompts, readings)

    def loss(
        self, model: PreTrainedModel, base_share: float = 0.0, progress: Progress = silent
    ) -> float:
        """Nats per token of d2 given its d1, or nothing where it is tuned without."""
        return self._score(model, self.own, base_share, progress).mean

    def d1_worth(self, model: PreTrainedModel, progress: Progress) -> tuple[float, float]:
        """How many nats per token d2 costs less given its d1 than given a random one, with the
        standard error over pairs."""
        given = self._score(model, self.own, 0.0, progress)
        return given.gain_over(self._score(model, self.random, 0.0, progress))

    def weights(self, model: PreTrainedModel, base_share: float) -> pointer.Weights | None:
        """Those of a pointer beside this model, fitted on all pairs."""
        if not self.points:
            return None
        probabilities = self._probabilities(model, self.own, base_share, silent)
        return pointer.fit(self.own.readings, probabilities)

    def conditioning(
        self,
        model: PreTrainedModel,
        origin: PreTrainedModel,
        is_base: bool,
        base_share: float,
        progress: Progress,
    ) -> Conditioning:
        """Nats per token of d2 under each condition; `is_base` says that the model that tuning
        started from is a language model, not fresh weights."""
        nothing = _Given([np.array([self.form.end])] * len(self), [])
        given = self._score(model, self.own, base_share, progress)
        random = self._score(model, self.random, base_share, progress)
        # base has never seen the separator: without one, d2 is a document like any other
        alone = self._model_score(origin, nothing, 1.0, progress)
        without = self._model_score(model, nothing, base_share, progress)
        found = Conditioning(
            given_nothing=without.mean,
            base=alone.mean,
            pairs=len(self),
        )
        if self.form.separator is not None:
            worth, error = given.gain_over(random)
            found = replace(
                found,
                given_d1=given.mean,
                given_random_d1=random.mean,
                d1_worth=worth,
                d1_worth_error=error,
            )
        if is_base:
            worth, error = given.gain_over(alone)
            found = replace(found, net_worth=worth, net_worth_error=error)
        if self.external:
            size = sum(len(self.tokenizer.decode(d2).encode()) for d2 in self.d2)
            found = replace(found, tokens_per_byte=sum(map(len, self.d2)) / size)
        return found

    def _form(self, base_share: float) -> PairForm:
        return replace(self.form, separator=None) if base_share == 1 else self.form

    def _score(
        self, model: PreTrainedModel, given: _Given, base_share: float, progress: Progress
    ) -> score.Scores:
        """The losses of the model, or of its mixture with a pointer.

        The weights are fitted on every other pair, with its own d1, and used on the rest, then the
        other way round, so that no pair is measured by weights that it helped to fit.
        """
        if not self.points:
            return self._model_score(model, given, base_share, progress)
        own = self._probabilities(model, self.own, base_share, progress)
        those = own
        if given is not self.own:
            those = self._probabilities(model, given, base_share, progress)
        loss = np.empty(len(self))
        for part in range(2):
            fitted = range(1 - part, len(self), 2)
            measured = range(part, len(self), 2)
            weights = pointer.fit([self.own.readings[i] for i in fitted], [own[i] for i in fitted])
            loss[part::2] = pointer.losses(
                [given.readings[i] for i in measured],
                [those[i] for i in measured],
                weights,
            )
        return score.Scores(loss, np.array([len(d2) for d2 in self.d2]))

    def _probabilities(
        self, model: PreTrainedModel, given: _Given, base_share: float, progress: Progress
    ) -> list[Float64[np.ndarray, " token"]]:
        """The model's probability of each token of each d2."""
        form = self._form(base_share)
        losses = score.pair_tokens(model, given.prompts, self.d2, form, progress)
        return [np.exp(-loss.astype(np.float64)) for loss in losses]

    def _model_score(
        self, model: PreTrainedModel, given: _Given, base_share: float, progress: Progress
    ) -> score.Scores:
        return score.pairs(model, given.prompts, self.d2, self._form(base_share), progress)
