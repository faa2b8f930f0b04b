"""The steps that make something: corpus to pretrain."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from synthboot import config, pool
from synthboot.artifacts.pairs import TRAIN, Pairs
from synthboot.artifacts.store import WORK, Shards, read_manifest
from synthboot.artifacts.synthetic import Synthetic
from synthboot.data.disk import committed_folder, damage, read_json, save_array, write_json
from synthboot.data.documents import Document
from synthboot.errors import ConfigError
from synthboot.steps.context import Context, Outcome, conditional, embedded, upstream_flops


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


def embed(c: Context) -> Outcome:
    """Vectors of D_pretrain and of the validation set, a shard of documents at a time."""
    from synthboot.stages import embed as stage

    cfg = c.cfg.embed
    sizes = {
        "pool": c.pretrain_docs,
        "validation": len(c.tokens("validation")),
    }

    own = None
    if cfg.model == "file":
        ids = [document.id for document in _documents(c)]
        own = stage.read_vectors(cfg.path, ids, cfg.unknown_ids)
    fitted = c.folder / "embedder" / "embedder.safetensors"
    if cfg.model == "self":
        _fit_embedder(c, fitted)

    dim = 0
    first = 0  # vectors from a file hold both sets, one after the other
    for name, docs in sizes.items():
        of_set = None if own is None else own[first : first + docs]
        dim = max(dim, _embed_set(c, name, docs, fitted, of_set))
        first += docs

    tokens = c.tokens("pretrain").num_tokens + c.tokens("validation").num_tokens
    flops = stage.flops(cfg, sum(sizes.values()), tokens)
    return {"docs": sizes["pool"], "dim": dim}, {"flops": flops}


def _fit_embedder(c: Context, path: Path) -> None:
    """Fit the `self` embedder, unless an earlier run has: shards of one artifact share it."""
    from synthboot.stages import embed as stage
    from synthboot.stages.corpus import read_texts

    if not damage(path.parent):  # there, and whole
        return
    c.progress(0.0, "fitting")
    documents = read_texts(c.parents["corpus"], "pool", c.pretrain_docs)
    texts = (document.text for document in documents)
    with committed_folder(path.parent) as folder:
        stage.fit(
            texts,
            c.cfg.embed,
            c.cfg.seed,
            c.progress,
        ).save(folder / path.name)


def _embed_set(
    c: Context,
    name: str,
    docs: int,
    fitted: Path,
    own: np.ndarray | None,
) -> int:
    """Write the vectors of the first `docs` documents of a set, which `own` holds where they came
    from a file; returns their dimensions."""
    shards = Shards(c.folder / name)
    source = Shards(c.parents["corpus"] / name)
    # the vectors lie in shards of the same documents as the texts
    shard_docs = max(1, source.counts(0)["docs"])
    starts = list(range(0, docs, shard_docs))
    missing = [shard for shard in range(len(starts)) if not shards.done(shard)]

    if own is None:
        vectors = _embed_shards(
            c,
            source.folder,
            fitted,
            [(i, docs - starts[i]) for i in missing],
        )
    else:
        vectors = (own[starts[i] : starts[i] + shard_docs] for i in missing)

    for shard, of_shard in zip(missing, vectors, strict=True):
        shards.write(shard, partial(_save_vectors, of_shard))
        done = starts[shard] + len(of_shard)
        c.progress((shard + 1) / len(starts), f"{name}: {done:,} of {docs:,} documents")
    shards.close(len(starts))
    return int(shards.counts(0)["dim"]) if starts else 0


def _embed_shards(
    c: Context,
    source: Path,
    fitted: Path,
    wanted: list[tuple[int, int]],
) -> Iterator[np.ndarray]:
    """The vectors of shards, each asked for with the number of documents it may have at most."""
    from synthboot.lm.model import device
    from synthboot.stages import embed as stage

    arguments = (
        str(source),
        c.cfg.embed,
        str(fitted),
        str(device(c.cfg.engine.device)),
        c.cfg.engine.embed_batch,
    )
    return pool.imap(stage.shard_embedder, arguments, wanted, c.workers)


def pair(c: Context) -> Outcome:
    """Related pairs, or the random pairs of the control."""
    from synthboot.neighbors import search
    from synthboot.stages.pair import random_pairs

    if c.variant == "random_pairs":
        related = Pairs.load(c.parents["pair"])
        pairs = random_pairs(related, c.pretrain_docs, c.cfg.seed)
    else:
        pairs = _related(c)
    pairs.save(c.folder)
    # read back: the report as JSON has it is what the manifest records
    pairs = Pairs.load(c.folder)

    flops = 0.0
    embed = read_manifest(c.parents["embed"]) if "embed" in c.parents else None
    if embed is not None:
        flops = search.flops(pairs.report, c.pretrain_docs, embed.counts["dim"])

    counts = {}
    for name, value in pairs.report.items():
        if name not in ("bins", "histograms"):
            counts[name] = value
    counts["kept"] = len(pairs)
    counts["train"] = len(pairs.only(TRAIN))
    counts["upstream_flops"] = upstream_flops(c)
    return counts, {"flops": flops}


def _related(c: Context) -> Pairs:
    from synthboot.lm.model import device
    from synthboot.neighbors import search
    from synthboot.stages.pair import pair as stage

    fields = _fields(c)
    vectors = embedded(c.parents["embed"], "pool")
    validation = embedded(c.parents["embed"], "validation")
    found = search.nearest(
        vectors,
        c.cfg.pair,
        c.cfg.seed,
        validation,
        str(device(c.cfg.engine.device)),
        c.folder / WORK / "neighbors",
        c.workers,
        c.progress,
    )
    return stage(
        vectors,
        c.tokens("pretrain"),
        c.cfg.pair,
        c.cfg.seed,
        (validation, c.tokens("validation")),
        found,
        fields,
        c.progress,
    )


def base(c: Context) -> Outcome:
    """The LM on real text alone, which is also the repetition arm of its seed, so that nothing is
    trained twice. Its checkpoint of best validation loss is where the synthesizer starts.

    Source: arXiv:2509.15248, the synthesizer starts from an LM pretrained on the same D_pretrain.
    Deviation: from its best validation loss, not from its end; a synthesizer started from an
    over-trained base loses the subject of d1.
    """
    return pretrain(c)


def tune(c: Context) -> Outcome:
    """The synthesizer."""
    from synthboot.lm import parallel
    from synthboot.stages.tune import tune as stage

    if c.cfg.tune.sweep:
        return _best_trial(c)

    tuned = stage(
        c.cfg,
        c.parents["base"] / "best" if "base" in c.parents else None,
        Pairs.load(c.parents["pair"]),
        c.tokens("pretrain"),
        c.tokens("validation"),
        c.tokenizer(),
        c.folder,
        c.progress,
    )
    counts = {
        "conditioning": tuned.conditioning,
        "padding_share": tuned.padding_share,
        "best_loss": tuned.curve.best_loss,
        "upstream_flops": upstream_flops(c),
    }
    if parallel.rank() == 0:
        record = {
            **counts,
            "curve": asdict(tuned.curve),
            "stopped_by": tuned.stopped_by,
            "base_share": tuned.base_share,
        }
        write_json(c.folder / "tune.json", record)
    return counts, {"tokens": tuned.tokens, "flops": tuned.flops}


def _best_trial(c: Context) -> Outcome:
    """The synthesizer of the sweep's best trial, under this unit's name."""
    best = _least(c, c.cfg.tune.trials(), c.cfg.tune.sweep)
    ready = c.parents[f"trial/{best}"]
    made = read_manifest(ready)
    assert made is not None  # it was verified before this step began
    _copy(c, ready, "best", "last", "curve.json", "tune.json")

    # this unit trained nothing; an arm of `match: flops` pays for the trial through it
    upstream = made.counts["upstream_flops"] + made.cost["flops"]
    return made.counts | {"upstream_flops": upstream}, {}


def synthesize(c: Context) -> Outcome:
    """S_pretrain in chunks. The FLOPs count every prompt and sampled token once."""
    from synthboot.lm import model as models
    from synthboot.stages.synthesize import Job
    from synthboot.stages.synthesize import synthesize as stage

    corpus_folder = c.parents["corpus"]
    synthesizer = c.parents["synthesizer"] / "best"
    job = Job(
        cfg=c.cfg.synthesize,
        synthesizer=synthesizer,
        tokenizer=corpus_folder / "tokenizer",
        corpus=tuple(Shards(corpus_folder / "pool")),
        docs=c.pretrain_docs,
        window=c.cfg.model.seq_len,
        d1_share=c.cfg.tune.d1_share,
        seed=c.cfg.seed,
        conditional=conditional(c.variant),
        engine=c.cfg.engine,
    )
    counts = stage(
        job,
        c.budget_tokens,
        c.folder,
        c.workers,
        c.progress,
    )
    counts["upstream_flops"] = upstream_flops(c)

    sampled = counts["sampled_tokens"]
    read = counts["prompt_tokens"] + sampled
    tokens_per_row = read / max(1, counts["requests"])
    forward = models.flops_per_token(models.load(synthesizer), round(tokens_per_row))
    return counts, {"tokens": sampled, "flops": forward * read}


def pretrain(c: Context) -> Outcome:
    """The model of one arm and seed."""
    from synthboot.lm import parallel
    from synthboot.stages.pretrain import pretrain as stage

    recipe, ready = _recipe(c)
    if ready is not None:
        return _copied(c, ready)

    trained = stage(
        c.cfg,
        recipe,
        c.seed,
        _sources(c, recipe),
        c.tokens("validation"),
        c.tokenizer(),
        c.folder,
        c.progress,
    )
    ledger = trained.ledger
    if parallel.rank() == 0:
        write_json(c.folder / "ledger.json", ledger)
    losses = {"best_loss": trained.curve.best_loss, "last_loss": trained.curve.last_loss}
    return losses | ledger, {"tokens": ledger["train_tokens"], "flops": trained.flops}


def _recipe(c: Context) -> tuple[config.Arm, Path | None]:
    """The recipe of this model (of a sweep, the trial of the least validation loss) and, where a
    trial is this model already, the folder it lies in."""
    assert c.recipe is not None  # a unit of these stages has one
    if not c.recipe.sweep:
        return c.recipe, None
    trials = c.recipe.trials()
    best = _least(c, trials, c.recipe.sweep)
    return trials[best], c.parents[f"trial/{best}"] if c.ready else None


def _least(
    c: Context,
    trials: Mapping[str, Any],
    swept: Iterable[str],
) -> str:
    """The trial of the least validation loss; what all of them reached goes to `sweep.json`."""
    losses = {}
    settings = {}  # only what the sweep varies
    for trial, setting in trials.items():
        curve = read_json(c.parents[f"trial/{trial}"] / "curve.json")
        losses[trial] = curve["best_loss"]
        settings[trial] = {key: getattr(setting, key) for key in swept}

    best = min(losses, key=lambda trial: losses[trial])
    c.folder.mkdir(parents=True, exist_ok=True)
    write_json(
        c.folder / "sweep.json",
        {
            "losses": losses,
            "settings": settings,
            "chosen": best,
        },
    )
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
    curve = read_json(c.folder / "curve.json")
    ledger = read_json(c.folder / "ledger.json")
    losses = {
        "best_loss": curve["best_loss"],
        "last_loss": curve["validation"][-1][1],
    }
    return losses | ledger, {}


def _sources(c: Context, arm: config.Arm) -> Any:
    """The text of an arm, and what its synthetic part cost."""
    from synthboot.lm.arm import Sources
    from synthboot.stages.pretrain import real_docs

    pool = c.tokens("pool")
    real = pool.head(
        real_docs(
            arm,
            c.arm,
            pool,
            c.pretrain_docs,
        )
    )
    replay = c.tokens("replay") if c.cfg.budget.replay_share else None

    if arm.layout == "packed_pairs":
        pairs = Pairs.load(c.parents["pair"]).only(TRAIN)
        return Sources(real, pairs=(pairs.d1, pairs.d2), replay=replay)
    if "synthesize" not in c.parents:
        return Sources(real, replay=replay)

    folder = c.parents["synthesize"]
    synthetic = Synthetic.open(folder)
    made = read_manifest(folder)
    assert made is not None  # it was verified before this step began
    return Sources(
        real,
        synthetic.tokens,
        synthetic.d1(),
        replay=replay,
        upstream_flops=made.counts["upstream_flops"],
        # per kept token: what was dropped is paid for, what is not read is not
        sample_flops=made.cost["flops"] / synthetic.tokens.num_tokens,
    )


def _documents(c: Context) -> Iterator[Document]:
    """D_pretrain, then the validation set."""
    from synthboot.stages.corpus import read_texts

    pretrain = read_texts(c.parents["corpus"], "pool", c.pretrain_docs)
    return itertools.chain(pretrain, read_texts(c.parents["corpus"], "validation"))


def _save_vectors(
    vectors: np.ndarray,
    folder: Path,
) -> dict[str, Any]:
    save_array(folder / "vectors.npy", vectors)
    return {"docs": len(vectors), "dim": vectors.shape[1]}


def _fields(c: Context) -> Any:
    """The fields of the corpus that pairing asks for, as numbers.

    Raises ConfigError where no document has one.
    """
    from synthboot.stages.corpus import read_texts
    from synthboot.stages.pair import Fields

    wanted = {
        "source": c.cfg.pair.source_field,
        "label": c.cfg.pair.label_field,
    }
    codes = {}
    for role, name in wanted.items():
        if name is None:
            continue
        documents = read_texts(c.parents["corpus"], "pool", c.pretrain_docs)
        values = [document.metadata.get(name) for document in documents]
        if all(value is None for value in values):
            raise ConfigError(f"pair.{role}_field: no document of the corpus has a field {name!r}")
        codes[role] = _codes(values)
    return Fields(**codes)


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
