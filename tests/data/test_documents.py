import bz2
import gzip
import json
import lzma
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthboot import config
from synthboot.data import documents, tables
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


def test_what_cannot_be_read_in_a_saved_dataset_is_left_out(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = pa.table({"text": bad_utf8([b"one", b"\xff"]), "when": pa.array([4 * 10**14, 0], pa.timestamp("ms"))})
    saved = datasets.Dataset(table).select([1, 0])
    saved.save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path) == [Reject("saved", 1, "invalid UTF-8"), Document("saved:2", "one")]


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


def ids(found: list[Document | Reject]) -> list[str]:
    return [d.id if isinstance(d, Document) else d.reason for d in found]


BOM = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    three = [BOM + line for line in lines(ROWS[:3]).splitlines(keepends=True)]  # files put one after the other
    (tmp_path / "a.jsonl").write_bytes(b"".join(three) + BOM)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(BOM + lines(ROWS[3:])))
    (tmp_path / "c.txt").write_bytes(BOM + BOM + b"a text")
    (tmp_path / "d.txt").write_bytes(BOM)
    (tmp_path / "e.jsonl").write_text('{"id": "e", "text": "\\ufeffinside a field"}')
    found = read(tmp_path)
    assert ids(found) == ["d0", "d1", "d2", "d3", "d4", "c.txt", "empty text", "e"]
    assert [d.text for d in found[-3:] if isinstance(d, Document)] == ["a text", "inside a field"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_other_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(ROWS).decode().encode(encoding))
    with pytest.raises(DataError, match=rf"a\.jsonl: is {encoding[:6].upper()}; make it UTF-8: iconv") as caught:
        read(path)
    # what is advised is how Python calls it too, and gives the text back
    advised = str(caught.value).partition("-f ")[2].split()[0]
    assert path.read_bytes().decode(advised) == lines(ROWS).decode()
    (tmp_path / "a.txt").write_bytes("words".encode("utf-16"))
    assert ids(read(tmp_path / "a.txt")) == ["UTF-16 or UTF-32, not UTF-8"]
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le"):  # without a mark every byte of it is UTF-8 too
        (tmp_path / "a.txt").write_bytes("hello мир".encode(encoding))
        assert ids(read(tmp_path / "a.txt")) == ["UTF-16 or UTF-32, not UTF-8"]


WHOLE = {
    "a JSON array": json.dumps(ROWS).encode(),
    "a JSON array ": json.dumps(ROWS, indent=1).encode(),
    "a JSON array  ": BOM + b"\n [\n\n" + json.dumps(ROWS[0]).encode() + b"]",
    "JSON over several lines": b"\n".join(json.dumps(row, indent=1).encode() for row in ROWS),
    "in lines that end in carriage returns alone": lines(ROWS).replace(b"\n", b"\r"),
    "compressed by gzip": gzip.compress(lines(ROWS)),
    "compressed by zstd": pa.compress(lines(ROWS), "zstd", asbytes=True),
    "compressed by bzip2": bz2.compress(lines(ROWS)),
    "compressed by xz": lzma.compress(lines(ROWS)),
    "a ZIP archive": b"PK\x03\x04\x14" + bytes(100),
    "PDF": b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n",
    "Parquet": b"PAR1\x15" + bytes(100) + b"PAR1",
}
NO_TEXT = [what for what in WHOLE if what.startswith(("compressed", "a ZIP", "PDF", "Parquet"))]


