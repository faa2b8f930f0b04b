"""corpus: the user's files in, documents and tokens out."""

from __future__ import annotations

from dataclasses import asdict

from synthboot.steps.context import Context, Outcome


def corpus(c: Context) -> Outcome:
    """The user's files, cleaned, split and tokenized."""
    from synthboot.stages.corpus import corpus as stage

    expected = {
        "source": c.outside["files"],
        "replay": c.outside.get("replay_files", []),
    }
    result = stage(
        c.cfg.corpus,
        c.cfg.budget.unique_tokens,
        c.folder,
        c.cfg.model.init_from,
        c.progress,
        expected,
    )
    return asdict(result), {"tokens": sum(result.tokens.values())}
