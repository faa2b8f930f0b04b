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
        c.note,
    )
    counts = {
        "account": tuned.sentence(),
        "conditioning": tuned.conditioning,
        "untuned": tuned.untuned,
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

    def loss_given_d1(trial: Model) -> float:
        # of the model that is kept, averaged with base or not; base's own loss is the same for
        # all, so that the least is the highest net worth
        return float(trial.tuning["conditioning"]["unseen"]["given_d1"])

    best = best_trial(c, c.cfg.tune.trials(), c.cfg.tune.sweep, loss_given_d1)
    trial = c.model(f"trial/{best}")
    manifest = trial.manifest
    Model.open(c.folder).copy(trial)

    # this unit trained nothing; an arm of `match: flops` pays for the trial through it
    upstream = manifest.counts["upstream_flops"] + manifest.cost["flops"]
    return manifest.counts | {"upstream_flops": upstream}, {}
