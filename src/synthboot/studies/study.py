"""A study: runs that differ in some settings, one after the other, and what they show together.

What several points have alike (the corpus, its vectors, pairs, often base) is made by the first and
taken over by the others (`runner.sharing`). A study that is killed goes on where it stopped: its
points are runs, and runs do.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthboot import config, preflight
from synthboot.artifacts import store
from synthboot.data import disk, lock
from synthboot.errors import (
    BudgetError,
    ConfigError,
    CorruptArtifact,
    DataError,
    MissingArtifact,
    SynthbootError,
    TrainingError,
)
from synthboot.lm import precision
from synthboot.recipes import STAGES, folder_of
from synthboot.report import study as page
from synthboot.runner import cost, executor, torchrun
from synthboot.runner.graph import fingerprints
from synthboot.runner.sharing import finished
from synthboot.runner.state import State, states
from synthboot.studies import grid, rows
from synthboot.studies.rows import Row

if TYPE_CHECKING:
    import pandas as pd

JSON = "study.json"
CSV = "study.csv"
PAGE = "study.html"

_OF_A_POINT = (BudgetError, DataError, TrainingError)
"""What a point may fail of by its settings, where the others need not."""

_COLUMNS = ("train_tokens", "parameters", "batch_tokens", "pool_tokens", "contexts")
"""What runs that were not made as a grid are compared over."""


@dataclass(frozen=True)
class Study:
    """The rows of a study, a run each, and the settings or columns `axes` that set them apart."""

    name: str
    axes: list[str]
    rows: list[Row]

    @cached_property
    def columns(self) -> list[str]:
        """The columns of all rows, in their order."""
        found: dict[str, None] = {}
        for row in self.rows:
            found |= dict.fromkeys(row.flat())
        # arms that only some rows have come between the others, not behind them
        losses = [name for name in found if name.startswith("loss.")]
        others = [name for name in found if not name.startswith("loss.")]
        place = others.index("method")
        return [*others[:place], *losses, *others[place:]]

    def table(self) -> list[dict[str, Any]]:
        """A mapping a row, with every column."""
        return [{name: row.flat().get(name) for name in self.columns} for row in self.rows]

    def to_pandas(self) -> pd.DataFrame:
        """The table as a data frame. Raises ConfigError where pandas is not installed."""
        try:
            import pandas as pd
        except ImportError:
            raise ConfigError("to_pandas: needs pandas: pip install pandas") from None
        return pd.DataFrame(self.table(), columns=self.columns)

    def save(self, folder: Path) -> None:
        """Write `study.json`, `study.csv` and the page, `study.html`."""
        table = self.table()
        curves = page.curves(table, self.axes)
        record = {
            "name": self.name,
            "axes": self.axes,
            "rows": table,
            "curves": [curve.as_json() for curve in curves],
        }
        disk.write_json(folder / JSON, record)
        disk.write_bytes(folder / CSV, self._csv(table).encode())
        drawn = page.study(self.name, self.axes, table, curves)
        disk.write_bytes(folder / PAGE, drawn.encode())

    def _csv(self, table: Sequence[Mapping[str, Any]]) -> str:
        lines = io.StringIO()
        writer = csv.DictWriter(lines, self.columns, lineterminator="\n")
        writer.writeheader()
        for row in table:
            # lists and switches as JSON has them; text and numbers as they are
            plain = {}
            for name, value in row.items():
                is_plain = value is None or isinstance(value, str)
                plain[name] = value if is_plain else json.dumps(value)
            writer.writerow(plain)
        return lines.getvalue()


@dataclass(frozen=True)
class Planned:
    """What one point of a study still takes: artifacts to make, others that an earlier point makes,
    and the estimate of `runner.cost`."""

    point: str
    to_make: int
    shared: int
    estimate: dict[str, float]


class Grid:
    """A study that is to be run: its points, its folder, and how far each goes (`target`).

    Raises ConfigError for a grid that cannot be, before anything runs.
    """

    def __init__(
        self,
        source: str | Path | Mapping[str, Any],
        vary: Mapping[str, Sequence[Any]],
        *,
        set: Mapping[str, Any] | None = None,
        seeds: Sequence[int] | None = None,
        together: bool = False,
        target: str = "report",
        out: str | Path | None = None,
    ) -> None:
        self.target = target
        self.vary = list(vary)
        folder = None if out is None else Path(out)
        self.points = grid.points(source, vary, folder, set=set, seeds=seeds, together=together)
        self.out = Path(self.points[0].config.root)
        for stage in STAGES:
            if folder_of(self.out, stage).exists():
                raise ConfigError(f"study: {self.out} is a run; choose another folder with --out")
        for point in self.points:
            try:
                preflight.check(point.config)
            except SynthbootError as error:
                raise type(error)(f"study: point {point.name}: {error}") from None
        self._planner = grid.Planner(target)
        self._planner.check_different(self.points)
        for point in self._decided():
            self._check_own(point)

    def plan(self) -> list[Planned]:
        """What each point takes; what points have alike is counted once."""
        known = {*finished(self._runs())}
        result = []
        for point in self._decided():
            cfg = point.config
            units = self._planner.units(point)
            marks = fingerprints(units)
            standing = states(cfg, units)
            missing = [name for name, state in standing.items() if state.status != "done"]
            shared = [name for name in missing if marks[name] in known]
            known.update(marks.values())
            ahead = standing | dict.fromkeys(shared, State("done"))
            result.append(
                Planned(
                    point.name,
                    to_make=len(missing) - len(shared),
                    shared=len(shared),
                    estimate=cost.estimate(cfg, units, ahead),
                )
            )
        return result

    def run(
        self,
        tell: executor.Event = lambda *_: None,
        replace: bool = False,
    ) -> Study:
        """Make what is missing of every point, and write what they show after each.

        `tell` is told what `executor.run` tells of each point, and first (point, "point", (its
        number from 1, how many there are)). A point that fails of its own settings (its training
        diverges, its pool is too small) is noted in its row, and the study goes on. With `replace`,
        also hours of finished work are made anew where settings are others now.

        Raises FinishedWork without that, LockedRun while another process works on the study.
        """
        with disk.storage_errors(self.out), lock.held(self.out):
            for left in torchrun.leftovers(self.out):  # of files that a killed study wrote
                disk.remove(left)
            self._decide(tell)
            points = self._decided()
            # of points that an earlier call has made, before their turn comes
            found = self._found(points)
            for number, point in enumerate(points, 1):
                tell(point.name, "point", (number, len(points)))
                failed = ""
                try:
                    executor.run(point.config, self.target, tell, self._runs(), replace=replace)
                except _OF_A_POINT as error:
                    failed = str(error)
                    tell(point.name, "note", f"failed: {failed}")
                found[point.name] = self._row(point, failed)
                there = [found[point.name] for point in points if point.name in found]
                study = Study(self.out.name, self.vary, rows.adjusted(there))
                study.save(self.out)
        return study

    def _check_own(self, point: grid.Point) -> None:
        """Raise ConfigError where the run of that name was made for another point: names hold the
        last part of a setting, and `tune.lr-0.001` and `optim.lr-0.001` would be one."""
        for name, unit in self._planner.units(point).items():
            manifest = None
            with suppress(CorruptArtifact):  # its own turn says so
                manifest = store.read_manifest(unit.folder(point.config.folder))
            if manifest is None:
                continue
            made = store.flat(manifest.reads)
            wanted = store.flat(unit.reads)
            for key, value in point.settings.items():
                for other in _namesakes(key, made):
                    # it was named by that setting, which is another now
                    if made[other] == value != wanted.get(other):
                        raise ConfigError(
                            f"study: {point.config.folder} is another point's run ({name}: {other} "
                            f"was {value}); choose another folder with --out, or delete it"
                        )

    def _row(self, point: grid.Point, failed: str) -> Row:
        # a run that failed, or ends earlier, may hold what other settings have left
        wanted = fingerprints(self._planner.everything(point)).values()
        try:
            row = rows.read(point.config.folder, point.name, point.settings, wanted)
        except MissingArtifact:
            row = Row(point.name, "", point.settings)
        # what it will be evaluated at, if it is not yet
        if not row.losses:
            row = replace(row, confidence=point.config.evaluate.confidence)
        # beside the study's own files, so that the folder can be moved
        row = replace(row, folder=point.name)
        if not failed:
            return row
        note = f"failed: {failed}; {row.note}" if row.note else f"failed: {failed}"
        return replace(row, failed=True, note=note)

    def _found(self, points: Sequence[grid.Point]) -> dict[str, Row]:
        """The rows of the points that have made something, by name."""
        found = {}
        for point in points:
            with suppress(CorruptArtifact):  # its own turn says so
                if rows.has_begun(point.config.folder):
                    found[point.name] = self._row(point, "")
        return found

    def _runs(self) -> list[Path]:
        """The run folders of the study, of earlier grids too."""
        return sorted(path for path in self.out.glob("*") if path.is_dir())

    def _here(self, point: grid.Point) -> config.Config:
        """The point's configuration as if its run were the study itself."""
        return point.config.model_copy(update={"root": str(self.out.parent), "name": self.out.name})

    def _decide(self, tell: executor.Event) -> None:
        """Have one precision for all points, as a run has one for all its models: what a machine
        is faster at for the first of them."""
        first = self.points[0]
        stages = {unit.stage for unit in self._planner.units(first).values()}
        if not stages.isdisjoint(executor.MODELS):
            precision.decided(
                self._here(first),
                lambda words: tell("precision", "note", words),
            )

    def _decided(self) -> list[grid.Point]:
        """The points with the study's precision where they say `auto`, if there is one yet."""
        found = []
        for point in self.points:
            own = point.config
            cfg = precision.recorded(self._here(point))
            cfg = cfg.model_copy(update={"root": own.root, "name": own.name})
            found.append(replace(point, config=cfg))
        return found


