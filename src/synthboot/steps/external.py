"""corpus/external: the user's model and the corpus in, both ready for tuning out."""

from __future__ import annotations

from synthboot.steps.context import Context, Outcome


def external(c: Context) -> Outcome:
    """The external model with room for the separator, and the corpus in its tokens."""
    from synthboot.stages.external import external as stage

    source = c.cfg.tune.init_from
    assert source is not None  # there is no such unit without
    counts = stage(
        source,
        c.cfg.tune_seq_len,
        c.cfg.seed,
        c.corpus,
        c.folder,
        c.progress,
    )
    return counts, {"tokens": sum(counts["tokens"].values())}
