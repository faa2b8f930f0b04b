"""What a stage leaves on disk, and whether it may be used again.

An artifact is a folder `runs/NAME/NN-stage[/variant]`. In it lie

- `manifest.json`, written last, by rename: where it exists, the artifact is done. Its fingerprint
  hashes the stage, its version, the settings that it read, and its parents' fingerprints; where and
  how the stage ran is no part of it. It also says what each parent held (`content`): an artifact
  stands as long as its parents, however often they are made anew, come out the same.
- `progress.json`, while a stage works: the fingerprint and the contents of parents that the parts
  in the folder were made for. Parts of others are wiped before work starts.
- `work/`, what only the making needs, and how long that has taken. It goes once the manifest
  stands, and `progress.json` after it: where that is left, there is something to clear away.
- shards, folders renamed into place that carry the hashes of their files. A manifest takes these
  over and does not hash anew, so that damage is never recorded as good.

Files whose names begin with a dot belong to nobody.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, field
from importlib import metadata
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic.dataclasses import dataclass

from synthboot.data.disk import (
    SEAL,
    FileRecord,
    committed_folder,
    damage,
    mismatch,
    read_json,
    read_record,
    record,
    remove,
    require_regular,
    unreadable,
    write_json,
    write_record,
)
from synthboot.errors import CorruptArtifact, StorageError

if TYPE_CHECKING:
    import pyarrow as pa

Progress = Callable[[float, str], None]
"""What a stage reports while it works: the share done, in [0, 1], and a few words."""

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
WORK = "work"
_COUNT = "shards.json"
_SPENT = "spent.json"
_SHORT = 40
"""Characters of a value in a reason."""
_OF_A_MODEL = ("config.json", "optimizer.safetensors")
"""Files that tell a model from other parts: the first any model has, the second a checkpoint of
adapters alone."""

T = TypeVar("T")
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}

declared = with_config(ConfigDict(extra="forbid"))
"""Marks a dataclass whose JSON may hold declared fields only; so may the dataclasses in it."""


def silent(done: float, words: str) -> None:
    """Progress that nobody watches."""


def during(progress: Progress, done: float, words: str) -> Progress:
    """Progress for a part of a unit, named by `words`, that begins when the share `done` of the
    whole is done."""
    progress(done, words)
    return lambda _, part: progress(done, f"{words}: {part}")


def within(progress: Progress, start: float, end: float) -> Progress:
    """Progress for a part of a unit that brings the whole from the share `start` to `end`."""
    return lambda done, words: progress(start + (end - start) * done, words)


@dataclass(config=ConfigDict(strict=True, extra="forbid"))
class Manifest:
    """The record of one finished artifact.

    Everything but `cost` and `environment` is the same on every run. `contents` says by role what
    each parent held (`content`); older manifests do not have it.
    """

    stage: str
    version: int
    fingerprint: str
    reads: dict[str, Any]
    parents: dict[str, str]
    counts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)
    cost: dict[str, int | float] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)


def fingerprint(
    stage: str,
    version: int,
    reads: Mapping[str, object],
    parents: Mapping[str, str],
) -> str:
    """32 hex digits that change whenever the artifact's content would."""
    return _digest([stage, version, reads, parents])


def content(manifest: Manifest) -> str:
    """32 hex digits of what an artifact holds: every file, and the counts that others read."""
    return _digest([manifest.files, manifest.counts])


def stands(
    manifest: Manifest,
    fingerprint: str,
    version: int,
    reads: Mapping[str, object],
    contents: Mapping[str, str],
) -> bool:
    """Whether a finished artifact is what would be made now, of parents that hold `contents`.

    Where it has no parents, or no record of what they held, its fingerprint decides.
    """
    if not manifest.contents:
        return manifest.fingerprint == fingerprint
    is_same = manifest.version == version and has_settings(manifest, reads)
    return is_same and manifest.contents == contents


