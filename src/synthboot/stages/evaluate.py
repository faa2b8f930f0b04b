"""Score every arm and seed on the test set, which nothing else reads, and on questions: figures with intervals.

Arms are compared paired, by seed and document (or question); what an arm is - the method, a control, an oracle - its
recipe says, not its name. `oracle_share` = (arm - repetition) / (oracle - repetition). `statistics` says how intervals and
p-values come about; p-values of a family of comparisons stand beside those adjusted for their number (Holm).

Source: arXiv:2509.15248 compares gains over repetition as shares of the oracle's gain; it has one run per cell, no intervals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from synthboot import config, statistics, verdicts
from synthboot.data import tokenizer as tokenizers
from synthboot.data.tasks import Item
from synthboot.data.tokens import Tokens
from synthboot.errors import ConfigError
from synthboot.lm import model as models
from synthboot.lm import questions, score

REPETITION = "repetition"
_MORE_SEEDS = (2, 3, 5, 8, 10, 15, 20)


@dataclass(frozen=True)
class Job:
    """What scoring a model needs; plain values, so that it can be sent to a worker. `items` is a JSON-lines file of
    questions, each with the name of its task; `parts`, an .npy file, says of every test token to which of `kinds` parts it
    belongs; `harness` names tasks for lm-eval, with the folder of those it has not."""

    tokenizer: Path
    test_set: tuple[Path, ...]
    window: int
    device: str
    items: Path
    parts: Path
    kinds: int
    harness: tuple[str, ...] = ()
    include: str = "."


Scores = tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]


def scorer(job: Job) -> Callable[[tuple[Path, bool]], Scores]:
    """A worker: (model folder, whether to ask) -> summed loss of each test document and part in nats; for each item whether
    it was answered right, right by likelihood per character, the nats of the right continuation and those of the right choice
    among all; and the same by lm-eval."""
    tokenizer = tokenizers.load(job.tokenizer)
    test_set = Tokens.open(job.test_set)
    lines = [json.loads(line) for line in job.items.read_text("utf-8").splitlines()]
    items = [_item(line) for line in lines]
    places = np.repeat(np.arange(len(test_set)) * job.kinds, test_set.lengths) + np.load(job.parts)

    def run(wanted: tuple[Path, bool]) -> Scores:
        folder, asking = wanted
        device = models.device(job.device)
        model = models.load(folder).to(device)
        each = score.token_losses(model, test_set, job.window, tokenizer.end)
        losses = np.bincount(places, each, len(test_set) * job.kinds).reshape(
            len(test_set), job.kinds
        )
        answers = questions.ask(model, tokenizer, items, job.window) if asking and items else []
        harness = (
            questions.harness(folder, job.harness, job.include, str(device))
            if asking and job.harness
            else {}
        )
        return losses, np.array([astuple(a) for a in answers], np.float64).reshape(-1, 4), harness

    return run


def _item(fields: Mapping[str, Any]) -> Item:
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in fields.items() if k != "task"
    }
    return Item(**values)


def evaluate(
    losses: Mapping[str, Float64[np.ndarray, "seed doc"]],
    tokens: Int64[np.ndarray, " doc"],
    size_bytes: Int64[np.ndarray, " doc"],
    recipes: Mapping[str, config.Arm],
    cfg: config.Evaluate,
    groups: Sequence[str] = (),
    looks: Sequence[int] = (),
) -> dict[str, Any]:
    """Per arm: loss (nats per token), perplexity, bits per byte, difference to repetition and oracle_share, each
    [value, low, high]; `p` of the difference and `p_adjusted` for the number of arms; the difference of each seed; `against`
    with difference and p to every other arm. `groups`: the loss by the group of each document. `power`: the smallest
    difference that so many seeds would show. `verdict` says it in one sentence.

    `losses` holds each document's summed loss, the same seeds in the same order for every arm; `looks` the numbers of seeds
    at which this run was evaluated, this one last. Raises ConfigError without a repetition arm.
    """
    if REPETITION not in losses:
        raise ConfigError("evaluate: arms.repetition is missing; every arm is compared with it")
    oracle = _oracle(recipes)
    tokens_per_byte = tokens.sum() / size_bytes.sum()
    arms = {
        name: _entry(name, losses, tokens, tokens_per_byte, oracle, cfg.confidence)
        for name in losses
    }
    compared = [name for name in arms if name != REPETITION and recipes[name].kind != "oracle"]
    adjusted = statistics.holm({name: arms[name]["p"] for name in compared})
    for name, p in adjusted.items():
        arms[name]["p_adjusted"] = min(1.0, p * max(1, len(looks)))
    seeds = next(iter(losses.values())).shape[0]
    subject = verdicts.subject({name: recipes[name] for name in losses})
    kinds = {name: recipes[name].kind for name in losses}
    return {
        "arms": arms,
        "kinds": kinds,
        "subject": subject,
        "seeds": seeds,
        "looks": list(looks),
        "docs": len(tokens),
        "tokens": int(tokens.sum()),
        "confidence": cfg.confidence,
        "groups": _grouped(losses, tokens, groups, cfg.confidence),
        "power": _power(losses, tokens, subject, cfg.confidence),
        "verdict": verdicts.verdict(arms, kinds, seeds, cfg.confidence, looks),
    }


def _entry(
    name: str,
    losses: Mapping[str, Float64[np.ndarray, "seed doc"]],
    tokens: Int64[np.ndarray, " doc"],
    tokens_per_byte: float,
    oracle: str | None,
    confidence: float,
) -> dict[str, Any]:
    """The figures of one arm."""
    loss = statistics.estimate(losses[name], tokens, confidence)
    ends = [loss.value, loss.low, loss.high]
    entry: dict[str, Any] = {
        "loss": ends,
        "perplexity": [math.exp(nats) for nats in ends],
        "bits_per_byte": [nats * tokens_per_byte / math.log(2) for nats in ends],
        "loss_by_seed": list(loss.by_seed),
        "against": {},
    }
    for other in losses:
        if other != name:
            found = statistics.difference(losses[name], losses[other], tokens, confidence)
            entry["against"][other] = _with_p(found)
    if name == REPETITION:
        return entry
    beside = statistics.difference(losses[name], losses[REPETITION], tokens, confidence)
    *entry["difference"], entry["p"] = _with_p(beside)
    entry["difference_by_seed"] = list(beside.by_seed)
    entry["standard_error"] = beside.standard_error
    entry["df"] = beside.df
    if oracle in losses and oracle not in (None, name):
        gain = losses[oracle] - losses[REPETITION]
        entry["oracle_share"] = None
        if gain.sum() < 0:
            share = statistics.ratio(losses[name] - losses[REPETITION], gain, tokens, confidence)
            entry["oracle_share"] = _plain(share) if share else None
    return entry


def _oracle(recipes: Mapping[str, config.Arm]) -> str | None:
    """The oracle that shares are of: the one with the most text."""
    oracles = [
        name for name, arm in recipes.items() if arm.kind == "oracle" and arm.synthetic is None
    ]
    return max(oracles, key=lambda name: _size(recipes[name]), default=None)


def _size(arm: config.Arm) -> float:
    return math.inf if arm.unique_tokens == "all" else float(arm.unique_tokens or 0)


def _power(
    losses: Mapping[str, Float64[np.ndarray, "seed doc"]],
    tokens: Int64[np.ndarray, " doc"],
    subject: str | None,
    confidence: float,
) -> dict[str, Any] | None:
    """What the noise of this run lets one see: its parts, and the smallest difference to repetition that so many seeds show
    four times in five. None without an arm to speak of or a second seed."""
    if subject is None or losses[subject].shape[0] < 2:
        return None
    noise = statistics.components(losses[subject] - losses[REPETITION], tokens)
    items = len(tokens)
    seeds = sorted({*_MORE_SEEDS, losses[subject].shape[0]})
    return {
        "subject": subject,
        "noise": {"seed": noise.seed, "item": noise.item, "both": noise.both},
        "items": items,
        "detectable": {str(n): statistics.detectable(noise, n, items, confidence) for n in seeds},
    }


def answered(
    answers: Mapping[str, Float64[np.ndarray, "seed item 4"]],
    tasks: Sequence[str],
    groups: Sequence[str],
    cfg: config.Evaluate,
) -> dict[str, Any]:
    """By task: its items, and by group of them (`all` first) and arm the share answered right, the same by likelihood per
    character, the nats of the right continuation and those of the right choice among all (`choice_nll`; None where
    nothing is to choose), each [value, low, high], with the difference of the first to repetition [value, low, high, p].
    A task or group of one item has no interval and is left out."""
    found: dict[str, Any] = {}
    for task in dict.fromkeys(tasks):
        of_task = np.array([t == task for t in tasks])
        if of_task.sum() < 2:
            continue
        kinds = sorted({g for g, t in zip(groups, tasks, strict=True) if t == task and g})
        parts = {"all": of_task}
        if len(kinds) > 1:
            parts |= {g: of_task & (np.array(groups) == g) for g in kinds}
        found[task] = {"items": int(of_task.sum()), "groups": {}}
        for group, chosen in parts.items():
            if chosen.sum() >= 2:
                found[task]["groups"][group] = _answers(answers, chosen, cfg.confidence)
    return found


def _answers(
    answers: Mapping[str, Float64[np.ndarray, "seed item 4"]], chosen: np.ndarray, confidence: float
) -> dict[str, Any]:
    """The figures of every arm on the chosen items."""
    of_repetition = answers[REPETITION][:, chosen, 0]
    entries = {}
    for name, kept in answers.items():
        right, by_char, nats, among = np.moveaxis(kept[:, chosen], 2, 0)  # each (seed, item)
        entries[name] = {
            "items": int(chosen.sum()),
            "acc": _interval(right, confidence),
            "acc_norm": _interval(by_char, confidence),
            "nll": _interval(nats, confidence),
            "choice_nll": _interval(among, confidence) if among.any() else None,
            "difference": _with_p(statistics.difference(right, of_repetition, None, confidence)),
        }
    return entries


def parted(
    losses: Mapping[str, Float64[np.ndarray, "seed doc part"]],
    names: Sequence[str],
    groups: Sequence[str],
    cfg: config.Evaluate,
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """By group of the documents (`all` first), arm and part of a document: its nats per document [value, low, high]."""
    docs = next(iter(losses.values())).shape[1]
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for group in ["all", *sorted(set(groups))]:
        chosen = np.array([group in ("all", g) for g in groups] or [True] * docs)
        if chosen.sum() < 2:
            continue
        found[group] = {
            arm: {
                name: _interval(by_part[:, chosen, number], cfg.confidence)
                for number, name in enumerate(names)
            }
            for arm, by_part in losses.items()
        }
    return found


def efficiency(points: Sequence[tuple[int, float]], loss: float) -> float | None:
    """How many unique real tokens alone would reach a loss, between the measured (tokens, loss) in a line over the logarithm
    of tokens; None beyond them. The measured losses are taken to fall: a point above one with fewer tokens is left out."""
    falling: list[tuple[int, float]] = []
    for tokens, reached in sorted(points):
        if not falling or reached < falling[-1][1]:
            falling.append((tokens, reached))
    if len(falling) < 2 or not falling[-1][1] <= loss <= falling[0][1]:
        return None
    sizes = np.log([t for t, _ in falling])
    losses = np.array([v for _, v in falling])
    return float(np.exp(np.interp(-loss, -losses, sizes)))


def _grouped(
    losses: Mapping[str, Float64[np.ndarray, "seed doc"]],
    tokens: Int64[np.ndarray, " doc"],
    groups: Sequence[str],
    confidence: float,
) -> dict[str, dict[str, list[float]]]:
    """By group of two documents or more, and arm: the loss with its interval."""
    found: dict[str, dict[str, list[float]]] = {}
    for group in sorted(set(groups)):
        chosen = np.array(groups) == group
        if chosen.sum() >= 2:
            found[group] = {
                name: _interval(rows[:, chosen], confidence, tokens[chosen])
                for name, rows in losses.items()
            }
    return found


def _interval(
    values: Float64[np.ndarray, "seed item"], confidence: float, weights: np.ndarray | None = None
) -> list[float]:
    """[value, low, high]."""
    return _plain(statistics.estimate(values, weights, confidence))


def _plain(found: statistics.Interval | statistics.Estimate) -> list[float]:
    return [found.value, found.low, found.high]


def _with_p(found: statistics.Estimate) -> list[float]:
    return [found.value, found.low, found.high, found.p]
