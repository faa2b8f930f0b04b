"""pair: vectors in, pairs of related documents out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from synthboot.artifacts.corpus import PRETRAIN
from synthboot.artifacts.pairs import NOTHING_TO_STOP_BY, TRAIN, VALIDATION, Ceiling, Pairs
from synthboot.artifacts.store import WORK, Shards, plain, read_manifest
from synthboot.errors import ConfigError
from synthboot.steps.context import Context, Outcome, upstream_flops

if TYPE_CHECKING:
    from synthboot.stages.pair import Fields

_NEIGHBORS = f"{WORK}/neighbors"


def pair(c: Context) -> Outcome:
    """Related pairs with what d1 could tell there, or the random pairs of the control."""
    from synthboot.neighbors import search
    from synthboot.stages.pair import random_pairs

    account = ""
    if c.variant == "random_pairs":
        pairs = random_pairs(c.pairs(), c.corpus.pretrain_docs, c.cfg.seed)
    else:
        pairs = _related(c)
        measured, account = _ceiling(c, pairs)
        pairs = replace(pairs, chosen=replace(pairs.chosen, ceiling=measured))
        by_chance = pairs.chosen.chance_share
        tuned_on = pairs.only(TRAIN)
        account = (
            f"{len(tuned_on):,} pairs to tune on, of {len(np.unique(tuned_on.d2)):,} documents; "
            f"chance would give {by_chance:.0%} of the pairs; {account}"
        )
        if not len(pairs.only(VALIDATION)):
            account = f"{account}; {NOTHING_TO_STOP_BY}"
    pairs.save(c.folder)

    flops = 0.0
    embed = read_manifest(c.parents["embed"]) if "embed" in c.parents else None
    if embed is not None:
        flops = search.flops(pairs.chosen.search, c.corpus.pretrain_docs, embed.counts["dim"])

    counts: dict[str, Any] = plain(pairs.chosen)
    if counts["pairs"]:
        # these are for the page, which finds them beside the pairs
        del counts["pairs"]["bins"], counts["pairs"]["histograms"]
    counts["kept"] = len(pairs)
    counts["train"] = len(pairs.only(TRAIN))
    counts["upstream_flops"] = upstream_flops(c)
    counts["account"] = account
    return counts, {"flops": flops}


def _ceiling(c: Context, pairs: Pairs) -> tuple[Ceiling | None, str]:
    """What d1 could tell, or None, and the same in words."""
    from synthboot.stages.ceiling import LEAST_DOCS, ceiling

    c.progress(0.95, "measuring what d1 could tell")
    tokenizer = c.corpus.tokenizer
    measured = ceiling(
        pairs,
        c.corpus.pretrain,
        c.corpus.validation,
        tokenizer.vocab_size,
        tokenizer.end,
        c.cfg.seed,
    )
    if measured is None:
        return None, (
            f"what d1 could tell is not known: fewer than {LEAST_DOCS} held-out documents have a "
            f"related one; add documents, or raise pair.heldout_share or corpus.validation_docs; "
            f"where chance would give few of the pairs, lower pair.min_similarity"
        )
    return measured, measured.sentence()


def pair_part(c: Context) -> int:
    """Query blocks of the neighbour search, after the clusters that all parts share."""
    from synthboot.neighbors import search

    vectors = _vectors(c)
    folder = c.folder / _NEIGHBORS
    count = search.blocks(len(vectors))
    c.found(Shards(folder / search.BLOCKS), count)
    own = c.part.of(count)
    search.search_blocks(
        vectors=vectors,
        cfg=c.cfg.pair,
        seed=c.cfg.seed,
        device=c.device,
        folder=folder,
        workers=c.gpu_workers,
        progress=c.progress,
        wanted=own,
    )
    return len(own)


def _related(c: Context) -> Pairs:
    from synthboot.neighbors import search
    from synthboot.stages.pair import pair as stage

    fields = _fields(c)
    vectors = _vectors(c)
    assert c.embeddings is not None  # `pair/related` reads them
    validation = c.embeddings.validation
    neighbors = search.nearest(
        vectors=vectors,
        cfg=c.cfg.pair,
        seed=c.cfg.seed,
        validation=validation,
        device=c.device,
        folder=c.folder / _NEIGHBORS,
        workers=c.gpu_workers,
        progress=c.progress,
    )
    return stage(
        vectors=vectors,
        tokens=c.corpus.pretrain,
        cfg=c.cfg.pair,
        seed=c.cfg.seed,
        validation=(validation, c.corpus.validation),
        neighbors=neighbors,
        fields=fields,
        progress=c.progress,
        threads=c.threads,
    )


def _vectors(c: Context) -> np.ndarray:
    """The vectors of D_pretrain, on disk: those of millions of documents are gigabytes."""
    assert c.embeddings is not None  # `pair/related` reads them
    return c.embeddings.mapped(c.folder / WORK / "vectors.npy")


def _fields(c: Context) -> Fields:
    """The fields of the corpus that pairing asks for, as numbers.

    Raises ConfigError where no document has one.
    """
    from synthboot.stages.pair import Fields

    wanted = {
        "source": c.cfg.pair.source_field,
        "label": c.cfg.pair.label_field,
    }
    codes = {}
    for role, name in wanted.items():
        if name is None:
            continue
        values = [document.metadata.get(name) for document in c.corpus.texts(PRETRAIN)]
        if all(value is None for value in values):
            raise ConfigError(f"pair.{role}_field: no document of the corpus has a field {name!r}")
        # by one numbering, so that a source is the same in both
        others = [document.metadata.get(name) for document in c.corpus.texts("validation")]
        numbers = _codes([*values, *others])
        codes[role] = numbers[: len(values)]
        if role == "source":
            codes["validation_source"] = numbers[len(values) :]
    return Fields(**codes, canary=c.corpus.is_canary)


def _codes(values: Sequence[Any]) -> np.ndarray:
    """A number for each different value, in the order in which they come; -1 for None."""
    numbers: dict[str, int] = {}
    codes = []
    for value in values:
        if value is None:
            codes.append(-1)
        else:
            # as JSON, since a value may be a list or an object
            codes.append(numbers.setdefault(json.dumps(value, sort_keys=True), len(numbers)))
    return np.array(codes, np.int64)