@pytest.mark.parametrize("what", WHOLE)
def test_a_file_without_a_record_a_line_says_what_it_is(tmp_path: Path, what: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(WHOLE[what])
    with pytest.raises(DataError, match=rf"a\.jsonl: is {what.strip()}"):
        read(tmp_path)


@pytest.mark.parametrize("what", NO_TEXT)
def test_a_text_file_that_is_no_text_says_what_it_is_however_long(tmp_path: Path, what: str) -> None:
    (tmp_path / "a.txt").write_bytes(WHOLE[what] + bytes(range(256)))
    for longest in (10, 10_000):
        [found] = read(tmp_path, max_document_bytes=longest)
        assert isinstance(found, Reject)
        assert found.reason.startswith(what)
        assert documents.advice([found.reason], config.Corpus(source="x"))


def test_text_may_begin_as_what_is_no_text_does(tmp_path: Path) -> None:
    given = [
        "PAR1 is a gene.",
        "PAR1\nis one too",
        "BZh9 and BZh1",
        "PK was here",
        "PK\x03\x04 too",
        "%PDF-1.4 is a mark, and text",
    ]
    for number, text in enumerate(given):
        (tmp_path / f"{number}.txt").write_text(text)
    assert [d.text for d in read(tmp_path) if isinstance(d, Document)] == given


@pytest.mark.parametrize(("what", "remedy"), [("compressed by gzip", "add .gz to it"), ("a JSON array", "jq -c")])
def test_what_is_packed_in_a_file_is_unpacked_first(tmp_path: Path, what: str, remedy: str) -> None:
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(WHOLE[what]))
    with pytest.raises(DataError, match=rf"a\.jsonl\.gz: what is packed in it is {what}.*; unpack it, then {remedy}"):
        read(tmp_path)
    # as advised
    packed.unlink()
    (tmp_path / "a.jsonl").write_bytes(WHOLE[what])
    with pytest.raises(DataError, match=rf"a\.jsonl: is {what}.*; {remedy}"):
        read(tmp_path)


def test_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\r\n" + lines(ROWS).replace(b"\n", b"\r\n") + b" \t\r\n")
    (tmp_path / "b.jsonl").write_bytes(b'{"id": "b", "text": "one line"}\r')
    (tmp_path / "c.jsonl").write_text('{"id": "c", "text": "not an end:\u2028\u0085"}\n', "utf-8")
    (tmp_path / "d.jsonl").write_bytes(b"")
    assert ids(read(tmp_path)) == [*(row["id"] for row in ROWS), "b", "c"]


GIVEN = [
    ("1.0", "1"),
    ("1", "1"),
    ("-0.0", "0"),
    ("1.5", "1.5"),
    ("1e20", "100000000000000000000"),
    ('"1.0"', "1.0"),
    ("null", "a.jsonl:1"),
    ("NaN", "a.jsonl:1"),
    ('""', "a.jsonl:1"),
    ('"\\ud83d\\ude00"', "\N{GRINNING FACE}"),
    ("true", '"id" is neither a string nor a number'),
    ("{}", '"id" is neither a string nor a number'),
    ('"\\ud800"', '"id" holds lone surrogates'),
    ("9" * 5_000, "not valid JSON (truncated?)"),
]


@pytest.mark.parametrize(("given", "expected"), GIVEN, ids=[g[:12] for g, _ in GIVEN])
def test_ids(tmp_path: Path, given: str, expected: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"id": {given}, "text": "words"}}\n')
    assert ids(read(tmp_path)) == [expected]


def test_what_an_id_is_in_parquet(tmp_path: Path) -> None:
    columns = [pa.array([1.0, None]), pa.array(["1", ""]), pa.array([b"1", None]), pa.array([1, None], pa.decimal128(5, 1))]
    for column in columns:
        pq.write_table(pa.table({"id": column, "text": ["one", "two"]}), tmp_path / "a.parquet")
        assert ids(read(tmp_path)) == ["1", "a.parquet:2"]


def bad_utf8(text: list[bytes]) -> pa.Array:
    return pa.Array.from_buffers(pa.string(), len(text), pa.array(text, pa.binary()).buffers())


def test_one_bad_value_in_parquet_costs_one_row(tmp_path: Path) -> None:
    texts = bad_utf8([b"one", b"two \xff", b"three"])
    pq.write_table(pa.table({"id": bad_utf8([b"a", b"b", b"\xff"]), "text": texts}), tmp_path / "a.parquet")
    found = read(tmp_path)
    assert found[0] == Document("a", "one")
    assert found[1:] == [Reject("a.parquet", 2, "invalid UTF-8"), Reject("a.parquet", 3, "invalid UTF-8")]


