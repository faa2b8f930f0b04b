"""The finished artifacts of a run by name: nothing that is missing, stale or damaged is handed
on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from synthboot import config, recipes
from synthboot.artifacts import store
from synthboot.artifacts.analysis import Analysis
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.evaluation import Evaluation
from synthboot.artifacts.extraction import COMPARED, Extraction
from synthboot.errors import ConfigError, MissingArtifact
from synthboot.runner.state import states


@dataclass(frozen=True)
class Made:
    """A finished artifact: its unit, where it lies, and its record."""

    unit: recipes.Unit
    folder: Path
    manifest: store.Manifest


class Finished:
    """A run as far as it is finished by these settings."""

    def __init__(self, cfg: config.Config) -> None:
        self.cfg = cfg
        self.plan = recipes.units(cfg)
        self.states = states(cfg, self.plan)
        self._made: dict[str, Made] = {}

    def has(self, name: str) -> bool:
        """Whether a unit of the plan is finished."""
        return name in self.states and self.states[name].status == "done"

    def made(self, name: str) -> Made:
        """A finished artifact whose files are as they were made.

        Raises MissingArtifact unless it is finished, CorruptArtifact where a file is another.
        """
        if name in self._made:
            return self._made[name]  # hashed once
        unit = self.plan[name]
        state = self.states[name]
        if state.status != "done":
            why = f" ({', '.join(state.reasons)})" if state.reasons else ""
            raise MissingArtifact(
                f"{self.cfg.folder}: {name} is {state.status}{why}; "
                f"run `synthboot {unit.stage} CONFIG` first"
            )
        folder = unit.folder(self.cfg.folder)
        manifest = store.read_manifest(folder)
        assert manifest is not None  # it is done
        store.verify(folder, manifest)
        self._made[name] = Made(unit, folder, manifest)
        return self._made[name]

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus. Raises as `made` does."""
        return Corpus.open(self.made("corpus").folder)

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """What the comparison of all arms found, once there is one."""
        return Evaluation.open(self.made("evaluate").folder) if self.has("evaluate") else None

    @cached_property
    def analysis(self) -> Analysis | None:
        """The measures of real and synthetic text, once there are any."""
        return Analysis.open(self.made("analyze").folder) if self.has("analyze") else None

    @cached_property
    def extraction(self) -> Extraction | None:
        """What can be got out of the models again, once they were asked."""
        name = f"extract/{COMPARED}"
        return Extraction.open(self.made(name).folder) if self.has(name) else None

    def arms(self, arm: str | None) -> list[str]:
        """This arm, or all of them. Raises ConfigError where there is none of that name."""
        names = list(self.cfg.arms)
        if arm is None:
            return names
        if arm not in names:
            raise ConfigError(f"{self.cfg.name}: no arm {arm}; there are {', '.join(names)}")
        return [arm]

    def seeds(self, seed: int | None) -> list[int]:
        """This seed, or all of them. Raises ConfigError where no model has it."""
        seeds = list(self.cfg.pretrain.seeds)
        if seed is None:
            return seeds
        if seed not in seeds:
            known = ", ".join(map(str, seeds))
            raise ConfigError(f"{self.cfg.name}: no model of seed {seed}; there are {known}")
        return [seed]

    def model(self, arm: str, seed: int) -> str:
        """The unit that holds the model of an arm and seed."""
        return recipes.model_of(self.plan, arm, seed)

    def readers(self, unit: recipes.Unit) -> list[recipes.Unit]:
        """The units that read the text of a model: itself, or the trials of its sweep where one of
        them is this model already."""
        if unit.training is None or not unit.training.ready:
            return [unit]
        return [self.plan[name] for role, name in unit.parents.items() if role.startswith("trial/")]

    def written(self, arm: str | None, seed: int | None = None) -> list[str]:
        """The units whose synthetic text this arm reads with a seed or, that of the first first,
        with any; or any arm.

        Raises ConfigError where there is none.
        """
        if arm is None:
            found = [name for name, unit in self.plan.items() if unit.stage == "synthesize"]
        else:
            [name] = self.arms(arm)
            texts: dict[str, None] = {}  # in the order of seeds, which may share one
            for number in self.seeds(seed):
                for reader in self.readers(self.plan[self.model(name, number)]):
                    if "synthesize" in reader.parents:
                        texts[reader.parents["synthesize"]] = None
            found = list(texts)
        if not found:
            who = "arms read" if arm is None else f"arm {arm} reads"
            raise ConfigError(f"{self.cfg.name}: {who} no synthetic text")
        return found
