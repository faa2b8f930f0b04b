"""The steps that measure: evaluate, analyze, report."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synthboot import config, pool
from synthboot.artifacts.pairs import TRAIN, Pairs
from synthboot.artifacts.store import Shards, fingerprint, read_manifest
from synthboot.artifacts.synthetic import Sample, Synthetic
from synthboot.data import documents, files, tasks
from synthboot.data.disk import (
    committed_folder,
    damage,
    hash_file,
    read_json,
    remove,
    save_array,
    write_json,
)
from synthboot.data.tokens import Tokens
from synthboot.errors import ConfigError
from synthboot.steps import worlds
from synthboot.steps.context import Context, Outcome, conditional, embedded
from synthboot.worlds.generator import PARTS

Model = tuple[str, int]
"""An arm and a seed."""

Losses = dict[tuple[str, str], list[np.ndarray]]
"""By checkpoint and arm, for every seed: (test document, part of it), summed nats."""

Answers = dict[str, dict[str, list[np.ndarray]]]
"""By task of lm-eval ("" for ours) and arm, for every seed: (item, measure)."""

_Asked = tuple[str, tasks.Item]
"""The name of a task and a question of it."""

_SCORES = ".scores"
_LOOKS = "looks.json"
_ASKED = "asked "
_SCORING = 1  # changes when scoring does


def evaluate(c: Context) -> Outcome:
    """Test losses of both checkpoints of every model, answers to questions at the one that the
    verdict is about, and what they show."""
    from synthboot.stages import evaluate as stage
    from synthboot.stages.corpus import read_texts

    trained = _models(c)
    ledgers: dict[str, dict[int, Any]] = {}
    for (arm, seed), folder in trained.items():
        ledgers.setdefault(arm, {})[seed] = read_json(folder / "ledger.json")
    # before anything is scored: what may not be compared need not be
    stage.compare_ledgers(ledgers)

    test_set = list(read_texts(c.parents["corpus"], "test"))
    groups = _groups(c, test_set)
    items, items_by_task = _questions(c)
    job = _job(c, test_set, items)
    rows, losses, answers = _scored(c, job, trained)

    result: dict[str, Any] = {
        "checkpoint": c.cfg.evaluate.checkpoint,
        "ledgers": ledgers,
        "asked": items_by_task,
    }
    result |= _compared(c, trained, ledgers, losses, test_set, groups)
    result["questions"] = _answered(c, items, answers)
    result |= _of_world(c, losses, test_set, groups)
    result["sweeps"] = _sweeps(c, trained, ledgers)

    _save_rows(rows, c.folder / "losses.parquet")
    write_json(c.folder / "evaluate.json", result)

    # every row is one document read by one model; a model reads the whole test set
    test_tokens = c.tokens("test").num_tokens
    cost = {"tokens": float(len(rows) // len(test_set) * test_tokens)}
    return {
        "models": len(trained),
        "docs": len(test_set),
        "items": len(items),
    }, cost


def _models(c: Context) -> dict[Model, Path]:
    """The folder of every trained model."""
    trained = {}
    for role, folder in c.parents.items():
        if (folder / "ledger.json").exists():
            trained[_arm_seed(role)] = folder
    return trained


def _groups(
    c: Context,
    test_set: Sequence[documents.Document],
) -> list[str]:
    """The group of each test document; none where no field is named.

    Raises ConfigError where no document has the field.
    """
    field = c.cfg.evaluate.group_field
    if not field:
        return []
    groups = [str(document.metadata.get(field, "")) for document in test_set]
    if groups and not any(groups):
        raise ConfigError(f"evaluate.group_field: no test document has a field {field!r}")
    return groups


def _job(
    c: Context,
    test_set: Sequence[documents.Document],
    items: Sequence[_Asked],
) -> Any:
    """What scoring needs; questions and parts are written to files that workers read."""
    from synthboot.stages.evaluate import Job

    cfg = c.cfg.evaluate
    corpus = c.parents["corpus"]
    of_world = _is_world(c)

    questions = c.folder / "questions.jsonl"
    lines = [
        json.dumps(
            {
                "task": task,
                **asdict(item),
            }
        )
        + "\n"
        for task, item in items
    ]
    questions.write_text("".join(lines), "utf-8")

    parts = c.folder / "parts.npy"
    if of_world:
        save_array(parts, worlds.parts(c, test_set))
    else:
        # a document of the user's is one part
        save_array(parts, np.zeros(c.tokens("test").num_tokens, np.uint8))

    harness = []
    for name in tasks.names(cfg):
        if name.startswith(tasks.LM_EVAL):
            harness.append(name.removeprefix(tasks.LM_EVAL))

    return Job(
        tokenizer=corpus / "tokenizer",
        test_set=tuple(Shards(corpus / "test")),
        window=c.cfg.model.seq_len,
        device=c.cfg.engine.device,
        items=questions,
        parts=parts,
        kinds=len(PARTS) if of_world else 1,
        harness=tuple(harness),
        include=cfg.task_folder,
    )


def _compared(
    c: Context,
    trained: Mapping[Model, Path],
    ledgers: dict[str, dict[int, Any]],
    losses: Losses,
    test_set: Sequence[documents.Document],
    groups: Sequence[str],
) -> dict[str, Any]:
    """Every arm against repetition, at both checkpoints, and the verdict at the chosen one."""
    from synthboot.stages import evaluate as stage

    cfg = c.cfg.evaluate
    tokens = c.tokens("test").lengths
    size_bytes = np.array([len(document.text.encode()) for document in test_set])
    seeds = list(ledgers["repetition"])
    looks = _looks(c, trained["repetition", seeds[0]], len(seeds))

    result: dict[str, Any] = {}
    for checkpoint in ("best", "last"):
        by_arm = {}
        for arm in ledgers:
            # (seed, doc, part) -> (seed, doc)
            by_arm[arm] = np.stack(losses[checkpoint, arm]).sum(2)
        result[checkpoint] = stage.evaluate(
            by_arm, tokens, size_bytes, c.cfg.arms, cfg, groups, looks
        )

    chosen = result[cfg.checkpoint]
    result["verdict"] = chosen["verdict"]
    result["efficiency"] = _efficiency(c, ledgers, chosen["arms"])
    return result


def _looks(
    c: Context,
    first_model: Path,
    seeds: int,
) -> list[int]:
    """The numbers of seeds at which this experiment has been evaluated, this one last.

    They are kept beside the artifacts, since to look again is to try again, whatever became of the
    first look. Another base is another experiment.
    """
    path = c.folder.parent / _LOOKS
    base = read_manifest(first_model)
    assert base is not None
    all_looks = read_json(path) if path.exists() else {}
    looks = sorted({*all_looks.get(base.fingerprint, []), seeds})
    write_json(path, {**all_looks, base.fingerprint: looks})
    return [n for n in looks if n < seeds] + [seeds]


def _answered(
    c: Context,
    items: Sequence[_Asked],
    answers: Answers,
) -> dict[str, Any]:
    """The figures of every task, ours and those of lm-eval."""
    from synthboot.stages import evaluate as stage

    result: dict[str, Any] = {}
    for harness_task, by_arm in answers.items():
        stacked = {arm: np.stack(of_seeds) for arm, of_seeds in by_arm.items()}
        count = next(iter(stacked.values())).shape[1]  # (seed, item, measure)
        if not count:
            continue
        if harness_task:
            names = [tasks.LM_EVAL + harness_task] * count
            groups = [""] * count  # lm-eval does not say of an item to which group it belongs
        else:
            names = [task for task, _ in items]
            groups = [item.group for _, item in items]
        result |= stage.answered(stacked, names, groups, c.cfg.evaluate)
    return result


def _of_world(
    c: Context,
    losses: Losses,
    test_set: Sequence[documents.Document],
    groups: Sequence[str],
) -> dict[str, Any]:
    """For a generated world: the losses by part of a document, and the least losses there are."""
    from synthboot.stages import evaluate as stage

    if not _is_world(c):
        return {"world": None}
    cfg = c.cfg.evaluate
    by_arm = {}
    for checkpoint, arm in losses:
        if checkpoint == cfg.checkpoint:
            by_arm[arm] = np.stack(losses[checkpoint, arm])  # (seed, doc, part)
    return {
        "parts": stage.parted(by_arm, PARTS, groups, cfg),
        "world": worlds.bounds(
            c,
            test_set,
            c.tokens("test").lengths,
            groups,
        ),
    }


def _is_world(c: Context) -> bool:
    return c.cfg.corpus.source == documents.WORLD


def _sweeps(
    c: Context,
    trained: Mapping[Model, Path],
    ledgers: Mapping[str, Mapping[int, Any]],
) -> dict[str, Any]:
    """What the trials of every arm with a sweep reached; the first seed has the record."""
    found = {}
    for arm, seeds in ledgers.items():
        if c.cfg.arms[arm].sweep:
            first = next(iter(seeds))
            found[arm] = read_json(trained[arm, first] / "sweep.json")
    return found


def _save_rows(
    rows: list[dict[str, Any]],
    path: Path,
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")


@dataclass(frozen=True)
class _Scoring:
    """One checkpoint to score, or scored: `shown` are the checkpoints that its scores stand for,
    `asking` whether it is asked questions too, `kept` where its scores are kept."""

    arm: str
    seed: int
    checkpoint: str
    path: Path
    shown: tuple[str, ...]
    asking: bool
    kept: Path


def _scored(
    c: Context, job: Any, trained: Mapping[Model, Path]
) -> tuple[list[dict[str, Any]], Losses, Answers]:
    """A row for every model, checkpoint and test document; the same as arrays; and the answers."""
    scorings = _scorings(c, job, trained)
    _score_missing(c, job, scorings)

    rows: list[dict[str, Any]] = []
    losses: Losses = {}
    answers: Answers = {}
    sizes = c.tokens("test").lengths.tolist()

    for scoring in scorings:
        by_part, by_task = _kept(scoring.kept / "scores.npz")  # (doc, part)
        by_doc = by_part.sum(1).tolist()
        for checkpoint in scoring.shown:
            losses.setdefault((checkpoint, scoring.arm), []).append(by_part)
            for doc, loss in enumerate(by_doc):
                rows.append(
                    {
                        "arm": scoring.arm,
                        "seed": scoring.seed,
                        "checkpoint": checkpoint,
                        "doc": doc,
                        "loss": loss,
                        "tokens": sizes[doc],
                    }
                )
        if scoring.asking:
            for task, answered in by_task.items():
                answers.setdefault(task, {}).setdefault(scoring.arm, []).append(answered)

    # what no arm of this configuration is scored by
    for old in set((c.folder.parent / _SCORES).iterdir()) - {s.kept for s in scorings}:
        remove(old)
    return rows, losses, answers


def _scorings(
    c: Context,
    job: Any,
    trained: Mapping[Model, Path],
) -> list[_Scoring]:
    """The checkpoints to score: both of a model, or one for both where they are the same."""
    found = []
    for (arm, seed), folder in trained.items():
        same = _best_is_last(folder)
        for checkpoint in ("last",) if same else ("best", "last"):
            # questions take long, so only the checkpoint that the verdict is about is asked
            asking = same or checkpoint == c.cfg.evaluate.checkpoint
            name = _scores_name(c, job, folder, checkpoint, asking)
            found.append(
                _Scoring(
                    arm=arm,
                    seed=seed,
                    checkpoint=checkpoint,
                    path=folder / checkpoint,
                    shown=("best", "last") if same else (checkpoint,),
                    asking=asking,
                    kept=c.folder.parent / _SCORES / name,
                )
            )
    return found


def _score_missing(
    c: Context,
    job: Any,
    scorings: Sequence[_Scoring],
) -> None:
    """Score what has no scores yet, or damaged ones; each model's are committed as it is done."""
    from synthboot.stages.evaluate import scorer

    missing = []
    for scoring in scorings:
        problem = damage(scoring.kept)
        if problem:
            missing.append(scoring)
        if problem and scoring.kept.exists():
            c.note(f"{scoring.kept}: {problem}; made again")

    wanted = [(scoring.path, scoring.asking) for scoring in missing]
    workers = max(1, min(c.workers, len(missing)))
    results = pool.imap(scorer, (job,), wanted, workers)
    for done, (scoring, scores) in enumerate(zip(missing, results, strict=True), 1):
        with committed_folder(scoring.kept) as folder:
            _keep(scores, folder)
        c.progress(
            done / len(missing),
            f"{scoring.arm} seed {scoring.seed}, {scoring.checkpoint}",
        )


