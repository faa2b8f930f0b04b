"""What all stages of a run have left, as the page shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from synthboot import config
from synthboot.artifacts.analysis import Analysis, Examples
from synthboot.artifacts.corpus import Counts
from synthboot.artifacts.evaluation import Evaluation
from synthboot.artifacts.extraction import Extraction
from synthboot.artifacts.model import Curve, Sweep, Tuning
from synthboot.artifacts.pairs import Chosen

COST = "cost/"
"""How the roles begin of what is read for its cost alone."""


@dataclass(frozen=True)
class Cost:
    """What an artifact cost: `unit` made it, and it lies in `folder` below the run's. Tokens and
    FLOPs are None where there are none to count."""

    unit: str
    stage: str
    folder: str
    seconds: float
    peak_memory_bytes: int
    tokens: float | None = None
    flops: float | None = None


@dataclass(frozen=True)
class Results:
    """A run's results by what made them; what it does not have is empty.

    `pairs`, `tune` and `synthesize` are by unit, `curves` by model, `sweeps` by synthesizer.
    `examples` are those of `analyze`, `extract` is what its stage found where it was asked for.
    `version` is the one that compared the arms.
    """

    name: str
    config: config.Config
    corpus: Counts
    evaluate: Evaluation
    pairs: Mapping[str, Chosen] = field(default_factory=dict)
    tune: Mapping[str, Tuning] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    sweeps: Mapping[str, Sweep] = field(default_factory=dict)
    synthesize: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    analyze: Analysis | None = None
    examples: Examples = field(default_factory=Examples)
    extract: Extraction | None = None
    costs: Sequence[Cost] = ()
    version: str = ""

    @property
    def related(self) -> Chosen | None:
        """What pairing told of the pairs that the method reads, if it has any."""
        for unit, pairs in self.pairs.items():
            if unit.endswith("related"):
                return pairs
        return None
