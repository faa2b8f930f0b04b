"""The steps that make something: corpus to pretrain."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from synthboot import config
from synthboot.data.artifacts import WORK, Shards, read_manifest
from synthboot.data.disk import committed_folder, damage, read_json, save_array, write_json
from synthboot.data.pairs import TRAIN, Pairs
from synthboot.data.tokens import Tokens
from synthboot.engine import local
from synthboot.errors import ConfigError
from synthboot.steps.context import Context, Outcome, conditional, embedded, upstream_flops


def corpus(c: Context) -> Outcome:
    """The user's files, cleaned, split and tokenized."""
    from synthboot.stages.corpus import corpus as stage

    expected = {"source": c.outside["files"], "replay": c.outside.get("replay_files", [])}
    result = stage(
        c.cfg.corpus,
        c.cfg.budget.unique_tokens,
        c.folder,
        c.cfg.model.init_from,
        c.progress,
        expected,
    )
    return asdict(result), {"tokens": sum(result.tokens.values())}


def embed(c: Context) -> Outcome:
    """Vectors of D_pretrain and of the validation set, a shard of documents at a time."""
    from synthboot.lm.model import device
    from synthboot.stages import embed as stage
    from synthboot.stages.corpus import read_texts

    cfg, source, sizes = (
        c.cfg.embed,
        c.parents["corpus"],
        {"pool": c.pretrain_docs, "validation": len(c.tokens("validation"))},
    )
    own = (
        stage.read_vectors(cfg.path, [d.id for d in _documents(c)], cfg.unknown_ids)
        if cfg.model == "file"
        else None
    )
    fitted = c.folder / "embedder" / "embedder.safetensors"
    if cfg.model == "self" and damage(fitted.parent):  # or not there yet
        c.progress(0.0, "fitting")
        texts = (d.text for d in read_texts(source, "pool", c.pretrain_docs))
        with committed_folder(fitted.parent) as folder:
            stage.fit(texts, cfg, c.cfg.seed, c.progress).save(folder / fitted.name)
    dim, first = 0, 0
    for name, docs in sizes.items():
        shards, known = Shards(c.folder / name), Shards(source / name)
        starts = list(range(0, docs, max(1, known.counts(0)["docs"])))
        missing = [i for i in range(len(starts)) if not shards.done(i)]
        if own is not None:
            edges = [first + e for e in [*starts, docs]]
            found: Iterator[np.ndarray] = (own[edges[i] : edges[i + 1]] for i in missing)
        else:
            given = (
                str(source / name),
                cfg,
                str(fitted),
                str(device(c.cfg.engine.device)),
                c.cfg.engine.embed_batch,
            )
            found = local.imap(
                stage.shard_embedder, given, [(i, docs - starts[i]) for i in missing], c.workers
            )
        for i, vectors in zip(missing, found, strict=True):
            dim = shards.write(i, partial(_save_vectors, vectors))["dim"]
            c.progress(
                (i + 1) / len(starts), f"{name}: {starts[i] + len(vectors):,} of {docs:,} documents"
            )
        shards.close(len(starts))
        first, dim = first + docs, dim or shards.counts(0)["dim"]
    tokens = c.tokens("pretrain").num_tokens + c.tokens("validation").num_tokens
    return {"docs": sizes["pool"], "dim": dim}, {
        "flops": stage.flops(cfg, sum(sizes.values()), tokens)
    }


def pair(c: Context) -> Outcome:
    """Related pairs, or the random pairs of the control."""
    from synthboot.engine import search
    from synthboot.lm.model import device
    from synthboot.stages.pair import pair as stage
    from synthboot.stages.pair import random_pairs

    if c.variant == "random_pairs":
        pairs = random_pairs(Pairs.load(c.parents["pair"]), c.pretrain_docs, c.cfg.seed)
        pairs.save(c.folder)
    else:
        vectors, tokens, fields = (
            embedded(c.parents["embed"], "pool"),
            c.tokens("pretrain"),
            _fields(c),
        )
        validation = (embedded(c.parents["embed"], "validation"), c.tokens("validation"))
        work, on = c.folder / WORK / "neighbors", str(device(c.cfg.engine.device))
        found = search.nearest(
            vectors, c.cfg.pair, c.cfg.seed, validation[0], on, work, c.workers, c.progress
        )
        stage(vectors, tokens, c.cfg.pair, c.cfg.seed, validation, found, fields, c.progress).save(
            c.folder
        )
    pairs = Pairs.load(c.folder)
    report = {k: v for k, v in pairs.report.items() if k not in ("bins", "histograms")}
    embed = read_manifest(c.parents["embed"]) if "embed" in c.parents else None
    flops = search.flops(pairs.report, c.pretrain_docs, embed.counts["dim"]) if embed else 0.0
    counts = {
        **report,
        "kept": len(pairs),
        "train": len(pairs.only(TRAIN)),
        "upstream_flops": upstream_flops(c),
    }
    return counts, {"flops": flops}


