"""A run: whatever is missing or stale gets made, each artifact once its parents are done, as many
side by side as there are processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from synthboot import config, pool, preflight
from synthboot.artifacts.corpus import Corpus
from synthboot.data import disk
from synthboot.lm import precision
from synthboot.recipes import Unit, outside, units
from synthboot.runner import lock, torchrun
from synthboot.runner.graph import fingerprints, needed, ready
from synthboot.runner.state import states
from synthboot.runner.unit import PARALLEL, make, tidy

MODELS = (*torchrun.STAGES, "synthesize")
"""Stages that read what `auto` stands for."""

Event = Callable[[str, str, Any], None]
"""What `run` tells: (unit name, kind, value).

First (target, "plan", the State of every unit by name); then of a unit "start" (None), "progress"
(share done and words), "note" (a line for the user) and "done" (its cost).
"""


def run(
    cfg: config.Config,
    target: str = "report",
    tell: Event = lambda *_: None,
) -> dict[str, Unit]:
    """Make every artifact up to `target` that is missing or stale, and return them all.

    Raises LockedRun while another process works on the folder, and whatever error a stage meets;
    finished shards are kept and the next run goes on from them.
    """
    everything = units(cfg)
    plan = needed(everything, target)
    with disk.storage_errors(cfg.folder), lock.held(cfg.folder):
        if any(unit.stage in MODELS for unit in plan.values()):
            # a decided precision is a setting like another, so the plan is made again with it
            cfg = precision.decided(cfg, lambda words: tell("precision", "note", words))
            plan = needed(units(cfg, outside(everything)), target)
        standing = states(cfg, plan)
        tell(target, "plan", standing)
        for left in torchrun.leftovers(cfg.folder):
            disk.remove(left)

        waiting: dict[str, Unit] = {}
        for name, unit in plan.items():
            if standing[name].status == "done":
                tidy(unit.folder(cfg.folder))
            else:
                waiting[name] = unit
        if waiting:
            preflight.check(cfg)
            if "corpus" not in waiting:
                preflight.check_against_corpus(cfg, _corpus(cfg, plan))
            _make_all(cfg, plan, waiting, tell)
    return plan


def _make_all(
    cfg: config.Config,
    plan: dict[str, Unit],
    waiting: dict[str, Unit],
    tell: Event,
) -> None:
    """Make the waiting units, as many side by side as there are processes for."""
    expected = fingerprints(plan)
    jobs = pool.jobs(cfg.engine.jobs, cfg.engine.device)
    side_by_side = max(1, jobs // cfg.engine.processes)
    running = pool.Pool()
    try:
        while waiting or len(running):
            able = ready(waiting.values(), {*waiting, *running.keys()})
            for name in able[: max(0, side_by_side - len(running))]:
                tell(name, "start", None)
                del waiting[name]
                # with workers or ranks of its own, a unit shares the GPUs out among these
                stage = plan[name].stage
                together = cfg.engine.processes > 1 and stage in torchrun.STAGES
                own_gpu = stage not in PARALLEL and not together
                running.start(
                    name,
                    make,
                    cfg,
                    plan,
                    name,
                    expected,
                    jobs,
                    own_gpu=own_gpu,
                )
            for name, kind, value in running.wait():
                if kind == "failed":
                    raise value
                tell(name, kind, value)
                if kind == "done" and name == "corpus":
                    preflight.check_against_corpus(cfg, _corpus(cfg, plan))
    finally:
        running.close()
        for left in torchrun.leftovers(cfg.folder):  # of a unit that was killed just now
            with suppress(OSError):  # the next run tries again
                shutil.rmtree(left)


def _corpus(cfg: config.Config, plan: dict[str, Unit]) -> Corpus:
    return Corpus.open(plan["corpus"].folder(cfg.folder))
