"""The steps that measure: evaluate, analyze, report."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from synthboot import config
from synthboot.data import documents, files, tasks
from synthboot.data.artifacts import Shards, fingerprint, read_manifest
from synthboot.data.disk import (
    committed_folder,
    damage,
    hash_file,
    read_json,
    remove,
    save_array,
    write_json,
)
from synthboot.data.pairs import TRAIN, Pairs
from synthboot.data.tokens import Tokens
from synthboot.data.worlds import PARTS
from synthboot.engine import local
from synthboot.errors import ConfigError
from synthboot.steps import worlds
from synthboot.steps.context import Context, Outcome, conditional, embedded

Losses = dict[tuple[str, str], list[np.ndarray]]
Answers = dict[str, dict[str, list[np.ndarray]]]
_SCORES, _LOOKS, _ASKED, _SCORING = (
    ".scores",
    "looks.json",
    "asked ",
    1,
)  # the last changes when scoring does


def evaluate(c: Context) -> Outcome:
    """Holdout losses of both checkpoints of every model, answers to questions at the one that the verdict is about, and what
    they show."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from synthboot.stages import evaluate as stage
    from synthboot.stages.corpus import read_texts
    from synthboot.stages.pretrain import compare_ledgers

    cfg, corpus = c.cfg.evaluate, c.parents["corpus"]
    trained = {
        _arm_seed(role): path for role, path in c.parents.items() if (path / "ledger.json").exists()
    }
    ledgers: dict[str, dict[int, Any]] = {}
    for (arm, seed), path in trained.items():
        ledgers.setdefault(arm, {})[seed] = read_json(path / "ledger.json")
    compare_ledgers(ledgers)
    asked, told = _questions(c)
    items = c.folder / "questions.jsonl"
    items.write_text(
        "".join(json.dumps({"task": task, **asdict(item)}) + "\n" for task, item in asked), "utf-8"
    )
    harness = tuple(
        n.removeprefix(tasks.LM_EVAL) for n in tasks.names(cfg) if n.startswith(tasks.LM_EVAL)
    )
    texts, tokens = list(read_texts(corpus, "test")), c.tokens("test").lengths
    of_world = c.cfg.corpus.source == documents.WORLD
    parts = c.folder / "parts.npy"
    save_array(parts, worlds.parts(c, texts) if of_world else np.zeros(int(tokens.sum()), np.uint8))
    job = stage.Job(
        corpus / "tokenizer", tuple(Shards(corpus / "test")), c.cfg.model.seq_len, c.cfg.engine.device, items, parts,
        len(PARTS) if of_world else 1, harness, cfg.task_folder,
    )  # fmt: skip
    rows, losses, answers = _scored(c, job, trained)
    size = np.array([len(d.text.encode()) for d in texts])
    groups = [str(d.metadata.get(cfg.group_field, "")) for d in texts] if cfg.group_field else []
    if groups and not any(groups):
        raise ConfigError(f"evaluate.group_field: no test document has a field {cfg.group_field!r}")
    result: dict[str, Any] = {"checkpoint": cfg.checkpoint, "ledgers": ledgers, "asked": told}
    seeds = list(ledgers["repetition"])
    looks = _looks(c, trained["repetition", seeds[0]], len(seeds))
    for kind in ("best", "last"):
        stacked = {arm: np.stack(losses[kind, arm]).sum(2) for arm in ledgers}
        result[kind] = stage.evaluate(stacked, tokens, size, c.cfg.arms, cfg, groups, looks)
    result["verdict"] = result[cfg.checkpoint]["verdict"]
    result["efficiency"] = _efficiency(c, ledgers, result[cfg.checkpoint]["arms"])
    result["questions"] = {}
    for task, by_arm in answers.items():
        stacked = {arm: np.stack(some) for arm, some in by_arm.items()}
        count = next(iter(stacked.values())).shape[1]
        named = [name for name, _ in asked] if not task else [tasks.LM_EVAL + task] * count
        grouped = [item.group for _, item in asked] if not task else [""] * count
        result["questions"] |= stage.answered(stacked, named, grouped, cfg) if count else {}
    if of_world:
        shown = {arm: np.stack(losses[cfg.checkpoint, arm]) for arm in ledgers}
        result["parts"] = stage.parted(shown, PARTS, groups, cfg)
    result["world"] = worlds.bounds(c, texts, tokens, groups) if of_world else None
    result["sweeps"] = {
        arm: read_json(trained[arm, next(iter(ledgers[arm]))] / "sweep.json")
        for arm in ledgers
        if c.cfg.arms[arm].sweep
    }
    pq.write_table(pa.Table.from_pylist(rows), c.folder / "losses.parquet", compression="zstd")
    write_json(c.folder / "evaluate.json", result)
    return {"models": len(trained), "docs": len(tokens), "items": len(asked)}, {
        "tokens": len(rows) // len(tokens) * int(tokens.sum())
    }


