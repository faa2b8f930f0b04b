"""synthesize: the synthesizer and the corpus in, S_pretrain out."""

from __future__ import annotations

from synthboot.steps.context import Context, Outcome, conditional, upstream_flops


def synthesize(c: Context) -> Outcome:
    """S_pretrain in chunks. The FLOPs count every prompt and sampled token once."""
    from synthboot.lm import model as models
    from synthboot.stages.synthesize import Job
    from synthboot.stages.synthesize import synthesize as stage

    synthesizer = c.model("synthesizer").best
    external = c.external
    is_conditional = conditional(c.variant)
    tuning = c.model("synthesizer").tuning if is_conditional else {}
    job = Job(
        cfg=c.cfg.synthesize,
        synthesizer=synthesizer,
        tokenizer=c.corpus.tokenizer_folder,
        corpus=tuple(external.shards("pretrain") if external else c.corpus.shards("pool")),
        docs=c.corpus.pretrain_docs,
        seq_len=c.cfg.tune_seq_len,
        d1_share=c.cfg.tune.d1_share,
        seed=c.cfg.seed,
        conditional=is_conditional,
        engine=c.cfg.engine,
        contexts=c.cfg.tune.contexts,
        pairs=c.parents.get("pair"),
        external=external is not None,
        pointer=tuning.get("pointer"),
        is_prompted=tuning.get("is_prompted", True),
    )
    counts = stage(
        job,
        c.budget_tokens,
        c.folder,
        c.workers,
        c.progress,
    )
    counts["upstream_flops"] = upstream_flops(c)
    if external is not None:
        counts["external"] = c.cfg.tune.init_from

    sampled = counts["sampled_tokens"]
    read = counts["prompt_tokens"] + sampled
    if c.cfg.synthesize.contrast and job.conditional:
        read += sampled  # each once more, without d1
    tokens_per_row = read / max(1, counts["requests"])
    forward = models.flops_per_token(models.load(synthesizer), round(tokens_per_row))
    return counts, {"tokens": sampled, "flops": forward * read}
