"""What a run will cost, and what it will be able to show, before anything is started.

Cost: training and sampling are counted from the configuration. The time is those FLOPs over a
matrix-product rate measured here in half a second, times the share of it that each kind of work
has been seen to reach (`docs/decisions.md`). Good to a factor of two.

Power: where the run folder holds an evaluation of two seeds or more, the smallest difference to
repetition that the configured number of seeds, and more of them, would show.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from synthboot import pool, statistics
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.evaluation import Evaluation
from synthboot.artifacts.store import read_manifest
from synthboot.config import Config
from synthboot.errors import CorruptArtifact
from synthboot.lm.batches import tokens_until_copying
from synthboot.recipes import Unit, folder_of
from synthboot.runner.state import State

_EFFICIENCY = {"train": 0.4, "sample": 0.12}
_MORE_SEEDS = (5, 10)


def estimate(cfg: Config, units: dict[str, Unit], states: dict[str, State]) -> dict[str, float]:
    """Totals over what is not done: `train_tokens`, `sampled_tokens`, `flops`, `hours`, `bytes`."""
    todo = [unit for name, unit in units.items() if states[name].status != "done"]
    models = 0
    tuned = 0
    asked = 0  # models that teach another
    sampled_tokens = 0
    for unit in todo:
        if unit.stage == "synthesize":
            sampled_tokens += unit.options["budget_tokens"]
        elif unit.stage in ("base", "pretrain") and not _is_copy(unit):
            assert unit.recipe is not None  # a unit of these stages has one
            models += unit.recipe.ensemble
            if unit.recipe.distill is not None:
                asked += cfg.arms[unit.recipe.distill].ensemble
        elif unit.stage == "tune":
            tuned += not _is_copy(unit)
    arms_tokens = models * cfg.budget.train_tokens
    tuning_tokens = tuned * _tuning_tokens(cfg)
    arms = _arms(cfg)
    synthesizer = arms if cfg.tune.init_from is None else _named(cfg.tune.init_from, arms)

    # Sampling reads a d1 for every d2.
    arms_forward = arms.forward_flops(cfg.model.seq_len)
    forward = synthesizer.forward_flops(cfg.tune_seq_len)
    taught_tokens = asked * cfg.budget.train_tokens  # a distilled model's teachers read them too
    flops = {
        "train": cfg.optim.lora.passes * arms_forward * arms_tokens
        + arms_forward * taught_tokens
        + cfg.tune.lora.passes * forward * tuning_tokens,
        "sample": 2 * forward * sampled_tokens,
    }
    parameters = models * arms.parameters + tuned * synthesizer.parameters
    rate = matmul_rate() * pool.jobs(cfg.engine.jobs, cfg.engine.device)
    seconds = sum(work / (rate * _EFFICIENCY[kind]) for kind, work in flops.items())

    return {
        "train_tokens": arms_tokens + tuning_tokens,
        "sampled_tokens": sampled_tokens,
        "flops": sum(flops.values()),
        "hours": seconds / 3600,
        "bytes": _stored_bytes(cfg, parameters, arms.parameters, sampled_tokens),
    }


def sentence(cost: dict[str, float]) -> str:
    """The estimate in words."""
    if not cost["flops"]:
        return "nothing to train or to sample"
    return (
        f"to do: {cost['train_tokens']:,.0f} tokens to train on and "
        f"{cost['sampled_tokens']:,.0f} to sample, {cost['flops']:.2g} FLOPs; "
        f"on this machine about {cost['hours']:.1f} hours (to a factor of two) and "
        f"{cost['bytes'] / 2**20:,.0f} MiB"
    )


def copying(cfg: Config, units: dict[str, Unit]) -> dict[str, float] | None:
    """`expected_tokens` after which base would copy from its context, and the `share` of them at
    which it ends.

    None where nothing is tuned from it, or it starts from a model that copies already.
    """
    tunes = any(unit.stage == "tune" and "base" in unit.parents for unit in units.values())
    if cfg.model.init_from is not None or not tunes:
        return None
    expected = tokens_until_copying(cfg.optim.batch_tokens)
    return {"expected_tokens": expected, "share": cfg.budget.train_tokens / expected}


def copying_sentence(cfg: Config, copying: dict[str, float]) -> str:
    """The same in words."""
    words = (
        f"copying: at {cfg.optim.batch_tokens:,} tokens a step a model copies from its context "
        f"after about {copying['expected_tokens'] / 1e6:,.1f}M tokens (arXiv:2511.16893); "
        f"base ends at {copying['share']:.1%} of that"
    )
    if copying["share"] < 1:
        words += ": smaller steps come there sooner, else tuning has to teach it"
    return words


@dataclass(frozen=True)
class Power:
    """The smallest true difference between `subject` and repetition, in nats per token, that a
    number of seeds shows four times in five."""

    subject: str
    detectable: dict[int, float]


def power(cfg: Config, units: dict[str, Unit]) -> Power | None:
    """What more seeds would show, by the noise of the evaluation in the run folder.

    None where there is none, or where it has one seed or no arm of the method.
    """
    folder = units["evaluate"].folder(cfg.folder)
    try:
        measured = Evaluation.open(folder).chosen.get("power")
    except CorruptArtifact:
        return None  # not there, or damaged: `run` makes it, and says so
    if measured is None:
        return None

    noise = statistics.Components(**measured["noise"])
    numbers = sorted({len(cfg.pretrain.seeds), *_MORE_SEEDS} - {1})
    return Power(
        measured["subject"],
        {
            seeds: statistics.detectable(noise, seeds, measured["items"], cfg.evaluate.confidence)
            for seeds in numbers
        },
    )


def power_sentence(power: Power) -> str:
    """What more seeds would show, in words."""
    (fewest, difference), *more = power.detectable.items()
    further = "".join(f", {seeds} seeds {value:.4f}" for seeds, value in more)
    return (
        f"power: by the noise of the evaluation that is there, {fewest} seeds show a difference of "
        f"{power.subject} to repetition of {difference:.4f} nats per token or more "
        f"four times in five{further}"
    )


def _is_copy(unit: Unit) -> bool:
    """Whether a model is one of its sweep's, trained already."""
    if unit.stage == "tune":
        return any(role.startswith("trial/") for role in unit.parents)
    return bool(unit.options.get("ready"))


