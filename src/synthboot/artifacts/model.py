"""A trained model: two checkpoints, and the records of how it came about.

`best` and `last` are Hugging Face folders, written by the training loop with its curve, or of an
ensemble folders of them (`lm.ensemble`); the other records are those of the stage that trained it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import Field

from synthboot import config
from synthboot.artifacts.scores import CHECKPOINTS
from synthboot.artifacts.store import Manifest, declared, plain, read_manifest, typed
from synthboot.artifacts.synthetic import ThrownAway
from synthboot.data.disk import read_json, write_json
from synthboot.errors import MissingArtifact

_CURVE = "curve.json"
_TOKEN_COUNTS = "token_counts.json"
_TUNING = "tune.json"
_SWEEP = "sweep.json"
_DIVERGED = "diverged"
_LEAP = "leap"

T = TypeVar("T")


def _is_nothing(value: object) -> bool:
    return value in (None, (), {})


IfAny = Annotated[T, Field(exclude_if=_is_nothing)]
"""A field that JSON leaves out where there is nothing in it: None, or an empty collection."""


@declared
@dataclass
class Curve:
    """What happened while a model was trained.

    `train` rows are [tokens, mean loss since the last row, gradient norm, lr]; `validation` rows
    are [tokens, loss], `copying` rows [tokens, copy score] where that is taken; `best_step` counts
    optimizer steps done. Checkpoints alone have `recent`, the losses of the last steps, by which a
    leap is told, and `unreported`, those of the steps since the last row of `train`.
    """

    step: int = 0
    best_step: int = -1
    best_loss: float = math.inf
    evals_since_best: int = 0
    # whole numbers stay what they are: a resumed run writes the bytes of one that was not killed
    train: list[list[int | float]] = field(default_factory=list)
    validation: list[list[int | float]] = field(default_factory=list)
    copying: list[list[int | float]] = field(default_factory=list)
    recent: Annotated[list[float], Field(exclude=True)] = field(default_factory=list)
    unreported: Annotated[list[float], Field(exclude=True)] = field(default_factory=list)

    @property
    def last_loss(self) -> float:
        """Validation loss at the end."""
        return self.validation[-1][1] if self.validation else math.nan

    @property
    def late_gain(self) -> float:
        """Validation loss that the last tenth of training saved, read off between evaluations; NaN
        with fewer than two of them."""
        if len(self.validation) < 2:
            return math.nan
        tokens, losses = zip(*self.validation, strict=True)
        before = np.interp(0.9 * tokens[-1], tokens, losses)
        return float(before - losses[-1])


@dataclass(frozen=True, kw_only=True)
class TokensRead:
    """Tokens by source, and epochs over each, of a whole training run."""

    steps: int
    batch_tokens: int
    train_tokens: int
    real_tokens: int
    unique_real_tokens: int
    real_epochs: float
    synthetic_tokens: int
    synthetic_epochs: float
    replayed_tokens: int
    replayed_epochs: float


@declared
@dataclass(frozen=True, kw_only=True)
class TokenCounts(TokensRead):
    """What a model was trained on and how: tokens by source, the settings of training, FLOPs.

    `train_flops` are those of training, `spent_flops` all that was spent on its text and teachers
    before. An ensemble has the sums of its `members`, but no `best_step`. `thrown_away` has, by
    reason, what the arm's filter kept from being read.
    """

    seed: int
    parameters: int
    architecture: str
    vocab_size: int
    settings: dict[str, object]
    recipe: config.Arm
    best_step: IfAny[int | None] = None
    train_flops: float
    spent_flops: float
    members: IfAny[tuple[TokenCounts, ...]] = ()
    thrown_away: IfAny[dict[str, ThrownAway]] = field(default_factory=dict)

    @property
    def total_flops(self) -> float:
        """All that was computed for the model."""
        return self.train_flops + self.spent_flops

    def as_json(self) -> dict[str, Any]:
        """The counts as `token_counts.json` has them."""
        return dict(plain(self))


@declared
@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Nats per token of d2 on held-out pairs, by what a synthesizer is given; `base` is the model
    that it was tuned from, given nothing.

    `d1_worth` is what d1 saves beside a random one, `net_worth` what it saves beside base, each
    with its standard error over pairs. What is about d1 is None where it is tuned without,
    `net_worth` where it is tuned from fresh weights, `tokens_per_byte` where tokens are the arms'.
    """

    given_d1: IfAny[float | None] = None
    given_random_d1: IfAny[float | None] = None
    given_nothing: float
    base: float
    pairs: int
    d1_worth: IfAny[float | None] = None
    d1_worth_error: IfAny[float | None] = None
    net_worth: IfAny[float | None] = None
    net_worth_error: IfAny[float | None] = None
    tokens_per_byte: IfAny[float | None] = None


