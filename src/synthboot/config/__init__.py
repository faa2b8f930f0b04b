"""A whole experiment: its sections (`sections.py`), which go together (`rules.py`)."""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from synthboot.config import rules
from synthboot.config.sections import TUNED as TUNED
from synthboot.config.sections import Analyze as Analyze
from synthboot.config.sections import Arm as Arm
from synthboot.config.sections import Budget as Budget
from synthboot.config.sections import Canaries as Canaries
from synthboot.config.sections import Corpus as Corpus
from synthboot.config.sections import Embed as Embed
from synthboot.config.sections import Endpoint as Endpoint
from synthboot.config.sections import Engine as Engine
from synthboot.config.sections import Evaluate as Evaluate
from synthboot.config.sections import Extract as Extract
from synthboot.config.sections import Filter as Filter
from synthboot.config.sections import JudgeEndpoint as JudgeEndpoint
from synthboot.config.sections import Lora as Lora
from synthboot.config.sections import Model as Model
from synthboot.config.sections import Optim as Optim
from synthboot.config.sections import Pair as Pair
from synthboot.config.sections import Pretrain as Pretrain
from synthboot.config.sections import Section as Section
from synthboot.config.sections import Server as Server
from synthboot.config.sections import Synthesize as Synthesize
from synthboot.config.sections import Tune as Tune
from synthboot.config.sections import World as World
from synthboot.schema import Name, Seed, Text


class Config(Section):
    """A whole experiment."""

    name: Name
    """Name of the run folder: letters, digits, '.', '_' and '-'."""
    root: Text = "runs"
    """Parent of all run folders."""
    seed: Seed = 0
    """Random seed of pairing, tuning and sampling; arms have `pretrain.seeds`."""
    model: Model = Model()
    budget: Budget
    optim: Optim = Optim()
    engine: Engine = Engine()
    corpus: Corpus
    embed: Embed = Embed()
    pair: Pair = Pair()
    tune: Tune = Tune()
    synthesize: Synthesize = Synthesize()
    arms: dict[Name, Arm]
    """Recipes by name; `repetition` is required."""
    pretrain: Pretrain = Pretrain()
    evaluate: Evaluate = Evaluate()
    analyze: Analyze = Analyze()
    extract: Extract = Extract()

    @model_validator(mode="after")
    def _check(self) -> Config:
        """The first rule that is broken is the one that is told."""
        rules.check_arms(self.arms)
        rules.check_start(self.model, self.corpus, self.budget)
        rules.check_judges(self.analyze, self.arms, self.embed)
        rules.check_filters(self.arms, self.embed)
        rules.check_root(self.root)
        rules.check_texts(self.arms, self.pretrain)
        rules.check_extract(self.extract, self.corpus, self.embed, self.model)
        rules.check_pointer(self.tune, self.synthesize)
        rules.check_contrast(self.synthesize, self.tune, self.arms)
        rules.check_synthesizers(self.tune, self.arms)
        rules.check_lora(self.model, self.optim, self.tune, self.engine)
        rules.check_steps(self.model, self.optim, self.budget)
        return self

    @property
    def tune_seq_len(self) -> int:
        """The context length of the synthesizer, in tokens of its own."""
        return self.tune.seq_len or self.model.seq_len

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.root) / self.name
