"""The files that a source names: found by one stated rule, hashed as they are read.

- Of a folder everything below it is read that has a known suffix, whatever its case. Names that
  begin with a dot, `__MACOSX`, other suffixes, pipes and broken links are passed over and counted.
  Links are followed, and what they lead to is read once.
- A file of another suffix is read as text where the source names it, by itself or by a pattern
  that ends in its suffix, such as `src/**/*.py`; but none that is known to hold no plain text.
- A file is called by its path below the source; files of one name in several sources get as many of
  their parent folders before it as tell them apart. Ids that a record lacks are made of these
  names.
- What lies at a URL is read by the same rule (`remote`).
- Every byte that a reader gets has been hashed, whatever order it reads in, so that what was read
  can be compared with what the fingerprint says, without reading it twice.
- Compressed files open to no more than a bound.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import glob
from pathlib import Path
from typing import Literal

from synthboot.data import remote
from synthboot.data.remote import RemoteFile, Url, is_url
from synthboot.errors import DataError, brief, irregular

Kind = Literal["lines", "table", "text", "parquet", "dataset"]

LINES = (".jsonl", ".jsonlines", ".ndjson", ".json")
TABLES = (".csv", ".tsv")
TEXT = (".txt", ".text", ".md")
COMPRESSED = (".gz", ".zst")
KNOWN = (
    ".jsonl, .jsonlines, .ndjson, .json, .csv, .tsv, .txt, .text, .md (all of them plain, .gz or "
    ".zst), .parquet, a saved Hugging Face dataset, hub:owner/name, all of them but datasets at a "
    "URL too; other text where it is named by its suffix (folder/**/*.tex)"
)

_TAKE_OUT = "; take the text out of it first, a .txt for each document"
_SAVE_AS = "; save it as CSV first"
_UNPACK = "; unpack it first"
_ADVICE = {
    **dict.fromkeys((".docx", ".doc", ".odt", ".rtf", ".pdf", ".epub", ".pptx"), _TAKE_OUT),
    **dict.fromkeys((".html", ".htm", ".xml"), _TAKE_OUT),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), _SAVE_AS),
    **dict.fromkeys((".gz", ".zst", ".bz2", ".xz", ".zip", ".7z", ".tar", ".tgz"), _UNPACK),
}
"""What to do with kinds of files that are not read, wherever they are named."""

BLOCK = 1 << 20
"""Bytes that are read and hashed at a time."""
MOST_EXPANSION = 100
"""How many times what was read of it a compressed file may open to.

