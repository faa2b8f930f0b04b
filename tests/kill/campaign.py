"""One run folder, hit once in every stage: what each hit did, and whether the end is that of a run nobody touched."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from synthboot import loading, recipes
from synthboot.artifacts.store import MANIFEST, read_manifest
from tests.conftest import contents, run_folder
from tests.kill import family

SIGNALS = ("KILL", "TERM", "INT", "HUP", "STOP")
ANYWHERE = ("worker", "fork server", "tracker", "parent", "group")
ALONE = dict.fromkeys(recipes.STAGES, ANYWHERE)
ALONE |= dict.fromkeys(("embed", "pair", "synthesize"), (*ANYWHERE, "sub-worker", "sub-worker"))
TOGETHER = dict.fromkeys(("base", "tune", "pretrain"), ("rank", "rank", "agent", "agent", "worker", "parent"))
ENDS = {"KILL": {-9}, "TERM": {143, -15}, "INT": {130}, "HUP": {129, -1}}  # exit codes of a parent that is hit itself
PATIENCE = 300.0
GONE = 15.0  # seconds after the parent's end in which everything else has to have ended, on a machine that does other work


@dataclass
class Kill:
    """One hit and what came of it. `outcome`: "stopped", "went on" as if nothing had been, or a fault in words."""

    campaign: int
    stage: str
    target: str
    signal: str
    together: bool
    outcome: str
    code: int = 0
    seconds: float = 0.0
    left: int = 0
    said: str = ""


def aim(stage: str, number: int, seed: int, together: bool) -> tuple[str, str]:
    """(target, signal) of the kill of this number in a stage: all combinations before one comes up again."""
    targets = TOGETHER.get(stage, ALONE[stage]) if together else ALONE[stage]
    combinations = [(target, name) for target in targets for name in SIGNALS]
    random.Random(f"{seed} {stage} {together}").shuffle(combinations)
    return combinations[number % len(combinations)]


def _hears_signals() -> None:
    """What a background job or nohup starts may ignore signals from the beginning."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