def _keep(scores: Any, folder: Path) -> None:
    by_part, by_item, by_task = scores
    asked = {_ASKED: by_item}
    for task, answered in by_task.items():
        asked[_ASKED + task] = answered
    np.savez(folder / "scores.npz", losses=by_part, **asked)


def _kept(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The losses and, by task, the answers that `_keep` wrote."""
    with np.load(path) as kept:
        by_task = {}
        for name in kept:
            if name != "losses":
                by_task[name.removeprefix(_ASKED)] = kept[name]
        return kept["losses"], by_task


def _scores_name(
    c: Context,
    job: Any,
    model: Path,
    checkpoint: str,
    asking: bool,
) -> str:
    """What a model's scores are kept by: the hash of its files and of all that it is scored on.

    Arms that were there already are not scored again when another joins them, nor those scored
    before a run was killed.
    """
    made = read_manifest(model)
    corpus = read_manifest(c.parents["corpus"])
    assert made is not None
    assert corpus is not None

    weights = {}
    for name, file in made.files.items():
        if name.startswith(f"{checkpoint}/"):
            weights[name] = file["hash"]
    reads = {
        "weights": weights,
        "window": job.window,
        "parts": [hash_file(job.parts), job.kinds],
        "device": job.device,
    }

    if asking:
        task_files = []
        for path in tasks.files(c.cfg.evaluate):
            task_files += files.contents(path)
        reads["asked"] = [hash_file(job.items), job.harness, task_files]
    return fingerprint("scores", _SCORING, reads, {"corpus": corpus.fingerprint})


def _arm_seed(role: str) -> Model:
    arm, _, seed = role.rpartition("/")
    return arm, int(seed)


def _questions(c: Context) -> tuple[list[_Asked], dict[str, dict[str, int]]]:
    """The items to ask, without those that the training text holds; and by task how many there
    were, went for that reason, and are too short to tell."""
    cfg = c.cfg.evaluate
    own = [name for name in tasks.names(cfg) if not name.startswith(tasks.LM_EVAL)]

    items: list[_Asked] = []
    for name in own:
        if name == tasks.WORLD:
            of_task = worlds.questions(c)
        else:
            of_task = tasks.read(name, cfg, c.cfg.seed)
        items += [(name, item) for item in of_task]

    seen, short = _contaminated(c, items)
    counts = {}
    for name in own:
        of_name = np.array([task == name for task, _ in items])
        counts[name] = {
            "items": int(of_name.sum()),
            "seen": int(seen[of_name].sum()),
            "short": int(short[of_name].sum()),
        }
    clean = [item for number, item in enumerate(items) if not seen[number]]
    return clean, counts


def _contaminated(
    c: Context,
    items: Sequence[_Asked],
) -> tuple[np.ndarray, np.ndarray]:
    """Which items the training text holds, and which are too short to tell."""
    seen = np.zeros(len(items), bool)
    short = np.zeros(len(items), bool)

    # what the world asks is said in the corpus on purpose
    checked = [number for number, (name, _) in enumerate(items) if name != tasks.WORLD]
    if checked:
        c.progress(0.0, "looking for the questions in the training text")
        questions = [items[number][1] for number in checked]
        seen[checked], short[checked] = tasks.seen(questions, _training_texts(c))
    return seen, short


def _training_texts(c: Context) -> Iterator[str]:
    """All that any arm may have read: real text, and all synthetic text."""
    from synthboot.stages.corpus import read_texts

    for name in ("pool", "replay"):
        for document in read_texts(c.parents["corpus"], name):
            yield document.text
    for role, folder in c.parents.items():
        if role.startswith("synthesize/"):
            yield from Synthetic.open(folder).texts()


def _efficiency(
    c: Context,
    ledgers: dict[str, dict[int, Any]],
    arms: dict[str, Any],
) -> dict[str, Any]:
    """The curve of loss over unique real tokens, from arms of real text alone, and how many of
    these tokens each other arm is worth."""
    from synthboot.stages.evaluate import efficiency

    plain = []
    for arm in ledgers:
        # an arm of real text is repetition but for how much text it has, and its sweep
        recipe = c.cfg.arms[arm].model_copy(
            update={
                "unique_tokens": None,
                "sweep": {},
            }
        )
        if recipe == config.Arm():
            plain.append(arm)

    points = []
    for arm in plain:
        ledger = next(iter(ledgers[arm].values()))  # the seeds of an arm read the same text
        points.append((int(ledger["unique_real_tokens"]), float(arms[arm]["loss"][0])))

    worth = {}
    for arm, scores in arms.items():
        if arm not in plain:
            worth[arm] = efficiency(points, scores["loss"][0])
    return {"points": sorted(points), "worth": worth}


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

    of_world = worlds.measured(c, samples) if _is_world(c) else None
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
            found[role] = read_json(folder / name)
    return found


def _best_is_last(folder: Path) -> bool:
    """Whether both checkpoints of a model are the same, so that one is scored for both."""
    manifest = read_manifest(folder)
    hashes: dict[str, dict[str, str]] = {
        "best": {},
        "last": {},
    }
    for path, file in (manifest.files if manifest else {}).items():
        checkpoint, _, name = path.partition("/")
        if checkpoint in hashes:
            hashes[checkpoint][name] = file["hash"]
    return hashes["best"] == hashes["last"]
