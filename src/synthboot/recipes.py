"""From the recipes under `arms:` to artifacts: which ones there have to be, which settings each
reads, and from which others it is made.

Two arms that need the same thing share it: pairs, a synthesizer, samples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from synthboot import config
from synthboot.artifacts.external import EXTERNAL
from synthboot.artifacts.extraction import COMPARED
from synthboot.artifacts.synthetic import SAMPLED
from synthboot.config.texts import SyntheticText, before, text_of
from synthboot.data import documents, files, tasks
from synthboot.data.hashes import Hashes
from synthboot.errors import ConfigError
from synthboot.lm import precision
from synthboot.report.results import COST
from synthboot.settings import (
    ASKING,
    READ_BY_EXTERNAL,
    READ_BY_FILTER,
    READ_BY_LIKELIHOOD,
    READS,
    Synthesis,
    Training,
    changed,
    view,
)

STAGES = (
    "corpus",
    "embed",
    "pair",
    "base",
    "tune",
    "synthesize",
    "pretrain",
    "score",
    "evaluate",
    "analyze",
    "report",
    "extract",
)
"""In the order that folders are numbered by; a stage that synthboot got later stands last, so that
no number moved."""
VERSIONS = dict.fromkeys(STAGES, 4) | {
    "corpus": 6,
    "embed": 5,
    "pair": 8,
    "base": 7,
    "tune": 6,
    "synthesize": 5,
    "pretrain": 7,
    "score": 1,
    "evaluate": 18,
    "analyze": 11,
    "report": 10,
    "extract": 3,
}
"""Raised where a stage would leave something else from the same settings and parents."""


@dataclass(frozen=True)
class Unit:
    """One artifact to be made: its stage and variant, the units that it reads, by role, and what
    decides its content.

    `settings` is the part of the configuration that its step is given (`settings.view`). `outside`
    names and hashes what it reads from outside the run. `training` says which model it trains,
    `synthesis` which synthetic text it leaves, where it does. It `is_trial` where it is one of the
    combinations of a sweep.
    """

    stage: str
    variant: str
    parents: dict[str, str]
    settings: config.Config
    outside: dict[str, Any] = field(default_factory=dict)
    training: Training | None = None
    synthesis: Synthesis | None = None
    is_trial: bool = False

    @property
    def name(self) -> str:
        """`stage` or `stage/variant`."""
        return f"{self.stage}/{self.variant}" if self.variant else self.stage

    @property
    def reads(self) -> dict[str, Any]:
        """What its artifact is known by: settings and recipe where they differ from their defaults,
        and what it reads from outside."""
        result = changed(self.settings) | self.outside
        for told in (self.training, self.synthesis):
            if told is not None:
                result |= told.reads
        return result

    def folder(self, root: Path) -> Path:
        """Where its artifact lies: `NN-stage[/variant]`."""
        return folder_of(root, self.stage, self.variant)


def is_filter(unit: Unit) -> bool:
    """Whether a unit chooses among the samples of another."""
    return SAMPLED in unit.parents


def folder_of(root: Path, stage: str, variant: str = "") -> Path:
    """Where an artifact of a run lies: `NN-stage[/variant]`."""
    number = STAGES.index(stage) + 1
    return root / f"{number:02d}-{stage}" / variant


def units(
    cfg: config.Config,
    hashes: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Unit]:
    """Every artifact of a configuration by name: parents before children, in the order of the
    pipeline, a later round of bootstrapping after an earlier one.

    A setting that was left to `auto` counts as what has been decided. Files outside the run are
    hashed where they are new or have changed since (`data.hashes`), unless `hashes`, from an
    earlier plan (`outside`), has them.
    """
    recipes = _Recipes(precision.recorded(cfg), hashes)
    all_units = recipes.all()
    recipes.known.save()
    # (round, stage): a unit that reads one of a later stage than its own is of the next round
    order: dict[str, tuple[int, int]] = {}
    for name, unit in all_units.items():
        stage = STAGES.index(unit.stage)
        round_number = 0
        for parent in unit.parents.values():
            parent_round, parent_stage = order[parent]
            round_number = max(round_number, parent_round + (parent_stage > stage))
        order[name] = round_number, stage
    return {name: all_units[name] for name in sorted(all_units, key=lambda name: order[name])}


def outside(plan: Mapping[str, Unit]) -> dict[str, Any]:
    """What the files outside the run are known by, as a plan has hashed them."""
    hashes: dict[str, Any] = {}
    for unit in plan.values():
        hashes |= unit.outside  # whoever reads the same files calls them the same
    return hashes


def models(plan: Mapping[str, Unit]) -> dict[str, str]:
    """The unit that holds each model of a whole plan, by `ARM/seed-N`: a unit of `pretrain`, or
    base, which is the first seed of repetition and of every arm with the same recipe."""
    by_name = {}
    for role, unit in plan["evaluate"].parents.items():
        kind, _, rest = role.partition("/")
        if kind == "model":
            arm, seed = rest.rsplit("/", 1)
            by_name[f"{arm}/seed-{seed}"] = unit
    return by_name


def model_of(plan: Mapping[str, Unit], arm: str, seed: int) -> str:
    """The unit of a whole plan that holds the model of an arm and seed."""
    return plan["evaluate"].parents[f"model/{arm}/{seed}"]


def _largest_share(arm: config.Arm) -> float:
    """The largest share of synthetic text that a trial of an arm has."""
    return max(trial.share for trial in arm.trials().values())


_TOKENIZER = re.compile(
    r"(tokenizer|vocab|merges|special_tokens|added_tokens|spiece|sentencepiece|chat_template)"
    r"|.*\.(model|tiktoken)$"
)
"""What the names of a tokenizer's files begin with, or end in."""


