"""embed: documents in, a vector for each out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from synthboot import pool
from synthboot.artifacts.corpus import PRETRAIN
from synthboot.artifacts.embeddings import Embeddings, load_vectors, save_vectors
from synthboot.artifacts.store import WORK, Shards, within
from synthboot.data import lock
from synthboot.data.disk import committed_folder, damage
from synthboot.steps.context import Context, Outcome

_FITTED = 0.1  # share of the stage that is the `self` embedder's, before any vector

_Slice = tuple[int, int, int]
"""A shard of documents, and which of them: from, and up to."""


def embed(c: Context) -> Outcome:
    """Vectors of D_pretrain and of the validation set, a shard of documents at a time."""
    from synthboot.stages import embed as stage

    embeddings = Embeddings.open(c.folder)
    sizes = _sizes(c)
    dim = 0
    for name, count in _make(c).items():
        shards = embeddings.shards(name)
        shards.close(count)
        if count:
            of_set = int(shards.counts(0)["dim"])
            dim = max(dim, of_set)

    docs = sum(sizes.values())
    tokens = c.corpus.pretrain.num_tokens
    tokens += c.corpus.validation.num_tokens
    flops = stage.flops(c.cfg.embed, docs, tokens)
    return {"docs": sizes["pool"], "dim": dim}, {"flops": flops}


def embed_part(c: Context) -> int:
    """Shards of both sets, after the embedder that all parts share."""
    own = 0
    for count in _make(c).values():
        own += len(c.part.of(count))
    return own


def _sizes(c: Context) -> dict[str, int]:
    """The documents of each set."""
    return {
        "pool": c.corpus.pretrain_docs,
        "validation": len(c.corpus.validation),
    }


def _make(c: Context) -> dict[str, int]:
    """Make the shards of this part; returns how many of all parts each set has."""
    from synthboot.stages import embed as stage

    cfg = c.cfg.embed
    own = None
    if cfg.model == "file":
        ids = []
        for name in (PRETRAIN, "validation"):
            ids += [document.id for document in c.corpus.texts(name)]
        assert cfg.path is not None  # `Config` sees to that
        own = stage.read_vectors(cfg.path, ids, cfg.unknown_ids)
    embeddings = Embeddings.open(c.folder)
    if cfg.model == "self":
        _fit_embedder(c, embeddings.embedder)

    counts = {}
    first = 0  # vectors from a file hold both sets, one after the other
    sizes = _sizes(c)
    embedding = within(c.progress, _FITTED, 1.0)
    total = sum(sizes.values())
    for name, docs in sizes.items():
        of_set = None if own is None else own[first : first + docs]
        part = within(embedding, first / total, (first + docs) / total)
        counts[name] = _embed_set(replace(c, progress=part), embeddings, name, docs, of_set)
        first += docs
    return counts


def _fit_embedder(c: Context, path: Path) -> None:
    """Fit the `self` embedder, unless an earlier run has: shards of one artifact share it."""
    from synthboot.stages import embed as stage

    # parts that begin together wait for the first of them
    with lock.held(c.folder / WORK, "embedder.lock", lock.FOREVER):
        if not damage(path.parent):  # there, and whole
            return
        fitting = within(c.progress, 0.0, _FITTED)
        fitting(0.0, "fitting")
        texts = (document.text for document in c.corpus.texts(PRETRAIN))
        with committed_folder(path.parent) as folder:
            stage.fit(
                texts,
                c.cfg.embed,
                c.cfg.seed,
                fitting,
            ).save(folder / path.name)


def _embed_set(
    c: Context,
    embeddings: Embeddings,
    name: str,
    docs: int,
    own: np.ndarray | None,
) -> int:
    """Write this part's vectors of the first `docs` documents of a set, which `own` holds where
    they came from a file; returns how many shards there are of all parts."""
    shards = embeddings.shards(name)
    source = c.corpus.shards(name)
    # the vectors lie in shards of the same documents as the texts
    shard_docs = max(1, source.counts(0)["docs"])
    starts = list(range(0, docs, shard_docs))
    c.found(shards, len(starts))

    def writers(missing: list[int]) -> Iterator[partial[dict[str, Any]]]:
        vectors: Iterable[np.ndarray]
        wanted = []
        for shard in missing:
            left = docs - starts[shard]
            wanted.append((shard, 0, min(shard_docs, left)))
        if own is not None:
            vectors = (own[starts[shard] :][:shard_docs] for shard in missing)
        elif c.cfg.embed.model == "self":
            vectors = _embedded(c, source.folder, embeddings.embedder, wanted)
        else:
            vectors = _embedded_by_slices(
                c, name, source.folder, embeddings.embedder, wanted, starts
            )
        for of_shard in vectors:
            yield partial(save_vectors, of_shard)

    for shard, counts in shards.make(c.part.of(len(starts)), writers):
        done = starts[shard] + counts["docs"]
        c.progress(done / docs, f"{name}: {done:,} of {docs:,} documents")
    return len(starts)


def _embedded(
    c: Context,
    source: Path,
    fitted: Path,
    wanted: list[_Slice],
) -> Iterator[np.ndarray]:
    """The vectors of each slice."""
    from synthboot.stages import embed as stage

    arguments = (
        str(source),
        c.cfg.embed,
        str(fitted),
        c.device,
        c.cfg.engine.embed_batch,
    )
    workers = c.workers if c.cfg.embed.model == "self" else c.gpu_workers
    yield from pool.imap(stage.shard_embedder, arguments, wanted, workers)


def _embedded_by_slices(
    c: Context,
    name: str,
    source: Path,
    fitted: Path,
    wanted: list[_Slice],
    starts: list[int],
) -> Iterator[np.ndarray]:
    """The same for a model from outside, which may take hours for a shard: it is asked for slices,
    and each is kept, so that a kill costs one, and told of.

    `starts` are the documents of the set that its shards begin with.
    """
    from synthboot.stages.embed import BATCH_DOCS

    # slices of another size have other places
    work = c.folder / WORK / f"{name}-{BATCH_DOCS}"
    slices = []
    missing = []
    for shard, _, docs in wanted:
        kept = Shards(work / f"{shard:06d}")
        for first in range(0, docs, BATCH_DOCS):
            end = min(docs, first + BATCH_DOCS)
            number = first // BATCH_DOCS
            slices.append((kept, number, starts[shard] + end, end == docs))
            if not kept.done(number):
                missing.append((shard, first, end))
    vectors = _embedded(c, source, fitted, missing)

    total = _sizes(c)[name]
    for kept, number, done, is_last in slices:
        if not kept.done(number):
            kept.write(number, partial(save_vectors, next(vectors)))
        c.progress(done / total, f"{name}: {done:,} of {total:,} documents")
        if is_last:
            paths = map(kept.path, range(number + 1))
            yield load_vectors(paths)
