"""report: what all other stages left in, one page out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from synthboot import config
from synthboot.artifacts.analysis import Analysis, Examples
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.evaluation import Evaluation
from synthboot.artifacts.extraction import Extraction
from synthboot.artifacts.model import Model
from synthboot.artifacts.pairs import Pairs
from synthboot.artifacts.store import Manifest, read_manifest
from synthboot.report.results import COST, Cost, Results
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
    parents: Mapping[str, Path],
) -> Results:
    """Everything the report shows."""
    pairs = {}
    tune = {}
    curves = {}
    sweeps = {}
    synthesize = {}
    costs: dict[str, Cost] = {}  # by folder: base is the first seed of repetition too
    version = ""
    for role, folder in parents.items():
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        name = role.removeprefix("model/").removeprefix(COST)
        inside = folder.relative_to(cfg.folder).as_posix()
        costs.setdefault(inside, _cost(name, inside, manifest))
        if role.startswith(COST):
            continue
        model = Model.open(folder)
        if manifest.stage == "evaluate":
            version = manifest.environment.get("synthboot", "")
        elif manifest.stage == "pair":
            pairs[role] = Pairs.load(folder).chosen
        elif manifest.stage == "tune":
            tune[role] = model.tuning
            if model.sweep is not None:
                sweeps[role] = model.sweep
        elif manifest.stage in ("base", "pretrain"):
            curves[name] = model.curve
        elif manifest.stage == "synthesize":
            synthesize[role] = manifest.counts

    analysis = None
    examples = Examples()
    if "analyze" in parents:
        analysis = Analysis.open(parents["analyze"])
        examples = Examples.open(parents["analyze"])
    extraction = Extraction.open(parents["extract"]) if "extract" in parents else None
    return Results(
        name=cfg.name,
        config=cfg,
        corpus=Corpus.open(parents["corpus"]).summary,
        evaluate=Evaluation.open(parents["evaluate"]),
        pairs=pairs,
        tune=tune,
        curves=curves,
        sweeps=sweeps,
        synthesize=synthesize,
        analyze=analysis,
        examples=examples,
        extract=extraction,
        costs=list(costs.values()),
        version=version,
    )


def _cost(unit: str, folder: str, manifest: Manifest) -> Cost:
    """What an artifact cost, by its manifest."""
    return Cost(
        unit=unit,
        stage=manifest.stage,
        folder=folder,
        seconds=manifest.cost["seconds"],
        peak_memory_bytes=int(manifest.cost["peak_memory_bytes"]),
        tokens=manifest.cost.get("tokens"),
        flops=manifest.cost.get("flops"),
    )
