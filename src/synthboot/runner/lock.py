"""One process at a time in a folder: a lock that the kernel frees with its holder, however that
ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from synthboot.errors import LockedRun


@contextmanager
def held(
    folder: Path,
    name: str = ".lock",
    patience: float = 0.0,
) -> Iterator[None]:
    """Hold the folder for this process alone.

    Raises LockedRun where another holds it longer than `patience` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    # never a soft lock, which outlives a killed holder: without flock it is an error
    lock = FileLock(path, timeout=patience, fallback_to_soft=False, on_acquired=_sign)
    try:
        lock.acquire()
    except Timeout:
        holder = path.read_text().strip() or "unknown"
        raise LockedRun(
            f"{folder}: process {holder} is working on this run; "
            f"wait for it, or choose another `name`"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _sign(descriptor: int) -> None:
    """Leave this process' number in the lock's file, for whoever finds it held."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
