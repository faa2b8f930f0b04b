"""Looking into run folders: where they stand, examples to read, several side by side.

Reads only what is on disk.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from synthboot.artifacts import parts, store
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.embeddings import Embeddings
from synthboot.artifacts.evaluation import Evaluation
from synthboot.artifacts.pairs import TRAIN, Pairs
from synthboot.artifacts.synthetic import Synthetic
from synthboot.config import Config
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.errors import MissingArtifact
from synthboot.recipes import STAGES, folder_of
from synthboot.settings import default

_COPY = 13


def status(run: Path) -> list[dict[str, Any]]:
    """One row per artifact of a run folder, in pipeline order.

    Raises MissingArtifact where it is no run folder.
    """
    rows = []
    for folder in _artifacts(run):
        manifest = store.read_manifest(folder)
        cost = manifest.cost if manifest else {}
        rows.append(
            {
                "unit": folder.relative_to(run).as_posix(),
                "status": "done" if manifest else "partial",
                "tokens": cost.get("tokens"),
                "seconds": cost.get("seconds"),
                "peak_memory_bytes": cost.get("peak_memory_bytes"),
                "flops": cost.get("flops"),
                "account": manifest.counts.get("account", "") if manifest else "",
                "parts": [] if manifest else [asdict(part) for part in parts.standing(folder)],
            }
        )
    return rows


def examples(run: Path, what: str, count: int, near: float | None = None) -> list[dict[str, Any]]:
    """Up to `count` examples: a title and texts by name, each a list of (part, mark), mark 1 for
    what d1 holds too and 2 for what stands elsewhere in D_pretrain.

    Pairs with `near` are those of the nearest similarity.
    """
    corpus = Corpus.open(_need(run, "corpus"))
    if what == "quarantine":
        return [
            {"title": f"{r['file']} line {r['line']}", "texts": {"reason": [(r["reason"], 0)]}}
            for r in itertools.islice(corpus.rejects(), count)
        ]
    if what == "pairs":
        return _pairs(
            Pairs.load(_need(run, "pair", "related")).only(TRAIN),
            corpus.pretrain,
            corpus.tokenizer,
            count,
            near,
        )
    return _synthetic(run, corpus.pretrain, corpus.tokenizer, count, copies=what == "copies")


def alphas(cfg: Config) -> dict[str, Any]:
    """What each alpha would give: `stages.pair.alphas` on a run's corpus and vectors.

    Raises MissingArtifact where they have not been made.
    """
    from synthboot.stages import pair

    embeddings = Embeddings.open(_need(cfg.folder, "embed"))
    corpus = Corpus.open(_need(cfg.folder, "corpus"))
    return pair.alphas(embeddings.pretrain, corpus.pretrain, cfg.pair, cfg.seed)


def compare(runs: list[Path]) -> dict[str, Any]:
    """The evaluated scores of several runs, and every setting in which they differ."""
    scores, settings = {}, {}
    for run in runs:
        evaluation = Evaluation.open(_need(run, "evaluate"))
        scores[str(run)] = evaluation.arms
        for task, results in evaluation.result["questions"].items():
            for arm, answers in results["groups"]["all"].items():
                scores[str(run)][arm].setdefault("questions", {})[task] = answers
        manifest = store.read_manifest(_need(run, "report"))
        settings[str(run)] = manifest.reads if manifest else {}
    keys = sorted(set().union(*settings.values()))
    values = {key: [s.get(key, default(key)) for s in settings.values()] for key in keys}
    differences = {k: v for k, v in values.items() if any(x != v[0] for x in v) and k != "name"}
    return {"scores": scores, "differences": differences}


def _pairs(
    pairs: Pairs, corpus: Tokens, tokenizer: Tokenizer, count: int, near: float | None
) -> list[dict[str, Any]]:
    from synthboot.stages import analyze

    if near is not None:
        order = np.argsort(np.abs(pairs.similarity - near), kind="stable")[:count]
    else:
        order = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)
    shown = [analyze.shown(pairs, int(i), tokenizer, corpus, _COPY) for i in order]
    return [
        {
            "title": f"similarity {p['similarity']:.3f}",
            "texts": {"d1": [(p["d1"], 0)], "d2": p["d2"]},
        }
        for p in shown
    ]


def _synthetic(
    run: Path, corpus: Tokens, tokenizer: Tokenizer, count: int, copies: bool
) -> list[dict[str, Any]]:
    from synthboot.stages import analyze

    folder = _need(run, "synthesize", "related")
    made = store.read_manifest(folder)
    external = made.counts.get("external") if made else None
    by = f", external ({external})" if external else ""

    shown: list[dict[str, Any]] = []
    for row in Synthetic.open(folder):
        if len(shown) == count:
            break
        d1 = corpus[row.d1][:-1]
        [copied] = analyze.d1_masks([row.tokens], [d1], _COPY)
        if copies and not copied.any():
            continue
        title = f"d1 {row.d1}, sample {row.sample}, mean log-probability {row.mean_logprob:.2f}{by}"
        texts = {
            "d1": [(tokenizer.decode(d1), 0)],
            "sampled d2": analyze.segments(tokenizer, row.tokens, copied.astype(int)),
        }
        shown.append({"title": title, "texts": texts})
    return shown


def _artifacts(run: Path) -> list[Path]:
    names = {folder_of(run, stage).name for stage in STAGES}
    folders = sorted(p for p in run.iterdir() if p.name in names) if run.is_dir() else []
    if not folders:
        raise MissingArtifact(f"{run}: no run folder; `synthboot run CONFIG` makes one")
    records = (store.MANIFEST, store.PROGRESS)
    files = (file for folder in folders for name in records for file in folder.rglob(name))
    return sorted({file.parent for file in files})


def _need(run: Path, stage: str, variant: str = "") -> Path:
    folder = folder_of(run, stage, variant)
    if store.read_manifest(folder) is None:
        raise MissingArtifact(
            f"{run}: {stage} has not been made yet; run `synthboot {stage} CONFIG`"
        )
    return folder
