"""The line of rooms: which artifacts are stale and why, and getting them made.

A unit starts once its parents are done, as many side by side as there are processes. `state`
compares fingerprints.
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

from synthboot import config, pool, preflight
from synthboot.artifacts import store
from synthboot.artifacts.corpus import Corpus
from synthboot.data import disk
from synthboot.errors import ConfigError, CorruptArtifact, LockedRun, MissingArtifact, TrainingError
from synthboot.lm import precision
from synthboot.recipes import VERSIONS, Unit, units

TOGETHER = ("base", "tune", "pretrain")
MODELS = (*TOGETHER, "synthesize")
PARALLEL = ("embed", "pair", "synthesize")


@dataclass(frozen=True)
class State:
    """How an artifact stands: `done`, `missing`, `partial`, or `stale` with the reasons."""

    status: str
    reasons: tuple[str, ...] = ()


Event = Callable[[str, str, Any], None]
"""What `run` tells: (unit name, "start" | "progress" | "note" | "done", value); a note is a line
for the user."""


def fingerprints(plan: dict[str, Unit]) -> dict[str, str]:
    """The fingerprint every unit's artifact should have."""
    marks: dict[str, str] = {}
    for name, unit in plan.items():
        parents = {role: marks[parent] for role, parent in unit.parents.items()}
        # parents come first in a plan, so theirs are there; a change upstream changes all below
        marks[name] = store.fingerprint(
            unit.stage,
            VERSIONS[unit.stage],
            unit.reads,
            parents,
        )
    return marks


def state(
    cfg: config.Config,
    plan: dict[str, Unit],
) -> dict[str, State]:
    """How every unit's artifact stands now.

    Raises CorruptArtifact for a manifest that cannot be read, or that a newer synthboot wrote, and
    StorageError where the disk does not let one look.
    """
    marks = fingerprints(plan)
    result: dict[str, State] = {}
    for name, unit in plan.items():
        folder = unit.folder(cfg.folder)
        with disk.storage_errors(folder):
            manifest = store.read_manifest(folder)
        if manifest is not None and manifest.version > VERSIONS[unit.stage]:
            raise CorruptArtifact(
                f"{folder}: a newer synthboot made it "
                f"(stage version {manifest.version}, here {VERSIONS[unit.stage]}); "
                f"update synthboot, or delete {folder} to make it again"
            )

        unfinished = [p for p in unit.parents.values() if result[p].status != "done"]
        if manifest is None:
            begun = (folder / store.PROGRESS).exists()
            result[name] = State("partial" if begun else "missing")
        elif manifest.fingerprint != marks[name]:
            parents = {role: marks[parent] for role, parent in unit.parents.items()}
            reasons = store.drift(
                manifest,
                VERSIONS[unit.stage],
                unit.reads,
                parents,
            )
            result[name] = State("stale", tuple(reasons))
        elif unfinished:
            first = unfinished[0]
            result[name] = State("stale", (f"{first} is {result[first].status}",))
        else:
            result[name] = State("done")
    return result


def needed(
    plan: dict[str, Unit],
    target: str,
) -> dict[str, Unit]:
    """The units of stage `target` and everything they read."""
    wanted = {name for name, unit in plan.items() if unit.stage == target}
    if not wanted:
        raise MissingArtifact(
            f"{target}: no arm of this configuration needs it; add an arm with `synthetic: related`"
        )
    # children before parents, so that one pass finds all ancestors
    for name in reversed(plan):
        if name in wanted:
            wanted.update(plan[name].parents.values())
    return {name: unit for name, unit in plan.items() if name in wanted}


def run(
    cfg: config.Config,
    target: str = "report",
    tell: Event = lambda *_: None,
) -> dict[str, Unit]:
    """Make every artifact up to `target` that is missing or stale, and return them all.

    Raises LockedRun while another process works on the folder, and whatever error a stage meets;
    finished shards are kept and the next run goes on from them.
    """
    plan = needed(units(cfg), target)
    with disk.storage_errors(cfg.folder), _lock(cfg.folder):
        if any(unit.stage in MODELS for unit in plan.values()):
            # a decided precision is a setting like another, so the plan is made again with it
            cfg = _decided(cfg, tell)
            plan = needed(units(cfg), target)
        states = state(cfg, plan)
        done = {name: unit for name, unit in plan.items() if states[name].status == "done"}
        _tidy(cfg, done)

        waiting = {name: unit for name, unit in plan.items() if name not in done}
        if not waiting:
            return plan
        preflight.check(cfg)
        if "corpus" in done:
            _check_against_corpus(cfg, plan["corpus"].folder(cfg.folder))
        _make_all(cfg, plan, waiting, tell)
    return plan