class _Recipes:
    """The units found so far, parents before children, and how to find more."""

    def __init__(self, cfg: config.Config, hashes: Mapping[str, Any]) -> None:
        self.cfg = cfg
        self.hashes = hashes
        self.known = Hashes(cfg.folder)
        self.units: dict[str, Unit] = {}
        self.first = cfg.pretrain.seeds[0]
        corpus = self.add("corpus", "", {}, outside=self.outside_of_corpus())
        self.corpus = {"corpus": corpus}

    def outside_of_corpus(self) -> dict[str, Any]:
        """What the corpus reads from outside the run: text, a model, a tokenizer."""
        cfg = self.cfg.corpus
        start = self.cfg.model.init_from
        outside = self.given("model.init_from", start)
        if cfg.tokenizer != "train" and start is None:
            outside |= self.tokenizer(cfg.tokenizer)
        if cfg.split_field is not None and cfg.near_duplicates == "flag":
            # tells such a corpus from earlier ones, which kept near-duplicates of held-out text
            outside["near_held_out"] = "left out"

        outside["files"] = self.hashed("files", lambda: self.identity(cfg.source, "source"))
        replay = cfg.replay
        if replay is not None:
            outside["replay_files"] = self.hashed(
                "replay_files", lambda: self.identity(replay, "replay")
            )
        return outside

    def identity(self, source: str | list[str], setting: str) -> list[str]:
        """What the text that a setting of `corpus` names is known by."""
        return documents.identity(source, f"corpus.{setting}", self.known.of)

    def contents(self, paths: Iterable[Path]) -> list[str]:
        """Name, size and hash of every file at or below the paths."""
        lines = []
        for path in paths:
            lines += files.contents(path, hash_of=self.known.of)
        return lines

    def hashed(self, name: str, read: Callable[[], list[str]]) -> list[str]:
        """The hashes of this name: those of the earlier plan, or else what `read` finds."""
        hashes: list[str] | None = self.hashes.get(name)
        return read() if hashes is None else hashes

    def given(self, name: str, source: str | None) -> dict[str, Any]:
        """The hashes of a model or file from outside the run, where it lies on this machine."""
        if not source:
            return {}
        path = Path(source)
        ids = path.parent / f"{path.stem}.ids"  # `with_suffix` takes no `.`, which has no name
        existing = [file for file in (path, ids) if file.exists()]
        if not existing:  # a name on the hub
            return {}
        key = f"{name}_files"
        return {key: self.hashed(key, lambda: self.contents(existing))}

    def tokenizer(self, source: str) -> dict[str, Any]:
        """The hashes of a tokenizer; in a folder, which may be a model's, of its own files
        alone."""
        path = Path(source)
        if not path.is_dir():
            return self.given("corpus.tokenizer", source)
        own = [file for file in sorted(path.iterdir()) if _TOKENIZER.match(file.name)]
        key = "corpus.tokenizer_files"
        return {key: self.hashed(key, lambda: self.contents(own))}

    def add(
        self,
        stage: str,
        variant: str,
        parents: dict[str, str],
        *,
        reads: tuple[str, ...] = (),
        cfg: config.Config | None = None,
        outside: dict[str, Any] | None = None,
        training: Training | None = None,
        synthesis: Synthesis | None = None,
        is_trial: bool = False,
    ) -> str:
        """Add a unit unless it is there already; returns its name.

        It reads the settings that its stage declares, and `reads` beside them.
        """
        unit = Unit(
            stage=stage,
            variant=variant,
            parents=parents,
            settings=view(cfg or self.cfg, (*READS[stage], *reads)),
            outside=outside or {},
            training=training,
            synthesis=synthesis,
            is_trial=is_trial,
        )
        # arms that need the same thing share it
        self.units.setdefault(unit.name, unit)
        return unit.name

    def all(self) -> dict[str, Unit]:
        """All units."""
        cfg = self.cfg
        models = {}
        scores = {}
        for name in cfg.arms:
            for seed in cfg.pretrain.seeds:
                model = self.model(name, seed)
                models[f"model/{name}/{seed}"] = model
                scores[f"score/{name}/{seed}"] = self.score(model)

        upstream = {}
        synthetic = {}
        for name, unit in self.units.items():
            # a trial is shown by the unit that its sweep chose, text by that of the first seed
            makes_text = unit.stage in ("embed", "pair", "synthesize", "tune")
            is_first = unit.synthesis is None or unit.synthesis.text_of_seed is None
            if makes_text and is_first and not unit.is_trial:
                upstream[name] = name
            if unit.stage == "synthesize":
                synthetic[name] = name

        # `evaluate` looks for questions in synthetic text, and for neighbours by vectors
        parents = {**self.corpus, **models, **scores, **synthetic}
        if "pair/related" in self.units and cfg.embed.model != "file":
            parents |= {"embed": "embed", "pair/related": "pair/related"}
        evaluate = self.add("evaluate", "", parents)
        base = self.model("repetition", self.first)
        roles = {
            **self.corpus,
            "base": base,
            "evaluate": evaluate,
            **models,
            **scores,
            **upstream,
            **synthetic,  # all of it was paid for
        }
        if synthetic:
            roles["analyze"] = self.analyze({**self.corpus, "base": base, **upstream})
        if self.cfg.extract.docs or self.cfg.corpus.canaries.count:
            roles["extract"] = self.extract(models)
        # whatever else was made was paid for too, such as trials: the report shows what it cost
        for name in self.units:
            if name not in roles.values():
                roles[f"{COST}{name}"] = name
        self.add("report", "", roles, outside={"name": cfg.name})
        return self.units

    def analyze(self, parents: dict[str, str]) -> str:
        """The unit that holds the measures of all synthetic text."""
        judges = self.cfg.analyze.judges
        models: dict[str, Any] = {}
        for judge in judges:
            kind, _, source = judge.partition(":")
            if kind == "local":
                models |= self.given(f"analyze.judges.{source}", source)
        return self.add(
            "analyze",
            "",
            parents,
            reads=READ_BY_LIKELIHOOD if "likelihood" in judges else (),
            outside=models,
        )

    def extract(self, models: Mapping[str, str]) -> str:
        """The unit that compares what can be got out of these models; a unit of its own asks
        each."""
        asked = {}
        for role, model in models.items():
            asked[role.replace("model/", "extract/", 1)] = self.add(
                "extract",
                self.called(model),
                {**self.corpus, "model": model},
            )
        return self.add("extract", COMPARED, {**self.corpus, **asked})

    def called(self, model: str) -> str:
        """The variant of what is made of a model: its arm and seed."""
        training = self.units[model].training
        assert training is not None  # as every model has
        return f"{training.arm}/seed-{training.seed}"

    def score(self, model: str) -> str:
        """The unit that holds the scores of a model.

        Raises ConfigError where questions about a world are asked and the corpus is none.
        """
        # how questions are asked is nothing to a score where none is
        reads = ASKING if self.cfg.evaluate.tasks else ()
        return self.add(
            "score",
            self.called(model),
            {**self.corpus, "model": model},
            reads=reads,
            outside=self.questions,
        )

    @cached_property
    def questions(self) -> dict[str, Any]:
        """The files of questions, hashed once for all models."""
        cfg = self.cfg
        asks_world = tasks.WORLD in tasks.names(cfg.evaluate)
        if asks_world and cfg.corpus.source != documents.WORLD:
            raise ConfigError(
                "evaluate.tasks: `world` asks about a generated world; it needs corpus.source=world"
            )
        paths = tasks.files(cfg.evaluate)
        if not paths:
            return {}
        return {"questions": self.hashed("questions", lambda: self.contents(paths))}

    def model(self, name: str, seed: int) -> str:
        """The unit that holds the model of an arm and seed.

        With a sweep it takes over the trial that was chosen, or for a later seed trains a model by
        the same recipe.
        """
        arm = self.cfg.arms[name]
        is_repetition = arm == self.cfg.arms["repetition"]
        is_base = is_repetition and seed == self.first
        stage = "pretrain"
        variant = f"{name}/seed-{seed}"
        if is_base:
            # an arm with the recipe of repetition shares its model, from which synthesizers start
            name = "repetition"
            stage = "base"
            variant = "chosen" if arm.sweep else ""
        unit = f"{stage}/{variant}" if variant else stage
        if unit in self.units:
            return unit

        sources = self.sources(arm, seed)
        if not arm.sweep:
            return self.add(stage, variant, sources, training=Training(name, arm, seed))

        trials = {}
        for trial, setting in arm.trials().items():
            trial_unit = self.add(
                "base" if is_repetition else "pretrain",
                trial if is_repetition else f"{name}/{trial}",
                self.sources(arm, self.first),
                training=Training(name, setting, self.first),
                is_trial=True,
            )
            trials[f"trial/{trial}"] = trial_unit

        ready = seed == self.first  # one of the trials is this model already
        parents = {**(self.corpus if ready else sources), **trials}
        return self.add(stage, variant, parents, training=Training(name, arm, seed, ready))

    def sources(self, arm: config.Arm, seed: int) -> dict[str, str]:
        """What a model of an arm is trained on, by role."""
        result = dict(self.corpus)
        if arm.synthetic:
            result["synthesize"] = self.synthesize(arm, seed)
        if arm.layout == "packed_pairs":
            result["pair"] = self.related()
        if arm.distill is not None:
            # seed by seed: with a teacher of its own, each seed of this arm is independent
            result["teacher"] = self.model(arm.distill, seed)
        return result

    def related(self) -> str:
        """The related pairs."""
        if "pair/related" in self.units:
            return "pair/related"  # files from outside are hashed once
        cfg = self.cfg.embed
        source = cfg.path if cfg.model == "file" else cfg.model
        given = self.given("embed.given", source)
        embed = self.add("embed", "", self.corpus, outside=given)
        return self.add("pair", "related", {**self.corpus, "embed": embed})

    def synthesize(self, arm: config.Arm, seed: int) -> str:
        """The unit that holds the synthetic text that an arm reads with a seed."""
        cfg = self.cfg
        text = text_of(arm, seed, cfg.arms, cfg.pretrain)
        kind = str(arm.synthetic)
        earlier = before(arm, cfg.arms)
        synthesizer = self.synthesizer(kind, text.writer, earlier)

        # enough for the arm that takes the most of it
        largest = 0.0
        for other in cfg.arms.values():
            if other.synthetic == kind and before(other, cfg.arms) == earlier:
                times = other.filter.times if other.filter.chooses else 1.0
                largest = max(largest, times * _largest_share(other))
        parents = {**self.corpus, "synthesizer": synthesizer}
        if cfg.tune.init_from is not None:
            parents[EXTERNAL] = self.external()
        if cfg.tune.contexts > 1 and kind != "unconditional":
            # the documents beside d1 come from the pairs that it was tuned on
            parents["pair"] = self.units[synthesizer].parents["pair"]
        sampled = self.add(
            "synthesize",
            text.sampled,
            parents,
            synthesis=Synthesis(self.tokens(largest), text.of_seed),
        )
        # what a filter leaves lies beside what it chooses from
        return self.filtered(arm, text, sampled) if arm.filter.chooses else sampled

    def tokens(self, share: float) -> int:
        """Synthetic tokens that an arm with this share reads, the rest of its last row included."""
        return math.ceil(share * self.cfg.budget.train_tokens) + self.cfg.model.seq_len

    def filtered(self, arm: config.Arm, text: SyntheticText, sampled: str) -> str:
        """The unit that holds what an arm's filter leaves of a unit's samples.

        Arms with the same filter share it, however much each has sampled for it.
        """
        arms = self.cfg.arms
        chosen = arm.filter
        largest = 0.0
        for other in arms.values():
            is_same = other.synthetic == arm.synthetic and before(other, arms) == before(arm, arms)
            if is_same and other.filter.name == chosen.name:
                largest = max(largest, _largest_share(other))

        judges = chosen.judged.values()
        parents = {**self.corpus, SAMPLED: sampled}
        reads: tuple[str, ...] = READ_BY_FILTER
        if chosen.loss is not None:
            parents["base"] = self.model("repetition", self.first)
        if chosen.similarity is not None or chosen.judged:
            # cases are made of real pairs, and facts are held against the nearest documents
            parents["pair/related"] = self.related()
            parents["embed"] = "embed"
        if "likelihood" in judges:
            parents["tune/related"] = self.synthesizer("related", "related", None)
            reads += READ_BY_LIKELIHOOD
        return self.add(
            "synthesize",
            text.name,
            parents,
            reads=reads,
            synthesis=Synthesis(self.tokens(largest), text.of_seed, chosen),
        )

    def synthesizer(
        self,
        kind: str,
        variant: str,
        earlier: str | None,
    ) -> str:
        """The unit that holds the model which writes synthetic text of this kind."""
        if kind == "scratch":
            return self.tune(variant, self.related(), None)
        external = self.cfg.tune.init_from is not None
        start = self.external() if external else self.model(earlier or "repetition", self.first)
        if kind == "random_pairs":
            pairs = self.add(
                "pair",
                kind,
                {
                    **self.corpus,
                    "pair": self.related(),
                },
            )
            return self.tune(variant, pairs, start)
        # an external model that writes without d1 is tuned too, on the same d2 without their d1: so
        # it knows as much of D_pretrain as the others
        if kind == "related" or external:
            return self.tune(variant, self.related(), start)
        return start  # unconditional: the language model itself

    def external(self) -> str:
        """The unit that holds an external model, and the corpus in its tokens."""
        name = f"corpus/{EXTERNAL}"
        if name in self.units:
            return name  # its files are hashed once
        return self.add(
            "corpus",
            EXTERNAL,
            self.corpus,
            reads=READ_BY_EXTERNAL,
            outside=self.given("tune.init_from", self.cfg.tune.init_from),
        )

    def tune(
        self,
        variant: str,
        pairs: str,
        start: str | None,
    ) -> str:
        """The synthesizer, tuned from a model or, without one, from fresh weights; with a sweep,
        the best of its trials."""
        parents = {**self.corpus, "pair": pairs}
        if start:
            is_external = self.cfg.tune.init_from is not None
            parents[EXTERNAL if is_external else "base"] = start
        # fresh weights are built by the settings of `model`; others have their sizes already
        reads = () if start else ("model",)
        if not self.cfg.tune.sweep:
            return self.add("tune", variant, parents, reads=reads)

        trials = {}
        for trial, setting in self.cfg.tune.trials().items():
            unit = self.add(
                "tune",
                f"{variant},{trial}",
                parents,
                reads=reads,
                cfg=self.cfg.model_copy(update={"tune": setting}),
                is_trial=True,
            )
            trials[f"trial/{trial}"] = unit
        return self.add(
            "tune",
            variant,
            {**parents, **trials},
            reads=reads,
        )
