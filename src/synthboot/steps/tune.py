"""tune: a language model and pairs in, the synthesizer out."""

from __future__ import annotations

from dataclasses import asdict

from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.external import External
from synthboot.artifacts.model import Model
from synthboot.steps.context import Context, Outcome, conditional, upstream_flops
from synthboot.steps.sweep import best_trial


def tune(c: Context) -> Outcome:
    """The synthesizer."""
    from synthboot.lm import parallel
    from synthboot.stages.tune import tune as stage

    if c.cfg.tune.sweep:
        return _chosen(c)

    text: Corpus | External = c.external or c.corpus
    start = c.model("base").best if "base" in c.parents else None
    tuned = stage(
        c.cfg,
        c.external.model if c.external else start,
        c.pairs(),
        text.pretrain,
        text.validation,
        text.tokenizer,
        c.folder,
        c.progress,
        c.note,
        conditional(c.variant),
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
            "pointer": tuned.pointer,
            "is_prompted": tuned.is_prompted,
        }
        Model.open(c.folder).save_tuning(record)
    return counts, {"tokens": tuned.tokens, "flops": tuned.flops}


def _chosen(c: Context) -> Outcome:
    """The synthesizer of the sweep's best trial, under this unit's name."""

    def loss(trial: Model) -> float:
        # of the model that is kept, averaged with base or not; base's own loss is the same for
        # all, so that the least is the highest net worth
        condition = "given_d1" if conditional(c.variant) else "given_nothing"
        return float(trial.tuning["conditioning"]["unseen"][condition])

    best = best_trial(c, c.cfg.tune.trials(), c.cfg.tune.sweep, loss)
    trial = c.model(f"trial/{best}")
    manifest = trial.manifest
    Model.open(c.folder).copy(trial)

    # this unit trained nothing; an arm of `match: flops` pays for the trial through it
    upstream = manifest.counts["upstream_flops"] + manifest.cost["flops"]
    return manifest.counts | {"upstream_flops": upstream}, {}