def has_settings(manifest: Manifest, reads: Mapping[str, object]) -> bool:
    """Whether an artifact was made with these settings."""
    return _digest(manifest.reads) == _digest(reads)  # as JSON, which has no tuples


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished artifact; None where there is none.

    Raises CorruptArtifact, saying why, where it is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    content = read_json(path)
    # A manifest without a hash is from an older synthboot, whose stages had other versions: it is
    # stale, not damaged.
    if isinstance(content, dict) and "hash" in content:
        content = read_record(path)
    try:
        if not isinstance(content, dict):
            raise TypeError("it is no JSON object")
        manifest = Manifest(**content)
    except (TypeError, ValidationError) as error:
        reason = error if isinstance(error, TypeError) else _first(error)
        raise CorruptArtifact(
            f"{path}: not a manifest of this version of synthboot ({reason}); "
            f"update synthboot, or delete {folder} and run again"
        ) from None

    for name in manifest.files:
        listed = PurePosixPath(name)
        if listed.is_absolute() or ".." in listed.parts:
            raise CorruptArtifact(
                f"{path}: names {name}, outside of it; delete {folder} and run again"
            )
    return manifest


def read_listed(folder: Path, name: str) -> Any:
    """The JSON in a file of a finished artifact.

    Raises CorruptArtifact where the file is not as it was recorded.
    """
    manifest = read_manifest(folder)
    if manifest is None or name not in manifest.files:
        raise CorruptArtifact(f"{folder / name}: no manifest lists it; run again to make it")
    problem = mismatch(folder, {name: manifest.files[name]})
    if problem:
        raise CorruptArtifact(f"{folder}/{problem}; delete {folder} and run again to rebuild it")
    return read_json(folder / name)


def typed(value: object, kind: type[T], path: Path) -> T:
    """A value of JSON, read from `path`, as the dataclass `kind`.

    Raises CorruptArtifact where a field is missing, has another type, or is not declared.
    """
    try:
        result: T = _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise CorruptArtifact(
            f"{path}: not of this version of synthboot ({_first(error)}); "
            f"update synthboot, or delete {path.parent} and run again"
        ) from None
    return result


def plain(value: object) -> Any:
    """A dataclass as JSON has it."""
    return _adapter(type(value)).dump_python(value, mode="json")


