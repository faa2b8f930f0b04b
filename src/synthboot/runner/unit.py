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

PARALLEL = ("corpus", "embed", "pair", "synthesize")
"""Stages whose steps have workers of their own."""

ITEMS = ("corpus", "embed", "pair", "synthesize")
"""Stages whose artifacts are made of items, so that parts of them are made side by side."""

DEALT = ("pretrain", "score")
"""Stages of many artifacts, of which each part makes some."""

_WITHOUT_ITEMS = (f"corpus/{EXTERNAL}", "pair/random_pairs")

RECORDED_SECONDS = 60.0
"""How often the time that an artifact in the making has taken is written down."""

_PATIENCE = 120.0
"""Seconds to wait for the worker of a killed run, which may take a moment to go, or on a node that
a cluster has lost until that is known by its silence."""


def has_workers(unit: Unit) -> bool:
    """Whether the unit's step has workers of its own."""
    return unit.stage in PARALLEL and not is_filter(unit)


def workers_of(
    cfg: config.Config,
    units: Mapping[str, Unit],
    jobs: int,
    devices: int,
) -> dict[str, int]:
    """How many workers of their own those of the `units` have that have any, by name.

    As many as there are `jobs`, and one unit at a time. Where there are two texts and more for each
    of the `devices` (GPUs, or cores where there are none), each is sampled by one worker: many
    texts side by side start less often than one after another by all, and few would leave devices
    idle in the end. On a GPU more jobs than devices share it, since the batch of a small model does
    not fill it.
    """
    workers = {name: jobs for name, unit in units.items() if has_workers(unit)}
    if cfg.engine.executor == "local" and cfg.synthesize.sampler == "embedded":
        texts = [name for name in workers if units[name].stage == "synthesize"]
        each = 1 if len(texts) >= 2 * devices else devices
        workers |= dict.fromkeys(texts, min(jobs, each))
    return workers


def has_items(unit: Unit) -> bool:
    """Whether parts of the unit are made side by side; some are made in one go."""
    return unit.stage in ITEMS and unit.name not in _WITHOUT_ITEMS and not is_filter(unit)


@runtime_checkable
class Listener(Protocol):
    """Who is told how a unit gets on: the connection of a worker, for one."""

    def send(self, message: tuple[str, Any], /) -> None:
        """Take what is said: ("progress", (share done, words)) or ("note", a line)."""


def make(
    cfg: config.Config,
    plan: Mapping[str, Unit],
    name: str,
    fingerprints: Mapping[str, str],
    workers: int,
    listener: Listener,
) -> dict[str, Any]:
    """Make the artifact of one unit of the plan, whose `fingerprints` these are, by so many
    `workers` of its step.

    Returns its cost, and an `account` in words where the step gives one; `listener` is told of
    progress and notes.
    """
    unit = plan[name]
    folder = unit.folder(cfg.folder)
    progress, note = _tellers(listener)

    with disk.storage_errors(folder), held(folder):
        of_parents = _verified(cfg, plan, unit)
        made = store.read_manifest(folder)
        if made is not None and stands(unit, made, fingerprints[name], of_parents):
            # by another process, such as the same part begun twice, while this one waited, or by
            # one that was lost before it had cleared up
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
    """Make the items of one part of a unit's artifact, beside other processes that make theirs.

    Returns what it took; the artifact is committed by `make`, once, when all parts are through.
    """
    unit = plan[name]
    folder = unit.folder(cfg.folder)
    progress, note = _tellers(listener)

    with disk.storage_errors(folder), ExitStack() as locks:
        # first, as to join it may empty the folder
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

    The first part makes it ready for what is `wanted`, as `store.begin` does, for which nobody else
    may be in it; the others wait at the door meanwhile.
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
    """Finish what a killed run had no time to clear away of a finished artifact.

    Raises CorruptArtifact unless its files are there.
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
    """Record what a finished artifact, which stands as it is, is known by now."""
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
    """Hold an artifact; the lock lies beside it, as a folder may be wiped while it is held."""
    with lock.held(folder.parent, _lock_of(folder), patience=_PATIENCE):
        yield


def _lock_of(folder: Path) -> str:
    return f".{folder.name}.lock"


def _tellers(
    listener: Listener,
) -> tuple[store.Progress, Callable[[str], None]]:
    """What sends progress, five times a second at most, and what sends notes, to the parent."""
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
    """The same progress of an artifact in the making, which also has `spend` keep how many seconds
    that has taken, `before` this start too: they are part of what it costs, and a configuration
    that would give hours of it up has to say so."""
    started = time.monotonic()
    last = started

    def told(done: float, words: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > RECORDED_SECONDS:
            last = now
            # a disk that is full for a moment must not end what keeps its work by the hour
            with suppress(OSError):
                spend(before + now - started)
        progress(done, words)

    return told


def _verified(
    cfg: config.Config,
    plan: Mapping[str, Unit],
    unit: Unit,
) -> dict[str, str]:
    """What the parents of a unit hold, by role, as their files are now.

    Raises MissingArtifact or CorruptArtifact where something that the unit reads is not whole.
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
    """What was spent since `started`, and `earlier`, as far as that is known: seconds are added
    up, the most memory is that of any of them."""
    seconds = time.monotonic() - started
    peak = memory.peak()
    for cost in earlier:
        seconds += cost.get("seconds", 0.0)
        peak = max(peak, int(cost.get("peak_memory_bytes", 0)))
    return {"seconds": seconds, "peak_memory_bytes": peak}
