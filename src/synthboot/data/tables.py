"""Rows of tables: Parquet, a saved Hugging Face dataset, text with a delimiter.

A row is a mapping of fields to values. What is wrong with a field that is not `needed` costs that
value alone: it is left out, and counted by field in `unread`.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthboot.data import files
from synthboot.data.remote import RemoteFile, Url
from synthboot.errors import DataError, brief

if TYPE_CHECKING:
    import pyarrow as pa

_BOM = b"\xef\xbb\xbf"
_DELIMITERS = ",;|"
_UNREADABLE = object()

TO_UTF8 = (
    "Western text of older programs becomes UTF-8 by `iconv -f WINDOWS-1252 -t UTF-8`, other text "
    "by the name of its encoding (GB18030, SHIFT_JIS, WINDOWS-1251)"
)
"""What to do about text that is no UTF-8."""


def delimited(
    stream: io.BufferedReader,
    path: Path | Url,
    longest: int,
    needed: Collection[str],
    unread: Counter[str],
) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """The rows of a CSV or TSV file, each with the line that it begins on; None for a row with
    another number of fields than the first, which names them.

    The delimiter is a tab, comma, semicolon or bar, whichever the first row has outside of quotes,
    a tab before all, or the one that a line `sep=;` before it says, as spreadsheets write it.
    Blank lines are no rows, nor are rows of blank fields, as spreadsheets leave them below a table.
    A value that is no UTF-8 comes as bytes where it is needed. Lines and fields of more than
    `longest` bytes, names of fields that are no UTF-8, and quotes that do not match, after which
    nobody knows where a row begins, raise DataError.

    Source: RFC 4180.
    """
    lines = _Lines(stream, path, longest)
    first = next((line for line in lines if line.strip()), "")
    is_said = first.startswith("sep=") and len(first.strip("\r\n")) == len("sep=;")
    if is_said:
        delimiter = first[len("sep=")]
    else:
        delimiter = _delimiter(first)
        lines.again = first
    before = lines.number if is_said else lines.number - 1  # lines that the reader does not get

    csv.field_size_limit(longest)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] = []
    line = before + 1
    try:
        for values in reader:
            is_filled = any(map(str.strip, values))
            if is_filled and names:
                fits = len(values) == len(names)
                yield line, _row(names, values, needed, unread) if fits else None
            elif is_filled:
                names = _names(values, path, needed)
            line = before + reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}: the row that begins on line {line:,} is no row of a table whose delimiter is "
            f"{delimiter!r}: {_reason(error)}"
        ) from None


def _delimiter(first: str) -> str:
    """The delimiter that a first row has; one in quotes belongs to a name."""
    bare = re.sub(r'"[^"]*"?', "", first)
    return "\t" if "\t" in bare else max(_DELIMITERS, key=bare.count)


def _reason(error: csv.Error) -> str:
    if "new-line" in str(error):
        return (
            "a carriage return stands in it that is in no quotes and ends no line; where rows end "
            "in carriage returns alone, tr '\\r' '\\n' mends them"
        )
    return (
        f"{error}; is a quote not closed, or one inside of a field not doubled? What has a "
        f"backslash before it instead, or means itself, as databases write it, is mended by the "
        f"commands in docs/own-text.md (a field may be 8 times as long as "
        f"corpus.max_document_bytes)"
    )


class _Lines:
    """The lines of a stream as text: what is no UTF-8 as half of a surrogate pair each byte."""

    def __init__(self, stream: io.BufferedReader, path: Path | Url, longest: int) -> None:
        self.again = ""
        """A line to come once more."""
        self.number = 0
        """Of the last line that was read, from 1."""
        self._stream = stream
        self._path = path
        self._longest = longest

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.again:
            line, self.again = self.again, ""
            return line
        content = self._stream.readline(self._longest)
        if not content:
            raise StopIteration
        self.number += 1
        if len(content) == self._longest and not content.endswith(b"\n"):
            raise DataError(
                f"{self._path}: line {self.number:,} is longer than {self._longest:,} bytes, "
                f"8 times corpus.max_document_bytes"
            )
        if self.number == 1:
            content = content.removeprefix(_BOM)
        return content.decode("utf-8", "surrogateescape")


def _names(values: Sequence[str], path: Path | Url, needed: Collection[str]) -> list[str]:
    """What the fields are called: as the first row says, by their place where it says nothing or
    what it has said before."""
    names: list[str] = []
    for place, value in enumerate(values, 1):
        name = value.strip() or f"column {place}"
        if not encodable(name):
            raise DataError(f"{path}: the row that names the fields is no UTF-8; {TO_UTF8}")
        if name in names and name in needed:
            raise DataError(f"{path}: several columns are called {name!r}; name one of them so")
        names.append(f"{name} (column {place})" if name in names else name)
    return names


def _row(
    names: Sequence[str],
    values: Sequence[str],
    needed: Collection[str],
    unread: Counter[str],
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in zip(names, values, strict=True):
        if encodable(value):
            row[name] = value
        elif name in needed:
            row[name] = value.encode("utf-8", "surrogateescape")
        else:
            unread[name] += 1
    return row


def encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8: halves of surrogate pairs cannot, which JSON escapes
    spell, and which stand here for bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parquet(
    raw: files.HashedFile | RemoteFile,
    needed: Collection[str],
    unread: Counter[str],
) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file. Raises DataError where it opens to more than text would."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(io.BufferedReader(raw, files.BLOCK), page_checksum_verification=True)
    size = 0
    for i in range(table.num_row_groups):
        size += table.metadata.row_group(i).total_byte_size
    files.require_plausible(raw.path, size, raw.size)

    some = rows_at_once(table.metadata.num_rows, size)

    def column(name: str) -> Iterator[pa.Array]:
        for batch in table.iter_batches(batch_size=some, columns=[name], use_threads=False):
            yield batch.column(0)

    names = table.schema_arrow.names
    return _rows(names, table.metadata.num_rows, column, needed, unread)


def saved_dataset(
    path: Path | Url,
    needed: Collection[str],
    unread: Counter[str],
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The rows of a saved dataset, each with its split, empty where there is none, and its number
    there, from 1."""
    datasets = library()
    try:
        saved = datasets.load_from_disk(str(path))
        is_split = isinstance(saved, datasets.DatasetDict)
        splits = saved.items() if is_split else [("", saved)]
        for split, table in splits:
            arrow = table.with_format("arrow")

            def column(name: str, table: Any = arrow) -> Iterator[pa.Array]:
                some = rows_at_once(len(table), table.data.nbytes)
                for batch in table.select_columns([name]).iter(some):
                    yield batch.column(0)

            rows = _rows(table.column_names, len(table), column, needed, unread)
            for number, row in enumerate(rows, 1):
                yield split, number, row
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = brief(error, None)
        raise DataError(f"{path}: cannot be read as a saved dataset: {reason}") from None


