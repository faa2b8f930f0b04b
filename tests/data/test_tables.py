"""CSV and TSV as a source: what a row, a field and a fault are."""

import csv
import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthboot import config
from synthboot.data import documents
from synthboot.data.documents import Document, Ignored, Reject
from synthboot.errors import DataError


def read(path: Path, ignored: Ignored | None = None, **settings: Any) -> list[Document | Reject]:
    cfg = config.Corpus(source=str(path), **settings)
    return [documents.parse(record, cfg) for record in documents.records(cfg, ignored=ignored)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "CSV.gz"])
@pytest.mark.parametrize(
    "content",
    [
        b'id,text\r\n1,"jedna, dv\xc4\x9b\ndva"\r\n',
        b'\xef\xbb\xbfid;text\r\n1;"jedna, dv\xc4\x9b\ndva"\r\n',
        b'\xef\xbb\xbfsep=;\r\nid;text;a,b,c\r\n1;"jedna, dv\xc4\x9b\ndva";\r\n',
        b'id\ttext\n1\t"jedna, dv\xc4\x9b\ndva"\n',
        b'id\ttext\tplace, date, and more\n1\t"jedna, dv\xc4\x9b\ndva"\t\n',
        b'\n id , text \n\n1,"jedna, dv\xc4\x9b\ndva"\n\n',
        b'\r\n  \r\nid;text\r\n1;"jedna, dv\xc4\x9b\ndva"\r\n  \r\n',
        b'id;text;"a, b, c"\n1;"jedna, dv\xc4\x9b\ndva";\n;;\n',
        b'id|text|\n1|"jedna, dv\xc4\x9b\ndva"|x',
    ],
    ids=[
        "comma",
        "spreadsheet",
        "said",
        "tabs",
        "commas in a head of tabs",
        "blanks",
        "blanks and semicolons",
        "commas in quotes",
        "bars",
    ],
)
def test_a_row_is_a_document(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    (document,) = read(path)
    assert isinstance(document, Document)
    assert (document.id, document.text) == ("1", "jedna, dvě\ndva")


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1).filter(str.strip)


@given(rows=st.lists(st.tuples(texts, texts, st.text("a,;\t|\"'\n")), min_size=1, max_size=5), mark=st.sampled_from(",;\t|"))
def test_what_the_library_writes_is_read_as_it_was(tmp_path_factory: pytest.TempPathFactory, rows: Any, mark: str) -> None:
    path = tmp_path_factory.mktemp("table") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=mark)
        writer.writerow(["id", "text", "more"])
        writer.writerows(rows)
    found = [document for document in read(path) if isinstance(document, Document)]
    assert [(one.id, one.text, one.metadata["more"]) for one in found] == rows


def test_lines_are_those_of_the_file_and_ids_are_made_of_them(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('sep=,\nname,text\nx,"one\ntwo"\n\ny,three\n')
    assert [document.id for document in read(path) if isinstance(document, Document)] == ["a.csv:3", "a.csv:6"]


def test_lines_are_counted_from_the_head_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\n\nname;text\nx;one\n;\ny;two\n")
    assert [document.id for document in read(path) if isinstance(document, Document)] == ["a.csv:4", "a.csv:6"]


def test_a_bad_row_costs_itself_and_says_where_and_why(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [b"1,good,x", b"2,too,many,x", b"3,few", b"4,,x", b"5,caf\xe9,x", b"6,fine,caf\xe9", b"7,good again,x"]
    path.write_bytes(b"\n".join([b"id,text,more", *rows]))
    ignored = Ignored()
    found = read(path, ignored)
    assert {one.line: one.reason for one in found if isinstance(one, Reject)} == {
        3: "another number of fields than the first row names",
        4: "another number of fields than the first row names",
        5: "empty text",
        6: "invalid UTF-8",
    }
    kept = [one for one in found if isinstance(one, Document)]
    assert [(one.id, one.metadata) for one in kept] == [("1", {"more": "x"}), ("6", {}), ("7", {"more": "x"})]
    assert ignored.values == {"more": 1}
    assert "as many fields as its first row" in documents.advice([found[1].reason], config.Corpus(source=str(path)))  # type: ignore[union-attr]


def test_a_long_text_is_one_and_too_long_a_one_is_quarantined(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    text = "word, " * 50_000
    path.write_text(f'id,text\n1,"{text}"\n2,short\n')
    assert [one.text for one in read(path) if isinstance(one, Document)] == [text, "short"]
    found = read(path, max_document_bytes=200_000)
    assert [one.reason for one in found if isinstance(one, Reject)] == ["longer than 200000 bytes"]
    assert len(found) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'id,text\n1,"one\n2,"two"\n', r"row that begins on line 2 is no row of a table .*quote not closed"),
        (b'id,text\n1,a\n2,"say \\"no\\""\n', r"row that begins on line 3 is no row.*docs/own-text\.md"),
        (b'id,text\n1,"never closed\n', r"row that begins on line 2 .*unexpected end"),
        (b"id,text\n1," + b"x" * 100_000 + b"\n", r"line 2 is longer than 12,096 bytes"),
        (b'id,text\n1,"' + b"x\n" * 50_000 + b'"\n', r"row that begins on line 2 .*field larger"),
        (
            "id,texte français\n1,a\n".encode("cp1252"),
            r"names the fields is no UTF-8; .*`iconv -f WINDOWS-1252",
        ),
        (b"id,text,text\n1,a,b\n", r"several columns are called 'text'"),
        ("id,text\n1,a\n".encode("utf-16"), r"is UTF-16 or UTF-32, not UTF-8; iconv"),
        ("id,text\n1,a\n".encode("utf-16-le"), r"is UTF-16 or UTF-32, not UTF-8; iconv"),
        (b"id,text\r1,a\r", r"carriage returns alone"),
        (b'id,text\r1,"a\nb"\r', r"carriage return stands in it .*tr '\\r' '\\n'"),
        (b'"id\n(number)";text\n1;a\n', r"whose delimiter is ','"),
        (b"PK\x03\x04rest", r"is a ZIP archive"),
    ],
    ids=[
        "not closed",
        "not doubled",
        "open",
        "line",
        "field",
        "Western",
        "twice",
        "UTF-16",
        "no mark",
        "old mac",
        "old mac, lines in it",
        "delimiter",
        "zip",
    ],
)
def test_a_file_that_is_no_table_is_an_error_by_name(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.csv.*{said}"):
        read(path, max_document_bytes=1_000)


def test_columns_without_a_name_are_called_by_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",text,note,note\n0,words,a,b\n")
    (document,) = read(path)
    assert isinstance(document, Document)
    assert document.metadata == {"column 1": "0", "note": "a", "note (column 4)": "b"}