def test_what_cannot_be_read_in_a_column_that_nobody_asked_for_is_left_out_and_counted(tmp_path: Path) -> None:
    columns = {
        "text": ["one", "two"],
        "n": [1, 2],
        "when": pa.array([0, 4 * 10**14], pa.timestamp("ms")),  # the year 14645
        "where": pa.array([1, 1], pa.timestamp("us", "Nowhere/Land")),
        "note": bad_utf8([b"\xff", b"fine"]),
        "kind": pa.array(["x", "y"]).dictionary_encode(),
        "list": [[1], []],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    ignored = documents.Ignored()
    cfg = config.Corpus(source=str(tmp_path))
    first, second = [documents.parse(r, cfg) for r in documents.records(cfg, ignored=ignored)]
    assert isinstance(first, Document)
    assert isinstance(second, Document)
    assert set(first.metadata) == {"n", "when", "kind", "list"}
    assert second.metadata == {"n": 2, "note": "fine", "kind": "y", "list": []}
    assert +ignored.values == {"when": 1, "where": 2, "note": 1}


def test_damage_in_a_column_that_nobody_asked_for_does_not_matter(tmp_path: Path) -> None:
    rows = [{**row, "note": f"nobody asks for {row['id']}"} for row in ROWS]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, write_page_checksum=True, use_dictionary=False, compression="none")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"nobody asks for d3", b"somebody asks d3 ."))
    found = read(path)
    assert ids(found) == [row["id"] for row in ROWS]
    assert not any("note" in d.metadata for d in found if isinstance(d, Document))
    path.write_bytes(content.replace(b"text number 3", b"text number 4"))
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read to its end: .*CRC"):
        read(path)


def test_nul_characters_are_text_but_nothing_else_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"two\0words")
    (tmp_path / "b.txt").write_bytes(bytes(100))
    (tmp_path / "c.jsonl").write_bytes(lines(ROWS[:1]) + bytes(100))  # what a machine that lost power leaves
    assert ids(read(tmp_path)) == ["a.txt", "empty text", "d0", "not valid JSON (truncated?)"]


def test_compressed_text_and_capital_suffixes(tmp_path: Path) -> None:
    (tmp_path / "A.TXT").write_text("plain")
    (tmp_path / "B.Txt.GZ").write_bytes(gzip.compress(b"gzip"))
    (tmp_path / "C.Md.Zst").write_bytes(pa.compress(b"zstd", "zstd", asbytes=True))
    (tmp_path / "D.JSONL.GZ").write_bytes(gzip.compress(b'{"text": "lines"}'))
    (tmp_path / "E.text.gz").write_bytes(gzip.compress(b"a" * 200))
    found = read(tmp_path, max_document_bytes=100)
    assert [d.text if isinstance(d, Document) else d.reason for d in found] == [
        "plain",
        "gzip",
        "zstd",
        "lines",
        "longer than 100 bytes",
    ]


def test_an_empty_archive_is_no_archive(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.parquet"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(DataError, match=name):
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


def test_a_record_weighs_all_that_is_in_it_and_large_rows_are_read_few_at_a_time(tmp_path: Path) -> None:
    row = {
        "id": "a",
        "text": "x" * 10,
        "messages": [{"role": "user", "content": "y" * 10_000}],
        "vector": [0.5] * 100,
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "nested.parquet")
    [record] = documents.records(config.Corpus(source=str(tmp_path / "nested.parquet")))
    assert 10_010 + 100 * 8 < documents.size_of(record) < 20_000
    assert tables.rows_at_once(10_000, 10_000 * 1_000) == 1_024
    assert tables.rows_at_once(100, 100 << 20) == 8
    assert tables.rows_at_once(3, 3 << 30) == tables.rows_at_once(0, 0) == 1
