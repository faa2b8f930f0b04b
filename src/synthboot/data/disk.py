"""Files and folders that appear whole or not at all, and go wholly.

Where they cannot, one line says why.

What a run keeps is written by `write_bytes` (a file) or in `committed_folder` (a part). A part
carries `part.json`, the hash of each of its files; `damage` compares. Links are followed for
reading and writing, never for deleting.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from synthboot.errors import CorruptArtifact, StorageError, SynthbootError, brief, irregular

SEAL = "part.json"


class FileRecord(TypedDict):
    """What is recorded of a file."""

    bytes: int
    hash: str


ADVICE = {
    errno.ENOSPC: ("the disk is full", "free some space and run again, finished shards are kept"),
    errno.EDQUOT: (
        "the quota is used up",
        "free some space and run again, finished shards are kept",
    ),
    errno.EFBIG: (
        "the file is larger than may be",
        "raise the limit (`ulimit -f`), or choose another `root`",
    ),
    errno.EROFS: ("the file system is read-only", "mount it for writing, or choose another `root`"),
    errno.EACCES: (
        "cannot be written or read (permission denied)",
        "mend the rights, or choose another `root`",
    ),
    errno.EPERM: ("may not be changed", "mend the rights, or choose another `root`"),
    errno.ENOTDIR: (
        "a file stands where a folder has to be",
        "move it away, or choose another `root` or `name`",
    ),
    errno.EEXIST: (
        "something stands where a folder has to be",
        "move it away, or choose another `root` or `name`",
    ),
    errno.EISDIR: ("a folder stands where a file has to be", "move it away and run again"),
    errno.ENOTEMPTY: ("another process writes here", "end it and run again"),
    errno.ENAMETOOLONG: (
        "the name is too long",
        "choose a shorter `root`, `name`, or name of an arm",
    ),
    errno.ELOOP: ("symbolic links lead in a circle", "mend them, or choose another `root`"),
    errno.EMFILE: ("too many files are open", "raise the limit (`ulimit -n`) and run again"),
    errno.ENFILE: ("too many files are open on this machine", "end something and run again"),
    errno.EBUSY: ("is in use, perhaps as a mount point", "unmount it, or choose another `root`"),
    errno.EXDEV: ("lies on another file system", "keep an artifact on one file system"),
    errno.EIO: (
        "the disk reports an error",
        "see the system's log, and keep a copy of what is left",
    ),
    errno.ESTALE: ("the network disk has lost it", "mount it again and run again"),
    errno.ENXIO: ("the device is gone", "mount it again and run again"),
    errno.ENODEV: ("the device is gone", "mount it again and run again"),
    errno.ENOLCK: ("this file system has no locks", "choose another `root`"),
    errno.EOPNOTSUPP: ("this file system lacks what is needed", "choose another `root`"),
    errno.ENOENT: ("is gone", "run again; what is missing is made anew"),
}
"""What is wrong with a disk, and what to do, by the number of the error."""
_OF_A_FILE = {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
"""Those that say that a file of an artifact is not there, or is something else."""
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""What a file system answers that cannot be asked to flush; a disk that failed says EIO."""
_IN_WORDS = re.compile(r"\[?\b(?:os error|errno) (\d+)", re.IGNORECASE)
"""An errno as Rust and Arrow write it."""
_SHORT = re.compile(r"\d+ requested and \d+ written")
"""A short write as numpy reports it, which does not say why: the disk is full."""


@contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turn what a disk refuses, however a library reports it, into one StorageError.

    It says where, what, and what to do.
    """
    try:
        yield
    except SynthbootError:
        raise
    except Exception as error:
        number = _number(error)
        if number not in ADVICE:
            raise
        what, advice = ADVICE[number]
        named = getattr(error, "filename", None)
        shown = str(named) if isinstance(named, str | Path) else str(where)
        if len(shown) > 200:
            shown = f"{shown[:120]}...{shown[-40:]}"
        raise StorageError(f"{shown}: {what}; {advice}") from error


def _number(error: Exception) -> int | None:
    """The errno of an error of any library.

    Of a worker's error, which is a traceback, the last line counts.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    lines = str(error).strip().splitlines()
    last = lines[-1] if lines else ""
    if _SHORT.search(last) or os.strerror(errno.ENOSPC) in last:
        return errno.ENOSPC
    match = _IN_WORDS.search(last)
    return int(match[1]) if match else None


