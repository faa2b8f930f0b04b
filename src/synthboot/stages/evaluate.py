"""Score every arm and seed on the holdout, which nothing else reads, and on questions: figures with intervals.

Intervals come from a hierarchical bootstrap: documents (or items) and seeds are resampled, the same ones for every arm, so
that arms are compared pairwise. `oracle_share` = (arm - repetition) / (oracle - repetition).

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

from synthboot import config
from synthboot.data import tokenizer as tokenizers
from synthboot.data.tasks import Item
from synthboot.data.tokens import Tokens
from synthboot.errors import ConfigError
from synthboot.lm import model as models
from synthboot.lm import questions, score

REPETITION, ORACLE, METHOD = "repetition", "oracle", "sbp"


@dataclass(frozen=True)
class Job:
    """What scoring a model needs; plain values, so that it can be sent to a worker. `items` is a JSON-lines file of
    questions, each with the name of its task; `parts`, an .npy file, says of every holdout token to which of `kinds` parts it
    belongs; `harness` names tasks for lm-eval, with the folder of those it has not."""

    tokenizer: Path
    holdout: tuple[Path, ...]
    window: int
    device: str
    items: Path
    parts: Path
    kinds: int
    harness: tuple[str, ...] = ()
    include: str = "."


Scores = tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]


def scorer(job: Job) -> Callable[[tuple[Path, bool]], Scores]:
    """A worker: (model folder, whether to ask) -> summed loss of each holdout document and part in nats; for each item whether
    it was answered right, right by likelihood per character, the nats of the right continuation and those of the right choice
    among all; and the same by lm-eval."""
    tokenizer = tokenizers.load(job.tokenizer)
    holdout = Tokens.open(job.holdout)
    lines = [json.loads(line) for line in job.items.read_text("utf-8").splitlines()]
    items = [_item(line) for line in lines]
    places = np.repeat(np.arange(len(holdout)) * job.kinds, holdout.lengths) + np.load(job.parts)

    def run(wanted: tuple[Path, bool]) -> Scores:
        folder, asking = wanted
        device = models.device(job.device)
        model = models.load(folder).to(device)
        each = score.token_losses(model, holdout, job.window, tokenizer.end)
        losses = np.bincount(places, each, len(holdout) * job.kinds).reshape(len(holdout), job.kinds)
        answers = questions.ask(model, tokenizer, items, job.window) if asking and items else []
        harness = questions.harness(folder, job.harness, job.include, str(device)) if asking and job.harness else {}
        return losses, np.array([astuple(a) for a in answers], np.float64).reshape(-1, 4), harness

    return run


def _item(fields: Mapping[str, Any]) -> Item:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items() if k != "task"}
    return Item(**values)


def evaluate(
    losses: Mapping[str, Float64[np.ndarray, "seed doc"]],
    tokens: Int64[np.ndarray, " doc"],
    size_bytes: Int64[np.ndarray, " doc"],
    cfg: config.Evaluate,
    seed: int = 0,
    groups: Sequence[str] = (),
) -> dict[str, Any]:
    """Per arm: loss (nats per token), perplexity, bits per byte, difference to repetition and oracle_share, each
    [value, low, high]; `p` is the two-sided bootstrap p-value of the difference; `against` has difference and p to every
    other arm; `groups` the loss by the group of each document; `verdict` says it in one sentence.

    `losses` holds each document's summed loss, the same seeds in the same order for every arm. Raises ConfigError without
    a repetition arm.
    """
    if REPETITION not in losses:
        raise ConfigError("evaluate: arms.repetition is missing; every arm is compared with it")
    names = list(losses)
    stacked = np.stack([losses[n] for n in names])  # arm, seed, document
    nats = _by_arm(stacked, tokens, names, cfg, seed)
    tokens_per_byte = tokens.sum() / size_bytes.sum()
    arms: dict[str, Any] = {}
    for i, name in enumerate(names):
        values = nats[name]
        entry: dict[str, Any] = {
            "loss": _interval(values, cfg.confidence),
            "perplexity": _interval(np.exp(values), cfg.confidence),
            "bits_per_byte": _interval(values * tokens_per_byte / math.log(2), cfg.confidence),
            "loss_by_seed": (stacked[i].sum(1) / tokens.sum()).tolist(),
            "against": {other: _difference(values, nats[other], cfg.confidence) for other in names if other != name},
        }
        if name != REPETITION:
            *entry["difference"], entry["p"] = entry["against"][REPETITION]
            if ORACLE in nats and name != ORACLE:
                gain = nats[ORACLE] - nats[REPETITION]
                entry["oracle_share"] = _share(values - nats[REPETITION], gain, cfg.confidence)
        arms[name] = entry
    seeds = stacked.shape[1]
    return {
        "arms": arms, "seeds": seeds, "docs": len(tokens), "tokens": int(tokens.sum()), "confidence": cfg.confidence,
        "groups": _grouped(losses, tokens, groups, cfg, seed), "verdict": verdict(arms, seeds, cfg.confidence),
    }  # fmt: skip


def answered(
    answers: Mapping[str, Float64[np.ndarray, "seed item 4"]], tasks: Sequence[str], groups: Sequence[str],
    cfg: config.Evaluate, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """By task: its items, and by group of them (`all` first) and arm the share answered right, the same by likelihood per
    character, the nats of the right continuation and those of the right choice among all (`choice_nats`; None where
    nothing is to choose), each [value, low, high], with the difference of the first to repetition [value, low, high, p]."""
    found: dict[str, Any] = {}
    for task in dict.fromkeys(tasks):
        of_task = np.array([t == task for t in tasks])
        kinds = sorted({g for g, t in zip(groups, tasks, strict=True) if t == task and g})
        parts = {"all": of_task} | {g: of_task & (np.array(groups) == g) for g in (kinds if len(kinds) > 1 else [])}
        found[task] = {"items": int(of_task.sum()), "groups": {}}
        for group, chosen in parts.items():
            count = np.ones(int(chosen.sum()), np.int64)
            names = list(answers)
            right, by_char, nats, among = (
                _by_arm(np.stack([answers[n][:, chosen, kind] for n in names]), count, names, cfg, seed) for kind in range(4)
            )
            found[task]["groups"][group] = {
                name: {
                    "items": len(count),
                    "right": _interval(right[name], cfg.confidence),
                    "right_per_char": _interval(by_char[name], cfg.confidence),
                    "nats": _interval(nats[name], cfg.confidence),
                    "choice_nats": _interval(among[name], cfg.confidence) if among[name].any() else None,
                    "difference": _difference(right[name], right[REPETITION], cfg.confidence),
                }
                for name in names
            }
    return found


def parted(
    losses: Mapping[str, Float64[np.ndarray, "seed doc part"]], names: Sequence[str], groups: Sequence[str],
    cfg: config.Evaluate, seed: int = 0,
) -> dict[str, dict[str, dict[str, list[float]]]]:  # fmt: skip
    """By group of the documents (`all` first), arm and part of a document: its nats per document [value, low, high]."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for group in ["all", *sorted(set(groups))]:
        chosen = np.array([group in ("all", g) for g in groups] or [True] * next(iter(losses.values())).shape[1])
        count = np.ones(int(chosen.sum()), np.int64)
        by_part = [
            _by_arm(np.stack([a[:, chosen, i] for a in losses.values()]), count, list(losses), cfg, seed)
            for i in range(len(names))
        ]
        found[group] = {
            arm: {name: _interval(values[arm], cfg.confidence) for name, values in zip(names, by_part, strict=True)}
            for arm in losses
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
    sizes, losses = np.log([t for t, _ in falling]), np.array([v for _, v in falling])
    return float(np.exp(np.interp(-loss, -losses, sizes)))


def verdict(arms: Mapping[str, Any], seeds: int, confidence: float) -> str:
    """What the figures show, no more than they show: `sbp` (or, where there is none, the first arm named like it) against
    repetition, and against every control."""
    about = f"{confidence:.0%} interval over holdout documents" + (f" and {seeds} seeds" if seeds > 1 else "")
    caution = "" if seeds >= 3 else f" ({seeds} seed{'s' * (seeds > 1)}: an anecdote, not a result; use three or more)"
    subject = METHOD if METHOD in arms else next((name for name in arms if name.startswith(METHOD)), None)
    if subject is None:
        return f"No sbp arm was run{caution}."
    controls = _controls(arms, subject)
    value, low, high = arms[subject]["difference"]
    change = f"{abs(value):.4f} nats per token ({-high:+.4f} to {-low:+.4f}, {about})"
    if low <= 0 <= high:
        better = f"{change} {'better' if value <= 0 else 'worse'}"
        return (
            f"No difference shown: {subject} against repetition is {better}, an interval that includes zero{caution}.{controls}"
        )
    if value > 0:
        worse = f"{abs(value):.4f} nats per token worse than repetition ({low:+.4f} to {high:+.4f}, {about})"
        return f"Synthetic text hurt: {subject} is {worse}{caution}.{controls}"
    share = arms[subject].get("oracle_share")
    closed = f", {share[0]:.0%} of the oracle's gain ({share[1]:.0%} to {share[2]:.0%})" if share else ""
    return f"Synthetic text helped: {subject} is {change} better than repetition{closed}{caution}.{controls}"


def _controls(arms: Mapping[str, Any], subject: str) -> str:
    """A sentence on an arm against those that are neither sbp in another setting nor real text beyond the budget."""
    told: dict[str, list[str]] = {"better than": [], "not shown to differ from": [], "worse than": []}
    for name, (value, low, high, p) in arms[subject].get("against", {}).items():
        if name != REPETITION and not name.startswith((METHOD, ORACLE)):
            kind = "not shown to differ from" if low <= 0 <= high else "better than" if value < 0 else "worse than"
            told[kind].append(f"{name} (p = {p:.2g})")
    parts = [f"{kind} {', '.join(names)}" for kind, names in told.items() if names]
    return f" Beside its controls it is {'; '.join(parts)}." if parts else ""


def _grouped(
    losses: Mapping[str, Float64[np.ndarray, "seed doc"]], tokens: Int64[np.ndarray, " doc"], groups: Sequence[str],
    cfg: config.Evaluate, seed: int,
) -> dict[str, dict[str, list[float]]]:  # fmt: skip
    """By group and arm: the loss with its interval."""
    found: dict[str, dict[str, list[float]]] = {}
    for group in sorted(set(groups)):
        chosen = np.array(groups) == group
        nats = _by_arm(np.stack([rows[:, chosen] for rows in losses.values()]), tokens[chosen], list(losses), cfg, seed)
        found[group] = {name: _interval(values, cfg.confidence) for name, values in nats.items()}
    return found


def _by_arm(
    stacked: Float64[np.ndarray, "arm seed doc"], tokens: Int64[np.ndarray, " doc"], names: Sequence[str],
    cfg: config.Evaluate, seed: int,
) -> dict[str, Float64[np.ndarray, " resample"]]:  # fmt: skip
    """By arm: the sample's figure, then those of the resamples."""
    means = _resampled(stacked, tokens, cfg.bootstrap, seed)
    return {name: means[:, i] for i, name in enumerate(names)}


def _difference(
    values: Float64[np.ndarray, " resample"], others: Float64[np.ndarray, " resample"], confidence: float
) -> list[float]:
    """[value, low, high, p]."""
    return [*_interval(values - others, confidence), _p_value((values - others)[1:])]


def _resampled(
    losses: Float64[np.ndarray, "arm seed doc"], tokens: Int64[np.ndarray, " doc"], count: int, seed: int
) -> Float64[np.ndarray, "resample arm"]:
    """Nats per token of every arm in the sample (row 0) and in each resample of documents and seeds."""
    _, seeds, docs = losses.shape
    rng = np.random.default_rng([seed, 7])
    weights = np.vstack((np.ones(docs), rng.multinomial(docs, np.full(docs, 1 / docs), count)))
    picks = np.vstack((np.ones(seeds), rng.multinomial(seeds, np.full(seeds, 1 / seeds), count))) / seeds
    per_seed = np.einsum("rd,asd->ras", weights, losses, optimize=True) / (weights @ tokens)[:, None, None]
    return np.einsum("ras,rs->ra", per_seed, picks)


def _interval(values: Float64[np.ndarray, " resample"], confidence: float) -> list[float]:
    low, high = np.quantile(values[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
    return [float(values[0]), float(low), float(high)]


def _p_value(differences: Float64[np.ndarray, " resample"]) -> float:
    """Two-sided: how often the resampled difference has the other sign; never below one in the number of resamples."""
    worse = (np.sum(differences >= 0) + 1) / (len(differences) + 1)
    better = (np.sum(differences <= 0) + 1) / (len(differences) + 1)
    return float(min(1.0, 2 * min(worse, better)))


def _share(
    difference: Float64[np.ndarray, " resample"], gain: Float64[np.ndarray, " resample"], confidence: float
) -> list[float] | None:
    """The share of the oracle's gain; None where the oracle's gain is not clear of zero, since a ratio to it says
    nothing."""
    if _interval(gain, confidence)[2] >= 0:
        return None
    return _interval(difference / gain, confidence)
