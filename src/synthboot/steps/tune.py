"""tune: a language model and pairs in, the synthesizer out."""

from __future__ import annotations

from dataclasses import asdict

from synthboot.artifacts.model import Model
from synthboot.steps.context import Context, Outcome, upstream_flops
from synthboot.steps.sweep import best_trial


def tune(c: Context) -> Outcome:
    """The synthesizer."""
    from synthboot.lm import parallel
    from synthboot.stages.tune import tune as stage

    if c.cfg.tune.sweep:
        return _chosen(c)

    tuned = stage(
        c.cfg,
        c.model("base").best if "base" in c.parents else None,
        c.pairs(),
        c.corpus.pretrain,
        c.corpus.validation,
        c.corpus.tokenizer,
        c.folder,
        c.progress,
    )
    counts = {
        "conditioning": tuned.conditioning,
        "padding_share": tuned.padding_share,
        "best_loss": tuned.curve.best_loss,
        "upstream_flops": upstream_flops(c),
    }
    if parallel.rank() == 0:
        record = {
            **counts,
            "curve": asdict(tuned.curve),
            "stopped_by": tuned.stopped_by,
            "base_share": tuned.base_share,
        }
        Model.open(c.folder).save_tuning(record)
    return counts, {"tokens": tuned.tokens, "flops": tuned.flops}


def _chosen(c: Context) -> Outcome:
    """The synthesizer of the sweep's best trial, under this unit's name."""
    best = best_trial(c, c.cfg.tune.trials(), c.cfg.tune.sweep)
    trial = c.model(f"trial/{best}")
    made = trial.manifest
    Model.open(c.folder).copy(trial)

    # this unit trained nothing; an arm of `match: flops` pays for the trial through it
    upstream = made.counts["upstream_flops"] + made.cost["flops"]
    return made.counts | {"upstream_flops": upstream}, {}