def collect(runs: Sequence[str | Path], name: str = "study") -> Study:
    """The study of run folders that are there; a study's folder stands for its runs.

    Nothing is run. Raises MissingArtifact where there is none in a folder.
    """
    folders: dict[Path, None] = {}
    for run in map(Path, runs):
        is_study = (run / JSON).exists()
        # a point that has made nothing yet is no run
        points = [path for path in sorted(run.glob("*")) if rows.has_begun(path)]
        folders |= dict.fromkeys(points if is_study else [run])
    if not folders:
        raise MissingArtifact("study: no run folder with anything finished in it was given")

    settings = {str(folder): rows.settings_of(folder) for folder in folders}
    apart = rows.differing(settings)
    names = _names(list(folders))
    found = [rows.read(folder, names[folder], apart[str(folder)]) for folder in folders]
    axes = []
    for column in _COLUMNS:
        if len({getattr(row, column) for row in found} - {None}) > 1:
            axes.append(column)
    return Study(name, axes, rows.adjusted(found))


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """A name for each run: its folder's, with what is above it where two are called the same."""
    last = Counter(folder.name for folder in folders)
    return {folder: folder.name if last[folder.name] == 1 else str(folder) for folder in folders}


def _namesakes(key: str, settings: Iterable[str]) -> list[str]:
    """Other settings with the same last part."""
    last = key.rpartition(".")[2]
    return [other for other in settings if other != key and other.rpartition(".")[2] == last]
