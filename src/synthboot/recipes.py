"""The recipes under `arms:` as artifacts: which there have to be, what each reads, and from which others it is made.

Two arms that need the same thing share it: their pairs, their synthesizer, their samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthboot import config
from synthboot.data import documents, files, tasks
from synthboot.errors import ConfigError
from synthboot.lm import precision
from synthboot.settings import READS, changed, view

STAGES = (
    "corpus",
    "embed",
    "pair",
    "base",
    "tune",
    "synthesize",
    "pretrain",
    "evaluate",
    "analyze",
    "report",
)
VERSIONS = dict.fromkeys(STAGES, 4) | {
    "corpus": 5,
    "embed": 5,
    "synthesize": 4,
    "evaluate": 6,
    "analyze": 5,
    "report": 3,
}


@dataclass(frozen=True)
class Unit:
    """One artifact to be: its stage and variant, the units it reads by role, and what decides its content.

    `settings` is all of the configuration that its step is given (`settings.view`); `recipe` the arm that it trains;
    `outside` names and hashes what it reads from outside the run. `options` tell its step where in the recipe it stands.
    """

    stage: str
    variant: str
    parents: dict[str, str]
    settings: config.Config
    recipe: config.Arm | None = None
    outside: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`stage` or `stage/variant`."""
        return f"{self.stage}/{self.variant}" if self.variant else self.stage

    @property
    def reads(self) -> dict[str, Any]:
        """What its artifact is known by: settings and recipe where they are not their default, and what is outside."""
        found = changed(self.settings) | self.outside
        if self.recipe is not None:
            found["arm"] = changed(self.recipe)
        for name in ("seed", "budget_tokens"):
            if name in self.options:
                found[f"unit.{name}"] = self.options[name]
        return found

    def folder(self, root: Path) -> Path:
        """Where its artifact lies: `NN-stage[/variant]`."""
        place = root / f"{STAGES.index(self.stage) + 1:02d}-{self.stage}"
        return place / self.variant if self.variant else place


def units(cfg: config.Config) -> dict[str, Unit]:
    """Every artifact of a configuration by name, parents before children, in pipeline order, a later round of
    bootstrapping after an earlier one. What was left to `auto` and is decided counts as what it is."""
    found = _Recipes(precision.recorded(cfg)).all()
    rounds: dict[str, int] = {}
    for name, unit in found.items():
        here = STAGES.index(unit.stage)
        rounds[name] = max(
            (rounds[p] + (STAGES.index(found[p].stage) > here) for p in unit.parents.values()),
            default=0,
        )
    return dict(
        sorted(found.items(), key=lambda item: (rounds[item[0]], STAGES.index(item[1].stage)))
    )


