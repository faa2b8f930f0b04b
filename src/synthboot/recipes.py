"""The recipes under `arms:` as artifacts: which there have to be, what each reads, and from which others it is made.

Two arms that need the same thing share it: their pairs, their synthesizer, their samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthboot import config
from synthboot.data import documents, tasks
from synthboot.errors import ConfigError

STAGES = ("corpus", "embed", "pair", "base", "tune", "synthesize", "pretrain", "evaluate", "analyze", "report")
VERSIONS = dict.fromkeys(STAGES, 3) | {"corpus": 3, "embed": 4, "synthesize": 2, "evaluate": 4, "analyze": 4, "report": 2}


@dataclass(frozen=True)
class Unit:
    """One artifact to be: its stage and variant, the units it reads by role, and the settings it reads."""

    stage: str
    variant: str
    parents: dict[str, str]
    reads: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`stage` or `stage/variant`."""
        return f"{self.stage}/{self.variant}" if self.variant else self.stage

    def folder(self, root: Path) -> Path:
        """Where its artifact lies: `NN-stage[/variant]`."""
        place = root / f"{STAGES.index(self.stage) + 1:02d}-{self.stage}"
        return place / self.variant if self.variant else place


def units(cfg: config.Config) -> dict[str, Unit]:
    """Every artifact of a configuration by name, parents before children, in pipeline order, a later round of
    bootstrapping after an earlier one."""
    found = _Recipes(cfg).all()
    rounds: dict[str, int] = {}
    for name, unit in found.items():
        here = STAGES.index(unit.stage)
        rounds[name] = max((rounds[p] + (STAGES.index(found[p].stage) > here) for p in unit.parents.values()), default=0)
    return dict(sorted(found.items(), key=lambda item: (rounds[item[0]], STAGES.index(item[1].stage))))


