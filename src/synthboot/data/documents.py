"""Documents from the user's files, one record at a time.

`records` yields what the files hold without looking inside; `parse` turns one record into a
Document or into a Reject that says where and why. Keeping the two apart lets a resumed run skip
records cheaply. Memory is one record.

A record that is wrong is quarantined; a file that is wrong as a whole (damaged, compressed, no
record a line) is an error, since one line in the quarantine would stand for all that it holds.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from synthboot import config
from synthboot.data import files, tables
from synthboot.data.remote import RemoteFile, Url
from synthboot.errors import DataError, brief

WORLD = "world"
_BOM = "\ufeff"
_LONGEST_LINE = 4_000_000  # bytes, where no setting says it
_NO_TEXT = (
    (rb"\x1f\x8b", "compressed by gzip, which its name does not say", "add .gz to it"),
    (rb"\x28\xb5\x2f\xfd", "compressed by zstd, which its name does not say", "add .zst to it"),
    (rb"BZh[1-9]1AY&SY", "compressed by bzip2", "unpack it by bunzip2"),
    (rb"\xfd7zXZ\0", "compressed by xz", "unpack it by unxz"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it by 7z x"),
    (rb"PK\x03\x04", "a ZIP archive, as .docx and .epub are", "take the text out of it"),
    (rb"%PDF-\d\.\d\s", "PDF", "take the text out of it, for example by pdftotext"),
    (rb"PAR1[\0-\x08\x0e-\x1f]", "Parquet, which its name does not say", "call it .parquet"),
)
"""How a file begins that is no text, what it is, and what to do about it.

A text may begin with letters such as PAR1, so that more than these is asked for.
"""
_NO_RECORD_A_LINE = (
    *_NO_TEXT,
    # the wider first, since its mark begins as that of the other
    (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32", "make it UTF-8: iconv -f UTF-32 -t UTF-8"),
    (rb"[\[{]\0\0\0", "UTF-32", "make it UTF-8: iconv -f UTF-32LE -t UTF-8"),
    (rb"\0\0\0[\[{]", "UTF-32", "make it UTF-8: iconv -f UTF-32BE -t UTF-8"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16", "make it UTF-8: iconv -f UTF-16 -t UTF-8"),
    (rb"[\[{]\0", "UTF-16", "make it UTF-8: iconv -f UTF-16LE -t UTF-8"),
    (rb"\0[\[{]", "UTF-16", "make it UTF-8: iconv -f UTF-16BE -t UTF-8"),
    (
        rb"(\xef\xbb\xbf)?\s*\[\s*([\[{]|\Z)",
        "a JSON array, not a record a line",
        "jq -c '.[]' makes lines of it",
    ),
    (
        rb"(\xef\xbb\xbf)?\s*\{[ \t]*\r?\n",
        "JSON over several lines, not a record a line",
        "jq -c . makes lines of it; where it is no text, a pattern such as 'folder/**/*.md' names "
        "what is",
    ),
)
"""The same of a file whose lines are no records."""
_INVALID = "invalid UTF-8"
_OTHER_FIELDS = "another number of fields than the first row names"
_NOT_NARROW = "UTF-16 or UTF-32, not UTF-8"
_ADVICE = {
    **{what: f"what is {what}: {remedy}" for _, what, remedy in _NO_TEXT},
    _INVALID: tables.TO_UTF8,
    _OTHER_FIELDS: "a row of a table has as many fields as its first row names; a text with the "
    "delimiter in it stands in quotes",
    _NOT_NARROW: "`iconv -f UTF-16 -t UTF-8` makes it UTF-8 (or -f UTF-32)",
}
"""What to do about records that are no documents, by the reason."""
_WIDE = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
_CONTROLS = bytes(range(9))  # below tab, which text has
_OLD_MAC = ("in lines that end in carriage returns alone", "tr '\\r' '\\n' mends them")


@dataclass(frozen=True)
class Document:
    """One text with its id; `metadata` is every other field of its record."""

    id: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reject:
    """A record that is not a document: where it stands and what is wrong with it."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class Record:
    """One line, row or file as found.

    `content` is bytes (a JSON line), a string (a text file), a mapping (a row), or None where there
    is a `problem` with reading it.
    """

    file: str
    line: int
    content: bytes | str | Mapping[str, object] | None
    problem: str = ""