def _make_all(
    cfg: config.Config,
    plan: dict[str, Unit],
    waiting: dict[str, Unit],
    tell: Event,
) -> None:
    """Make the waiting units, as many side by side as there are processes for."""
    marks = fingerprints(plan)
    jobs = pool.jobs(cfg.engine.jobs, cfg.engine.device)
    side_by_side = max(1, jobs // cfg.engine.processes)
    running = pool.Pool()
    try:
        while waiting or len(running):
            for name in _ready(waiting, running, side_by_side):
                tell(name, "start", None)
                del waiting[name]
                # with workers or ranks of its own, a unit shares the GPUs out among these
                stage = plan[name].stage
                together = cfg.engine.processes > 1 and stage in TOGETHER
                own_gpu = stage not in PARALLEL and not together
                running.start(
                    name,
                    make,
                    cfg,
                    plan,
                    name,
                    marks,
                    jobs,
                    own_gpu=own_gpu,
                )
            for name, kind, value in running.wait():
                if kind == "failed":
                    raise value
                tell(name, kind, value)
                if kind == "done" and name == "corpus":
                    _check_against_corpus(cfg, plan[name].folder(cfg.folder))
    finally:
        running.close()
        for left in cfg.folder.glob(".together-*"):  # of a unit that was killed just now
            with contextlib.suppress(OSError):  # the next run tries again
                shutil.rmtree(left)


def _tidy(
    cfg: config.Config,
    done: dict[str, Unit],
) -> None:
    """Look whether the files of finished artifacts are there, and remove what a killed run had no
    time to."""
    for left in cfg.folder.glob(".together-*"):
        disk.remove(left)
    for unit in done.values():
        folder = unit.folder(cfg.folder)
        if (folder / store.PROGRESS).exists():
            with _lock(folder.parent, f".{folder.name}.lock", patience=30.0):
                store.finish(folder)
        manifest = store.read_manifest(folder)
        if manifest is not None:
            store.verify(folder, manifest, contents=False)


def _decided(cfg: config.Config, tell: Event) -> config.Config:
    """The configuration with a precision where it says `auto`: the run's, or what is faster here,
    which then is the run's."""
    if precision.undecided(cfg):
        running = pool.Pool()
        try:
            running.start("precision", precision.measure, cfg)
            [(_, kind, value)] = running.wait()
        finally:
            running.close()
        if kind == "failed":
            raise value
        precision.decide(cfg, value)
        tell("precision", "note", precision.sentence(cfg, value))
    return precision.recorded(cfg)


def _ready(
    waiting: dict[str, Unit],
    running: pool.Pool,
    side_by_side: int,
) -> list[str]:
    """Which units start now: those whose parents are done, in pipeline order, as many as there are
    free processes."""
    unfinished = set(waiting) | set(running.keys())
    able = []
    for name, unit in waiting.items():
        if unfinished.isdisjoint(unit.parents.values()):
            able.append(name)
    return able[: max(0, side_by_side - len(running))]


def _check_against_corpus(cfg: config.Config, folder: Path) -> None:
    """What can be known to be wrong once the corpus at `folder` is there, hours before it would be
    met."""
    corpus = Corpus.open(folder)
    check_budgets(cfg, corpus)
    preflight.check_questions_fit(cfg, corpus.tokenizer)


def check_budgets(cfg: config.Config, corpus: Corpus) -> None:
    """Raise BudgetError now, not hours later, where an oracle asks for more text than the corpus
    holds."""
    for name, arm in cfg.arms.items():
        if isinstance(arm.unique_tokens, int):
            # counted by the index alone; no token is read
            corpus.pool.docs_holding(arm.unique_tokens, f"arms.{name}.unique_tokens")


def make(
    cfg: config.Config,
    plan: dict[str, Unit],
    name: str,
    marks: dict[str, str],
    jobs: int,
    connection: Any,
) -> dict[str, Any]:
    """Make one artifact in this process: verify what it reads, run its step, write its manifest;
    returns its cost, and an `account` in words where the step gives one."""
    from synthboot import steps

    unit = plan[name]
    folder = unit.folder(cfg.folder)
    progress, note = _tellers(connection)

    with disk.storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.parent, f".{folder.name}.lock", patience=30.0):
            _verify_parents(cfg, plan, unit)
            for lost in store.begin(folder, marks[unit.name]):
                note(lost)

            started = time.monotonic()
            if cfg.engine.processes > 1 and unit.stage in TOGETHER:
                counts, cost = _together(cfg, unit, progress)
            else:
                step = steps.STEPS[unit.stage]
                counts, cost = step(context(cfg, plan, unit, jobs, progress))
            cost["seconds"] = time.monotonic() - started
            cost["peak_memory_bytes"] = _peak_memory()

            record = store.Manifest(
                stage=unit.stage,
                version=VERSIONS[unit.stage],
                fingerprint=marks[unit.name],
                reads=unit.reads,
                parents={role: marks[parent] for role, parent in unit.parents.items()},
                counts=counts,
                cost=cost,
            )
            store.commit(folder, record)
    return {**cost, "account": counts.get("account", "")}