def _adapter(kind: type) -> Any:
    """The pydantic adapter of a dataclass; making one takes longer than reading a file by it."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def read_table(path: Path, columns: Iterable[str] | None = None) -> pa.Table:
    """A Parquet file of an artifact. Raises CorruptArtifact where it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        require_regular(path)
        return pq.read_table(path, columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise unreadable(path, error) from None


def read_rows(path: Path, columns: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file of an artifact, a thousand in memory at a time.

    Raises CorruptArtifact where it is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        require_regular(path)
        for batch in pq.ParquetFile(path).iter_batches(1_024, columns=list(columns)):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise unreadable(path, error) from None


def begin(
    folder: Path,
    fingerprint: str,
    contents: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """Make `folder` ready for work; returns what was damaged in it, in a few words each.

    Parts of the artifact of this `fingerprint`, made of parents that held `contents`, are kept.
    All others are removed, and damaged ones too, to be made again.
    """
    progress = folder / PROGRESS
    is_mine = False
    content = {}
    if progress.exists():
        content = read_json(progress)
        # Without a hash it is from an older synthboot, whose parts had none either: none is kept.
        has_no_hash = isinstance(content, dict) and "hash" not in content
        if not has_no_hash:
            is_mine = _is_of(progress, fingerprint, contents)

    if not is_mine:
        _unmake(folder)
    remove(folder / MANIFEST)
    _sweep(folder)

    damaged = []
    for part in sorted(seal.parent for seal in folder.rglob(SEAL)):
        # a model may be days of work: training, which goes on from it, decides what to do
        if any((part / name).exists() for name in _OF_A_MODEL):
            continue
        problem = damage(part)
        if problem:
            remove(part)
            damaged.append(f"{part}: {problem}; made again")
    if not is_mine or "contents" not in content:
        folder.mkdir(parents=True, exist_ok=True)
        write_record(progress, {"fingerprint": fingerprint, "contents": dict(contents)})
    return damaged


def begun(
    folder: Path,
    fingerprint: str,
    contents: Mapping[str, str] = MappingProxyType({}),
) -> bool:
    """Whether `begin` has made `folder` ready for the artifact of this fingerprint, made of parents
    that hold `contents`."""
    progress = folder / PROGRESS
    return (
        progress.exists()
        and not (folder / MANIFEST).exists()
        and _is_of(progress, fingerprint, contents)
    )


def begun_as(folder: Path) -> str:
    """The fingerprint of an artifact in the making; empty where nothing of it is there yet."""
    record = read_json(folder / PROGRESS)
    return str(record.get("fingerprint", "")) if isinstance(record, dict) else ""


def spend(folder: Path, seconds: float) -> None:
    """Record how many seconds of work an artifact in the making has taken so far, for
    `invested`."""
    # not into `progress.json`, which all that is made so far hangs on: that is written once
    write_record(folder / WORK / _SPENT, {"seconds": seconds})


def invested(folder: Path) -> float:
    """Seconds of work that an artifact in the making has taken, over all its starts, as far as they
    were recorded; those of its parts are in their own records."""
    for place in (folder / WORK / _SPENT, folder / PROGRESS):  # the second by an older synthboot
        try:
            recorded = read_record(place).get("seconds")
        except CorruptArtifact:
            continue  # none yet, or lost: no work hangs on it
        if isinstance(recorded, int | float):
            return float(recorded)
    return 0.0


def _is_of(
    progress: Path,
    fingerprint: str,
    contents: Mapping[str, str],
) -> bool:
    record = read_record(progress)
    # an older one says nothing of contents
    return record.get("fingerprint") == fingerprint and record.get("contents", contents) == contents


def commit(folder: Path, manifest: Manifest) -> None:
    """Record every file of the folder with its hash, and write the manifest.

    From here on the artifact is done.
    """
    manifest.files = _records(folder)
    manifest.environment = environment()
    write_record(folder / MANIFEST, asdict(manifest))
    finish(folder)


def finish(folder: Path) -> None:
    """Clear away what only the making of a finished artifact needed."""
    remove(folder / WORK)
    _sweep(folder)
    remove(folder / PROGRESS)


def verify(folder: Path, manifest: Manifest, contents: bool = True) -> None:
    """Raise CorruptArtifact, naming the file, unless the files are those of the manifest, no fewer
    and no more.

    Without `contents`, files are compared by name and size alone.
    """
    problem = mismatch(folder, manifest.files, contents)
    if problem:
        raise CorruptArtifact(f"{folder}/{problem}; delete {folder} and run again to rebuild it")
    strange = sorted(set(_names(folder)) - set(manifest.files))
    if strange:
        raise CorruptArtifact(
            f"{folder / strange[0]}: does not belong to this artifact; move it away and run again"
        )


def adopt(source: Path, folder: Path) -> None:
    """Make `folder` the finished artifact that lies in `source`.

    Its files become hard links, or copies where the disk has no links. Nothing writes into a file
    of an artifact, it is replaced by another: so neither folder changes with the other, and either
    can be moved or removed. The manifest comes last, so that a kill midway leaves nothing that
    looks finished.

    Raises CorruptArtifact where the files are not those of the manifest, and then leaves the folder
    as it was, unless a copy has failed; StorageError where both folders are the same.
    """
    manifest = read_manifest(source)
    if manifest is None:
        raise CorruptArtifact(f"{source}: is not finished; run again to make it")
    # emptying the one would empty the other
    if source.resolve() == folder.resolve():
        raise StorageError(
            f"{folder}: is {source} itself, or is a link to it; choose another folder"
        )
    # asked first: what lies in the folder may be days of work on the same artifact
    if mismatch(source, manifest.files):
        raise CorruptArtifact(f"{source}: is damaged")
    _unmake(folder)
    are_copies = False
    try:
        for name in manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            are_copies |= not _linked((source / name).resolve(), folder / name)
        # a link leads to what was just read; a copy may have failed
        verify(folder, manifest, contents=are_copies)
    except (CorruptArtifact, FileNotFoundError):
        _clear(folder)
        raise CorruptArtifact(f"{source}: is damaged") from None
    write_record(folder / MANIFEST, asdict(manifest))
    finish(folder)


def drift(
    manifest: Manifest,
    version: int,
    reads: Mapping[str, object],
    parents: Mapping[str, str],
) -> list[str]:
    """Why a manifest's artifact is not the one wanted now, in phrases such as
    `min_similarity 0.75 -> 0.8`."""
    reasons = []
    if manifest.version != version:
        reasons.append(f"stage version {manifest.version} -> {version}")

    before = flat(manifest.reads)
    after = flat(reads)
    for key in sorted(before.keys() | after.keys()):
        old = before.get(key)
        new = after.get(key)
        if old != new:
            reasons.append(f"{key} {_change(old, new)}")

    for name in sorted(manifest.parents.keys() | parents.keys()):
        if manifest.parents.get(name) != parents.get(name):
            reasons.append(f"{name} changed")
    return reasons


class Shards:
    """Numbered parts of an artifact, each a folder that appears whole, with its counts inside.

    `close` records how many there are; readers read these and no others.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, index: int) -> Path:
        """Where shard `index` lies."""
        return self.folder / f"{index:06d}"

    def done(self, index: int) -> bool:
        """Whether the shard has been committed."""
        return (self.path(index) / SEAL).exists()

    def counts(self, index: int) -> dict[str, Any]:
        """What the shard's writer recorded."""
        path = self.path(index) / "counts.json"
        return typed(read_json(path), dict[str, Any], path)

    def write(
        self,
        index: int,
        writer: Callable[[Path], dict[str, Any]],
    ) -> dict[str, Any]:
        """Commit the shard, unless it is there already; returns its counts.

        `writer` fills the shard's folder and returns the counts.
        """
        if not self.done(index):
            with committed_folder(self.path(index)) as temporary:
                write_json(temporary / "counts.json", writer(temporary))
        return self.counts(index)

    def fill(
        self,
        count: int,
        writers: Callable[[list[int]], Iterable[Callable[[Path], dict[str, Any]]]],
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Commit those of `count` shards that are missing, one after the other, then `close`.

        `writers` is given the numbers of the missing shards, in order, and gives a writer for each.
        After each shard its number and counts are yielded, to report progress.
        """
        yield from self.make(range(count), writers)
        self.close(count)

    def make(
        self,
        wanted: Iterable[int],
        writers: Callable[[list[int]], Iterable[Callable[[Path], dict[str, Any]]]],
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Commit each of the `wanted` shards as `fill` does, and leave all others alone."""
        missing = [index for index in wanted if not self.done(index)]
        for index, writer in zip(missing, writers(missing), strict=True):
            yield index, self.write(index, writer)

    def close(self, count: int) -> None:
        """Record that there are `count` shards, and delete everything else in the folder."""
        names = {_COUNT}
        for index in range(count):
            names.add(self.path(index).name)
        if self.folder.exists():
            for path in sorted(self.folder.iterdir()):
                if path.name not in names and not path.name.startswith("."):
                    remove(path)
        write_record(self.folder / _COUNT, {"shards": count})

    def __len__(self) -> int:
        count = read_record(self.folder / _COUNT).get("shards")
        if type(count) is not int or count < 0 or (count and not self.done(count - 1)):
            what = f"{self.folder / _COUNT}: says {str(count)[:40]} shards, which are not there"
            raise CorruptArtifact(f"{what}; delete {self.folder.parent} and run again")
        return count

    def __iter__(self) -> Iterator[Path]:
        return iter([self.path(index) for index in range(len(self))])


def _names(folder: Path) -> list[str]:
    """The files of an artifact: all but its records, hidden files, those in `work/`, and those of
    artifacts inside it, such as the trials of a sweep."""
    names = []
    for parent, folders, files in os.walk(folder):
        current = Path(parent)
        is_top = current == folder
        # `os.walk` goes into the folders that are left in its own list.
        folders[:] = [file for file in folders if _is_part(current / file, is_top)]
        for file in files:
            is_record = is_top and file in (MANIFEST, PROGRESS)
            if not is_record and not file.startswith("."):
                names.append((current / file).relative_to(folder).as_posix())
    return sorted(names)


def _is_part(folder: Path, is_top: bool) -> bool:
    """Whether what lies in a folder inside an artifact belongs to the artifact."""
    if folder.name.startswith(".") or _is_artifact(folder):
        return False
    return not (is_top and folder.name == WORK)


def _is_artifact(folder: Path) -> bool:
    if folder.is_symlink():
        return False
    return (folder / MANIFEST).exists() or (folder / PROGRESS).exists()


def _records(folder: Path) -> dict[str, FileRecord]:
    """The record of every file; of files in parts, the record that the part was sealed with.

    Raises CorruptArtifact where a part has lost or gained a file since.
    """
    names = _names(folder)
    sealed: dict[str, FileRecord] = {}
    for seal in map(PurePosixPath, names):
        if seal.name != SEAL:
            continue
        listed = {}
        for name, file_record in read_record(folder / seal)["files"].items():
            listed[(seal.parent / name).as_posix()] = file_record

        present = {name for name in names if seal.parent in PurePosixPath(name).parents}
        present.discard(seal.as_posix())
        if present != set(listed):
            odd = min(present ^ set(listed))
            raise CorruptArtifact(
                f"{folder / odd}: lost or added since it was made; "
                f"delete {folder / seal.parent} and run again"
            )
        sealed |= listed

    # A part's files are not hashed anew: damage since would be recorded as good.
    records = {}
    for name in names:
        records[name] = sealed[name] if name in sealed else record(folder / name)
    return records


def _sweep(folder: Path) -> None:
    """Remove what a killed process was writing or removing."""
    for half in sorted(folder.rglob("*.tmp")):
        remove(half)


def _unmake(folder: Path) -> None:
    """Empty the folder of an artifact, so that at every moment it is one in the making.

    With its manifest, a half emptied folder would look finished. With neither record, it would be
    strange files to an artifact that it lies inside of.
    """
    _own(folder)
    if (folder / MANIFEST).exists():
        write_record(folder / PROGRESS, {"fingerprint": ""})
        remove(folder / MANIFEST)
    _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder / PROGRESS, {"fingerprint": ""})


def _clear(folder: Path) -> None:
    """Remove everything of the artifact's own. The folder itself stays: it may be a mount."""
    # `progress.json` last: while it is there, what is left is known to be stale.
    for path in sorted(_own(folder), key=lambda path: path.name == PROGRESS):
        remove(path)


def _own(folder: Path) -> list[Path]:
    """What lies in an artifact's folder and is its own: no artifacts inside it, no hidden files.

    Raises StorageError where the folder is a link to one that holds something, which may be another
    run's.
    """
    own = []
    if folder.exists():
        for path in sorted(folder.iterdir()):
            if not path.name.startswith(".") and not _is_artifact(path):
                own.append(path)
    if own and folder.is_symlink():
        raise StorageError(
            f"{folder}: is a link to {folder.resolve()}, which holds something else; "
            f"remove the link and run again"
        )
    return own


def _linked(source: Path, target: Path) -> bool:
    """Make `target` a hard link to `source`, or a copy where the disk has no links; returns whether
    it is a link."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
        return False
    return True


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, and where, in a few words."""
    fault = error.errors()[0]
    where = ".".join(map(str, fault["loc"]))
    message = fault["msg"]
    return f"{where}: {message[:1].lower()}{message[1:]}"


def environment() -> dict[str, str]:
    """The versions and the machine an artifact was made with."""
    packages = (
        "synthboot",
        "torch",
        "transformers",
        "tokenizers",
        "numpy",
        "pyarrow",
        "scikit-learn",
    )
    versions = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):  # run from its sources, without installing
            versions[name] = metadata.version(name)
    versions["python"] = platform.python_version()
    versions["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    return versions


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def flat(value: object, prefix: str = "") -> dict[str, object]:
    """Nested mappings as one, keys joined by dots."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    result: dict[str, object] = {}
    for key, inner in value.items():
        result |= flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return result


def _change(old: object, new: object) -> str:
    """Two values that differ, in brief: of long lists, such as of files, what only one has."""
    is_long = max(len(str(old)), len(str(new))) > _SHORT
    if is_long and isinstance(old, list) and isinstance(new, list):
        before = set(map(str, old))
        after = set(map(str, new))
        gone = [value for value in old if str(value) not in after]
        come = [value for value in new if str(value) not in before]
        # of lists in another order nothing is left
        if gone or come:
            old, new = gone, come
    return f"{_short(old)} -> {_short(new)}"


def _short(value: object) -> str:
    text = "unset" if value is None else str(value)
    if len(text) <= _SHORT:
        return text
    return text[: _SHORT - 3] + "..."