@dataclass
class Ignored:
    """What `records` has passed over.

    Files are counted by what they are, values that cannot be read by their column.
    """

    files: Counter[str] = field(default_factory=Counter)
    values: Counter[str] = field(default_factory=Counter)


def identity(
    source: str | list[str],
    setting: str = "corpus.source",
    hash_of: Callable[[Path], tuple[int, str]] | None = None,
) -> list[str]:
    """What tells whether the source has changed.

    That is name, size and hash of each file; a hub name as it is. `hash_of` may know hashes from
    before.
    """
    if isinstance(source, str) and (source == WORLD or source.startswith("hub:")):
        return [source]
    sources, _ = files.find(source, setting)
    lines: list[str] = []
    for file in sources:
        lines += files.contents(file.path, file.name, hash_of)
    return lines


def records(
    cfg: config.Corpus,
    setting: Literal["source", "replay"] = "source",
    expected: Sequence[str] | None = None,
    ignored: Ignored | None = None,
) -> Iterator[Record]:
    """Every record of `cfg.source`, or of `cfg.replay`, in file order.

    What is passed over is added to `ignored`. Raises DataError for a file that cannot be read, or
    whose bytes, as read, are not those of `expected`, an `identity`.
    """
    source = getattr(cfg, setting) or []
    ignored = ignored or Ignored()
    if source == WORLD:
        from synthboot.worlds.generator import World

        splits = World(cfg.world).splits(cfg.validation_docs, cfg.test_docs)
        for line, document in enumerate(splits, 1):
            yield Record(WORLD, line, document)
        return
    if isinstance(source, str) and source.startswith("hub:"):
        yield from _hub(source.removeprefix("hub:"))
        return

    sources, passed_over = files.find(source, f"corpus.{setting}")
    ignored.files.update(passed_over)
    # `expected` lists every file that the source had when the run began: strike off what is read.
    remaining = list(expected or ())
    again = "since this run began to look at it; run again"
    for file in sources:
        read: list[str] = []
        yield from _file(file, cfg, ignored, read)
        if expected is not None and read != remaining[: len(read)]:
            raise DataError(f"{file.path}: has changed {again}")
        del remaining[: len(read)]
    if remaining:
        gone = remaining[0].rsplit(" ", 2)[0]
        raise DataError(f"corpus.{setting}: {gone} is gone {again}")


def parse(record: Record, cfg: config.Corpus) -> Document | Reject:
    """The record's document, or the reason there is none."""

    def reject(reason: str) -> Reject:
        return Reject(record.file, record.line, reason)

    row = fields(record, cfg)
    if isinstance(row, str):
        return reject(row)
    if row.get(cfg.text_field) is None:
        return reject(_no_field(cfg))
    try:
        text = _string(row[cfg.text_field])
        identifier = id_of(row.get(cfg.id_field))
    except UnicodeDecodeError:
        return reject(_INVALID)

    if text is None:
        return reject(f'"{cfg.text_field}" is not a string')
    text = text.lstrip(_BOM)
    problem = _text_problem(text, cfg)
    if problem is not None:
        return reject(problem)
    if identifier is None:
        return reject(f'"{cfg.id_field}" is neither a string nor a number')
    if not tables.encodable(identifier):
        return reject(f'"{cfg.id_field}" holds lone surrogates')

    metadata = dict(row)
    metadata.pop(cfg.id_field, None)
    metadata.pop(cfg.text_field, None)
    return Document(identifier or f"{record.file}:{record.line}", text, metadata)


def advice(reasons: Iterable[str], cfg: config.Corpus) -> str:
    """What to do about records that `parse` has refused for these reasons, as far as that is known;
    empty where it is not."""
    named = (
        "corpus.text_field names the field that has the text (where it is null there is none); a "
        "pattern as source, such as 'folder/**/*.txt', leaves out files that have no text"
    )
    known = {**_ADVICE, _no_field(cfg): named}
    return "; ".join(known[reason] for reason in reasons if reason in known)


def _no_field(cfg: config.Corpus) -> str:
    return f'no "{cfg.text_field}" field'


