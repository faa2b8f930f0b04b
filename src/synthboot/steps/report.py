"""report: what all other stages left in, one page out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synthboot import config
from synthboot.artifacts.analysis import Analysis
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.evaluation import Evaluation
from synthboot.artifacts.extraction import Extraction
from synthboot.artifacts.model import Model
from synthboot.artifacts.pairs import Pairs
from synthboot.artifacts.store import read_manifest
from synthboot.steps.context import Context, Outcome


def report(c: Context) -> Outcome:
    """One HTML page from what all the other stages left."""
    from synthboot.report.page import FILE
    from synthboot.report.page import report as stage

    page = stage(gather(c.cfg, c.parents))
    (c.folder / FILE).write_text(page, "utf-8")
    return {"bytes": len(page.encode())}, {}


def gather(
    cfg: config.Config,
    parents: dict[str, Path],
) -> dict[str, Any]:
    """Everything the report shows, as plain values."""
    result: dict[str, Any] = {
        "name": cfg.name,
        "config": cfg.model_dump(mode="json", exclude={"engine", "root"}),
        "corpus": dict(Corpus.open(parents["corpus"]).summary),
        "evaluate": Evaluation.open(parents["evaluate"]).result,
        "pairs": {},
        "tune": {},
        "curves": {},
        "sweeps": {},
        "synthesize": {},
        "analyze": None,
        "examples": [],
        "pair_examples": [],
        "extract": None,
        "costs": [],
        "version": "",
    }
    if "analyze" in parents:
        analysis = Analysis.open(parents["analyze"])
        result["analyze"] = analysis.result
        result["examples"] = analysis.examples
        result["pair_examples"] = analysis.spread

    if "extract" in parents:
        result["extract"] = Extraction.open(parents["extract"]).result

    paid = set()
    for role, folder in parents.items():
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        name = role.removeprefix("model/")
        if folder not in paid:  # base is the first seed of repetition too
            inside = folder.relative_to(cfg.folder).as_posix()
            cost = {"unit": name, "stage": manifest.stage, "folder": inside, **manifest.cost}
            result["costs"].append(cost)
        paid.add(folder)
        if manifest.stage == "evaluate":
            result["version"] = manifest.environment.get("synthboot", "")
        model = Model.open(folder)
        if manifest.stage == "pair":
            result["pairs"][role] = Pairs.load(folder).report
        elif manifest.stage == "tune":
            result["tune"][role] = model.tuning
            if model.sweep is not None:
                result["sweeps"][role] = model.sweep
        elif manifest.stage in ("base", "pretrain"):
            result["curves"][name] = model.curve
        elif manifest.stage == "synthesize":
            result["synthesize"][role] = manifest.counts
    return result
