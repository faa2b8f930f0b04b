"""What a run will cost: tokens, FLOPs, hours and bytes, before anything is started.

Training and sampling are counted from the configuration; the time is those FLOPs over a matrix-product rate measured here
in half a second, times the share of it that each kind of work has been seen to reach (`docs/decisions.md`). Good to
a factor of two.
"""

from __future__ import annotations

import time

import numpy as np

from synthboot.config import Config
from synthboot.data.disk import read_json
from synthboot.engine import local
from synthboot.pipeline import State
from synthboot.recipes import Unit

_EFFICIENCY = {"train": 0.4, "sample": 0.12}


def estimate(cfg: Config, units: dict[str, Unit], states: dict[str, State]) -> dict[str, float]:
    """Totals over what is not done: `train_tokens`, `sampled_tokens`, `flops`, `hours`, `bytes`."""
    todo = [u for name, u in units.items() if states[name].status != "done"]
    forward = _forward_flops(cfg)
    models = sum(u.stage in ("base", "pretrain") and not _copy(u) for u in todo)
    train = models * cfg.budget.train_tokens
    tuned = sum(u.stage == "tune" and not _copy(u) for u in todo)
    train += tuned * (cfg.tune.max_tokens or int(2 * _unique_tokens(cfg) * cfg.tune.max_epochs))
    sampled = sum(u.options["budget_tokens"] for u in todo if u.stage == "synthesize")
    flops = {"train": 3 * forward * train, "sample": 2 * forward * sampled}
    rate = _matmul_rate() * local.jobs(cfg.engine.jobs, cfg.engine.device)
    seconds = sum(work / (rate * _EFFICIENCY[kind]) for kind, work in flops.items())
    parameters = _parameters(cfg)
    token_bytes = 2 if cfg.corpus.vocab_size <= 1 << 16 else 4
    stored = (
        models * 2 * 4 * parameters + (train and 3 * 4 * parameters) + sampled * (token_bytes + 4)
    )
    return {
        "train_tokens": train, "sampled_tokens": sampled, "flops": sum(flops.values()), "hours": seconds / 3600,
        "bytes": stored,
    }  # fmt: skip


def sentence(cost: dict[str, float]) -> str:
    """The estimate in words."""
    if not cost["flops"]:
        return "nothing to train or to sample"
    return (
        f"to do: {cost['train_tokens']:,.0f} tokens to train on and {cost['sampled_tokens']:,.0f} to sample, "
        f"{cost['flops']:.2g} FLOPs; on this machine about {cost['hours']:.1f} hours (to a factor of two) and "
        f"{cost['bytes'] / 2**20:,.0f} MiB"
    )


def _copy(unit: Unit) -> bool:
    """Whether a model is one of its sweep's, trained already."""
    if unit.stage == "tune":
        return any(role.startswith("trial/") for role in unit.parents)
    return bool(unit.options.get("ready"))


def _unique_tokens(cfg: Config) -> int:
    """Tokens in D_pretrain; where all of the corpus is meant and it has not been read, at most what is trained on."""
    if cfg.budget.unique_tokens != "all":
        return cfg.budget.unique_tokens
    summary = cfg.folder / "01-corpus" / "corpus.json"
    return (
        int(read_json(summary)["pretrain_tokens"]) if summary.exists() else cfg.budget.train_tokens
    )


def _parameters(cfg: Config) -> float:
    m = cfg.model
    kv = (m.kv_heads or m.heads) / m.heads
    return (
        m.layers * m.width**2 * (2 + 2 * kv + 3 * (m.ffn or 3 * m.width) / m.width)
        + cfg.corpus.vocab_size * m.width
    )


def _forward_flops(cfg: Config) -> float:
    return 2 * _parameters(cfg) + 2 * cfg.model.layers * cfg.model.width * cfg.model.seq_len


def _matmul_rate() -> float:
    """FLOP/s of one process here, in float32 products of 512 x 512, the best of several."""
    from threadpoolctl import threadpool_limits

    a = np.ones((512, 512), np.float32)
    with threadpool_limits(1):
        times = []
        for _ in range(8):
            start = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - start)
    return 2 * 512**3 / min(times)