def fields(record: Record, cfg: config.Corpus) -> dict[str, object] | str:
    """The fields of a record, or why it has none."""
    content = record.content
    if content is None:
        return record.problem
    if isinstance(content, str):  # a text file: its name is the id, all of it the text
        return {cfg.id_field: record.file, cfg.text_field: content}
    parsed: object = content
    if isinstance(content, bytes):
        try:
            parsed = json.loads(content.decode("utf-8").lstrip(_BOM))
        except UnicodeDecodeError:
            return _INVALID
        except (ValueError, RecursionError):  # RecursionError: brackets nested too deeply
            return "not valid JSON (truncated?)"
    if not isinstance(parsed, dict):
        return "not a JSON object"
    return parsed


def _text_problem(text: str, cfg: config.Corpus) -> str | None:
    """What keeps a text from being a document, or None."""
    if not text.replace("\0", "").strip():
        return "empty text"
    if not tables.encodable(text):
        return "text holds lone surrogates"
    if len(text.encode()) > cfg.max_document_bytes:
        return _too_long(cfg)
    return None


def id_of(value: object) -> str | None:
    """An id as text; empty where there is none, None where the value is no id.

    Whole numbers have no point: pandas writes 1.0 for 1. Raises UnicodeDecodeError for bytes that
    are no text.
    """
    if value is None or value != value:  # NaN is how a table says that there is none
        return ""
    if isinstance(value, bool):
        return None
    if isinstance(value, float | Decimal):
        is_whole = value % 1 == 0
        return str(int(value)) if is_whole else str(value)
    if isinstance(value, int):
        return str(value)
    return _string(value)


def digest(batch: Iterable[Record]) -> str:
    """32 hex digits of what records hold: whether they are the ones that were read before."""
    hashed = hashlib.blake2b(digest_size=16)
    for record in batch:
        content = record.content
        if isinstance(content, bytes):
            raw = content
        else:
            raw = repr(content).encode(errors="surrogatepass")
        # Null bytes set fields apart, and the length comes before the content, so that no two lists
        # of records give the same bytes.
        fields = (
            record.file,
            str(record.line),
            record.problem,
            type(content).__name__,
            str(len(raw)),
            "",
        )
        hashed.update("\0".join(fields).encode())
        hashed.update(raw)
    return hashed.hexdigest()


def size_of(record: Record) -> int:
    """About how many bytes a record takes."""
    content = record.content
    if content is None:
        return 0
    return _weight(content)


def _weight(value: object) -> int:
    """About how many bytes a value takes, with all that is in it."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_weight, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_weight, value))
    return 32


def lines(path: Path) -> Iterator[Record]:
    """The lines of a JSON-lines file, plain, .gz or .zst; of one too long, the problem."""
    too_long = f"longer than {_LONGEST_LINE} bytes"
    with files.opened(path) as file:
        stream = files.decompressed(file)
        yield from _lines(path.name, path, stream, _LONGEST_LINE, too_long)


def _string(value: object) -> str | None:
    """A string, or bytes that are one; None for anything else."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value if isinstance(value, str) else None


def _too_long(cfg: config.Corpus) -> str:
    return f"longer than {cfg.max_document_bytes} bytes"


def _file(
    file: files.SourceFile,
    cfg: config.Corpus,
    ignored: Ignored,
    read: list[str],
) -> Iterator[Record]:
    """The records of a file; its name, size and hash, as they were read, are added to `read`."""
    if file.kind == "dataset":
        for split, line, row in tables.saved_dataset(file.path, _needed(cfg), ignored.values):
            yield Record(f"{file.name}/{split}" if split else file.name, line, row)
        read += files.contents(file.path, file.name)  # these are mapped into memory, not read
        return
    with files.opened(file.path) as raw:
        if file.kind == "parquet":
            for line, row in enumerate(tables.parquet(raw, _needed(cfg), ignored.values), 1):
                yield Record(file.name, line, row)
        elif file.kind == "table":
            yield from _table(file, raw, cfg, ignored)
        elif file.kind == "text":
            yield _text(file.name, files.decompressed(raw), cfg)
        else:
            stream = files.decompressed(raw)
            limit = cfg.max_document_bytes
            yield from _lines(file.name, file.path, stream, limit, _too_long(cfg))
        size, digest = raw.hashed()
        read.append(files.described(file.name, size, digest))


def _needed(cfg: config.Corpus) -> tuple[str, str]:
    """Fields without which there is no document."""
    return cfg.text_field, cfg.id_field


