"""One artifact made, by a worker of the run: what it reads is verified, its step runs, its
manifest is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from synthboot import config
from synthboot.artifacts import parts, store
from synthboot.artifacts.external import EXTERNAL
from synthboot.data import disk, lock
from synthboot.errors import MissingArtifact
from synthboot.recipes import VERSIONS, Unit, is_filter
from synthboot.runner import torchrun
from synthboot.runner.memory import Memory
from synthboot.runner.state import contents, stands
from synthboot.runner.step import run_part, run_step

ITEMS = ("corpus", "embed", "pair", "synthesize")
"""Stages whose artifacts are made of items: their steps have workers of their own, and parts of
them are made side by side."""

DEALT = ("pretrain", "score")
"""Stages of many artifacts, of which each part makes its share."""

_WITHOUT_ITEMS = (f"corpus/{EXTERNAL}", "pair/random_pairs")

RECORDED_SECONDS = 60.0
"""Seconds between two records of how long an artifact has been in the making."""

_PATIENCE = 120.0
"""Seconds to wait for the worker of a killed run: it may take a moment to go, and on a node that a
cluster has lost, it counts as gone only after a silence."""


def has_workers(unit: Unit) -> bool:
    """Whether the unit's step has workers of its own."""
    return unit.stage in ITEMS and not is_filter(unit)


def workers_of(
    cfg: config.Config,
    units: Mapping[str, Unit],
    jobs: int,
    devices: int,
) -> dict[str, int]:
    """By name, the number of workers of each unit that has workers of its own.

    It is the number of `jobs`, and one such unit runs at a time. Sampling differs: where there are
    two texts or more for each of the `devices` (GPUs, or cores where there are none), each text has
    one worker: many texts side by side start less often than one after another, and few would leave
    devices idle in the end. Where there are more jobs than GPUs, they share these, since the batch
    of a small model does not fill one. With several `engine.processes` a model, fewer units than
    `jobs` run side by side, and one worker each would leave devices idle.
    """
    workers = {name: jobs for name, unit in units.items() if has_workers(unit)}
    engine = cfg.engine
    is_alone = engine.executor == "local" and engine.processes == 1
    if is_alone and cfg.synthesize.sampler == "embedded":
        texts = [name for name in workers if units[name].stage == "synthesize"]
        each = 1 if len(texts) >= 2 * devices else devices
        workers |= dict.fromkeys(texts, min(jobs, each))
    return workers


def has_items(unit: Unit) -> bool:
    """Whether parts of the unit can be made side by side."""
    return unit.stage in ITEMS and unit.name not in _WITHOUT_ITEMS and not is_filter(unit)


@runtime_checkable
class Listener(Protocol):
    """Who is told how a unit gets on, such as the connection of a worker."""

    def send(self, message: tuple[str, Any], /) -> None:
        """Take a message: ("progress", (share done, words)) or ("note", a line)."""


def make(
    cfg: config.Config,
    plan: Mapping[str, Unit],
    name: str,
    fingerprints: Mapping[str, str],
    workers: int,
    listener: Listener,
) -> dict[str, Any]:
    """Make the artifact of one unit of the plan, with so many `workers` of its step; `fingerprints`
    are those of all units.

    Returns its cost, and an `account` in words where the step gives one. `listener` is told of
    progress and notes.
    """
    unit = plan[name]
    folder = unit.folder(cfg.folder)
    progress, note = _tellers(listener)

    with disk.storage_errors(folder), held(folder):
        of_parents = _verified(cfg, plan, unit)
        made = store.read_manifest(folder)
        if made is not None and stands(unit, made, fingerprints[name], of_parents):
            # made by another process while this one waited, such as the same part begun twice, or
            # by one that was lost before it had cleared up
            store.finish(folder)
            return {**made.cost, "account": made.counts.get("account", "")}
        torchrun.end_earlier(folder)
        for lost in store.begin(folder, fingerprints[name], of_parents):
            note(lost)

        before = {"seconds": store.invested(folder)}
        spend = partial(store.spend, folder)
        progress = _recorded(progress, spend, before["seconds"])
        started = time.monotonic()
        with Memory() as memory:
            if cfg.engine.processes > 1 and unit.stage in torchrun.STAGES:
                counts, cost = torchrun.run_step_together(cfg, plan, unit, progress, note)
            else:
                counts, cost = run_step(cfg, plan, unit, workers, progress, note)
        cost |= _spent(started, memory, [before, *parts.spent(folder)])
        if before["seconds"]:
            cost["earlier_seconds"] = before["seconds"]

        record = store.Manifest(
            stage=unit.stage,
            version=VERSIONS[unit.stage],
            fingerprint=fingerprints[name],
            reads=unit.reads,
            parents={role: fingerprints[parent] for role, parent in unit.parents.items()},
            counts=counts,
            cost=cost,
            contents=of_parents,
        )
        store.commit(folder, record)
    return {**cost, "account": counts.get("account", "")}