Text is compressed three to thirty times.
"""
FREE_EXPANSION = 4 << 20
"""Bytes that any compressed file may open to, however little was read of it."""

_DATASET = ("dataset_info.json", "dataset_dict.json")
"""What a folder holds that is a saved dataset."""
_WILDCARDS = "*?["
_SPECIAL = "broken link, pipe or device"


@dataclass(frozen=True)
class SourceFile:
    """A file, or the folder of a saved dataset, and the name that ids and messages have for it."""

    path: Path | Url
    name: str
    kind: Kind


def find(
    source: str | Sequence[str],
    setting: str = "corpus.source",
) -> tuple[list[SourceFile], Counter[str]]:
    """The files that a source names, in sorted order, and how many were passed over.

    `setting` is where the source was given; what is passed over is counted by what it is. Raises
    DataError where an item names nothing that can be read.
    """
    ignored: Counter[str] = Counter()
    by_target: dict[str, tuple[Path | Url, int, Kind]] = {}  # what links lead to is read once
    items = [source] if isinstance(source, str) else source
    for item in items:
        before = ignored.copy()
        is_empty = True
        named = _elsewhere if is_url(item) else _named
        for path, own_parts in named(item, setting, ignored):
            kind = kind_of(path) or _as_text(path, item)
            if kind is None:
                ignored[_suffix(path)] += 1
                continue
            is_empty = False
            if isinstance(path, Url):
                by_target.setdefault(str(path), (path, own_parts, kind))
                continue
            target = os.path.realpath(path)
            by_target.setdefault(target, (Path(os.path.abspath(path)), own_parts, kind))
        if is_empty and (item == "world" or item.startswith("hub:")):
            raise DataError(f"{setting}: {item}: stands alone, not in a list with others")
        if is_empty:
            passed_over = ignored - before
            holds = f"; it holds {counted(passed_over)}" if passed_over else ""
            advice = how_to_read(passed_over)
            raise DataError(
                f"{setting}: {item}{seen_from(item)}: no such file, or nothing in it that can be "
                f"read{holds}; known are {KNOWN}{advice}"
            )

    names = _names([(path, own_parts) for path, own_parts, _ in by_target.values()])
    result = []
    for (path, _, kind), name in zip(by_target.values(), names, strict=True):
        result.append(SourceFile(path, name, kind))
    return result, ignored


def how_to_read(passed_over: Mapping[str, int]) -> str:
    """What to do about most of the files that were passed over, to stand after what is said of
    them; empty where nothing can be done."""
    most = max(passed_over, key=lambda what: passed_over[what], default="")
    suffix = f".{most.rpartition('.')[2]}"
    if suffix in _ADVICE:
        return _ADVICE[suffix]
    return f"; where {most} is plain text, name it: 'folder/**/*{most}'" if "." in most else ""


def seen_from(path: str | Path) -> str:
    """In an error about a path that is not there: the folder that it was looked for from, which is
    where the command runs and not where the configuration lies; empty where it is absolute, or
    there. Of a home folder, that it has to be written in full.
    """
    if is_url(str(path)) or Path(path).is_absolute() or os.path.exists(path):
        return ""
    if str(path).startswith("~"):
        return " (the shell alone knows `~`; write the path in full)"
    return f" (from {Path.cwd()})"


def kind_of(path: Path | Url) -> Kind | None:
    """What a file or folder holds, by its name; None where it is not known."""
    if isinstance(path, Path) and path.is_dir():
        for marker in _DATASET:
            if os.path.exists(path / marker):
                return "dataset"
        return None

    name = path.name.lower()
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith(COMPRESSED):
        name = name.removesuffix(Path(name).suffix)
    if name.endswith(LINES):
        return "lines"
    if name.endswith(TABLES):
        return "table"
    if name.endswith(TEXT):
        return "text"
    return None


def _as_text(path: Path | Url, item: str) -> Kind | None:
    """`text` for a file of an unknown kind that the item names by itself, or by its suffix."""
    if isinstance(path, Path) and path.is_dir():
        return None
    name = path.name.lower()
    is_packed = name.endswith(COMPRESSED)
    inner = Path(name).stem if is_packed else name
    suffix = Path(inner).suffix
    if suffix in _ADVICE or (is_packed and not suffix):
        return None

    if isinstance(path, Url):
        is_item = path.parts == Url(item, 0, "").parts
    else:
        is_item = path == Path(item)
    return "text" if is_item or _names_suffix(item, name) else None


def _names_suffix(item: str, name: str) -> bool:
    """Whether the item is a pattern, and no folder, that ends in the suffix of this name."""
    asked = Path(item).suffix.lower()
    is_pattern = any(wildcard in item for wildcard in _WILDCARDS)
    is_suffix = bool(asked) and not set(asked) & set("*?")
    return is_pattern and is_suffix and fnmatchcase(name, f"*{asked}")


def counted(counts: Mapping[str, int], most: int = 4) -> str:
    """Counts as words, the largest first: `3 x .csv, 1 x hidden`."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count:,} x {what}" for what, count in ordered[:most]]
    rest = sum(count for _, count in ordered[most:])
    if rest:
        shown.append(f"{rest:,} x others")
    return ", ".join(shown)


def contents(
    path: Path | Url,
    name: str | None = None,
    hash_of: Callable[[Path], tuple[int, str]] | None = None,
) -> list[str]:
    """Name, size and hash of a file, or of every file below a folder, links followed.

    They tell whether it has changed. `hash_of` may know a hash from before (`hashes`); without it
    all is read. Of a file elsewhere its server's mark is taken.
    """
    name = name or _shown(path.name)
    if isinstance(path, Url):
        return [described(name, path.size, path.mark)]
    hash_of = hash_of or hashed
    if not path.is_dir():
        size, digest = hash_of(path)
        return [described(name, size, digest)]

    result = []
    for file, _ in _below(path, Counter(), into_datasets=True):
        size, digest = hash_of(file)
        part = _shown(file.relative_to(path).as_posix())
        result.append(described(f"{name}/{part}", size, digest))
    return result


def described(name: str, size: int, digest: str) -> str:
    """One file's line in a manifest."""
    return f"{name} {size} {digest}"


def hashed(path: Path) -> tuple[int, str]:
    """Size and hash of a file, which is read. Raises DataError where it cannot be."""
    with opened(path) as file:
        return file.hashed()


