"""The line of rooms: which artifacts are stale and why, and getting them made.

A unit starts once its parents are done, as many side by side as there are processes. `state` compares fingerprints.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthboot import config
from synthboot.data import artifacts
from synthboot.data.tokens import Tokens
from synthboot.errors import ConfigError, LockedRun, MissingArtifact, TrainingError
from synthboot.recipes import VERSIONS, Unit, units

TOGETHER = ("base", "tune", "pretrain")
PARALLEL = ("embed", "pair", "synthesize", "evaluate")


@dataclass(frozen=True)
class State:
    """How an artifact stands: `done`, `missing`, `partial`, or `stale` with the reasons."""

    status: str
    reasons: tuple[str, ...] = ()


Event = Callable[[str, str, Any], None]
"""What `run` tells: (unit name, "start" | "progress" | "done", value)."""


def fingerprints(plan: dict[str, Unit]) -> dict[str, str]:
    """The fingerprint every unit's artifact should have."""
    marks: dict[str, str] = {}
    for name, unit in plan.items():
        parents = {role: marks[parent] for role, parent in unit.parents.items()}
        marks[name] = artifacts.fingerprint(unit.stage, VERSIONS[unit.stage], unit.reads, parents)
    return marks


def state(cfg: config.Config, plan: dict[str, Unit]) -> dict[str, State]:
    """How every unit's artifact stands now."""
    marks = fingerprints(plan)
    result: dict[str, State] = {}
    for name, unit in plan.items():
        folder = unit.folder(cfg.folder)
        manifest = artifacts.read_manifest(folder)
        waiting = [p for p in unit.parents.values() if result[p].status != "done"]
        if manifest is None:
            status = "partial" if (folder / artifacts.PROGRESS).exists() else "missing"
            result[name] = State(status)
        elif manifest.fingerprint != marks[name]:
            parents = {role: marks[parent] for role, parent in unit.parents.items()}
            reasons = artifacts.drift(manifest, VERSIONS[unit.stage], unit.reads, parents)
            result[name] = State("stale", tuple(reasons))
        elif waiting:
            result[name] = State("stale", (f"{waiting[0]} is {result[waiting[0]].status}",))
        else:
            result[name] = State("done")
    return result


def needed(plan: dict[str, Unit], target: str) -> dict[str, Unit]:
    """The units of stage `target` and everything they read."""
    wanted = {name for name, unit in plan.items() if unit.stage == target}
    if not wanted:
        raise MissingArtifact(f"{target}: no arm of this configuration needs it; add an arm with `synthetic: related`")
    for name in reversed(plan):
        if name in wanted:
            wanted.update(plan[name].parents.values())
    return {name: unit for name, unit in plan.items() if name in wanted}


