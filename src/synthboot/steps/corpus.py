"""corpus: the user's files in, documents and tokens out."""

from __future__ import annotations

from dataclasses import asdict

from synthboot.artifacts import spool
from synthboot.artifacts.external import EXTERNAL
from synthboot.steps.context import Context, Outcome
from synthboot.steps.external import external


def corpus(c: Context) -> Outcome:
    """The user's files, cleaned, split and tokenized, or what an external synthesizer reads."""
    from synthboot.stages.corpus import corpus as stage

    if c.variant == EXTERNAL:
        return external(c)

    result = stage(
        cfg=c.cfg.corpus,
        unique_tokens=c.cfg.budget.unique_tokens,
        folder=c.folder,
        tokenizer_name=c.cfg.model.init_from,
        progress=c.progress,
        expected=_expected(c),
        workers=c.workers,
    )
    return asdict(result), {"tokens": sum(result.tokens.values())}


def corpus_part(c: Context) -> int:
    """Shards of the spooled text; what compares documents with all others comes after them."""
    shards, count = spool.ingest_part(c.cfg.corpus, c.folder, c.progress, _expected(c), c.part)
    c.found(shards, count)
    return len(c.part.of(count))


def _expected(c: Context) -> dict[str, list[str]]:
    """The identities of the files that the artifact is recorded under."""
    return {
        "source": c.outside["files"],
        "replay": c.outside.get("replay_files", []),
    }
