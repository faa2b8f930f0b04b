"""The memory that a unit takes: its process and all that it has started, together."""

from __future__ import annotations

import resource
import threading
import time
from contextlib import suppress
from types import TracebackType

import psutil

_SHARE = 50
"""Looking may take one part in so many of the time: a look at a large process takes a while."""


class Memory:
    """Watches this process and those below it, once in `pause` seconds while it is entered.

    Pages that several processes have alike are counted once (their proportional share, PSS).
    """

    def __init__(self, pause: float = 1.0) -> None:
        self._pause = pause
        self._most = 0
        self._is_over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._watcher.join()

    def peak(self) -> int:
        """The most bytes so far: of all together at any look, or of any one process at any time,
        which the kernel counts and which may come and go between two looks."""
        usage = []
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
            usage.append(resource.getrusage(who).ru_maxrss * 1024)  # Linux counts in KiB
        return max(self._most, *usage)

    def _watch(self) -> None:
        pause = self._pause
        while not self._is_over.wait(pause):
            started = time.monotonic()
            self._most = max(self._most, _together())
            pause = max(self._pause, _SHARE * (time.monotonic() - started))


def _together() -> int:
    """The bytes that this process and all below it have now."""
    own = psutil.Process()
    total = 0
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.Error):  # it has ended meanwhile
            taken = process.memory_full_info()
            total += getattr(taken, "pss", taken.rss)
    return total
