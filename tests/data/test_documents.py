import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthboot import config
from synthboot.data import documents
from synthboot.data.documents import Document, Reject
from synthboot.errors import DataError

ROWS: list[dict[str, Any]] = [{"id": f"d{i}", "text": f"text number {i}", "extra": i} for i in range(5)]


def read(source: Any, **settings: Any) -> list[Document | Reject]:
    cfg = config.Corpus(source=source if isinstance(source, list) else str(source), **settings)
    return [documents.parse(r, cfg) for r in documents.records(cfg)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(r).encode() + b"\n" for r in rows)


def plain(path: Path) -> Path:
    path.write_bytes(lines(ROWS))
    return path


def zst(path: Path) -> Path:
    with pa.CompressedOutputStream(str(path), "zstd") as out:
        out.write(lines(ROWS))
    return path


def gz(path: Path) -> Path:
    path.write_bytes(gzip.compress(lines(ROWS[:2])) + gzip.compress(lines(ROWS[2:])))  # two members are one file
    return path


def parquet(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize(
    ("write", "name"), [(plain, "a.jsonl"), (zst, "a.jsonl.zst"), (gz, "a.jsonl.gz"), (parquet, "a.parquet")]
)
def test_every_format_gives_the_same_documents(tmp_path: Path, write: Any, name: str) -> None:
    assert read(write(tmp_path / name)) == [Document(r["id"], r["text"], {"extra": r["extra"]}) for r in ROWS]


def test_a_folder_of_text_files_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "ignored.png").write_bytes(b"\x89PNG")
    assert [(d.id, d.text) for d in read(tmp_path) if isinstance(d, Document)] == [("a.md", "first"), ("b.txt", "second")]


def test_a_saved_hugging_face_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert [d.id for d in read(tmp_path / "saved") if isinstance(d, Document)] == [r["id"] for r in ROWS]


def test_field_names_are_configurable_and_ids_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "hello"}\n{"key": 7, "body": "there"}\n')
    found = read(path, text_field="body", id_field="key")
    assert [d.id for d in found if isinstance(d, Document)] == ["a.jsonl:1", "7"]


BAD = [
    (b'{"id": "x"}', 'no "text" field'),
    (b'{"id": "x", "text": null}', 'no "text" field'),
    (b'{"id": "x", "text": 5}', '"text" is not a string'),
    (b'{"id": "x", "text": "  "}', "empty text"),
    (b'{"id": "x", "text": "\xff\xfe"}', "invalid UTF-8"),
    (b'{"id": "x", "text": "cut off', "not valid JSON (truncated?)"),
    (b"[1, 2]", "not a JSON object"),
    (b'{"id": ["x"], "text": "a"}', '"id" is neither a string nor a number'),
    (b'{"id": "x", "text": "\\ud800"}', "text holds lone surrogates"),
    (b'{"id": "x", "text": "' + b"a" * 200 + b'"}', "longer than 100 bytes"),
    (b'{"id": "x", "text": "' + b"a" * 9_000 + b'"}', "longer than 100 bytes"),
]


@pytest.mark.parametrize(("line", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_bad_records_say_where_and_why_and_the_next_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"id": "ok", "text": "fine"}\n' + line + b'\n{"id": "also", "text": "fine too"}\n')
    first, bad, last = read(path, max_document_bytes=100)
    assert bad == Reject("a.jsonl", 2, reason)
    assert isinstance(first, Document)
    assert isinstance(last, Document)
    assert last.id == "also"


def test_a_truncated_archive_is_an_error_not_a_short_corpus(tmp_path: Path) -> None:
    rows = [{"id": i, "text": str(random.Random(i).getrandbits(2_000))} for i in range(1_000)]
    whole = tmp_path / "whole.jsonl.zst"
    with pa.CompressedOutputStream(str(whole), "zstd") as out:
        out.write(lines(rows))
    for name, content in {"cut.jsonl.zst": whole.read_bytes(), "cut.jsonl.gz": gzip.compress(lines(rows))}.items():
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=f"{name}: cannot be read to its end"):
            read(tmp_path / name)


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.jsonl")
    (tmp_path / "a.docx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"unknown kind of file; known are \.jsonl"):
        read(tmp_path / "a.docx")


def test_identity_changes_with_one_byte_anywhere(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.jsonl")
    before = documents.identity(str(path))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert documents.identity(str(path)) != before


def test_reading_needs_no_torch() -> None:
    code = "import sys, synthboot.data.documents, synthboot.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
