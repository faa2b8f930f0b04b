"""The processes of a run, told apart by where they hang and what they were started as."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MARK = "SYNTHBOOT_KILL_MARK"


@dataclass(frozen=True)
class Process:
    """One process as /proc shows it."""

    pid: int
    parent: int
    command: str


def marked(mark: str) -> list[Process]:
    """Every living process that was started, by whomever, with the mark in its environment."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            if wanted not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        if state not in "ZX":
            found.append(Process(int(entry.name), int(parent), command))
    return found


def role(of: Process, family: dict[int, Process], top: int) -> str:
    """What a process is in a run whose command is process `top`."""
    if of.pid == top:
        return "parent"
    program, *_ = of.command.split(" -m synthboot.runner.torchrun")
    if "torch.distributed.run" in program or "torchrun" in program:
        return "agent"
    if program != of.command:
        return "rank"
    if "resource_tracker" in of.command:
        return "tracker"
    if of.parent == top:
        return "fork server"
    above = family.get(of.parent)
    if above is None:
        return "other"
    return {"fork server": "worker", "worker": "sub-worker"}.get(role(above, family, top), "other")


def holds(pid: int, lock: Path) -> bool:
    """Whether a process has a file open."""
    try:
        return any(os.readlink(link) == str(lock) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def holder(lock: Path) -> int:
    """The living process that says in a lock's file that it has it, or 0."""
    try:
        pid = int(lock.read_text())
    except (OSError, ValueError):
        return 0
    return pid if holds(pid, lock) else 0


def find(wanted: str, mark: str, top: int, lock: Path) -> Process | None:
    """The process of a role; of workers, the one that holds a unit's lock, and of others those below it."""
    family = {p.pid: p for p in marked(mark)}
    able = [p for p in family.values() if role(p, family, top) == wanted]
    if wanted in ("worker", "sub-worker"):
        able = [p for p in able if holds(p.pid if wanted == "worker" else p.parent, lock)]
    return able[time.monotonic_ns() % len(able)] if able else None


def wait_until(true: Callable[[], object], seconds: float) -> bool:
    """Whether it became true in time."""
    give_up = time.monotonic() + seconds
    while not (now := bool(true())) and time.monotonic() < give_up:
        time.sleep(0.01)
    return now


def end(mark: str) -> None:
    """Kill whatever is left of a run."""
    for process in marked(mark):
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
