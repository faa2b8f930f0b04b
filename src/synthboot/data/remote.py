"""Files elsewhere, by fsspec: s3://, gs://, hf://, https:// and whatever else it has a package for.

A URL in the configuration asks for the network; nothing else here does. Such a file is not read to
be fingerprinted: its server says its size and an ETag, a hash, or when it was changed, and is asked
again once the file has been read.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from synthboot.errors import DataError, brief

_MARKS = (
    "ETag",
    "etag",
    "md5Hash",
    "Content-MD5",
    "Digest",
    "blob_id",
    "mtime",
    "LastModified",
    "last_modified",
    "Last-Modified",
    "updated",
    "modified",
    "created",
)
"""What servers call that which changes with a file, the surest first."""
_WEB = ("http", "https")
_WILDCARDS = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Url:
    """A file elsewhere, as its server described it."""

    text: str
    size: int
    mark: str

    def __str__(self) -> str:
        return self.text

    @property
    def parts(self) -> tuple[str, ...]:
        """Its path, cut at slashes; the host or bucket comes first."""
        scheme, _, place = self.text.partition("://")
        if scheme in _WEB:  # anywhere else "?" and "#" are of a name
            split = urlsplit(self.text)
            place = split.netloc + split.path
        return tuple(part for part in place.split("/") if part)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.parts[-1]

    @property
    def suffix(self) -> str:
        """The last suffix of its name."""
        return PurePosixPath(self.name).suffix


def is_url(item: str) -> bool:
    """Whether a source is elsewhere."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)", item) is not None


def find(item: str, setting: str) -> list[tuple[Url, int]]:
    """The files that a URL names, or that lie below it, or match it, in sorted order; each with the
    number of its parts that lie below the source.

    Raises DataError, naming the setting and the URL, for whatever goes wrong.
    """
    where = f"{setting}: {item}"
    _require_plain(item, where)
    with _explained(where):
        system, path = _system(item, where)
        system.invalidate_cache()  # what it was told before may have changed
        found: dict[str, Mapping[str, Any]] = {}
        fixed = _length(path)
        if urlsplit(item).scheme in _WEB:  # "?" is no wildcard there, and a page no folder
            found[path] = system.info(path)
            fixed -= 1
        elif _WILDCARDS.search(path):
            for match, info in system.glob(path, detail=True).items():
                is_folder = info["type"] == "directory"
                found |= system.find(match, detail=True) if is_folder else {match: info}
            before = _WILDCARDS.split(path)[0]
            fixed = _length(before.rpartition("/")[0])
        elif system.isdir(path):
            found = system.find(path, detail=True)
        else:
            found[path] = system.info(path)
            fixed -= 1

        urls = []
        for place in sorted(found):
            text = str(system.unstrip_protocol(place))
            urls.append((_described(text, found[place], where), max(1, _length(place) - fixed)))
    return urls


@contextmanager
def opened(url: Url) -> Iterator[RemoteFile]:
    """A file to read. Raises OSError where its server fails."""
    with _explained(str(url)):
        system, path = _system(str(url), str(url))
        raw = system.open(path, "rb")
    try:
        yield RemoteFile(url, system, path, raw)
    finally:
        raw.close()


class RemoteFile(io.RawIOBase):
    """The bytes of a file elsewhere, in any order."""

    def __init__(self, url: Url, system: Any, path: str, raw: Any) -> None:
        self.path = url
        self.size = url.size
        self._system = system
        self._place = path
        self._raw = raw

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Where its server sends any part of it."""
        return bool(self._raw.seekable())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file."""
        return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        """Where the next read begins."""
        return int(self._raw.tell())

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Up to a buffer full."""
        with _explained(str(self.path)):
            piece = self._raw.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def hashed(self) -> tuple[int, str]:
        """Its size and mark, asked for anew: what they were says that it has not changed."""
        with _explained(str(self.path)):
            self._system.invalidate_cache()
            now = _described(str(self.path), self._system.info(self._place), str(self.path))
        return now.size, now.mark


def _system(url: str, where: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise DataError(
            f"{where}: needs a package that is not installed ({brief(error, None)}); "
            f"for s3:// and https://: pip install 'synthboot[remote]'"
        ) from None
    except ValueError as error:
        raise DataError(f"{where}: {brief(error, None)}") from None
    return system, str(path)


def _require_plain(item: str, where: str) -> None:
    """Raise DataError for a URL of URLs, and for one that would put a password into manifests."""
    if "::" in item:
        raise DataError(f"{where}: a chain of protocols; name the files themselves")
    if "@" in urlsplit(item).netloc:
        # not `where`: the message may not say it either
        setting = where.partition(":")[0]
        raise DataError(
            f"{setting}: a URL with a name or password in it, which manifests would keep; "
            f"give these in the environment"
        )


def _described(text: str, info: Mapping[str, Any], where: str) -> Url:
    size = info.get("size")
    marks = []
    for name in _MARKS:
        if (value := info.get(name)) is not None:
            # a list of files may have as seconds what a file has as a date
            seconds = value.timestamp() if isinstance(value, datetime) else value
            marks.append(f"{name} {seconds}")
    if size is None or not marks:
        raise DataError(
            f"{where}: its server does not say {'how large it is' if size is None else 'anything'} "
            f"that would tell when it changes; download it, and name the file"
        )
    digest = hashlib.blake2b(marks[0].encode(), digest_size=16).hexdigest()
    return Url(text, int(size), digest)


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """One line of whatever a server, or a library that speaks to it, fails with."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        cause = error.__cause__
        if isinstance(error, FileNotFoundError) and not isinstance(cause, OSError):
            raise DataError(f"{where}: there is no such file, folder or bucket") from None
        told = cause or error  # a server that does not answer is called a missing file, too
        reason = brief(f"{type(told).__name__}: {told}", 300)
        advice = "is it there, and the network?"
        if isinstance(error, PermissionError) or "Credential" in reason:
            advice = "give credentials where its package looks for them (docs/formats.md)"
        raise DataError(f"{where}: cannot be read: {reason}; {advice}") from None


def _length(path: str) -> int:
    return len([part for part in path.split("/") if part])
