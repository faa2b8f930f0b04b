"""What the scores of all models show: every arm beside repetition, figures with intervals.

Arms are compared paired, by seed and document (or question); what an arm is - the method, a
control, an oracle, an ensemble - its recipe says, not its name. `oracle_share` = (arm - repetition)
/ (oracle - repetition). `statistics` says how intervals and p-values come about; p-values of a
family of comparisons stand beside those adjusted for their number (Holm).

Source: arXiv:2509.15248 compares gains over repetition as shares of the oracle's gain; it has one
run per cell, no intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from synthboot import config, statistics, verdicts
from synthboot.artifacts.evaluation import (
    REPETITION,
    AnswerResult,
    ArmComparison,
    ArmResult,
    Power,
    TaskResult,
)
from synthboot.artifacts.model import TokenCounts
from synthboot.errors import ConfigError, UnfairComparison
from synthboot.lm.train import Settings
from synthboot.statistics import Estimate, Interval

ALL = "all"
"""The group of all items of a task."""
_MOST_NATS = 700.0
_MORE_SEEDS = (2, 3, 5, 8, 10, 15, 20)

# what has to be equal between arms: always, and where all train on as many tokens
_EQUAL = ("batch_tokens", "parameters", "architecture", "vocab_size")
_BY_LENGTH = ("steps", "train_tokens", "replayed_tokens")
_SET_BY_LENGTH = ("warmup_steps", "eval_steps")
_WATCHING = ("max_spike",)


def check_comparable(token_counts: Mapping[str, Mapping[int, TokenCounts]]) -> None:
    """Raise UnfairComparison, naming what differs, unless arms (name -> seed -> token counts)
    differ only in their data, and in what their recipes had a sweep or a budget of FLOPs choose.

    Of an ensemble each model is held to that: all of it has as many times the compute, by its
    recipe, and `config.Arm.kind` marks it.
    """
    first = next(iter(token_counts))
    for name, seeds in token_counts.items():
        if set(seeds) != set(token_counts[first]):
            raise UnfairComparison(
                f"arms {first} and {name} have different seeds: "
                f"{sorted(token_counts[first])}, {sorted(seeds)}"
            )
        for seed, counts in seeds.items():
            reference, *_ = _models(token_counts[first][seed])
            for model in _models(counts):
                _compare_settings(first, name, seed, reference, model)
                _check_tokens(name, seed, model)
                _check_flops(name, seed, reference, model)


def _models(counts: TokenCounts) -> Sequence[TokenCounts]:
    """The token counts of the models of an arm: its own, or those of an ensemble's members."""
    return counts.members or [counts]


def _compare_settings(
    first: str,
    name: str,
    seed: int,
    reference: TokenCounts,
    counts: TokenCounts,
) -> None:
    free = _free(counts.recipe) | _free(reference.recipe)
    expected = _held_equal(reference)
    for key, value in _held_equal(counts).items():
        if key not in free and value != expected[key]:
            raise UnfairComparison(
                f"arms {first} and {name} differ in {key} "
                f"({expected[key]} and {value}, seed {seed}); "
                f"arms may differ in their data alone"
            )


def _check_tokens(
    name: str,
    seed: int,
    counts: TokenCounts,
) -> None:
    """Whether tokens by source add up, and synthetic text was read at most once."""
    by_source = counts.real_tokens + counts.synthetic_tokens + counts.replayed_tokens
    if by_source != counts.train_tokens:
        raise UnfairComparison(
            f"arm {name}, seed {seed}: tokens by source do not add up to train_tokens"
        )
    epochs = counts.synthetic_epochs
    if epochs > 1:
        raise UnfairComparison(
            f"arm {name}, seed {seed}: synthetic text was read {epochs:.2f} times"
        )


def _check_flops(
    name: str,
    seed: int,
    reference: TokenCounts,
    counts: TokenCounts,
) -> None:
    """Whether an arm of `match: flops` kept to what the first arm spent on training."""
    by_tokens = reference.recipe.match == "tokens"
    # a reference that a sweep let train for longer or shorter is no budget
    if reference.recipe.epochs is not None or not by_tokens:
        return
    if counts.recipe.match != "flops":
        return
    spent = counts.total_flops
    budget = reference.train_flops
    if spent > budget:
        raise UnfairComparison(
            f"arm {name}, seed {seed}: {spent:.4g} FLOPs, the budget is {budget:.4g}; delete the "
            f"folder of that model and run again"
        )


