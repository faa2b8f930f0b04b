"""tune: a language model and pairs in, the synthesizer out."""

from __future__ import annotations

from dataclasses import replace

from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.external import External
from synthboot.artifacts.model import Model
from synthboot.steps.context import Context, Outcome, conditional, upstream_flops
from synthboot.steps.sweep import best_trial

_COUNTED = (
    "account",
    "conditioning",
    "untuned",
    "padding_share",
    "best_loss",
    "upstream_flops",
)
"""What the manifest has of how it was tuned."""


def tune(c: Context) -> Outcome:
    """The synthesizer."""
    from synthboot.lm import parallel
    from synthboot.stages.tune import tune as stage

    if c.cfg.tune.sweep:
        return _chosen(c)

    text: Corpus | External = c.external or c.corpus
    start = c.model("base").best if "base" in c.parents else None
    tuned = stage(
        cfg=c.cfg,
        start=c.external.model if c.external else start,
        pairs=c.pairs(),
        corpus=text.pretrain,
        validation=text.validation,
        tokenizer=text.tokenizer,
        folder=c.folder,
        progress=c.progress,
        note=c.note,
        conditional=conditional(c.variant),
    )
    upstream = upstream_flops(c)
    tuning = replace(tuned.record, account=tuned.sentence(), upstream_flops=upstream)
    if parallel.rank() == 0:
        Model.open(c.folder).save_tuning(tuning)
    record = tuning.as_json()
    counts = {name: record[name] for name in _COUNTED}
    return counts, {
        "tokens": tuned.tokens,
        "flops": tuned.flops,
        "measuring_flops": tuned.measuring_flops,
    }


def _chosen(c: Context) -> Outcome:
    """The synthesizer of the sweep's best trial, under this unit's name."""
    from synthboot.lm import parallel

    def loss(trial: Model) -> float:
        # of the model that is kept, averaged with base or not; base's own loss is the same for
        # all, so that the least is the highest net worth
        unseen = trial.tuning.conditioning["unseen"]
        return unseen.given_nothing if unseen.given_d1 is None else unseen.given_d1

    best = best_trial(c, c.cfg.tune.trials(), c.cfg.tune.sweep, loss)
    trial = c.model(f"trial/{best}")
    manifest = trial.manifest
    if parallel.rank() == 0:
        Model.open(c.folder).copy(trial)

    # this unit trained nothing; an arm of `match: flops` pays for the trial through it
    upstream = manifest.counts["upstream_flops"] + manifest.cost["flops"]
    return manifest.counts | {"upstream_flops": upstream}, {}
