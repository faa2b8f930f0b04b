"""What a user takes away from a finished run, in a folder of its own.

`synthetic` and `real` are data sets that `datasets` reads, `models` folders that `transformers`
loads, `tokens` an arm's text as it is trained on, for other trainers; each with a card. The folder
appears by a rename, and nothing that stands there is replaced but an earlier export.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from synthboot import config
from synthboot.data import documents
from synthboot.data.disk import renamed_folder, storage_errors, write_record
from synthboot.errors import ConfigError
from synthboot.export import cards, mixture, models, texts
from synthboot.export.finished import Finished

What = Literal["synthetic", "real", "models", "tokens"]
"""What can be taken away."""
RECORD = "synthboot-export.json"
"""What an export is known by: what it holds, of which run."""


@dataclass(frozen=True)
class Exported:
    """A folder that was written: what of the run it holds, and by part (a kind of text, a split, an
    arm) what that is."""

    folder: Path
    what: What
    parts: dict[str, Any]
    license: str | None
    verdict: str | None

    @property
    def best(self) -> str | None:
        """Of models, the arm of the least validation loss."""
        if self.what != "models":
            return None
        return min(self.parts, key=lambda arm: self.parts[arm]["validation_loss"])


def export(
    cfg: config.Config,
    what: What = "synthetic",
    out: Path | None = None,
    *,
    arm: str | None = None,
    seed: int | None = None,
    license: str | None = None,
    force: bool = False,
) -> Exported:
    """Write what a finished run holds to a new folder, `out` or NAME-WHAT where one stands.

    `arm` takes what this arm reads or is, `seed` one seed's models; `license` is what the user says
    of the sources, which nothing here can know unless it made them up.

    Raises MissingArtifact where the run is not finished so far, ConfigError where the folder exists
    (with `force`, where it is no export), lies in the run, or for an arm or seed that there is not;
    StorageError.
    """
    if seed is not None and what not in ("models", "tokens"):
        raise ConfigError(f"export: --seed is about models and tokens, not --what {what}")
    license = " ".join((license or "").split()) or _licence_of(cfg)
    place = Path(f"{cfg.name}-{what}") if out is None else out
    if place.name in ("", ".."):  # the folder that one stands in, or above it
        place = Path(os.path.abspath(place))
    _check_place(place, cfg.folder, force)

    run = Finished(cfg)
    # hidden, and of a name that is nobody else's: whatever lies there is a killed export's
    temporary = place.with_name(f".{place.name}.synthboot-export.tmp")
    with storage_errors(place), renamed_folder(place, temporary) as folder:
        parts = _write(run, what, arm, seed, license, folder)
        record = {"what": what, "run": cfg.name, "license": license, "parts": parts}
        write_record(folder / RECORD, record)
        # another may have come while this one was written
        _check_place(place, cfg.folder, force)
    verdict = None if run.evaluation is None else run.evaluation.verdict
    return Exported(place, what, parts, license, verdict)


def _licence_of(cfg: config.Config) -> str | None:
    """That of text which this program has made up; what else the sources are is not known."""
    made_up = cfg.corpus.source == documents.WORLD and not cfg.corpus.replay
    return "cc0-1.0" if made_up and not cfg.model.init_from and not cfg.tune.init_from else None


def _check_place(place: Path, run: Path, force: bool) -> None:
    """Raise ConfigError unless a folder may be written there."""
    with storage_errors(place):
        # not `resolve`, for which links in a circle are a bug
        real_place, real_run = (Path(os.path.realpath(path)) for path in (place, run))
        if real_place.is_relative_to(real_run) or real_run.is_relative_to(real_place):
            raise ConfigError(
                f"export: {place}: run and export would lie in each other; name another folder"
            )
        if not place.exists() and not place.is_symlink():
            return
        if not force:
            raise ConfigError(
                f"export: {place}: is there already; name another folder, or --force to replace it"
            )
        if not (place / RECORD).is_file():
            raise ConfigError(
                f"export: {place}: is no export of synthboot, and --force replaces nothing else; "
                f"name another folder"
            )


def _write(
    run: Finished,
    what: What,
    arm: str | None,
    seed: int | None,
    license: str | None,
    folder: Path,
) -> dict[str, Any]:
    """Write what is asked for, with its card; returns by part what that is."""
    if what == "models":
        return _models(run, arm, seed, license, folder)
    parts: dict[str, Any]
    if what == "synthetic":
        parts = texts.synthetic(run, arm, folder)
        card = cards.synthetic_card(run, parts, license)
    elif what == "real":
        parts = texts.real(run, arm, folder)
        card = cards.real_card(run, parts, license)
    else:
        record = mixture.mixture(run, arm, seed, folder)
        parts = {record["arm"]: record}
        card = cards.mixture_card(run, record, license)
    _write_card(folder, card)
    return parts


def _models(
    run: Finished, arm: str | None, seed: int | None, license: str | None, folder: Path
) -> dict[str, Any]:
    parts = {}
    for name in run.arms(arm):
        chosen = models.choose(run, name, seed)
        (folder / name).mkdir()
        parts[name] = models.copy(chosen, folder / name)
        _write_card(folder / name, cards.model_card(run, chosen, license))
    return parts


def _write_card(folder: Path, card: str) -> None:
    (folder / cards.FILE_NAME).write_text(card, "utf-8")