def _held_equal(counts: TokenCounts) -> dict[str, object]:
    """What has to be equal between arms; a setting that came later has its default."""
    later = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
    values = {name: getattr(counts, name) for name in (*_EQUAL, *_BY_LENGTH)}
    values |= later | counts.settings
    return {name: value for name, value in values.items() if name not in _WATCHING}


def _free(recipe: config.Arm) -> set[str]:
    """What a recipe lets differ."""
    free = {name for name in config.TUNED if getattr(recipe, name) is not None}
    if recipe.match == "flops" or recipe.epochs is not None:
        free |= {*_BY_LENGTH, *_SET_BY_LENGTH}
    if recipe.ensemble > 1:
        free.add("dropout_seed")  # that of the member, not of the arm
    if recipe.distill is not None:
        free.add("distill_weight")
    return free


def summed(
    by_token: Float32[np.ndarray, " token"],
    document: Int64[np.ndarray, " token"],
    part: UInt8[np.ndarray, " token"],
    parts: int,
) -> Float64[np.ndarray, "doc part"]:
    """The losses of tokens summed by the document that each belongs to, and by which of so many
    parts of it."""
    docs = int(document[-1]) + 1
    cell = document * parts + part  # of the table of documents and parts
    return np.bincount(cell, by_token, docs * parts).reshape(docs, parts)


def evaluate(
    losses: Mapping[str, Float64[np.ndarray, "seed doc"]],
    tokens: Int64[np.ndarray, " doc"],
    size_bytes: Int64[np.ndarray, " doc"],
    recipes: Mapping[str, config.Arm],
    cfg: config.Evaluate,
    groups: Sequence[str] = (),
    looks: Sequence[int] = (),
    external: str | None = None,
    text_per_seed: bool = False,
) -> ArmComparison:
    """All arms at one checkpoint, and the verdict.

    `losses` holds each document's summed loss, the same seeds in the same order for every arm;
    `groups` the group of each document; `looks` the numbers of seeds at which this run was
    evaluated, this one last; `external` names a model from outside the corpus that wrote the
    synthetic text. Raises ConfigError without a repetition arm.
    """
    if REPETITION not in losses:
        raise ConfigError("evaluate: arms.repetition is missing; every arm is compared with it")
    recipes = {name: recipes[name] for name in losses}
    kinds: dict[str, str] = {name: recipe.kind for name, recipe in recipes.items()}
    oracle = _oracle(recipes)
    tokens_per_byte = tokens.sum() / size_bytes.sum()
    arms = {}
    for name in losses:
        arms[name] = _arm(name, losses, tokens, tokens_per_byte, oracle, cfg.confidence)
    arms = _adjusted(arms, kinds, len(looks))

    seeds = next(iter(losses.values())).shape[0]  # (seed, doc)
    subject = verdicts.subject(recipes)
    return ArmComparison(
        arms=arms,
        kinds=kinds,
        subject=subject,
        oracle=oracle,
        more_compute=verdicts.more_compute(recipes),
        seeds=seeds,
        looks=tuple(looks),
        docs=len(tokens),
        tokens=int(tokens.sum()),
        confidence=cfg.confidence,
        groups=_grouped(losses, tokens, groups, cfg.confidence),
        power=_power(losses, tokens, subject, cfg.confidence),
        verdict=verdicts.verdict(
            arms=arms,
            kinds=kinds,
            seeds=seeds,
            confidence=cfg.confidence,
            looks=looks,
            external=external,
            text_per_seed=text_per_seed,
        ),
    )


