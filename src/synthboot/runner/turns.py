"""Whose turn it is in a run folder, where workers on the nodes of a cluster may outlive who started
them, or come when that is gone.

The workers of a pool share a lock that its key names, and are told of the pool's turn
(`data.lock`). Who opens a pool begins the next turn, and so does who closes it, or takes over the
run folder: from then on none of the earlier ones works, and whoever comes late is refused.
"""

from __future__ import annotations

from pathlib import Path

from synthboot.data import lock

PATIENCE = 120.0
"""Seconds that killed workers may take to end: Ray notices the end of a node by its silence."""


def guard(key: str) -> str:
    """The file of the lock that the workers of a pool share."""
    of_key = f"-{key.replace('/', '-')}" if key else ""
    return f".ray{of_key}.lock"


def own(key: str, number: int) -> str:
    """The file of the lock that one worker of a pool has to itself."""
    return f"{guard(key)}.{number}"


def begin(run: Path, key: str) -> str:
    """The mark of the next turn of such a pool, which begins once the workers before are gone.

    Raises LockedRun where that takes too long.
    """
    return lock.next_turn(run, guard(key), PATIENCE)


def end_all(run: Path) -> None:
    """Return once no worker of earlier runs works in the folder; none will from then on.

    Locks of single workers, which a killed run has left, go. Raises LockedRun where that takes too
    long.
    """
    for path in sorted(run.glob(".ray*.lock")):
        lock.next_turn(run, path.name, PATIENCE)
        # a worker takes its own only within a turn, and theirs are over
        for left in run.glob(f"{path.name}.[0-9]*"):
            left.unlink(missing_ok=True)