def base(c: Context) -> Outcome:
    """The LM on real text, which is also the repetition arm of its seed."""
    from synthboot.stages.base import base as stage

    recipe, ready = _recipe(c)
    if ready is not None:
        return _copied(c, ready)
    text, validation = _sources(c, recipe), c.tokens("validation")
    return _trained(
        c, stage(c.cfg, c.seed, text, validation, c.tokenizer(), c.folder, c.progress, recipe)
    )


def tune(c: Context) -> Outcome:
    """The synthesizer."""
    from synthboot.lm import parallel
    from synthboot.stages.tune import tune as stage

    if c.cfg.tune.sweep:
        ready = c.parents[f"trial/{_least(c, c.cfg.tune.trials(), c.cfg.tune.sweep)}"]
        made = read_manifest(ready)
        assert made is not None  # it was verified before this step began
        _copy(c, ready, "best", "last", "curve.json", "tune.json")
        return made.counts | {
            "upstream_flops": made.counts["upstream_flops"] + made.cost["flops"]
        }, {}
    start = c.parents["base"] / "best" if "base" in c.parents else None
    tuned = stage(
        c.cfg, start, Pairs.load(c.parents["pair"]), c.tokens("pretrain"), c.tokens("validation"),
        c.tokenizer(), c.folder, c.progress,
    )  # fmt: skip
    counts = {
        "conditioning": tuned.conditioning,
        "padding_share": tuned.padding_share,
        "best_loss": tuned.curve.best_loss,
    }
    counts["upstream_flops"] = upstream_flops(c)
    if parallel.rank() == 0:
        write_json(
            c.folder / "tune.json",
            {**counts, "curve": asdict(tuned.curve), "stopped_by": tuned.stopped_by},
        )
    return counts, {"tokens": tuned.tokens, "flops": tuned.flops}


def synthesize(c: Context) -> Outcome:
    """S_pretrain in chunks. The FLOPs count every prompt and sampled token once."""
    from synthboot.lm import model as models
    from synthboot.stages.synthesize import Job
    from synthboot.stages.synthesize import synthesize as stage

    corpus_folder, synthesizer = c.parents["corpus"], c.parents["synthesizer"] / "best"
    job = Job(
        c.cfg.synthesize, synthesizer, corpus_folder / "tokenizer", tuple(Shards(corpus_folder / "pool")),
        c.pretrain_docs, c.cfg.model.seq_len, c.cfg.tune.d1_share, c.cfg.seed,
        conditional(c.variant), c.cfg.engine,
    )  # fmt: skip
    counts = stage(job, c.budget_tokens, c.folder, c.workers, c.progress)
    prompts = counts["prompt_tokens"]
    row = (prompts + counts["sampled_tokens"]) / max(1, counts["requests"])
    forward = models.flops_per_token(models.load(synthesizer), round(row))
    counts["upstream_flops"] = upstream_flops(c)
    return counts, {
        "tokens": counts["sampled_tokens"],
        "flops": forward * (counts["sampled_tokens"] + prompts),
    }


def pretrain(c: Context) -> Outcome:
    """One arm and seed."""
    from synthboot.stages.pretrain import pretrain as stage

    recipe, ready = _recipe(c)
    if ready is not None:
        return _copied(c, ready)
    text = _sources(c, recipe)
    return _trained(
        c,
        stage(
            c.cfg, recipe, c.seed, text, c.tokens("validation"), c.tokenizer(), c.folder, c.progress
        ),
    )


def _recipe(c: Context) -> tuple[config.Arm, Path | None]:
    """The recipe of this model and, where a sweep has trained it already, where it lies: of the trials, that of the least
    validation loss."""
    assert c.recipe is not None  # a unit of these stages has one
    if not c.recipe.sweep:
        return c.recipe, None
    trials = c.recipe.trials()
    best = _least(c, trials, c.recipe.sweep)
    return trials[best], c.parents[f"trial/{best}"] if c.ready else None


