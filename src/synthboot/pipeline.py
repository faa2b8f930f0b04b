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
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from synthboot import config, preflight
from synthboot.data import artifacts, disk
from synthboot.data.tokens import Tokens
from synthboot.errors import ConfigError, CorruptArtifact, LockedRun, MissingArtifact, TrainingError
from synthboot.lm import precision
from synthboot.recipes import VERSIONS, Unit, units

TOGETHER = ("base", "tune", "pretrain")
MODELS = (*TOGETHER, "synthesize")
PARALLEL = ("embed", "pair", "synthesize", "evaluate")


@dataclass(frozen=True)
class State:
    """How an artifact stands: `done`, `missing`, `partial`, or `stale` with the reasons."""

    status: str
    reasons: tuple[str, ...] = ()


Event = Callable[[str, str, Any], None]
"""What `run` tells: (unit name, "start" | "progress" | "note" | "done", value); a note is a line for the user."""


def fingerprints(plan: dict[str, Unit]) -> dict[str, str]:
    """The fingerprint every unit's artifact should have."""
    marks: dict[str, str] = {}
    for name, unit in plan.items():
        parents = {role: marks[parent] for role, parent in unit.parents.items()}
        marks[name] = artifacts.fingerprint(unit.stage, VERSIONS[unit.stage], unit.reads, parents)
    return marks


def state(cfg: config.Config, plan: dict[str, Unit]) -> dict[str, State]:
    """How every unit's artifact stands now. Raises CorruptArtifact for a manifest that cannot be read, or that a newer
    synthboot wrote, and StorageError where the disk does not let one look."""
    marks = fingerprints(plan)
    result: dict[str, State] = {}
    for name, unit in plan.items():
        folder = unit.folder(cfg.folder)
        with disk.storage_errors(folder):
            manifest = artifacts.read_manifest(folder)
        if manifest is not None and manifest.version > VERSIONS[unit.stage]:
            raise CorruptArtifact(
                f"{folder}: a newer synthboot made it (stage version {manifest.version}, here {VERSIONS[unit.stage]}); "
                f"update synthboot, or delete {folder} to make it again"
            )
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
        raise MissingArtifact(
            f"{target}: no arm of this configuration needs it; add an arm with `synthetic: related`"
        )
    for name in reversed(plan):
        if name in wanted:
            wanted.update(plan[name].parents.values())
    return {name: unit for name, unit in plan.items() if name in wanted}


def run(
    cfg: config.Config, target: str = "report", tell: Event = lambda *_: None
) -> dict[str, Unit]:
    """Make every artifact up to `target` that is missing or stale, and return them all.

    Raises LockedRun while another process works on the folder, and whatever error a stage meets; finished shards are kept
    and the next run goes on from them.
    """
    from synthboot.engine import local

    plan = needed(units(cfg), target)
    jobs = local.jobs(cfg.engine.jobs, cfg.engine.device)
    with disk.storage_errors(cfg.folder), _lock(cfg.folder):
        if any(unit.stage in MODELS for unit in plan.values()):
            cfg = _decided(cfg, tell)
            plan = needed(units(cfg), target)
        standing = state(cfg, plan)
        _tidy(cfg, {name: unit for name, unit in plan.items() if standing[name].status == "done"})
        marks = fingerprints(plan)
        waiting = {name: unit for name, unit in plan.items() if standing[name].status != "done"}
        if not waiting:
            return plan
        preflight.check(cfg)
        if "corpus" not in waiting:
            _check_against_corpus(cfg, plan["corpus"].folder(cfg.folder))
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
                        _check_against_corpus(cfg, plan[name].folder(cfg.folder))
        finally:
            pool.close()
            for left in cfg.folder.glob(".together-*"):  # of a unit that was killed just now
                with contextlib.suppress(OSError):  # the next run tries again
                    shutil.rmtree(left)
    return plan


def _tidy(cfg: config.Config, done: dict[str, Unit]) -> None:
    """Look whether the files of finished artifacts are there, and remove what a killed run had no time to."""
    for left in cfg.folder.glob(".together-*"):
        disk.remove(left)
    for unit in done.values():
        folder = unit.folder(cfg.folder)
        if (folder / artifacts.PROGRESS).exists():
            with _lock(folder.parent, f".{folder.name}.lock", patience=30.0):
                artifacts.finish(folder)
        manifest = artifacts.read_manifest(folder)
        if manifest is not None:
            artifacts.verify(folder, manifest, contents=False)


def _decided(cfg: config.Config, tell: Event) -> config.Config:
    """The configuration with a precision where it says `auto`: the run's, or what is faster here, which then is the run's."""
    from synthboot.engine import local

    if precision.undecided(cfg):
        pool = local.Pool()
        try:
            pool.start("precision", precision.measure, cfg)
            [(_, kind, value)] = pool.wait()
        finally:
            pool.close()
        if kind == "failed":
            raise value
        precision.decide(cfg, value)
        tell("precision", "note", precision.sentence(cfg, value))
    return precision.recorded(cfg)


def _ready(plan: dict[str, Unit], waiting: dict[str, Unit], pool: Any, jobs: int) -> list[str]:
    """Which units start now: those whose parents are done, in pipeline order, as many as there are free processes."""
    unfinished = set(waiting) | set(pool.keys())
    able = [
        name for name, unit in waiting.items() if not unfinished.intersection(unit.parents.values())
    ]
    return able[: max(0, jobs - len(pool))]


def _check_against_corpus(cfg: config.Config, folder: Path) -> None:
    """What can be known to be wrong once the corpus at `folder` is there, hours before it would be met."""
    check_budgets(cfg, folder)
    preflight.check_questions_fit(cfg, folder)


