"""Is model A better than model B? Per-item scores made anywhere, compared as arms are.

What is read, without torch:

- a model's scores, `RUN/NN-score/ARM/seed-N`: the loss of every test document at both checkpoints,
  and every question that it was asked;
- a folder of lm-eval's `--log_samples` output: `samples_TASK_TIME.jsonl`, the newest of each task;
- `RUN:ARM`, an arm of a run folder: the loss of every test document at both checkpoints,
  all seeds;
- a file with an item and a number a line: `.csv`, `.tsv`, or `.jsonl` with the fields `item` and
  `score` (and, where there are several, `task`).

Several of A beside as many of B, in the same order, are seeds: the first of A is paired with the
first of B. Items are matched by name; what one side lacks is counted and left out.

Source: `synthboot.statistics`; what is missing elsewhere, lm-eval's issues 3831 and 4017.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from synthboot import statistics
from synthboot.artifacts.evaluation import read_losses
from synthboot.artifacts.scores import CHECKPOINTS, FIGURES, Scores
from synthboot.errors import DataError, irregular
from synthboot.recipes import folder_of

ALL = "all tasks"
UNNAMED = "scores"
_LONGEST_CELL = 131_072  # characters
_LINE = "a line is an item, a comma (in .tsv a tab) and its number, in .jsonl an object"
LOSSES = {name: f"test loss ({name})" for name in CHECKPOINTS}
Seed = Mapping[str, Mapping[str, tuple[float, float]]]
"""By task and item: the score, and the size it is divided by (tokens of a document; else 1)."""


@dataclass(frozen=True)
class Comparison:
    """A task: the mean of each side, their difference, and what it would take to be sure.

    `p_adjusted` is the p-value adjusted for all tasks that are compared, by Holm's method.
    `unmatched` counts the items that one side alone has. `items_needed` and `seeds_needed` (None:
    no number would do) are for the difference `wanted`.
    """

    task: str
    items: int
    seeds: int
    unmatched: int
    first: float
    second: float
    difference: statistics.Estimate
    p_adjusted: float
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
    """Every task that both sides have; with several, also `all tasks`, each counting alike.

    `metric` names the field of lm-eval's samples (the first of each task unless given) or the
    figure of our answers (`acc` unless given); `wanted` is the difference to plan for, above zero,
    the one found unless given. Raises DataError where files cannot be read, or nothing is in
    common.
    """
    if wanted is not None and not 0 < wanted < float("inf"):
        raise DataError(f"compare: --wanted {wanted:g}: no number of items shows that; above zero")
    ours = [seed for name in first for seed in read(name, metric)]
    theirs = [seed for name in second for seed in read(name, metric)]
    if not ours or not theirs:
        raise DataError("compare: there is nothing on one side")
    # A seed of A without one of B has nothing to be paired with.
    if len(ours) != len(theirs):
        raise DataError(
            f"compare: {len(ours)} seeds on one side and {len(theirs)} on the other; "
            "they are paired in order, so name as many of each (RUN/NN-score/ARM/seed-N), "
            "joined by commas"
        )
    ours, theirs = _of_one_name(ours, theirs)
    tables: dict[str, _Table] = {}
    for task in ours[0]:
        if all(task in seed for seed in (*ours, *theirs)):
            table = _table(ours, theirs, task)
            # One item has no spread, and no interval.
            if len(table.sizes) >= 2:
                tables[task] = table
    if not tables:
        raise DataError(
            f"compare: {first[0]} and {second[0]} have no task with two items or more in common"
        )

    # a loss and a share of right answers make no mean
    answered = [table for task, table in tables.items() if task not in LOSSES.values()]
    if len(answered) > 1:
        tables[ALL] = _together(answered)
    rows = [_compared(task, table, wanted, confidence) for task, table in tables.items()]
    adjusted = statistics.holm({row.task: row.difference.p for row in rows})
    return [replace(row, p_adjusted=adjusted[row.task]) for row in rows]


def _of_one_name(ours: list[Seed], theirs: list[Seed]) -> tuple[list[Seed], list[Seed]]:
    """Both sides as they are, but where each has one task, and one of them without a name: that is
    the same task then."""
    both = [*ours, *theirs]
    if not all(len(seed) == 1 for seed in both) or not any(UNNAMED in seed for seed in both):
        return ours, theirs

    def unnamed(seeds: list[Seed]) -> list[Seed]:
        return [{UNNAMED: items} for seed in seeds for items in seed.values()]

    return unnamed(ours), unnamed(theirs)


def read(name: str, metric: str | None = None) -> list[Seed]:
    """The scores that a folder, a run's arm or a file holds, one mapping for each seed."""
    path = Path(name)
    if Scores.exists(path):
        return [_scores(path, metric or FIGURES[0])]
    if path.is_dir():
        return [_samples(path, metric)]
    if path.exists():
        return [_listed(path)]
    run, colon, arm = name.rpartition(":")
    if colon and Path(run).is_dir():
        return _arm(Path(run), arm)
    raise DataError(
        f"compare: {name}: no such file or folder; "
        "known are scores of a model, lm-eval's --log_samples folders, RUN:ARM, "
        "and files with an item and a number a line (.csv, .tsv, .jsonl)"
    )


