"""One artifact made, by a worker of the run: what it reads is verified, its step runs, its
manifest is written."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from synthboot import config
from synthboot.artifacts import store
from synthboot.data import disk
from synthboot.errors import MissingArtifact
from synthboot.recipes import VERSIONS, Unit
from synthboot.runner import lock, torchrun
from synthboot.runner.step import run_step

PARALLEL = ("embed", "pair", "synthesize")
"""Stages whose steps have workers of their own."""

_PATIENCE = 30.0
"""Seconds to wait for the worker of a killed run, which may take a moment to go."""


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
    jobs: int,
    listener: Listener,
) -> dict[str, Any]:
    """Make the artifact of one unit of the plan, whose `fingerprints` these are.

    Returns its cost, and an `account` in words where the step gives one; `listener` is told of
    progress and notes.
    """
    unit = plan[name]
    folder = unit.folder(cfg.folder)
    progress, note = _tellers(listener)

    with disk.storage_errors(folder), _held(folder):
        _verify_parents(cfg, plan, unit)
        for lost in store.begin(folder, fingerprints[name]):
            note(lost)

        started = time.monotonic()
        if cfg.engine.processes > 1 and unit.stage in torchrun.STAGES:
            counts, cost = torchrun.run_step_together(cfg, plan, unit, progress)
        else:
            workers = jobs if unit.stage in PARALLEL else 1
            counts, cost = run_step(cfg, plan, unit, workers, progress, note)
        cost["seconds"] = time.monotonic() - started
        cost["peak_memory_bytes"] = _peak_memory()

        record = store.Manifest(
            stage=unit.stage,
            version=VERSIONS[unit.stage],
            fingerprint=fingerprints[name],
            reads=unit.reads,
            parents={role: fingerprints[parent] for role, parent in unit.parents.items()},
            counts=counts,
            cost=cost,
        )
        store.commit(folder, record)
    return {**cost, "account": counts.get("account", "")}


def tidy(folder: Path) -> None:
    """Finish what a killed run had no time to clear away of a finished artifact.

    Raises CorruptArtifact unless its files are there.
    """
    if (folder / store.PROGRESS).exists():
        with _held(folder):
            store.finish(folder)
    manifest = store.read_manifest(folder)
    if manifest is not None:
        store.verify(folder, manifest, contents=False)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold an artifact; the lock lies beside it, as a folder may be wiped while it is held."""
    with lock.held(folder.parent, f".{folder.name}.lock", patience=_PATIENCE):
        yield


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


def _verify_parents(
    cfg: config.Config,
    plan: Mapping[str, Unit],
    unit: Unit,
) -> None:
    """Raise MissingArtifact or CorruptArtifact where something that the unit reads is not whole."""
    folders = [plan[parent].folder(cfg.folder) for parent in unit.parents.values()]
    for folder in dict.fromkeys(folders):  # one parent may have several roles
        manifest = store.read_manifest(folder)
        if manifest is None:
            raise MissingArtifact(f"{unit.name}: {folder} is gone; run again")
        store.verify(folder, manifest)


def _peak_memory() -> int:
    """The most memory that this process, or one of those it started, has had, in bytes."""
    usage = []
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage.append(resource.getrusage(who).ru_maxrss)
    return max(usage) * 1024  # Linux counts in KiB
