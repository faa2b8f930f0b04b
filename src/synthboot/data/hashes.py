"""Hashes of files from outside a run, kept from their first reading, so that a look at a run does
not read a corpus of terabytes again.

A hash counts as long as size, inode and both times of its file are what they were. It is not kept
of a file that was written moments before it was read, for within the granularity of a clock other
bytes may come under the same time; nor of one that changed meanwhile.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from synthboot.data import disk, files
from synthboot.errors import CorruptArtifact

FILE = ".sources.json"
"""Where they lie in a run's folder."""
SETTLED = 2_000_000_000
"""Nanoseconds that a file has to be older than its reading: no file system counts in longer steps
(FAT does in two seconds)."""


class Hashes:
    """The hashes that a run folder keeps; what is wrong with it costs another reading, no more."""

    def __init__(self, run: Path) -> None:
        self._path = run / FILE
        self._known: dict[str, Any] = {}
        self._is_new = False
        with suppress(CorruptArtifact):
            self._known = disk.read_record(self._path)

    def of(self, path: Path) -> tuple[int, str]:
        """Size and hash of a file. Raises DataError where it cannot be read."""
        place = os.path.abspath(path)
        before = _marks(path)
        known = self._known.get(place)
        if before is not None and known is not None and known["marks"] == before:
            return before[0], str(known["hash"])

        now = time.time_ns()
        size, digest = files.hashed(path)
        has_settled = before is not None and max(before[2:]) < now - SETTLED
        if has_settled and _marks(path) == before:
            self._known[place] = {"marks": before, "hash": digest}
            self._is_new = True
        return size, digest

    def save(self) -> None:
        """Keep what was hashed anew, if there is a run folder: who only plans leaves none."""
        if self._is_new and self._path.parent.is_dir():
            # several plans of one run may write at once, and some folders are for reading alone
            with suppress(OSError):
                disk.write_record(self._path, self._known)


def forget(run: Path) -> None:
    """Have every file hashed again."""
    disk.remove(run / FILE)


def _marks(path: Path) -> list[int] | None:
    """What a file that is written to does not keep: size, inode, and when its bytes and its entry
    were changed."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
