"""Models of arms as folders that `transformers` loads, each with its card."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthboot.artifacts.model import Model
from synthboot.data.disk import SEAL, mismatch
from synthboot.errors import CorruptArtifact
from synthboot.export.finished import Finished, Made


@dataclass(frozen=True)
class Chosen:
    """The model of an arm that is handed on: the one of the least validation loss, in nats a token,
    of the seeds that were asked for."""

    arm: str
    kind: str
    seed: int
    seeds: tuple[int, ...]
    checkpoint: str
    loss: float
    made: Made

    @property
    def model(self) -> Model:
        """It as it lies in the run."""
        return Model.open(self.made.folder)


def choose(run: Finished, arm: str, seed: int | None) -> Chosen:
    """The model of an arm: of this seed, or of the seed of the least validation loss.

    The validation set is there to choose by; the test set is not. Raises MissingArtifact unless
    every seed that is asked for is finished.
    """
    recipe = run.cfg.arms[arm]
    checkpoint = run.cfg.evaluate.checkpoint
    seeds = run.seeds(seed)
    found = []
    for number in seeds:
        made = run.made(run.model(arm, number))
        curve = Model.open(made.folder).curve
        loss = curve.best_loss if checkpoint == "best" else curve.last_loss
        found.append(
            Chosen(
                arm=arm,
                kind=recipe.kind,
                seed=number,
                seeds=tuple(seeds),
                checkpoint=checkpoint,
                loss=loss,
                made=made,
            )
        )
    return min(found, key=lambda chosen: chosen.loss)


def copy(chosen: Chosen, folder: Path) -> dict[str, Any]:
    """Copy a model's files to a folder, and return what it is.

    Of an ensemble `folder` holds a folder for each member. Raises CorruptArtifact where a file did
    not arrive as it was made.
    """
    prefix = f"{chosen.checkpoint}/"
    files = {}
    for name, file in chosen.made.manifest.files.items():
        inside = name.removeprefix(prefix)
        if name.startswith(prefix) and Path(name).name != SEAL:
            files[inside] = file
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(chosen.made.folder / name, folder / inside)
    problem = mismatch(folder, files)
    if problem:
        raise CorruptArtifact(f"{chosen.made.folder / chosen.checkpoint}/{problem}; run again")
    return {
        "kind": chosen.kind,
        "seed": chosen.seed,
        "checkpoint": chosen.checkpoint,
        "validation_loss": chosen.loss,
        "fingerprint": chosen.made.manifest.fingerprint,
    }
