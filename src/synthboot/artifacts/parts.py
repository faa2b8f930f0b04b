"""Several processes that make the items of one artifact side by side, such as the tasks of a Slurm
array, and what tells how far each of them is.

An item is whatever `Shards` commits: a shard, a query block, a chunk. Which part makes an item
follows from its number alone, so parts need not talk to each other, and a part that is started
again goes on. While a part works it holds a lock, and it leaves a record; both lie in `work/`, and
go with it once the artifact is committed.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthboot.artifacts.store import WORK, Shards
from synthboot.data import lock
from synthboot.data.disk import read_record, write_record
from synthboot.errors import ConfigError, CorruptArtifact, LockedRun

ARRAY = "array"
"""The part that a Slurm array's variables name."""
_FOLDER = "parts"
_EARLIER = "earlier."
"""What the names of records begin with whose parts divided the work otherwise."""
_PATIENCE = 1.0
"""Seconds: who only asks whether a part is at work holds its lock for a moment."""
_STEPS = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class Part:
    """Part `number` of `count`, from 1: of the items 0, 1, 2, ... every `count`-th is its own."""

    number: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, item: int) -> bool:
        """Whether an item is one of its own."""
        return item % self.count == self.number - 1

    def of(self, count: int) -> range:
        """Its own of `count` items."""
        return range(self.number - 1, count, self.count)


WHOLE = Part()
"""All items."""


def parse(text: str, environment: Mapping[str, str] = os.environ) -> Part:
    """The part that `K/N` names, or with `array` the variables of a Slurm array.

    Raises ConfigError where that is none.
    """
    if text == ARRAY:
        text = _of_array(environment)
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    part = Part(int(match[1]), int(match[2])) if match else None
    if part is None or not 1 <= part.number <= part.count:
        raise ConfigError(
            f"--part {text}: there is no such part; give K/N with K from 1 to N, such as 3/64, "
            f"or `{ARRAY}` in a Slurm array"
        )
    return part


def _of_array(environment: Mapping[str, str]) -> str:
    values = {}
    for name, missing in (("ID", None), ("MIN", None), ("COUNT", None), ("STEP", "1")):
        value = environment.get(_STEPS + name, missing)
        if value is None or not value.isdecimal():
            raise ConfigError(
                f"--part {ARRAY}: {_STEPS}{name} is not set to a number; "
                f"submit with sbatch --array=1-64, or name the part, such as 3/64"
            )
        values[name] = int(value)
    number = (values["ID"] - values["MIN"]) // max(1, values["STEP"]) + 1
    return f"{number}/{values['COUNT']}"


@dataclass
class Record:
    """What a part leaves: how many items there are by folder, as far as it has met them, what it
    has taken so far, over all its starts, and whether it is through."""

    folder: Path
    part: Part
    items: dict[str, int] = field(default_factory=dict)
    cost: dict[str, int | float] = field(default_factory=dict)
    is_finished: bool = False

    def found(self, shards: Shards, count: int) -> None:
        """Note that there are `count` items in this folder, whoever makes them."""
        self.items[shards.folder.relative_to(self.folder).as_posix()] = count
        self.save()

    def save(self) -> None:
        """Write it."""
        path = _place(self.folder, self.part).with_suffix(".json")
        values = {"items": self.items, "cost": self.cost, "finished": self.is_finished}
        write_record(path, values)


@dataclass(frozen=True)
class Standing:
    """How a part stands (`finished`, `at work`, `died` or `not begun`), and the items it has yet to
    make, by folder, where it is known how many there are."""

    part: str
    state: str
    missing: dict[str, list[int]]


@contextmanager
def held(folder: Path, part: Part) -> Iterator[Record]:
    """Be this part of the artifact in `folder`; the record says how far it is.

    Raises LockedRun where another process is, or where others have divided the work differently.
    """
    others = [other for other in _known(folder) if other.count != part.count]
    for other in others:
        if lock.is_held(_place(folder, other).with_suffix(".lock")):
            raise LockedRun(
                f"{folder}: part {other} is at work, which divides the items otherwise "
                f"than {part}; wait for it, or use --part K/{other.count}"
            )
    for other in others:
        # under a name that no part has it still says what was spent
        kept = _place(folder, other).with_suffix(".json")
        with suppress(FileNotFoundError):  # another part of this division was quicker
            os.replace(kept, kept.with_name(f"{_EARLIER}{secrets.token_hex(8)}.json"))
    place = _place(folder, part)
    with ExitStack() as held_lock:
        try:
            held_lock.enter_context(lock.held(place.parent, f"{place.name}.lock", _PATIENCE))
        except LockedRun:
            raise LockedRun(f"{folder}: part {part} is at work already; wait for it") from None
        # one that was killed, or begun twice, has taken what it took
        record = Record(folder, part, cost=_read(place.with_suffix(".json"))["cost"])
        record.save()
        yield record


def standing(folder: Path) -> list[Standing]:
    """How the parts of an unfinished artifact stand; none where it is not made in parts."""
    records: dict[int, dict[str, Any]] = {}
    items: dict[str, int] = {}
    count = 0
    for part in _known(folder):
        count = part.count
        records[part.number] = _read(_place(folder, part).with_suffix(".json"))
        items |= records[part.number]["items"]

    result = []
    for number in range(1, count + 1):
        part = Part(number, count)
        missing = {}
        for name, total in items.items():
            shards = Shards(folder / name)
            lost = [item for item in part.of(total) if not shards.done(item)]
            if lost:
                missing[name] = lost
        record = records.get(number)
        result.append(Standing(str(part), _state(folder, part, record), missing))
    return result


def spent(folder: Path) -> list[dict[str, float]]:
    """What each part of an artifact has taken, as far as that was recorded, in earlier divisions of
    the work too."""
    records = sorted((folder / WORK / _FOLDER).glob("*.json"))
    costs = [_read(path)["cost"] for path in records]
    return [cost for cost in costs if cost]


def _state(folder: Path, part: Part, record: Mapping[str, Any] | None) -> str:
    if lock.is_held(_place(folder, part).with_suffix(".lock")):
        return "at work"
    if record is None:
        return "not begun"
    return "finished" if record["finished"] else "died"


def _read(path: Path) -> dict[str, Any]:
    """A record, empty where there is none, or none that is whole."""
    record: dict[str, Any] = {"items": {}, "cost": {}}
    with suppress(CorruptArtifact):
        record |= read_record(path)
    # an older synthboot wrote no such field, and the cost of a part once it was through
    record.setdefault("finished", bool(record["cost"]))
    return record


def _place(folder: Path, part: Part) -> Path:
    """Where a part's record and lock lie, without their suffixes."""
    return folder / WORK / _FOLDER / f"{part.number:06d}-of-{part.count:06d}"


def _known(folder: Path) -> list[Part]:
    """Every part that has a record, in order."""
    known = []
    for path in sorted((folder / WORK / _FOLDER).glob("*-of-*.json")):
        number, _, count = path.stem.partition("-of-")
        known.append(Part(int(number), int(count)))
    return known
