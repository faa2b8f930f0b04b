"""A trained model: two checkpoints, and the records of how it came about.

`best` and `last` are Hugging Face folders, written by the training loop with its curve, or of an
ensemble folders of them (`lm.ensemble`); the other records are those of the stage that trained it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthboot.artifacts.scores import CHECKPOINTS
from synthboot.artifacts.store import Manifest, read_manifest
from synthboot.data.disk import read_json, write_json
from synthboot.errors import MissingArtifact

_CURVE = "curve.json"
_TOKEN_COUNTS = "token_counts.json"
_TUNING = "tune.json"
_SWEEP = "sweep.json"


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
    def curve(self) -> dict[str, Any]:
        """Losses while it was trained, as `lm.train.Curve` has them."""
        return dict(read_json(self.folder / _CURVE))

    @property
    def token_counts(self) -> dict[str, Any]:
        """What it was trained on: tokens by source, FLOPs, and the settings of training."""
        return dict(read_json(self.folder / _TOKEN_COUNTS))

    @property
    def tuning(self) -> dict[str, Any]:
        """Of a synthesizer: what it gains by d1, its curve, and the pairs that stopped it."""
        return dict(read_json(self.folder / _TUNING))

    @property
    def sweep(self) -> dict[str, Any] | None:
        """What the trials of its sweep reached, and which was chosen; None without a sweep."""
        path = self.folder / _SWEEP
        return dict(read_json(path)) if path.exists() else None

    def save_curve(self, record: Mapping[str, object]) -> None:
        """Write what `curve` reads."""
        write_json(self.folder / _CURVE, record)

    def save_token_counts(self, counts: Mapping[str, object]) -> None:
        """Write what `token_counts` reads."""
        write_json(self.folder / _TOKEN_COUNTS, counts)

    def save_tuning(self, record: Mapping[str, object]) -> None:
        """Write what `tuning` reads."""
        write_json(self.folder / _TUNING, record)

    def save_sweep(self, record: Mapping[str, object]) -> None:
        """Write what `sweep` reads."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / _SWEEP, record)

    def copy(self, trial: Model) -> None:
        """Become what a trial of the sweep is: its checkpoints and records."""
        for folder in (trial.best, trial.last):
            if folder.exists():
                shutil.copytree(folder, self.folder / folder.name, dirs_exist_ok=True)
        for name in (_CURVE, _TOKEN_COUNTS, _TUNING):
            if (trial.folder / name).exists():
                shutil.copy2(trial.folder / name, self.folder / name)
