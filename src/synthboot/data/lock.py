"""Who works in a folder: one process alone, or several that share the work. The kernel frees a lock
with its holder, however that ends.

Those that share may be started from elsewhere and come late, when who sent for them is gone and
others have the folder. So they may be told of a turn: each lasts until somebody begins the next,
who has to be alone for it, and whoever comes to share an earlier one is refused. The turn's mark is
in the lock's own file, since that is what a network file system reads anew under the lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from synthboot.data.disk import flush
from synthboot.errors import ConfigError, LockedRun

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
    turn: str = "",
) -> Iterator[None]:
    """Hold the folder for this process alone; with a mark of its own a `turn` begins.

    Raises LockedRun where others hold it longer than `patience` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    sign = partial(_sign, turn=turn)
    # never a soft lock, which outlives a killed holder: without flock it is an error
    lock = FileLock(path, timeout=patience, fallback_to_soft=False, on_acquired=sign)
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
    turn: str = "",
) -> Iterator[None]:
    """Hold the folder together with others that share it, and with nobody who wants it alone.

    Raises LockedRun where one has it alone for longer than `patience` seconds, or where it is not
    this `turn` any more, and ConfigError where the turn was begun in another folder.
    """
    path = folder / name
    flags = os.O_RDWR | os.O_CLOEXEC
    if not turn:
        folder.mkdir(parents=True, exist_ok=True)
        flags |= os.O_CREAT
    try:
        descriptor = os.open(path, flags, 0o644)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: missing on {os.uname().nodename}; "
            f"choose a `root` on a file system that every machine has at the same path"
        ) from None
    try:
        deadline = time.monotonic() + patience
        while not _shares(descriptor):
            if time.monotonic() > deadline:
                raise _taken(path)
            time.sleep(_PAUSE)
        # looked at under the lock, without which nobody can begin another
        if turn and turn != _turn(descriptor):
            raise LockedRun(
                f"{path.parent}: other processes have taken over from those of this one; "
                f"leave it to them"
            )
        _sign(descriptor)
        yield
    finally:
        os.close(descriptor)


def next_turn(folder: Path, name: str, patience: float = 0.0) -> str:
    """The mark of a turn that begins as soon as nobody holds the folder.

    Raises LockedRun where others hold it longer than `patience` seconds.
    """
    mark = secrets.token_hex(16)
    with held(folder, name, patience, mark):
        return mark


def is_held(path: Path) -> bool:
    """Whether a process holds this lock alone."""
    try:
        # without O_NONBLOCK a pipe would be waited for
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
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
    lines = path.read_text("utf-8", "replace").splitlines() or ["unknown"]
    holder = lines[:2][-1]  # after the turn, where there is one
    return LockedRun(
        f"{path.parent}: process {holder} is working on this run; "
        f"wait for it, or choose another `name`"
    )


def _sign(descriptor: int, turn: str = "") -> None:
    """Leave this process' number and machine in the lock's file, for whoever finds it held, and the
    mark of the turn: the one that there is, unless another begins."""
    words = f"{os.getpid()} on {os.uname().nodename}"
    turn = turn or _turn(descriptor)
    if turn:
        # over what is there, not emptied first: others that share the lock may be reading the turn
        os.pwrite(descriptor, f"{turn}\n{words}\n".encode(), 0)
    else:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, words.encode(), 0)
    flush(descriptor)  # over NFS other nodes would not see it for as long as the lock is held


def _turn(descriptor: int) -> str:
    """The mark of the turn that it is, empty where there are none."""
    mark, newline, _ = os.pread(descriptor, 100, 0).partition(b"\n")
    # a file that a crash or a user has filled with something else is no turn that anybody was told
    return mark.decode("utf-8", "replace") if newline else ""