class Campaign:
    """A run folder of its own under `place`, and the means to start the command and to hit it."""

    def __init__(self, settings: dict[str, Any], place: Path, number: int) -> None:
        self.settings, self.number = {**settings, "root": str(place)}, number
        self.place, self.folder, self.mark = place, run_folder(self.settings), f"{os.getpid()}-{number}"
        self.together = settings["engine"].get("processes", 1) > 1
        (place / "tmp").mkdir(parents=True, exist_ok=True)
        self.file = place / "run.yaml"
        self.file.write_text(yaml.safe_dump(self.settings))
        self.kills, self.struck = list[Kill](), 0.0
        self.process: subprocess.Popen[bytes] | None = None
        self.units = recipes.units(loading.load(self.file))

    def start(self) -> None:
        """`synthboot run`, in a session of its own, as a terminal starts it; nothing where it runs already."""
        if self.process is not None and self.process.poll() is None:
            return
        environment = {**os.environ, family.MARK: self.mark, "TMPDIR": str(self.place / "tmp"), "OMP_NUM_THREADS": "1"}
        with open(self.place / "stderr", "w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "synthboot", "run", str(self.file)],
                env=environment,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                preexec_fn=_hears_signals,
            )

    def hit(self, stage: str, target: str, name: str, lengths: dict[str, float], rng: random.Random) -> None:
        """Hit the run at a random moment of a stage, if it comes by it, and wait until that stage or the run has ended."""
        waiting = [u for u in self.units.values() if u.stage == stage and not (u.folder(self.folder) / MANIFEST).exists()]
        if not waiting:
            return
        unit = rng.choice(waiting)
        folder = unit.folder(self.folder)
        lock = folder.parent / f".{folder.name}.lock"
        self.start()

        def done() -> bool:
            return (folder / MANIFEST).exists() or self.ended()

        family.wait_until(lambda: family.holder(lock) or done(), PATIENCE)
        time.sleep(rng.uniform(0, 0.9 * lengths[unit.name]))
        if not self._strike(target, name, lock, done):
            return
        self.kills.append(Kill(self.number, stage, target, name, self.together, "went on"))
        if not family.wait_until(done, PATIENCE):
            self.kills[-1].outcome = "hung"
            family.end(self.mark)
        self.ended()

    def ended(self) -> bool:
        """Whether the run has ended; what the last kill did is then known."""
        process = self.process
        if process is None or process.poll() is None:
            return False
        self.process = None
        seconds = time.monotonic() - self.struck
        family.wait_until(lambda: not family.marked(self.mark), GONE)
        left = family.marked(self.mark)
        family.end(self.mark)
        if self.kills:
            self._judge(self.kills[-1], process.returncode, seconds, len(left))
            self.kills[-1].said += " ".join(f"[left: {p.pid} below {p.parent}: {p.command[:120]}]" for p in left)
        return True

    def _strike(self, target: str, name: str, lock: Path, done: Callable[[], bool]) -> bool:
        """Send the signal; False where the target never came."""
        assert self.process is not None
        top, found = self.process.pid, list[int]()

        def look() -> bool:
            if target == "group":
                found.append(top)
            elif (there := family.find(target, self.mark, top, lock)) is not None:
                found.append(there.pid)
            return bool(found) or done()

        family.wait_until(look, PATIENCE)
        if not found or done():
            return False
        send = os.killpg if target == "group" else os.kill
        try:
            send(found[0], signal.Signals[f"SIG{name}"])
            self.struck = time.monotonic()
            if name == "STOP":
                time.sleep(0.7)
                send(found[0], signal.SIGCONT)
        except ProcessLookupError:
            return False
        return True

    def _judge(self, kill: Kill, code: int, seconds: float, left: int) -> None:
        """Say what became of it: errors of ours and the exit codes of signals are as they should be, all else is a fault."""
        said = self._said()
        if kill.outcome != "went on" or code == 0:
            kill.left += left
            return
        kill.code, kill.seconds, kill.left, kill.said = code, seconds, left, " ".join(said.splitlines()[-1:])[:300]
        own = kill.target in ("parent", "group") and code in ENDS.get(kill.signal, ())
        if "Traceback" in said:
            kill.outcome = f"a traceback, exit code {code}"
        elif kill.signal == "STOP":
            kill.outcome = f"a pause, and exit code {code}"
        else:
            ours = code == 2 and kill.said.startswith("error: ")
            kill.outcome = "stopped" if own or ours else f"exit code {code}"

    def _said(self) -> str:
        return (self.place / "stderr").read_text("utf-8", "replace")

    def finish(self) -> str:
        """Run to the end; empty, or what it said where it does not get there."""
        if not self.ended() and self.process is not None:
            family.wait_until(self.ended, PATIENCE)
        self.start()
        assert self.process is not None
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = 1
        alone = family.wait_until(lambda: not family.marked(self.mark), GONE)
        family.end(self.mark)
        if code == 0:
            return "" if alone else "processes left after its end"
        return f"exit code {code}: {self._said()[-300:]}"

    def lengths(self) -> dict[str, float]:
        """The seconds that each unit of a finished run took."""
        found = {}
        for name, unit in self.units.items():
            manifest = read_manifest(unit.folder(self.folder))
            found[name] = manifest.cost["seconds"] if manifest else 1.0
        return found

    def differs_from(self, other: "Campaign") -> str:
        """The first file that is not as in another finished run, or is left over; empty where there is none."""
        mine, theirs = contents(self.settings), contents(other.settings)
        changed = [name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name]]
        paths = []
        for folder in (self.folder, other.folder):
            paths.append({p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.name.startswith(".")})
        more, less = sorted(paths[0] - paths[1]), sorted(paths[1] - paths[0])
        for word, names in (("other bytes", sorted(changed)), ("left over", more), ("missing", less)):
            if names:
                return f"{word}: {', '.join(names[:3])}"
        return ""
