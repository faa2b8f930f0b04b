"""From artifacts to values to artifacts: for every stage, what it reads, how it is called, and what it leaves.

A step gets a Context, calls the stage's one function and returns (counts, cost). It runs in a process of its own; steps
know folders, stages do not know each other.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from synthboot import config
from synthboot.data import tokenizer as tokenizers
from synthboot.data.artifacts import Progress, Shards, read_json, read_manifest, write_json
from synthboot.data.pairs import TRAIN, Pairs
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.engine import local


@dataclass(frozen=True)
class Context:
    """What a step works with: its folder, its parents' folders by role, and where in the recipe it stands."""

    cfg: config.Config
    folder: Path
    parents: dict[str, Path]
    workers: int
    progress: Progress
    arm: str = ""
    seed: int = 0
    variant: str = ""
    budget_tokens: int = 0

    def tokenizer(self) -> Tokenizer:
        """The corpus' tokenizer."""
        return tokenizers.load(self.parents["corpus"] / "tokenizer")

    def tokens(self, name: str) -> Tokens:
        """The tokens of a set: `pool`, `validation`, `holdout`, or `pretrain` (D_pretrain, the head of the pool)."""
        if name == "pretrain":
            return self.tokens("pool").head(self.pretrain_docs)
        return Tokens.open(Shards(self.parents["corpus"] / name))

    @property
    def pretrain_docs(self) -> int:
        """Documents in D_pretrain."""
        return int(read_json(self.parents["corpus"] / "corpus.json")["pretrain_docs"])


Outcome = tuple[dict[str, Any], dict[str, float]]
Step = Callable[[Context], Outcome]


def corpus(c: Context) -> Outcome:
    """The user's files, cleaned, split and tokenized."""
    from synthboot.stages.corpus import corpus as stage

    result = stage(c.cfg.corpus, c.cfg.budget.unique_tokens, c.folder, c.cfg.model.init_from, c.progress)
    return asdict(result), {"tokens": sum(result.tokens.values())}


def embed(c: Context) -> Outcome:
    """Vectors of D_pretrain and of the validation set, a shard of documents at a time."""
    from synthboot.lm.model import device
    from synthboot.stages import embed as stage
    from synthboot.stages.corpus import read_texts

    cfg, source, sizes = c.cfg.embed, c.parents["corpus"], {"pool": c.pretrain_docs, "validation": len(c.tokens("validation"))}
    own = stage.read_vectors(cfg.path, [d.id for d in _documents(c)], cfg.unknown_ids) if cfg.model == "file" else None
    fitted = c.folder / "embedder.safetensors"
    if cfg.model == "self" and not fitted.exists():
        c.progress(0.0, "fitting")
        stage.fit((d.text for d in read_texts(source, "pool", c.pretrain_docs)), cfg, c.cfg.seed, c.progress).save(fitted)
    dim, first = 0, 0
    for name, docs in sizes.items():
        shards, known = Shards(c.folder / name), Shards(source / name)
        starts = list(range(0, docs, max(1, known.counts(0)["docs"])))
        missing = [i for i in range(len(starts)) if not shards.done(i)]
        if own is not None:
            edges = [first + e for e in [*starts, docs]]
            found: Iterator[np.ndarray] = (own[edges[i] : edges[i + 1]] for i in missing)
        else:
            given = (str(source / name), cfg, str(fitted), str(device(c.cfg.engine.device)))
            found = local.imap(stage.shard_embedder, given, [(i, docs - starts[i]) for i in missing], c.workers)
        for i, vectors in zip(missing, found, strict=True):
            dim = shards.write(i, partial(_save_vectors, vectors))["dim"]
            c.progress((i + 1) / len(starts), f"{name}: {starts[i] + len(vectors):,} of {docs:,} documents")
        first, dim = first + docs, dim or shards.counts(0)["dim"]
    return {"docs": sizes["pool"], "dim": dim}, {}


