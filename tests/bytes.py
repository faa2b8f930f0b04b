"""Hashes of what a run has learnt, sampled and computed: `python -m tests.bytes FOLDER`, a line a file.

A refactoring may not change them: make one small world with the code before and with the code after, on one machine with
one configuration, and compare the two lists.
"""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (".safetensors", ".parquet", ".bin", ".npy", ".npz")


def hashes(run: Path) -> Iterator[tuple[str, str]]:
    """(hash, path below the run folder) of every file of numbers, in order."""
    for path in sorted(run.rglob("*")):
        if path.is_file() and path.suffix in SUFFIXES:
            yield hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest(), path.relative_to(run).as_posix()


if __name__ == "__main__":
    for digest, name in hashes(Path(sys.argv[1])):
        print(digest, name)
