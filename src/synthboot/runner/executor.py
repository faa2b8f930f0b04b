"""A run: whatever is missing or stale gets made, each artifact once its parents are done, as many
side by side as there are processes, on this machine or on those of a cluster."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from synthboot import config, pool, preflight
from synthboot.artifacts import pairs
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.parts import Part
from synthboot.data import disk, hashes, lock
from synthboot.errors import ConfigError, DataError, MissingArtifact
from synthboot.lm import precision
from synthboot.recipes import Unit, outside, units
from synthboot.runner import cost, torchrun, turns
from synthboot.runner.graph import fingerprints, needed, ready, startable
from synthboot.runner.sharing import finished, take_over
from synthboot.runner.state import State, ask, state, states
from synthboot.runner.unit import (
    DEALT,
    ITEMS,
    has_items,
    make,
    make_part,
    stamp,
    tidy,
    workers_of,
)

MODELS = (*torchrun.STAGES, "synthesize")
"""Stages that run models, in the precision that `auto` stands for."""

Event = Callable[[str, str, Any], None]
"""What `run` tells: (unit name, kind, value).

First (target, "plan", the State of every unit by name). Then of each unit "start" (None),
"progress" (share done, words), "note" (a line for the user), and at last "done" (its cost), or
"kept" (None) where what it reads was made anew and came out as it was.
"""


def run(
    cfg: config.Config,
    target: str = "report",
    tell: Event = lambda *_: None,
    others: Iterable[Path] = (),
    only: Sequence[str] = (),
    replace: bool = False,
) -> dict[str, Unit]:
    """Make every artifact up to `target` that is missing or stale; returns the units of all.

    Artifacts that the run folders `others` have finished are taken over (`sharing`). Of the target
    itself, only those that match `only` are made (`graph.needed`). Hours of finished work that
    other settings made are made anew only with `replace`.

    Raises FinishedWork where such work would be lost, LockedRun while another process works on the
    folder, and whatever error a stage meets; the next run goes on from the finished shards.
    """
    everything = units(cfg)
    plan = needed(everything, target, only)
    preflight.check_executor(cfg)
    with disk.storage_errors(cfg.folder), lock.held(cfg.folder), _workplace(cfg):
        turns.end_all(cfg.folder)
        if any(unit.stage in MODELS for unit in plan.values()):
            # once decided, the precision is a setting like any other: the plan is made again
            cfg = precision.decided(cfg, lambda words: tell("precision", "note", words))
            plan = needed(units(cfg, outside(everything)), target, only)
        standing = states(cfg, plan)
        ask(plan, standing, cfg.folder, replace)
        shelf = finished(others)
        if take_over(cfg, plan, standing, shelf, lambda name, words: tell(name, "note", words)):
            standing = states(cfg, plan)
            # what was taken over may hold something else than what lay in its place
            ask(plan, standing, cfg.folder, replace)
        tell(target, "plan", standing)
        for left in torchrun.leftovers(cfg.folder):
            disk.remove(left)

        waiting: dict[str, Unit] = {}
        marks = fingerprints(plan)
        for name, unit in plan.items():
            if standing[name].status != "done":
                waiting[name] = unit
                continue
            _keep(cfg, plan, name, standing[name], marks)
        if waiting:
            preflight.check(cfg)
            if "corpus" in waiting and standing["corpus"].status == "stale":
                preflight.check_source(cfg)
            for name in plan.keys() - waiting.keys():
                _check_made(cfg, plan, name)
            try:
                _make_all(cfg, plan, waiting, standing, tell, replace=replace)
            finally:
                for left in torchrun.leftovers(cfg.folder):  # of a unit that was killed just now
                    with suppress(OSError):  # the next run tries again
                        shutil.rmtree(left)
    return plan


def run_part(
    cfg: config.Config,
    target: str,
    part: Part,
    tell: Event = lambda *_: None,
    replace: bool = False,
) -> list[str]:
    """Make one part of stage `target`, while other processes make others in the same run folder;
    returns the units that it worked on.

    A part is every N-th item of each artifact in a stage of `ITEMS`, every N-th artifact in a stage
    of `DEALT`. `run` then makes what is still missing, and commits. What the stage reads has to be
    there.

    Raises MissingArtifact where it is not, ConfigError for a stage without parts, FinishedWork as
    `run` does, and LockedRun while a `run` works on the folder, or another process on this part.
    """
    if target not in (*ITEMS, *DEALT):
        raise ConfigError(
            f"{target}: has no parts, --part is for {', '.join((*ITEMS, *DEALT))}; run it without"
        )
    if cfg.engine.executor != "local":
        raise ConfigError(
            "--part: is for schedulers of batch jobs, and engine.executor=ray deals items out "
            "itself; run it without"
        )
    cfg = precision.recorded(cfg)
    with disk.storage_errors(cfg.folder), lock.shared(cfg.folder):
        turns.end_all(cfg.folder)
        plan = needed(units(cfg), target)
        standing = states(cfg, plan)
        mine = _of_part(plan, target, part, standing)
        ask(mine, standing, cfg.folder, replace)
        tell(target, "plan", {name: standing[name] for name in mine})
        if mine:
            preflight.check(cfg)
            _make_all(cfg, plan, dict(mine), standing, tell, part if target in ITEMS else None)
    return list(mine)


def _of_part(
    plan: Mapping[str, Unit],
    target: str,
    part: Part,
    standing: Mapping[str, State],
) -> dict[str, Unit]:
    """The units of a stage that a part works on now.

    A unit that reads another of the same stage is left to the `run` that finishes that one.
    """
    own = [unit for unit in plan.values() if unit.stage == target]
    if target in ITEMS:
        own = [unit for unit in own if has_items(unit)]
    else:
        own = [own[index] for index in part.of(len(own))]

    mine = {}
    for unit in own:
        unfinished = [name for name in unit.parents.values() if standing[name].status != "done"]
        for name in unfinished:
            if plan[name].stage != target:
                raise MissingArtifact(
                    f"{unit.name}: reads {name}, which is {standing[name].status}, and parts make "
                    f"nothing but their own; first run `synthboot {plan[name].stage} CONFIG`"
                )
        if not unfinished and standing[unit.name].status != "done":
            mine[unit.name] = unit
    return mine


def _make_all(
    cfg: config.Config,
    plan: dict[str, Unit],
    waiting: dict[str, Unit],
    standing: Mapping[str, State],
    tell: Event,
    part: Part | None = None,
    replace: bool = False,
) -> None:
    """Make the waiting units, or a `part` of their items, as many side by side as there are
    processes for; units that turn out to stand as they are, are kept."""
    expected = fingerprints(plan)
    standing = dict(standing)
    memory = _memory(cfg, plan)
    lost: Counter[str] = Counter()
    running = pool.opened()
    try:
        jobs = running.jobs(cfg.engine.jobs, cfg.engine.device)
        side_by_side = max(1, jobs // cfg.engine.processes)
        devices = len(pool.gpus()) if pool.uses_gpus(cfg.engine.device) else jobs
        workers = workers_of(cfg, waiting, jobs, max(1, devices))
        # Ray's own scheduler lets workers wait for cores
        wide = workers if cfg.engine.executor == "local" else {}
        while waiting or len(running):
            able = ready(waiting.values(), {*waiting, *running.keys()})
            undecided = [name for name in able if standing[name].may_stand]
            if undecided:
                for name in _settle(cfg, plan, undecided, standing, expected):
                    del waiting[name]
                    tell(name, "kept", None)
                ask(waiting, standing, cfg.folder, replace)
                continue  # units that read them may be ready now

            for name in startable(able, running.keys(), side_by_side, wide, jobs):
                if name not in lost:
                    tell(name, "start", None)
                del waiting[name]
                running.start(
                    name,
                    make if part is None else make_part,
                    cfg,
                    plan,
                    name,
                    expected,
                    workers.get(name, 1),
                    *(() if part is None else (part,)),
                    places=_places(cfg, plan[name], workers.get(name)),
                    memory=memory[name],
                )
            for name, kind, value in running.wait():
                if kind == "failed":
                    if isinstance(value, DataError):
                        # a file may have changed while its size and times stayed the same
                        hashes.forget(cfg.folder)
                    raise value
                if kind == "lost":
                    lost[name] += 1
                    if lost[name] > pool.LIVES:
                        raise pool.WorkerDied(f"{name}: {value}; run again to go on from there")
                    waiting[name] = plan[name]
                    kind, value = "note", f"{value}; begun again"
                tell(name, kind, value)
                if kind == "done" and part is None:
                    _check_made(cfg, plan, name)
    finally:
        running.close()


def _settle(
    cfg: config.Config,
    plan: Mapping[str, Unit],
    undecided: Sequence[str],
    standing: dict[str, State],
    expected: Mapping[str, str],
) -> list[str]:
    """Decide of each of these units whether it stands as it is, now that its parents are finished;
    returns those that do. `standing` is brought up to date."""
    kept = []
    for name in undecided:
        standing[name] = state(cfg, plan, name, expected)
        if standing[name].status == "done":
            _keep(cfg, plan, name, standing[name], expected)
            _check_made(cfg, plan, name)
            kept.append(name)
    return kept


def _keep(
    cfg: config.Config,
    plan: Mapping[str, Unit],
    name: str,
    now: State,
    expected: Mapping[str, str],
) -> None:
    """Keep a finished artifact: clear up what a kill has left, and stamp it with the fingerprint
    that it is known by now."""
    tidy(plan[name].folder(cfg.folder))
    if not now.stamped:
        stamp(cfg, plan, name, expected)


def _check_made(cfg: config.Config, plan: Mapping[str, Unit], name: str) -> None:
    """Raise what can be known to be wrong of a plan once this unit is made, hours before another
    unit would meet it."""
    folder = plan[name].folder(cfg.folder)
    if name == "corpus":
        preflight.check_against_corpus(cfg, Corpus.open(folder))
    if name == "pair/related" and any(unit.stage == "tune" for unit in plan.values()):
        preflight.check_against_pairs(pairs.chosen(folder))


def _workplace(cfg: config.Config) -> AbstractContextManager[None]:
    """While this is entered, processes run where `engine.executor` says."""
    if cfg.engine.executor == "local":
        return nullcontext()
    from synthboot.runner import cluster  # it brings Ray along

    return cluster.joined(cfg)


def _places(cfg: config.Config, unit: Unit, workers: int | None) -> int:
    """How many cores or GPUs a unit's process takes: 0 where it has several workers, which take
    them, and on a cluster where it has any."""
    if workers is not None and (workers > 1 or cfg.engine.executor != "local"):
        return 0
    return cfg.engine.processes if unit.stage in torchrun.STAGES else 1


def _memory(cfg: config.Config, plan: Mapping[str, Unit]) -> Mapping[str, float]:
    """Bytes of memory that each unit is expected to take; only a cluster asks for them."""
    if cfg.engine.executor == "local":
        return dict.fromkeys(plan, 0.0)
    return cost.host_memory(cfg, plan)