def library() -> Any:
    """The package `datasets`. Raises DataError where it is missing."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            "this source needs the `datasets` package: pip install 'synthboot[datasets]'"
        ) from None
    return datasets


def rows_at_once(rows: int, size: int) -> int:
    """How many rows of a table of `size` bytes are read together: those of 8 MiB, or 1,024."""
    return max(1, min(1_024, (8 << 20) * rows // max(1, size)))


def _rows(
    names: Sequence[str],
    count: int,
    column: Callable[[str], Iterator[pa.Array]],
    needed: Collection[str],
    unread: Counter[str],
) -> Iterator[dict[str, Any]]:
    """Rows from columns that are read apart.

    So what is wrong with a column that is neither text nor id does not matter.
    """
    columns = {}
    for name in names:
        columns[name] = _values(name, column(name), count, name in needed, unread)
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        yield {name: value for name, value in row.items() if value is not _UNREADABLE}


def _values(
    name: str,
    arrays: Iterator[pa.Array],
    count: int,
    is_needed: bool,
    unread: Counter[str],
) -> Iterator[Any]:
    """A column's values; those that cannot be read are counted.

    Strings of a needed column come as bytes, which may be no UTF-8.
    """
    done = 0
    try:
        for array in arrays:
            for value in _converted(array, is_needed):
                done += 1
                unread[name] += value is _UNREADABLE
                yield value
    except (DataError, MemoryError):
        raise
    except Exception:  # a library's, of any kind
        if is_needed:
            raise
    # The rest of the column, where reading broke off.
    unread[name] += count - done
    yield from itertools.repeat(_UNREADABLE, count - done)


def _converted(array: pa.Array, is_needed: bool) -> list[Any]:
    import pyarrow as pa

    if is_needed:
        if pa.types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        # As bytes, just as they lie there: one bad string would cost the whole batch.
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            array = array.cast(pa.large_binary())
    try:
        return list(array.to_pylist())
    # Years after 9999, bytes that are no text, nanoseconds, unknown time zones: value by value.
    except Exception:
        return [_converted_value(value) for value in array]


def _converted_value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except Exception:
        return _UNREADABLE