def check_budgets(cfg: config.Config, folder: Path) -> None:
    """Raise BudgetError now, not hours later, where an oracle asks for more text than the corpus at `folder` holds."""
    pool = Tokens.open(artifacts.Shards(folder / "pool"))
    for name, arm in cfg.arms.items():
        if isinstance(arm.unique_tokens, int):
            pool.docs_holding(arm.unique_tokens, f"arms.{name}.unique_tokens")


def make(
    cfg: config.Config,
    plan: dict[str, Unit],
    name: str,
    marks: dict[str, str],
    jobs: int,
    connection: Any,
) -> dict[str, Any]:
    """Make one artifact in this process: verify what it reads, run its step, write its manifest; returns its cost, and an
    `account` in words where the step gives one."""
    from synthboot import steps

    unit = plan[name]
    folder = unit.folder(cfg.folder)
    parents = {role: plan[parent].folder(cfg.folder) for role, parent in unit.parents.items()}
    clock = {"told": 0.0}

    def progress(done: float, words: str) -> None:
        if time.monotonic() - clock["told"] > 0.2:
            clock["told"] = time.monotonic()
            connection.send(("progress", (done, words)))

    def note(words: str) -> None:
        connection.send(("note", words))

    with disk.storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.parent, f".{folder.name}.lock", patience=30.0):
            for parent in dict.fromkeys(parents.values()):
                manifest = artifacts.read_manifest(parent)
                if manifest is None:
                    raise MissingArtifact(f"{unit.name}: {parent} is gone; run again")
                artifacts.verify(parent, manifest)
            for lost in artifacts.begin(folder, marks[unit.name]):
                note(lost)
            started = time.monotonic()
            if cfg.engine.processes > 1 and unit.stage in TOGETHER:
                counts, cost = _together(cfg, unit, progress)
            else:
                counts, cost = steps.STEPS[unit.stage](
                    context(cfg, plan, unit, jobs, progress, note)
                )
            usage = max(
                resource.getrusage(who).ru_maxrss
                for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            )
            cost |= {"seconds": time.monotonic() - started, "peak_memory_bytes": usage * 1024}
            reads, known = (
                unit.reads,
                {role: marks[parent] for role, parent in unit.parents.items()},
            )
            record = artifacts.Manifest(
                unit.stage,
                VERSIONS[unit.stage],
                marks[unit.name],
                reads,
                known,
                counts=counts,
                cost=cost,
            )
            artifacts.commit(folder, record)
    return {**cost, "account": counts.get("account", "")}


def context(
    cfg: config.Config, plan: dict[str, Unit], unit: Unit, jobs: int, progress: artifacts.Progress,
    note: Callable[[str], None] = lambda _: None,
) -> Any:  # fmt: skip
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
        note=note,
        outside=unit.outside,
        variant=unit.variant,
        recipe=unit.recipe,
        **unit.options,
    )


def _together(
    cfg: config.Config, unit: Unit, progress: artifacts.Progress
) -> tuple[dict[str, Any], dict[str, float]]:
    """A unit's step in `engine.processes` processes, by torchrun or what `engine.launch` names. Raises TrainingError where
    one of them fails or dies, ConfigError where they cannot be started."""
    from synthboot.engine import local

    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(cfg.engine.processes),
    ]
    if cfg.engine.launch:
        command = shlex.split(cfg.engine.launch)
    with tempfile.TemporaryDirectory(
        prefix=".together-", dir=cfg.folder
    ) as place:  # where all machines see it
        job, said = Path(place) / "job.json", Path(place) / "stderr"
        disk.write_json(job, {"config": cfg.model_dump(mode="json"), "unit": unit.name})
        command += ["-m", "synthboot.ranks", str(job)]
        with open(said, "wb") as stderr:
            try:
                ranks = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
                )
            except OSError as error:
                raise ConfigError(
                    f"engine.launch: {command[0]} does not start ({error.strerror})"
                ) from None
            with ranks:
                assert ranks.stdin is not None
                threading.Thread(target=_release, args=(ranks,), daemon=True).start()
                try:
                    _listen(ranks.stdout, progress)
                    code = ranks.wait()
                finally:
                    ranks.stdin.close()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        ranks.wait(local.PATIENCE)
                    ranks.kill()
        outcome = job.with_name("outcome.json")
        found = disk.read_json(outcome) if outcome.exists() else {}
        if code or "counts" not in found:
            lines = said.read_text("utf-8", "replace").splitlines()
            raised = [
                line
                for line in lines
                if re.search(r"\w(Error|Exception): ", line) and "elastic" not in line
            ]
            why = (
                raised[0]
                if raised
                else next(
                    (line.strip() for line in reversed(lines) if "exitcode" in line), f"exit {code}"
                )
            )
            reason = found.get("error") or f"one of {cfg.engine.processes} processes died ({why})"
            raise TrainingError(
                f"{unit.name}: {reason}; run again to go on from the last checkpoint"
            )
        return found["counts"], found["cost"]


def _release(ranks: subprocess.Popen[bytes]) -> None:
    """Let the ranks go once what started them is gone: they hold its output open, and would train on to the end unheard.
    They live as long as their input is open."""
    ranks.wait()
    assert ranks.stdin is not None
    ranks.stdin.close()


def _listen(output: IO[bytes] | None, progress: artifacts.Progress) -> None:
    """Hand on the progress that ranks print, a JSON list a line, until the last of them is gone."""
    assert output is not None
    for line in output:
        try:
            done, words = json.loads(line)
        except (ValueError, TypeError):  # a library may print too
            continue
        progress(done, words)


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
            except BlockingIOError:
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