def _is_of_the_disk(error: Exception) -> bool:
    """Whether an error tells of a disk or a machine, and nothing of what a file holds."""
    number = _number(error) if isinstance(error, OSError) else None
    return number in ADVICE and number not in _OF_A_FILE


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is whole or absent, whenever the process or the machine dies.

    Of several that write it at once, the last one's stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = own_name(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            # before the rename: else a crash may leave the name without the data
            flush(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            temporary.unlink()
        raise
    _flush(path.parent)


def own_name(path: Path) -> Path:
    """A name beside `path` that nobody else writes under until it is whole.

    Processes of two machines may have one number.
    """
    return path.with_name(f"{path.name}.{os.urandom(4).hex()}.tmp")


def write_json(path: Path, value: object) -> None:
    """Write JSON as `write_bytes` does; the same value always gives the same bytes."""
    write_bytes(path, _json(value))


def require_regular(path: Path) -> None:
    """Raise OSError for what is no regular file, which opening might wait for without end, or for
    what is not there."""
    what = irregular(os.stat(path).st_mode)
    if what:
        raise OSError(what)


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises CorruptArtifact where it is missing or not JSON."""
    try:
        require_regular(path)
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CorruptArtifact(f"{path}: missing; delete {path.parent} and run again") from None
    except (ValueError, OSError, RecursionError) as error:
        if _is_of_the_disk(error):
            raise
        raise CorruptArtifact(
            f"{path}: unreadable ({brief(error)}); delete {path.parent} and run again"
        ) from None


def write_record(path: Path, value: Mapping[str, object]) -> None:
    """Write an object as JSON that carries its own hash."""
    write_bytes(path, _json({**value, "hash": record_hash(value)}))


def read_record(path: Path) -> dict[str, Any]:
    """The object in a file that `write_record` wrote, without its hash.

    Raises CorruptArtifact where it is another.
    """
    value = read_json(path)
    if not isinstance(value, dict) or value.pop("hash", None) != record_hash(value):
        raise CorruptArtifact(
            f"{path}: edited or damaged; put it back, or delete {path.parent} and run again"
        )
    return value


def save_array(path: Path, array: np.ndarray) -> None:
    """`np.save`, but that a full disk is an error.

    `np.save` leaves a short file and says nothing: it does not look at what closing reports.
    """
    with open(path, "wb") as file:
        # Not a file object, so that numpy writes by its method and not past it to the descriptor.
        sink = SimpleNamespace(write=file.write)
        np.lib.format.write_array(sink, array, allow_pickle=False)


def save_blocks(
    path: Path,
    blocks: Iterable[np.ndarray],
    shape: tuple[int, ...],
    dtype: type[np.generic],
) -> None:
    """What `save_array` would write of all blocks end to end, one of them in memory at a time.

    Not by a mapped file, for which a full disk ends the process. Raises ValueError where the blocks
    do not have the rows of `shape`.
    """
    layout = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    rows = 0
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, layout)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).data)
            rows += len(block)
    if rows != shape[0]:
        raise ValueError(f"{path}: {rows} rows, and {shape[0]} were to come")


def end_to_end(paths: Iterable[Path], path: Path) -> np.ndarray:
    """The rows of several arrays as one, mapped: of one its own file, of more a new one at `path`.

    One that another process has mapped from there stays as it is. Raises as `load_array` does, and
    ValueError where there are none.
    """
    arrays = [load_array(part, mapped=True) for part in paths]
    if not arrays:
        raise ValueError(f"{path}: no arrays to put end to end")
    if len(arrays) == 1:
        return arrays[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = own_name(path)
    shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
    save_blocks(temporary, arrays, shape, arrays[0].dtype.type)
    os.replace(temporary, path)
    return load_array(path, mapped=True)


def load_array(path: Path, mapped: bool = False) -> np.ndarray:
    """What `save_array` wrote; `mapped`: read from disk where it is touched.

    Raises CorruptArtifact where it is missing, short, or no array.
    """
    try:
        require_regular(path)
        array: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise unreadable(path, error) from None
    return array


def unreadable(path: Path, error: Exception) -> CorruptArtifact:
    """What is said of a file of an artifact that a library cannot read.

    Raises the error itself where it is the disk's or the machine's: it may pass, and the file may
    be whole.
    """
    if _is_of_the_disk(error):
        raise error
    return CorruptArtifact(
        f"{path}: unreadable ({brief(error)}); delete its artifact and run again"
    )


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it, unless there is nothing.

    What a link leads to stays. A folder is renamed first: a kill midway leaves no half of it that
    looks like a whole one; nor does what NFS keeps of files that are in use. Raises StorageError.
    """
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
        doomed = path
        if path.suffix != ".tmp" and not path.is_mount():
            doomed = path.with_name(path.name + ".old.tmp")
            remove(doomed)
            os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
        if doomed.exists() and not _goes_by_itself(doomed):
            shutil.rmtree(doomed)
    except OSError as error:
        what, advice = ADVICE.get(error.errno or 0, (str(error.strerror), "remove it by hand"))
        raise StorageError(f"{path}: cannot be removed: {what}; {advice}") from error


def _goes_by_itself(folder: Path) -> bool:
    """Whether all that is left of a folder are files that NFS keeps under another name for as long
    as a process has them open or mapped, as this one has the weights that it went on from."""
    left = [path.name for path in folder.rglob("*") if not path.is_dir()]
    return bool(left) and all(name.startswith(".nfs") for name in left)


@contextmanager
def committed_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends without error.

    The hash of each file goes into it; half a folder is never seen.
    """
    with renamed_folder(path, path.with_name(path.name + ".tmp")) as temporary:
        yield temporary
        names = sorted(path.relative_to(temporary).as_posix() for path in _files(temporary))
        files = {name: record(temporary / name) for name in names}
        write_record(temporary / SEAL, {"files": files})


@contextmanager
def renamed_folder(path: Path, temporary: Path) -> Iterator[Path]:
    """`temporary`, new and empty, which becomes `path` when the block ends without error.

    Whatever was there under either name goes. Raises StorageError where the temporary one was
    removed meanwhile: what was written later is not the whole.
    """
    remove(temporary)
    temporary.mkdir(parents=True)
    # open for as long as it matters which folder it was, so that no other can have its number
    own = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield temporary
        for file in _files(temporary):
            _flush(file)  # before the rename: else a crash may leave the name without the data
        if not _is(temporary, own):
            raise StorageError(
                f"{path}: was removed while it was written; end what else works there and run again"
            )
        remove(path)
        os.replace(temporary, path)
        _flush(path.parent)
    except BaseException:
        # The first error is the one to report; `begin` removes what is left.
        if _is(temporary, own):  # another's may be there now
            with suppress(StorageError):
                remove(temporary)
        raise
    finally:
        os.close(own)


def _is(path: Path, descriptor: int) -> bool:
    """Whether a path leads to the file or folder that is open."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def damage(part: Path) -> str | None:
    """What is wrong with a folder that `committed_folder` made, in a few words, or None."""
    try:
        files = read_record(part / SEAL).get("files")
    except CorruptArtifact:
        return f"{SEAL}: is missing or damaged"

    listed = files or {}
    present = {path.relative_to(part).as_posix() for path in _files(part)}
    strange = sorted(present - {SEAL} - set(listed))
    if strange:
        return f"{strange[0]}: does not belong there"
    return mismatch(part, listed)


def mismatch(
    folder: Path,
    files: Mapping[str, FileRecord],
    contents: bool = True,
) -> str | None:
    """The first file that is not as recorded, in a few words.

    Without `contents`, files are compared by name and size alone.
    """
    for name, recorded in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name}: is missing"
        if path.stat().st_size != recorded["bytes"]:
            return f"{name}: has {path.stat().st_size} bytes, not {recorded['bytes']}"
        if contents and hash_file(path) != recorded["hash"]:
            return f"{name}: does not match its hash"
    return None


def record(path: Path) -> FileRecord:
    """The size and hash of a file."""
    return {"bytes": path.stat().st_size, "hash": hash_file(path)}


def hash_file(path: Path) -> str:
    """32 hex digits of what is in a file. Raises CorruptArtifact for a pipe or a device."""
    what = irregular(os.stat(path).st_mode)
    if what:
        raise CorruptArtifact(f"{path}: {what}; move it away and run again")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _json(value: object) -> bytes:
    try:
        return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair, from a file's name that is not UTF-8
        return (json.dumps(value, indent=1) + "\n").encode()


def record_hash(value: object) -> str:
    """32 hex digits of a value as JSON reads it back."""
    same = json.loads(json.dumps(value))  # keys become strings, tuples lists
    text = json.dumps(same, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flush(descriptor)
    finally:
        os.close(descriptor)


def flush(descriptor: int) -> None:
    """Have the disk keep what was written to an open file, or the names in an open folder.

    Some file systems (of FUSE, or over a network) say that they cannot be asked for that, most of
    them of folders. This is no word of loss, so work goes on: a crash of the machine may then leave
    files missing or short, which their hashes tell. Raises OSError for any other answer.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