def _looks(c: Context, first_model: Path, seeds: int) -> list[int]:
    """The numbers of seeds at which this experiment has been evaluated, this one last; kept beside the artifacts, since
    to look again is to try again, whatever became of the first look. Another base is another experiment."""
    kept = c.folder.parent / _LOOKS
    base = read_manifest(first_model)
    assert base is not None
    known = read_json(kept) if kept.exists() else {}
    mine = sorted({*known.get(base.fingerprint, []), seeds})
    write_json(kept, {**known, base.fingerprint: mine})
    return [n for n in mine if n < seeds] + [seeds]


def _scored(
    c: Context, job: Any, trained: dict[tuple[str, int], Path]
) -> tuple[list[dict[str, Any]], Losses, Answers]:
    """A row for every model, checkpoint and test document; the same as arrays; and the answers, by task of lm-eval, ""
    for ours."""
    from synthboot.stages.evaluate import scorer

    cfg = c.cfg.evaluate
    todo = [
        (key, kind)
        for key, path in trained.items()
        for kind in (("last",) if _best_is_last(path) else ("best", "last"))
    ]
    wanted = [
        (trained[key] / kind, kind == cfg.checkpoint or (key, cfg.checkpoint) not in todo)
        for key, kind in todo
    ]
    places = [c.folder.parent / _SCORES / _named(c, job, trained[key], kind, asking) for (key, kind), (_, asking) in
              zip(todo, wanted, strict=True)]  # fmt: skip
    missing = [n for n, place in enumerate(places) if damage(place)]  # or never scored
    for place in (places[n] for n in missing if places[n].exists()):
        c.note(f"{place}: {damage(place)}; made again")
    found = local.imap(
        scorer, (job,), [wanted[n] for n in missing], max(1, min(c.workers, len(missing)))
    )
    for scored, (number, scores) in enumerate(zip(missing, found, strict=True)):
        with committed_folder(places[number]) as folder:
            _keep(scores, folder)
        (arm, seed), kind = todo[number]
        c.progress((scored + 1) / len(missing), f"{arm} seed {seed}, {kind}")
    rows: list[dict[str, Any]] = []
    sizes = c.tokens("test").lengths.tolist()
    losses: Losses = {}
    answers: Answers = {}
    for ((arm, seed), kind), (_, asking), place in zip(todo, wanted, places, strict=True):
        per_doc, by_task = _kept(place / "scores.npz")
        for shown in ("best", "last") if ((arm, seed), "best") not in todo else (kind,):
            losses.setdefault((shown, arm), []).append(per_doc)
            numbered = enumerate(per_doc.sum(1).tolist())
            rows += [
                {
                    "arm": arm,
                    "seed": seed,
                    "checkpoint": shown,
                    "doc": d,
                    "loss": loss,
                    "tokens": sizes[d],
                }
                for d, loss in numbered
            ]
        for task, some in by_task.items() if asking else ():
            answers.setdefault(task, {}).setdefault(arm, []).append(some)
    for old in set((c.folder.parent / _SCORES).iterdir()) - set(places):
        remove(old)
    return rows, losses, answers


def _keep(scores: Any, folder: Path) -> None:
    per_doc, per_item, by_task = scores
    asked = {_ASKED + task: some for task, some in ({"": per_item} | by_task).items()}
    np.savez(folder / "scores.npz", losses=per_doc, **asked)


