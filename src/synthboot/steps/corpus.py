"""corpus: the user's files in, documents and tokens out."""

from __future__ import annotations

from dataclasses import asdict

from synthboot.artifacts.external import EXTERNAL
from synthboot.steps.context import Context, Outcome
from synthboot.steps.external import external


def corpus(c: Context) -> Outcome:
    """The user's files, cleaned, split and tokenized, or what an external synthesizer reads."""
    from synthboot.stages.corpus import corpus as stage

    if c.variant == EXTERNAL:
        return external(c)

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
