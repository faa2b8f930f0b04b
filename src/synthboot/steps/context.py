"""What every step is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthboot import config, pool
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.embeddings import Embeddings
from synthboot.artifacts.external import EXTERNAL, External
from synthboot.artifacts.model import Model
from synthboot.artifacts.pairs import Pairs
from synthboot.artifacts.parts import WHOLE, Part
from synthboot.artifacts.store import Progress, Shards, read_manifest
from synthboot.artifacts.synthetic import Synthetic
from synthboot.settings import Synthesis, Training

if TYPE_CHECKING:
    from synthboot.stages.embed import Embedder

_SYNTHESIZE = "synthesize/"


@dataclass(frozen=True)
class Context:
    """What a step works with: the settings that its stage declares, its folder, and its parents'
    folders by role, which it reads by the methods below.

    - `progress` and `note` tell the user how far it is, and what to know.
    - `outside` names and hashes the files from outside the run that its artifact is known by.
    - `variant` says which artifact of its stage it makes, `training` which model, `synthesis` which
      synthetic text.
    - With a `part`, only that part of its items is to be made; `found` takes where items lie, and
      how many there are in all parts together.
    """

    cfg: config.Config
    folder: Path
    parents: dict[str, Path]
    workers: int
    progress: Progress
    note: Callable[[str], None] = lambda _: None
    outside: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""
    training: Training | None = None
    synthesis: Synthesis | None = None
    part: Part = WHOLE
    found: Callable[[Shards, int], None] = lambda *_: None

    @property
    def device(self) -> str:
        """The device that models run on, as torch names it."""
        # imported here, as torch takes seconds
        from synthboot.lm.model import device

        return str(device(self.cfg.engine.device))

    @property
    def gpu_workers(self) -> int:
        """Number of workers, of which each fills the memory of a GPU: one per GPU of this machine,
        however many units run side by side. Ray places workers by itself."""
        if self.cfg.engine.executor == "ray" or self.device == "cpu":
            return self.workers
        return min(self.workers, max(1, len(pool.gpus())))

    @property
    def threads(self) -> int:
        """Threads for what this process does itself while its workers rest; Ray gives it one
        core."""
        if self.cfg.engine.executor == "ray":
            return 1
        return min(self.workers, pool.jobs(0))

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus, which every other stage reads."""
        return Corpus.open(self.parents["corpus"])

    @cached_property
    def external(self) -> External | None:
        """The external model and the corpus in its tokens, where the synthesizer is one."""
        folder = self.parents.get(EXTERNAL)
        return None if folder is None else External.open(folder)

    @cached_property
    def embeddings(self) -> Embeddings | None:
        """The vectors of the corpus, where this unit reads them."""
        folder = self.parents.get("embed")
        return None if folder is None else Embeddings.open(folder)

    @cached_property
    def embedder(self) -> Embedder | None:
        """From texts to unit vectors (text, dim), by the embedding of D_pretrain; None where this
        unit reads no vectors, or the user brought them."""
        from synthboot.stages import embed

        if self.embeddings is None or self.cfg.embed.model == "file":
            return None
        batch = self.cfg.engine.embed_batch
        return embed.embedder(self.cfg.embed, self.embeddings.embedder, self.device, batch)

    def pairs(self, role: str = "pair") -> Pairs:
        """The pairs that stand in a role."""
        return Pairs.load(self.parents[role])

    def model(self, role: str) -> Model:
        """The model that stands in a role."""
        return Model.open(self.parents[role])

    @property
    def models(self) -> dict[str, dict[int, Model]]:
        """The models of all arms by name and seed, where this unit compares them."""
        by_arm: dict[str, dict[int, Model]] = {}
        for role in self.parents:
            kind, _, model = role.partition("/")
            if kind == "model":
                arm, _, seed = model.rpartition("/")
                by_arm.setdefault(arm, {})[int(seed)] = self.model(role)
        return by_arm

    @property
    def synthetic(self) -> dict[str, Synthetic]:
        """By kind, all synthetic text that this unit looks into."""
        by_kind = {}
        for role, folder in self.parents.items():
            if role.startswith(_SYNTHESIZE):
                by_kind[role.removeprefix(_SYNTHESIZE)] = Synthetic.open(folder)
        return by_kind


Outcome = tuple[dict[str, Any], dict[str, float]]
Step = Callable[[Context], Outcome]
PartStep = Callable[[Context], int]
"""Makes the items of one part, and returns how many these are."""


def conditional(kind: str) -> bool:
    """Whether an S_pretrain of this kind was written from d1; in later rounds too."""
    return not kind.rpartition("/")[2].startswith("unconditional")


def upstream_flops(c: Context) -> float:
    """The FLOPs of all units upstream of this one, without corpus and base: what an arm of
    `match: flops` pays for besides its own training.

    In a later round a synthesizer starts from the model of an arm, which is paid for as a whole.
    """
    flops = 0.0
    for role, folder in c.parents.items():
        if role == "pair" and "synthesizer" in c.parents:
            continue  # the synthesizer has paid for its pairs
        manifest = read_manifest(folder)
        if manifest is not None and manifest.stage == "pretrain":
            flops += manifest.counts["train_flops"] + manifest.counts["spent_flops"]
        if manifest is not None and manifest.stage in ("embed", "pair", "tune"):
            flops += manifest.cost.get("flops", 0.0) + manifest.counts.get("upstream_flops", 0.0)
    return flops
