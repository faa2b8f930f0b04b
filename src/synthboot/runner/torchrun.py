"""One model trained by several processes: both ends of the protocol between the process that makes
the artifact, which starts torchrun (or what `engine.launch` names), and the ranks that it starts.

- `job.json` says what to train; `outcome.json` beside it is the first rank's last word: counts and
  cost, or an error.
- Ranks print progress to standard output, a JSON list a line; a note has no share done.
- Their standard input stays open for as long as they are wanted. Where the process that makes the
  artifact is gone, however it went, or torchrun is, they end too.
- One that has not ended by then, or comes late, on another node perhaps, writes beside nobody:
  ranks share a lock beside the artifact, in the turn that `job.json` tells (`data.lock`). Nothing
  goes on before that lock is free.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from synthboot import config, pool, recipes
from synthboot.artifacts.store import Progress
from synthboot.data import disk, lock
from synthboot.errors import ConfigError, SynthbootError, TrainingError
from synthboot.runner import turns
from synthboot.runner.step import run_step

if TYPE_CHECKING:
    from synthboot.steps.context import Outcome

STAGES = ("base", "tune", "pretrain")
"""Stages whose steps train a model, and may do so by several processes."""

_PREFIX = ".together-"
_JOB = "job.json"
_OUTCOME = "outcome.json"
_EXCEPTION = re.compile(r"(\w(Error|Exception)|synthboot\.errors\.\w+): ")
"""How a line of standard error names an exception, of Python's, a library's or ours."""


def run_step_together(
    cfg: config.Config,
    plan: Mapping[str, recipes.Unit],
    unit: recipes.Unit,
    progress: Progress,
    note: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """What the unit's step returns, run in `engine.processes` processes.

    Raises TrainingError where one of them fails or dies, ConfigError where they cannot be started.
    """
    # beside the artifacts, where all machines see it; NFS keeps what a dying rank has open, and
    # that is not to hide why it dies: what is left goes with the next run
    with tempfile.TemporaryDirectory(
        prefix=_PREFIX,
        dir=cfg.folder,
        ignore_cleanup_errors=True,
    ) as folder:
        job = Path(folder) / _JOB
        stderr = Path(folder) / "stderr"
        disk.write_json(
            job,
            {
                "config": cfg.model_dump(mode="json"),
                "outside": recipes.outside(plan),
                "unit": unit.name,
                "turn": _next_turn(unit.folder(cfg.folder)),
            },
        )
        command = [*_launcher(cfg), "-m", "synthboot.runner.torchrun", str(job)]
        code = _start(command, stderr, progress, note)

        outcome_file = job.with_name(_OUTCOME)
        outcome = disk.read_json(outcome_file) if outcome_file.exists() else {}
        if code or "counts" not in outcome:
            lines = stderr.read_text("utf-8", "replace").splitlines()
            died = f"one of {cfg.engine.processes} processes died ({_why_died(lines, code)})"
            reason = outcome.get("error") or died
            raise TrainingError(
                f"{unit.name}: {reason}; run again to go on from the last checkpoint"
            )
        return outcome["counts"], outcome["cost"]


def end_earlier(folder: Path) -> None:
    """Return once no rank of an earlier job works on an artifact; none will from then on.

    Raises LockedRun where that takes too long.
    """
    if (folder.parent / _lock_of(folder)).exists():
        _next_turn(folder)


def _next_turn(folder: Path) -> str:
    return lock.next_turn(folder.parent, _lock_of(folder), turns.PATIENCE)


def _lock_of(folder: Path) -> str:
    return f".{folder.name}.ranks.lock"


def leftovers(run: Path) -> list[Path]:
    """What units that were killed have left of their jobs in a run's folder, and of its files."""
    return sorted([*run.glob(f"{_PREFIX}*"), *run.glob("*.tmp")])


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


def _start(
    command: list[str],
    stderr: Path,
    progress: Progress,
    note: Callable[[str], None],
) -> int:
    """The exit code of the ranks, whose progress and notes are handed on until the last of them is
    gone."""
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
            assert ranks.stdout is not None
            threading.Thread(target=_release, args=(ranks,), daemon=True).start()
            try:
                _listen(ranks.stdout, progress, note)
                return ranks.wait()
            finally:
                # closed input tells them to end; whoever does not is ended
                ranks.stdin.close()
                with suppress(subprocess.TimeoutExpired):
                    ranks.wait(pool.PATIENCE)
                ranks.kill()


def _why_died(lines: list[str], code: int) -> str:
    """The line of standard error that says why: the first exception, which the others follow from,
    else what torchrun says of the exit code."""
    for line in lines:
        # elastic: torchrun's own exception, which only says that a rank had one
        if _EXCEPTION.search(line) and "elastic" not in line:
            return line
    for line in reversed(lines):
        if "exitcode" in line:
            return line.strip()
    return f"exit {code}"


def _release(ranks: subprocess.Popen[bytes]) -> None:
    """Let the ranks go once torchrun is gone: they hold its output open, and would train on to the
    end unheard."""
    ranks.wait()
    assert ranks.stdin is not None
    ranks.stdin.close()


def _listen(output: IO[bytes], progress: Progress, note: Callable[[str], None]) -> None:
    """Hand on the progress and notes that ranks print until the last of them is gone."""
    for line in output:
        try:
            done, words = json.loads(line)
        except (ValueError, TypeError):  # a library may print too
            continue
        if done is None:
            note(words)
        else:
            progress(done, words)


def main(job: Path) -> int:
    """Be one of the ranks of `job`: run its step, and leave the outcome if this is the first.

    Returns the exit code.
    """
    pool.end_with_parent()
    # before anything that takes long, as importing torch does: a rank nobody waits for must not
    # train on
    threading.Thread(target=_end_with_input, daemon=True).start()
    order = disk.read_json(job)
    cfg = config.Config.model_validate(order["config"])
    first = os.environ.get("RANK", "0") == "0"

    def progress(done: float | None, words: str) -> None:
        if first:
            sys.stdout.write(json.dumps([done, words]) + "\n")
            sys.stdout.flush()

    def note(words: str) -> None:
        progress(None, words)

    def leave(outcome: dict[str, Any]) -> None:
        if first:
            disk.write_json(job.with_name(_OUTCOME), outcome)

    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != cfg.engine.processes:
        error = (
            f"engine.processes is {cfg.engine.processes}, "
            f"but engine.launch started {started}; let both say the same"
        )
        leave({"error": error})
        return 2

    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    # the sources were hashed when the run began: not again by every rank of every model
    plan = recipes.units(cfg, order["outside"])
    unit = plan[order["unit"]]
    folder = unit.folder(cfg.folder)
    # not in the `try`: to whom it comes late it leaves no word either
    with lock.shared(folder.parent, _lock_of(folder), turns.PATIENCE, order["turn"]):
        try:
            counts, cost = run_step(cfg, plan, unit, 1, progress, note)
        except SynthbootError as failure:
            leave({"error": str(failure)})
            # all that is heard of another rank than the first
            sys.stderr.writelines(traceback.format_exception_only(failure))
            return 2
    leave({"counts": counts, "cost": cost})
    # without this, torch warns of a leak at exit
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _end_with_input() -> None:
    """End this process once nobody holds its input open any more."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
