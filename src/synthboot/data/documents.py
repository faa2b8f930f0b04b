"""Documents from the user's files, one record at a time.

`records` yields what the files hold without looking inside; `parse` turns one record into a Document or into a Reject
that says where and why. Keeping the two apart lets a resumed run skip records cheaply. Memory is one record.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any, Literal

from synthboot import config
from synthboot.errors import DataError

WORLD = "world"
TEXT_SUFFIXES = (".txt", ".md")
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")


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
    """One line, row or file as found. `content` is bytes (a JSON line), a mapping (a row), a Path (a text file) or an
    int (the size of a line too long to read)."""

    file: str
    line: int
    content: Any


def files(source: str | list[str], setting: str = "corpus.source") -> list[Path]:
    """The files that a source, given by `setting`, names, in sorted order. Raises DataError where one matches nothing."""
    found: list[Path] = []
    for item in [source] if isinstance(source, str) else source:
        path = Path(item)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p) is not None)
            kept = [path] if _is_saved_dataset(path) else inside
        else:
            kept = [path] if path.exists() else sorted(Path(p) for p in glob(item, recursive=True))
        if not kept:
            raise DataError(f"{setting}: {item}: no such file, or nothing in it that can be read")
        found += kept
    return found


def identity(source: str | list[str], setting: str = "corpus.source") -> list[str]:
    """What tells whether the source has changed: name, size and hash of each file; a hub name as it is."""
    if isinstance(source, str) and (source == WORLD or source.startswith("hub:")):
        return [source]
    result = []
    for path in files(source, setting):
        for part in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            with open(part, "rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
            result.append(f"{part.name} {part.stat().st_size} {digest}")
    return result


def records(cfg: config.Corpus, setting: Literal["source", "replay"] = "source") -> Iterator[Record]:
    """Every record of `cfg.source`, or of `cfg.replay`, in file order."""
    source = getattr(cfg, setting) or []
    if source == WORLD:
        from synthboot.data.worlds import World

        splits = World(cfg.world).splits(cfg.validation_docs, cfg.holdout_docs)
        yield from (Record(WORLD, line, document) for line, document in enumerate(splits, 1))
        return
    if isinstance(source, str) and source.startswith("hub:"):
        yield from _hub(source.removeprefix("hub:"))
        return
    for path in files(source, f"corpus.{setting}"):
        try:
            yield from _file(path, cfg.max_document_bytes)
        except (OSError, EOFError, ValueError) as error:
            raise DataError(f"{path}: cannot be read to its end: {error}") from None


def parse(record: Record, cfg: config.Corpus) -> Document | Reject:
    """The record's document, or the reason there is none."""

    def reject(reason: str) -> Reject:
        return Reject(record.file, record.line, reason)

    content = record.content
    if isinstance(content, int):
        return reject(f"longer than {cfg.max_document_bytes} bytes")
    if isinstance(content, Path):
        try:
            content = {cfg.id_field: record.file, cfg.text_field: content.read_bytes().decode("utf-8")}
        except UnicodeDecodeError:
            return reject("invalid UTF-8")
    if isinstance(content, bytes):
        try:
            content = json.loads(content.decode("utf-8"))
        except UnicodeDecodeError:
            return reject("invalid UTF-8")
        except (ValueError, RecursionError):
            return reject("not valid JSON (truncated?)")
    if not isinstance(content, dict):
        return reject("not a JSON object")
    text = content.get(cfg.text_field)
    if cfg.text_field not in content or text is None:
        return reject(f'no "{cfg.text_field}" field')
    if not isinstance(text, str):
        return reject(f'"{cfg.text_field}" is not a string')
    if not text.strip():
        return reject("empty text")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        return reject("text holds lone surrogates")
    if size > cfg.max_document_bytes:
        return reject(f"longer than {cfg.max_document_bytes} bytes")
    found = content.get(cfg.id_field)
    if found is not None and not isinstance(found, str | int):
        return reject(f'"{cfg.id_field}" is neither a string nor a number')
    identifier = f"{record.file}:{record.line}" if found is None else str(found)
    rest = {k: v for k, v in content.items() if k not in (cfg.id_field, cfg.text_field)}
    return Document(identifier, text, rest)


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    if name.endswith(_JSON_SUFFIXES):
        return "json"
    if name.endswith(".parquet"):
        return "parquet"
    return "text" if name.endswith(TEXT_SUFFIXES) else None


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()


def _file(path: Path, limit: int) -> Iterator[Record]:
    kind = _kind(path)
    if path.is_dir():
        yield from _saved_dataset(path)
    elif kind == "json":
        yield from lines(path, limit)
    elif kind == "parquet":
        import pyarrow.parquet as pq

        line = 0
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1_024):
            for row in batch.to_pylist():
                line += 1
                yield Record(path.name, line, row)
    elif kind == "text":
        yield Record(path.name, 1, path if path.stat().st_size <= limit else path.stat().st_size)
    else:
        known = ".jsonl, .jsonl.gz, .jsonl.zst, .parquet, .txt, .md, a saved Hugging Face dataset, hub:owner/name"
        raise DataError(f"{path}: unknown kind of file; known are {known}")


def lines(path: Path, limit: int = 4_000_000) -> Iterator[Record]:
    """The lines of a JSON-lines file, plain, .gz or .zst; of one too long, its size."""
    import pyarrow as pa

    line, longest = 0, 8 * limit + 4_096  # escapes and other fields may make a line longer than its text
    with open(path, "rb") as raw:
        stream: Any = raw
        if path.suffix == ".gz":
            stream = gzip.GzipFile(fileobj=raw)
        elif path.suffix == ".zst":  # unlike the zstandard package, pyarrow reports a truncated stream
            stream = io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw), "zstd"), 1 << 20)
        while content := stream.readline(longest):
            line += 1
            size = len(content)
            if size == longest and not content.endswith(b"\n"):
                while (more := stream.readline(1 << 20)) and not more.endswith(b"\n"):
                    size += len(more)
                yield Record(path.name, line, size)
            elif content.strip():
                yield Record(path.name, line, content)


def _saved_dataset(path: Path) -> Iterator[Record]:
    datasets = _datasets()
    found = datasets.load_from_disk(str(path))
    splits = found.items() if isinstance(found, datasets.DatasetDict) else [("", found)]
    for split, rows in splits:
        for line, row in enumerate(rows, 1):
            yield Record(f"{path.name}/{split}" if split else path.name, line, dict(row))


def _hub(name: str) -> Iterator[Record]:
    name, _, split = name.partition(":")
    try:
        rows = _datasets().load_dataset(name, split=split or "train", streaming=True, trust_remote_code=False)
        for line, row in enumerate(rows, 1):
            yield Record(name, line, dict(row))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"hub:{name}: cannot be streamed: {reason}; is there a network, and does it exist?") from None


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError("this source needs the `datasets` package: pip install 'synthboot[datasets]'") from None
    return datasets