@dataclass(frozen=True)
class _Table:
    """Scores of the items in common, (side, seed, item), and the size of each item."""

    values: np.ndarray
    sizes: np.ndarray
    unmatched: int


def _table(ours: Sequence[Seed], theirs: Sequence[Seed], task: str) -> _Table:
    sides = [[seed[task] for seed in side] for side in (ours, theirs)]
    named = [set(items) for side in sides for items in side]
    common = sorted(set.intersection(*named))
    unmatched = len(set.union(*named)) - len(common)

    values = np.zeros((2, len(ours), len(common)))  # (side, seed, item)
    for side, seeds in enumerate(sides):
        for seed, items in enumerate(seeds):
            values[side, seed] = [items[name][0] for name in common]

    sizes = np.array([sides[0][0][name][1] for name in common])
    for items in (items for seeds in sides for items in seeds):
        others = np.array([items[name][1] for name in common])
        if (others != sizes).any():
            at = int(np.argmax(others != sizes))
            raise DataError(
                f"compare: {task}: document {common[at]} has {sizes[at]:,.0f} tokens in one and "
                f"{others[at]:,.0f} in another; these are other documents, or another tokenizer"
            )
    return _Table(values, sizes, unmatched)


def _together(tables: Sequence[_Table]) -> _Table:
    """All tasks as one, each counting alike: an item weighs as much as its share of its task."""
    values = []
    sizes = []
    unmatched = 0
    for table in tables:
        total = table.sizes.sum()
        values.append(table.values / total)
        sizes.append(table.sizes / total)
        unmatched += table.unmatched
    return _Table(
        np.concatenate(values, axis=2),  # (side, seed, item of any task)
        np.concatenate(sizes),
        unmatched,
    )


def _compared(task: str, table: _Table, wanted: float | None, confidence: float) -> Comparison:
    """A task by itself; p is not adjusted yet."""
    ours, theirs = table.values
    try:
        difference = statistics.difference(ours, theirs, table.sizes, confidence)
    except ValueError as reason:
        raise DataError(f"compare: {task}: {reason}") from None
    noise = statistics.components(ours - theirs, table.sizes)
    seeds, items = ours.shape
    total = seeds * table.sizes.sum()

    # No number of items or seeds shows a difference of zero.
    aim = abs(difference.value) if wanted is None else wanted
    items_needed = None
    seeds_needed = None
    if aim:
        items_needed = statistics.items_for(aim, noise, seeds, confidence)
    if aim and seeds > 1:
        seeds_needed = statistics.seeds_for(aim, noise, items, confidence)

    return Comparison(
        task=task,
        items=items,
        seeds=seeds,
        unmatched=table.unmatched,
        first=float(ours.sum() / total),
        second=float(theirs.sum() / total),
        difference=difference,
        p_adjusted=difference.p,
        detectable=statistics.detectable(noise, seeds, items, confidence),
        wanted=aim,
        items_needed=items_needed,
        seeds_needed=seeds_needed,
    )


def _samples(folder: Path, metric: str | None) -> Seed:
    """The newest sample file of each task below a folder of lm-eval's."""

    def time(path: Path) -> str:
        return path.stem.rpartition("_")[2]

    newest: dict[str, Path] = {}
    for path in sorted(folder.rglob("samples_*.jsonl"), key=time):
        task = path.stem.removeprefix("samples_").rpartition("_")[0]
        newest[task] = path
    if not newest:
        raise DataError(
            f"compare: {folder}: no samples_TASK_TIME.jsonl in it; run lm-eval with --log_samples"
        )
    models = sorted({str(path.parent) for path in newest.values()})
    if len(models) > 1:
        raise DataError(
            f"compare: {folder}: has samples in several folders, one a model; "
            f"name one of {', '.join(models)}"
        )
    return {task: _of_task(path, metric) for task, path in sorted(newest.items())}


def _of_task(path: Path, metric: str | None) -> dict[str, tuple[float, float]]:
    """Item -> score of one sample file; of a task with several filters, the first."""
    scores: dict[str, tuple[float, float]] = {}
    times: Counter[str] = Counter()
    chosen: str | None = None
    for line, row in _rows(path):
        name = str(row.get("filter", ""))
        if chosen is None:
            chosen = name
        if name != chosen:
            continue

        names = row.get("metrics")
        field = metric or (names[0] if isinstance(names, list) and names else "acc")
        # The hash names the item itself, doc_id only its place in a list.
        named = row.get("doc_hash") or row.get("doc_id")
        if named is None:
            raise DataError(f"{path} line {line}: neither doc_hash nor doc_id")
        item = str(named)
        times[item] += 1
        if times[item] > 1:  # a dataset may have an item twice, and both were asked
            item += f", {times[item]}"
        scores[item] = (_number(row.get(field), path, line, field), 1.0)
    return scores