def test_bytes_that_are_no_table_end_in_documents_or_an_error_that_names_the_file(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "a.csv"
    whole = b'id,text\n1,"one, two"\n2,three\n3,"four ""five"" six"\n'
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(len(content))] = rng.choice(b'",\n\r\0a\xff')
        path.write_bytes(content)
        said = str(path)
        try:
            assert all(isinstance(one, Document | Reject) for one in read(path))
        except DataError as error:
            said = str(error)
        assert str(path) in said


TEXTS = ['"first" of all', "two\nlines, and a \\nabla", "a \\ and a\ttab", 'he said "no"', "plain"]


def advised(about: str) -> str:
    """The command that docs/own-text.md has below a comment."""
    page = (Path(__file__).parents[2] / "docs" / "own-text.md").read_text("utf-8")
    [command] = re.findall(rf"^# {re.escape(about)}.*\n(.+)$", page, re.MULTILINE)
    return str(command)


def enclosed(text: str) -> str:
    for sign in '\\"\n':
        text = text.replace(sign, f"\\{sign}")
    return f'"{text}"'


def bare(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")


@pytest.mark.skipif(shutil.which("perl") is None, reason="runs the commands that are advised")
@pytest.mark.parametrize(
    ("about", "suffix", "rows", "expected"),
    [
        (
            "CSV with a backslash before quotes",
            "csv",
            ['"id","text"', *(f"{number},{enclosed(text)}" for number, text in enumerate(TEXTS))],
            TEXTS,
        ),
        (
            "tabs between values, quotes that mean themselves, and \\n",
            "tsv",
            ["id\ttext\tnote", *(f"{number}\t{bare(text)}\t" for number, text in enumerate(TEXTS)), "9\t\\N\t\\N"],
            TEXTS,
        ),
        (
            "tabs between values, quotes that mean themselves, and no",
            "tsv",
            ["id\ttext", '0\t"first" of all', "1\ta \\nabla"],
            ['"first" of all', "a \\nabla"],
        ),
        ("a CSV whose first row names no fields", "csv", ["0,one", "1,two"], ["one", "two"]),
    ],
    ids=["enclosed", "escaped", "bare", "no head"],
)
def test_what_is_advised_for_tables_of_databases_gives_their_text(
    tmp_path: Path, about: str, suffix: str, rows: list[str], expected: list[str]
) -> None:
    (tmp_path / f"in.{suffix}").write_text("\n".join(rows) + "\n", "utf-8")
    subprocess.run(["bash", "-c", advised(about)], cwd=tmp_path, check=True)
    found = read(tmp_path / f"out.{suffix}")
    assert [one.text for one in found if isinstance(one, Document)] == expected
    assert [one.reason for one in found if isinstance(one, Reject)] == ["empty text"] * any("9\t" in row for row in rows)


@pytest.mark.skipif(shutil.which("perl") is None, reason="runs the command that is advised")
def test_what_is_advised_for_heads_takes_them_off_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    bodies = {"a.md": "one\n\n---\n\ntwo\n", "b.md": "no head\n---\nthree\n"}
    (tmp_path / "notes" / "a.md").write_text("---\ntitle: a\n---\n\n" + bodies["a.md"])
    (tmp_path / "notes" / "b.md").write_text(bodies["b.md"])
    subprocess.run(["bash", "-c", advised("text files with a YAML head")], cwd=tmp_path, check=True)
    assert [one.text for one in read(tmp_path / "notes") if isinstance(one, Document)] == list(bodies.values())


def test_what_is_advised_for_parquet_gives_lines_of_its_rows(tmp_path: Path) -> None:
    rows = [{"id": 1, "article": {"body": "dvě\nřádky"}}, {"id": 2, "article": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = advised("Parquet with its text below a field")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, env={**os.environ, "PATH": path})
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == rows