def pair(c: Context) -> Outcome:
    """Related pairs, or the random pairs of the control."""
    from synthboot.engine import search
    from synthboot.lm.model import device
    from synthboot.stages.pair import pair as stage
    from synthboot.stages.pair import random_pairs

    if c.variant == "random_pairs":
        pairs = random_pairs(Pairs.load(c.parents["pair"]), c.pretrain_docs, c.cfg.seed)
        pairs.save(c.folder)
    elif not (c.folder / "pairs.json").exists():
        vectors, tokens, fields = embedded(c.parents["embed"], "pool"), c.tokens("pretrain"), _fields(c)
        validation = (embedded(c.parents["embed"], "validation"), c.tokens("validation"))
        work, on = c.folder / "neighbors", str(device(c.cfg.engine.device))
        found = search.nearest(vectors, c.cfg.pair, c.cfg.seed, validation[0], on, work, c.workers, c.progress)
        stage(vectors, tokens, c.cfg.pair, c.cfg.seed, validation, found, fields, c.progress).save(c.folder)
    shutil.rmtree(c.folder / "neighbors", ignore_errors=True)
    pairs = Pairs.load(c.folder)
    report = {k: v for k, v in pairs.report.items() if k not in ("bins", "histograms")}
    return {**report, "kept": len(pairs), "train": len(pairs.only(TRAIN))}, {}


def base(c: Context) -> Outcome:
    """The LM on real text, which is also the repetition arm of its seed."""
    from synthboot.stages.base import base as stage

    trained = stage(c.cfg, c.seed, c.tokens("pretrain"), c.tokens("validation"), c.tokenizer(), c.folder, c.progress)
    return _trained(c, trained)


def tune(c: Context) -> Outcome:
    """The synthesizer."""
    from synthboot.lm import parallel
    from synthboot.stages.tune import tune as stage

    tuned = stage(
        c.cfg, c.parents["base"] / "best", Pairs.load(c.parents["pair"]), c.tokens("pretrain"), c.tokens("validation"),
        c.tokenizer(), c.folder, c.progress,
    )  # fmt: skip
    counts = {"proof": tuned.proof, "padding_share": tuned.padding_share, "best_loss": tuned.curve.best_loss}
    if parallel.rank() == 0:
        write_json(c.folder / "tune.json", {**counts, "curve": asdict(tuned.curve)})
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
        c.variant != "unconditional", c.cfg.engine.device,
    )  # fmt: skip
    counts = stage(job, c.budget_tokens, c.folder, c.workers, c.progress)
    forward = models.flops_per_token(models.load(synthesizer), c.cfg.model.seq_len)
    prompts = counts["requests"] * c.cfg.model.seq_len / 2 if job.conditional else 0
    return counts, {"tokens": counts["sampled_tokens"], "flops": forward * (counts["sampled_tokens"] + prompts)}


def pretrain(c: Context) -> Outcome:
    """One arm and seed."""
    from synthboot.stages.pretrain import pretrain as stage
    from synthboot.stages.pretrain import real_docs

    arm, pool = c.cfg.arms[c.arm], c.tokens("pool")
    real = pool.head(real_docs(arm, c.arm, pool, c.pretrain_docs))
    synthetic = Tokens.open(Shards(c.parents["synthesize"] / "chunks")) if "synthesize" in c.parents else None
    trained = stage(
        c.cfg, arm, c.seed, real, synthetic, c.tokens("validation"), c.tokenizer(), c.folder, c.progress
    )  # fmt: skip
    return _trained(c, trained)


