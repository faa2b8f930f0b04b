"""The steps that look at what was made: analyze, report."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synthboot import config
from synthboot.artifacts.pairs import TRAIN, Pairs
from synthboot.artifacts.store import read_manifest
from synthboot.artifacts.synthetic import Sample, Synthetic
from synthboot.data.disk import read_json, write_json
from synthboot.data.tokens import Tokens
from synthboot.steps import worlds
from synthboot.steps.context import Context, Outcome, conditional, embedded


def analyze(c: Context) -> Outcome:
    """Measures of real and synthetic text side by side, and examples."""
    from synthboot.stages import analyze as stage

    cfg = c.cfg.analyze
    corpus = c.tokens("pretrain")
    tokenizer = c.tokenizer()

    kinds = {}
    for name, tokens in (("unseen real", c.tokens("validation")), ("D_pretrain", corpus)):
        real = _bare(tokens, cfg.docs)
        kinds[name] = stage.analyze(
            real,
            [tokenizer.decode(t) for t in real],
            corpus,
            cfg,
        )

    samples = _samples(c)
    for number, (role, rows) in enumerate(samples.items(), 1):
        c.progress(number / (len(samples) + 2), role)
        kinds[role.removeprefix("synthesize/")] = _analyzed(c, role, rows, corpus)

    of_world = worlds.measured(c, samples) if worlds.is_world(c) else None
    result = {
        "kinds": kinds,
        "relevance": _relevance(c, samples),
        "copy_tokens": cfg.copy_tokens,
        "world": of_world,
    }

    pairs = None
    if "pair/related" in c.parents:
        pairs = Pairs.load(c.parents["pair/related"]).only(TRAIN)
    related = samples.get("synthesize/related", [])
    examples = (
        stage.examples(
            related,
            pairs,
            tokenizer,
            corpus,
            cfg,
        )
        if pairs and related
        else []
    )
    spread = stage.spread(pairs, tokenizer, corpus, cfg) if pairs else []

    write_json(c.folder / "analyze.json", result)
    write_json(c.folder / "examples.json", examples)
    write_json(c.folder / "spread.json", spread)
    return {"kinds": list(kinds), "examples": len(examples)}, {}


def _samples(c: Context) -> dict[str, list[Sample]]:
    """By role of their S_pretrain, the synthetic documents that are analyzed."""
    found = {}
    for role, folder in c.parents.items():
        if role.startswith("synthesize/"):
            found[role] = list(itertools.islice(Synthetic.open(folder), c.cfg.analyze.docs))
    return found


def _analyzed(
    c: Context,
    role: str,
    rows: Sequence[Sample],
    corpus: Tokens,
) -> dict[str, Any]:
    """The measures of one kind of synthetic text, by the tokens that were sampled."""
    from synthboot.stages import analyze as stage

    tokens = [row.tokens for row in rows]
    texts = [row.text for row in rows]
    given = [corpus[row.d1][:-1] for row in rows] if conditional(role) else None
    result = stage.analyze(tokens, texts, corpus, c.cfg.analyze, given)

    # per sampled token: where a document ended by itself, its end was sampled too
    sampled = [len(row.tokens) + (row.finish == "end") for row in rows]
    nats = 0.0
    for row, count in zip(rows, sampled, strict=True):
        nats += row.mean_logprob * count
    result["entropy"] = -nats / max(1, sum(sampled))
    return result


def _bare(tokens: Tokens, count: int) -> list[np.ndarray]:
    """The first `count` documents, which lie in random order already, without their end tokens."""
    chosen = range(len(tokens))[:count]
    return [np.asarray(tokens[doc][:-1], np.int64) for doc in chosen]


def _relevance(
    c: Context,
    samples: Mapping[str, Sequence[Sample]],
) -> dict[str, Any]:
    """Similarity of d1 with real d2, with sampled d2, and of random pairs.

    Sampled text is left out where vectors came from a file: nothing here can embed it.
    """
    from synthboot.lm.model import device
    from synthboot.stages import embed as stage
    from synthboot.stages.analyze import relevance
    from synthboot.stages.pair import random_similarity

    if "embed" not in c.parents:
        return {}
    vectors = embedded(c.parents["embed"], "pool")
    pairs = Pairs.load(c.parents["pair/related"])
    alpha = pairs.report["alpha"]
    by_chance = random_similarity(vectors, c.cfg.seed, 20_000)
    result = {
        "real pairs": relevance(pairs.only(TRAIN).similarity, alpha),
        "random pairs": relevance(by_chance, alpha),
    }
    if c.cfg.embed.model == "file":
        return result

    fitted = c.parents["embed"] / "embedder/embedder.safetensors"
    embedder = stage.embedder(c.cfg.embed, fitted, str(device(c.cfg.engine.device)))
    for role, rows in samples.items():
        if rows and conditional(role):
            given = vectors[[row.d1 for row in rows]].astype(np.float32)
            sampled = embedder([row.text for row in rows])
            similarity = np.einsum("ij,ij->i", given, sampled)  # (doc)
            result[role.removeprefix("synthesize/")] = relevance(similarity, alpha)
    return result


def report(c: Context) -> Outcome:
    """One HTML page from the JSON of all the other stages."""
    from synthboot.report.page import report as stage

    page = stage(gather(c.cfg, c.parents))
    (c.folder / "report.html").write_text(page, "utf-8")
    return {"bytes": len(page.encode())}, {}


def gather(
    cfg: config.Config,
    parents: dict[str, Path],
) -> dict[str, Any]:
    """Everything the report shows, as plain values."""
    result: dict[str, Any] = {
        "name": cfg.name,
        "config": cfg.model_dump(mode="json", exclude={"engine", "root"}),
        "corpus": read_json(parents["corpus"] / "corpus.json"),
        "evaluate": read_json(parents["evaluate"] / "evaluate.json"),
        "pairs": _read_all(parents, "pairs.json"),
        "tune": _read_all(parents, "tune.json"),
        "curves": _read_all(parents, "curve.json", beside="ledger.json"),
        "sweeps": _read_all(parents, "sweep.json", beside="tune.json"),
        "synthesize": {},
        "analyze": None,
        "examples": [],
        "pair_examples": [],
        "costs": [],
    }

    if "analyze" in parents:
        folder = parents["analyze"]
        result["analyze"] = read_json(folder / "analyze.json")
        result["examples"] = read_json(folder / "examples.json")
        result["pair_examples"] = read_json(folder / "spread.json")

    for role, folder in parents.items():
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        result["costs"].append(
            {
                "unit": role,
                "stage": manifest.stage,
                **manifest.cost,
            }
        )
        if manifest.stage == "synthesize":
            result["synthesize"][role] = manifest.counts
    return result


def _read_all(
    parents: Mapping[str, Path],
    name: str,
    beside: str = "",
) -> dict[str, Any]:
    """By role, the JSON in file `name` of every parent that has it, and `beside` beside it."""
    found = {}
    for role, folder in parents.items():
        if (folder / name).exists() and (folder / (beside or name)).exists():
            found[role.removeprefix("model/")] = read_json(folder / name)
    return found