def _tellers(connection: Any) -> tuple[store.Progress, Callable[[str], None]]:
    """What sends progress, five times a second at most, and what sends notes, to the parent."""
    last = 0.0

    def progress(done: float, words: str) -> None:
        nonlocal last
        if time.monotonic() - last > 0.2:
            last = time.monotonic()
            connection.send(("progress", (done, words)))

    def note(words: str) -> None:
        connection.send(("note", words))

    return progress, note


def _verify_parents(
    cfg: config.Config,
    plan: dict[str, Unit],
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


def context(
    cfg: config.Config,
    plan: dict[str, Unit],
    unit: Unit,
    jobs: int,
    progress: store.Progress,
) -> Any:
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
        outside=unit.outside,
        variant=unit.variant,
        recipe=unit.recipe,
        **unit.options,
    )


def _together(
    cfg: config.Config, unit: Unit, progress: store.Progress
) -> tuple[dict[str, Any], dict[str, float]]:
    """A unit's step in `engine.processes` processes, by torchrun or what `engine.launch` names.

    Raises TrainingError where one of them fails or dies, ConfigError where they cannot be started.
    """
    # beside the artifacts, where all machines see it
    with tempfile.TemporaryDirectory(prefix=".together-", dir=cfg.folder) as folder:
        job = Path(folder) / "job.json"
        stderr = Path(folder) / "stderr"
        disk.write_json(
            job,
            {
                "config": cfg.model_dump(mode="json"),
                "unit": unit.name,
            },
        )
        command = [*_launcher(cfg), "-m", "synthboot.runner.rank", str(job)]
        code = _train_together(command, stderr, progress)

        outcome_file = job.with_name("outcome.json")
        outcome = disk.read_json(outcome_file) if outcome_file.exists() else {}
        if code or "counts" not in outcome:
            lines = stderr.read_text("utf-8", "replace").splitlines()
            died = f"one of {cfg.engine.processes} processes died ({_why_died(lines, code)})"
            reason = outcome.get("error") or died
            raise TrainingError(
                f"{unit.name}: {reason}; run again to go on from the last checkpoint"
            )
        return outcome["counts"], outcome["cost"]


def _launcher(cfg: config.Config) -> list[str]:
    """The command that starts the ranks, but for what they run."""
    if cfg.engine.launch:
        return shlex.split(cfg.engine.launch)
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(cfg.engine.processes),
    ]


def _train_together(
    command: list[str],
    stderr: Path,
    progress: store.Progress,
) -> int:
    """The exit code of the ranks, whose progress is handed on until the last of them is gone."""
    with open(stderr, "wb") as error_file:
        try:
            ranks = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=error_file,
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
                return ranks.wait()
            finally:
                # closed input tells them to end; whoever does not is ended
                ranks.stdin.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    ranks.wait(pool.PATIENCE)
                ranks.kill()


def _why_died(lines: list[str], code: int) -> str:
    """The line of standard error that says why: the first exception, which the others follow from,
    else what torchrun says of the exit code."""
    for line in lines:
        # elastic: torchrun's own exception, which only says that a rank had one
        if re.search(r"\w(Error|Exception): ", line) and "elastic" not in line:
            return line
    for line in reversed(lines):
        if "exitcode" in line:
            return line.strip()
    return f"exit {code}"


def _release(ranks: subprocess.Popen[bytes]) -> None:
    """Let the ranks go once what started them is gone: they hold its output open, and would train
    on to the end unheard.

    They live as long as their input is open.
    """
    ranks.wait()
    assert ranks.stdin is not None
    ranks.stdin.close()


def _listen(
    output: IO[bytes] | None,
    progress: store.Progress,
) -> None:
    """Hand on the progress that ranks print, a JSON list a line, until the last of them is gone."""
    assert output is not None
    for line in output:
        try:
            done, words = json.loads(line)
        except (ValueError, TypeError):  # a library may print too
            continue
        progress(done, words)


@contextmanager
def _lock(
    folder: Path,
    name: str = ".lock",
    patience: float = 0.0,
) -> Iterator[None]:
    """Hold the folder for this process alone.

    Raises LockedRun where another holds it longer than `patience` seconds.
    """
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
                        f"{folder}: process {holder} is working on this run; "
                        f"wait for it, or choose another `name`"
                    ) from None
                time.sleep(0.05)

        # whoever finds it locked reads by whom
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