def evaluate(c: Context) -> Outcome:
    """Holdout losses of both checkpoints of every model, and what they show."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from synthboot.stages.corpus import read_texts
    from synthboot.stages.evaluate import Job, evaluate, scorer
    from synthboot.stages.pretrain import compare_ledgers

    trained = {role: path for role, path in c.parents.items() if "/" in role}
    ledgers: dict[str, dict[int, Any]] = {}
    for role, path in trained.items():
        arm, _, seed = role.rpartition("/")
        ledgers.setdefault(arm, {})[int(seed)] = read_json(path / "ledger.json")
    compare_ledgers(ledgers)
    corpus_folder = c.parents["corpus"]
    job = Job(corpus_folder / "tokenizer", tuple(Shards(corpus_folder / "holdout")), c.cfg.model.seq_len, c.cfg.engine.device)
    models = [
        (role, kind) for role, path in trained.items() for kind in (("last",) if _best_is_last(path) else ("best", "last"))
    ]
    rows: list[dict[str, Any]] = []
    scores: dict[tuple[str, str], list[np.ndarray]] = {}
    folders = [trained[role] / kind for role, kind in models]
    found = local.imap(scorer, (job,), folders, min(c.workers, len(models)))
    for number, ((role, kind), losses) in enumerate(zip(models, found, strict=True), 1):
        arm, _, seed = role.rpartition("/")
        for shown in ("best", "last") if (role, "best") not in models else (kind,):
            scores.setdefault((shown, arm), []).append(losses)
            found_here = enumerate(losses.tolist())
            rows += [{"arm": arm, "seed": int(seed), "checkpoint": shown, "doc": d, "loss": loss} for d, loss in found_here]
        c.progress(number / len(models), f"{arm} seed {seed}, {kind}")
    tokens = c.tokens("holdout").lengths
    size = np.array([len(d.text.encode()) for d in read_texts(corpus_folder, "holdout")])
    result: dict[str, Any] = {}
    for kind in ("best", "last"):
        stacked = {arm: np.stack(scores[kind, arm]) for arm in ledgers}
        result[kind] = evaluate(stacked, tokens, size, c.cfg.evaluate, c.cfg.seed)
    result["checkpoint"] = c.cfg.evaluate.checkpoint
    result["ledgers"] = ledgers
    result["verdict"] = result[c.cfg.evaluate.checkpoint]["verdict"]
    pq.write_table(pa.Table.from_pylist(rows), c.folder / "losses.parquet", compression="zstd")
    write_json(c.folder / "evaluate.json", result)
    return {"models": len(trained), "docs": len(tokens)}, {"tokens": len(models) * int(tokens.sum())}


def analyze(c: Context) -> Outcome:
    """Measures of real and synthetic text side by side, and examples."""
    from synthboot.stages import analyze as stage

    cfg, corpus, tokenizer = c.cfg.analyze, c.tokens("pretrain"), c.tokenizer()
    validation = _bare(c.tokens("validation"), range(len(c.tokens("validation"))), cfg.docs)
    chosen = _bare(corpus, range(len(corpus)), cfg.docs)
    kinds = {
        "unseen real": stage.analyze(validation, [tokenizer.decode(t) for t in validation], corpus, cfg),
        "D_pretrain": stage.analyze(chosen, [tokenizer.decode(t) for t in chosen], corpus, cfg),
    }
    samples = {role: _sampled(c, path) for role, path in c.parents.items() if role.startswith("synthesize")}
    for number, (role, rows) in enumerate(samples.items()):
        c.progress((number + 1) / (len(samples) + 2), role)
        ids = [np.array(tokenizer.encode([r["text"]])[0], np.int64) for r in rows]
        given = None if role.endswith("unconditional") else [corpus[r["d1"]][:-1] for r in rows]
        kinds[role.removeprefix("synthesize/")] = stage.analyze(ids, [r["text"] for r in rows], corpus, cfg, given)
    result = {"kinds": kinds, "relevance": _relevance(c, samples), "copy_tokens": cfg.copy_tokens}
    pairs = Pairs.load(c.parents["pair/related"]).only(TRAIN) if "pair/related" in c.parents else None
    related = samples.get("synthesize/related", [])
    examples = stage.examples(related, pairs, tokenizer, corpus, cfg) if pairs and related else []
    write_json(c.folder / "analyze.json", result)
    write_json(c.folder / "examples.json", examples)
    write_json(c.folder / "spread.json", stage.spread(pairs, tokenizer, corpus, cfg) if pairs else [])
    return {"kinds": list(kinds), "examples": len(examples)}, {}


def _bare(tokens: Tokens, docs: range, count: int) -> list[np.ndarray]:
    """The first `count` documents without their end tokens; documents lie in random order already."""
    return [np.asarray(tokens[i][:-1], np.int64) for i in docs[:count]]


def _sampled(c: Context, folder: Path) -> list[dict[str, Any]]:
    """The first kept outputs of an S_pretrain."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for shard in Shards(folder / "chunks"):
        rows += [r for r in pq.read_table(shard / "synthetic.parquet").to_pylist() if r["verdict"] == "kept"]
        if len(rows) >= c.cfg.analyze.docs:
            break
    return rows[: c.cfg.analyze.docs]


