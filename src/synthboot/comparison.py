"""Is model A better than model B? Per-item scores made anywhere, compared as this project compares its arms.

What is read, without torch:

- a folder of lm-eval's `--log_samples` output: `samples_TASK_TIME.jsonl`, the newest of each task;
- `RUN:ARM`, an arm of a run folder: the loss of every test document, all seeds;
- a file with an item and a number a line: `.csv`, `.tsv`, or `.jsonl` with the fields `item` and `score` (and, where there
  are several, `task`).

Several of A beside as many of B, in the same order, are seeds: the first of A is paired with the first of B. Items are
matched by name; what one side lacks is counted and left out.

Source: `synthboot.statistics`; what is missing elsewhere, lm-eval's issues 3831 and 4017.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synthboot import statistics
from synthboot.errors import DataError

ALL = "all tasks"
LOSS = "test loss"
Seed = Mapping[str, Mapping[str, tuple[float, float]]]
"""By task and item: the score and the size it is divided by (a document's tokens; one for a question)."""


@dataclass(frozen=True)
class Comparison:
    """A task: the mean of each side, their difference, and what it would take to be sure. `unmatched` counts the items that
    one side alone has. `items_needed` and `seeds_needed` (None: no number would do) are for the difference `wanted`."""

    task: str
    items: int
    seeds: int
    unmatched: int
    first: float
    second: float
    difference: statistics.Estimate
    detectable: float
    wanted: float
    items_needed: int | None
    seeds_needed: int | None


def compare(
    first: Sequence[str],
    second: Sequence[str],
    metric: str | None = None,
    wanted: float | None = None,
    confidence: float = 0.95,
) -> list[Comparison]:
    """Every task that both sides have, and `all tasks` where there are several, each task counting alike.

    `metric` names the field of lm-eval's samples (the first of each task unless given); `wanted` is the difference to plan
    for, the one found unless given. Raises DataError where files cannot be read, or nothing is in common.
    """
    ours = [seed for name in first for seed in read(name, metric)]
    theirs = [seed for name in second for seed in read(name, metric)]
    if len(ours) != len(theirs):
        raise DataError(
            f"compare: {len(ours)} seeds on one side and {len(theirs)} on the other; they are paired in order"
        )
    tasks = [task for task in ours[0] if all(task in seed for seed in (*ours, *theirs))]
    tables = {task: _table(ours, theirs, task) for task in tasks}
    tables = {task: table for task, table in tables.items() if table.values.shape[2] >= 2}
    if not tables:
        raise DataError(
            f"compare: {first[0]} and {second[0]} have no task with two items or more in common"
        )
    if len(tables) > 1:
        tables[ALL] = _together(list(tables.values()))
    return [_compared(task, table, wanted, confidence) for task, table in tables.items()]


def read(name: str, metric: str | None = None) -> list[Seed]:
    """The scores that a folder, a run's arm or a file holds, one mapping for each seed."""
    path = Path(name)
    if path.is_dir():
        return [_samples(path, metric)]
    if path.is_file():
        return [_listed(path)]
    run, colon, arm = name.rpartition(":")
    if colon and Path(run).is_dir():
        return _arm(Path(run), arm)
    raise DataError(
        f"compare: {name}: no such file or folder; known are lm-eval's --log_samples folders, RUN:ARM, and files with an "
        f"item and a number a line (.csv, .tsv, .jsonl)"
    )


@dataclass(frozen=True)
class _Table:
    """Scores of the items in common, (side, seed, item), and the size of each item."""

    values: np.ndarray
    sizes: np.ndarray
    unmatched: int


def _table(ours: Sequence[Seed], theirs: Sequence[Seed], task: str) -> _Table:
    sides = [[seed[task] for seed in side] for side in (ours, theirs)]
    known = [set(items) for side in sides for items in side]
    common = sorted(set.intersection(*known))
    unmatched = len(set.union(*known)) - len(common)
    values = np.array([[[items[name][0] for name in common] for items in side] for side in sides])
    sizes = np.array([sides[0][0][name][1] for name in common])
    return _Table(values.reshape(2, len(ours), len(common)), sizes, unmatched)


def _together(tables: Sequence[_Table]) -> _Table:
    """All tasks as one, each counting alike: an item weighs as much as its share of its task."""
    parts = [t.values / t.sizes.sum() for t in tables]
    sizes = [t.sizes / t.sizes.sum() for t in tables]
    return _Table(
        np.concatenate(parts, axis=2), np.concatenate(sizes), sum(t.unmatched for t in tables)
    )


def _compared(task: str, table: _Table, wanted: float | None, confidence: float) -> Comparison:
    ours, theirs = table.values
    found = statistics.difference(ours, theirs, table.sizes, confidence)
    noise = statistics.components(ours - theirs, table.sizes)
    seeds, items = ours.shape
    aim = abs(found.value) if wanted is None else wanted
    total = seeds * table.sizes.sum()
    return Comparison(
        task=task,
        items=items,
        seeds=seeds,
        unmatched=table.unmatched,
        first=float(ours.sum() / total),
        second=float(theirs.sum() / total),
        difference=found,
        detectable=statistics.detectable(noise, seeds, items, confidence),
        wanted=aim,
        items_needed=statistics.items_for(aim, noise, seeds, confidence) if aim else None,
        seeds_needed=statistics.seeds_for(aim, noise, items, confidence)
        if aim and seeds > 1
        else None,
    )


def _samples(folder: Path, metric: str | None) -> Seed:
    """The newest sample file of each task below a folder of lm-eval's."""
    newest: dict[str, Path] = {}
    for path in sorted(folder.rglob("samples_*.jsonl"), key=lambda p: p.stem.rpartition("_")[2]):
        newest[path.stem.removeprefix("samples_").rpartition("_")[0]] = path
    if not newest:
        raise DataError(
            f"compare: {folder}: no samples_TASK_TIME.jsonl in it; run lm-eval with --log_samples"
        )
    return {task: _of_task(path, metric) for task, path in sorted(newest.items())}


def _of_task(path: Path, metric: str | None) -> dict[str, tuple[float, float]]:
    """Item -> score of one sample file; of a task with several filters, the first."""
    found: dict[str, tuple[float, float]] = {}
    chosen: str | None = None
    for line, row in _rows(path):
        if chosen is None:
            chosen = str(row.get("filter", ""))
        if str(row.get("filter", "")) != chosen:
            continue
        names = row.get("metrics")
        field = metric or (names[0] if isinstance(names, list) and names else "acc")
        item = str(row.get("doc_hash") or row.get("doc_id"))
        found[item] = (_number(row.get(field), path, line, field), 1.0)
    return found


def _listed(path: Path) -> Seed:
    """A file of items and numbers."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    if path.suffix == ".jsonl":
        for line, row in _rows(path):
            score = _number(row.get("score"), path, line, "score")
            found.setdefault(str(row.get("task", path.stem)), {})[str(row.get("item"))] = (
                score,
                1.0,
            )
    else:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for line, cells in enumerate(
                csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","), 1
            ):
                if len(cells) < 2 or (line == 1 and not _is_number(cells[1])):
                    continue  # an empty line, or the names of the columns
                score = _number(cells[1], path, line, "the second column")
                found.setdefault("scores", {})[cells[0]] = (score, 1.0)
    if not found:
        raise DataError(f"compare: {path}: no item with a number in it")
    return found if len(found) > 1 else {"scores": next(iter(found.values()))}


def _arm(run: Path, arm: str) -> list[Seed]:
    """The losses of an arm's models on the test set, at the checkpoint that the run's verdict is about."""
    import pyarrow.parquet as pq

    place = run / "08-evaluate"
    if not (place / "losses.parquet").exists():
        raise DataError(
            f"compare: {run}: has not been evaluated; `synthboot evaluate CONFIG` does that"
        )
    checkpoint = json.loads((place / "evaluate.json").read_text("utf-8"))["checkpoint"]
    rows = pq.read_table(place / "losses.parquet").to_pylist()
    known = sorted({row["arm"] for row in rows})
    if arm not in known:
        raise DataError(f"compare: {run}: has no arm {arm!r}; it has {', '.join(known)}")
    by_seed: dict[int, dict[str, tuple[float, float]]] = {}
    for row in rows:
        if row["arm"] == arm and row["checkpoint"] == checkpoint:
            by_seed.setdefault(row["seed"], {})[str(row["doc"])] = (
                row["loss"],
                float(row["tokens"]),
            )
    return [{LOSS: by_seed[seed]} for seed in sorted(by_seed)]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    with open(path, encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            if text.strip():
                try:
                    row = json.loads(text)
                except ValueError:
                    raise DataError(f"{path} line {line}: not JSON") from None
                if not isinstance(row, dict):
                    raise DataError(f"{path} line {line}: not a JSON object")
                yield line, row


def _number(value: object, path: Path, line: int, field: str) -> float:
    if isinstance(value, str | int | float) and _is_number(value):
        return float(value)
    raise DataError(f"{path} line {line}: {field} is {value!r}, not a number")


def _is_number(value: str | int | float) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except ValueError:
        return False