class _Recipes:
    """The units found so far, parents before children, and how to find more."""

    def __init__(self, cfg: config.Config) -> None:
        self.cfg, self.found = cfg, dict[str, Unit]()
        dump = cfg.model_dump(mode="json")
        self.dump, self.seed, self.window = dump, {"seed": cfg.seed}, {"seq_len": cfg.model.seq_len}
        self.training = {"model": dump["model"], "optim": dump["optim"], "train_tokens": cfg.budget.train_tokens}
        self.training["replay_share"] = cfg.budget.replay_share
        self.first = cfg.pretrain.seeds[0]
        source = {"unique_tokens": cfg.budget.unique_tokens, **_outside("init_from", cfg.model.init_from)}
        source["files"] = documents.identity(cfg.corpus.source)
        source["replay_files"] = documents.identity(cfg.corpus.replay or [], "corpus.replay")
        self.corpus = {"corpus": self.add("corpus", "", {}, {"corpus": dump["corpus"], **source})}

    def add(self, stage: str, variant: str, parents: dict[str, str], reads: dict[str, Any], **options: Any) -> str:
        """The name of this unit, which is new or known."""
        unit = Unit(stage, variant, parents, reads, options)
        self.found.setdefault(unit.name, unit)
        return unit.name

    def all(self) -> dict[str, Unit]:
        """All units."""
        cfg, dump = self.cfg, self.dump
        models = {f"{name}/{seed}": self.model(name, seed) for name in cfg.arms for seed in cfg.pretrain.seeds}
        if tasks.WORLD in tasks.names(cfg.evaluate) and cfg.corpus.source != documents.WORLD:
            raise ConfigError("evaluate.tasks: `world` asks about a generated world; it needs corpus.source=world")
        asked = {"questions": documents.identity([str(p) for p in tasks.files(cfg.evaluate)])}
        makes = [u for u in self.found.values() if u.stage in ("embed", "pair", "synthesize", "tune")]
        upstream = {u.name: u.name for u in makes if not u.options.get("cell")}
        written = {name: name for name in upstream if self.found[name].stage == "synthesize"}
        reads = {"evaluate": dump["evaluate"], **asked, **self.window, **self.seed}
        evaluate = self.add("evaluate", "", {**self.corpus, **models, **written}, reads)
        roles = {**self.corpus, "base": self.model("repetition", self.first), "evaluate": evaluate, **models, **upstream}
        if any(u.stage == "synthesize" for u in self.found.values()):
            reads = {"analyze": dump["analyze"], **self.seed}
            roles["analyze"] = self.add("analyze", "", {**self.corpus, **upstream}, reads)
        self.add("report", "", roles, {"config": {k: v for k, v in dump.items() if k not in ("engine", "root")}})
        return self.found

    def model(self, name: str, seed: int) -> str:
        """The unit that holds the model of an arm and seed. With a sweep, that is one of the cells or a model like it."""
        arm, repetition = self.cfg.arms[name], self.cfg.arms["repetition"]
        stage, variant = ("pretrain", f"{name}/seed-{seed}")
        if arm == repetition and seed == self.first:
            name, stage, variant = "repetition", "base", "chosen" if arm.sweep else ""
        known = Unit(stage, variant, {}, {}).name
        if known in self.found:
            return known
        sources, training = self.sources(arm), {**self.training, "arm": self.dump["arms"][name]}
        if not arm.sweep:
            return self.add(stage, variant, sources, {**training, "seed": seed}, arm=name, seed=seed)
        cells = {}
        for cell, setting in arm.cells().items():
            reads = {**training, "arm": setting.model_dump(mode="json"), "seed": self.first}
            place = ("base", cell) if arm == repetition else ("pretrain", f"{name}/{cell}")
            cells[f"cell/{cell}"] = self.add(*place, sources, reads, arm=name, seed=self.first, cell=cell)
        sources = self.corpus if seed == self.first else sources
        return self.add(stage, variant, {**sources, **cells}, {**training, "seed": seed}, arm=name, seed=seed)

    def sources(self, arm: config.Arm) -> dict[str, str]:
        """What an arm's text is made from, by role."""
        found = dict(self.corpus)
        if arm.synthetic:
            found["synthesize"] = self.synthesize(arm)
        if arm.layout == "packed_pairs":
            found["pair"] = self.related()
        return found

    def related(self) -> str:
        """The related pairs."""
        if "pair/related" in self.found:
            return "pair/related"  # files from outside are hashed once
        cfg = self.cfg.embed
        given = _outside("given", cfg.path if cfg.model == "file" else cfg.model)
        embed = self.add("embed", "", self.corpus, {"embed": self.dump["embed"], **given, **self.seed})
        return self.add("pair", "related", {**self.corpus, "embed": embed}, {"pair": self.dump["pair"], **self.seed})

    def synthesize(self, arm: config.Arm) -> str:
        """The unit that holds an arm's synthetic text."""
        cfg, kind, before = self.cfg, str(arm.synthetic), self.cfg.before(arm)
        variant = f"{kind}-after-{before}" if before else kind
        if kind == "scratch":
            synthesizer = self.tune(variant, self.related(), None)
        else:
            synthesizer = self.model(before or "repetition", self.first)
        if kind == "random_pairs":
            pairs = self.add("pair", kind, {**self.corpus, "pair": self.related()}, self.seed)
            synthesizer = self.tune(variant, pairs, synthesizer)
        elif kind == "related":
            synthesizer = self.tune(variant, self.related(), synthesizer)
        share = max(
            c.share for a in cfg.arms.values() for c in a.cells().values() if a.synthetic == kind and cfg.before(a) == before
        )
        tokens = math.ceil(share * cfg.budget.train_tokens) + cfg.model.seq_len
        cut = {"d1_share": cfg.tune.d1_share, "budget_tokens": tokens}
        reads = {"synthesize": self.dump["synthesize"], **self.window, **cut, **self.seed}
        return self.add("synthesize", variant, {**self.corpus, "synthesizer": synthesizer}, reads, budget_tokens=tokens)

    def tune(self, variant: str, pairs: str, start: str | None) -> str:
        """The synthesizer, tuned from a model or, without one, from fresh weights; with a sweep, the best of its cells."""
        parents = {**self.corpus, **({"base": start} if start else {}), "pair": pairs}
        reads = {**self.window, **self.seed, **({} if start else {"model": self.dump["model"]})}
        cells = {}
        for cell, setting in self.cfg.tune.cells().items() if self.cfg.tune.sweep else ():
            read = {"tune": setting.model_dump(mode="json"), **reads}
            cells[f"cell/{cell}"] = self.add("tune", f"{variant},{cell}", parents, read, cell=cell)
        return self.add("tune", variant, {**parents, **cells}, {"tune": self.dump["tune"], **reads})


def _outside(name: str, given: str | None) -> dict[str, Any]:
    """A model or file from outside the run: what it is called and, where it lies on this machine, what is in it."""
    path = Path(given or "")
    files = [str(p) for p in (path, path.with_suffix(".ids")) if p.exists()] if given else []
    return {name: given, **({f"{name}_files": documents.identity(files)} if files else {})}
