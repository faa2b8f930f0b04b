"""What every step is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from synthboot import config
from synthboot.artifacts.store import Progress, Shards, read_manifest
from synthboot.data import tokenizer as tokenizers
from synthboot.data.disk import read_json
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens


@dataclass(frozen=True)
class Context:
    """What a step works with: the settings that its stage declares, its folder, its parents'
    folders by role, and where in the recipe it stands.

    `outside` names and hashes the files from outside that its artifact is known by; `ready` says
    that a trial of its sweep is this model already.
    """

    cfg: config.Config
    folder: Path
    parents: dict[str, Path]
    workers: int
    progress: Progress
    note: Callable[[str], None] = lambda _: None
    outside: Mapping[str, Any] = field(default_factory=dict)
    arm: str = ""
    seed: int = 0
    trial: str = ""
    recipe: config.Arm | None = None
    ready: bool = False
    variant: str = ""
    budget_tokens: int = 0

    def tokenizer(self) -> Tokenizer:
        """The corpus' tokenizer."""
        return tokenizers.load(self.parents["corpus"] / "tokenizer")

    def tokens(self, name: str) -> Tokens:
        """The tokens of a set: `pool`, `validation`, `test`, or `pretrain` (D_pretrain, the head of
        the pool)."""
        if name == "pretrain":
            return self.tokens("pool").head(self.pretrain_docs)
        return Tokens.open(Shards(self.parents["corpus"] / name))

    @property
    def pretrain_docs(self) -> int:
        """Documents in D_pretrain."""
        return int(read_json(self.parents["corpus"] / "corpus.json")["pretrain_docs"])


Outcome = tuple[dict[str, Any], dict[str, float]]
Step = Callable[[Context], Outcome]


def conditional(role: str) -> bool:
    """Whether an S_pretrain, by its variant or `synthesize/VARIANT`, was written from d1; in later
    rounds too."""
    return not role.rpartition("/")[2].startswith("unconditional")


def upstream_flops(c: Context) -> float:
    """What the units that this one reads have cost, and those above them, but for corpus and base:
    what an arm of `match: flops` pays for beside its own training."""
    flops = 0.0
    for role, folder in c.parents.items():
        if role == "pair" and "synthesizer" in c.parents:
            continue  # the synthesizer has paid for its pairs
        manifest = read_manifest(folder)
        if manifest is not None and manifest.stage in ("embed", "pair", "tune"):
            flops += manifest.cost.get("flops", 0.0) + manifest.counts.get("upstream_flops", 0.0)
    return flops


def embedded(folder: Path, name: str) -> np.ndarray:
    """The float16 vectors of `pool` (the documents of D_pretrain) or `validation` in an embed
    artifact."""
    vectors = []
    for shard in Shards(folder / name):
        vectors.append(np.load(shard / "vectors.npy", allow_pickle=False))
    return np.concatenate(vectors)  # (doc, dim)
