"""Score every arm and seed on the holdout, which nothing else reads: losses with intervals, and the oracle's share.

Intervals come from a hierarchical bootstrap: documents and seeds are resampled, the same ones for every arm, so that arms
are compared pairwise. `oracle_share` = (arm - repetition) / (oracle - repetition).

Source: arXiv:2509.15248 compares gains over repetition as shares of the oracle's gain; it has one run per cell, no intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from synthboot import config
from synthboot.data import tokenizer as tokenizers
from synthboot.data.tokens import Tokens
from synthboot.errors import ConfigError
from synthboot.lm import model as models
from synthboot.lm import score

REPETITION, ORACLE = "repetition", "oracle"


@dataclass(frozen=True)
class Job:
    """What scoring a model needs; plain values, so that it can be sent to a worker."""

    tokenizer: Path
    holdout: tuple[Path, ...]
    window: int
    device: str


def scorer(job: Job) -> Callable[[Path], Float64[np.ndarray, " doc"]]:
    """A worker: model folder -> summed loss of each holdout document, in nats."""
    end = tokenizers.load(job.tokenizer).end
    holdout = Tokens.open(job.holdout)

    def run(folder: Path) -> np.ndarray:
        model = models.load(folder).to(models.device(job.device))
        return score.documents(model, holdout, job.window, end).loss

    return run


def evaluate(
    losses: Mapping[str, Float64[np.ndarray, "seed doc"]],
    tokens: Int64[np.ndarray, " doc"],
    size_bytes: Int64[np.ndarray, " doc"],
    cfg: config.Evaluate,
    seed: int = 0,
) -> dict[str, Any]:
    """Per arm: loss (nats per token), perplexity, bits per byte, difference to repetition and oracle_share, each
    [value, low, high]; `p` is the two-sided bootstrap p-value of the difference; `verdict` says it in one sentence.

    `losses` holds each document's summed loss, the same seeds in the same order for every arm. Raises ConfigError without
    a repetition arm.
    """
    if REPETITION not in losses:
        raise ConfigError("evaluate: arms.repetition is missing; every arm is compared with it")
    names = list(losses)
    stacked = np.stack([losses[n] for n in names])  # arm, seed, document
    means = _resampled(stacked, tokens, cfg.bootstrap, seed)  # resample, arm; row 0 is the sample itself
    nats = {name: means[:, i] for i, name in enumerate(names)}
    tokens_per_byte = tokens.sum() / size_bytes.sum()
    arms: dict[str, Any] = {}
    for i, name in enumerate(names):
        values = nats[name]
        entry: dict[str, Any] = {
            "loss": _interval(values, cfg.confidence),
            "perplexity": _interval(np.exp(values), cfg.confidence),
            "bits_per_byte": _interval(values * tokens_per_byte / math.log(2), cfg.confidence),
            "loss_by_seed": (stacked[i].sum(1) / tokens.sum()).tolist(),
        }
        if name != REPETITION:
            difference = values - nats[REPETITION]
            entry["difference"] = _interval(difference, cfg.confidence)
            entry["p"] = _p_value(difference[1:])
            if ORACLE in nats and name != ORACLE:
                gain = nats[ORACLE] - nats[REPETITION]
                entry["oracle_share"] = _share(difference, gain, cfg.confidence)
        arms[name] = entry
    seeds = stacked.shape[1]
    return {
        "arms": arms, "seeds": seeds, "docs": len(tokens), "tokens": int(tokens.sum()), "confidence": cfg.confidence,
        "verdict": verdict(arms, seeds, cfg.confidence),
    }  # fmt: skip


def verdict(arms: Mapping[str, Any], seeds: int, confidence: float) -> str:
    """What the figures show, in one sentence, no more than they show."""
    about = f"{confidence:.0%} interval over holdout documents" + (f" and {seeds} seeds" if seeds > 1 else "")
    caution = "" if seeds >= 3 else f" ({seeds} seed{'s' * (seeds > 1)}: an anecdote, not a result; use three or more)"
    if "sbp" not in arms:
        return f"No sbp arm was run{caution}."
    value, low, high = arms["sbp"]["difference"]
    change = f"{abs(value):.4f} nats per token ({-high:+.4f} to {-low:+.4f}, {about})"
    if low <= 0 <= high:
        return f"No difference shown: sbp against repetition is {change} better, an interval that includes zero{caution}."
    if value > 0:
        worse = f"{abs(value):.4f} nats per token worse than repetition ({low:+.4f} to {high:+.4f}, {about})"
        return f"Synthetic text hurt: sbp is {worse}{caution}."
    share = arms["sbp"].get("oracle_share")
    closed = f", {share[0]:.0%} of the oracle's gain ({share[1]:.0%} to {share[2]:.0%})" if share else ""
    return f"Synthetic text helped: sbp is {change} better than repetition{closed}{caution}."


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