def _tuning_tokens(cfg: Config) -> int:
    """Most tokens that one synthesizer is tuned on; a pair is taken for two documents."""
    pair_tokens = 2 * _unique_tokens(cfg) * cfg.tune.max_epochs
    return cfg.tune.max_tokens or int(pair_tokens / (1 - cfg.tune.plain_share))


def _stored_bytes(
    cfg: Config,
    parameters: float,
    largest: float,
    sampled_tokens: int,
) -> float:
    """What the run adds to the disk: two checkpoints of every model, `parameters` in all, the
    optimizer state of one that is training, and the samples."""
    checkpoints = 2 * 4 * parameters
    resumable = 3 * 4 * largest if parameters else 0
    token_bytes = 2 if cfg.corpus.vocab_size <= 1 << 16 else 4
    log_probability_bytes = 4
    return checkpoints + resumable + sampled_tokens * (token_bytes + log_probability_bytes)


def _unique_tokens(cfg: Config) -> int:
    """Tokens in D_pretrain; before all of a corpus has been read, what is trained on."""
    if cfg.budget.unique_tokens != "all":
        return cfg.budget.unique_tokens
    folder = folder_of(cfg.folder, "corpus")
    if read_manifest(folder) is None:
        return cfg.budget.train_tokens
    return int(Corpus.open(folder).summary["pretrain_tokens"])


@dataclass(frozen=True)
class _Sizes:
    """What decides the cost of a model."""

    layers: int
    width: int
    kv_fraction: float  # of the heads
    ffn: int
    vocab: int

    @property
    def parameters(self) -> float:
        # Queries and output, keys and values, and the three matrices of the gated MLP.
        ffn_fraction = self.ffn / self.width
        per_block = self.width**2 * (2 + 2 * self.kv_fraction + 3 * ffn_fraction)
        return self.layers * per_block + self.vocab * self.width

    def forward_flops(self, seq_len: int) -> float:
        """Per token: two for every parameter, and attention over half a row on average."""
        return 2 * self.parameters + 2 * self.layers * self.width * seq_len


def _arms(cfg: Config) -> _Sizes:
    model = cfg.model
    sizes = _Sizes(
        layers=model.layers,
        width=model.width,
        kv_fraction=(model.kv_heads or model.heads) / model.heads,
        ffn=model.ffn or 3 * model.width,
        vocab=cfg.corpus.vocab_size,
    )
    return sizes if model.init_from is None else _named(model.init_from, sizes)


def _named(source: str, default: _Sizes) -> _Sizes:
    """The sizes of a model to start from; `default` where its layout has no such sizes."""
    from transformers import AutoConfig

    layout = AutoConfig.from_pretrained(source, trust_remote_code=False).get_text_config()
    try:
        heads = layout.num_attention_heads
        kv_heads = getattr(layout, "num_key_value_heads", None) or heads
        width = layout.hidden_size
        return _Sizes(
            layers=layout.num_hidden_layers,
            width=width,
            kv_fraction=kv_heads / heads,
            # two matrices of four times the width are as large as three of 8/3
            ffn=getattr(layout, "intermediate_size", None) or 8 * width // 3,
            vocab=layout.vocab_size,
        )
    except (AttributeError, TypeError):  # none, or one for every layer
        return default


def matmul_rate() -> float:
    """FLOP/s of one process here, in float32 products of 512 x 512, the best of several."""
    from threadpoolctl import threadpool_limits

    matrix = np.ones((512, 512), np.float32)
    times = []
    # Workers have one thread each, and are counted by `pool.jobs`.
    with threadpool_limits(1):
        for _ in range(8):
            start = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - start)
    return 2 * 512**3 / min(times)