def run(cfg: config.Config, target: str = "report", tell: Event = lambda *_: None) -> dict[str, Unit]:
    """Make every artifact up to `target` that is missing or stale, and return them all.

    Raises LockedRun while another process works on the folder, and whatever error a stage meets; finished shards are kept
    and the next run goes on from them.
    """
    from synthboot.engine import local

    plan = needed(units(cfg), target)
    jobs = local.jobs(cfg.engine.jobs, cfg.engine.device)
    with _lock(cfg.folder), artifacts.storage_errors(cfg.folder):
        standing = state(cfg, plan)
        marks = fingerprints(plan)
        waiting = {name: unit for name, unit in plan.items() if standing[name].status != "done"}
        if not waiting:
            return plan
        pool = local.Pool()
        try:
            while waiting or len(pool):
                for name in _ready(plan, waiting, pool, max(1, jobs // cfg.engine.processes)):
                    tell(name, "start", None)
                    del waiting[name]
                    own_gpu = plan[name].stage not in PARALLEL and cfg.engine.processes == 1
                    pool.start(name, make, cfg, plan, name, marks, jobs, own_gpu=own_gpu)
                for name, kind, value in pool.wait():
                    if kind == "failed":
                        raise value
                    tell(name, kind, value)
                    if kind == "done" and name == "corpus":
                        check_budgets(cfg, plan[name].folder(cfg.folder))
        finally:
            pool.close()
    return plan


def _ready(plan: dict[str, Unit], waiting: dict[str, Unit], pool: Any, jobs: int) -> list[str]:
    """Which units start now: those whose parents are done, in pipeline order, as many as there are free processes."""
    unfinished = set(waiting) | set(pool.keys())
    able = [name for name, unit in waiting.items() if not unfinished.intersection(unit.parents.values())]
    return able[: max(0, jobs - len(pool))]


def check_budgets(cfg: config.Config, folder: Path) -> None:
    """Raise BudgetError now, not hours later, where an oracle asks for more text than the corpus at `folder` holds."""
    pool = Tokens.open(artifacts.Shards(folder / "pool"))
    for name, arm in cfg.arms.items():
        if isinstance(arm.unique_tokens, int):
            pool.docs_holding(arm.unique_tokens, f"arms.{name}.unique_tokens")


def make(
    cfg: config.Config, plan: dict[str, Unit], name: str, marks: dict[str, str], jobs: int, connection: Any
) -> dict[str, float]:
    """Make one artifact in this process: verify what it reads, run its step, write its manifest; returns its cost."""
    from synthboot import steps

    unit = plan[name]
    folder = unit.folder(cfg.folder)
    parents = {role: plan[parent].folder(cfg.folder) for role, parent in unit.parents.items()}
    clock = {"told": 0.0}

    def progress(done: float, words: str) -> None:
        if time.monotonic() - clock["told"] > 0.2:
            clock["told"] = time.monotonic()
            connection.send(("progress", (done, words)))

    with artifacts.storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.parent, f".{folder.name}.lock", patience=30.0):
            for parent in dict.fromkeys(parents.values()):
                manifest = artifacts.read_manifest(parent)
                if manifest is None:
                    raise MissingArtifact(f"{unit.name}: {parent} is gone; run again")
                artifacts.verify(parent, manifest)
            artifacts.begin(folder, marks[unit.name])
            started = time.monotonic()
            if cfg.engine.processes > 1 and unit.stage in TOGETHER:
                counts, cost = _together(cfg, unit, progress)
            else:
                counts, cost = steps.STEPS[unit.stage](context(cfg, plan, unit, jobs, progress))
            usage = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
            cost |= {"seconds": time.monotonic() - started, "peak_memory_bytes": usage * 1024}
            reads, known = unit.reads, {role: marks[parent] for role, parent in unit.parents.items()}
            record = artifacts.Manifest(
                unit.stage, VERSIONS[unit.stage], marks[unit.name], reads, known, counts=counts, cost=cost
            )
            artifacts.commit(folder, record)
    return cost


def context(cfg: config.Config, plan: dict[str, Unit], unit: Unit, jobs: int, progress: artifacts.Progress) -> Any:
    """What a unit's step is given."""
    from synthboot import steps

    parents = {role: plan[parent].folder(cfg.folder) for role, parent in unit.parents.items()}
    workers = jobs if unit.stage in PARALLEL else 1
    return steps.Context(
        unit.settings,
        unit.folder(cfg.folder),
        parents,
        workers,
        progress,
        variant=unit.variant,
        recipe=unit.recipe,
        **unit.options,
    )


def _together(cfg: config.Config, unit: Unit, progress: artifacts.Progress) -> tuple[dict[str, Any], dict[str, float]]:
    """A unit's step in `engine.processes` processes, by torchrun or what `engine.launch` names. Raises TrainingError where
    one of them fails or dies, ConfigError where they cannot be started."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(cfg.engine.processes)]
    if cfg.engine.launch:
        command = shlex.split(cfg.engine.launch)
    with tempfile.TemporaryDirectory(prefix=".together-", dir=cfg.folder) as place:  # where all machines see it
        job, said = Path(place) / "job.json", Path(place) / "stderr"
        artifacts.write_json(job, {"config": cfg.model_dump(mode="json"), "unit": unit.name})
        command += ["-m", "synthboot.ranks", str(job)]
        with open(said, "wb") as stderr:
            try:
                ranks = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
            except OSError as error:
                raise ConfigError(f"engine.launch: {command[0]} does not start ({error.strerror})") from None
            try:
                assert ranks.stdout is not None
                for line in ranks.stdout:
                    with contextlib.suppress(ValueError):  # a library may print too
                        progress(*json.loads(line))
                code = ranks.wait()
            finally:
                ranks.kill()
        outcome = job.with_name("outcome.json")
        found = artifacts.read_json(outcome) if outcome.exists() else {}
        if code or "counts" not in found:
            lines = said.read_text("utf-8", "replace").splitlines()
            raised = [line for line in lines if re.search(r"\w(Error|Exception): ", line) and "elastic" not in line]
            why = (
                raised[0] if raised else next((line.strip() for line in reversed(lines) if "exitcode" in line), f"exit {code}")
            )
            reason = found.get("error") or f"one of {cfg.engine.processes} processes died ({why})"
            raise TrainingError(f"{unit.name}: {reason}; run again to go on from the last checkpoint")
        return found["counts"], found["cost"]


@contextmanager
def _lock(folder: Path, name: str = ".lock", patience: float = 0.0) -> Iterator[None]:
    """Hold the folder for this process alone. Raises LockedRun where another holds it longer than `patience` seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "a+") as file:
        give_up = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= give_up:
                    file.seek(0)
                    holder = file.read().strip() or "unknown"
                    raise LockedRun(
                        f"{folder}: process {holder} is working on this run; wait for it, or choose another `name`"
                    ) from None
                time.sleep(0.05)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