def _arm(
    name: str,
    losses: Mapping[str, Float64[np.ndarray, "seed doc"]],
    tokens: Int64[np.ndarray, " doc"],
    tokens_per_byte: float,
    oracle: str | None,
    confidence: float,
) -> ArmResult:
    """The figures of one arm; its p-value is not adjusted yet."""

    def minus(other: str) -> Estimate:
        return statistics.difference(losses[name], losses[other], tokens, confidence)

    # (seed, doc): weighed by tokens, so that it is the loss per token
    loss = statistics.estimate(losses[name], tokens, confidence)
    result = ArmResult(
        loss=loss.interval,
        perplexity=Interval(*map(_exp, loss.interval)),
        bits_per_byte=Interval(*(nll * tokens_per_byte / math.log(2) for nll in loss.interval)),
        loss_by_seed=loss.by_seed,
        against={other: minus(other).tested for other in losses if other != name},
    )
    if name == REPETITION:
        return result

    share = None
    if oracle is not None and oracle != name:
        oracle_gain = losses[oracle] - losses[REPETITION]
        # there is nothing to have a share of where more real text did not help
        if oracle_gain.sum() < 0:
            gain = losses[name] - losses[REPETITION]
            share = statistics.ratio(gain, oracle_gain, tokens, confidence)
    return replace(result, difference=minus(REPETITION), oracle_share=share)


def _exp(nats: float) -> float:
    """Its exponential, as far as numbers go: the interval of a model gone wrong may be wide."""
    return math.exp(min(nats, _MOST_NATS))


def _adjusted(
    arms: Mapping[str, ArmResult],
    kinds: Mapping[str, str],
    looks: int,
) -> dict[str, ArmResult]:
    """The arms with p-values adjusted for their number, and for that of looks at them."""
    p_values = {}
    for name, arm in arms.items():
        # that more text or more compute is better is no claim, so it does not make the threshold
        # of the others stricter
        if arm.difference is not None and kinds[name] not in ("oracle", "ensemble"):
            p_values[name] = arm.difference.p
    adjusted = dict(arms)
    for name, p in statistics.holm(p_values).items():
        # whoever looks again after every few seeds has had as many chances (Bonferroni)
        adjusted[name] = replace(arms[name], p_adjusted=min(1.0, p * max(1, looks)))
    return adjusted


def _oracle(recipes: Mapping[str, config.Arm]) -> str | None:
    """The oracle that shares are of: the one with the most text."""
    sizes = {}
    for name, arm in recipes.items():
        if arm.kind == "oracle" and arm.synthetic is None:
            everything = arm.unique_tokens == "all"
            sizes[name] = math.inf if everything else float(arm.unique_tokens or 0)
    return max(sizes, key=lambda name: sizes[name], default=None)


def _power(
    losses: Mapping[str, Float64[np.ndarray, "seed doc"]],
    tokens: Int64[np.ndarray, " doc"],
    subject: str | None,
    confidence: float,
) -> Power | None:
    """What the noise of this run lets one see: its parts, and the smallest difference to repetition
    that so many seeds show four times in five.

    None without an arm to speak of or a second seed.
    """
    if subject is None or losses[subject].shape[0] < 2:
        return None
    # how much of the difference varies by seed, by document, and by both
    noise = statistics.components(losses[subject] - losses[REPETITION], tokens)
    items = len(tokens)
    detectable = {}
    for seeds in sorted({*_MORE_SEEDS, losses[subject].shape[0]}):
        detectable[seeds] = statistics.detectable(noise, seeds, items, confidence)
    return Power(subject, noise, items, detectable)


def answered(
    answers: Mapping[str, Float64[np.ndarray, "seed item 4"]],
    tasks: Sequence[str],
    groups: Sequence[str],
    cfg: config.Evaluate,
    seen: Bool[np.ndarray, " item"] | None = None,
) -> dict[str, TaskResult]:
    """By task what every arm answered, but to the items that a training text has `seen`.

    `answers` are acc, acc_norm, nll and choice_nll (all zero where nothing is to choose) of every
    item. A task or group of one item has no interval and is left out.
    """
    task_of = np.array(tasks)
    group_of = np.array(groups)
    clean = np.ones(len(tasks), bool) if seen is None else ~seen
    result = {}

    for task in dict.fromkeys(tasks):
        of_task = (task_of == task) & clean
        if of_task.sum() < 2:
            continue
        chosen = {ALL: of_task}
        names = sorted(set(group_of[of_task].tolist()) - {""})
        # a single group would only say again what `all` says
        if len(names) > 1:
            for group in names:
                chosen[_named(group)] = of_task & (group_of == group)

        by_group = {}
        for group, items in chosen.items():
            if items.sum() >= 2:
                by_group[group] = _answers(answers, items, cfg.confidence)
        result[task] = TaskResult(int(of_task.sum()), by_group)
    return result