def _least(c: Context, trials: Mapping[str, Any], swept: Iterable[str]) -> str:
    """The trial of the least validation loss; what all of them reached goes to `sweep.json`."""
    losses = {
        trial: read_json(c.parents[f"trial/{trial}"] / "curve.json")["best_loss"]
        for trial in trials
    }
    settings = {trial: {key: getattr(trials[trial], key) for key in swept} for trial in trials}
    best = min(losses, key=lambda trial: losses[trial])
    c.folder.mkdir(parents=True, exist_ok=True)
    write_json(c.folder / "sweep.json", {"losses": losses, "settings": settings, "chosen": best})
    return best


def _copy(c: Context, ready: Path, *names: str) -> None:
    for name in names:
        if (ready / name).is_dir():
            shutil.copytree(ready / name, c.folder / name, dirs_exist_ok=True)
        elif (ready / name).exists():
            shutil.copy2(ready / name, c.folder / name)


def _copied(c: Context, ready: Path) -> Outcome:
    """A model that is there already, under this unit's name."""
    _copy(c, ready, "best", "last", "curve.json", "ledger.json")
    curve, ledger = read_json(c.folder / "curve.json"), read_json(c.folder / "ledger.json")
    return {"best_loss": curve["best_loss"], "last_loss": curve["validation"][-1][1], **ledger}, {}


def _sources(c: Context, arm: config.Arm) -> Any:
    """The text of an arm, and what its synthetic part cost."""
    from synthboot.lm.arm import Sources
    from synthboot.stages.pretrain import real_docs

    pool = c.tokens("pool")
    real = pool.head(real_docs(arm, c.arm, pool, c.pretrain_docs))
    replay = c.tokens("replay") if c.cfg.budget.replay_share else None
    if arm.layout == "packed_pairs":
        pairs = Pairs.load(c.parents["pair"]).only(TRAIN)
        return Sources(real, pairs=(pairs.d1, pairs.d2), replay=replay)
    if "synthesize" not in c.parents:
        return Sources(real, replay=replay)
    chunks = list(Shards(c.parents["synthesize"] / "chunks"))
    synthetic = Tokens.open(chunks)
    made = read_manifest(c.parents["synthesize"])
    assert made is not None  # it was verified before this step began
    each = (
        made.cost["flops"] / synthetic.num_tokens
    )  # what was dropped is paid for, what is not read is not
    paid = {"upstream_flops": made.counts["upstream_flops"], "sample_flops": each}
    return Sources(real, synthetic, _owners(chunks), replay=replay, **paid)


def _owners(chunks: list[Path]) -> np.ndarray:
    """The d1 of every synthetic document."""
    import pyarrow.parquet as pq

    found = [np.empty(0, np.int64)]
    for chunk in chunks:
        table = pq.read_table(chunk / "synthetic.parquet", columns=["d1", "verdict"])
        found.append(
            table["d1"].to_numpy()[table["verdict"].to_numpy(zero_copy_only=False) == "kept"]
        )
    return np.concatenate(found)


def _trained(c: Context, trained: Any) -> Outcome:
    from synthboot.lm import parallel

    if parallel.rank() == 0:
        write_json(c.folder / "ledger.json", trained.ledger)
    counts = {
        "best_loss": trained.curve.best_loss,
        "last_loss": trained.curve.last_loss,
        **trained.ledger,
    }
    return counts, {"tokens": trained.ledger["train_tokens"], "flops": trained.flops}


def _documents(c: Context) -> Iterator[Any]:
    from synthboot.stages.corpus import read_texts

    pretrain = read_texts(c.parents["corpus"], "pool", c.pretrain_docs)
    return itertools.chain(pretrain, read_texts(c.parents["corpus"], "validation"))


def _save_vectors(vectors: np.ndarray, folder: Path) -> dict[str, Any]:
    save_array(folder / "vectors.npy", vectors)
    return {"docs": len(vectors), "dim": vectors.shape[1]}


def _fields(c: Context) -> Any:
    """The fields of the corpus that pairing asks for, as numbers. Raises ConfigError where no document has one."""
    from synthboot.stages.corpus import read_texts
    from synthboot.stages.pair import Fields

    cfg, wanted = c.cfg.pair, {}
    for role, name in (("source", cfg.source_field), ("label", cfg.label_field)):
        if name is None:
            continue
        numbers: dict[str, int] = {}
        values = [
            d.metadata.get(name) for d in read_texts(c.parents["corpus"], "pool", c.pretrain_docs)
        ]
        if all(v is None for v in values):
            raise ConfigError(f"pair.{role}_field: no document of the corpus has a field {name!r}")
        codes = [
            -1 if v is None else numbers.setdefault(json.dumps(v, sort_keys=True), len(numbers))
            for v in values
        ]
        wanted[role] = np.array(codes, np.int64)
    return Fields(**wanted)