def _kept(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    with np.load(path) as kept:
        return kept["losses"], {
            name.removeprefix(_ASKED): kept[name] for name in kept if name != "losses"
        }


def _named(c: Context, job: Any, model: Path, kind: str, asking: bool) -> str:
    """What a model's scores are kept by: the hash of its files and of all that it is scored on, so that arms that were there
    already are not scored again when another joins them, nor those scored before a run was killed."""
    made, corpus = read_manifest(model), read_manifest(c.parents["corpus"])
    assert made is not None
    assert corpus is not None
    reads = {
        "weights": {name: file["hash"] for name, file in made.files.items() if name.startswith(f"{kind}/")},
        "window": job.window, "parts": [hash_file(job.parts), job.kinds], "device": job.device,
    }  # fmt: skip
    if asking:
        given = [line for path in tasks.files(c.cfg.evaluate) for line in files.contents(path)]
        reads["asked"] = [hash_file(job.items), job.harness, given]
    return fingerprint("scores", _SCORING, reads, {"corpus": corpus.fingerprint})


def _arm_seed(role: str) -> tuple[str, int]:
    arm, _, seed = role.rpartition("/")
    return arm, int(seed)


def _questions(c: Context) -> tuple[list[tuple[str, tasks.Item]], dict[str, dict[str, int]]]:
    """The items to ask, by task, without those that the training text holds; and how many there were, went for that reason,
    and are too short to tell."""
    from synthboot.stages.corpus import read_texts

    cfg = c.cfg.evaluate
    own = [name for name in tasks.names(cfg) if not name.startswith(tasks.LM_EVAL)]
    asked = [
        (n, i)
        for n in own
        for i in (worlds.questions(c) if n == tasks.WORLD else tasks.read(n, cfg, c.cfg.seed))
    ]
    checked = [number for number, (name, _) in enumerate(asked) if name != tasks.WORLD]
    seen, short = np.zeros(len(asked), bool), np.zeros(len(asked), bool)
    if checked:
        c.progress(0.0, "looking for the questions in the training text")
        real = (
            d.text for name in ("pool", "replay") for d in read_texts(c.parents["corpus"], name)
        )
        seen[checked], short[checked] = tasks.seen(
            [asked[i][1] for i in checked], itertools.chain(real, _written(c))
        )
    told = {}
    for name in own:
        mine = np.array([task == name for task, _ in asked])
        told[name] = {
            "items": int(mine.sum()),
            "seen": int(seen[mine].sum()),
            "short": int(short[mine].sum()),
        }
    return [item for item, out in zip(asked, seen, strict=True) if not out], told


def _written(c: Context) -> Iterator[str]:
    """All synthetic text."""
    for role, folder in c.parents.items():
        if role.startswith("synthesize/"):
            yield from (row["text"] for row in _rows(folder))


def _efficiency(
    c: Context, ledgers: dict[str, dict[int, Any]], arms: dict[str, Any]
) -> dict[str, Any]:
    """The curve of loss over unique real tokens, from arms of real text alone, and how many of these each arm is worth."""
    from synthboot.stages.evaluate import efficiency

    plain = [
        a
        for a in ledgers
        if c.cfg.arms[a].model_copy(update={"unique_tokens": None, "sweep": {}}) == config.Arm()
    ]
    points = [
        (int(next(iter(ledgers[a].values()))["unique_real_tokens"]), float(arms[a]["loss"][0]))
        for a in plain
    ]
    worth = {
        a: efficiency(points, scores["loss"][0]) for a, scores in arms.items() if a not in plain
    }
    return {"points": sorted(points), "worth": worth}


def analyze(c: Context) -> Outcome:
    """Measures of real and synthetic text side by side, and examples."""
    from synthboot.stages import analyze as stage

    cfg, corpus, tokenizer = c.cfg.analyze, c.tokens("pretrain"), c.tokenizer()
    validation = _bare(c.tokens("validation"), range(len(c.tokens("validation"))), cfg.docs)
    chosen = _bare(corpus, range(len(corpus)), cfg.docs)
    kinds = {
        "unseen real": stage.analyze(
            validation, [tokenizer.decode(t) for t in validation], corpus, cfg
        ),
        "D_pretrain": stage.analyze(chosen, [tokenizer.decode(t) for t in chosen], corpus, cfg),
    }
    samples = {
        role: list(itertools.islice(_rows(path), cfg.docs))
        for role, path in c.parents.items()
        if role.startswith("synthesize/")
    }
    for number, (role, rows) in enumerate(samples.items()):
        c.progress((number + 1) / (len(samples) + 2), role)
        ids = [np.array(tokenizer.encode([r["text"]])[0], np.int64) for r in rows]
        given = None if not conditional(role) else [corpus[r["d1"]][:-1] for r in rows]
        kind = stage.analyze(ids, [r["text"] for r in rows], corpus, cfg, given)
        sizes = [r["tokens"] + (r["finish"] == "end") for r in rows]
        kind["entropy"] = -sum(
            r["mean_logprob"] * n for r, n in zip(rows, sizes, strict=True)
        ) / max(1, sum(sizes))
        kinds[role.removeprefix("synthesize/")] = kind
    result = {"kinds": kinds, "relevance": _relevance(c, samples), "copy_tokens": cfg.copy_tokens}
    result["world"] = (
        worlds.measured(c, samples) if c.cfg.corpus.source == documents.WORLD else None
    )
    pairs = (
        Pairs.load(c.parents["pair/related"]).only(TRAIN) if "pair/related" in c.parents else None
    )
    related = samples.get("synthesize/related", [])
    examples = stage.examples(related, pairs, tokenizer, corpus, cfg) if pairs and related else []
    write_json(c.folder / "analyze.json", result)
    write_json(c.folder / "examples.json", examples)
    write_json(
        c.folder / "spread.json", stage.spread(pairs, tokenizer, corpus, cfg) if pairs else []
    )
    return {"kinds": list(kinds), "examples": len(examples)}, {}


def _bare(tokens: Tokens, docs: range, count: int) -> list[np.ndarray]:
    """The first `count` documents without their end tokens; documents lie in random order already."""
    return [np.asarray(tokens[i][:-1], np.int64) for i in docs[:count]]


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The kept outputs of an S_pretrain."""
    import pyarrow.parquet as pq

    for shard in Shards(folder / "chunks"):
        yield from (
            r
            for r in pq.read_table(shard / "synthetic.parquet").to_pylist()
            if r["verdict"] == "kept"
        )


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
        embedder = stage.embedder(
            c.cfg.embed,
            c.parents["embed"] / "embedder/embedder.safetensors",
            str(device(c.cfg.engine.device)),
        )
        for role, rows in samples.items():
            if rows and conditional(role):
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
    curves = {
        role: read_json(p / "curve.json")
        for role, p in parents.items()
        if (p / "ledger.json").exists()
    }
    tuned = {
        role: read_json(p / "tune.json")
        for role, p in parents.items()
        if (p / "tune.json").exists()
    }
    return {
        "name": cfg.name,
        "config": cfg.model_dump(mode="json", exclude={"engine", "root"}),
        "corpus": read_json(parents["corpus"] / "corpus.json"),
        "pairs": {
            role: read_json(p / "pairs.json")
            for role, p in parents.items()
            if (p / "pairs.json").exists()
        },
        "tune": tuned,
        "curves": curves,
        "synthesize": {
            role: m.counts for role, m in manifests.items() if m and m.stage == "synthesize"
        },
        "evaluate": read_json(parents["evaluate"] / "evaluate.json"),
        "sweeps": {
            role: read_json(p / "sweep.json")
            for role, p in parents.items()
            if role in tuned and (p / "sweep.json").exists()
        },
        "analyze": read_json(parents["analyze"] / "analyze.json") if "analyze" in parents else None,
        "examples": read_json(parents["analyze"] / "examples.json") if "analyze" in parents else [],
        "pair_examples": read_json(parents["analyze"] / "spread.json")
        if "analyze" in parents
        else [],
        "costs": [{"unit": role, "stage": m.stage, **m.cost} for role, m in manifests.items() if m],
    }


def _best_is_last(folder: Path) -> bool:
    """Whether both checkpoints of a model are the same, so that one is scored for both."""
    manifest = read_manifest(folder)
    files = manifest.files if manifest else {}
    weights = [
        {n.partition("/")[2]: f["hash"] for n, f in files.items() if n.startswith(f"{k}/")}
        for k in ("best", "last")
    ]
    return weights[0] == weights[1]