def make_part(
    cfg: config.Config,
    plan: Mapping[str, Unit],
    name: str,
    fingerprints: Mapping[str, str],
    workers: int,
    part: parts.Part,
    listener: Listener,
) -> dict[str, Any]:
    """Make the items of one part of a unit's artifact, beside other processes that make theirs;
    returns what it took. `make` commits the artifact once all parts are done.
    """
    unit = plan[name]
    folder = unit.folder(cfg.folder)
    progress, note = _tellers(listener)

    with disk.storage_errors(folder), ExitStack() as locks:
        # parents are verified before: joining may empty the folder
        wanted = (fingerprints[name], _verified(cfg, plan, unit))
        record = locks.enter_context(_joined(folder, wanted, part, note))
        before = record.cost

        def spend(seconds: float) -> None:
            record.cost = {"peak_memory_bytes": 0, **before, "seconds": seconds}
            record.save()

        progress = _recorded(progress, spend, before.get("seconds", 0.0))
        started = time.monotonic()
        with Memory() as memory:
            items = run_part(cfg, plan, unit, record, workers, progress)
        record.cost = _spent(started, memory, [before])
        record.is_finished = True
        record.save()
    return {**record.cost, "account": f"part {part}, {items:,} items"}


@contextmanager
def _joined(
    folder: Path,
    wanted: tuple[str, Mapping[str, str]],
    part: parts.Part,
    note: Callable[[str], None],
) -> Iterator[parts.Record]:
    """Hold an artifact as one of its parts, ready for its items.

    The first part has the folder made ready for the artifact that is `wanted` (`store.begin`), and
    to itself: the others wait meanwhile for the lock of the door.
    """
    with ExitStack() as locks:
        with lock.held(folder.parent, f".{folder.name}.door.lock", lock.FOREVER):
            if not store.begun(folder, *wanted):
                with held(folder):
                    for lost in store.begin(folder, *wanted):
                        note(lost)
            locks.enter_context(lock.shared(folder.parent, _lock_of(folder), _PATIENCE))
            record = locks.enter_context(parts.held(folder, part))
        yield record


def tidy(folder: Path) -> None:
    """Clear away what a killed run has left of the making of a finished artifact.

    Raises CorruptArtifact unless the artifact's files are there.
    """
    if (folder / store.PROGRESS).exists():
        with held(folder):
            store.finish(folder)
    manifest = store.read_manifest(folder)
    if manifest is not None:
        store.verify(folder, manifest, contents=False)


def stamp(
    cfg: config.Config,
    plan: Mapping[str, Unit],
    name: str,
    fingerprints: Mapping[str, str],
) -> None:
    """Record in a finished artifact, which stands as it is, the fingerprints of now."""
    unit = plan[name]
    folder = unit.folder(cfg.folder)
    with disk.storage_errors(folder), held(folder):
        manifest = store.read_manifest(folder)
        assert manifest is not None  # it is done
        manifest.fingerprint = fingerprints[name]
        manifest.parents = {role: fingerprints[parent] for role, parent in unit.parents.items()}
        manifest.contents = contents(cfg, plan, unit)
        disk.write_record(folder / store.MANIFEST, asdict(manifest))


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold an artifact; the lock lies beside its folder, which may be wiped meanwhile."""
    with lock.held(folder.parent, _lock_of(folder), patience=_PATIENCE):
        yield


def _lock_of(folder: Path) -> str:
    return f".{folder.name}.lock"


def _tellers(
    listener: Listener,
) -> tuple[store.Progress, Callable[[str], None]]:
    """Two functions that tell the listener of progress, at most five times a second, and of
    notes."""
    last = 0.0

    def progress(done: float, words: str) -> None:
        nonlocal last
        if time.monotonic() - last > 0.2:
            last = time.monotonic()
            listener.send(("progress", (done, words)))

    def note(words: str) -> None:
        listener.send(("note", words))

    return progress, note


def _recorded(
    progress: store.Progress,
    spend: Callable[[float], None],
    before: float,
) -> store.Progress:
    """`progress` that also has `spend` record how many seconds the artifact has been in the making,
    with the seconds `before` this start: they are part of its cost, and hours of them are given up
    only with `--replace`."""
    started = time.monotonic()
    last = started

    def told(done: float, words: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > RECORDED_SECONDS:
            last = now
            # where the disk is full for a moment, the work must not end over a record
            with suppress(OSError):
                spend(before + now - started)
        progress(done, words)

    return told


def _verified(
    cfg: config.Config,
    plan: Mapping[str, Unit],
    unit: Unit,
) -> dict[str, str]:
    """What the parents of a unit hold, by role, once all of their files are verified.

    Raises MissingArtifact or CorruptArtifact where one of them is not whole.
    """
    found = {}
    for parent in dict.fromkeys(unit.parents.values()):  # one parent may have several roles
        folder = plan[parent].folder(cfg.folder)
        manifest = store.read_manifest(folder)
        if manifest is None:
            raise MissingArtifact(f"{unit.name}: {folder} is gone; run again")
        store.verify(folder, manifest)
        found[parent] = store.content(manifest)
    return {role: found[parent] for role, parent in unit.parents.items()}


def _spent(
    started: float,
    memory: Memory,
    earlier: Iterable[Mapping[str, float]],
) -> dict[str, int | float]:
    """What was spent since `started`, and `earlier`, as far as that is known: the sum of the
    seconds, and the most memory at any time."""
    seconds = time.monotonic() - started
    peak = memory.peak()
    for cost in earlier:
        seconds += cost.get("seconds", 0.0)
        peak = max(peak, int(cost.get("peak_memory_bytes", 0)))
    return {"seconds": seconds, "peak_memory_bytes": peak}