@declared
@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a synthesizer was tuned.

    `account` says in words what d1 is worth; `conditioning` has the losses on pairs whose d2 is
    `unseen` or `seen_by_base`; `untuned` is what d1 is worth to the model that tuning starts from,
    with its standard error. `stopped_by` are the pairs whose loss the curve has: d1, validation
    document d2, tokens of it that are scored. `base_share` are the shares of base's weights that
    were tried, each with its loss. `pointer` are its weights, if there is one; `is_prompted`
    whether d1 stands in the prompt.
    """

    account: str  # this and `upstream_flops` are filled in by whoever saves it
    conditioning: dict[str, Conditioning]
    untuned: tuple[float, float]
    padding_share: float
    best_loss: float
    upstream_flops: float
    curve: Curve
    stopped_by: Sequence[tuple[int, int, int]]
    base_share: Sequence[tuple[float, float]] = ()
    pointer: Sequence[Sequence[float]] | None = None
    is_prompted: bool = True

    def as_json(self) -> dict[str, Any]:
        """It as `tune.json` has it."""
        return dict(plain(self))


@declared
@dataclass(frozen=True)
class Sweep:
    """What the trials of a sweep reached: by trial its validation loss, or how it `diverged`, and
    the settings that the sweep varies; and which was chosen."""

    losses: dict[str, float]
    settings: dict[str, dict[str, object]]
    chosen: str
    diverged: IfAny[dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A model artifact of `base`, `tune` or `pretrain`. Its files are read when they are asked
    for."""

    folder: Path

    @staticmethod
    def open(folder: Path) -> Model:
        """The model in a folder."""
        return Model(folder)

    @property
    def best(self) -> Path:
        """The checkpoint of the least validation loss."""
        return self.folder / "best"

    @property
    def last(self) -> Path:
        """The last checkpoint."""
        return self.folder / "last"

    @property
    def checkpoints(self) -> dict[str, Path]:
        """Both by name; one folder for both where they hold the same."""
        hashes: dict[str, dict[str, str]] = {name: {} for name in CHECKPOINTS}
        for path, file in self.manifest.files.items():
            checkpoint, _, name = path.partition("/")
            if checkpoint in hashes:
                hashes[checkpoint][name] = file["hash"]
        is_same = hashes["best"] == hashes["last"]
        return {"best": self.last if is_same else self.best, "last": self.last}

    @property
    def manifest(self) -> Manifest:
        """The record of the artifact. Raises MissingArtifact where it is not finished."""
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise MissingArtifact(f"{self.folder}: is not finished; run again")
        return manifest

    @property
    def diverged(self) -> str:
        """How training went wrong, of a trial that has no model for that; else nothing.

        Raises as `manifest` does.
        """
        return str(self.manifest.counts.get(_DIVERGED, ""))

    @property
    def curve(self) -> Curve:
        """Losses while it was trained."""
        return _read(self.folder / _CURVE, Curve)

    @property
    def token_counts(self) -> TokenCounts:
        """What it was trained on."""
        return _read(self.folder / _TOKEN_COUNTS, TokenCounts)

    @property
    def tuning(self) -> Tuning:
        """How it was tuned, of a synthesizer."""
        return _read(self.folder / _TUNING, Tuning)

    @property
    def sweep(self) -> Sweep | None:
        """What the trials of its sweep reached, and which was chosen; None without a sweep."""
        path = self.folder / _SWEEP
        return _read(path, Sweep) if path.exists() else None

    def save_curve(self, curve: Curve) -> None:
        """Write what `curve` reads."""
        values = asdict(curve)
        for name in ("recent", "unreported"):
            if not values[name]:
                del values[name]
        write_json(self.folder / _CURVE, values)

    def save_token_counts(self, counts: TokenCounts) -> None:
        """Write what `token_counts` reads."""
        write_json(self.folder / _TOKEN_COUNTS, counts.as_json())

    def save_tuning(self, tuning: Tuning) -> None:
        """Write what `tuning` reads."""
        write_json(self.folder / _TUNING, tuning.as_json())

    def save_sweep(self, sweep: Sweep) -> None:
        """Write what `sweep` reads."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / _SWEEP, plain(sweep))

    def copy(self, trial: Model) -> None:
        """Become what a trial of the sweep is: its checkpoints and records."""
        for folder in (trial.best, trial.last):
            if folder.exists():
                shutil.copytree(folder, self.folder / folder.name, dirs_exist_ok=True)
        for name in (_CURVE, _TOKEN_COUNTS, _TUNING):
            if (trial.folder / name).exists():
                shutil.copy2(trial.folder / name, self.folder / name)


def diverged_counts(reason: str, leap: float | None) -> dict[str, Any]:
    """What the manifest says of a trial that diverged, which has no model: how, and by how many
    nats its loss leapt where that alone stopped it."""
    counts: dict[str, Any] = {"account": f"diverged: {reason}", _DIVERGED: reason}
    return counts if leap is None else {**counts, _LEAP: leap}


def has_diverged(manifest: Manifest) -> bool:
    """Whether an artifact is a trial without a model."""
    return _DIVERGED in manifest.counts


def leap(manifest: Manifest) -> float | None:
    """By how many nats the loss of a trial leapt that was stopped by that alone; else None."""
    found = manifest.counts.get(_LEAP)
    return None if found is None else float(found)


def _read(path: Path, kind: type[T]) -> T:
    """Raises CorruptArtifact where the file is missing, or does not hold such a thing."""
    return typed(read_json(path), kind, path)