def _listed(path: Path) -> Seed:
    """A file of items and numbers."""
    by_task: dict[str, dict[str, tuple[float, float]]] = {}
    items = _objects(path) if path.suffix == ".jsonl" else _cells(path)
    for line, task, item, score in items:
        scores = by_task.setdefault(task, {})
        if item in scores:
            raise DataError(f"{path} line {line}: {item!r} has a number already")
        scores[item] = (score, 1.0)
    if not by_task:
        raise DataError(f"compare: {path}: no item with a number in it; {_LINE}")
    return by_task


Item = tuple[int, str, str, float]
"""Line, task, item, score."""


def _objects(path: Path) -> Iterator[Item]:
    for line, row in _rows(path):
        if row.get("item") is None:
            raise DataError(f"{path} line {line}: no `item`")
        score = _number(row.get("score"), path, line, "score")
        yield line, str(row.get("task", UNNAMED)), str(row["item"]), score


def _cells(path: Path) -> Iterator[Item]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    # strict: a quote that nothing closes would take all lines after it into one cell
    csv.field_size_limit(_LONGEST_CELL)  # of the process; readers of text allow far more
    table = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    try:
        for number, cells in enumerate(table):
            # what is not finite is no header
            is_header = number == 0 and len(cells) > 1 and not _reads_as_number(cells[1])
            if is_header or not any(map(str.strip, cells)):
                continue
            line = table.line_num
            if len(cells) < 2:
                raise DataError(f"{path} line {line}: no number; {_LINE}")
            yield line, UNNAMED, cells[0], _number(cells[1], path, line, "the second column")
    except csv.Error as reason:
        raise DataError(f"{path}: no table of items and numbers: {reason}") from None


def _arm(run: Path, arm: str) -> list[Seed]:
    """Test losses of an arm's models."""
    rows = read_losses(folder_of(run, "evaluate"))
    if not rows:
        raise DataError(
            f"compare: {run}: has not been evaluated; `synthboot evaluate CONFIG` does that"
        )
    # For the error: what could have been meant.
    arms = sorted({row.arm for row in rows})
    if arm not in arms:
        raise DataError(f"compare: {run}: has no arm {arm!r}; it has {', '.join(arms)}")
    by_seed: dict[int, dict[str, dict[str, tuple[float, float]]]] = {}
    for row in rows:
        if row.arm == arm:
            score = (row.loss, float(row.tokens))
            of_seed = by_seed.setdefault(row.seed, {})
            of_seed.setdefault(LOSSES[row.checkpoint], {})[str(row.doc)] = score
    return [by_seed[seed] for seed in sorted(by_seed)]


def _scores(folder: Path, metric: str) -> Seed:
    """A score artifact: test losses at both checkpoints, and the figure `metric` of its answers."""
    if metric not in FIGURES:
        raise DataError(f"compare: {folder}: {metric}: no figure; there are {', '.join(FIGURES)}")
    scores = Scores.open(folder)
    by_task: dict[str, dict[str, tuple[float, float]]] = {}
    for checkpoint, task in LOSSES.items():
        losses, tokens = scores.by_document(checkpoint)
        pairs = zip(losses.tolist(), tokens.tolist(), strict=True)
        by_task[task] = {str(doc): (loss, float(size)) for doc, (loss, size) in enumerate(pairs)}

    answers = scores.answers
    values = answers.figures[:, FIGURES.index(metric)].tolist()
    for task, item, value in zip(answers.task, answers.item, values, strict=True):
        by_task.setdefault(task, {})[item] = (value, 1.0)
    return by_task


def _rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for line, text in enumerate(_lines(path), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):  # the latter of thousands of brackets
            raise DataError(f"{path} line {line}: not JSON") from None
        if not isinstance(row, dict):
            raise DataError(f"{path} line {line}: not a JSON object")
        yield line, row


def _lines(path: Path) -> Iterator[str]:
    """Lines with their ends, as csv wants them."""
    what = irregular(path.stat().st_mode)
    if what:
        raise DataError(f"compare: {path}: {what}; put what it holds into a file")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from file
    except UnicodeDecodeError as reason:
        raise DataError(f"{path}: not UTF-8 ({reason.reason}); save it as such") from None


def _number(value: object, path: Path, line: int, field: str) -> float:
    if isinstance(value, str | int | float) and _is_number(value):
        return float(value)
    raise DataError(f"{path} line {line}: {field} is {value!r}, not a number")


def _is_number(value: str | int | float) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except (ValueError, OverflowError):  # the latter of a whole number of hundreds of digits
        return False


def _reads_as_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