class _Recipes:
    """The units found so far, parents before children, and how to find more."""

    def __init__(self, cfg: config.Config) -> None:
        self.cfg = cfg
        self.found: dict[str, Unit] = {}
        self.first = cfg.pretrain.seeds[0]
        given = _outside("model.init_from", cfg.model.init_from)
        given["files"] = documents.identity(cfg.corpus.source)
        if cfg.corpus.replay is not None:
            given["replay_files"] = documents.identity(cfg.corpus.replay, "corpus.replay")
        self.corpus = {"corpus": self.add("corpus", "", {}, outside=given)}

    def add(
        self,
        stage: str,
        variant: str,
        parents: dict[str, str],
        *,
        reads: tuple[str, ...] = (),
        cfg: config.Config | None = None,
        recipe: config.Arm | None = None,
        outside: dict[str, Any] | None = None,
        **options: Any,
    ) -> str:
        """The name of this unit, which is new or known. It reads what its stage declares, and `reads` beside it."""
        seen = view(cfg or self.cfg, (*READS[stage], *reads))
        unit = Unit(stage, variant, parents, seen, recipe, outside or {}, options)
        self.found.setdefault(unit.name, unit)
        return unit.name

    def all(self) -> dict[str, Unit]:
        """All units."""
        cfg = self.cfg
        models = {
            f"{name}/{seed}": self.model(name, seed)
            for name in cfg.arms
            for seed in cfg.pretrain.seeds
        }
        if tasks.WORLD in tasks.names(cfg.evaluate) and cfg.corpus.source != documents.WORLD:
            raise ConfigError(
                "evaluate.tasks: `world` asks about a generated world; it needs corpus.source=world"
            )
        makes = [
            u for u in self.found.values() if u.stage in ("embed", "pair", "synthesize", "tune")
        ]
        upstream = {u.name: u.name for u in makes if not u.options.get("trial")}
        written = {name: name for name in upstream if self.found[name].stage == "synthesize"}
        asked = {
            "questions": [
                line for path in tasks.files(cfg.evaluate) for line in files.contents(path)
            ]
        }
        evaluate = self.add("evaluate", "", {**self.corpus, **models, **written}, outside=asked)
        base = self.model("repetition", self.first)
        roles = {**self.corpus, "base": base, "evaluate": evaluate, **models, **upstream}
        if any(u.stage == "synthesize" for u in self.found.values()):
            roles["analyze"] = self.add("analyze", "", {**self.corpus, **upstream})
        self.add("report", "", roles, outside={"name": cfg.name})
        return self.found

    def model(self, name: str, seed: int) -> str:
        """The unit that holds the model of an arm and seed. With a sweep, that is one of the trials or a model like it."""
        arm, repetition = self.cfg.arms[name], self.cfg.arms["repetition"]
        stage, variant = "pretrain", f"{name}/seed-{seed}"
        if arm == repetition and seed == self.first:
            name, stage, variant = "repetition", "base", "chosen" if arm.sweep else ""
        known = f"{stage}/{variant}" if variant else stage
        if known in self.found:
            return known
        sources = self.sources(arm)
        if not arm.sweep:
            return self.add(stage, variant, sources, recipe=arm, arm=name, seed=seed)
        trials = {}
        for trial, setting in arm.trials().items():
            place = ("base", trial) if arm == repetition else ("pretrain", f"{name}/{trial}")
            trial = self.add(
                *place, sources, recipe=setting, arm=name, seed=self.first, trial=trial
            )
            trials[f"trial/{trial}"] = trial
        ready = seed == self.first  # one of the trials is this model
        parents = {**(self.corpus if ready else sources), **trials}
        return self.add(stage, variant, parents, recipe=arm, arm=name, seed=seed, ready=ready)

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
        given = _outside("embed.given", cfg.path if cfg.model == "file" else cfg.model)
        embed = self.add("embed", "", self.corpus, outside=given)
        return self.add("pair", "related", {**self.corpus, "embed": embed})

    def synthesize(self, arm: config.Arm) -> str:
        """The unit that holds an arm's synthetic text."""
        cfg, kind, before = self.cfg, str(arm.synthetic), self.cfg.before(arm)
        variant = f"{kind}-after-{before}" if before else kind
        if kind == "scratch":
            synthesizer = self.tune(variant, self.related(), None)
        else:
            synthesizer = self.model(before or "repetition", self.first)
        if kind == "random_pairs":
            pairs = self.add("pair", kind, {**self.corpus, "pair": self.related()})
            synthesizer = self.tune(variant, pairs, synthesizer)
        elif kind == "related":
            synthesizer = self.tune(variant, self.related(), synthesizer)
        like = [a for a in cfg.arms.values() if a.synthetic == kind and cfg.before(a) == before]
        share = max(c.share for a in like for c in a.trials().values())
        tokens = math.ceil(share * cfg.budget.train_tokens) + cfg.model.seq_len
        parents = {**self.corpus, "synthesizer": synthesizer}
        return self.add("synthesize", variant, parents, budget_tokens=tokens)

    def tune(self, variant: str, pairs: str, start: str | None) -> str:
        """The synthesizer, tuned from a model or, without one, from fresh weights; with a sweep, the best of its trials."""
        parents = {**self.corpus, "pair": pairs}
        if start:
            parents["base"] = start
        reads = () if start else ("model",)
        trials = {}
        for trial, setting in self.cfg.tune.trials().items() if self.cfg.tune.sweep else ():
            cfg = self.cfg.model_copy(update={"tune": setting})
            trial = self.add(
                "tune", f"{variant},{trial}", parents, reads=reads, cfg=cfg, trial=trial
            )
            trials[f"trial/{trial}"] = trial
        return self.add("tune", variant, {**parents, **trials}, reads=reads)


def _outside(name: str, given: str | None) -> dict[str, Any]:
    """A model or file from outside the run: where it lies on this machine, what is in it."""
    if not given:
        return {}
    path = Path(given)
    there = [p for p in (path, path.with_suffix(".ids")) if p.exists()]
    return {f"{name}_files": [line for p in there for line in files.contents(p)]} if there else {}