def _text(
    name: str,
    stream: io.BufferedReader,
    cfg: config.Corpus,
) -> Record:
    content = stream.read(cfg.max_document_bytes + 1)  # one byte more tells that it is too long
    if len(content) > cfg.max_document_bytes:
        return Record(name, 1, None, _no_text(content) or _too_long(cfg))
    if _is_wide(content):
        return Record(name, 1, None, _no_text(content) or _NOT_NARROW)
    try:
        return Record(name, 1, content.decode("utf-8"))
    except UnicodeDecodeError:
        return Record(name, 1, None, _no_text(content) or _INVALID)


def _no_text(content: bytes) -> str | None:
    """What a file that cannot be read as text is, by its beginning; None where that is unknown."""
    return next((what for pattern, what, _ in _NO_TEXT if re.match(pattern, content)), None)


def _is_wide(content: bytes) -> bool:
    """Whether text is UTF-16 or UTF-32, also without the mark that says so.

    Of Latin, Greek or Cyrillic letters every other byte is then 0 to 5, which are control
    characters in UTF-8. Zeros alone are what a machine that lost power leaves.
    """
    controls = len(content) - len(content.translate(None, _CONTROLS))
    is_unmarked = controls > len(content) / 4 and bool(content.strip(b"\0"))
    return content.startswith(_WIDE) or is_unmarked


def _lines(
    name: str,
    path: Path | Url,
    stream: io.BufferedReader,
    limit: int,
    too_long: str,
) -> Iterator[Record]:
    _refuse(path, _head(stream), _NO_RECORD_A_LINE)
    longest = _longest_line(limit)
    line = 0
    while content := stream.readline(longest):
        line += 1
        was_cut = len(content) == longest and not content.endswith(b"\n")
        if was_cut:
            _skip_line(stream)
            yield Record(name, line, None, too_long)
        elif content.strip(b"\xef\xbb\xbf \t\r\n\v\f"):  # more than a byte order mark and blanks
            yield Record(name, line, content)


def _head(stream: io.BufferedReader) -> bytes:
    return stream.peek(1 << 16)[: 1 << 16]


def _longest_line(limit: int) -> int:
    """Bytes of a line whose text may have `limit`: escapes and other fields may make it longer."""
    return 8 * limit + 4_096


def _refuse(path: Path | Url, head: bytes, kinds: Sequence[tuple[bytes, str, str]]) -> None:
    """Raise DataError for a file that begins as one of the kinds, or whose lines do not end."""
    for pattern, what, remedy in kinds:
        if re.match(pattern, head):
            raise _no_lines(path, what, remedy)
    if b"\n" not in head and b"\r" in head.strip():
        raise _no_lines(path, *_OLD_MAC)


def _no_lines(path: Path | Url, what: str, remedy: str) -> DataError:
    """What to raise for a file whose lines are no records; of what is packed in it, that."""
    if path.suffix.lower() in files.COMPRESSED:
        return DataError(f"{path}: what is packed in it is {what}; unpack it, then {remedy}")
    return DataError(f"{path}: is {what}; {remedy}")


def _skip_line(stream: io.BufferedReader) -> None:
    """Read to the end of a line without keeping it: it may be longer than memory."""
    while True:
        piece = stream.readline(1 << 20)
        if not piece or piece.endswith(b"\n"):
            return


def _table(
    file: files.SourceFile,
    raw: files.HashedFile | RemoteFile,
    cfg: config.Corpus,
    ignored: Ignored,
) -> Iterator[Record]:
    """The records of a CSV or TSV file."""
    stream = files.decompressed(raw)
    head = _head(stream)
    _refuse(file.path, head, _NO_TEXT)
    if _is_wide(head):
        raise _no_lines(file.path, _NOT_NARROW, "iconv -f UTF-16 -t UTF-8 makes it that")
    rows = tables.delimited(
        stream, file.path, _longest_line(cfg.max_document_bytes), _needed(cfg), ignored.values
    )
    for line, row in rows:
        yield Record(file.name, line, row, _OTHER_FIELDS if row is None else "")


def _hub(name: str) -> Iterator[Record]:
    name, _, split = name.partition(":")
    try:
        rows = tables.library().load_dataset(
            name,
            split=split or "train",
            streaming=True,
            trust_remote_code=False,  # a data set's own code is never run
        )
        for line, row in enumerate(rows, 1):
            yield Record(name, line, dict(row))
    except (OSError, ValueError) as error:
        reason = brief(error, None)
        raise DataError(
            f"hub:{name}: cannot be streamed: {reason}; is there a network, and does it exist?"
        ) from None
