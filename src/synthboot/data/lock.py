"""Who works in a folder: one process alone, or several that share the work. The kernel frees a lock
with its holder, however that ends."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from synthboot.errors import LockedRun

NAME = ".lock"
"""The file of the lock on a run folder; whoever holds it has signed it."""
FOREVER = -1.0
"""The patience of who waits until the holder is done, or dead."""
_PAUSE = 0.05
_IS_HELD = (errno.EWOULDBLOCK, errno.EACCES)
"""How a file system says that another has the lock, as `filelock` takes it too."""


@contextmanager
def held(
    folder: Path,
    name: str = NAME,
    patience: float = 0.0,
) -> Iterator[None]:
    """Hold the folder for this process alone.

    Raises LockedRun where others hold it longer than `patience` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    # never a soft lock, which outlives a killed holder: without flock it is an error
    lock = FileLock(path, timeout=patience, fallback_to_soft=False, on_acquired=_sign)
    try:
        lock.acquire()
    except Timeout:
        raise _taken(path) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def shared(
    folder: Path,
    name: str = NAME,
    patience: float = 0.0,
) -> Iterator[None]:
    """Hold the folder together with others that share it, and with nobody who wants it alone.

    Raises LockedRun where one has it alone for longer than `patience` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + patience
        while not _shares(descriptor):
            if time.monotonic() > deadline:
                raise _taken(path)
            time.sleep(_PAUSE)
        _sign(descriptor)
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a process holds this lock alone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _shares(descriptor)
    finally:
        os.close(descriptor)


def _shares(descriptor: int) -> bool:
    """Take the lock that `held` takes (the flock of `filelock`), to share it, unless it is held."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _IS_HELD:
            raise
        return False
    return True


def _taken(path: Path) -> LockedRun:
    holder = path.read_text().strip() or "unknown"
    return LockedRun(
        f"{path.parent}: process {holder} is working on this run; "
        f"wait for it, or choose another `name`"
    )


def _sign(descriptor: int) -> None:
    """Leave this process' number and machine in the lock's file, for whoever finds it held."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()} on {os.uname().nodename}".encode(), 0)