def _relevance(c: Context, samples: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Similarity of d1 with real d2, with sampled d2, and of random pairs; nothing for vectors from a file."""
    from synthboot.lm.model import device
    from synthboot.stages import embed as stage
    from synthboot.stages.analyze import relevance
    from synthboot.stages.pair import random_similarity

    if "embed" not in c.parents:
        return {}
    vectors, pairs = embedded(c.parents["embed"], "pool"), Pairs.load(c.parents["pair/related"])
    alpha = pairs.report["alpha"]
    result = {
        "real pairs": relevance(pairs.only(TRAIN).similarity, alpha),
        "random pairs": relevance(random_similarity(vectors, c.cfg.seed, 20_000), alpha),
    }
    if c.cfg.embed.model != "file":
        embedder = stage.embedder(c.cfg.embed, c.parents["embed"] / "embedder.safetensors", str(device(c.cfg.engine.device)))
        for role, rows in samples.items():
            if rows and not role.endswith("unconditional"):
                given = vectors[[r["d1"] for r in rows]].astype(np.float32)
                similarity = np.einsum("ij,ij->i", given, embedder([r["text"] for r in rows]))
                result[role.removeprefix("synthesize/")] = relevance(similarity, alpha)
    return result


def report(c: Context) -> Outcome:
    """One HTML page from the JSON of all the other stages."""
    from synthboot.stages.report import report as stage

    page = stage(gather(c.cfg, c.parents))
    (c.folder / "report.html").write_text(page, "utf-8")
    return {"bytes": len(page.encode())}, {}


def gather(cfg: config.Config, parents: dict[str, Path]) -> dict[str, Any]:
    """Everything the report shows, as plain values."""
    manifests = {role: read_manifest(path) for role, path in parents.items()}
    curves = {role: read_json(p / "curve.json") for role, p in parents.items() if (p / "ledger.json").exists()}
    tuned = {role: read_json(p / "tune.json") for role, p in parents.items() if (p / "tune.json").exists()}
    return {
        "name": cfg.name,
        "config": cfg.model_dump(mode="json", exclude={"engine", "root"}),
        "corpus": read_json(parents["corpus"] / "corpus.json"),
        "pairs": {role: read_json(p / "pairs.json") for role, p in parents.items() if (p / "pairs.json").exists()},
        "tune": tuned,
        "curves": curves,
        "synthesize": {role: m.counts for role, m in manifests.items() if m and m.stage == "synthesize"},
        "evaluate": read_json(parents["evaluate"] / "evaluate.json"),
        "analyze": read_json(parents["analyze"] / "analyze.json") if "analyze" in parents else None,
        "examples": read_json(parents["analyze"] / "examples.json") if "analyze" in parents else [],
        "pair_examples": read_json(parents["analyze"] / "spread.json") if "analyze" in parents else [],
        "costs": [{"unit": role, "stage": m.stage, **m.cost} for role, m in manifests.items() if m],
    }


def _best_is_last(folder: Path) -> bool:
    """Whether both checkpoints of a model are the same, so that one is scored for both."""
    manifest = read_manifest(folder)
    files = manifest.files if manifest else {}
    weights = [{n.partition("/")[2]: f["hash"] for n, f in files.items() if n.startswith(f"{k}/")} for k in ("best", "last")]
    return weights[0] == weights[1]


def _trained(c: Context, trained: Any) -> Outcome:
    from synthboot.lm import parallel

    if parallel.rank() == 0:
        write_json(c.folder / "ledger.json", trained.ledger)
    counts = {"best_loss": trained.curve.best_loss, "last_loss": trained.curve.last_loss, **trained.ledger}
    return counts, {"tokens": trained.ledger["train_tokens"], "flops": trained.flops}


def _documents(c: Context) -> Iterator[Any]:
    from synthboot.stages.corpus import read_texts

    pretrain = read_texts(c.parents["corpus"], "pool", c.pretrain_docs)
    return itertools.chain(pretrain, read_texts(c.parents["corpus"], "validation"))


def embedded(folder: Path, name: str) -> np.ndarray:
    """The float16 vectors of `pool` (the documents of D_pretrain) or `validation` in an embed artifact."""
    return np.concatenate([np.load(shard / "vectors.npy", allow_pickle=False) for shard in Shards(folder / name)])


def _save_vectors(vectors: np.ndarray, folder: Path) -> dict[str, Any]:
    np.save(folder / "vectors.npy", vectors, allow_pickle=False)
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
        values = [d.metadata.get(name) for d in read_texts(c.parents["corpus"], "pool", c.pretrain_docs)]
        if all(v is None for v in values):
            raise config.ConfigError(f"pair.{role}_field: no document of the corpus has a field {name!r}")
        codes = [-1 if v is None else numbers.setdefault(json.dumps(v, sort_keys=True), len(numbers)) for v in values]
        wanted[role] = np.array(codes, np.int64)
    return Fields(**wanted)


STEPS: dict[str, Step] = {
    "corpus": corpus, "embed": embed, "pair": pair, "base": base, "tune": tune, "synthesize": synthesize,
    "pretrain": pretrain, "evaluate": evaluate, "analyze": analyze, "report": report,
}  # fmt: skip
