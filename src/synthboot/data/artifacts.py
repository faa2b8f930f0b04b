"""What a stage leaves on disk, and whether it may be used again.

An artifact is a folder `runs/NAME/NN-stage[/variant]`. Its `manifest.json` is written last, by rename: its existence
means done. The fingerprint in it hashes the stage, its version, the settings it read and its parents' fingerprints; where
and how the stage ran is not part of it. While a stage works, `progress.json` holds the fingerprint its parts belong to;
parts of another fingerprint are wiped before work starts. Inside, the unit is the shard, a folder renamed into place.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from synthboot.errors import CorruptArtifact, StorageError

Progress = Callable[[float, str], None]
"""What a stage tells while it works: the share done, in [0, 1], and a few words."""

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
_VOLATILE = {MANIFEST, PROGRESS, ".lock"}


def silent(done: float, words: str) -> None:
    """Progress that nobody watches."""


@dataclass
class Manifest:
    """The record of one finished artifact. Everything but `cost` and `environment` is the same on every run."""

    stage: str
    version: int
    fingerprint: str
    reads: dict[str, Any]
    parents: dict[str, str]
    counts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


def fingerprint(stage: str, version: int, reads: Mapping[str, Any], parents: Mapping[str, str]) -> str:
    """32 hex digits that change whenever the artifact's content would."""
    text = json.dumps([stage, version, reads, parents], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or absent, whenever the process or the machine dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_bytes` does; the same value always gives the same bytes."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises CorruptArtifact where it is missing or not JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CorruptArtifact(f"{path}: missing; delete {path.parent} and run again") from None
    except (ValueError, OSError) as error:
        raise CorruptArtifact(f"{path}: unreadable ({error}); delete {path.parent} and run again") from None


@contextmanager
def committed_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends without error; half a folder is never seen."""
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in sorted(p for p in temporary.rglob("*") if p.is_file()):
            _flush(file)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
        _flush(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder, however a library reports it, into one clear StorageError."""
    try:
        yield
    except Exception as error:
        text = str(error)
        number = getattr(error, "errno", None)
        if number in (28, 122) or "No space left on device" in text:
            message = f"{where}: the disk is full; free some space and run again, finished shards are kept"
            raise StorageError(message) from error
        if isinstance(error, PermissionError):
            raise StorageError(f"{where}: cannot be written ({error.strerror}); choose another `root`") from error
        raise


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished artifact, or None. Raises CorruptArtifact where it cannot be read."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        return Manifest(**read_json(path))
    except TypeError as error:
        raise CorruptArtifact(f"{path}: not a manifest ({error}); delete {folder} and run again") from None


def begin(folder: Path, mark: str) -> None:
    """Make `folder` ready for work on the artifact `mark`, keeping only parts that belong to it."""
    progress = folder / PROGRESS
    current = read_json(progress).get("fingerprint") if progress.exists() else None
    if current != mark:
        shutil.rmtree(folder, ignore_errors=True)
    elif (folder / MANIFEST).exists():
        (folder / MANIFEST).unlink()
    for half in sorted(folder.rglob("*.tmp")):  # what a killed process was writing
        shutil.rmtree(half) if half.is_dir() else half.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(progress, {"fingerprint": mark})


def commit(folder: Path, manifest: Manifest) -> None:
    """Record every file of the folder with its hash and write the manifest: from here on the artifact is done."""
    names = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.name not in _VOLATILE)
    manifest.files = {n.as_posix(): {"bytes": (folder / n).stat().st_size, "hash": hash_file(folder / n)} for n in names}
    manifest.environment = environment()
    write_json(folder / MANIFEST, asdict(manifest))
    (folder / PROGRESS).unlink(missing_ok=True)


def verify(folder: Path, manifest: Manifest) -> None:
    """Raise CorruptArtifact, naming the file, unless every file is the one the manifest recorded."""
    for name, recorded in manifest.files.items():
        path = folder / name
        if not path.exists():
            problem = "is missing"
        elif path.stat().st_size != recorded["bytes"]:
            problem = f"has {path.stat().st_size} bytes, not {recorded['bytes']}"
        elif hash_file(path) != recorded["hash"]:
            problem = "does not match its hash"
        else:
            continue
        raise CorruptArtifact(f"{path}: {problem}; delete {folder} and run again to rebuild it")


def drift(manifest: Manifest, version: int, reads: Mapping[str, Any], parents: Mapping[str, str]) -> list[str]:
    """Why a manifest's artifact is not the one wanted now, as short phrases such as `min_similarity 0.75 -> 0.8`."""
    reasons = [] if manifest.version == version else [f"stage version {manifest.version} -> {version}"]
    before, after = flat(manifest.reads), flat(reads)
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            reasons.append(f"{key} {_short(before.get(key))} -> {_short(after.get(key))}")
    for name in sorted(manifest.parents.keys() | parents.keys()):
        if manifest.parents.get(name) != parents.get(name):
            reasons.append(f"{name} changed")
    return reasons


class Shards:
    """Numbered parts of an artifact, each a folder that appears whole, with its counts inside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, index: int) -> Path:
        """Where shard `index` lies."""
        return self.folder / f"{index:06d}"

    def done(self, index: int) -> bool:
        """Whether the shard has been committed."""
        return (self.path(index) / "counts.json").exists()

    def counts(self, index: int) -> dict[str, Any]:
        """What the shard's writer recorded."""
        return dict(read_json(self.path(index) / "counts.json"))

    def write(self, index: int, writer: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """The counts of the shard; `writer` fills its folder and returns them, unless it is there already."""
        if not self.done(index):
            with committed_folder(self.path(index)) as temporary:
                write_json(temporary / "counts.json", writer(temporary))
        return self.counts(index)

    def __iter__(self) -> Iterator[Path]:
        index = 0
        while self.done(index):
            yield self.path(index)
            index += 1

    def truncate(self, count: int) -> None:
        """Delete every shard from number `count` on, and whatever was left half-written."""
        for path in self.folder.iterdir():
            if path.name.endswith(".tmp") or int(path.name) >= count:
                shutil.rmtree(path)


def environment() -> dict[str, str]:
    """The versions and the machine an artifact was made with."""
    names = ("synthboot", "torch", "transformers", "tokenizers", "numpy", "pyarrow", "scikit-learn")
    found = {name: metadata.version(name) for name in names}
    return {**found, "python": platform.python_version(), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    items = (flat(inner, f"{prefix}.{key}" if prefix else str(key)) for key, inner in value.items())
    return {key: inner for item in items for key, inner in item.items()}


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def hash_file(path: Path) -> str:
    """32 hex digits of what is in a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