class HashedFile(io.RawIOBase):
    """A regular file's bytes in any order.

    Each block is hashed when it is first read, and has to be the same if it is read again, so that
    `hashed` is the hash of what readers were given.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.size = os.fstat(descriptor).st_size
        self._descriptor = descriptor
        self._position = 0
        self._blocks: dict[int, tuple[int, bytes]] = {}  # number -> size and hash of what was read
        # The block that was read last: readers ask for it again and again.
        self._number = -1
        self._block = b""

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file; its end is where it was when it was opened."""
        starts = {
            os.SEEK_SET: 0,
            os.SEEK_CUR: self._position,
            os.SEEK_END: self.size,
        }
        self._position = starts[whence] + offset
        return self._position

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """At most the rest of a block."""
        number, offset = divmod(self._position, BLOCK)
        piece = memoryview(self._read(number))[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def hashed(self) -> tuple[int, str]:
        """Size and hash of the file, after reading what no reader has asked for."""
        size = 0
        number = 0
        of_file = hashlib.blake2b(digest_size=16)  # a hash of the hashes of blocks
        while number in self._blocks or self._read(number):
            block_size, digest = self._blocks[number]
            of_file.update(digest)
            size += block_size
            number += 1
        return size, of_file.hexdigest()

    def _read(self, number: int) -> bytes:
        """A block of the file, empty behind its end."""
        if number == self._number:
            return self._block

        start = number * BLOCK
        end = start + BLOCK
        pieces = []
        while start < end:
            piece = os.pread(self._descriptor, end - start, start)
            if not piece:
                break
            pieces.append(piece)
            start += len(piece)
        self._number = number
        self._block = b"".join(pieces)

        digest = hashlib.blake2b(self._block, digest_size=16).digest()
        current = (len(self._block), digest)
        if self._block and self._blocks.setdefault(number, current) != current:
            raise DataError(f"{self.path}: has changed while it was read; run again")
        return self._block


@contextmanager
def opened(path: Path | Url) -> Iterator[HashedFile | RemoteFile]:
    """A file to read, with whatever goes wrong meanwhile as one DataError that names it."""
    import pyarrow as pa

    damage = (
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        pa.ArrowException,
    )
    try:
        if isinstance(path, Url):
            with remote.opened(path) as file:
                yield file
            return
        # A pipe would be waited for without O_NONBLOCK, and a device may never end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _require_regular(path, os.fstat(descriptor).st_mode)
            yield HashedFile(path, descriptor)
        finally:
            os.close(descriptor)
    except damage as error:
        reason = brief(getattr(error, "strerror", None) or error, None)
        raise DataError(f"{path}: cannot be read to its end: {reason}") from None


def decompressed(file: HashedFile | RemoteFile) -> io.BufferedReader:
    """What a file holds, opened if its name ends in .gz or .zst.

    Raises DataError, once it is read that far, where it opens to more than `MOST_EXPANSION` times
    as much.
    """
    import pyarrow as pa

    stored: io.BufferedReader = io.BufferedReader(file, BLOCK)
    suffix = file.path.suffix.lower()
    if suffix not in COMPRESSED:
        return stored
    if not file.size:
        raise DataError(
            f"{file.path}: is empty, which no whole {suffix} file is; make or download it again"
        )
    read: Callable[[bytearray | memoryview], int]
    if suffix == ".gz":
        read = gzip.GzipFile(fileobj=stored).readinto
    else:
        # unlike the zstandard package, pyarrow reports a truncated stream
        read = pa.CompressedInputStream(pa.PythonFile(stored, mode="r"), "zstd").readinto
    return io.BufferedReader(_Bounded(read, stored, file.path), BLOCK)


class _Bounded(io.RawIOBase):
    """What a compressed file opens to, up to a bound.

    A bomb of a megabyte holds ten gigabytes and more.
    """

    def __init__(
        self,
        read: Callable[[bytearray | memoryview], int],
        stored: io.BufferedReader,
        path: Path | Url,
    ) -> None:
        self._read = read
        self._stored = stored
        self._path = path
        self._size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        size = self._read(buffer)
        self._size += size
        require_plausible(self._path, self._size, self._stored.tell())
        return size


def require_plausible(path: Path | Url, size: int, stored: int) -> None:
    """Raise DataError where `stored` compressed bytes open to `size`, which text would not."""
    if size > MOST_EXPANSION * stored + FREE_EXPANSION:
        raise DataError(
            f"{path}: opens to more than {MOST_EXPANSION} times its size, which text does not "
            f"(a compression bomb?); unpack it yourself if it is meant"
        )


def _elsewhere(
    item: str,
    setting: str,
    ignored: Counter[str],
) -> Iterator[tuple[Url, int]]:
    """The files that a URL names, but for those that are hidden below it."""
    for url, own_parts in remote.find(item, setting):
        if own_parts > 1 and any(map(_is_hidden, url.parts[-own_parts:])):
            ignored["hidden"] += 1
        elif url.name in _DATASET:
            raise DataError(
                f"{setting}: {item}: is a saved dataset, which is read from a disk; copy it here"
            )
        else:
            yield url, own_parts


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _named(
    item: str,
    setting: str,
    ignored: Counter[str],
) -> Iterator[tuple[Path, int]]:
    """The paths that one item names, in sorted order.

    Each comes with the number of its parts that lie below the item.
    """
    if not item:
        return
    path = Path(item)
    status: os.stat_result | None
    try:
        status = path.stat()
    except FileNotFoundError:
        status = None
    except (OSError, ValueError) as error:  # ValueError: a null byte in it
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{setting}: {item!r}: cannot be read: {reason}") from None
    if status is None:
        yield from _matches(path, ignored)
    elif stat.S_ISDIR(status.st_mode) and kind_of(path):
        yield path, 1
    elif stat.S_ISDIR(status.st_mode):
        yield from _below(path, ignored)
    else:
        _require_regular(path, status.st_mode)
        if kind_of(path) is None and _as_text(path, item) is None:
            advice = _ADVICE.get(path.suffix.lower(), "")
            raise DataError(f"{setting}: {path}: unknown kind of file; known are {KNOWN}{advice}")
        yield path, 1


def _require_regular(path: Path, mode: int) -> None:
    what = irregular(mode)
    if what:
        raise DataError(f"{path}: {what}; put what it holds into a file")


def _matches(pattern: Path, ignored: Counter[str]) -> Iterator[tuple[Path, int]]:
    """What a pattern matches, and what lies in folders that it matches."""
    parts = pattern.parts
    fixed = len(parts)  # parts before the first with a wildcard: the source, which names leave out
    for i, part in enumerate(parts):
        if any(wildcard in part for wildcard in _WILDCARDS):
            fixed = i
            break
    # From `**` on, folders are walked here and not by glob.
    deep = parts.index("**") if "**" in parts else len(parts)
    for match in sorted(glob(str(Path(*parts[:deep])))):
        path = Path(match)
        below = len(path.parts) - fixed
        if path.is_dir() and kind_of(path) is None:
            for inside, depth in _below(path, ignored):
                if _fits(inside.parts[-depth:], parts[deep:]):
                    yield inside, below + depth
        elif path.is_dir() or path.is_file():
            yield path, max(1, below)
        else:
            ignored[_SPECIAL] += 1


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a path, or a folder it lies in, matches.

    glob follows `**` into loops of links, so that it is done here.
    """
    if not pattern:
        return True
    if pattern[0] == "**":  # it stands for any number of parts, none included
        return any(_fits(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    if not parts or not fnmatchcase(parts[0], pattern[0]):
        return False
    return _fits(parts[1:], pattern[1:])


def _below(
    folder: Path,
    ignored: Counter[str],
    into_datasets: bool = False,
) -> list[tuple[Path, int]]:
    """Files and saved datasets, or what lies in these too, below a folder in sorted order, each
    with its depth.

    Links are followed, and no folder is entered twice, so that a loop of them ends.
    """
    paths: list[Path] = []
    entered: set[str] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        target = os.path.realpath(current)
        if target in entered:
            continue
        entered.add(target)
        try:
            # Last first, as the next folder to enter is the last of the list.
            entries = sorted(os.scandir(current), key=lambda entry: entry.name, reverse=True)
            for entry in entries:
                path = Path(entry.path)
                mode = _mode(path)
                if _is_hidden(entry.name):
                    ignored["hidden"] += 1
                elif stat.S_ISDIR(mode) and (into_datasets or kind_of(path) is None):
                    waiting.append(path)
                elif stat.S_ISDIR(mode) or stat.S_ISREG(mode):
                    paths.append(path)
                else:
                    ignored[_SPECIAL] += 1
        except OSError as error:
            raise DataError(f"{current}: cannot be listed: {error.strerror}") from None

    depth = len(folder.parts)
    return [(path, len(path.parts) - depth) for path in sorted(paths)]


def _mode(path: Path) -> int:
    """What a path leads to, as `stat` counts; 0 for a link to nothing or to itself."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return 0


def _names(places: list[tuple[Path | Url, int]]) -> list[str]:
    """A name for each path: its last parts, as many as are given with it.

    Those that would be called alike get as many more as tell them apart.
    """
    while True:
        names = [_shown(Path(*path.parts[-parts:]).as_posix()) for path, parts in places]
        times = Counter(names)
        longer = []
        for (path, parts), name in zip(places, names, strict=True):
            wanted = parts + 1 if times[name] > 1 else parts
            longer.append((path, min(wanted, len(path.parts))))
        if longer == places:
            return names
        places = longer


def _shown(name: str) -> str:
    """A file's name as text: bytes that are no UTF-8 as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _suffix(path: Path | Url) -> str:
    """What a file that is passed over is counted as.

    That is its suffix, with the one before it where it is compressed.
    """
    if isinstance(path, Path) and path.is_dir():
        return "folders"
    suffix = path.suffix.lower()
    if suffix in (*COMPRESSED, ".bz2", ".xz"):
        suffix = Path(Path(path.name).stem).suffix.lower() + suffix
    return _shown(suffix) or "without a suffix"