def _answers(
    answers: Mapping[str, Float64[np.ndarray, "seed item 4"]],
    chosen: np.ndarray,
    confidence: float,
) -> dict[str, AnswerResult]:
    """The figures of every arm on the chosen items."""
    of_repetition = answers[REPETITION][:, chosen, 0]  # (seed, item)
    results = {}
    for name, of_arm in answers.items():
        # (seed, item, measure) -> one (seed, item) for each measure
        acc, acc_norm, nll, choice_nll = np.moveaxis(of_arm[:, chosen], 2, 0)
        difference = statistics.difference(acc, of_repetition, None, confidence)
        results[name] = AnswerResult(
            items=int(chosen.sum()),
            acc=statistics.share(acc, confidence),
            acc_norm=statistics.share(acc_norm, confidence),
            nll=_interval(nll, confidence),
            # all zero: an item with one continuation has nothing to choose among
            choice_nll=_interval(choice_nll, confidence) if choice_nll.any() else None,
            difference=difference.tested,
        )
    return results


def parted(
    losses: Mapping[str, Float64[np.ndarray, "seed doc part"]],
    names: Sequence[str],
    groups: Sequence[str],
    cfg: config.Evaluate,
) -> dict[str, dict[str, dict[str, Interval]]]:
    """By group of two documents or more (`all` first), arm and part of a document: its nats per
    document."""
    docs = next(iter(losses.values())).shape[1]  # (seed, doc, part)
    group_of = np.array(groups)
    chosen = {ALL: np.ones(docs, bool)}
    for group in sorted(set(groups) - {""}):
        chosen[_named(group)] = group_of == group

    result: dict[str, dict[str, dict[str, Interval]]] = {}
    for group, of_group in chosen.items():
        if of_group.sum() < 2:
            continue
        result[group] = {}
        for arm, by_part in losses.items():
            intervals = {}
            for number, name in enumerate(names):
                loss = by_part[:, of_group, number]  # (seed, doc)
                intervals[name] = _interval(loss, cfg.confidence)
            result[group][arm] = intervals
    return result


def _named(group: str) -> str:
    """A group beside that of all items, which it may be called like."""
    return group if group != ALL else f"{group} (group)"


def efficiency(
    points: Sequence[tuple[int, float]],
    loss: float,
) -> float | None:
    """How many unique real tokens alone would reach a loss, between the measured (tokens, loss) in
    a line over the logarithm of tokens; None beyond them.

    The measured losses are taken to fall: a point above one with fewer tokens is left out.
    """
    falling: list[tuple[int, float]] = []
    for tokens, reached in sorted(points):
        if not falling or reached < falling[-1][1]:
            falling.append((tokens, reached))
    if len(falling) < 2 or not falling[-1][1] <= loss <= falling[0][1]:
        return None
    log_tokens = np.log([tokens for tokens, _ in falling])
    losses = np.array([reached for _, reached in falling])
    # np.interp wants rising x, and losses fall
    return float(np.exp(np.interp(-loss, -losses, log_tokens)))


def _grouped(
    losses: Mapping[str, Float64[np.ndarray, "seed doc"]],
    tokens: Int64[np.ndarray, " doc"],
    groups: Sequence[str],
    confidence: float,
) -> dict[str, dict[str, Interval]]:
    """By group of two documents or more, and arm: the loss with its interval."""
    group_of = np.array(groups)
    result: dict[str, dict[str, Interval]] = {}
    for group in sorted(set(groups) - {""}):
        chosen = group_of == group
        if chosen.sum() < 2:
            continue
        result[group] = {}
        for name, by_doc in losses.items():
            result[group][name] = _interval(by_doc[:, chosen], confidence, tokens[chosen])
    return result


def _interval(
    values: Float64[np.ndarray, "seed item"],
    confidence: float,
    weights: np.ndarray | None = None,
) -> Interval:
    return statistics.estimate(values, weights, confidence).interval
