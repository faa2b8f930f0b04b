"""extract: a model and the corpus in, what it gives back out; of all models, what that shows."""

from __future__ import annotations

from synthboot.artifacts.extraction import COMPARED, Continued
from synthboot.steps.context import Context, Outcome

_ASKED = "extract/"


def extract(c: Context) -> Outcome:
    """What can be got out of one model, or what all of them show together."""
    from synthboot.lm import model as models
    from synthboot.stages.extract import extract as stage

    if c.variant == COMPARED:
        return _compared(c)
    cfg = c.cfg.extract
    folder = c.model("model").checkpoints[c.cfg.evaluate.checkpoint]
    continued = stage(
        model=models.load(folder, c.device),
        corpus=c.corpus.pretrain,
        test_set=c.corpus.test,
        canaries=c.corpus.canaries,
        tokenizer=c.corpus.tokenizer,
        cfg=cfg,
        seq_len=c.cfg.model.seq_len,
        batch=c.cfg.engine.sample_batch,
        progress=c.progress,
    )
    continued.save(c.folder)
    docs = len(continued.document)
    read = 2 * docs * (cfg.prefix_tokens + cfg.continuation_tokens)  # continued, and scored
    counts = {"docs": docs, "canaries": len(continued.canary_loss)}
    return counts, {"tokens": float(read)}


def _compared(c: Context) -> Outcome:
    """What all models show together."""
    from synthboot.stages.extract import compared

    by_arm: dict[str, list[Continued]] = {}
    for role, folder in c.parents.items():
        if role.startswith(_ASKED):
            arm = role.removeprefix(_ASKED).rpartition("/")[0]
            by_arm.setdefault(arm, []).append(Continued.open(folder))
    extraction = compared(by_arm, c.corpus.canaries, c.cfg.extract, c.cfg.evaluate.confidence)
    extraction.save(c.folder)
    return {"models": sum(map(len, by_arm.values()))}, {}
